"""Random numbers by name: each is made from what it is for and its indices, never from what was drawn before it."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.common.devices import to_device


def generator(purpose: str, *indices: int) -> torch.Generator:
    """A CPU generator for one purpose and its indices (a seed first), independent of every other one."""
    digest = hashlib.blake2b(repr((purpose, *indices)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class SampleNoise:
    """Standard normal noise for samples of one seed: sample i's stream depends on (seed, i) alone.

    Call `randn_like(x)` with x (N, ...), N the number of indices, as often as needed: N independent streams.
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self.generators = [generator("sample", seed, i) for i in indices]

    def randn(self, shape: Sequence[int]) -> Tensor:
        """One draw of `shape` from each stream: float32, (N, *shape)."""
        drawn = torch.empty(len(self.generators), *shape)
        for row, own in zip(drawn.unbind(), self.generators, strict=True):
            row.normal_(generator=own)
        return drawn

    def randn_like(self, x: Tensor) -> Tensor:
        return to_device(self.randn(x.shape[1:]), x.device).to(x.dtype)
