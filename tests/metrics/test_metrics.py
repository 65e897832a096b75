"""Metrics against scipy, torch-fidelity, naive loops and closed forms; their errors against scatter and coverage."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import linregress
from scipy.stats import t as student
from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from pipeline.common.errors import StudyError
from pipeline.metrics import tiles
from pipeline.metrics.estimate import JACKKNIFE_BLOCKS, BlockMoments, Estimate, Moments, moments
from pipeline.metrics.frechet import frechet_distance, frechet_estimates
from pipeline.metrics.kernel import kernel_distance, kernel_sums
from pipeline.metrics.neighbours import near_duplicates, nearest_squared, neighbour_metrics
from pipeline.metrics.score import inception_score
from pipeline.report.statistics import interval


def features(n: int, d: int, seed: int) -> Tensor:
    """Correlated, shifted, float64 (n, d)."""
    generator = torch.Generator().manual_seed(seed)
    mix, shift = torch.randn(d, d, generator=generator), torch.randn(d, generator=generator)
    return (torch.randn(n, d, generator=generator) @ mix / d**0.5 + 0.3 * shift).double()


def by_scipy(a: Tensor, b: Tensor) -> float:
    a, b = a.numpy(), b.numpy()
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cross = np.trace(sqrtm(first @ second)).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * cross


def by_eigenvalues(a: Tensor, b: Tensor) -> float:
    """Where covariances are singular, sqrtm loses digits; tr (A B)^(1/2) sums the roots of the eigenvalues of A B."""
    a, b = a.numpy(), b.numpy()
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values = np.sort(np.linalg.eigvals(first @ second).real)[-min(len(a), len(b)) + 1 :]
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second) - 2 * np.sqrt(values).sum()


def rotation(d: int) -> Tensor:
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(9))).Q


def test_moments_are_those_of_numpy() -> None:
    x = features(50, 6, 0)
    found = moments(x.float())
    assert found.mean.dtype == found.covariance.dtype == torch.float64
    np.testing.assert_allclose(found.mean, x.float().double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x.float().double().numpy(), rowvar=False), rtol=1e-10)
    np.testing.assert_allclose(found.root @ found.root, found.covariance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("n", "m", "d"), [(500, 500, 16), (500, 300, 16), (17, 40, 16), (40, 17, 1)])
def test_distance_is_that_of_scipy(n: int, m: int, d: int) -> None:
    a, b = features(n, d, 1), features(m, d, 2)
    expected = by_scipy(a, b) if d > 1 else float((a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(a, moments(b)) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-8)


@pytest.mark.filterwarnings("ignore:Matrix is singular")
@pytest.mark.parametrize(("n", "m"), [(10, 10), (10, 25), (31, 12), (10, 200), (200, 10), (2, 2)])
def test_fewer_features_than_dimensions(n: int, m: int) -> None:
    """By the singular values where both sets are small, by the eigenvalues where one is, or where moments are given."""
    a, b = features(n, 32, 1), features(m, 32, 2)
    expected = by_eigenvalues(a, b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(a, moments(b)) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(moments(a), b) == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(by_scipy(a, b), rel=1e-4)


@pytest.mark.parametrize("n", [300, 12])
def test_invariances(n: int) -> None:
    a, b = features(n, 16, 1), features(n, 16, 2)
    distance = frechet_distance(a, b)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-7)
    assert frechet_distance(a @ rotation(16), b @ rotation(16)) == pytest.approx(distance, rel=1e-7)
    assert frechet_distance(3 * a + 5, 3 * b + 5) == pytest.approx(9 * distance, rel=1e-7)
    shift = torch.linspace(0, 1, 16).double()
    assert frechet_distance(a, a + shift) == pytest.approx(float(shift.square().sum()), rel=1e-5)


def test_diagonal_gaussians_have_a_closed_form() -> None:
    means, stds = torch.tensor([[0, 1, 2], [1, 1, -1]]).double(), torch.tensor([[1, 2, 0], [3, 0.5, 1]]).double()
    a, b = (Moments(mean, std.square().diag()) for mean, std in zip(means, stds, strict=True))
    expected = 1 + 0 + 9 + 4 + 2.25 + 1
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)


def test_float32_features_are_measured_in_float64() -> None:
    """A mean far from 0 would otherwise swallow the covariance."""
    a, b = features(200, 8, 1), features(200, 8, 2)
    far = [(x + 300).float() for x in (a, b)]
    assert frechet_distance(*far) == pytest.approx(by_scipy(*(x.double() for x in far)), rel=1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    bad = features(20, 4, 0)
    bad[3, 1] = bad[7, 2] = bad[7, 3] = value
    for pair in ((bad, features(20, 4, 1)), (features(20, 4, 1), bad)):
        with pytest.raises(StudyError, match="2 of 20 features are not finite"):
            frechet_distance(*pair)


@pytest.mark.parametrize("wrong", [torch.zeros(1, 4), torch.zeros(0, 4), torch.zeros(4), torch.zeros(3, 2, 4)])
def test_features_of_a_wrong_shape_are_refused(wrong: Tensor) -> None:
    for pair in ((wrong, features(20, 4, 1)), (features(20, 4, 1), wrong), (wrong, wrong)):
        with pytest.raises(StudyError, match=r"n >= 2"):
            frechet_distance(*pair)


@pytest.mark.parametrize("n", [3, 50])
def test_different_dimensions_are_refused(n: int) -> None:
    with pytest.raises(StudyError, match="of 4 and of 5 dimensions"):
        frechet_distance(features(n, 4, 0), features(n, 5, 0))


def blocks_of(x: Tensor, centre: Tensor | None = None, blocks: int = JACKKNIFE_BLOCKS) -> BlockMoments:
    found = BlockMoments(len(x), torch.zeros(x.shape[1]) if centre is None else centre, blocks)
    found.add(x)
    return found


def same_moments(found: Moments, x: Tensor, atol: float = 1e-10) -> None:
    np.testing.assert_allclose(found.mean, x.numpy().mean(0), rtol=0, atol=atol)
    np.testing.assert_allclose(found.covariance, np.cov(x.numpy(), rowvar=False), rtol=0, atol=atol)


@pytest.mark.parametrize("n", [40, 47, 59, 1000])
def test_block_moments_are_those_of_numpy(n: int) -> None:
    """Blocks lie one behind the other, and differ by one feature at most."""
    x = features(n, 5, 0)
    found, parts = blocks_of(x), [list(part) for part in np.array_split(np.arange(n), JACKKNIFE_BLOCKS)]
    owner = torch.arange(n) * JACKKNIFE_BLOCKS // n
    same_moments(found.all(), x)
    assert sorted(found.counts.tolist()) == sorted(len(part) for part in parts)
    for block in (0, 7, JACKKNIFE_BLOCKS - 1):
        same_moments(found.without(block), x[owner != block])
    same_moments(found.group(4, 8), x[(owner >= 4) & (owner < 12)])
    same_moments(found.group(0, JACKKNIFE_BLOCKS), x)


@pytest.mark.parametrize("cut", [1, 7, 100, 333, 999])
def test_block_moments_do_not_depend_on_how_features_come(cut: int) -> None:
    x = features(1000, 6, 1).float()
    found, whole = BlockMoments(1000, torch.zeros(6)), blocks_of(x)
    for part in x.split(cut):
        found.add(part)
    for block in range(JACKKNIFE_BLOCKS):
        for a, b in zip(vars(found.without(block)).values(), vars(whole.without(block)).values(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


def test_a_centre_keeps_the_digits_of_features_far_from_zero() -> None:
    x = features(400, 4, 1) + 1e6
    same_moments(blocks_of(x, x.mean(0) + 0.1).all(), x, atol=1e-8)
    assert float((blocks_of(x).all().covariance - x.T.cov()).abs().max()) > 1e-5


def test_too_few_samples_for_the_jackknife_are_refused() -> None:
    assert blocks_of(features(40, 3, 0)).all().mean.shape == (3,)
    with pytest.raises(StudyError, match="39 samples are too few for a 20-block jackknife; at least 40"):
        BlockMoments(39, torch.zeros(3))


def test_block_moments_of_features_that_are_not_finite_are_refused() -> None:
    bad, found = features(40, 3, 0), BlockMoments(40, torch.zeros(3))
    found.add(bad[:30])
    bad[33, 1] = bad[35, 2] = math.nan
    with pytest.raises(StudyError, match="2 of 10 features are not finite"):
        found.add(bad[30:])


def test_jackknife_of_a_mean_is_the_standard_error_of_block_means() -> None:
    x = features(400, 1, 3)
    found = frechet_estimates(blocks_of(x), lambda own: float(own.mean))
    expected = float(x.reshape(JACKKNIFE_BLOCKS, -1).mean(1).std()) / JACKKNIFE_BLOCKS**0.5
    assert found["fd"] == pytest.approx((float(x.mean()), expected), rel=1e-9)
    assert found["fd_corrected"] == pytest.approx((float(x.mean()), expected), rel=1e-9)
    single = frechet_estimates(blocks_of(x, blocks=200), lambda own: float(own.mean))["fd"].se
    assert single == pytest.approx(float(x.std()) / len(x) ** 0.5, rel=0.1)


class Counts:
    """In the place of BlockMoments: a set's moments are no more than its count."""

    blocks, count = JACKKNIFE_BLOCKS, 1000

    def all(self) -> float:
        return self.count

    def without(self, block: int) -> float:
        return self.count * (1 - 1 / self.blocks)

    def group(self, first: int, blocks: int) -> float:
        assert first >= 0 and first + blocks <= self.blocks
        return self.count * blocks / self.blocks


