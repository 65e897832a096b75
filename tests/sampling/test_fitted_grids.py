"""Fitted grids: shortest paths against all subsets, truncation errors by hand, and lower sampling errors."""

import math
from functools import cache
from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.diffusion.exact import Gaussian
from pipeline.diffusion.grids import edm
from pipeline.evaluation.convergence import mixture
from pipeline.sampling.counting import Counted
from pipeline.sampling.fitted_grids import FIT_EVALUATIONS, LEVELS, fit, shortest, truncation_errors
from pipeline.sampling.loop import sample
from pipeline.sampling.row import Sampler

F64 = torch.float64
LOW, HIGH = 0.002, 80.0
GAUSSIAN = Gaussian(0.2, 0.5)


def noise_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@cache
def fitted() -> list[tuple[float, ...]]:
    return fit(mixture(), noise_of(256, 2), LOW, HIGH)


def cost(costs: Tensor, nodes: tuple[int, ...] | list[int]) -> float:
    return sum(float(costs[i, j]) for i, j in pairwise(nodes))


@pytest.mark.parametrize("nodes", [2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(4))
def test_shortest_is_the_cheapest_of_all_subsets(nodes: int, seed: int) -> None:
    costs = torch.rand(nodes, nodes, dtype=F64, generator=torch.Generator().manual_seed(seed))
    costs[torch.tril(torch.ones(nodes, nodes)).bool()] = torch.inf
    for steps, found in enumerate(shortest(costs, nodes - 1), 1):
        choices = [(0, *inner, nodes - 1) for inner in combinations(range(1, nodes - 1), steps - 1)]
        assert tuple(found) == min(choices, key=lambda choice: cost(costs, choice))


def test_more_steps_than_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="4 steps, but there are 3 levels"):
        shortest(torch.ones(4, 4), 4)


def test_truncation_errors_are_those_of_eulers_steps_from_the_teachers_states() -> None:
    """On Gaussian data every step multiplies z - mean: the teacher's by Heun's factor, the long step by Euler's."""
    sigmas = [10.0, 3.0, 1.0, 0.2, 0.0]
    slope = lambda sigma: sigma / (sigma**2 + GAUSSIAN.std**2)  # noqa: E731  eps = slope (z - mean)
    state, states = 1.0, [1.0]
    for sigma, after in pairwise(sigmas):
        predicted = 1 + (after - sigma) * slope(sigma)
        corrected = 1 + (after - sigma) * (slope(sigma) + predicted * slope(after)) / 2
        state *= corrected if after else predicted
        states.append(state)
    noise = noise_of(50, 1, 2)
    spread = float((noise * sigmas[0] - GAUSSIAN.mean).square().mean().sqrt())
    errors = truncation_errors(GAUSSIAN, noise, sigmas)
    assert errors.shape == (5, 5)
    for i in range(5):
        for j in range(5):
            end = states[i] * (1 + (sigmas[j] - sigmas[i]) * slope(sigmas[i]))
            expected = spread * abs(end - states[j]) if j > i else math.inf
            assert float(errors[i, j]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("levels", [1, 2, 7, LEVELS])
def test_fitting_costs_as_many_evaluations_as_heuns_method_on_all_levels(levels: int) -> None:
    counted, heun = Counted(GAUSSIAN), Counted(GAUSSIAN)
    fit(counted, noise_of(3, 2), LOW, HIGH, levels)
    sample(heun, noise_of(3, 2), Sampler(), levels)
    assert counted.nfe == heun.nfe == 2 * levels - 1
    assert levels < LEVELS or counted.nfe == FIT_EVALUATIONS


@pytest.mark.parametrize("levels", [1, 2, 7, LEVELS])
@pytest.mark.parametrize("shape", [(8, 1, 8, 8), (5, 3), (4,)])
def test_fitted_grids_fall_from_sigma_max_in_as_many_steps(levels: int, shape: tuple[int, ...]) -> None:
    grids = fit(GAUSSIAN, noise_of(*shape), LOW, HIGH, levels)
    teacher = edm(levels, LOW, HIGH, 7.0).tolist()
    assert [len(grid) for grid in grids] == list(range(1, levels + 1))
    for grid in grids:
        assert grid[0] == teacher[0] and set(grid) <= set(teacher)
        assert all(sigma > after > 0 for sigma, after in pairwise(grid))
    assert grids[-1] == tuple(teacher)


def test_a_fitted_grid_has_the_least_total_local_error() -> None:
    """It is lower than on EDM's grid and that with rho = 3, rounded to the teacher's levels, and on random grids."""
    sigmas = [*edm(LEVELS, LOW, HIGH, 7.0).tolist(), 0.0]
    costs = truncation_errors(mixture(), noise_of(256, 2), sigmas)
    generator = torch.Generator().manual_seed(0)
    for steps in (2, 5, 10, 20):
        best = cost(costs, [*(sigmas.index(sigma) for sigma in fitted()[steps - 1]), LEVELS])
        for rho in (3.0, 7.0):
            levels = torch.tensor(sigmas[:-1], dtype=F64).log()
            nodes = (edm(steps, LOW, HIGH, rho).log()[:, None] - levels).abs().argmin(1).unique().tolist()
            assert len(nodes) == steps and best <= cost(costs, [*nodes, LEVELS])
        for _ in range(50):
            inner = (torch.randperm(LEVELS - 1, generator=generator)[: steps - 1] + 1).sort().values.tolist()
            assert best <= cost(costs, [0, *inner, LEVELS])


def test_fitted_grids_beat_the_grid_of_edm_on_the_exact_mixture() -> None:
    """Measured on held-out noise, with the solver for whose steps the grids are fitted."""
    noise = noise_of(512, 2, seed=1)
    exact = sample(mixture(), noise, Sampler(nfe=(999,)), 500).x0
    for steps in (3, 5, 7, 10):
        row = Sampler(solver="ddim", nfe=(steps,))
        errors = [
            float((sample(mixture(), noise, sampler, steps).x0 - exact).square().mean().sqrt())
            for sampler in (row.with_grid(fitted()[steps - 1]), row)
        ]
        assert errors[0] < 0.6 * errors[1]


def test_fitting_is_repeatable_and_keeps_no_graph() -> None:
    scale = torch.ones((), dtype=F64, requires_grad=True)
    first, again = (fit(lambda z, s: scale * GAUSSIAN(z, s), noise_of(6, 2), LOW, HIGH, 8) for _ in range(2))
    assert first == again
    assert not truncation_errors(lambda z, s: scale * GAUSSIAN(z, s), noise_of(6, 2), [1.0, 0.5, 0.0]).requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_answers_that_are_not_finite_are_an_error(value: float) -> None:
    def denoiser(z: Tensor, sigma: Tensor) -> Tensor:
        return torch.where(sigma < 1, value, GAUSSIAN(z, sigma))

    with pytest.raises(StudyError, match="optimised: the denoiser's answers are not finite") as caught:
        fit(denoiser, noise_of(4, 2), LOW, HIGH, 8)
    assert len(str(caught.value).splitlines()) == 1
