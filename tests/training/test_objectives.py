"""Objectives: the targets and noise levels are the papers', and networks learn the exact maps."""

import math
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.common.threads import in_turns
from pipeline.diffusion.denoiser import Denoiser, DenoiserFunction
from pipeline.diffusion.exact import Gaussian, Mixture, flow
from pipeline.diffusion.grids import DISCRETIZATIONS
from pipeline.diffusion.parametrization import BOUNDARY
from pipeline.sampling.loop import sample
from pipeline.sampling.row import Sampler
from pipeline.training.distances import HUBER, pseudo_huber, squared
from pipeline.training.loop import train
from pipeline.training.objectives import (
    CONSISTENCY_GRIDS,
    GRIDS,
    LEVEL_GROWTHS,
    OBJECTIVES,
    Question,
    progressive_target,
    target_share,
)
from pipeline.training.row import Model
from tests.training.test_axes import MIXTURE

F64 = torch.float64
GAUSSIAN = Gaussian(0.3, 0.5)
U = (torch.arange(2000, dtype=F64) + 0.5) / 2000


def draws(count: int, seed: int) -> Tensor:
    return torch.randn(count, 2, dtype=F64, generator=torch.Generator().manual_seed(seed))


def ends(z: Tensor, sigma: Tensor) -> Tensor:
    """The exact consistency map of the Gaussian, which ends at BOUNDARY."""
    return GAUSSIAN.flow(z, sigma, torch.tensor(BOUNDARY, dtype=F64))


