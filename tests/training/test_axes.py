"""Every entry of every training axis learns the exact denoiser of a two-dimensional mixture."""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common.threads import in_turns, side_by_side
from pipeline.data.dataset import to_range, to_uint8
from pipeline.diffusion.denoiser import Denoiser
from pipeline.diffusion.exact import Mixture
from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.training.draws import DRAWS
from pipeline.training.loop import train
from pipeline.training.noise import NOISES
from pipeline.training.pairs import PAIRS, flow_to, reflow_pairs
from pipeline.training.row import Model
from pipeline.training.weighting import WEIGHTINGS

MIXTURE = Mixture(
    torch.tensor([[0.5, -0.3], [-0.5, 0.4], [0.1, 0.6]], dtype=torch.float64),
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    0.1,
)
SETTINGS = {
    "channels": 32,
    "multipliers": (1,),
    "blocks": 2,
    "batch": 256,
    "images": 256 * 500,
    "learning_rate": 4e-3,
    "warmup_images": 10_000,
    "ema_halflife_images": 10_000,
}
SIGMAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
FLOW = {"parametrization": "flow", "noise": "flow_uniform"}


@cache
def points() -> Tensor:
    """Points of the mixture as images of two channels and one pixel, (N, 2, 1, 1), uint8."""
    return to_uint8(MIXTURE.sample(4096, torch.Generator().manual_seed(0)))[:, :, None, None]


def sigma_data() -> float:
    return float(to_range(points()).std())


def errors(denoiser: Denoiser) -> dict[float, float]:
    """The root mean square of D - D* in units of c_out, the error of the network's output, by sigma."""
    found = {}
    x0 = MIXTURE.sample(2000, torch.Generator().manual_seed(1))
    n = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for sigma in SIGMAS:
        z, level = x0 + sigma * n, torch.tensor(sigma, dtype=torch.float64)
        with torch.no_grad():
            answer = denoiser(z[:, :, None, None], level)[:, :, 0, 0]
        c_out = denoiser.coefficients(level, denoiser.sigma_data).c_out
        found[sigma] = float((answer - MIXTURE(z, level)).square().mean().sqrt() / c_out.abs())
    return found


AXES: dict[str, dict[str, Any]] = {
    "parametrization": PARAMETRIZATIONS,
    "weighting": WEIGHTINGS,
    "noise": NOISES,
    "draws": DRAWS,
    "augment": {"0.12": None},
}
PARTNERS: dict[
    str, dict[str, Any]
] = {  # what a choice needs beside it, where the baseline's other choices don't suit it
    "uniform_score": {"P_std": 0.6},  # it weighs low noise levels so much that with many of them it sees nothing else
    "vlb": {"noise": "ve_loguniform"},  # it divides by the density, which must not fall towards its ends
}
ROWS = {
    (axis, name): Model(**SETTINGS, **{axis: float(name) if axis == "augment" else name}, **PARTNERS.get(name, {}))
    for axis, names in AXES.items()
    for name in names
}
FARTHEST = 0.3  # of the network's target, whose variance is about 1
CENTRE = (0.05, 0.95)  # the shares of a row's weighted noise distribution between which it is asked


def trained(row: Model, make_pairs: Callable[[], tuple[Tensor, Tensor]] | None = None) -> Denoiser:
    spec = row.spec(sigma_data(), (2, 1, 1))
    [found] = in_turns([train(row, spec, points(), 0, make_pairs=make_pairs)], 1)
    return found.denoiser


def looked_at(row: Model) -> list[float]:
    """The noise levels that hold the share CENTRE of an untrained network's loss, where it can learn."""
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    sigma = row.distribution.sigma(u)
    c_out = PARAMETRIZATIONS[row.parametrization](sigma, sigma_data()).c_out
    shares = (row.weight(u, sigma, sigma_data(), c_out) * c_out**2).cumsum(0)
    return sigma[torch.searchsorted(shares / shares[-1], torch.tensor(CENTRE, dtype=torch.float64))].tolist()


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[float, float]]:
    """The errors of a trained denoiser of each row; all are trained side by side."""
    rows = {row.model_dump_json(): row for row in ROWS.values()}
    found = side_by_side([partial(lambda row: errors(trained(row)), row) for row in rows.values()])
    return dict(zip(rows, found, strict=True))


@pytest.mark.parametrize(("axis", "name"), ROWS)
def test_every_choice_learns_the_exact_denoiser(measured: dict[str, dict[float, float]], axis: str, name: str) -> None:
    row = ROWS[axis, name]
    low, high = looked_at(row)
    own = {sigma: error for sigma, error in measured[row.model_dump_json()].items() if low <= sigma <= high}
    assert len(own) >= 2 and max(own.values()) < FARTHEST, own


def distance(x: Tensor) -> float:
    """The mean Wasserstein distance between projections of x (N, 2) and of as many points of the mixture."""
    exact = MIXTURE.sample(len(x), torch.Generator().manual_seed(5))
    angles = torch.arange(16, dtype=torch.float64) * math.pi / 16
    directions = torch.stack([angles.cos(), angles.sin()])
    projections = [(points.double() @ directions).sort(0).values for points in (x, exact)]
    return float((projections[0] - projections[1]).abs().mean())


def test_pairs_generate_the_mixture_on_straighter_paths() -> None:
    """With dependent pairs D is another function, so this test compares samples."""
    flow = Model(**SETTINGS | {"parametrization": "flow", "noise": "flow_uniform"})
    rows = {name: flow.model_copy(update={"pairs": name}) for name in PAIRS}
    teacher, matched = side_by_side([partial(trained, rows[name]) for name in ("independent", "optimal_transport")])
    again = trained(rows["reflow"], partial(reflow_pairs, teacher, 4096, 0))
    n = torch.randn(4096, 2, 1, 1, generator=torch.Generator().manual_seed(6))
    straight = {}
    for name, denoiser in {"independent": teacher, "optimal_transport": matched, "reflow": again}.items():
        x, straightness = flow_to(denoiser, n, 16)
        straight[name] = float(straightness.mean())
        assert distance(x.flatten(1)) < 0.05, name
    assert straight["optimal_transport"] < 0.5 * straight["independent"]
    assert straight["reflow"] < 0.5 * straight["independent"]
    one_step = {name: distance(flow_to(d, n, 1)[0].flatten(1)) for name, d in (("flow", teacher), ("reflow", again))}
    assert one_step["reflow"] < 0.5 * one_step["flow"]
