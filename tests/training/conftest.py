"""Fixtures that the tests of training share."""

import pytest

from pipeline.training.trained import Trained
from tests.training.small import IMAGES, ROW, SPEC, train


@pytest.fixture(scope="session")
def whole() -> Trained:
    """A training of ROW without interruption."""
    return train(ROW, SPEC, IMAGES, 0)
