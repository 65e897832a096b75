"""Fixtures that tests of measured curves share."""

from functools import partial
from pathlib import Path

import pytest

from pipeline.common.threads import side_by_side
from tests.evaluation.small import Trained, make


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model of two seeds, an extractor and a reference, all trained briefly on one thread."""
    [made] = side_by_side([partial(make, tmp_path_factory.mktemp("trained"))])
    return made


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
