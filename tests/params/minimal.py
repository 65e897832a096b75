"""What the tests of study files share: a minimal study, its rows, and the line that refuses it."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import StudyError
from pipeline.common.scalars import dump
from pipeline.common.text import LONGEST_LINE
from pipeline.params.resolve import resolve
from pipeline.params.study import read_study

MINIMAL = {"study": {"name": "t"}, "models": {"edm": {}}, "curves": {"edm": {"model": "edm"}}, "sets": {}}
FLOW = {"parametrization": "flow", "noise": "flow_uniform"}
REFLOW = {"base": "flow", "pairs": "reflow"}
CLASSES = {"labels": "classes"}


def resolved(tmp_path: Path, **sections: Any) -> dict[str, Any]:
    """The files that `resolve` writes for the minimal study with some sections replaced, as read from JSON."""
    path = tmp_path / "params.yaml"
    path.write_text(dump(MINIMAL | sections, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:  # choices without effect, whose search takes longest, have own tests
        patch.setattr("pipeline.params.resolve._warnings", lambda *of, **more: ())
        return json.loads(json.dumps(resolve(read_study(path)).files(), allow_nan=False))


def models(**rows: Any) -> dict[str, Any]:
    return {"models": {"edm": {}, **rows}}


def curves(**rows: Any) -> dict[str, Any]:
    return {"curves": {"edm": {"model": "edm"}, **rows}}


def curve(**keys: Any) -> dict[str, Any]:
    return curves(x={"model": "edm", **keys})


def error(tmp_path: Path, text: str | bytes | None) -> str:
    """The one line that refuses a study file of this text."""
    path = tmp_path / "params.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StudyError) as caught:
        resolve(read_study(path))
    message = str(caught.value)
    assert message.isprintable() and len(message) <= LONGEST_LINE, message
    return message.replace(f"{tmp_path}/", "")


def refusal(tmp_path: Path, **sections: Any) -> str:
    """The one line that refuses the minimal study with some sections replaced."""
    return error(tmp_path, dump(MINIMAL | sections, sort_keys=False, allow_unicode=True))
