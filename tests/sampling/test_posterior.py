"""Posterior samplers against Gaussian closed forms, exact posteriors, and plain lines from their papers."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import dawsn
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.diffusion.denoiser import DenoiserFunction, new_denoiser
from pipeline.diffusion.exact import Gaussian, Mixture
from pipeline.diffusion.posterior import posterior
from pipeline.diffusion.schedule import ddpm_sigmas, linear_betas
from pipeline.sampling import sample
from pipeline.sampling.counting import Counted
from pipeline.sampling.guidance import Guidance
from pipeline.sampling.measurement import Linear, Measurement, blur, clip, downsample, identity, mask, random
from pipeline.sampling.posterior import METHODS, Bill, given, keys_of
from pipeline.sampling.row import Sampler
from pipeline.training.row import Model

F64 = torch.float64
STD = 0.3
SIGMAS = [0.002, 0.05, 0.4, 3.0, 80.0]
EXACT_KEYS: dict[str, dict[str, Any]] = {"tmp": {}, "mmps": {"iterations": 3}}  # three numbers are measured
sigmas = pytest.mark.parametrize("sigma", SIGMAS)
all_methods = pytest.mark.parametrize("method", METHODS)


def level(sigma: float) -> Tensor:
    return torch.tensor(sigma, dtype=F64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Correlated:
    """The denoiser of data N(mean, covariance), and its posterior given y: z (N, d)."""

    mean: Tensor
    covariance: Tensor

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        noisy = self.covariance + sigma**2 * torch.eye(len(self.mean), dtype=F64)
        return self.mean + (z - self.mean) @ torch.linalg.solve(noisy, self.covariance)

    def given(self, measurement: Linear) -> "Correlated":
        """By the gain of Kalman's filter."""
        a, y = measurement.matrix, measurement.y
        assert y is not None
        seen = a @ self.covariance @ a.T + measurement.std**2 * torch.eye(len(a), dtype=F64)
        gain = self.covariance @ a.T @ torch.linalg.inv(seen)
        covariance = self.covariance - gain @ a @ self.covariance
        return Correlated(self.mean + gain @ (y[0] - a @ self.mean), (covariance + covariance.T) / 2)


ROOT = normal(5, 5, seed=1) / 3
CORRELATED = Correlated(0.2 * normal(5, seed=2), ROOT @ ROOT.T + 0.02 * torch.eye(5, dtype=F64))
MEASURED = Linear(normal(3, 5, seed=3), STD).observed(normal(3, seed=4))
ROUND = Gaussian(0.1, 0.5)
MIXTURE = Mixture(normal(4, 5, seed=6) / 2, torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64), 0.3)
MASK = mask((5,), STD, kept=[0, 3]).observed(normal(2, seed=5))


def measurement_for(method: str) -> Linear:
    """One that every method can use."""
    return MASK if method == "replacement" else MEASURED


@sigmas
@pytest.mark.parametrize("method", EXACT_KEYS)
@pytest.mark.parametrize("std", [STD, 0.01])
def test_tmp_and_mmps_are_exact_for_gaussian_data_at_every_sigma(method: str, sigma: float, std: float) -> None:
    measurement = Linear(MEASURED.matrix, std).observed(normal(3, seed=4))
    z = sigma * normal(6, 5) + CORRELATED.mean
    ours = given(CORRELATED, measurement, method, **EXACT_KEYS[method])(z, level(sigma))
    torch.testing.assert_close(ours, CORRELATED.given(measurement)(z, level(sigma)), rtol=1e-6, atol=1e-6)
    of_round = posterior(ROUND, measurement.matrix, normal(3, seed=4), std)(z, level(sigma))
    ours = given(ROUND, measurement, method, **EXACT_KEYS[method])(z, level(sigma))
    torch.testing.assert_close(ours, of_round, rtol=1e-6, atol=1e-6)


@sigmas
def test_pigdm_is_exact_where_all_directions_of_the_data_have_the_std_that_it_assumes(sigma: float) -> None:
    z = sigma * normal(6, 5)
    exact = posterior(ROUND, MEASURED.matrix, normal(3, seed=4), STD)(z, level(sigma))
    ours = given(ROUND, MEASURED, "pigdm", data_std=ROUND.std)(z, level(sigma))
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)
    if 0.05 < sigma < 80:
        for denoiser, truth, keys in (
            (ROUND, exact, {}),
            (CORRELATED, CORRELATED.given(MEASURED)(z, level(sigma)), {"data_std": 0.5}),
        ):
            assert (given(denoiser, MEASURED, "pigdm", **keys)(z, level(sigma)) - truth).abs().max() > 0.005


