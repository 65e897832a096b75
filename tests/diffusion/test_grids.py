"""Grids: DESIGN's formulas in plain numbers, their ends, their order, and the errors."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.diffusion.grids import DISCRETIZATIONS, SPACINGS
from pipeline.diffusion.schedule import SCHEDULES
from pipeline.sampling.row import Sampler

EPS_S = 1e-3


def ramp(n: int) -> list[float]:
    return [i / (n - 1) for i in range(n)] if n > 1 else [0.0]


def edm(n: int, low: float, high: float) -> list[float]:
    return [(high ** (1 / 7) + i * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in ramp(n)]


def vp(n: int, low: float, high: float) -> list[float]:
    beta_d = 2 * (math.log(low**2 + 1) / EPS_S - math.log(high**2 + 1)) / (EPS_S - 1)
    beta_min = math.log(high**2 + 1) - beta_d / 2
    t = [1 + i * (EPS_S - 1) for i in ramp(n)]
    return [math.sqrt(math.exp(beta_d * v * v / 2 + beta_min * v) - 1) for v in t]


def geometric(n: int, low: float, high: float) -> list[float]:
    return [math.sqrt(high**2 * (low**2 / high**2) ** i) for i in ramp(n)]


def iddpm_levels(low: float, high: float) -> list[float]:
    abar = np.sin(np.pi * np.arange(1001) / (2 * 1000 * 1.008)) ** 2
    u = np.zeros(1001)
    for j in range(1000, 0, -1):
        u[j - 1] = np.sqrt((u[j] ** 2 + 1) / max(abar[j - 1] / abar[j], 1e-3) - 1)
    return [float(v) for v in u if low <= v <= high]


def iddpm(n: int, low: float, high: float) -> list[float]:
    kept = iddpm_levels(low, high)
    return [kept[round((len(kept) - 1) * i)] for i in ramp(n)]


def ddpm_levels(low: float, high: float) -> list[float]:
    """The smallest first; levels at the ends of the range may lie beyond it by rounding."""
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    return [float(v) for v in np.sqrt(1 / abar - 1) if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]


def ddpm(n: int, low: float, high: float) -> list[float]:
    kept = ddpm_levels(low, high)
    return [kept[round((len(kept) - 1) * (1 - i))] for i in ramp(n)]


def flow(n: int, low: float, high: float) -> list[float]:
    t = [high / (1 + high) * (1 - i / n) for i in range(n)]
    return [v / (1 - v) for v in t]


def time(n: int, low: float, high: float) -> list[float]:
    """The levels of the cosine schedule, which CHOICES name."""
    first, last = (math.acos(math.cos(0.008 / 1.008 * math.pi / 2) / math.sqrt(1 + v * v)) for v in (high, low))
    angles = [first + i * (last - first) for i in ramp(n)]
    return [math.sqrt((math.cos(0.008 / 1.008 * math.pi / 2) / math.cos(angle)) ** 2 - 1) for angle in angles]


def time_quadratic(n: int, low: float, high: float) -> list[float]:
    """As `time`, uniform in the square root of the angle from that of sigma = 0."""
    none = 0.008 / 1.008 * math.pi / 2
    first, last = (math.sqrt(math.acos(math.cos(none) / math.sqrt(1 + v * v)) - none) for v in (high, low))
    angles = [none + (first + i * (last - first)) ** 2 for i in ramp(n)]
    return [math.sqrt((math.cos(none) / math.cos(angle)) ** 2 - 1) for angle in angles]


def explicit(n: int, low: float, high: float) -> list[float]:
    return [high - i * (high - low) for i in ramp(n)]


GRIDS: dict[str, Callable[[int, float, float], list[float]] | None] = {
    "edm": edm,
    "vp": vp,
    "ve": geometric,
    "iddpm": iddpm,
    "flow": flow,
    "ddpm": ddpm,
    "time": time,
    "time_quadratic": time_quadratic,
    "log_snr": geometric,
    "exponential": geometric,
    "explicit": explicit,
    "optimised": None,  # holds no levels of its own
}
VP_ENDS = (math.sqrt(math.expm1(19.9e-6 / 2 + 0.1e-3)), math.sqrt(math.expm1(19.9 / 2 + 0.1)))
PUBLISHED = {
    "edm": (0.002, 80),
    "vp": VP_ENDS,
    "ve": (0.02, 100),
    "iddpm": (0.002, 81),
    "flow": (None, None),  # t = 1 is sigma = infinity: any large number will do
    "ddpm": (math.sqrt(1e-4 / (1 - 1e-4)), 157.40728081),
    "time": (0.002, 80),
    "time_quadratic": VP_ENDS,
    "log_snr": VP_ENDS,
    "exponential": (0.002, 80),
    "explicit": (0.002, 80),
    "optimised": (0.002, 80),
}
KEYS = {"edm": ["rho"], "flow": ["shift"], "ddpm": ["spacing"], "explicit": ["sigmas"]}
KEYS |= {"time": ["schedule", "exponent"], "time_quadratic": ["schedule"]}
OF_LEVELS = {"iddpm", "ddpm"}  # whose ends are levels, and the range's own only where that is made of levels
EXACT_ENDS = set(DISCRETIZATIONS) - OF_LEVELS - {"flow", "optimised"}  # the flow's ends at 0

all_grids = pytest.mark.parametrize("name", [name for name in DISCRETIZATIONS if GRIDS[name]])
all_schedules = pytest.mark.parametrize("schedule", SCHEDULES)
SIZES = (1, 2, 3, 5, 18, 100)


def grid(name: str, steps: int, low: float, high: float, **choices: Any) -> Tensor:
    """The grid of a row that chooses `choices`."""
    usual = {
        "rho": 7.0,
        "exponent": 1.0,
        "shift": 1.0,
        "spacing": "linspace",
        "sigmas": tuple(explicit(steps, low, high)),
    }
    usual["schedule"] = SCHEDULES["cosine"](low, high)
    return DISCRETIZATIONS[name](steps, low, high, **usual | choices)


def test_every_grid_has_a_formula_here() -> None:
    assert GRIDS.keys() == PUBLISHED.keys() == DISCRETIZATIONS.keys()
    assert {name: entry.keys for name, entry in DISCRETIZATIONS.items() if entry.keys} == KEYS


@all_grids
@pytest.mark.parametrize("own_range", [True, False])
def test_grids_follow_their_formulas(name: str, own_range: bool) -> None:
    published, formula = DISCRETIZATIONS[name], GRIDS[name]
    assert formula
    low, high = (published.sigma_min, published.sigma_max) if own_range else (0.01, 50.0)
    for steps in SIZES:
        sigmas = grid(name, steps, low, high)
        assert sigmas.shape == (steps + 1,) and sigmas.dtype == torch.float64
        assert sigmas[-1] == 0 and (sigmas.diff() < 0).all()
        assert sigmas[:-1].tolist() == pytest.approx(formula(steps, low, high), rel=1e-8)
        if name not in OF_LEVELS:
            assert float(sigmas[0]) == pytest.approx(high, rel=1e-9)
        if name in EXACT_ENDS and steps > 1:
            assert float(sigmas[-2]) == pytest.approx(low, rel=1e-6)


@pytest.mark.parametrize("name", DISCRETIZATIONS)
def test_published_ranges(name: str) -> None:
    published, (low, high) = DISCRETIZATIONS[name], PUBLISHED[name]
    if low is None:
        assert published.sigma_max >= 100
    else:
        assert (published.sigma_min, published.sigma_max) == pytest.approx((low, high), rel=1e-9)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0, 20.0])
def test_edm_grid_is_uniform_in_the_root_of_sigma(rho: float) -> None:
    steps = (grid("edm", 10, 0.002, 80.0, rho=rho)[:-1] ** (1 / rho)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(9), rtol=1e-9, atol=0)


def test_edm_grid_of_the_paper() -> None:
    """The second level of the 18-step grid: (80^(1/7) + (0.002^(1/7) - 80^(1/7)) / 17)^7."""
    assert grid("edm", 18, 0.002, 80.0)[[0, 1, -2]].tolist() == pytest.approx([80, 57.586, 0.002], 1e-4)


@pytest.mark.parametrize("name", ["ve", "log_snr", "exponential"])
def test_geometric_grids_are_one_formula_with_ranges_of_their_own(name: str) -> None:
    sigmas = grid(name, 12, 0.02, 100.0)
    ratios = sigmas[1:-1] / sigmas[:-2]
    torch.testing.assert_close(ratios, ratios[:1].expand(11), rtol=1e-12, atol=0)
    assert torch.equal(sigmas, grid("ve", 12, 0.02, 100.0))


@all_schedules
def test_time_grid_is_uniform_in_the_time_of_its_row(schedule: str) -> None:
    row = Sampler(schedule=schedule, discretization="time", sigma_min=0.01, sigma_max=50.0)
    sigmas = row.grid(12)
    assert sigmas[[0, -2, -1]].tolist() == [50.0, 0.01, 0.0]
    steps = row.build_schedule().t(sigmas[:-1]).diff()
    torch.testing.assert_close(steps, steps[:1].expand(11), rtol=1e-8, atol=0)
    assert row.grid(1).tolist() == [50.0, 0.0]


@all_schedules
def test_quadratic_time_grid_is_uniform_in_the_root_of_the_time_of_its_row(schedule: str) -> None:
    row = Sampler(schedule=schedule, discretization="time_quadratic", sigma_min=0.01, sigma_max=50.0)
    sigmas = row.grid(12)
    assert sigmas[[0, -2, -1]].tolist() == [50.0, 0.01, 0.0]
    steps = row.build_schedule().t(sigmas[:-1]).sqrt().diff()
    torch.testing.assert_close(steps, steps[:1].expand(11), rtol=1e-8, atol=0)
    assert row.grid(1).tolist() == [50.0, 0.0]


def test_quadratic_time_grid_of_deis() -> None:
    """On VP with its published range: t = (1 + i / (N - 1) (sqrt(eps_s) - 1))^2."""
    row = Sampler(schedule="vp", discretization="time_quadratic")
    t = [(1 + i * (math.sqrt(EPS_S) - 1)) ** 2 for i in ramp(11)]
    expected = [math.sqrt(math.expm1(19.9 * v * v / 2 + 0.1 * v)) for v in t]
    assert row.grid(11)[:-1].tolist() == pytest.approx(expected, rel=1e-8)


def test_time_grids_that_go_by_other_names() -> None:
    """VP's own grid, and EDM's with rho = 1, which is uniform in sigma."""
    for schedule, same in (("vp", grid("vp", 9, 0.01, 50.0)), ("linear", grid("edm", 9, 0.01, 50.0, rho=1.0))):
        sigmas = grid("time", 9, 0.01, 50.0, schedule=SCHEDULES[schedule](0.01, 50.0))
        torch.testing.assert_close(sigmas, same, rtol=1e-9, atol=0)
    assert grid("time", 9, 0.01, 50.0, exponent=2.0).equal(grid("time_quadratic", 9, 0.01, 50.0))


@pytest.mark.parametrize("rho", [1.5, 7.0])
def test_an_exponent_of_linear_time_is_edms_rho(rho: float) -> None:
    sigmas = grid("time", 9, 0.01, 50.0, schedule=SCHEDULES["linear"](0.01, 50.0), exponent=rho)
    torch.testing.assert_close(sigmas, grid("edm", 9, 0.01, 50.0, rho=rho), rtol=1e-9, atol=0)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_flow_grid_is_uniform_in_time_down_to_zero_and_shifted(shift: float) -> None:
    sigmas = grid("flow", 12, 0.002, 1000.0, shift=shift)
    steps = (sigmas / shift / (1 + sigmas / shift)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(12), rtol=1e-9, atol=0)
    assert float(sigmas[0]) == pytest.approx(1000, rel=1e-9)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_shift_multiplies_sigma_and_maps_time_as_published(shift: float) -> None:
    """t -> shift t / (1 + (shift - 1) t), Esser et al. 2024, eq. 23, from the time that sigma_max comes from."""
    plain, shifted = grid("flow", 12, 0.002, 1000.0 / shift), grid("flow", 12, 0.002, 1000.0, shift=shift)
    torch.testing.assert_close(shifted, shift * plain, rtol=1e-12, atol=0)
    t = plain / (1 + plain)
    torch.testing.assert_close(shifted / (1 + shifted), shift * t / (1 + (shift - 1) * t), rtol=1e-12, atol=0)


def test_vp_grid_is_uniform_in_the_published_time() -> None:
    published = DISCRETIZATIONS["vp"]
    sigmas = grid("vp", 50, published.sigma_min, published.sigma_max)[:-1]
    t = ((0.1**2 + 2 * 19.9 * torch.log1p(sigmas**2)).sqrt() - 0.1) / 19.9
    torch.testing.assert_close(t, torch.linspace(1, EPS_S, 50).double(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 7, 250, 992])
def test_iddpm_grid_takes_its_levels(steps: int) -> None:
    sigmas = grid("iddpm", steps, 0.002, 81.0)[:-1].numpy()
    levels = np.array(iddpm_levels(0.002, 81.0))
    distance = np.abs(sigmas[:, None] / levels - 1).min(1)
    assert distance.max() < 1e-9 and sigmas[0] == pytest.approx(levels[0])
    assert steps == 1 or sigmas[-1] == pytest.approx(levels[-1])


SPACED = {  # steps of a thousand, and of ten: the indices from 0, the smallest level
    "linspace": {
        (5, 1000): [999, 749, 500, 250, 0],
        (4, 10): [9, 6, 3, 0],
        (1, 10): [9],
        (10, 10): [*range(9, -1, -1)],
    },
    "leading": {(5, 1000): [800, 600, 400, 200, 0], (4, 10): [6, 4, 2, 0], (1, 10): [0], (10, 10): [*range(9, -1, -1)]},
    "trailing": {
        (5, 1000): [999, 799, 599, 399, 199],
        (4, 10): [9, 7, 4, 1],
        (1, 10): [9],
        (10, 10): [*range(9, -1, -1)],
    },
    "quadratic": {
        (5, 1000): [800, 450, 200, 50, 0],
        (4, 10): [8, 3, 1, 0],
        (1, 10): [8],
        (1, 1): [0],
        (10, 10): [*range(9, -1, -1)],
    },
}


@pytest.mark.parametrize("steps", [2, 7, 10, 20, 28])
def test_quadratic_spacing_is_the_published_one(steps: int) -> None:
    """The whole parts of evenly spaced numbers up to sqrt(0.8 T), squared; with more steps some of them are equal."""
    squares = np.linspace(0, math.sqrt(800), steps) ** 2
    assert SPACINGS["quadratic"](steps, 1000).tolist() == [int(square) for square in squares[::-1]]


@pytest.mark.parametrize("steps", [50, 100, 500])
def test_quadratic_spacing_takes_the_next_level_where_the_published_one_repeats_a_level(steps: int) -> None:
    published = [int(square) for square in np.linspace(0, math.sqrt(800), steps) ** 2]
    ours = SPACINGS["quadratic"](steps, 1000).flip(0).tolist()
    assert len(set(ours)) == steps > len(set(published))
    assert ours == [max(index, place) for place, index in enumerate(published)]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddpm_spacings(spacing: str) -> None:
    assert SPACED.keys() == SPACINGS.keys()
    for (steps, count), indices in SPACED[spacing].items():
        assert SPACINGS[spacing](steps, count).tolist() == indices
    published = DISCRETIZATIONS["ddpm"]
    sigmas = grid("ddpm", 5, published.sigma_min, published.sigma_max, spacing=spacing)
    levels = ddpm_levels(published.sigma_min, published.sigma_max)
    assert len(levels) == 1000
    assert sigmas.tolist() == pytest.approx([*(levels[i] for i in SPACED[spacing][5, 1000]), 0], rel=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 3, 7, 333, 999, 1000])
def test_ddpm_grids_fall_and_take_all_levels_in_the_end(spacing: str, steps: int) -> None:
    row = Sampler(solver="ddpm", discretization="ddpm", spacing=spacing)
    sigmas = row.grid(steps)
    assert len(sigmas) == steps + 1 and (sigmas.diff() < 0).all()
    if spacing not in ("leading", "quadratic") or (spacing, steps) == ("quadratic", 1000):
        assert float(sigmas[0]) == row.sigma_range[1]
    if spacing != "trailing" and steps > 1:
        assert float(sigmas[-2]) == row.sigma_range[0]


@pytest.mark.parametrize(
    ("name", "steps", "low", "high", "count"),
    [
        ("iddpm", 993, 0.002, 81.0, 992),
        ("iddpm", 1, 1e-4, 2e-4, 0),
        ("ddpm", 1001, 0.001, 200.0, 1000),
        ("ddpm", 400, 0.1, 1.0, None),
        ("ddpm", 1, 1e-4, 2e-4, 0),
    ],
)
def test_more_steps_than_levels_are_refused(name: str, steps: int, low: float, high: float, count: int | None) -> None:
    levels = len({"iddpm": iddpm_levels, "ddpm": ddpm_levels}[name](low, high))
    assert count is None or levels == count
    with pytest.raises(StudyError, match=f"{name}: {steps} steps, but only {levels}"):
        grid(name, steps, low, high)


@pytest.mark.parametrize("steps", [2, 4])
def test_an_explicit_grid_has_as_many_steps_as_its_list(steps: int) -> None:
    with pytest.raises(StudyError, match=f"explicit: {steps} steps, but sigmas has 3"):
        grid("explicit", steps, 0.1, 9.0, sigmas=(9.0, 1.0, 0.1))
    with pytest.raises(StudyError, match=f"explicit: {steps} steps, but sigmas has 0"):
        grid("explicit", steps, 0.1, 9.0, sigmas=None)


def test_an_optimised_grid_is_none_before_it_is_fitted() -> None:
    with pytest.raises(StudyError, match="optimised: not fitted") as caught:
        grid("optimised", 4, 0.002, 80.0)
    assert len(str(caught.value).splitlines()) == 1
    row = Sampler(solver="ddim", discretization="optimised", nfe=(3,)).with_grid((80.0, 3.0, 0.4))
    assert row.grid(3).tolist() == [80.0, 3.0, 0.4, 0.0]
