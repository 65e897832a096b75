"""The sampling loop: counted evaluations, budgets, and samples that depend on (seed, i) alone."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.denoiser import Denoiser
from pipeline.discretization import DISCRETIZATIONS
from pipeline.errors import StudyError
from pipeline.oracle import Gaussian
from pipeline.sampler import Sampler
from pipeline.sampling import MIN_BATCH, sample
from pipeline.sampling import generate as batches
from pipeline.schedule import SCALINGS, SCHEDULES
from pipeline.solver import SOLVERS, STOCHASTIC

NFE: dict[str, Callable[[int], int]] = {"euler": lambda n: n, "heun": lambda n: 2 * n - 1, "ddim": lambda n: n}
BUDGET: dict[str, Callable[[int], int]] = {"euler": lambda b: b, "heun": lambda b: (b + 1) // 2, "ddim": lambda b: b}
SHAPE = (1, 8, 8)
GAUSSIAN = Gaussian(0.1, 0.5)
ROWS = {
    "heun": Sampler(),
    "heun vp": Sampler(schedule="vp", discretization="vp"),
    "euler flow": Sampler(solver="euler", schedule="flow", discretization="flow"),
    "ddim": Sampler(solver="ddim", discretization="iddpm"),
    "ancestral": Sampler(solver="ddim", eta=1, schedule="vp"),
}

all_solvers = pytest.mark.parametrize("solver", SOLVERS)


@cache
def network() -> Denoiser:
    """A small denoiser whose weights are random, the ones that start at 0 too."""
    spec = {"parametrization": "edm", "sigma_data": 0.5, "shape": SHAPE, "channels": 16}
    denoiser = Denoiser(spec | {"multipliers": [1, 2], "blocks": 1})
    generator = torch.Generator().manual_seed(0)
    for parameter in denoiser.parameters():
        parameter.data.normal_(0, 0.05, generator=generator)
    return denoiser.eval().requires_grad_(False)


def noise_of(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def silent(x: Tensor) -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def generate(*arguments: Any) -> tuple[Tensor, int]:
    """All batches of `pipeline.sampling.generate` as one, and the NFE that all of them have."""
    images, counts = zip(*batches(*arguments), strict=True)
    [nfe] = set(counts)
    return torch.cat(images), nfe


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """generate's images as the floats they are made of, so that no difference is rounded away."""
    monkeypatch.setattr("pipeline.sampling.to_uint8", lambda x: x)


def test_every_solver_has_its_cost_here() -> None:
    assert NFE.keys() == BUDGET.keys() == SOLVERS.keys()


@all_solvers
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_evaluations_are_counted(solver: str, steps: int) -> None:
    sigmas: list[float] = []

    def denoiser(z: Tensor, sigma: Tensor) -> Tensor:
        sigmas.append(float(sigma))
        return GAUSSIAN(z, sigma)

    sampler = Sampler(solver=solver)
    result = sample(denoiser, noise_of(3, *SHAPE), sampler, steps)
    assert result.nfe == len(sigmas) == NFE[solver](steps) == sampler.build_solver().evaluations(steps)
    assert min(sigmas) > 0


@all_solvers
def test_a_budget_buys_as_many_steps_as_it_can(solver: str) -> None:
    sampler = Sampler(solver=solver)
    for budget in range(1, 130):
        steps = sampler.steps(budget)
        assert steps == BUDGET[solver](budget)
        assert NFE[solver](steps) <= budget < NFE[solver](steps + 1)


@pytest.mark.parametrize("row", ROWS)
def test_images_do_not_depend_on_the_batches(row: str, exact: None) -> None:
    """Also where the batches are of two sizes, or end up below MIN_BATCH: 100 images in batches of 16 are 15 or 14."""
    runs = {batch: generate(network(), SHAPE, ROWS[row], 2, 0, 100, batch) for batch in (100, 64, 50, 43, 16)}
    whole, nfe = runs.pop(100)
    assert whole.shape == (100, *SHAPE) and whole.isfinite().all() and nfe == NFE[ROWS[row].solver](2)
    for images, count in runs.values():
        assert torch.equal(images, whole) and count == nfe


@pytest.mark.parametrize("row", ["heun", "ancestral"])
@pytest.mark.parametrize("count", [1, MIN_BATCH - 1, 40])
def test_images_do_not_depend_on_their_number(row: str, count: int, exact: None) -> None:
    whole, _ = generate(network(), SHAPE, ROWS[row], 2, 0, 100, 64)
    part, _ = generate(network(), SHAPE, ROWS[row], 2, 0, count, 64)
    assert torch.equal(part, whole[:count])