def test_a_bias_in_proportion_to_one_over_n_is_removed_exactly() -> None:
    found = frechet_estimates(Counts(), lambda n: 3 + 50 / n)
    assert found["fd"] == pytest.approx((3.05, 0))
    assert found["fd_corrected"] == pytest.approx((3, 0))
    assert found["fd_infinity"] == pytest.approx((3, 0), abs=1e-9)


def test_the_extrapolation_is_a_least_squares_line() -> None:
    sizes = [200, 250, 300, 400, 500, 1000]
    expected = linregress([1 / n for n in sizes], [3 + 50 / n + 900 / n**1.5 for n in sizes])
    found = frechet_estimates(Counts(), lambda n: 3 + 50 / n + 900 / n**1.5)["fd_infinity"]
    assert found == pytest.approx((expected.intercept, expected.intercept_stderr), rel=1e-7)


def by_loops(x: Tensor, y: Tensor) -> float:
    def k(a: Tensor, b: Tensor) -> float:
        return (float(a.double() @ b.double()) / x.shape[1] + 1) ** 3

    def within(z: Tensor) -> float:
        return sum(k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j) / (len(z) * (len(z) - 1))

    return within(x) + within(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


@pytest.fixture(params=[7, 1024])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(tiles, "TILE", request.param)
    return request.param


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize(("n", "m"), [(20, 20), (20, 31), (15, 2), (14, 21)])
def test_kernel_distance_is_that_of_loops(n: int, m: int) -> None:
    x, y = features(n, 4, 1).float(), features(m, 4, 2).float()
    found = kernel_distance(x, y)
    assert found.value == pytest.approx(by_loops(x, y), rel=1e-10)
    assert kernel_distance(x, y, kernel_sums(y)) == found
    assert kernel_distance(y, x) == pytest.approx(found, rel=1e-9)
    assert kernel_distance(x @ rotation(4).float(), y @ rotation(4).float()).value == pytest.approx(
        found.value, rel=1e-4
    )


@pytest.mark.usefixtures("tile")
def test_kernel_distance_is_that_of_torch_fidelity() -> None:
    x, y = features(60, 5, 1), features(60, 5, 2)
    theirs = kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=60, verbose=False)
    assert kernel_distance(x, y).value == pytest.approx(theirs[KEY_METRIC_KID_MEAN], rel=1e-9)


