"""What several of the metrics' tests share."""

import pytest

from pipeline.metrics import tiles


@pytest.fixture(params=[7, 1024])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(tiles, "TILE", request.param)
    return request.param
