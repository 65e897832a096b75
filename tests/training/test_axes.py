"""Every entry of every training axis learns the exact denoiser of a two-dimensional mixture."""

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from pipeline.common.threads import in_turns
from pipeline.data.dataset import to_uint8
from pipeline.diffusion.denoiser import Denoiser
from pipeline.diffusion.exact import Mixture
from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.training.draws import DRAWS
from pipeline.training.loop import train
from pipeline.training.noise import NOISES
from pipeline.training.pairs import PAIRS, flow_to
from pipeline.training.row import Model
from pipeline.training.weighting import WEIGHTINGS

MIXTURE = Mixture(
    torch.tensor([[0.5, -0.3], [-0.5, 0.4], [0.1, 0.6]], dtype=torch.float64),
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    0.1,
)
SETTINGS = {"batch": 512, "images": 512 * 200, "learning_rate": 0.025, "ema_halflife_images": 8000}
POINTS = {"network": "mlp", "channels": 32, "blocks": 1}
PIXELS = {"channels": 32, "multipliers": (1,), "blocks": 1}
SIGMAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@cache
def points() -> Tensor:
    """Points of the mixture, (N, 2), float32."""
    return MIXTURE.sample(4096, torch.Generator().manual_seed(0)).float()


@cache
def pixels() -> Tensor:
    """The same as images of two channels and one pixel, (N, 2, 1, 1), uint8."""
    return to_uint8(points())[:, :, None, None]


def sigma_data() -> float:
    return float(points().std())


def errors(denoiser: Denoiser) -> dict[float, float]:
    """The root mean square of D - D* in units of c_out, the error of the network's output, by sigma."""
    found = {}
    x0 = MIXTURE.sample(2000, torch.Generator().manual_seed(1))
    n = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for sigma in SIGMAS:
        z, level = x0 + sigma * n, torch.tensor(sigma, dtype=torch.float64)
        with torch.no_grad():
            answer = denoiser(z.reshape(-1, *denoiser.spec.shape), level).flatten(1)
        c_out = denoiser.coefficients(level, denoiser.sigma_data).c_out
        found[sigma] = float((answer - MIXTURE(z, level)).square().mean().sqrt() / c_out.abs())
    return found


CHOICES = (  # the weighting, noise distribution, parametrization and noise draws of a row, which must suit each other
    ("unit", "iddpm_uniform", "iddpm", "stratified"),
    ("edm", "lognormal", "edm", "independent"),
    ("snr", "ddpm_uniform", "ddpm", "independent"),
    ("truncated_snr", "vp_uniform", "vp_v", "stratified"),
    ("min_snr", "vp_uniform", "vp_x0", "adaptive"),
    ("min_snr", "ddpm_uniform", "ddpm_x0", "stratified"),
    ("truncated_snr", "ddpm_uniform", "ddpm_v", "stratified"),
    ("min_snr", "iddpm_uniform", "iddpm_x0", "stratified"),
    ("truncated_snr", "iddpm_uniform", "iddpm_v", "stratified"),
    ("soft_min_snr", "cosmap", "edm", "stratified"),
    ("p2", "ddpm_uniform", "vp", "adaptive"),
    ("sigmoid", "mode", "flow_eps", "independent"),
    ("uniform_x0", "rho_uniform", "edm", "adaptive"),
    ("uniform_eps", "vp_uniform", "vp", "independent"),
    ("uniform_v", "logit_normal", "flow_t", "independent"),
    ("uniform_velocity", "flow_uniform", "flow", "independent"),
    ("uniform_score", "lognormal", "flow_x0", "independent"),
    ("vlb", "ve_loguniform", "edm", "independent"),  # it divides by the density, which must not fall towards its ends
    ("uncertainty", "ve_loguniform", "ve", "adaptive"),
)
FURTHER = {"uniform_score": {"P_std": 0.6}}  # it weighs low levels so much that with many of them it sees nothing else
AXES = {"weighting": WEIGHTINGS, "noise": NOISES, "parametrization": PARAMETRIZATIONS, "draws": DRAWS}
OF_OBJECTIVES = {"inverse_step", "consistency"}  # choices for other objectives than denoising
ROWS = {
    " ".join(names): Model(**SETTINGS, **POINTS, **dict(zip(AXES, names, strict=True)), **FURTHER.get(names[0], {}))
    for names in CHOICES
} | {"augment": Model(**SETTINGS, **PIXELS, augment=0.12)}
FARTHEST = 0.3  # of the network's target, whose variance is about 1
CENTRE = (0.05, 0.95)  # the shares of a row's weighted noise distribution between which it is asked


def trained(row: Model, teacher: Denoiser | None = None) -> Denoiser:
    data = points() if row.network == "mlp" else pixels()
    [found] = in_turns([train(row, row.spec(sigma_data(), tuple(data.shape[1:])), data, 0, teacher=teacher)])
    return found.denoiser


def looked_at(row: Model) -> list[float]:
    """The noise levels that hold the share CENTRE of an untrained network's loss, where it can learn."""
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    sigma = row.distribution.sigma(u)
    c_out = PARAMETRIZATIONS[row.parametrization](sigma, sigma_data()).c_out
    shares = (row.weight(u, (sigma,), sigma_data(), c_out) * c_out**2).cumsum(0)
    return sigma[torch.searchsorted(shares / shares[-1], torch.tensor(CENTRE, dtype=torch.float64))].tolist()


def test_every_choice_is_here() -> None:
    for names, known in zip(zip(*CHOICES, strict=True), AXES.values(), strict=True):
        assert set(names) == set(known) - OF_OBJECTIVES


@pytest.mark.parametrize("row", ROWS)
def test_every_choice_learns_the_exact_denoiser(row: str) -> None:
    low, high = looked_at(ROWS[row])
    own = {sigma: error for sigma, error in errors(trained(ROWS[row])).items() if low <= sigma <= high}
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
    settings = SETTINGS | {"batch": 128, "images": 128 * 350}  # a matching of 512 points takes as long as ten steps
    flow = Model(**settings, **POINTS, parametrization="flow", noise="flow_uniform")
    rows = {name: flow.model_copy(update={"pairs": name, "reflow_pairs": 4096}) for name in PAIRS}
    teacher, matched = trained(rows["independent"]), trained(rows["optimal_transport"])
    again = trained(rows["reflow"], teacher)
    n = torch.randn(16_384, 2, generator=torch.Generator().manual_seed(6))
    straight = {}
    for name, denoiser in {"independent": teacher, "optimal_transport": matched, "reflow": again}.items():
        x, straightness = flow_to(denoiser, n[:4096], 16)
        straight[name] = float(straightness.mean())
        assert distance(x) < 0.05, name
    assert straight["optimal_transport"] < 0.5 * straight["independent"]
    assert straight["reflow"] < 0.5 * straight["independent"]
    one_step = {name: distance(flow_to(d, n, 1)[0]) for name, d in (("flow", teacher), ("reflow", again))}
    assert one_step["reflow"] < 0.5 * one_step["flow"]