def test_kernel_distance_needs_two_of_each() -> None:
    for pair in ((features(1, 3, 0), features(5, 3, 0)), (features(5, 3, 0), features(1, 3, 0))):
        with pytest.raises(StudyError, match="1 samples are too few for a kernel distance; at least 2"):
            kernel_distance(*pair)


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


REPETITIONS = 399


@pytest.fixture(scope="module", params=[(8, 400, 300), (16, 300, 500)], ids=str)
def apart(request: pytest.FixtureRequest) -> Simulated:
    d, n, m = request.param
    return simulate(gaussian(d, 1), gaussian(d, 2), n, m, REPETITIONS)


@pytest.fixture(scope="module")
def equal() -> Simulated:
    return simulate(gaussian(8, 1), gaussian(8, 1), 300, 200, REPETITIONS)


def standard_error(values: Tensor) -> float:
    return float(values.std()) / len(values) ** 0.5


def test_intervals_cover_the_truth_at_their_rate(apart: Simulated) -> None:
    """Within 0.92 and 0.98, some three standard errors of a share over so many repetitions."""
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


def naive_distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize(("n", "m", "k"), [(30, 30, 1), (30, 41, 5), (8, 7, 7), (14, 21, 3)])
def test_nearest_are_those_of_all_distances(n: int, m: int, k: int) -> None:
    x, y = features(n, 4, 1), features(m, 4, 2)
    expected = naive_distances(x, y).square().sort(1).values[:, :k]
    np.testing.assert_allclose(nearest_squared(x, y, k), expected, rtol=1e-9, atol=1e-12)
    own = naive_distances(y, y).square().fill_diagonal_(torch.inf).sort(1).values[:, : k - 1]
    if k > 1:
        np.testing.assert_allclose(nearest_squared(y, neighbours=k - 1), own, rtol=1e-9, atol=1e-12)


def test_a_twin_is_a_neighbour_but_a_feature_is_not_its_own() -> None:
    x = features(10, 4, 1)
    assert (nearest_squared(x) > 1e-6).all()
    assert nearest_squared(torch.cat([x, x])).abs().max() < 1e-12
    assert nearest_squared(x, x).abs().max() < 1e-12


