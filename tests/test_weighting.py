"""Loss weightings on D: their formulas in plain numbers."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.parametrization import PARAMETRIZATIONS
from pipeline.weighting import WEIGHTINGS

SD = 0.6
LAMBDA: dict[str, Callable[[float, float], float]] = {  # of sigma and c_out
    "unit": lambda sigma, c_out: 1 / c_out**2,
    "edm": lambda sigma, c_out: (sigma**2 + SD**2) / (sigma * SD) ** 2,
    "snr": lambda sigma, c_out: 1 / sigma**2,
    "min_snr": lambda sigma, c_out: min(1 / sigma**2, 5.0),
    "soft_min_snr": lambda sigma, c_out: 1 / (sigma**2 + SD**2),
}
TABLE: dict[str, Callable[[float], float]] = {  # lambda(sigma), on D, by parametrization
    "vp": lambda sigma: 1 / sigma**2,
    "ve": lambda sigma: 1 / sigma**2,
    "iddpm": lambda sigma: 1 / sigma**2,
    "edm": lambda sigma: (sigma**2 + SD**2) / (sigma * SD) ** 2,
    "flow": lambda sigma: (1 + sigma) ** 2 / sigma**2,
}


def sigmas() -> Tensor:
    return torch.logspace(-3, 3, 200).double().reshape(2, 100)


def test_every_weighting_has_a_formula_here() -> None:
    assert LAMBDA.keys() == WEIGHTINGS.keys()
    assert TABLE.keys() == PARAMETRIZATIONS.keys()


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_weightings(name: str, parametrization: str) -> None:
    c_out = PARAMETRIZATIONS[parametrization](sigmas(), SD).c_out
    pairs = zip(sigmas().flatten().tolist(), c_out.flatten().tolist(), strict=True)
    expected = torch.tensor([LAMBDA[name](*pair) for pair in pairs], dtype=torch.float64).reshape(2, 100)
    torch.testing.assert_close(WEIGHTINGS[name](sigmas(), SD, c_out), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_unit_is_the_published_weighting(parametrization: str) -> None:
    c_out = PARAMETRIZATIONS[parametrization](sigmas(), SD).c_out
    expected = [TABLE[parametrization](sigma) for sigma in sigmas().flatten().tolist()]
    assert WEIGHTINGS["unit"](sigmas(), SD, c_out).flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_min_snr_clamps_below_its_sigma() -> None:
    edge = 1 / math.sqrt(5)
    sigma = torch.tensor([1e-6, edge / 2, edge * 0.999, edge * 2, 10.0], dtype=torch.float64)
    weights = WEIGHTINGS["min_snr"](sigma, SD, -sigma)
    assert weights[:3].tolist() == [5, 5, 5]
    assert weights[3:].tolist() == pytest.approx([1.25, 0.01])
