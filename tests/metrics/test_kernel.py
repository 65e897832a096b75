"""The kernel distance against naive loops and torch-fidelity."""

import pytest
from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from pipeline.common.errors import StudyError
from pipeline.metrics.kernel import kernel_distance, kernel_sums
from tests.metrics.small import features, rotation


def by_loops(x: Tensor, y: Tensor) -> float:
    def k(a: Tensor, b: Tensor) -> float:
        return (float(a.double() @ b.double()) / x.shape[1] + 1) ** 3

    def within(z: Tensor) -> float:
        return sum(k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j) / (len(z) * (len(z) - 1))

    return within(x) + within(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


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
