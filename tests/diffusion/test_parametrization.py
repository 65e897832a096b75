"""Parametrizations: coefficients against formulas in plain Python, and the input and target that follow from them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.diffusion.networks.embedding import Fourier, positional_embedding
from pipeline.diffusion.parametrization import PARAMETRIZATIONS, eps, score, v, velocity, x0
from pipeline.training.noise import distribution
from pipeline.training.row import Model
from pipeline.training.weighting import WEIGHTINGS

Row = tuple[float, float, float, float]


def levels() -> np.ndarray:
    """u_0 > ... > u_M = 0."""
    abar = np.sin(np.pi * np.arange(1001) / (2 * 1000 * 1.008)) ** 2
    u = np.zeros(1001)
    for j in range(1000, 0, -1):
        u[j - 1] = np.sqrt((u[j] ** 2 + 1) / max(abar[j - 1] / abar[j], 1e-3) - 1)
    return u


U = levels()


def edm(sigma: float, sd: float) -> Row:
    root = math.hypot(sigma, sd)
    return sd**2 / root**2, sigma * sd / root, 1 / root, math.log(sigma) / 4


def consistency(sigma: float, sd: float) -> Row:
    step = sigma - 0.002
    return sd**2 / (step**2 + sd**2), sd * step / math.hypot(sigma, sd), *edm(sigma, sd)[2:]


def vp(sigma: float, sd: float) -> Row:
    t = (math.sqrt(0.1**2 + 2 * 19.9 * math.log1p(sigma**2)) - 0.1) / 19.9
    return 1, -sigma, 1 / math.sqrt(1 + sigma**2), 999 * t


def ve(sigma: float, sd: float) -> Row:
    return 1, sigma, 1, math.log(sigma / 2)


def iddpm(sigma: float, sd: float) -> Row:
    return 1, -sigma, 1 / math.sqrt(1 + sigma**2), float(1000 - 1 - np.abs(U - sigma).argmin())


def flow(sigma: float, sd: float) -> Row:
    return 1 / (1 + sigma), -sigma / (1 + sigma), 1 / (1 + sigma), 999 * sigma / (1 + sigma)


def flow_t(sigma: float, sd: float) -> Row:
    *others, c_noise = flow(sigma, sd)
    return *others, c_noise / 999


LINEAR = np.sqrt(1 / np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)) - 1)


def ddpm(sigma: float, sd: float) -> Row:
    return 1, -sigma, 1 / math.sqrt(1 + sigma**2), float(np.abs(LINEAR - sigma).argmin())


def x0_on(path: Callable[[float, float], Row]) -> Callable[[float, float], Row]:
    return lambda sigma, sd: (0, 1, *path(sigma, sd)[2:])


def v_on(path: Callable[[float, float], Row]) -> Callable[[float, float], Row]:
    """x0 = cos(phi) x - sin(phi) v, x = cos(phi) z."""
    return lambda sigma, sd: (
        math.cos(math.atan(sigma)) ** 2,
        -math.sin(math.atan(sigma)),
        *path(sigma, sd)[2:],
    )


COEFFICIENTS: dict[str, Callable[[float, float], Row]] = {
    "edm": edm,
    "vp": vp,
    "ve": ve,
    "iddpm": iddpm,
    "ddpm": ddpm,
    "flow": flow,
    "flow_t": flow_t,
    "vp_x0": x0_on(vp),
    "vp_v": v_on(vp),
    "ddpm_x0": x0_on(ddpm),
    "ddpm_v": v_on(ddpm),
    "iddpm_x0": x0_on(iddpm),
    "iddpm_v": v_on(iddpm),
    "flow_eps": lambda sigma, sd: (1, -sigma, *flow(sigma, sd)[2:]),
    "flow_x0": x0_on(flow),
    "consistency": consistency,
}

all_parametrizations = pytest.mark.parametrize("name", PARAMETRIZATIONS)
both_sd = pytest.mark.parametrize("sd", [0.5, 0.7364])


def sigmas() -> Tensor:
    return torch.logspace(-3, 4, 300).double()


def test_every_parametrization_has_a_formula_here() -> None:
    assert COEFFICIENTS.keys() == PARAMETRIZATIONS.keys()


@all_parametrizations
@both_sd
def test_coefficients(name: str, sd: float) -> None:
    actual = torch.stack(PARAMETRIZATIONS[name](sigmas(), sd), dim=1)
    expected = torch.tensor([COEFFICIENTS[name](sigma, sd) for sigma in sigmas().tolist()], dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)


@all_parametrizations
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3)])
def test_coefficients_have_the_shape_of_sigma(name: str, shape: tuple[int, ...]) -> None:
    for value in PARAMETRIZATIONS[name](torch.full(shape, 0.7, dtype=torch.float64), 0.5):
        assert value.shape == shape and value.dtype == torch.float64


def test_c_noise_of_iddpm_is_the_nearest_level() -> None:
    """On the levels, and on both sides of every midpoint."""
    middle = (U[1:] + U[:-1]) / 2
    sigma = np.concatenate([U, middle * (1 + 1e-6), middle * (1 - 1e-6)])
    told = PARAMETRIZATIONS["iddpm"](torch.from_numpy(sigma), 0.5).c_noise
    assert told.tolist() == [999 - np.abs(U - value).argmin() for value in sigma]


@all_parametrizations
@both_sd
def test_unit_weighting_is_one_on_the_network_target(name: str, sd: float) -> None:
    c_out = PARAMETRIZATIONS[name](sigmas(), sd).c_out
    product = WEIGHTINGS["unit"](sigmas(), c_out=c_out) * c_out**2
    torch.testing.assert_close(product, torch.ones_like(product), rtol=1e-12, atol=0)


@both_sd
def test_edm_weighting_is_one_on_the_target_of_edm(sd: float) -> None:
    c_out = PARAMETRIZATIONS["edm"](sigmas(), sd).c_out
    product = WEIGHTINGS["edm"](sigmas(), sigma_data=sd) * c_out**2
    torch.testing.assert_close(product, torch.ones_like(product), rtol=1e-12, atol=0)


@both_sd
def test_edm_input_and_target_have_unit_variance(sd: float) -> None:
    """The target is (x0 - c_skip z) / c_out = ((1 - c_skip) x0 - c_skip sigma n) / c_out."""
    sigma = sigmas()
    c_skip, c_out, c_in, _ = PARAMETRIZATIONS["edm"](sigma, sd)
    target = ((1 - c_skip) ** 2 * sd**2 + c_skip**2 * sigma**2) / c_out**2
    torch.testing.assert_close(c_in**2 * (sigma**2 + sd**2), torch.ones_like(sigma), rtol=1e-12, atol=0)
    torch.testing.assert_close(target, torch.ones_like(sigma), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("vp", lambda x0, n: n),
        ("iddpm", lambda x0, n: n),
        ("ve", lambda x0, n: -n),
        ("ddpm", lambda x0, n: n),
        ("flow", lambda x0, n: n - x0),
        ("flow_t", lambda x0, n: n - x0),
        ("flow_eps", lambda x0, n: n),
        ("flow_x0", lambda x0, n: x0),
        ("vp_x0", lambda x0, n: x0),
        ("vp_v", lambda x0, n: (n - sigmas() * x0) / (1 + sigmas() ** 2).sqrt()),
    ],
)
def test_the_target_of_each_parametrization(name: str, target: Callable) -> None:
    """The F for which D = x0."""
    x0, n = torch.randn(2, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    c_skip, c_out, _, _ = PARAMETRIZATIONS[name](sigmas(), 0.5)
    f = (x0 - c_skip * (x0 + sigmas() * n)) / c_out
    torch.testing.assert_close(f, target(x0, n), rtol=1e-9, atol=1e-9)


TARGETS = {  # F of x0 and n at angle phi, tan(phi) = sigma
    x0: lambda image, n, phi: image,
    eps: lambda image, n, phi: n,
    score: lambda image, n, phi: -n,
    v: lambda image, n, phi: phi.cos() * n - phi.sin() * image,  # Salimans and Ho 2022, arXiv 2202.00512, appendix D
    velocity: lambda image, n, phi: n - image,
}


@pytest.mark.parametrize("target", TARGETS)
def test_the_denoiser_of_a_perfect_network_is_x0(target: Callable) -> None:
    """c_skip z + c_out F = x0 at every sigma, for the F that each target defines."""
    sigma = torch.logspace(-3, 3, 60).double()
    image, n = torch.randn(2, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    c_skip, c_out = target(sigma, 0.5)
    f = TARGETS[target](image, n, sigma.atan())
    torch.testing.assert_close(c_skip * (image + sigma * n) + c_out * f, image, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "path"), [("vp_x0", "vp"), ("vp_v", "vp"), ("flow_eps", "flow"), ("flow_x0", "flow")])
def test_parametrizations_that_share_a_path_give_the_network_the_same_input(name: str, path: str) -> None:
    sigma = torch.logspace(-3, 2, 30).double()
    one, other = PARAMETRIZATIONS[name](sigma, 0.5), PARAMETRIZATIONS[path](sigma, 0.5)
    assert torch.equal(one.c_in, other.c_in) and torch.equal(one.c_noise, other.c_noise)
    assert PARAMETRIZATIONS[name].flow == PARAMETRIZATIONS[path].flow


def test_flow_t_is_the_flow_with_a_label_of_t() -> None:
    one, other = (PARAMETRIZATIONS[name](sigmas(), 0.5) for name in ("flow", "flow_t"))
    assert all(map(torch.equal, one[:3], other[:3]))
    torch.testing.assert_close(one.c_noise, 999 * other.c_noise)
    assert PARAMETRIZATIONS["flow_t"].flow


NATURAL = {  # the noise that a parametrization was published with
    "consistency": "lognormal",
    "edm": "lognormal",
    "vp": "vp_uniform",
    "ve": "ve_loguniform",
    "iddpm": "iddpm_uniform",
    "ddpm": "ddpm_uniform",
    "flow": "flow_uniform",
}
HARDLY_TOLD = {"flow_t"}  # whose label is there to show what a label is worth


def labels(name: str, count: int = 2000) -> Tensor:
    """c_noise of evenly spaced quantiles of a parametrization's natural noise, its central 99.8%: (count,), float32."""
    noise = NATURAL[name if name in NATURAL else name.split("_")[0]]
    levels = distribution(noise, {"P_mean": -1.2, "P_std": 1.2, "shift": 1.0}).sigma
    return PARAMETRIZATIONS[name](levels(torch.linspace(0.001, 0.999, count).double()), 0.5).c_noise.float()


