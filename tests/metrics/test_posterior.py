"""Scores of posterior samples: closed forms, plain loops, and what a perfect sampler scores."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from pipeline.metrics.posterior import (
    DIRECTIONS,
    RANKED,
    coverage,
    directions,
    energy_distance,
    energy_score,
    mean_error,
    misfit,
    paired_distance,
    psnr,
    ranks,
    sliced_w2,
    std_error,
)

F64 = torch.float64
dimensions = pytest.mark.parametrize("d", [1, 2, 5])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def norm(x: Tensor) -> float:
    return math.sqrt(float(x.square().sum()))


@dimensions
def test_directions_are_unit_vectors_that_a_name_determines(d: int) -> None:
    found = directions(d, 200)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(200, dtype=F64))
    assert found.equal(directions(d, 200))
    if d > 1:  # uniform on the sphere: E[u u^T] = I / d
        torch.testing.assert_close(found.T @ found / 200, torch.eye(d, dtype=F64) / d, rtol=0, atol=0.1)


@dimensions
def test_a_shift_has_the_root_mean_square_of_its_projections(d: int) -> None:
    draws, v = normal(3, 10, d), normal(d, seed=1)
    expected = math.sqrt(sum(float(u @ v) ** 2 for u in directions(d, DIRECTIONS)) / DIRECTIONS)
    torch.testing.assert_close(sliced_w2(draws + v, draws), torch.full((3,), expected, dtype=F64))
    torch.testing.assert_close(sliced_w2(draws, draws + v), torch.full((3,), expected, dtype=F64))


@pytest.mark.parametrize("k", [1, 2, 8])
def test_repeated_draws_are_at_no_distance_in_any_order(k: int) -> None:
    draws = normal(2, 7, 3)
    repeated = draws.repeat(1, k, 1)[:, torch.randperm(7 * k, generator=torch.Generator().manual_seed(2))]
    torch.testing.assert_close(sliced_w2(draws, repeated), torch.zeros(2, dtype=F64))


@pytest.mark.parametrize("k", [1, 4])
def test_the_sliced_distance_is_that_of_the_quantile_functions(k: int) -> None:
    """Their squared difference is integrated over a grid of which every step has one value of each."""
    draws, exact, squares = normal(2, 6, 3), 2 * normal(2, 6 * k, 3, seed=1) + 1, []
    for u in directions(3, DIRECTIONS):
        for p in range(2):
            own, other = sorted((draws[p] @ u).tolist()), sorted((exact[p] @ u).tolist())
            squares.append(sum((own[i // k] - other[i]) ** 2 for i in range(6 * k)) / (6 * k))
    expected = torch.tensor(squares, dtype=F64).reshape(DIRECTIONS, 2).mean(0).sqrt()
    torch.testing.assert_close(sliced_w2(draws, exact), expected)


def test_the_sliced_distance_of_gaussians_is_that_of_their_stds() -> None:
    """W2 of N(0, 1) and N(0, 4) along every direction is 1."""
    found = sliced_w2(normal(4, 4000, 2), 2 * normal(4, 8000, 2, seed=1))
    torch.testing.assert_close(found, torch.ones(4, dtype=F64), rtol=0.06, atol=0)


def mean_distance(a: Tensor, b: Tensor, different: bool) -> float:
    pairs = [norm(x - y) for i, x in enumerate(a) for j, y in enumerate(b) if not different or i != j]
    return sum(pairs) / len(pairs)


@dimensions
def test_energies_are_those_of_a_plain_loop(d: int) -> None:
    draws, exact, truth = normal(2, 5, d), normal(2, 30, d, seed=1), normal(2, d, seed=2)
    for p in range(2):
        within = mean_distance(draws[p], draws[p], True)
        across = mean_distance(draws[p], exact[p], False)
        expected = 2 * across - within - mean_distance(exact[p], exact[p], True)
        assert float(energy_distance(draws, exact)[p]) == pytest.approx(expected, abs=1e-6)
        expected = mean_distance(draws[p], truth[p : p + 1], False) - within / 2
        assert float(energy_score(draws, truth)[p]) == pytest.approx(expected, abs=1e-6)


def test_point_masses_are_at_twice_their_distance_and_score_once() -> None:
    at = torch.tensor([3.0, 4.0], dtype=F64)
    one, other = torch.zeros(1, 40, 2, dtype=F64), at.expand(1, 80, 2)
    assert float(energy_distance(one, other)) == pytest.approx(10, abs=1e-6)
    assert float(energy_score(one, at[None])) == pytest.approx(5, abs=1e-6)


def test_the_energy_distance_is_unbiased() -> None:
    """0 on average for one distribution; of N(0, 1) and N(m, 1) 2 E|m + sqrt(2) n| - 4 / sqrt(pi)."""
    draws, exact, m = normal(4000, 4, 1), normal(4000, 8, 1, seed=1), 1.0
    found = energy_distance(draws, exact)
    assert abs(float(found.mean())) < 4 * float(found.std()) / math.sqrt(4000)
    assert float(found.min()) < 0
    folded = 2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)
    found = energy_distance(draws + m, exact)
    expected = 2 * folded - 4 / math.sqrt(math.pi)
    assert float(found.mean()) == pytest.approx(expected, abs=4 * float(found.std()) / math.sqrt(4000))


@pytest.mark.parametrize(
    "wrong",
    [lambda x: x + 0.5, lambda x: 0.5 * x, lambda x: 2 * x, lambda x: 0 * x],
    ids=["shifted", "halved", "doubled", "constant"],
)
def test_exact_draws_have_the_lowest_energy_score(wrong: Callable[[Tensor], Tensor]) -> None:
    """With 2 draws each, too: the score is unbiased."""
    for count in (2, 16):
        draws, truth = normal(6000, count, 2), normal(6000, 2, seed=1)
        worse = energy_score(wrong(draws), truth) - energy_score(draws, truth)
        assert float(worse.mean()) > 3 * float(worse.std()) / math.sqrt(6000)


def test_errors_of_moments_are_root_mean_squares_over_dimensions() -> None:
    draws = torch.tensor([[[1.0, 0.0], [3.0, 0.0]]])  # mean (2, 0), std (sqrt 2, 0)
    mean, std = torch.tensor([[2.0, 4.0]], dtype=F64), torch.tensor([[math.sqrt(2), 1.0]], dtype=F64)
    assert float(mean_error(draws, mean)) == pytest.approx(math.sqrt(8))
    assert float(std_error(draws, std)) == pytest.approx(math.sqrt(1 / 2))


@dimensions
def test_ranks_of_the_truth_are_uniform_among_exact_draws(d: int) -> None:
    found = ranks(normal(2000, 9, d), normal(2000, d, seed=1))
    assert found.shape == (2000, RANKED) and (found > 0).all() and (found < 1).all()
    for column in found.T:
        assert kstest(column.numpy(), "uniform").pvalue > 1e-3
    for level in (0.5, 0.9):
        assert float(coverage(found, level).mean()) == pytest.approx(level, abs=0.04)


def test_ranks_among_equal_draws_are_uniform_too() -> None:
    """Finite data: draws and the truth are the same two points."""
    share = torch.rand(3000, 8, 1, generator=torch.Generator().manual_seed(0)) < 0.3
    found = ranks(share[:, 1:].double(), share[:, 0].double())
    assert kstest(found[:, 0].numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("scale", "low", "high"), [(0.3, 0.1, 0.4), (3.0, 0.95, 1.0)], ids=["narrow", "wide"])
def test_draws_that_are_too_narrow_or_too_wide_show_in_the_coverage(scale: float, low: float, high: float) -> None:
    found = ranks(scale * normal(1000, 99, 2), normal(1000, 2, seed=1))
    assert low < float(coverage(found, 0.9).mean()) <= high


def test_a_truth_beyond_all_draws_has_an_extreme_rank() -> None:
    found = ranks(torch.zeros(1, 9, 1), torch.ones(1, 1))
    assert ((found < 0.1) | (found > 0.9)).all() and float(coverage(found, 0.5)) == 0


def test_coverage_counts_the_central_interval() -> None:
    found = torch.tensor([[0.1, 0.3, 0.6, 0.9], [0.5, 0.5, 0.5, 0.5]], dtype=F64)
    assert coverage(found, 0.5).tolist() == [0.5, 1.0]
    assert coverage(found, 0.9).tolist() == [1.0, 1.0]


def test_the_misfit_of_the_truth_is_one() -> None:
    std, measured = 0.2, normal(200, 1, 50).expand(-1, 3, -1)
    y = measured[:, 0] + std * normal(200, 50, seed=1)
    found = misfit(measured, y, std)
    assert float(found.mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / 50 / 200))
    assert float(misfit(torch.tensor([[[1.0], [3.0]]]), torch.zeros(1, 1), 0.5)) == pytest.approx((1 + 9) / 2 / 0.25)


def test_psnr_is_of_the_mean_in_the_range_of_pixels() -> None:
    truth = torch.zeros(1, 4, dtype=F64)
    assert float(psnr(torch.tensor([[[0.2] * 4, [0.0] * 4]]), truth)) == pytest.approx(
        10 * math.log10(4 / 0.01), rel=1e-6
    )
    assert float(psnr(torch.full((1, 2, 4), 2.0), truth)) == pytest.approx(0)
    assert float(psnr(truth[:, None].expand(-1, 3, -1), truth)) == math.inf


def test_the_paired_distance_is_per_root_of_the_features() -> None:
    features = torch.tensor([[[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]])
    assert float(paired_distance(features, torch.zeros(1, 4))) == pytest.approx((5 + 1) / 2 / 2)


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "sliced_w2": lambda x: sliced_w2(x, normal(2, 60, 3, seed=1)),
    "energy_distance": lambda x: energy_distance(x, normal(2, 60, 3, seed=1)),
    "energy_score": lambda x: energy_score(x, normal(2, 3, seed=1)),
    "mean_error": lambda x: mean_error(x, normal(2, 3, seed=1)),
    "std_error": lambda x: std_error(x, normal(2, 3, seed=1)),
    "coverage": lambda x: coverage(ranks(x, normal(2, 3, seed=1)), 0.5),
    "misfit": lambda x: misfit(x, normal(2, 3, seed=1), 0.5),
    "psnr": lambda x: psnr(x, normal(2, 3, seed=1)),
    "paired_distance": lambda x: paired_distance(x, normal(2, 3, seed=1)),
}
scores = pytest.mark.parametrize("name", SCORES)


@scores
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e200])
@pytest.mark.parametrize("count", [4, 30])  # torch.cdist takes another way from 26 on
def test_draws_that_overflow_are_no_error_and_spoil_no_other_problem(name: str, value: float, count: int) -> None:
    draws = normal(2, count, 3)
    if name == "sliced_w2":
        draws = draws[:, : count // 15 * 15 or 4]
    alone = SCORES[name](draws)
    draws[0, 0, 0] = value
    found = SCORES[name](draws)
    assert found.shape == (2,)
    torch.testing.assert_close(found[1], alone[1], rtol=1e-9, atol=1e-9)
    if name not in ("coverage", "psnr"):
        assert not float(found[0]) < 1e50


@scores
def test_scores_are_of_draws_in_any_order_and_precision(name: str) -> None:
    draws = normal(2, 30, 3).float()
    found = SCORES[name](draws)
    assert found.dtype == F64
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(SCORES[name](draws[:, order]), found, rtol=1e-9, atol=1e-6)