def test_images_are_bytes_and_seeds_differ() -> None:
    first, again, other = (generate(network(), SHAPE, Sampler(), 3, seed, 20, 20)[0] for seed in (0, 0, 1))
    assert first.shape == (20, *SHAPE) and first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert (first.flatten(1) != other.flatten(1)).any(1).all()
    assert len(first.flatten(1).unique(dim=0)) == 20


@all_solvers
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
def test_deterministic_samplers_ask_for_no_noise(solver: str, schedule: str, discretization: str) -> None:
    sampler = Sampler(solver=solver, schedule=schedule, discretization=discretization)
    for steps in (1, 2, 5):
        assert sample(GAUSSIAN, noise_of(2, 3), sampler, steps, silent).x0.isfinite().all()


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_stochastic_samplers_ask_once_a_step_but_the_last(solver: str) -> None:
    asked = []
    sampler = Sampler(solver=solver, eta=0.5)
    sample(GAUSSIAN, noise_of(2, 3), sampler, 6, lambda x: asked.append(x.shape) or torch.zeros_like(x))
    assert asked == 5 * [(2, 3)]


@all_solvers
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_all_samplers_start_from_the_same_noise(solver: str, schedule: str, scaling: str) -> None:
    seen: list[Tensor] = []

    def denoiser(z: Tensor, sigma: Tensor) -> Tensor:
        seen.append(z / sigma)
        return GAUSSIAN(z, sigma)

    sampler = Sampler(solver=solver, schedule=schedule, scaling=scaling)
    generate(denoiser, (2, 3, 4), sampler, 2, 7, 16, 16)
    generate(denoiser, (2, 3, 4), Sampler(), 2, 7, 16, 16)
    torch.testing.assert_close(seen[0], seen[sampler.build_solver().evaluations(2)], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 1, 8, 8), (5, 1, 8, 8), (8, 3, 4, 8), (1, 1, 8, 8), (3, 2), (4,)])
def test_samples_of_a_batch_are_those_of_its_parts(shape: tuple[int, ...]) -> None:
    """Also where the batch is as large as the image is wide."""
    noise = noise_of(*shape)
    for sampler in (Sampler(), Sampler(schedule="vp"), Sampler(solver="ddim", schedule="flow")):
        together = sample(GAUSSIAN, noise, sampler, 4).x0
        assert together.shape == shape and together.dtype == torch.float64
        alone = torch.cat([sample(GAUSSIAN, part, sampler, 4).x0 for part in noise.split(1)])
        torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_heun_reaches_the_exact_end_of_a_gaussian(schedule: str) -> None:
    """Every sample lies where the exact flow from sigma_max takes it, so their mean and std are the data's."""
    noise = noise_of(20_000, 1)
    x0 = sample(GAUSSIAN, noise, Sampler(schedule=schedule), 200).x0
    exact_end = GAUSSIAN.flow(80.0 * noise.double(), *torch.tensor([80.0, 0.0]).double())
    torch.testing.assert_close(x0, exact_end, rtol=0, atol=0.02)
    assert (float(x0.mean()), float(x0.std())) == pytest.approx((0.1, 0.5), abs=0.02)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_stochastic_samplers_keep_the_std_of_a_gaussian(eta: float) -> None:
    generator = torch.Generator().manual_seed(1)
    randn_like = lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator)  # noqa: E731
    x0 = sample(GAUSSIAN, noise_of(20_000, 1), Sampler(solver="ddim", eta=eta), 400, randn_like).x0
    assert (float(x0.mean()), float(x0.std())) == pytest.approx((0.1, 0.5), abs=0.02)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_samples_that_are_not_finite_are_an_error(value: float) -> None:
    def denoiser(z: Tensor, sigma: Tensor) -> Tensor:
        return torch.where(torch.arange(len(z))[:, None] == 1, value, GAUSSIAN(z, sigma))

    with pytest.raises(StudyError, match=r"euler, 4 steps: .*not finite") as caught:
        sample(denoiser, noise_of(3, 2), Sampler(solver="euler"), 4)
    assert len(str(caught.value).splitlines()) == 1


def test_no_graph_is_kept() -> None:
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    assert not sample(lambda z, sigma: scale * GAUSSIAN(z, sigma), noise_of(2, 2), Sampler(), 2).x0.requires_grad
