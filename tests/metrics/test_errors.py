"""Errors of the Frechet and kernel distances against scatter, bias and coverage in simulations of Gaussians."""

from functools import partial
from typing import NamedTuple

import pytest
import torch
from scipy.stats import t as student
from torch import Tensor

from pipeline.metrics.estimate import JACKKNIFE_BLOCKS, Moments
from pipeline.metrics.frechet import frechet_distance, frechet_estimates
from pipeline.metrics.kernel import kernel_distance
from pipeline.report.statistics import interval
from tests.metrics.small import blocks_of


class Gaussian(NamedTuple):
    mean: Tensor
    mix: Tensor

    @property
    def moments(self) -> Moments:
        return Moments(self.mean, self.mix.T @ self.mix)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, len(self.mean), generator=generator, dtype=torch.float64) @ self.mix + self.mean


def gaussian(d: int, seed: int) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    mix, mean = torch.randn(d, d, generator=generator), torch.randn(d, generator=generator)
    return Gaussian(0.3 * mean.double(), (mix / d**0.5).double())


def kernel_truth(a: Gaussian, b: Gaussian) -> float:
    """The squared MMD: (x . y / d + 1)^3 compares the first three raw moments, which Gaussians have in closed form."""
    d = len(a.mean)
    (first, second, third), others = [
        (m, c + torch.outer(m, m), sum(torch.einsum(f"ij,k->{o}", c, m) for o in ("ijk", "ikj", "kij")) + cube)
        for m, c, cube in ((g.mean, g.moments.covariance, torch.einsum("i,j,k->ijk", *[g.mean] * 3)) for g in (a, b))
    ]
    gaps = [float((x - y).square().sum()) for x, y in zip((first, second, third), others, strict=True)]
    return 3 * gaps[0] / d + 3 * gaps[1] / d**2 + gaps[2] / d**3


class Simulated(NamedTuple):
    """Values and standard errors over repetitions, (repetitions,) each, and the truths."""

    fd: Tensor
    fd_corrected: Tensor
    fd_infinity: Tensor
    fd_se: Tensor
    kd: Tensor
    kd_se: Tensor
    fd_truth: float
    kd_truth: float


def simulate(a: Gaussian, b: Gaussian, n: int, m: int, repetitions: int) -> Simulated:
    """Draw n from a and m from b; the Frechet distance is from b's own moments."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    distance = partial(frechet_distance, b=b.moments)
    for _ in range(repetitions):
        x, y = a.draw(n, generator), b.draw(m, generator)
        found, kernel = frechet_estimates(blocks_of(x), distance), kernel_distance(x, y)
        values = [found[name].value for name in ("fd", "fd_corrected", "fd_infinity")]
        rows.append([*values, found["fd_corrected"].se, *kernel])
    columns = torch.tensor(rows, dtype=torch.float64).T
    return Simulated(*columns, frechet_distance(a.moments, b.moments), kernel_truth(a, b))


REPETITIONS = 300


@pytest.fixture(scope="module", params=[(8, 240, 200), (12, 200, 300)], ids=str)
def apart(request: pytest.FixtureRequest) -> Simulated:
    d, n, m = request.param
    return simulate(gaussian(d, 1), gaussian(d, 2), n, m, REPETITIONS)


@pytest.fixture(scope="module")
def equal() -> Simulated:
    return simulate(gaussian(8, 1), gaussian(8, 1), 300, 200, REPETITIONS)


def standard_error(values: Tensor) -> float:
    return float(values.std()) / len(values) ** 0.5


def test_intervals_cover_the_truth_at_their_rate(apart: Simulated) -> None:
    """Within 0.92 and 0.98, more than two standard errors of a share over so many repetitions."""
    jackknife = (apart.fd_corrected - apart.fd_truth).abs() <= student(JACKKNIFE_BLOCKS - 1).ppf(0.975) * apart.fd_se
    kernel = (apart.kd - apart.kd_truth).abs() <= 1.96 * apart.kd_se
    for covered in (jackknife, kernel):
        assert 0.92 <= float(covered.double().mean()) <= 0.98


@pytest.mark.parametrize(("metric", "truth"), [("fd_corrected", "fd_truth"), ("kd", "kd_truth")])
def test_intervals_over_three_repetitions_cover_the_truth_at_their_rate(
    apart: Simulated, metric: str, truth: str
) -> None:
    found = [interval(three.numpy()) for three in getattr(apart, metric).split(3)]
    covered = [i.low <= getattr(apart, truth) <= i.high for i in found]
    assert len(covered) == REPETITIONS // 3 and 0.90 <= sum(covered) / len(covered) <= 0.99


def test_the_frechet_distance_is_biased_and_its_corrections_are_not(apart: Simulated, equal: Simulated) -> None:
    for found in (apart, equal):
        bias = float(found.fd.mean()) - found.fd_truth
        assert bias > 4 * standard_error(found.fd)
        for corrected in (found.fd_corrected, found.fd_infinity):
            left = abs(float(corrected.mean()) - found.fd_truth)
            assert left < bias / 3 and left < 3 * standard_error(corrected)


def test_the_kernel_distance_has_no_bias(apart: Simulated, equal: Simulated) -> None:
    assert equal.kd_truth == 0 and (equal.kd < 0).any()
    for found in (apart, equal):
        assert abs(float(found.kd.mean()) - found.kd_truth) < 3 * standard_error(found.kd)


def error_over_scatter(errors: Tensor, values: Tensor) -> float:
    return float(errors.square().mean().sqrt() / values.std())


def test_errors_are_the_scatter_over_draws(apart: Simulated) -> None:
    """A standard deviation over so many draws is itself known to some 5%."""
    assert error_over_scatter(apart.fd_se, apart.fd_corrected) == pytest.approx(1, abs=0.12)
    assert error_over_scatter(apart.kd_se, apart.kd) == pytest.approx(1, abs=0.12)


def test_errors_are_rather_too_large_where_nothing_is_apart(equal: Simulated) -> None:
    """There a distance has no linear part; what is left of it is hard to tell from so few samples."""
    assert 1 < error_over_scatter(equal.fd_se, equal.fd_corrected) < 1.4
    assert 1 < error_over_scatter(equal.kd_se, equal.kd) < 1.4
    jackknife = equal.fd_corrected.abs() <= student(JACKKNIFE_BLOCKS - 1).ppf(0.975) * equal.fd_se
    for covered in (jackknife, equal.kd.abs() <= 1.96 * equal.kd_se):
        assert float(covered.double().mean()) >= 0.95