EQUAL = {
    "identity": identity((1, 4, 4), STD),
    "mask": mask((1, 4, 4), STD, share=0.5),
    "downsample": downsample((1, 4, 4), STD),
    "random": random((1, 4, 4), STD, projections=6),
}


@pytest.mark.parametrize("name", EQUAL)
@pytest.mark.parametrize(("method", "keys"), [("mmps", {}), ("tmp", {"covariance": "diagonal"})])
def test_one_iteration_and_row_sums_suffice_for_round_data_and_equal_singular_values(
    name: str, method: str, keys: dict[str, Any]
) -> None:
    measurement = EQUAL[name].observed(normal(EQUAL[name].size))
    z = normal(4, 1, 4, 4)
    exact = posterior(ROUND, measurement.matrix, normal(measurement.size), STD)(z.flatten(1), level(0.7))
    ours = given(ROUND, measurement, method, **keys)(z, level(0.7)).flatten(1)
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


def test_more_iterations_come_nearer_and_more_than_needed_do_no_harm() -> None:
    measurement = blur((1, 4, 4), 0.1).observed(normal(16))
    z = normal(4, 1, 4, 4)
    exact = posterior(ROUND, measurement.matrix, normal(16), 0.1)(z.flatten(1), level(0.7))
    errors = [
        float((given(ROUND, measurement, "mmps", iterations=k)(z, level(0.7)).flatten(1) - exact).abs().max())
        for k in (1, 2, 4, 16, 40)
    ]
    assert errors[0] > errors[1] > errors[2] > 1e-6 and max(errors[3:]) < 1e-12, errors


def moments_of(denoiser: DenoiserFunction, row: Sampler, count: int = 10_000) -> tuple[Tensor, Tensor]:
    steps = row.steps(63)
    made = sample(denoiser, normal(count, 5, seed=9), row, steps)
    assert made.nfe == 63
    return made.x0.mean(0), made.x0.T.cov()


def off(found: tuple[Tensor, Tensor], exact: Correlated, count: int = 10_000) -> float:
    """The largest error of mean and covariance in standard errors of so many draws, after whitening."""
    mean, covariance = found
    whiten = torch.linalg.inv(torch.linalg.cholesky(exact.covariance))
    of_mean = (whiten @ (mean - exact.mean)).abs().max() * math.sqrt(count)
    of_covariance = whiten @ covariance @ whiten.T - torch.eye(5, dtype=F64)
    scale = math.sqrt(2) * torch.eye(5, dtype=F64) + (1 - torch.eye(5, dtype=F64))
    return float(torch.maximum(of_mean, (of_covariance / scale).abs().max() * math.sqrt(count)))


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m"])
@pytest.mark.parametrize("method", EXACT_KEYS)
def test_63_evaluations_sample_the_exact_posterior_of_gaussian_data(method: str, solver: str) -> None:
    row = Sampler(solver=solver, nfe=(63,))
    denoiser = given(CORRELATED, MEASURED, method, **EXACT_KEYS[method])
    assert off(moments_of(denoiser, row), CORRELATED.given(MEASURED)) < 4
    assert off(moments_of(CORRELATED, row), CORRELATED.given(MEASURED)) > 50


