"""Each target of the Makefile calls one command, and names reach it as they were typed."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.commands.cli import parser
from tests.imports import ROOT

OF_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # what the make that runs the tests tells those below it
VARIABLES = ("NAME", "CELLS", "J", "DRY", "FAST", "IMAGES", "SCALE", "LABELS", "PRESET", "DATA", *OF_MAKE)


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`make` with a python that prints its arguments, one a line."""
    shutil.copy(ROOT / "Makefile", folder)
    (folder / ".venv/bin").mkdir(parents=True, exist_ok=True)
    (program := folder / ".venv/bin/python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    for name in ("requirements.txt", "requirements-uv.txt"):
        (folder / name).touch()
    (folder / ".venv/installed").touch()
    own = {k: v for k, v in os.environ.items() if k not in VARIABLES} | environment
    return subprocess.run(["make", *arguments], cwd=folder, env=own, capture_output=True, text=True)


HOSTILE = 'x"; touch pwned; echo "`touch pwned`'


def of_study(name: str = "", preset: str = "", data: str = "") -> list[str]:
    return [f"--study={name}", f"--preset={preset}", f"--data={data}"]


GIVEN = {  # make's arguments, what the command line gets
    "repro": (("repro",), ["repro", "--jobs="]),
    "repro side by side": (("repro", f"J={HOSTILE}"), ["repro", f"--jobs={HOSTILE}"]),
    "study": (("study", f"NAME={HOSTILE}"), ["repro", *of_study(HOSTILE), "--jobs="]),
    "study side by side": (("study", "NAME=points", "J=2"), ["repro", *of_study("points"), "--jobs=2"]),
    "study at a preset": (
        ("study", f"NAME={HOSTILE}", f"PRESET={HOSTILE}"), ["repro", *of_study(HOSTILE, HOSTILE), "--jobs="]
    ),
    "check": (("check",), ["check", *of_study()]),
    "check a study": (("check", f"NAME={HOSTILE}"), ["check", *of_study(HOSTILE)]),
    "check other data": (("check", "NAME=c", f"DATA={HOSTILE}"), ["check", *of_study("c", "", HOSTILE)]),
    "verify": (("verify",), ["verify", *of_study(), "--cells="]),
    "verify cells": (
        ("verify", f"NAME={HOSTILE}", f"CELLS=all {HOSTILE}"), ["verify", *of_study(HOSTILE), f"--cells=all {HOSTILE}"]
    ),
    "prune": (("prune", "DRY=1"), ["prune", *of_study(), "--dry"]),
    "prune a study": (("prune", f"NAME={HOSTILE}"), ["prune", *of_study(HOSTILE)]),
    "accept": (("accept", f"NAME={HOSTILE}"), ["accept", f"--study={HOSTILE}"]),
    "new": (
        ("new", f"NAME={HOSTILE}", f"IMAGES={HOSTILE}"),
        ["new", f"--study={HOSTILE}", f"--images={HOSTILE}", "--scale=cpu", "--labels=none"],
    ),
    "new, on request": (
        ("new", "NAME=pets", "IMAGES=x.zip", "SCALE=published", "LABELS=classes"),
        ["new", "--study=pets", "--images=x.zip", "--scale=published", "--labels=classes"],
    ),
    "docs": (("docs",), ["docs"]),
    "timings": (("timings", f"NAME={HOSTILE}"), ["timings", *of_study(HOSTILE)]),
}  # fmt: skip


@pytest.mark.parametrize("case", GIVEN)
def test_make_passes_names_on_without_a_shell_reading_them(tmp_path: Path, case: str) -> None:
    arguments, called = GIVEN[case]
    done = make(tmp_path, *arguments)
    assert done.stdout.splitlines() == ["-m", "pipeline", *called], done.stderr
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("value", [HOSTILE, "-h", "--help", "-x y", "-1", "", "="])
@pytest.mark.parametrize("case", GIVEN)
def test_the_command_line_takes_what_make_passes(case: str, value: str) -> None:
    """No value is taken for an option."""
    called = [argument.replace(HOSTILE, value) for argument in GIVEN[case][1]]
    found = vars(parser().parse_args(called))
    for argument in called[1:]:
        option, _, given = argument.removeprefix("--").partition("=")
        assert found[option] == (True if option == "dry" else given)


def test_a_name_from_the_environment_names_no_study(tmp_path: Path) -> None:
    environment = {"NAME": "DESKTOP-1", "PRESET": "x", "DATA": "/data"}
    for target in ("verify", "check", "timings", "prune"):
        assert make(tmp_path, target, **environment).stdout.splitlines()[3:6] == of_study()
    assert make(tmp_path, "check", "NAME=points", **environment).stdout.splitlines()[3:] == of_study("points")


def test_a_study_without_a_name_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "studies/points").mkdir(parents=True)
    (tmp_path / "studies/solvers").mkdir(parents=True)
    done = make(tmp_path, "study")
    assert done.returncode and done.stdout == ""
    assert done.stderr.startswith("error: name a study: make study NAME=..., one of: points solvers\n")


@pytest.mark.parametrize("options", [(), ("FAST=1",)])
def test_fast_tests_leave_out_the_slow_ones(tmp_path: Path, options: tuple[str, ...]) -> None:
    printed = make(tmp_path, "--silent", "test", *options).stdout.splitlines()
    assert ("not dvc and not browser and not torchrun" in printed) == bool(options)


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
TYPED = sorted(
    {line for page in PAGES for line in re.findall(r"^(?: {4})?(make [^#\n]*?) *(?:#.*)?$", page.read_text(), re.M)}
)
OWN = {"pets"}  # studies that a reader makes


@pytest.mark.parametrize("line", TYPED)
def test_what_the_documents_tell_to_type_is_a_command(tmp_path: Path, line: str) -> None:
    printed = make(tmp_path, *shlex.split(line)[1:]).stdout.splitlines()
    if printed[:2] == ["-m", "pipeline"]:
        chosen = vars(parser().parse_args(printed[2:]))
        study = chosen.get("study", "")
        assert not study or study in OWN or (ROOT / "studies" / study / "params.yaml").exists()
        if chosen.get("preset"):
            assert f"\n  {chosen['preset']}:" in (ROOT / "studies" / study / "params.yaml").read_text()
    else:
        assert printed, "no target of the Makefile"
