"""The inception score against torch-fidelity, and of a classifier that is sure."""

import pytest
import torch
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from pipeline.common.errors import StudyError
from pipeline.metrics.score import inception_score
from tests.metrics.small import features


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
