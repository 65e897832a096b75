"""The stages that `check` says would run are those that DVC runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from pipeline.commands.restore import restore
from pipeline.commands.stale import AFTER, ANOTHER, CHANGED, CODE, COMMAND, INPUT, MISSING, NEW, ROW, Reason, reasons
from pipeline.common.errors import StudyError

pytestmark = pytest.mark.dvc

GRAPH = """
stages:
  resolve:
    wdir: ${study.root}
    cmd: python toy.py
    always_changed: true
    deps: ["params.yaml", toy.py]
    outs:
      - "build/${study.name}/rows":
          persist: true
  train:
    foreach: ${models}
    do:
      cmd: >-
        mkdir -p "build/${study.name}/models" &&
        cp "build/${study.name}/rows/models/${key}.json" "build/${study.name}/models/${key}"
      deps:
        - "build/${study.name}/rows/models/${key}.json"
        - "build/${study.name}/rows/code/train.json"
      outs: ["build/${study.name}/models/${key}": {persist: true}]
  grids:
    cmd: python toy.py grids
    deps: ["build/${study.name}/rows/grids.json", "build/${study.name}/models"]
    outs: ["build/${study.name}/grids": {persist: true}]
  sweep:
    foreach: ${curves}
    do:
      cmd: cat "build/${study.name}/models/${item.model}" > "build/${study.name}/curve_${key}"
      deps: ["build/${study.name}/models/${item.model}", "build/${study.name}/grids/${item.model}.json"]
      outs: ["build/${study.name}/curve_${key}": {persist: true}]
  report:
    cmd: ls "build/${study.name}/rows/models" > report.txt
    deps: ["build/${study.name}/rows/models", "build/${study.name}/rows/code/report.json"]
    metrics:
      - report.txt:
          cache: false
          persist: true
"""
TOY = """
import json, pathlib, sys, yaml
study = yaml.safe_load(pathlib.Path("params.yaml").read_text())
rows, files = pathlib.Path("build/t t/rows"), json.loads(pathlib.Path("files.json").read_text())
if sys.argv[1:] == ["grids"]:
    rows, files = pathlib.Path("build/t t/grids"), json.loads((rows / "grids.json").read_text())
for name, content in files.items():
    (rows / f"{name}.json").parent.mkdir(parents=True, exist_ok=True)
    (rows / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\\n")
"""
STUDY: dict[str, Any] = {
    "study": {"name": "t t", "root": "."},
    "models": {"a": {"lr": 1, "é": "ü"}, "b": {"lr": 2}},
    "curves": {"x": {"model": "a"}, "y": {"model": "b"}},
}
ALL = {"train@a", "train@b", "grids", "sweep@x", "sweep@y", "report"}


class Toy:
    """A repository of trivial stages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"DVC_NO_ANALYTICS": "1", "PATH": f"{Path(sys.executable).parent}:{os.defpath}"}
        for name, text in (("dvc.yaml", GRAPH), ("toy.py", TOY)):
            (folder / name).write_text(text)
        self.study: dict[str, Any] = json.loads(json.dumps(STUDY))
        self.code = {"train": 1, "report": 1}
        self.dvc("init", "--no-scm", "--quiet")

    def dvc(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def files(self) -> dict[str, Any]:
        """What `resolve` writes."""
        rows = {f"models/{name}": row for name, row in self.study["models"].items()}
        code = {f"code/{stage}": version for stage, version in self.code.items()}
        return rows | code | {"grids": {name: {} for name in self.study["models"]}}

    def write(self) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.study, sort_keys=False))
        (self.folder / "files.json").write_text(json.dumps(self.files()))

    def reasons(self) -> dict[str, Reason]:
        found = reasons(Path("dvc.yaml"), Path("build/t t/rows"), self.files())
        return {stage: reason for stage, reason in found.items() if reason}

    def ran(self) -> set[str]:
        with Repo() as repo:
            restore(repo, Path("dvc.yaml"))
        return set(re.findall(r"Running stage '(.*?)'", self.dvc("repro"))) - {"resolve"}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    monkeypatch.chdir(tmp_path)
    found = Toy(tmp_path)
    found.write()
    return found


