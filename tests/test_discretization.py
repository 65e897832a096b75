"""Grids: DESIGN's formulas in plain numbers, their ends, their order, and the errors."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.discretization import DISCRETIZATIONS
from pipeline.errors import StudyError

EPS_S = 1e-3


def ramp(n: int) -> list[float]:
    return [i / (n - 1) for i in range(n)] if n > 1 else [0.0]


def edm(n: int, low: float, high: float, rho: float) -> list[float]:
    return [(high ** (1 / rho) + i * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in ramp(n)]


def vp(n: int, low: float, high: float, rho: float) -> list[float]:
    beta_d = 2 * (math.log(low**2 + 1) / EPS_S - math.log(high**2 + 1)) / (EPS_S - 1)
    beta_min = math.log(high**2 + 1) - beta_d / 2
    t = [1 + i * (EPS_S - 1) for i in ramp(n)]
    return [math.sqrt(math.exp(beta_d * v * v / 2 + beta_min * v) - 1) for v in t]


def ve(n: int, low: float, high: float, rho: float) -> list[float]:
    return [math.sqrt(high**2 * (low**2 / high**2) ** i) for i in ramp(n)]


def iddpm_levels(low: float, high: float) -> list[float]:
    abar = np.sin(np.pi * np.arange(1001) / (2 * 1000 * 1.008)) ** 2
    u = np.zeros(1001)
    for j in range(1000, 0, -1):
        u[j - 1] = np.sqrt((u[j] ** 2 + 1) / max(abar[j - 1] / abar[j], 1e-3) - 1)
    return [float(v) for v in u if low <= v <= high]


def iddpm(n: int, low: float, high: float, rho: float) -> list[float]:
    kept = iddpm_levels(low, high)
    return [kept[round((len(kept) - 1) * i)] for i in ramp(n)]


def flow(n: int, low: float, high: float, rho: float) -> list[float]:
    t = [high / (1 + high) * (1 - i / n) for i in range(n)]
    return [v / (1 - v) for v in t]


GRIDS: dict[str, Callable[[int, float, float, float], list[float]]] = {
    "edm": edm,
    "vp": vp,
    "ve": ve,
    "iddpm": iddpm,
    "flow": flow,
}
PUBLISHED = {
    "edm": (0.002, 80),
    "vp": (math.sqrt(math.expm1(19.9e-6 / 2 + 0.1e-3)), math.sqrt(math.expm1(19.9 / 2 + 0.1))),
    "ve": (0.02, 100),
    "iddpm": (0.002, 81),
    "flow": (None, None),  # t = 1 is sigma = infinity: any large number will do
}
EXACT_ENDS = {"edm", "vp", "ve"}  # the grids that reach sigma_min; iDDPM's is made of its levels, the flow's ends at 0

all_grids = pytest.mark.parametrize("name", DISCRETIZATIONS)
SIZES = (1, 2, 3, 5, 18, 100)


def test_every_grid_has_a_formula_here() -> None:
    assert GRIDS.keys() == PUBLISHED.keys() == DISCRETIZATIONS.keys()


@all_grids
@pytest.mark.parametrize("own_range", [True, False])
def test_grids_follow_their_formulas(name: str, own_range: bool) -> None:
    grid = DISCRETIZATIONS[name]
    low, high = (grid.sigma_min, grid.sigma_max) if own_range else (0.01, 50.0)
    for steps in SIZES:
        sigmas = grid(steps, low, high, 7.0)
        assert sigmas.shape == (steps + 1,) and sigmas.dtype == torch.float64
        assert sigmas[-1] == 0 and (sigmas.diff() < 0).all()
        assert sigmas[:-1].tolist() == pytest.approx(GRIDS[name](steps, low, high, 7.0), rel=1e-8)
        if name != "iddpm":
            assert float(sigmas[0]) == pytest.approx(high, rel=1e-9)
        if name in EXACT_ENDS and steps > 1:
            assert float(sigmas[-2]) == pytest.approx(low, rel=1e-6)


@all_grids
def test_published_ranges(name: str) -> None:
    grid, (low, high) = DISCRETIZATIONS[name], PUBLISHED[name]
    if low is None:
        assert grid.sigma_max >= 100
    else:
        assert (grid.sigma_min, grid.sigma_max) == pytest.approx((low, high), rel=1e-9)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0, 20.0])
def test_edm_grid_is_uniform_in_the_root_of_sigma(rho: float) -> None:
    steps = (DISCRETIZATIONS["edm"](10, 0.002, 80.0, rho)[:-1] ** (1 / rho)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(9), rtol=1e-9, atol=0)


def test_edm_grid_of_the_paper() -> None:
    """The second level of the 18-step grid: (80^(1/7) + (0.002^(1/7) - 80^(1/7)) / 17)^7."""
    assert DISCRETIZATIONS["edm"](18, 0.002, 80.0, 7.0)[[0, 1, -2]].tolist() == pytest.approx([80, 57.586, 0.002], 1e-4)


def test_ve_grid_is_geometric() -> None:
    sigmas = DISCRETIZATIONS["ve"](12, 0.02, 100.0, 7.0)[:-1]
    ratios = sigmas[1:] / sigmas[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand(11), rtol=1e-12, atol=0)


def test_flow_grid_is_uniform_in_time_down_to_zero() -> None:
    sigmas = DISCRETIZATIONS["flow"](12, 0.002, 1000.0, 7.0)
    steps = (sigmas / (1 + sigmas)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(12), rtol=1e-9, atol=0)


def test_vp_grid_is_uniform_in_the_published_time() -> None:
    grid = DISCRETIZATIONS["vp"]
    sigmas = grid(50, grid.sigma_min, grid.sigma_max, 7.0)[:-1]
    t = ((0.1**2 + 2 * 19.9 * torch.log1p(sigmas**2)).sqrt() - 0.1) / 19.9
    torch.testing.assert_close(t, torch.linspace(1, EPS_S, 50).double(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 7, 250, 992])
def test_iddpm_grid_takes_its_levels(steps: int) -> None:
    sigmas = DISCRETIZATIONS["iddpm"](steps, 0.002, 81.0, 7.0)[:-1].numpy()
    levels = np.array(iddpm_levels(0.002, 81.0))
    distance = np.abs(sigmas[:, None] / levels - 1).min(1)
    assert distance.max() < 1e-9 and sigmas[0] == pytest.approx(levels[0])
    assert steps == 1 or sigmas[-1] == pytest.approx(levels[-1])


@pytest.mark.parametrize(("steps", "low", "high"), [(993, 0.002, 81.0), (1, 0.0001, 0.0002)])
def test_more_iddpm_steps_than_levels_are_refused(steps: int, low: float, high: float) -> None:
    with pytest.raises(StudyError, match=f"iddpm: {steps} steps, but only {len(iddpm_levels(low, high))}"):
        DISCRETIZATIONS["iddpm"](steps, low, high, 7.0)