@pytest.mark.parametrize("ask", [lambda x: nearest_squared(x, neighbours=5), lambda x: nearest_squared(x, x, 6)])
def test_too_few_neighbours_are_refused(ask: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(StudyError, match=r"5 samples are too few for . neighbours each"):
        ask(features(5, 3, 0))


def naive_neighbour_metrics(x: Tensor, y: Tensor) -> dict[str, float]:
    across = naive_distances(x, y)
    own, real = naive_distances(x, x).sort(1).values, naive_distances(y, y).sort(1).values
    return {
        "precision": (across <= real[:, 3]).any(1).double().mean(),
        "recall": (across <= own[:, 3, None]).any(0).double().mean(),
        "density": (across <= real[:, 5]).double().sum(1).mean() / 5,
        "coverage": (across <= real[:, 5]).any(0).double().mean(),
    }


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize(("n", "d", "scale"), [(40, 3, 1), (40, 3, 0.3), (90, 6, 1.5), (7, 2, 1)])
def test_neighbour_metrics_are_those_of_all_distances(n: int, d: int, scale: float) -> None:
    x, y = scale * features(n, d, 1), features(n, d, 2)
    found, expected = neighbour_metrics(x, y), naive_neighbour_metrics(x, y)
    assert {name: e.value for name, e in found.items()} == pytest.approx({k: float(v) for k, v in expected.items()})
    assert neighbour_metrics(x, y, nearest_squared(y, neighbours=5)) == found
    p = found["precision"].value
    assert found["precision"].se == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)), abs=1e-12)


def test_neighbour_metrics_are_invariant_and_precision_turns_into_recall() -> None:
    x, y = features(80, 4, 1), features(80, 4, 2)
    found = neighbour_metrics(x, y)
    assert 0.05 < found["precision"].value < 0.95 and 0.05 < found["recall"].value < 0.95
    changed = [(s @ rotation(4)) * 3 + 5 for s in (x.flip(0), y.flip(0))]
    assert all(e == pytest.approx(found[name], rel=1e-12) for name, e in neighbour_metrics(*changed).items())
    other = neighbour_metrics(y, x)
    assert other["precision"].value == found["recall"].value and other["recall"].value == found["precision"].value


def test_equal_sets_are_covered_and_far_ones_are_not() -> None:
    x = features(50, 4, 1)
    assert all(neighbour_metrics(x, x)[name].value == 1 for name in ("precision", "recall", "coverage"))
    assert all(e == Estimate(0, 0) for e in neighbour_metrics(x, x + 1000).values())


def test_unequal_counts_are_refused() -> None:
    with pytest.raises(StudyError, match="precision and recall need equal counts, not 20 and 21 features"):
        neighbour_metrics(features(20, 3, 0), features(21, 3, 1))


def test_near_duplicates_are_copies_and_what_chance_gives() -> None:
    pool = features(4000, 4, 1)
    real, fresh = pool[:2000], pool[2000:]
    threshold = float(nearest_squared(real).quantile(0.05))
    assert near_duplicates(real[:100], real, threshold) == Estimate(1, 0)
    by_chance = near_duplicates(fresh, real, threshold)
    assert by_chance.value == pytest.approx(0.05, abs=4 * by_chance.se) and 0.003 < by_chance.se < 0.007
    half = torch.cat([real[:1000], fresh[:1000] + 100])
    assert near_duplicates(half, real, threshold).value == 0.5


def test_copies_are_near_duplicates_where_real_images_are_copies_of_each_other() -> None:
    real = features(100, 4, 1).repeat_interleave(2, 0)
    threshold = float(nearest_squared(real).quantile(0.05))
    assert near_duplicates(real[:50], real, threshold).value == 1
    assert near_duplicates(real[:50] + 0.1, real, threshold).value == 0


@pytest.mark.parametrize("n", [10, 97, 500])
def test_inception_score_is_that_of_torch_fidelity(n: int) -> None:
    logits = 2 * features(n, 7, 1)
    theirs = isc_features_to_metric(logits, shuffle=False)
    found = inception_score(logits.float())
    assert found.value == pytest.approx(theirs[KEY_METRIC_ISC_MEAN], rel=1e-6)
    assert found.se == pytest.approx(theirs[KEY_METRIC_ISC_STD] / 3, rel=1e-4, abs=1e-12)
    assert inception_score(logits + 1000).value == pytest.approx(inception_score(logits).value, rel=1e-9)


def test_inception_score_of_a_sure_classifier_is_the_number_of_classes() -> None:
    """Also where probabilities are too small for a number: their logarithms are not."""
    sure = torch.eye(5).repeat(20, 1)
    for scale in (100, 2000):
        assert inception_score(scale * sure) == pytest.approx((5, 0), abs=1e-6)
    assert inception_score(torch.zeros(50, 5)) == pytest.approx((1, 0))
    with pytest.raises(StudyError, match="9 samples are too few for the score's 10 splits"):
        inception_score(torch.zeros(9, 5))