def test_what_would_run_is_what_dvc_runs(toy: Toy, tmp_path: Path) -> None:
    """Through the life of a study: from nothing to all, nothing, a new row, a changed row, code, a lost output."""
    before = sorted(tmp_path.rglob("*"))
    found = toy.reasons()
    assert {reason.how for reason in found.values()} == {NEW}
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and ".dvc" not in path.parts] == []
    assert set(found) == toy.ran() == ALL
    assert toy.reasons() == {}

    toy.study["models"] |= {"c": {"lr": 3}}
    toy.study["models"]["b"]["lr"] = 4
    toy.write()
    found = toy.reasons()
    assert found == {
        "train@b": Reason(CHANGED, ROW),
        "train@c": Reason(NEW),
        "grids": Reason(CHANGED, ROW),
        "sweep@y": Reason(AFTER, "train@b"),
        "report": Reason(CHANGED, ROW),
    }, "and not sweep@x, whose file in the folder of grids stays as it is"
    assert toy.ran() == set(found)

    toy.code["report"] = 2
    toy.write()
    assert toy.reasons() == {"report": Reason(CHANGED, CODE)}
    assert toy.ran() == {"report"}

    (tmp_path / "build/t t/models/a").unlink()
    (tmp_path / "build/t t/grids/a.json").unlink()
    assert toy.reasons() == {} and toy.ran() == set()  # DVC has both in its cache
    assert (tmp_path / "build/t t/models/a").exists() and (tmp_path / "build/t t/grids/a.json").exists()
    (tmp_path / "report.txt").unlink()
    shutil.rmtree(tmp_path / "build/t t/models")
    assert toy.reasons() == {"report": Reason(CHANGED, MISSING)} and toy.ran() == {"report"}

    (tmp_path / "build/t t/grids/a.json").unlink()
    (tmp_path / "build/t t/grids/b.json").write_text("of somebody else")
    assert toy.reasons()["grids"] == Reason(CHANGED, ANOTHER) and "grids" in toy.ran()
    shutil.rmtree(tmp_path / ".dvc/cache")
    (tmp_path / "build/t t/models/b").unlink()
    assert toy.reasons()["train@b"] == Reason(CHANGED, MISSING) and "train@b" in toy.ran()

    (tmp_path / "build/t t/curve_x").write_text("of somebody else")
    assert toy.reasons() == {"sweep@x": Reason(CHANGED, ANOTHER)}


def test_in_a_clean_clone_every_stage_lacks_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone has dvc.lock, but neither outputs nor DVC's cache."""
    monkeypatch.chdir(tmp_path)
    Toy(tmp_path)
    Path("dvc.yaml").write_text("stages: {one: {foreach: [a, b], do: {cmd: do it, outs: ['${item}']}}}")
    lock({f"one@{key}": {"cmd": "do it", "outs": [{"path": key, "hash": "md5", "md5": "0" * 32}]} for key in "ab"})
    found = reasons(Path("dvc.yaml"), Path("rows"), {})
    assert set(found.values()) == {Reason(CHANGED, MISSING)} and len(found) == 2


def lock(stages: dict[str, Any]) -> None:
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def test_changed_code_inputs_and_commands_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Toy(tmp_path)
    Path("dvc.yaml").write_text("stages: {one: {cmd: do it, deps: [rows/code/one.json, rows/a.json], outs: []}}")
    files = {"code/one": 1, "a": 1}
    one = "b026324c6904b2a9cb4b88d6d61c81d1"  # of the file "1\n"
    deps = [{"path": f"rows/{name}.json", "hash": "md5", "md5": one} for name in files]
    for entry, now, reason in (
        ({"cmd": "do it", "deps": deps}, files, None),
        ({"cmd": "do it", "deps": deps}, files | {"code/one": 2}, Reason(CHANGED, CODE)),
        ({"cmd": "do it", "deps": deps}, files | {"a": 2}, Reason(CHANGED, ROW)),
        ({"cmd": "do it", "deps": deps[:1]}, files, Reason(CHANGED, ROW)),
        ({"cmd": "do that", "deps": deps}, files, Reason(CHANGED, COMMAND)),
    ):
        lock({"one": entry})
        assert reasons(Path("dvc.yaml"), Path("rows"), now) == {"one": reason}


def test_an_input_that_no_longer_is_what_was_made_is_named(toy: Toy, tmp_path: Path) -> None:
    toy.dvc("repro")
    text = yaml.safe_load((tmp_path / "dvc.lock").read_text())
    [dep] = [dep for dep in text["stages"]["sweep@x"]["deps"] if "models" in dep["path"]]
    dep["md5"] = "0" * 32
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(text))
    assert toy.reasons() == {"sweep@x": Reason(CHANGED, INPUT)}
    assert toy.ran() <= {"sweep@x"}


@pytest.mark.parametrize("study", [{}, {"study": {}}, {"study": {"name": "t", "root": "."}, "models": None}])
def test_a_study_without_the_keys_that_its_stages_name_is_one_line(toy: Toy, study: dict[str, Any]) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(StudyError, match=r"^dvc\.yaml: "):
        reasons(Path("dvc.yaml"), Path("rows"), {})