def test_63_evaluations_of_pigdm_sample_the_exact_posterior_where_its_assumption_holds() -> None:
    row, prior = (
        Sampler(solver="dpmpp_2m", nfe=(63,)),
        Correlated(torch.full((5,), 0.1, dtype=F64), 0.25 * torch.eye(5, dtype=F64)),
    )
    assert off(moments_of(given(ROUND, MEASURED, "pigdm", data_std=0.5), row), prior.given(MEASURED)) < 4
    assert off(moments_of(given(ROUND, MEASURED, "pigdm"), row), prior.given(MEASURED)) > 10


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_dps_is_biased_by_a_known_amount(ratio: float) -> None:
    """For data N(0, s^2) and y = x + std n with a = s / std, the ODE with DPS can be solved.

    Its samples have the mean y sqrt(2) a F(a / sqrt(2)), F Dawson's integral, and the std s exp(-a^2 / 2). Exact are
    y a^2 / (1 + a^2) and s / sqrt(1 + a^2). At a = 1 the mean is 1.45 times as far from the prior's as it should be,
    and the std is 0.86 times the exact one. At a = 2 it is 1.6 and 0.30 times.
    """
    s, y = 0.5, 0.8
    std = s / ratio
    measurement = identity((1,), std).observed(torch.tensor([y], dtype=F64))
    row = Sampler(solver="heun", nfe=(1999,), sigma_max=5000)
    made = sample(
        given(Gaussian(0.0, s), measurement, "dps"), torch.tensor([[-1.0], [0.0], [1.0]], dtype=F64), row, 1000
    )
    low, middle, high = made.x0.flatten().tolist()
    mean, spread = middle, (high - low) / 2
    assert mean == pytest.approx(y * math.sqrt(2) * ratio * dawsn(ratio / math.sqrt(2)), rel=1e-3)
    assert spread == pytest.approx(s * math.exp(-(ratio**2) / 2), rel=1e-3)
    exact_mean, exact_std = y * ratio**2 / (1 + ratio**2), s / math.sqrt(1 + ratio**2)
    by_ratio = {0.5: (1.15, 0.987), 1.0: (1.45, 0.858), 2.0: (1.60, 0.303)}
    assert (mean / exact_mean, spread / exact_std) == pytest.approx(by_ratio[ratio], rel=0.005)


