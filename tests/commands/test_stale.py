"""What would run is what DVC runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.commands.stale import (
    AFTER,
    ANOTHER,
    CHANGED,
    ITS_ROW,
    MISSING,
    NEW,
    Reason,
    Stale,
    file_text,
    locked,
    stages_of,
)
from pipeline.common.errors import StudyError

GRAPH = """
stages:
  resolve:
    wdir: ${study.root}
    cmd: python toy.py ${study}
    deps: ["params.yaml", toy.py]
    outs:
      - "build/${study.name}/rows":
          persist: true
  train:
    foreach: ${models}
    do:
      cmd: cp "build/${study.name}/rows/models/${key}.json" "build/${study.name}/${key}"
      deps:
        - "build/${study.name}/rows/models/${key}.json"
        - code.py
      outs: ["build/${study.name}/${key}"]
  sweep:
    foreach: ${curves}
    do:
      cmd: cat "build/${study.name}/${item.model}" > "build/${study.name}/curve_${key}"
      deps: ["build/${study.name}/${item.model}"]
      outs: ["build/${study.name}/curve_${key}"]
  report:
    cmd: ls "build/${study.name}/rows/models" > report.txt
    deps: ["build/${study.name}/rows/models", report.py]
    metrics:
      - report.txt:
          cache: false
"""
TOY = """
import json, pathlib, yaml
study = yaml.safe_load(pathlib.Path("params.yaml").read_text())
folder = pathlib.Path("build/t t/rows/models")
folder.mkdir(parents=True, exist_ok=True)
for name, row in study["models"].items():
    (folder / f"{name}.json").write_text(json.dumps(row, indent=1, ensure_ascii=False) + "\\n")
"""
STUDY: dict[str, Any] = {
    "study": {"name": "t t", "root": "."},
    "models": {"a": {"lr": 1, "é": "ü"}, "b": {"lr": 2}},
    "curves": {"x": {"model": "a"}, "y": {"model": "b"}},
}


class Toy:
    """A repository of trivial stages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"DVC_NO_ANALYTICS": "1", "PATH": f"{Path(sys.executable).parent}:{os.defpath}"}
        for name, text in (("dvc.yaml", GRAPH), ("toy.py", TOY), ("code.py", "1"), ("report.py", "1")):
            (folder / name).write_text(text)
        self.study = json.loads(json.dumps(STUDY))
        self.dvc("init", "--no-scm", "--quiet")

    def dvc(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def write(self) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.study, sort_keys=False))

    def told(self) -> dict[str, Reason]:
        graph = Path("dvc.yaml")
        rows = {f"build/t t/rows/models/{name}.json": file_text(row) for name, row in self.study["models"].items()}
        return Stale(stages_of(graph, self.study), locked(graph), rows).reasons()

    def ran(self) -> set[str]:
        return set(re.findall(r"Running stage '(.*?)'", self.dvc("repro")))


def test_what_is_told_to_run_is_what_dvc_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the life of a study: from nothing to all, nothing, a new row, a changed row, code, a lost output."""
    monkeypatch.chdir(tmp_path)
    toy = Toy(tmp_path)
    toy.write()
    told = toy.told()
    assert {reason.how for reason in told.values()} == {NEW}
    assert set(told) == toy.ran() == {"resolve", "train@a", "train@b", "sweep@x", "sweep@y", "report"}
    assert toy.told() == {}

    toy.study["models"] |= {"c": {"lr": 3}}
    toy.study["models"]["b"]["lr"] = 4
    toy.write()
    told = toy.told()
    assert told == {
        "resolve": Reason(CHANGED, "params.yaml"),
        "train@b": Reason(CHANGED, ITS_ROW),
        "train@c": Reason(NEW),
        "sweep@y": Reason(AFTER, "train@b"),
        "report": Reason(CHANGED, ITS_ROW),
    }
    assert toy.ran() == set(told)

    (tmp_path / "report.txt").unlink()
    (tmp_path / "build/t t/a").unlink()
    assert toy.told() == {} and toy.ran() == set()  # DVC has both in its cache
    assert (tmp_path / "report.txt").exists() and (tmp_path / "build/t t/a").exists()

    (tmp_path / "build/t t/curve_x").write_text("of somebody else")
    assert toy.told() == {"sweep@x": Reason(CHANGED, ANOTHER)}
    assert set(json.loads(toy.dvc("status", "--json"))) == {"sweep@x"}


def test_a_clean_clone_says_the_same_of_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has dvc.lock and neither outputs nor DVC's cache."""
    monkeypatch.chdir(tmp_path)
    graph = Path("dvc.yaml")
    graph.write_text("stages: {one: {foreach: '${rows}', do: {cmd: do it, outs: ['${key}']}}}")
    lock({f"one@{key}": {"cmd": "do it", "outs": [{"path": key, "md5": "0" * 32}]} for key in "ab"})
    stages = stages_of(graph, {"rows": {"a": {}, "b": {}}})
    assert set(Stale(stages, locked(graph), {}).reasons().values()) == {Reason(CHANGED, MISSING)}


def lock(stages: dict[str, Any]) -> None:
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def test_code_and_command_that_have_changed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    graph = Path("dvc.yaml")
    graph.write_text("stages: {one: {cmd: do it, deps: [code.py], outs: []}}")
    Path("code.py").write_text("1")
    dep = {"path": "code.py", "md5": "c4ca4238a0b923820dcc509a6f75849b"}
    for entry, reason in (
        ({"cmd": "do it", "deps": [dep]}, None),
        ({"cmd": "do it", "deps": [dep | {"md5": "0" * 32}]}, Reason(CHANGED, "code.py")),
        ({"cmd": "do it", "deps": []}, Reason(CHANGED, "code.py")),
        ({"cmd": "do that", "deps": [dep]}, Reason(CHANGED, "its command")),
    ):
        lock({"one": entry})
        assert Stale(stages_of(graph, {}), locked(graph), {}).reasons().get("one") == reason


@pytest.mark.parametrize("study", [{}, {"study": {}}, {"study": {"name": "t", "root": "."}, "models": None}])
def test_a_study_without_the_keys_that_its_stages_name_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text(GRAPH)
    with pytest.raises(StudyError, match=r"^dvc\.yaml: its stages do not go with the study file"):
        stages_of(Path("dvc.yaml"), study)