def ddim(denoiser: DenoiserFunction, z: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Song et al. 2021, arXiv 2010.02502, eq. 12 in z = x0 + sigma n."""
    denoised = denoiser(z, sigma)
    return denoised + sigma_next * (z - denoised) / sigma


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("round_steps", [16, 4, 1])
def test_one_step_to_the_progressive_target_is_two_ddim_steps(grid: str, round_steps: int) -> None:
    """At every point of the grid, in float64."""
    row = Model(objective="progressive", first_steps=16, grid=grid).model_copy(update={"round_steps": round_steps})
    sigma, middle, end = row.levels(U)
    assert len(sigma.unique()) == round_steps
    x0, n = 0.3 + 0.5 * draws(len(U), 0), draws(len(U), 1)

    def teacher(z: Tensor, level: Tensor) -> Tensor:
        return MIXTURE(z, level)

    target = OBJECTIVES["progressive"].target_of(Question(x0, n, (sigma, middle, end), teacher, teacher), vars(row))
    z = x0 + sigma[:, None] * n
    twice = ddim(
        lambda z, _: teacher(z, middle), ddim(lambda z, _: teacher(z, sigma), z, sigma[:, None], middle[:, None]),
        middle[:, None], end[:, None],
    )  # fmt: skip
    once = ddim(lambda z, _: target, z, sigma[:, None], end[:, None])
    torch.testing.assert_close(once, twice, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(progressive_target(z, twice, sigma, end), target, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_students_steps_are_those_of_a_curve(grid: str) -> None:
    """Each round has half the steps, on every other level of the grid before."""
    for part in Model(objective="progressive", first_steps=8, grid=grid).rounds:
        keys = {"discretization": grid, "finest_steps": 16, "solver": "ddim", "nfe": (part.round_steps,)}
        levels = Sampler(**keys).grid(part.round_steps or 0)
        sigma, _, end = part.levels(U)
        assert sigma.unique().flip(0).tolist() == levels[:-1].tolist()
        assert end.unique().flip(0).tolist() == levels[1:].tolist()


@pytest.mark.parametrize("grid", CONSISTENCY_GRIDS)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_consistency_levels_are_neighbours_as_likely_as_the_noise_says(grid: str, share: float) -> None:
    """Song and Dhariwal 2024, sec. 3.5: an interval is as likely as under the lognormal, cut off at its ends."""
    row = Model(objective="consistency_training", grid=grid, first_levels=6, last_levels=24)
    upper, lower = row.levels(U, int(share * row.steps))
    count = LEVEL_GROWTHS["doubling"](int(share * row.steps), row.steps, 6, 24)
    levels = DISCRETIZATIONS[grid](count + 1, 0.002, 80.0, rho=7.0)[:-1].flip(0)
    assert count == {0.0: 6, 0.3: 6, 1.0: 24}[share]
    index = torch.searchsorted(levels, lower)
    assert torch.equal(levels[index], lower) and torch.equal(levels[index + 1], upper)
    edges = torch.special.ndtr((levels.log() - row.P_mean) / row.P_std)
    shares = edges.diff() / (edges[-1] - edges[0])
    torch.testing.assert_close(
        torch.bincount(index, minlength=count).double() / len(U), shares, rtol=0, atol=1.1 / len(U)
    )


def test_the_first_versions_intervals_are_equally_likely() -> None:
    row = Model(objective="consistency_training", noise="rho_uniform", first_levels=20, last_levels=20)
    counts = row.levels(U)[1].unique(return_counts=True)[1]
    assert counts.tolist() == [100] * 20


def test_easy_levels_approach_each_other_from_denoising_on() -> None:
    row = Model(objective="easy_consistency", stages=6, images=128 * 600)
    ratios = []
    for step in (0, 100, 300, 599):
        sigma, lower = row.levels(U, step)
        assert torch.equal(sigma, row.distribution.sigma(U)) and bool(((lower >= 0) & (lower < sigma)).all())
        ratios.append(lower / sigma)
    assert float((ratios[0] == 0).double().mean()) > 0.5  # of the first targets, most are the image itself
    assert all(bool((after >= before).all()) for before, after in pairwise(ratios))
    assert float(ratios[-1].min()) > 0.9


@pytest.mark.parametrize("growth", LEVEL_GROWTHS)
def test_levels_grow_from_first_to_last(growth: str) -> None:
    counts = [LEVEL_GROWTHS[growth](step, 1000, 10, 160) for step in range(1000)]
    assert counts[0] == (10 if growth == "doubling" else 9) and counts == sorted(counts) and counts[-1] == 160


def test_the_average_of_the_target_keeps_more_the_more_levels_there_are() -> None:
    row = vars(Model(objective="consistency_training", target_decay=0.9, first_levels=2, last_levels=150))
    assert target_share(0, 1000, row) == pytest.approx(math.exp(2 * math.log(0.9) / 3))
    assert target_share(999, 1000, row) > 0.998


@pytest.mark.parametrize(("teacher_step", "order"), [("euler", 2), ("heun", 3)])
def test_an_exact_map_is_its_own_target_to_the_order_of_the_teachers_step(teacher_step: str, order: int) -> None:
    x0, n = 0.3 + 0.5 * draws(50, 2), draws(50, 3)
    errors = []
    for step in (0.02, 0.01):
        levels = torch.full((50,), 1.0, dtype=F64), torch.full((50,), 1.0 - step, dtype=F64)
        asked = Question(x0, n, levels, GAUSSIAN, ends)
        target = OBJECTIVES["consistency_distillation"].target_of(asked, {"teacher_step": teacher_step})
        errors.append(float((target - ends(asked.noised(0), levels[0])).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def test_the_target_at_level_0_is_the_image() -> None:
    x0, n, zeros = draws(3, 4), draws(3, 5), torch.zeros(3, dtype=F64)
    asked = Question(x0, n, (zeros + 1, zeros), GAUSSIAN, lambda z, sigma: z / sigma.log()[:, None])
    assert torch.equal(OBJECTIVES["easy_consistency"].target_of(asked, {}), x0)


def test_distances() -> None:
    a, c_out = draws(40, 6), torch.linspace(0.1, 2, 40, dtype=F64)
    difference, c = a / c_out[:, None], HUBER * math.sqrt(2)
    torch.testing.assert_close(c_out**2 * squared(difference, c_out), a.square().mean(1))
    huber = (a.square().sum(1) + c**2).sqrt() - c
    torch.testing.assert_close(c_out**2 * pseudo_huber(difference, c_out), huber)
    assert bool(pseudo_huber(difference, 0 * c_out).isfinite().all())


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_sampling_an_exact_map_gives_the_exact_distribution(steps: int) -> None:
    sampler = Sampler(solver="consistency", discretization="flow", sigma_max=80.0, nfe=(steps,))
    noise = torch.randn(200_000, 1, dtype=F64, generator=torch.Generator().manual_seed(7))
    again = torch.Generator().manual_seed(8)
    x = sample(ends, noise, sampler, steps, lambda z: torch.randn(z.shape, dtype=F64, generator=again)).x0
    assert abs(float(x.mean()) - 0.3) < 0.01 and float(x.std()) == pytest.approx(0.5, rel=0.01)


# What networks learn

SETTINGS: dict[str, Any] = {
    "network": "mlp", "channels": 32, "blocks": 1, "batch": 256, "learning_rate": 0.01, "ema_halflife_images": 4000,
    "sigma_data": 0.5,
}  # fmt: skip
TEACHER = Model(**SETTINGS, images=256 * 300)
OWN: dict[str, dict[str, Any]] = {
    "progressive": {"first_steps": 8},
    "consistency_distillation": {"last_levels": 40, "teacher_step": "euler"},
    "consistency_training": {"last_levels": 80},
    "easy_consistency": {"stages": 6},
}
LEARNED = {
    name: Model(**SETTINGS | {"learning_rate": 0.005}, images=256 * 300, objective=name, **OWN[name]) for name in OWN
}
TRUTHS: dict[str, Mixture] = {
    "gaussian": Mixture(torch.tensor([[0.3, 0.3]], dtype=F64), torch.ones(1, dtype=F64), 0.5),
    "mixture": MIXTURE,
}


@cache
def points(truth: str) -> Tensor:
    return TRUTHS[truth].sample(4096, torch.Generator().manual_seed(0)).float()


def trained(row: Model, truth: str, teacher: Denoiser | None = None) -> Denoiser:
    found = teacher
    for part in row.rounds:
        [result] = in_turns([train(part, part.spec(0.5, (2,)), points(truth), 0, teacher=found)])
        found = result.denoiser
    assert found
    return found


@cache
def teacher_of(truth: str) -> Denoiser:
    return trained(TEACHER, truth)


@cache
def exact(truth: str) -> tuple[Tensor, Tensor]:
    """z at sigma 80 and the end of its trajectory, at BOUNDARY."""
    z = 80 * draws(500, 9)
    return z, flow(TRUTHS[truth], z, 80.0, BOUNDARY, 1e-6)


def error(denoiser: Denoiser, truth: str) -> float:
    """The root mean square of the distance of one step from the exact end of the trajectory."""
    z, end = exact(truth)
    with torch.no_grad():
        return float((denoiser(z, torch.tensor(80.0, dtype=F64)) - end).square().mean().sqrt())


FARTHEST = {"gaussian": 0.15, "mixture": 0.2}  # the standard deviation of the data is 0.5


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("objective", OWN)
def test_a_network_learns_the_exact_map_and_nears_it_with_training(objective: str, truth: str) -> None:
    row, teacher = LEARNED[objective], teacher_of(truth) if OBJECTIVES[objective].teacher else None
    brief = error(trained(row.model_copy(update={"images": row.images // 10}), truth, teacher), truth)
    found = error(trained(row, truth, teacher), truth)
    assert found < FARTHEST[truth] and found < brief, (found, brief)
    assert error(teacher_of(truth), truth) > 2 * FARTHEST[truth]  # one step of a denoiser ends at the mean


# What a row may not be

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "steps": ({"objective": "progressive", "first_steps": 12}, "first_steps: 12 is no power of two; use 8 or 16"),
    "key": ({"stages": 4}, "stages: objective denoising does not use it; stages is for easy_consistency"),
    "grid": ({"objective": "consistency_training", "grid": "vp"}, "grid: a consistency map ends at sigma 0.002"),
    "levels": ({"objective": "consistency_training", "first_levels": 20, "last_levels": 10}, "first_levels (20)"),
    "boundary": ({"parametrization": "consistency"}, "parametrization: consistency is for consistency objectives"),
    "weighting": ({"weighting": "inverse_step"}, "weighting: inverse_step is for consistency objectives"),
    "bound": (
        {"objective": "easy_consistency", "weighting": "vlb"},
        "weighting: vlb is the bound of objective denoising",
    ),
    "reflow": (
        {"objective": "consistency_training", "parametrization": "flow", "pairs": "reflow"},
        "objective: consistency_training draws its own noise",
    ),
    "averages": (
        {"objective": "progressive", "snapshots": 2},
        "snapshots: objective progressive keeps the main average",
    ),
    "rounds": ({"objective": "progressive", "images": 128, "first_steps": 64}, "images: 128 are 1 steps for 7 rounds"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_row_without_a_meaning_is_refused_in_one_line(case: str) -> None:
    row, message = REFUSED[case]
    with pytest.raises(ValidationError) as caught:
        Model(**row)
    [found] = caught.value.errors()
    assert message in found["msg"] and len(found["msg"].splitlines()) == 1


def test_an_objective_comes_as_published_unless_the_row_says_otherwise() -> None:
    for name, objective in OBJECTIVES.items():
        row = Model(objective=name)
        assert {key: getattr(row, key) for key in objective.published} == dict(objective.published)
    row = Model(objective="consistency_training", distance="squared", P_mean=0.0, parametrization="edm")
    assert (row.distance, row.P_mean, row.parametrization, row.P_std) == ("squared", 0.0, "edm", 2.0)
    assert Model(**row.model_dump()) == row


def test_every_objective_is_here() -> None:
    assert OWN.keys() == OBJECTIVES.keys() - {"denoising"}