def moved(name: str, width: int) -> float:
    """The largest distance between the positional embeddings of two noise levels."""
    embedded = positional_embedding(labels(name, 400), width)
    return float(torch.cdist(embedded, embedded).max())


@all_parametrizations
@pytest.mark.parametrize("width", [16, 128])
def test_the_embedding_moves_at_least_as_much_as_that_of_edm(name: str, width: int) -> None:
    assert (moved(name, width) >= moved("edm", width)) == (name not in HARDLY_TOLD)


@all_parametrizations
def test_fourier_features_are_refused_where_those_of_close_noise_levels_are_unrelated(name: str) -> None:
    """The mean square of the distance of two unrelated embeddings is their width."""
    torch.manual_seed(0)
    embedded = Fourier(256)(labels(name).unique())
    related = float(embedded.diff(dim=0).square().sum(1).median()) < 256 / 4
    row = {"parametrization": name, "noise": NATURAL.get(name, NATURAL[name.split("_")[0]]), "embedding": "fourier"}
    row["objective"] = "consistency_training" if name == "consistency" else "denoising"
    if related:
        Model(**row)
    else:
        with pytest.raises(ValidationError, match=f"fourier suits c_noise.*parametrization {name} tells.*positional"):
            Model(**row)
    assert related == (name in ("edm", "ve", "flow_t", "consistency"))
