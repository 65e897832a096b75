"""Fits on exact denoisers: never worse than their start, far better than iPNDM, and with exact gradients."""

import sys
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import NotFinite
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.diffusion.exact import LabelledMixture
from pipeline.evaluation.convergence import mixture
from pipeline.sampling import fitting
from pipeline.sampling.counting import Counted
from pipeline.sampling.fitted import FITS, STARTS, TOLD
from pipeline.sampling.fitting import BACKWARD, SHRUNK, Fit, chunks, fit, most_calls, teacher_of
from pipeline.sampling.guidance import Guidance, guided
from pipeline.sampling.loop import sample
from pipeline.sampling.row import Sampler

F64 = torch.float64
ORACLE = mixture()
NOISE = torch.randn(512, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
IMAGES = 256
WAYS = [{"fit": fit, "told": told, "start": start} for fit, told, start in product(FITS, TOLD, STARTS)]

all_ways = pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way.values()))
all_ends = pytest.mark.parametrize("end", ["zero", "sigma_min"])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {"IMAGES": 20, "CHUNK": 10, "ITERATIONS": (3, 6), "TEACHER_STEPS": 8}.items():
        monkeypatch.setattr(sys.modules[__name__] if name == "IMAGES" else fitting, name, value)
    yield


def row_of(**keys: Any) -> Sampler:
    return Sampler(**{"solver": "fitted", "nfe": (99,), "fit_images": IMAGES} | keys)


def fitted(row: Sampler, steps: int, denoiser: DenoiserFunction = ORACLE) -> Fit:
    return fit(lambda indices: denoiser, NOISE[: 2 * IMAGES], row, steps)


def error(row: Sampler, steps: int, noise: Tensor) -> float:
    """The root mean square distance of a sampler's end points from the teacher's."""
    target = sample(ORACLE, noise, teacher_of(row, steps), fitting.TEACHER_STEPS).x0
    return float((sample(ORACLE, noise, row, steps).x0 - target).square().mean().sqrt())


def noises() -> tuple[Tensor, Tensor]:
    """Those that numbers are fitted to, and those held out."""
    return NOISE[:IMAGES], NOISE[IMAGES : 2 * IMAGES]


@pytest.mark.parametrize(
    "keys",
    [
        {"discretization": "ddpm", "spacing": "leading"},
        {"discretization": "iddpm"},
        {"discretization": "iddpm", "end": "sigma_min"},
        {"discretization": "explicit", "sigmas": (40.0, 5.0, 1.0), "sigma_max": 80.0},
        {"first_step": "analytic", "threshold": "static", "sigma_max": 2.0},
    ],
    ids=str,
)
@pytest.mark.usefixtures("small")
def test_a_fit_begins_and_ends_where_its_samples_do(keys: dict[str, Any]) -> None:
    row = row_of(**keys)
    found = fitted(row, 3)
    own = row.model_copy(update={"numbers": found.numbers})
    assert [error(own, 3, noise) for noise in noises()] == pytest.approx([found.error, found.heldout], rel=1e-9)


@pytest.mark.usefixtures("small")
def test_held_out_noise_without_a_finite_solution_is_a_failure() -> None:
    def denoiser_of(indices: range) -> DenoiserFunction:
        return ORACLE if indices.start < IMAGES else lambda z, sigma: ORACLE(z, sigma) * (1 if sigma > 79 else 1e200)

    with pytest.raises(NotFinite):
        fit(denoiser_of, NOISE[: 2 * IMAGES], row_of(), 3)


@all_ways
@all_ends
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.usefixtures("small")
def test_a_fit_is_no_worse_than_its_start_and_its_errors_are_those_of_its_samples(
    way: dict[str, str], end: str, steps: int
) -> None:
    row = row_of(**way, end=end)
    found, started = fitted(row, steps), row.as_started(steps)
    assert found.error <= found.start
    own = row.model_copy(update={"numbers": found.numbers})
    for solver, at, heldout in ((started, found.start, found.heldout_start), (own, found.error, found.heldout)):
        assert [error(solver, steps, noise) for noise in noises()] == pytest.approx([at, heldout], rel=1e-9)
    if way["fit"] != "times" and steps > 2:
        assert found.error < 0.9 * found.start


@all_ways
@all_ends
@pytest.mark.usefixtures("small")
def test_a_fit_moves_nothing_but_what_is_free(way: dict[str, str], end: str) -> None:
    row = row_of(**way, end=end)
    numbers, before = fitted(row, 4).numbers, row.as_started(4).numbers
    assert before
    sigmas, told, weights = (torch.tensor(each, dtype=F64) for each in (numbers.sigmas, numbers.told, numbers.weights))
    assert (sigmas[0], sigmas[-1]) == (before.sigmas[0], before.sigmas[-1]) and (sigmas.diff() < 0).all()
    assert torch.allclose(sigmas, torch.tensor(before.sigmas, dtype=F64), rtol=1e-12) == (way["fit"] == "coefficients")
    assert told.equal(sigmas[:-1]) == (way["told"] == "state")
    assert torch.allclose(weights, STARTS[way["start"]].weights(sigmas)) == (way["fit"] == "times")
    assert not weights.triu(1).any()


@pytest.mark.usefixtures("small")
def test_an_analytic_first_step_is_told_nothing() -> None:
    row = row_of(told="fitted", first_step="analytic")
    found = fitted(row, 4)
    assert found.numbers.told[0] == found.numbers.sigmas[0] and found.numbers.told[1] != found.numbers.sigmas[1]
    assert error(row.model_copy(update={"numbers": found.numbers}), 4, noises()[1]) == pytest.approx(found.heldout)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("told", TOLD)
