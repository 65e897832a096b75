"""The sampling loop: counted evaluations, budgets, samples that depend on (seed, i) alone, and answers not finite."""

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from pipeline.common.errors import StudyError
from pipeline.diffusion.classifier import NoisyClassifier
from pipeline.diffusion.denoiser import Denoiser, DenoiserFunction
from pipeline.diffusion.exact import Gaussian
from pipeline.diffusion.grids import DISCRETIZATIONS
from pipeline.diffusion.schedule import SCALINGS, SCHEDULES
from pipeline.sampling.batches import GROUP, MIN_BATCH, mean_nfe
from pipeline.sampling.batches import generate as batches
from pipeline.sampling.guidance import GUIDES, ByClass, Guidance, guided
from pipeline.sampling.loop import Samples
from pipeline.sampling.loop import sample as sample_once
from pipeline.sampling.row import Sampler
from pipeline.sampling.solvers import SOLVERS
from pipeline.training.row import Model

ONCE: tuple[Callable[[int], int], Callable[[int], int]] = (lambda n: n, lambda b: b)
TWICE: tuple[Callable[[int], int], Callable[[int], int]] = (lambda n: 2 * n - 1, lambda b: (b + 1) // 2)
COST: dict[str, tuple[Callable[[int], int], Callable[[int], int]] | None] = {  # evaluations of steps, steps of a budget
    "euler": ONCE,
    "heun": TWICE,
    "midpoint": TWICE,
    "rk4": (lambda n: 4 * n - 3, lambda b: (b + 3) // 4),
    "dpm_solver_2": TWICE,
    "dpmpp_2s": TWICE,
    "rk45": None,  # chooses its steps by itself
    "dpmpp_2m": ONCE,
    "dpmpp_3m": ONCE,
    "exp_adams": ONCE,
    "unipc": ONCE,
    "deis": ONCE,
    "ipndm": ONCE,
    "lms": ONCE,
    "ddim": ONCE,
    "ddpm": ONCE,
    "consistency": ONCE,
    "euler_maruyama": ONCE,
    "dpmpp_2m_sde": ONCE,
    "fitted": ONCE,
}
SHAPE = (1, 8, 8)
CLASSES = (1, 2, 3)
GAUSSIAN = Gaussian(0.1, 0.5)
ROWS = {name: Sampler(solver=name, nfe=(99,)) for name in SOLVERS} | {
    "heun vp": Sampler(schedule="vp", discretization="vp"),
    "euler flow": Sampler(solver="euler", schedule="flow", discretization="flow"),
    "ddim iddpm": Sampler(solver="ddim", discretization="iddpm"),
    "ancestral": Sampler(solver="ddim", eta=1, schedule="vp"),
    "corrected": Sampler(solver="euler_maruyama", corrector_steps=1, schedule="cosine"),
    "churned": Sampler(S_churn=3),
    "thresholded": Sampler(threshold="dynamic", threshold_percentile=0.8),
    "above 0": Sampler(solver="unipc", end="sigma_min"),
}
STEADY = [name for name in SOLVERS if COST[name]]
GRIDS = [name for name in DISCRETIZATIONS if name not in ("explicit", "optimised")]  # of any number of steps

all_solvers = pytest.mark.parametrize("solver", SOLVERS)


@cache
def network(classes: tuple[int, ...] = (), seed: int = 0) -> Denoiser:
    """A small denoiser with random weights, including those that start at 0."""
    row = Model(channels=16, multipliers=(1, 2), blocks=1, labels="classes" if classes else "none")
    return randomly(Denoiser(row.spec(0.5, SHAPE, classes)), 0.05, seed)


Network = TypeVar("Network", bound=nn.Module)


def randomly(made: Network, std: float, seed: int) -> Network:
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data.normal_(0, std, generator=generator)
    return made.eval().requires_grad_(False)


def noise_of(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def silent(x: Tensor) -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def sample(denoiser: DenoiserFunction, noise: Tensor, row: Sampler, steps: int, *randn_like: Any) -> Samples:
    """A fitted solver has the numbers that a fit begins with."""
    return sample_once(denoiser, noise, row.as_started(steps), steps, *randn_like)


def generate(denoiser: Any, shape: Any, row: Sampler, steps: int, *others: Any) -> tuple[Tensor, list[int]]:
    """All batches of `pipeline.sampling.batches.generate` as one, and the NFE of every image."""
    found = list(batches(denoiser, shape, row.as_started(steps), steps, *others))
    return torch.cat([images for images, _ in found]), [nfe for images, nfe in found for _ in images]


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """`generate` yields floats instead of images, so that no difference is rounded away."""
    monkeypatch.setattr("pipeline.sampling.batches.to_data", lambda x: x)


def test_every_solver_has_its_cost_here() -> None:
    assert COST.keys() == SOLVERS.keys()
    assert {name for name in SOLVERS if not ROWS[name].build_solver().adaptive} == set(STEADY)


@pytest.mark.parametrize("solver", STEADY)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_evaluations_are_counted(solver: str, steps: int) -> None:
    sigmas: list[float] = []

    def denoiser(z: Tensor, sigma: Tensor) -> Tensor:
        sigmas.append(float(sigma))
        return GAUSSIAN(z, sigma)

    cost = COST[solver]
    assert cost
    result = sample(denoiser, noise_of(3, *SHAPE), ROWS[solver], steps)
    assert result.nfe == len(sigmas) == cost[0](steps) == ROWS[solver].build_solver().evaluations(steps)
    assert min(sigmas) > 0 and sigmas[0] == 80


@pytest.mark.parametrize("corrector_steps", [1, 3])
def test_langevin_steps_are_counted(corrector_steps: int) -> None:
    row = Sampler(solver="euler_maruyama", corrector_steps=corrector_steps, nfe=(99,))
    for steps in (1, 2, 5):
        nfe = sample(GAUSSIAN, noise_of(3, 2), row, steps).nfe
        assert nfe == (1 + corrector_steps) * (steps - 1) + 1 == row.build_solver().evaluations(steps)
        assert row.steps(nfe) == steps == row.steps(nfe + corrector_steps)


def test_an_adaptive_solver_costs_what_it_does_and_no_less_than_it_says() -> None:
    row = ROWS["rk45"]
    result = sample(GAUSSIAN, noise_of(3, 2), row, 2)
    assert result.nfe > row.build_solver().evaluations(2) == 9
    assert [row.steps(budget) for budget in (1, 9, 100)] == [2, 2, 2]


@pytest.mark.parametrize("solver", STEADY)
def test_a_budget_buys_as_many_steps_as_it_can(solver: str) -> None:
    cost = COST[solver]
    assert cost
    evaluations, steps_of = cost
    for budget in range(1, 130):
        steps = ROWS[solver].steps(budget)
        assert steps == steps_of(budget)
        assert evaluations(steps) <= budget < evaluations(steps + 1)


@all_solvers
def test_one_step_is_the_denoised_noise_of_sigma_max(solver: str) -> None:
    """Euler's step to 0. An adaptive solver takes its own steps before that."""
    noise = noise_of(3, 2)
    expected = GAUSSIAN(noise.double() * 80, torch.tensor(80.0, dtype=torch.float64))
    x0 = sample(GAUSSIAN, noise, ROWS[solver], 1, silent).x0
    assert torch.allclose(x0, expected, rtol=1e-11, atol=1e-11) == (solver != "rk45")


@pytest.mark.parametrize("row", ROWS)
def test_images_depend_neither_on_batches_nor_on_their_number(row: str, exact: None) -> None:
    """Batches may have two sizes, or fewer than MIN_BATCH: 37 images in batches of 16 are batches of 13 or 12.

    How a network rounds in a batch does not depend on the solver, so three rows stand for the others in most sizes.
    """
    most = row in ("euler", "rk45", "churned")
    sampler = ROWS[row] if row != "rk45" else Sampler(solver="rk45", rtol=0.1, atol=0.1)  # a third of the evaluations
    total = 100 if most else 37
    whole, nfe = generate(network(), SHAPE, sampler, 2, 0, total, 512)
    assert whole.shape == (total, *SHAPE) and whole.isfinite().all()
    assert row == "rk45" or set(nfe) == {sampler.build_solver().evaluations(2)}
    further = [(100, 64), (100, 43), (1, 64), (40, 64)] if most else []
    for count, batch in [(total, 16), (MIN_BATCH - 1, 64), *further]:
        images, of_images = generate(network(), SHAPE, sampler, 2, 0, count, batch)
        assert torch.equal(images, whole[:count]) and of_images == nfe[:count], (count, batch)


def test_images_of_an_odd_size_do_not_depend_on_the_batches(exact: None) -> None:
    """A level may have fewer values per image than PyTorch's vector width, or no multiple of it."""
    row = Model(network="ddpmpp", channels=24, multipliers=(1, 1), attention=(3,))
    denoiser = randomly(Denoiser(row.spec(0.5, (1, 6, 6))), 0.05, 0)
    whole, _ = generate(denoiser, (1, 6, 6), ROWS["euler"], 2, 0, 33, 64)
    for count, batch in [(17, 64), (19, 64), (33, 17), (33, 11), (33, 1)]:
        assert generate(denoiser, (1, 6, 6), ROWS["euler"], 2, 0, count, batch)[0].equal(whole[:count])


@cache
def classifier() -> NoisyClassifier:
    return randomly(NoisyClassifier(0.5, SHAPE, CLASSES), 0.2, 0)


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("row", ["euler", "churned"])  # adaptive solvers: in tests/test_guidance.py
def test_guided_images_depend_neither_on_batches_nor_on_their_number(guide: str, row: str, exact: None) -> None:
    """Also for networks with labels, and for gradients."""

    def of_labels(labels: Tensor) -> DenoiserFunction:
        return guided(Guidance(2.0, guide), network(CLASSES), labels, network(CLASSES, 1), classifier())

    denoiser = ByClass(CLASSES, of_labels)
    whole, _ = generate(denoiser, SHAPE, ROWS[row], 2, 0, 60, 512)
    assert not whole.equal(generate(network(CLASSES), SHAPE, ROWS[row], 2, 0, 60, 512)[0])
    for count, batch in [(60, 43), (60, 16), (15, 64)]:
        assert generate(denoiser, SHAPE, ROWS[row], 2, 0, count, batch)[0].equal(whole[:count])


@pytest.mark.parametrize("row", ["euler", "rk45"])
def test_every_batch_knows_its_samples_those_that_fill_it_up_too(row: str) -> None:
    asked: list[tuple[int, list[int]]] = []
    sizes: list[int] = []

    class Watched:
        def for_samples(self, seed: int, indices: Any) -> DenoiserFunction:
            asked.append((seed, list(indices)))
            return lambda z, sigma: sizes.append(len(z)) or GAUSSIAN(z, sigma)

    images, _ = generate(Watched(), (2, 3, 4), ROWS[row], 2, 7, 5, 20)
    filled = list(range(GROUP)) if row == "rk45" else [*3 * [0, 1, 2, 3, 4], 0]
    assert asked == [(7, filled)] and set(sizes) == {len(filled)} and len(images) == 5


def test_an_adaptive_solver_always_gets_whole_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for 70 images, the last of which share their steps with discarded samples."""
    sizes: list[int] = []
    denoiser = lambda z, sigma: sizes.append(len(z)) or GAUSSIAN(z, sigma)  # noqa: E731
    images, nfe = generate(denoiser, (2, 3, 4), ROWS["rk45"], 2, 0, GROUP + 6, 20)
    assert set(sizes) == {GROUP} and images.shape == (GROUP + 6, 2, 3, 4) and len(sizes) == nfe[0] + nfe[-1]


def test_images_are_bytes_and_seeds_differ() -> None:
    first, again, other = (generate(network(), SHAPE, Sampler(), 3, seed, 20, 20)[0] for seed in (0, 0, 1))
    assert first.shape == (20, *SHAPE) and first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert (first.flatten(1) != other.flatten(1)).any(1).all()
    assert len(first.flatten(1).unique(dim=0)) == 20


@pytest.mark.parametrize(("number", "solver"), list(enumerate(SOLVERS)))
def test_samplers_are_finite_and_deterministic_ones_ask_for_no_noise(number: int, solver: str) -> None:
    """Every solver with every grid and every schedule, and every grid with every schedule."""
    for other, discretization in enumerate(GRIDS):
        schedule = list(SCHEDULES)[(number + other) % len(SCHEDULES)]
        sampler = Sampler(solver=solver, schedule=schedule, discretization=discretization, nfe=(19,))
        randn_like = torch.ones_like if sampler.build_solver().stochastic else silent
        for steps in (1, 2, 5):
            x0 = sample(GAUSSIAN, noise_of(2, 3), sampler, steps, randn_like).x0
            assert x0.isfinite().all(), (schedule, discretization, steps)


@pytest.mark.parametrize(("number", "solver"), list(enumerate(SOLVERS)))
def test_all_samplers_start_from_the_same_noise(number: int, solver: str) -> None:
    """In every schedule, and in every scaling."""
    seen: list[Tensor] = []

    def denoiser(z: Tensor, sigma: Tensor) -> Tensor:
        seen.append(z / sigma)
        return GAUSSIAN(z, sigma)

    generate(denoiser, (2, 3, 4), Sampler(), 1, 7, 16, 16)
    [expected] = seen
    for other, schedule in enumerate(SCHEDULES):
        scaling = list(SCALINGS)[(number + other) % len(SCALINGS)]
        seen.clear()
        sampler = Sampler(solver=solver, schedule=schedule, scaling=scaling, nfe=(19,))
        generate(denoiser, (2, 3, 4), sampler, 2, 7, 16, 16)
        torch.testing.assert_close(seen[0][:16], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("row", [row for row in ROWS if row != "rk45"])  # whose steps are chosen for all together
@pytest.mark.parametrize("shape", [(8, 1, 8, 8), (5, 1, 8, 8), (8, 3, 4, 8), (1, 1, 8, 8), (3, 2), (4,)])
def test_samples_of_a_batch_are_those_of_its_parts(row: str, shape: tuple[int, ...]) -> None:
    """Also if the batch is as large as the image is wide."""
    noise = noise_of(*shape)
    together = sample(GAUSSIAN, noise, ROWS[row], 4, torch.ones_like).x0
    assert together.shape == shape and together.dtype == torch.float64
    alone = torch.cat([sample(GAUSSIAN, part, ROWS[row], 4, torch.ones_like).x0 for part in noise.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 1, 8, 8), (5, 1, 8, 8), (3, 2), (4,)])
def test_an_adaptive_solver_keeps_shapes_and_stays_within_its_tolerance(shape: tuple[int, ...]) -> None:
    together = sample(GAUSSIAN, noise_of(*shape), ROWS["rk45"], 2, silent).x0
    assert together.shape == shape and together.dtype == torch.float64
    exact_end = GAUSSIAN.flow(80.0 * noise_of(*shape).double(), *torch.tensor([80.0, 0.0]).double())
    torch.testing.assert_close(together, exact_end, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_heun_reaches_the_exact_end_of_a_gaussian(schedule: str) -> None:
    """Every sample ends where the exact flow from sigma_max ends, so mean and std are those of the data."""
    noise = noise_of(20_000, 1)
    x0 = sample(GAUSSIAN, noise, Sampler(schedule=schedule), 200).x0
    exact_end = GAUSSIAN.flow(80.0 * noise.double(), *torch.tensor([80.0, 0.0]).double())
    torch.testing.assert_close(x0, exact_end, rtol=0, atol=0.02)
    assert (float(x0.mean()), float(x0.std())) == pytest.approx((0.1, 0.5), abs=0.02)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("evaluation", [0, 2, 4])
def test_an_answer_that_is_not_finite_is_an_error_that_says_where(row: str, evaluation: int, value: float) -> None:
    """One value of one sample is not finite."""
    sigmas: list[float] = []

    def denoiser(z: Tensor, sigma: Tensor) -> Tensor:
        sigmas.append(float(sigma))
        where = (torch.arange(len(z))[:, None] == 1) & (len(sigmas) == evaluation + 1)
        return torch.where(where, value, GAUSSIAN(z, sigma))

    with pytest.raises(StudyError) as caught:
        sample(denoiser, noise_of(3, 2), ROWS[row], 6, torch.ones_like)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    cost = ROWS[row].build_solver().evaluations
    step = 1 if row == "rk45" else next(n for n in range(1, 7) if cost(n + 1) - cost(1) > evaluation)
    sigma = f"{sigmas[evaluation]:.4g}"
    assert message == f"step {step} of 6, sigma {sigma}: the denoiser's answer is not finite"
    assert row != "rk45" or len(sigmas) == evaluation + 1  # it does not try smaller steps


def test_samples_that_are_not_finite_though_all_answers_are_finite_are_an_error() -> None:
    def denoiser(z: Tensor, sigma: Tensor) -> Tensor:
        return torch.full_like(z, 1e307 if sigma < 0.1 else -1e307)

    with pytest.raises(StudyError, match=r"step 4 of 4: the samples are not finite") as caught:
        sample(denoiser, noise_of(3, 2), Sampler(solver="deis", nfe=(9,)), 4)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("row", ROWS)
def test_a_denoiser_may_answer_in_float32(row: str) -> None:
    """The state stays in float64, also if the network computes in float32."""
    noise = noise_of(3, 2)
    single = sample(lambda z, sigma: GAUSSIAN(z.float(), sigma.float()), noise, ROWS[row], 4, torch.ones_like).x0
    double = sample(
        lambda z, sigma: GAUSSIAN(z.float(), sigma.float()).double(), noise, ROWS[row], 4, torch.ones_like
    ).x0
    assert single.dtype == torch.float64
    torch.testing.assert_close(single, double, rtol=1e-12, atol=1e-12)


def test_mean_nfe_is_that_of_a_sample_rounded_up() -> None:
    assert mean_nfe([(64, 35), (36, 35)]) == 35
    assert mean_nfe([(64, 35), (1, 41)]) == 36 == mean_nfe([(1, 35), (1, 36)])


def test_no_graph_is_kept() -> None:
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    assert not sample(lambda z, sigma: scale * GAUSSIAN(z, sigma), noise_of(2, 2), Sampler(), 2).x0.requires_grad
