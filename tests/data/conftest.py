"""What several of the data's tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.small import folder_of, zip_of

PACKERS = {
    "folder": lambda tmp_path, files: folder_of(tmp_path / "set", files),
    "zip": lambda tmp_path, files: zip_of(tmp_path / "set.zip", files),
}


@pytest.fixture(params=PACKERS)
def pack(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    """Packs files by name into a folder or into a zip: what holds for one holds for the other."""
    return lambda files: PACKERS[request.param](tmp_path, files)
