"""Samplers as numbers: a solver with fixed steps is linear in the noise, in the denoiser's answers and in its draws."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.sampling.loop import ode_of
from pipeline.sampling.row import Sampler


@dataclass(frozen=True)
class Linear:
    """A sampler as weights of values. Value 0 is the initial noise; each row makes the next one.

    rows: (sigma, weights) for a call of the denoiser at sigma, whose input is the weighted sum of all values so far;
    (None, ()) for a draw of standard normal noise. result: the weights of all values in the samples.
    """

    rows: tuple[tuple[float | None, tuple[float, ...]], ...]
    result: tuple[float, ...]

    @property
    def calls(self) -> int:
        return sum(sigma is not None for sigma, _ in self.rows)

    @property
    def stochastic(self) -> bool:
        return self.calls < len(self.rows)


def refuse_nonlinear(sampler: Sampler) -> None:
    """Raise StudyError if a sampler's samples are not linear in what the network answers."""
    if sampler.build_solver().adaptive:
        raise StudyError(f"solver {sampler.solver}: its steps depend on the answers; use a solver with fixed steps")
    if sampler.threshold != "none":
        raise StudyError(f"threshold {sampler.threshold}: clips the answers, which is not linear; use threshold none")
    if sampler.solver == "ddpm" and sampler.variance == "learned":
        raise StudyError("variance learned: the noise depends on the answers; use beta or beta_tilde")
    if sampler.build_guidance().limited:
        raise StudyError("guidance_min, guidance_max: one denoiser must do at all noise levels; use no limits")


def linear(sampler: Sampler, steps: int) -> Linear:
    """The numbers of a sampler that takes `steps` steps.

    The solver runs on basis vectors: its state is the weights of all values, and every answer is a new value. Raises
    StudyError as `refuse_nonlinear` does.
    """
    refuse_nonlinear(sampler)
    solver, sigmas = sampler.build_solver(), sampler.grid(steps).tolist()
    values = torch.eye(1 + 2 * solver.stages * steps, dtype=torch.float64)  # each evaluation has at most one draw
    rows: list[tuple[float | None, tuple[float, ...]]] = []

    def answer(z: Tensor, sigma: Tensor) -> Tensor:
        rows.append((float(sigma), tuple(z[: len(rows) + 1].tolist())))
        return values[len(rows)]

    def draw(z: Tensor) -> Tensor:
        rows.append((None, ()))
        return values[len(rows)]

    *_, z = solver.run(ode_of(sampler, answer), values[0] * sigmas[0], sigmas, draw)
    return Linear(tuple(rows), tuple(z[: len(rows) + 1].tolist()))
