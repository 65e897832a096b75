"""The fitted solver: its start, a plain loop with numbers of all kinds, and numbers for other numbers of steps."""

import json
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.sampling.fitted import POINTS, STARTS, Numbers, at_steps
from pipeline.sampling.loop import sample
from pipeline.sampling.protocols import FIRST_STEPS
from pipeline.sampling.row import Sampler
from tests.sampling.peers import F64, MIXTURE, NOISE, Peers, assert_equal

PROTOCOLS: list[dict[str, Any]] = [
    {},
    {"end": "sigma_min"},
    {"first_step": "analytic"},
    {"end": "sigma_min", "first_step": "analytic"},
    {"discretization": "flow", "schedule": "flow", "shift": 3},
    {"threshold": "static"},
]
GEOMETRIC = {"rho": 1e6}  # of EDM's grid, whose levels are then equally spaced in ln sigma

all_starts = pytest.mark.parametrize("start", STARTS)
all_ends = pytest.mark.parametrize("end", ["zero", "sigma_min"])


def row_of(start: str = "dpmpp_2m", **keys: Any) -> Sampler:
    return Sampler(**{"solver": "fitted", "start": start, "nfe": (99,)} | keys)


def started(steps: int, start: str = "dpmpp_2m", **keys: Any) -> Numbers:
    numbers = row_of(start, **keys).as_started(steps).numbers
    assert numbers is not None
    return numbers


def changed(numbers: Numbers, seed: int = 0) -> Numbers:
    """Other levels, levels told and weights."""
    draws = torch.Generator().manual_seed(seed)
    sigmas, told, weights = (torch.tensor(each, dtype=F64) for each in (numbers.sigmas, numbers.told, numbers.weights))
    sigmas[1:-1] *= 0.9
    told *= 1 + 0.2 * torch.rand(told.shape, generator=draws, dtype=F64)
    weights += 0.1 * torch.randn(weights.shape, generator=draws, dtype=F64).tril()
    return Numbers.of(sigmas, told, weights)


@all_starts
@pytest.mark.parametrize("keys", PROTOCOLS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 11])
def test_with_the_numbers_of_its_start_it_equals_it(start: str, keys: dict[str, Any], steps: int) -> None:
    plain = sample(MIXTURE, NOISE, Sampler(solver=start, nfe=(99,), **keys), steps)
    fitted = sample(MIXTURE, NOISE, row_of(start, **keys).as_started(steps), steps)
    assert_equal(fitted.x0, plain.x0, rtol=1e-12)
    assert fitted.nfe == plain.nfe == row_of(start, **keys).evaluations(steps)


@all_starts
@all_ends
@pytest.mark.parametrize("first_step", FIRST_STEPS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 9])
def test_a_fitted_solver_is_a_plain_loop(start: str, end: str, first_step: str, steps: int) -> None:
    """Of z = sigma_next / sigma (z - D) + D, or z + (sigma_next - sigma) eps, with weighted means of D or eps."""
    row = row_of(start, end=end, first_step=first_step)
    numbers = changed(started(steps, start, end=end, first_step=first_step))
    denoised: list[Tensor] = []
    noises: list[Tensor] = []
    z = NOISE * numbers.sigmas[0]
    for (sigma, sigma_next), told, weights in zip(pairwise(numbers.sigmas), numbers.told, numbers.weights, strict=True):
        analytic = first_step == "analytic" and not denoised
        noises.append(z / (1 + told**2) ** 0.5 if analytic else (z - MIXTURE(z, torch.tensor(told, dtype=F64))) / told)
        denoised.append(z - told * noises[-1])
        recent = list(zip(weights, reversed(noises if start == "ipndm" else denoised), strict=False))
        mean = torch.stack([weight * value for weight, value in recent]).sum(0)
        z = z + (sigma_next - sigma) * mean if start == "ipndm" else mean + sigma_next / sigma * (z - mean)
    assert_equal(sample(MIXTURE, NOISE, row.model_copy(update={"numbers": numbers}), steps).x0, z, rtol=1e-9)


PEERS: Peers = {"fitted": (test_a_fitted_solver_is_a_plain_loop,)}


def test_the_network_is_told_the_levels_told() -> None:
    numbers, asked = changed(started(5)), list[float]()

    def denoiser(z: Tensor, sigma: Tensor) -> Tensor:
        asked.append(float(sigma))
        return MIXTURE(z, sigma)

    sample(denoiser, NOISE, row_of().model_copy(update={"numbers": numbers}), 5)
    assert tuple(asked) == numbers.told != numbers.sigmas[:-1]


@all_starts
@all_ends
def test_numbers_and_their_row_come_back_from_json(start: str, end: str) -> None:
    numbers = changed(started(4, start, end=end))
    assert Numbers(**json.loads(json.dumps(numbers.model_dump(mode="json")))) == numbers
    row = row_of(start, end=end, nfe=(4,), numbers=numbers)
    again = Sampler(**json.loads(json.dumps(row.filled().model_dump(mode="json"))))
    assert again == row.filled()
    assert sample(MIXTURE, NOISE, again, 4).x0.equal(sample(MIXTURE, NOISE, row, 4).x0)


def test_a_solver_without_numbers_or_with_those_of_other_steps_does_not_run() -> None:
    for row, why in ((row_of(), "not fitted to a model yet"), (row_of().as_started(4), "5 steps, but .* fitted for 4")):
        with pytest.raises(StudyError, match=f"^solver fitted: {why}"):
            sample(MIXTURE, NOISE, row, 5)


@all_starts
@all_ends
@pytest.mark.parametrize("steps", [2, 3, 6])
def test_numbers_for_as_many_steps_stay_as_they_are(start: str, end: str, steps: int) -> None:
    numbers = changed(started(steps, start, end=end))
    assert at_steps(numbers, STARTS[start], steps) == numbers


@all_starts
@all_ends
@pytest.mark.parametrize("before", [2, 3, 6])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 12])
def test_numbers_of_other_steps_fall_between_the_same_ends(start: str, end: str, before: int, steps: int) -> None:
    numbers = changed(started(before, start, end=end))
    found = at_steps(numbers, STARTS[start], steps)
    assert (len(found.sigmas), len(found.told), len(found.weights)) == (steps + 1, steps, steps)
    assert found.sigmas[0] == pytest.approx(numbers.sigmas[0])
    assert found.sigmas[-1] == pytest.approx(numbers.sigmas[-1])
    assert all(after < sigma for sigma, after in pairwise(found.sigmas)) and min(found.told) > 0
    assert all(not any(row[i + 1 :]) for i, row in enumerate(found.weights[:POINTS]))  # no evaluation before the first
    row = row_of(start, end=end).model_copy(update={"numbers": found})
    assert sample(MIXTURE, NOISE, row, steps).x0.isfinite().all()


@all_starts
@all_ends
@pytest.mark.parametrize("before", [3, 6])
@pytest.mark.parametrize("steps", [2, 3, 4, 12])
def test_the_start_becomes_the_start_of_other_steps(start: str, end: str, before: int, steps: int) -> None:
    """Exactly on a geometric grid; on others with interpolated levels."""
    for keys in (GEOMETRIC, {}):
        found = at_steps(started(before, start, end=end, **keys), STARTS[start], steps)
        sigmas = torch.tensor(found.sigmas, dtype=F64)
        torch.testing.assert_close(torch.tensor(found.weights, dtype=F64), STARTS[start].weights(sigmas))
        assert found.told == pytest.approx(found.sigmas[:-1])
        if keys:
            assert found.sigmas == pytest.approx(started(steps, start, end=end, **keys).sigmas, rel=1e-3)
