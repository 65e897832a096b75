"""Counting how often a denoiser calls a network (NFE), and finding the first answer that is not finite."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pipeline.common.devices import state_type
from pipeline.diffusion.denoiser import DenoiserFunction


@runtime_checkable
class Composite(Protocol):
    """A denoiser that calls several networks."""

    def over(self, wrap: Callable[[DenoiserFunction], DenoiserFunction]) -> DenoiserFunction:
        """The same denoiser with every network wrapped."""

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor: ...


class Counted:
    """A denoiser that counts its evaluations: `nfe` is the number of network calls, `sigmas` are their noise levels.

    For a composite denoiser the calls of all its networks count. A sum over each answer stays on the device, because
    reading it would make the host wait; `not_finite` reads all sums at once.
    """

    def __init__(self, denoiser: DenoiserFunction) -> None:
        self.sigmas: list[Tensor] = []
        self.sums: list[Tensor] = []
        self.denoiser = denoiser.over(self._counting) if isinstance(denoiser, Composite) else self._counting(denoiser)

    @property
    def nfe(self) -> int:
        return len(self.sigmas)

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        return self.denoiser(z, sigma)

    def _counting(self, network: DenoiserFunction) -> DenoiserFunction:
        def counting(z: Tensor, sigma: Tensor) -> Tensor:
            answer = network(z, sigma)
            self.sigmas.append(sigma)
            self.sums.append(_sum(answer))  # if any value is not finite, neither is the sum
            return answer

        return counting

    def not_finite(self, *others: Tensor) -> int | None:
        """The index of the first answer that is not finite; `others` follow the answers. None if all are finite."""
        sums = [*self.sums, *map(_sum, others)]
        finite = torch.stack(sums).isfinite().tolist() if sums else []
        return finite.index(False) if False in finite else None


def _sum(values: Tensor) -> Tensor:
    return values.sum(dtype=state_type(values.device))