def test_four_evaluations_end_ten_times_nearer_than_ipndms(start: str, told: str) -> None:
    """On noise that the fit did not see."""
    found = fitted(row_of(start=start, told=told), 4)
    assert found.heldout < error(Sampler(solver="ipndm", nfe=(4,)), 4, noises()[1]) / 10


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("told", TOLD)
def test_a_third_evaluation_is_not_wasted(start: str, told: str) -> None:
    """The lowest level of EDM's grid for three steps is so low that the objective hardly depends on it."""
    two, three = (fitted(row_of(start=start, told=told), steps) for steps in (2, 3))
    assert three.heldout < 0.8 * two.heldout and min(three.numbers.sigmas[:-1]) > 0.01


@all_ways
@all_ends
@pytest.mark.usefixtures("small")
def test_gradients_equal_differences(way: dict[str, str], end: str) -> None:
    """Of the objective, at numbers away from the start."""
    row = row_of(**way, end=end)
    free = fitting._Free(row, 4)
    problem = fitting._Problem(lambda indices: ORACLE, NOISE[:20], row, 3, 0)
    draws, h = torch.Generator().manual_seed(1), 1e-6
    with torch.no_grad():
        for each in free.rounds[-1]:
            each += 0.05 * torch.randn(each.shape, generator=draws, dtype=F64)
    gradients = torch.autograd.grad(sum(problem.losses(free)), free.rounds[-1])
    for each, gradient in zip(free.rounds[-1], gradients, strict=True):
        towards = torch.randn(each.shape, generator=draws, dtype=F64)
        values = []
        for move in (h, -2 * h):
            with torch.no_grad():
                each += move * towards
            values.append(problem.error(free) ** 2)
        with torch.no_grad():
            each += h * towards
        assert float((gradient * towards).sum()) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-9)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("keys", [{}, {"end": "sigma_min"}, {"first_step": "analytic"}, {"guidance": 2.0}], ids=str)
def test_calls_are_those_of_the_networks_and_a_gradient_counts_as_two(keys: dict[str, Any]) -> None:
    """Without those for the errors that a fit reports."""
    means = torch.tensor([[0.7, -0.2], [-0.4, 0.5]], dtype=F64)
    exact = LabelledMixture(means, torch.tensor([0.3, 0.7], dtype=F64), 0.3)
    calls = {True: 0, False: 0}  # by whether gradients are wanted

    def denoiser_of(indices: range) -> DenoiserFunction:
        counted = Counted(guided(Guidance(keys.get("guidance", 1.0), "unconditional"), exact, torch.tensor(0)))

        def counting(z: Tensor, sigma: Tensor) -> Tensor:
            before = counted.nfe
            answer = counted(z, sigma)
            calls[torch.is_grad_enabled()] += (counted.nfe - before) * len(z)
            return answer

        return counting

    row = row_of(**keys)
    found = fit(denoiser_of, NOISE[:40], row, 3)
    assert calls[True] % (20 * row.evaluations(3)) == 0
    errors, teacher = 2 * 40 * row.evaluations(3), 40 * teacher_of(row, 3).evaluations(8)
    trials = len(SHRUNK) * 20 * row.evaluations(3) if row.end == "zero" else 0
    assert calls[False] == errors + teacher + trials
    assert found.calls == teacher // 2 + trials + (1 + BACKWARD) * calls[True]
    assert found.calls + errors + teacher // 2 <= most_calls(row, 3)


@pytest.mark.usefixtures("small")
def test_every_sample_has_the_denoiser_of_its_index() -> None:
    asked: list[range] = []
    found = fit(lambda indices: asked.append(indices) or ORACLE, NOISE[:40], row_of(), 2)  # type: ignore[func-returns-value]
    assert [i for indices in asked for i in indices] == list(range(40)) and max(map(len, asked)) == 10
    assert chunks(24, 16, 10) == [range(24, 34), range(34, 40)]
    assert fitted(row_of(), 2) == found  # the same bytes


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_answer_that_is_not_finite_is_an_error_of_one_line(value: float) -> None:
    with pytest.raises(NotFinite, match="the denoiser's answer is not finite") as caught:
        fitted(row_of(), 3, lambda z, sigma: torch.full_like(z, value))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.usefixtures("small")
def test_a_start_that_is_not_finite_is_an_error() -> None:
    """The teacher asks at other levels than the start, which has them from sigma 10 down."""
    row = row_of(sigma_max=10.0, rho=3.0)
    levels = row.grid(3)[1:-1].tolist()

    def broken(z: Tensor, sigma: Tensor) -> Tensor:
        return ORACLE(z, sigma) * (torch.nan if float(sigma) in levels else 1)

    with pytest.raises(NotFinite, match="the solution that fitting starts with is not finite"):
        fitted(row, 3, broken)


@pytest.mark.usefixtures("small")
def test_the_search_turns_back_from_values_that_are_not_finite() -> None:
    """A network that is undefined above a level, which a fit of levels told reaches."""
    row, asked = row_of(told="fitted"), list[float]()

    def half(z: Tensor, sigma: Tensor) -> Tensor:
        asked.append(float(sigma.detach()))
        return ORACLE(z, sigma) * (torch.nan if asked[-1] > 80.02 else 1)

    found = fitted(row, 3, half)
    assert max(asked) > 80.02 and max(found.numbers.told) <= 80.02
    assert found.error < 0.9 * found.start
