"""What all tests share."""

import pytest
import torch

from pipeline.common.environment import settle

settle()  # as in a stage

# One thread, as in a study: with two, each small operation would wait for the other thread on a busy machine.
torch.set_num_threads(1)

OF_DVC = {"tiny_study", "walked", "machines"}  # fixtures that run DVC


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that run DVC, so that `make test FAST=1` leaves them out."""
    for item in items:
        if OF_DVC & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.dvc)