def jacobian(denoiser: DenoiserFunction, z: Tensor, sigma: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(lambda x: denoiser(x[None], sigma)[0], z)


def plainly(
    method: str, denoiser: DenoiserFunction, measurement: Linear, z: Tensor, sigma: float, keys: dict[str, Any]
) -> Tensor:
    """One sample's answer, from the papers' formulas with dense matrices: z (d,)."""
    assert measurement.y is not None
    a, y, std = measurement.matrix, measurement.y[0], measurement.std
    x0, j = denoiser(z[None], level(sigma))[0], jacobian(denoiser, z, level(sigma))
    e, eye = y - a @ x0, torch.eye(len(a), dtype=F64)

    def squares(x: Tensor) -> Tensor:
        return (y - a @ denoiser(x[None], level(sigma))[0]).square().sum()

    if method == "replacement":  # the rows of a are those of I
        kept = a.sum(0)
        return kept * (a.T @ y) + (1 - kept) * x0
    if method == "mpgd":
        return x0 - keys["step"] / 2 * (-2 * a.T @ e)
    if method == "ddnm":
        _, s, vt = torch.linalg.svd(a, full_matrices=False)
        damping = torch.tensor([1.0 if sigma >= std / each else sigma * each / std for each in s.tolist()], dtype=F64)
        return x0 - vt.T @ torch.diag(damping) @ vt @ torch.linalg.pinv(a) @ (a @ x0 - y)
    if method == "dps":
        score = -keys["zeta"] * torch.autograd.functional.jacobian(squares, z) / (2 * std**2)
    elif method == "dps_norm":
        beta = math.sqrt(0.1**2 + 2 * 19.9 * math.log(1 + sigma**2)) / 1000
        score = -keys["zeta"] / e.norm() * torch.autograd.functional.jacobian(squares, z) / beta
    elif method == "pigdm":
        r2 = 1 / (1 / sigma**2 + 1 / keys["data_std"] ** 2)
        score = j.T @ a.T @ torch.linalg.inv(r2 * a @ a.T + std**2 * eye) @ e
    else:  # tmp and mmps
        covariance = sigma**2 * j
        seen = a @ covariance @ a.T
        if keys.get("covariance") == "diagonal":
            seen = torch.diag(seen.sum(0))  # the rows of A J^T A^T
        score = j.T @ a.T @ torch.linalg.inv(seen + std**2 * eye) @ e
    return x0 + sigma**2 * score


def skewed(z: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser whose Jacobian is not symmetric, as a network's."""
    return MIXTURE(z, sigma) + 0.2 * torch.sin(z.roll(1, -1) + z.roll(2, -1) ** 2 / 2)


PLAIN: list[tuple[str, dict[str, Any]]] = [
    ("replacement", {}),
    ("dps", {"zeta": 0.7}),
    ("dps_norm", {"zeta": 0.3}),
    ("pigdm", {"data_std": 1.0}),
    ("pigdm", {"data_std": 0.4}),
    ("tmp", {}),
    ("tmp", {"covariance": "diagonal"}),
    ("mmps", {"iterations": 3}),
    ("ddnm", {}),
    ("mpgd", {"step": 0.8}),
]


@sigmas
@pytest.mark.parametrize(("method", "keys"), PLAIN, ids=str)
@pytest.mark.parametrize("denoiser", [MIXTURE, skewed], ids=["mixture", "skewed"])
def test_every_method_is_a_few_plain_lines_from_its_paper(
    denoiser: DenoiserFunction, method: str, keys: dict[str, Any], sigma: float
) -> None:
    if method == "mmps" and denoiser is skewed:
        return  # conjugate gradients are for symmetric matrices, and the paper takes them anyway
    measurement, z = measurement_for(method), sigma * normal(4, 5) + 0.3
    ours = given(denoiser, measurement, method, **keys)(z, level(sigma))
    for one, found in zip(z, ours, strict=True):
        expected = plainly(method, denoiser, measurement, one, sigma, keys)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_every_method_is_here() -> None:
    assert {method for method, _ in PLAIN} == set(METHODS)


def test_dps_norm_moves_x_as_a_step_of_the_papers_algorithm_does() -> None:
    """Algorithm 1 on DDPM's levels, without noise, at zeta' = 0.4."""
    betas, i = linear_betas(), 600
    bars = (1 - betas).cumprod(0)
    assert ddpm_sigmas()[i] == pytest.approx(float((1 / bars[i] - 1).sqrt()))
    x = (bars[i].sqrt() * normal(1, 5) / 2 + (1 - bars[i]).sqrt() * normal(1, 5, seed=7)).requires_grad_()
    sigma = ((1 - bars[i]) / bars[i]).sqrt()

    def step(x0: Tensor) -> Tensor:
        of_x = (1 - betas[i]).sqrt() * (1 - bars[i - 1]) / (1 - bars[i])
        return of_x * x + bars[i - 1].sqrt() * betas[i] / (1 - bars[i]) * x0

    x0 = MIXTURE(x / bars[i].sqrt(), sigma)
    norm = MEASURED.y - MEASURED.apply(x0)
    [gradient] = torch.autograd.grad(norm.square().sum(), x, retain_graph=True)
    moved = -0.4 / norm.norm() * gradient
    ours = step(given(MIXTURE, MEASURED, "dps_norm", zeta=0.4)(x / bars[i].sqrt(), sigma)) - step(x0)
    torch.testing.assert_close(ours, moved, rtol=0.01, atol=0)


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m", "ddpm"])
def test_replacement_is_ddnm_and_mpgd_on_a_mask_without_noise(solver: str) -> None:
    measurement = mask((5,), 0.0, kept=[0, 3]).observed(normal(2))
    row = Sampler(solver=solver, nfe=(20,))
    ours = [
        sample(given(MIXTURE, measurement, method), normal(3, 5), row, row.steps(20), torch.ones_like).x0
        for method in ("replacement", "ddnm", "mpgd")
    ]
    assert ours[0].allclose(ours[1], atol=1e-12) and ours[0].allclose(ours[2], atol=1e-12)
    torch.testing.assert_close(ours[0][:, [0, 3]], measurement.y.expand(3, 2))


def test_replacement_moves_the_measured_part_as_repaint_sets_it() -> None:
    """z's measured part stays y + sigma n, where n is that of the start, up to y / sigma_max."""
    measurement = mask((5,), 0.0, kept=[0, 3]).observed(normal(2))
    seen: list[tuple[Tensor, float]] = []

    def recorded(z: Tensor, sigma: Tensor) -> Tensor:
        seen.append((z.detach().clone(), float(sigma)))
        return MIXTURE(z, sigma)

    noise = normal(3, 5)
    sample(given(recorded, measurement, "replacement"), noise, Sampler(solver="heun"), 10)
    for z, sigma in seen:
        repaint = measurement.y + sigma * (noise[:, [0, 3]] - measurement.y / 80)
        torch.testing.assert_close(z[:, [0, 3]], repaint, rtol=1e-9, atol=1e-9)


WITHOUT_STD = {"replacement", "dps_norm", "mpgd"}  # these take y as it is, whatever its noise


@all_methods
@pytest.mark.parametrize("row", [{"solver": "heun"}, {"solver": "ddpm"}], ids=str)
def test_a_measurement_of_noise_alone_leaves_the_samples_to_the_last_bit(method: str, row: dict[str, Any]) -> None:
    sampler, seen = Sampler(**row, nfe=(15,)), measurement_for(method)
    y = seen.y
    assert y is not None
    useless = (
        mask((5,), 1e30, kept=[0, 3]).observed(y) if method == "replacement" else Linear(seen.matrix, 1e30).observed(y)
    )
    alone = sample(MIXTURE, normal(3, 5), sampler, sampler.steps(15), torch.ones_like).x0
    ours = sample(given(MIXTURE, useless, method), normal(3, 5), sampler, sampler.steps(15), torch.ones_like).x0
    assert ours.equal(alone) != (method in WITHOUT_STD)


PRODUCTS: list[tuple[str, dict[str, Any], int, int]] = [  # products and steps of conjugate gradients, per call
    ("replacement", {}, 0, 0),
    ("dps", {}, 1, 0),
    ("dps_norm", {}, 1, 0),
    ("pigdm", {}, 1, 0),
    ("tmp", {}, 3, 0),
    ("tmp", {"covariance": "diagonal"}, 2, 0),
    ("mmps", {}, 1, 1),
    ("mmps", {"iterations": 4}, 4, 4),
    ("ddnm", {}, 0, 0),
    ("mpgd", {}, 0, 0),
]


@pytest.mark.parametrize(("method", "keys", "products", "cg_steps"), PRODUCTS, ids=str)
@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m"])
def test_calls_and_products_are_counted_where_they_happen(
    method: str, keys: dict[str, Any], products: int, cg_steps: int, solver: str
) -> None:
    row, calls = Sampler(solver=solver, nfe=(20,)), Counted(MIXTURE)
    denoiser = given(calls, measurement_for(method), method, **keys)
    made = sample(denoiser, normal(3, 5), row, 6)
    assert made.nfe == calls.nfe == row.evaluations(6)
    assert denoiser.bill == Bill(products * made.nfe, cg_steps * made.nfe)


def test_products_are_those_that_the_network_makes() -> None:
    made = []

    class Passing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            return z.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            made.append(1)
            return gradients[0]

    for method, keys, products, _ in PRODUCTS:
        made.clear()
        given(lambda z, sigma: MIXTURE(Passing.apply(z), sigma), measurement_for(method), method, **keys)(
            normal(3, 5), level(0.5)
        )
        assert len(made) == products, method


def test_guidance_counts_both_networks_and_is_part_of_the_jacobian() -> None:
    guided = Guidance(2.0, "unconditional")(MIXTURE, ROUND)
    denoiser = given(guided, MEASURED, "mmps", iterations=3)
    assert sample(denoiser, normal(3, 5), Sampler(solver="euler"), 6).nfe == 12
    alone = given(lambda z, sigma: 2 * MIXTURE(z, sigma) - ROUND(z, sigma), MEASURED, "mmps", iterations=3)
    z = normal(3, 5)
    torch.testing.assert_close(denoiser(z, level(0.5)), alone(z, level(0.5)))


@pytest.mark.parametrize(("method", "keys"), PLAIN, ids=str)
def test_answers_keep_no_graph(method: str, keys: dict[str, Any]) -> None:
    """What a counter keeps of an answer may hold its graph; the last product has freed the graph's tensors."""
    counted = Counted(given(MIXTURE, measurement_for(method), method, **keys))
    answer = counted(normal(3, 5), level(0.5))
    assert not answer.requires_grad
    if counted.sums[0].requires_grad:
        with pytest.raises(RuntimeError, match="second time"):
            counted.sums[0].backward()


@all_methods
def test_a_sample_does_not_depend_on_its_neighbours(method: str) -> None:
    seen = measurement_for(method)
    assert seen.y is not None
    ys = seen.y + normal(6, seen.size)
    z = normal(6, 5)
    together = given(MIXTURE, seen.observed(ys), method)(z, level(0.5))
    alone = given(MIXTURE, seen.observed(ys[2]), method)(z[2:3], level(0.5))
    torch.testing.assert_close(together[2:3], alone, rtol=1e-12, atol=1e-12)


@all_methods
def test_networks_of_images_can_be_asked(method: str) -> None:
    network = new_denoiser(Model(channels=8, multipliers=(1,), blocks=1).spec(0.5, (1, 4, 4)), 0).eval()
    measurement = mask((1, 4, 4), 0.1, box=(1, 1, 2, 2)).observed(normal(12))
    made = sample(given(network, measurement, method), normal(2, 1, 4, 4), Sampler(), 4)
    assert made.x0.shape == (2, 1, 4, 4) and made.nfe == 7


@pytest.mark.parametrize("method", ["dps", "dps_norm", "mpgd"])
def test_clipped_values_pull_only_where_they_do_not_saturate(method: str) -> None:
    """Against the gradient of |y - A(D)|^2 by autograd, of z or of D."""
    measurement = clip((5,), STD, limit=0.3).observed(normal(5).clip(-0.3, 0.3))
    z = normal(3, 5).requires_grad_()
    x0 = MIXTURE(z, level(0.5))
    e = measurement.y - measurement.apply(x0)
    if method == "mpgd":
        expected = x0 - torch.autograd.grad(e.square().sum() / 2, x0)[0]
    else:
        beta = math.sqrt(0.01 + 39.8 * math.log(1.25)) / 1000
        loss = e.square().sum() / (2 * STD**2) if method == "dps" else 2 * e.norm(dim=1).sum() / beta
        expected = x0 - 0.25 * torch.autograd.grad(loss, z)[0]
    ours = given(MIXTURE, measurement, method)(z.detach(), level(0.5))
    torch.testing.assert_close(ours, expected.detach(), rtol=1e-9, atol=1e-9)


def test_draws_are_as_far_from_the_truth_as_from_each_other_with_tmp_but_not_with_dps() -> None:
    """x0 of the prior and a draw given its y are two draws of one posterior, if it is exact."""
    s, std, count = 0.5, 0.25, 4000
    x0 = s * normal(count, 1, seed=11)
    measurement = identity((1,), std)
    seen = measurement.observed(measurement.draw(x0, torch.Generator().manual_seed(12)))
    for method, calibrated in (("tmp", True), ("dps", False)):
        made = sample(
            given(Gaussian(0.0, s), seen, method), normal(count, 1, seed=13), Sampler(solver="dpmpp_2m"), 63
        ).x0
        assert (abs(float((x0 - made).std()) / (math.sqrt(2) * s * std / math.hypot(s, std)) - 1) < 0.05) == calibrated


REFUSED: dict[str, tuple[str, Measurement, dict[str, Any], str]] = {
    "method": ("mmsp", MEASURED, {}, "posterior: no method 'mmsp'; did you mean 'mmps'"),
    "key": ("mmps", MEASURED, {"zeta": 1.0}, "zeta: method mmps has no such key; valid: iterations"),
    "no keys": ("ddnm", MEASURED, {"zeta": 1.0}, "zeta: method ddnm has no such key; valid: none"),
    "value": ("dps", MEASURED, {"zeta": 0.0}, "zeta: 0.0 is not positive and finite"),
    "covariance": ("tmp", MEASURED, {"covariance": "diag"}, "covariance: no 'diag'; did you mean 'diagonal'"),
    "no y": ("dps", Linear(normal(3, 5), STD), {}, r"has no y; bind it with observed\(y\)"),
    "std 0": ("dps", Linear(normal(3, 5), 0.0).observed(normal(3)), {}, "posterior: dps divides by std, which is 0"),
    "replacement": ("replacement", MEASURED, {}, "posterior: replacement replaces measured values"),
    **{
        f"{name} of clip": (
            name,
            clip((5,), STD).observed(normal(5)),
            {},
            f"posterior: {name} needs a linear measurement",
        )
        for name in ("pigdm", "tmp", "mmps", "ddnm")
    },
}


@pytest.mark.parametrize(("method", "measurement", "keys", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_choices_are_one_line(method: str, measurement: Measurement, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        given(MIXTURE, measurement, method, **keys)
    assert len(str(caught.value).splitlines()) == 1


def test_a_measurement_of_another_shape_is_one_line() -> None:
    with pytest.raises(StudyError, match=r"given: the measurement is of \(5,\), but x has \(1, 4, 4\)"):
        sample(given(MIXTURE, MEASURED, "tmp"), normal(2, 1, 4, 4), Sampler(), 4)


def test_only_dps_divides_by_std() -> None:
    for method in set(METHODS) - {"dps"}:
        measurement = mask((5,), 0.0, kept=[0, 3]).observed(normal(2))
        answer = given(MIXTURE, measurement, method)(normal(3, 5), level(0.5))
        assert answer.isfinite().all(), method
    assert np.isfinite(list(keys_of("pigdm").values())).all()
