"""Random numbers by name: a purpose and its indices determine them, never what was drawn before."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.common.devices import to_device


def generator(purpose: str, *indices: int) -> torch.Generator:
    """A CPU generator for a purpose and its indices, the seed first; generators of other names are independent."""
    digest = hashlib.blake2b(repr((purpose, *indices)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class SampleNoise:
    """Standard normal noise for samples of one seed; the stream of sample i depends on (seed, i) alone.

    depth: the number of stages of a cascade that follow; each stage has streams of its own.

    Each call of `randn_like(x)`, with x (N, ...) for N indices, draws from the N independent streams.
    """

    def __init__(self, seed: int, indices: Sequence[int], depth: int = 0) -> None:
        self.generators = [generator("sample", seed, i, *([depth] if depth else [])) for i in indices]

    def randn(self, shape: Sequence[int]) -> Tensor:
        """One draw of `shape` from each stream: float32, (N, *shape)."""
        drawn = torch.empty(len(self.generators), *shape)
        for sample, stream in zip(drawn.unbind(), self.generators, strict=True):
            sample.normal_(generator=stream)
        return drawn

    def randn_like(self, x: Tensor) -> Tensor:
        """One draw from each stream in the shape, dtype and device of x (N, ...)."""
        return to_device(self.randn(x.shape[1:]), x.device).to(x.dtype)
