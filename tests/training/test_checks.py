"""Rows that do not go with the data are refused before anything is trained."""

from typing import Any

import pytest
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.training.checks import check_models
from pipeline.training.row import Model
from tests.training.small import DATA, IMAGES, LABELS, ROW, SMALL, SPEC, train


@pytest.mark.parametrize(
    ("choices", "labels", "said"),
    [
        ({"labels": "classes"}, None, "^labels: classes needs a data set with classes"),
        ({"classifier_images": 100}, None, "^classifier_images: a classifier needs a data set with classes"),
        ({"batch": 31}, LABELS, "^batch: 31, but the data set has 30 examples; use at most as many"),
        ({"batch": 16, "pairs": "reflow", "reflow_pairs": 8}, LABELS, "^batch: 16, but reflow_pairs is 8; lower batch"),
    ],
    ids=str,
)
def test_data_that_a_row_cannot_use_are_refused(choices: dict[str, Any], labels: Tensor | None, said: str) -> None:
    flow = {"parametrization": "flow", "noise": "flow_uniform"} if "pairs" in choices else {}
    row = Model(**SMALL | flow | choices)
    with pytest.raises(StudyError, match=said):
        train(row, SPEC, IMAGES, 0, labels=labels)


def test_rows_that_do_not_fit_the_data_are_refused_by_name() -> None:
    rows = {"good": ROW, "dit": ROW.model_copy(update={"network": "dit", "patch": 3})}
    with pytest.raises(StudyError, match=r"^models\.dit\.patch: patches of 3 x 3 do not tile images of 4 x 4"):
        check_models(rows, DATA, IMAGES, LABELS)
    rows["dit"] = ROW.model_copy(update={"batch": 31})
    with pytest.raises(StudyError, match=r"^models\.dit\.batch: 31, but the data set has 30"):
        check_models(rows, DATA, IMAGES, LABELS)
    check_models({"good": ROW}, DATA, IMAGES, None)
