"""How samplers begin and end: the levels that they visit, the calls that they pay for, and the last noise level."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.diffusion.exact import Gaussian
from pipeline.diffusion.grids import DISCRETIZATIONS
from pipeline.evaluation.curve import Curve
from pipeline.sampling.loop import sample
from pipeline.sampling.protocols import FIRST_STEPS
from pipeline.sampling.row import Sampler
from pipeline.sampling.solvers import SOLVERS

GAUSSIAN = Gaussian(0.1, 0.5)
NOISE = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
FREE = [name for name in SOLVERS if name not in ("rk45", "consistency", "fitted")]  # test_fitted.py has the last one
GRIDS = [name for name in DISCRETIZATIONS if name not in ("flow", "optimised", "explicit")]
PROTOCOLS: list[dict[str, Any]] = [
    {"end": "sigma_min"},
    {"first_step": "analytic"},
    {"end": "sigma_min", "first_step": "analytic"},
]
CHOICES: list[dict[str, Any]] = [
    *({"solver": name} for name in FREE),
    {"S_churn": 4},
    {"solver": "euler_maruyama", "corrector_steps": 2},
]
GUIDANCES: list[dict[str, Any]] = [
    {},
    {"guidance": 2.0},
    {"guidance": 2.0, "guidance_max": 5.0},
    {"guidance": 2.0, "guidance_min": 1.0},
    {"guidance": 0.0},
]

all_protocols = pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)


def wider(z: Tensor, sigma: Tensor) -> Tensor:
    return Gaussian(0.0, 1.0)(z, sigma)


@all_protocols
@pytest.mark.parametrize("guidance", GUIDANCES, ids=str)
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_sampler_costs_what_it_says_and_uses_its_budget(
    choice: dict[str, Any], guidance: dict[str, Any], protocol: dict[str, Any]
) -> None:
    row = Sampler(**choice, **guidance, **protocol, nfe=(40,))
    depths: list[float] = []
    for steps in (1, 2, 5):
        both = row.build_guidance()(GAUSSIAN, wider)
        assert sample(both, NOISE, row, steps, torch.zeros_like).nfe == row.evaluations(steps)
        depths.clear()
        sample(lambda z, sigma: depths.append(0.0) or GAUSSIAN(z, sigma), NOISE, row, steps, torch.zeros_like)
        assert row.depth(steps) == len(depths)
    for budget in (9, 12, 13):
        steps = row.steps(budget)
        assert 0 < row.evaluations(steps) <= budget < row.evaluations(steps + 1)


@pytest.mark.parametrize("solver", FREE)
def test_a_budget_of_one_buys_a_call_of_the_network(solver: str) -> None:
    """An analytic step is free, but a sampler of this step alone would not know the model."""
    row = Sampler(solver=solver, first_step="analytic", nfe=(4,))
    cheapest = row.evaluations(2)
    assert row.evaluations(1) == 0 < cheapest and row.steps(cheapest) == 2


@pytest.mark.parametrize("name", GRIDS)
def test_steps_to_sigma_min_have_a_level_more(name: str) -> None:
    row = Sampler(solver="ddim", discretization=name, end="sigma_min", schedule="cosine", nfe=(9,))
    zero = row.model_copy(update={"end": "zero"})
    for steps in (1, 2, 9):
        sigmas = row.grid(steps)
        assert sigmas.shape == (steps + 1,) and sigmas.equal(zero.grid(steps + 1)[:-1])
        assert row.evaluations(steps) == steps and (name == "iddpm" or sigmas[-1] == pytest.approx(row.sigma_range[0]))


def test_an_explicit_list_ends_at_its_last_level() -> None:
    row = Sampler(solver="euler", discretization="explicit", sigmas=(9, 3, 1), end="sigma_min", nfe=(2, 7))
    assert row.step_counts == [2] and row.grid(2).tolist() == [9, 3, 1] and row.evaluations(2) == 2


def test_every_kth_level_of_a_finest_grid_to_sigma_min() -> None:
    row = Sampler(solver="ddim", finest_steps=8, end="sigma_min", nfe=(2, 4))
    assert row.grid(4).equal(row.grid(8)[::2]) and row.grid(2)[-1] == pytest.approx(0.002)


@pytest.mark.parametrize("solver", [name for name in FREE if not Sampler(solver=name).build_solver().stochastic])
def test_deterministic_solvers_end_with_the_noise_of_sigma_min(solver: str) -> None:
    """A large sigma_min, so that the noise that is left shows."""
    row = Sampler(solver=solver, end="sigma_min", sigma_min=0.4, sigma_max=4, nfe=(99,))
    exact = GAUSSIAN.flow(4.0 * NOISE, *torch.tensor([4.0, 0.4], dtype=torch.float64))
    found = sample(GAUSSIAN, NOISE, row, 200).x0
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-2 if row.build_solver().order == 1 else 1e-4)
    assert not torch.allclose(found, sample(GAUSSIAN, NOISE, row.model_copy(update={"end": "zero"}), 200).x0, atol=0.05)


@pytest.mark.parametrize(
    "choice", [{"solver": "ddim", "eta": 1}, {"solver": "ddpm"}, {"solver": "dpmpp_2m_sde"}], ids=str
)
def test_noisy_solvers_end_with_the_distribution_of_sigma_min(choice: dict[str, Any]) -> None:
    row = Sampler(**choice, end="sigma_min", sigma_min=0.4, sigma_max=20, nfe=(99,))
    draw = torch.Generator().manual_seed(1)
    randn_like = lambda z: torch.randn(z.shape, dtype=z.dtype, generator=draw)  # noqa: E731
    noise = torch.randn(20_000, 1, dtype=torch.float64, generator=draw)
    found = sample(GAUSSIAN, noise, row, 99, randn_like).x0
    assert (float(found.mean()), float(found.std())) == pytest.approx((0.1, (0.5**2 + 0.4**2) ** 0.5), abs=0.02)


def test_a_truncated_sampler_may_end_elsewhere_than_its_row() -> None:
    row = Sampler(solver="heun", end="sigma_min", nfe=(9,))
    done = sample(GAUSSIAN, NOISE, row, 4, end=0.3)
    assert done.nfe == row.evaluations(4, end=0.3) == row.depth(4, end=0.3) == 8
    assert done.x0.equal(sample(GAUSSIAN, NOISE, Sampler(nfe=(9,)), 4, end=0.3).x0)


def test_the_analytic_answer_is_the_first_and_no_other() -> None:
    denoiser = FIRST_STEPS["analytic"](GAUSSIAN)
    for number, sigma in enumerate(torch.tensor([80.0, 80.0, 3.0], dtype=torch.float64)):
        eps = (NOISE - denoiser(NOISE, sigma)) / sigma
        expected = NOISE / (1 + sigma**2).sqrt() if number == 0 else (NOISE - GAUSSIAN(NOISE, sigma)) / sigma
        torch.testing.assert_close(eps, expected, rtol=1e-12, atol=0)


def test_the_depth_of_a_cascade_is_that_of_its_stages() -> None:
    earlier = Curve(model="low", guidance=2, solver="euler", nfe=(20,))
    row = Curve(model="high", solver="euler", earlier=earlier, nfe=(20,), share=0.5)
    steps = row.steps(20)
    assert (steps, row.evaluations(steps), row.depth(steps)) == (10, 20, 15)
