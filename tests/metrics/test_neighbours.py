"""Metrics of nearest neighbours against all distances, and near-duplicates against chance."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.metrics.estimate import Estimate
from pipeline.metrics.neighbours import near_duplicates, nearest_squared, neighbour_metrics
from tests.metrics.small import features, rotation


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
