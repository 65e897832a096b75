"""What `make` calls, and with what: names reach the stages as they were typed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.imports import ROOT

OF_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # what the make that runs the tests tells those below it
VARIABLES = ("NAME", "CELLS", "J", "DRY", "IMAGES", "SCALE", "LABELS", "PRESET", "DATA", *OF_MAKE)


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`make` with a python and a dvc that print what they are given, a line each."""
    shutil.copy(ROOT / "Makefile", folder)
    (folder / ".venv/bin").mkdir(parents=True, exist_ok=True)
    for name in ("python", "dvc"):
        (program := folder / ".venv/bin" / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        program.chmod(0o755)
    (folder / "requirements.txt").touch()
    (folder / ".venv/installed").touch()
    own = {k: v for k, v in os.environ.items() if k not in VARIABLES} | environment
    return subprocess.run(["make", *arguments], cwd=folder, env=own, capture_output=True, text=True)


HOSTILE = 'x"; touch pwned; echo "`touch pwned`'
FILE = f"studies/{HOSTILE}/params.yaml"


def preset(name: str, preset: str, data: str) -> str:
    """The study file that is meant where stages.preset prints what it is given."""
    return f"studies/-m\nstages.preset\n--study={name}\n--preset={preset}\n--data={data}/params.yaml"


MADE = preset(HOSTILE, HOSTILE, "")
GIVEN = {  # target, what it is given, what is called
    "verify": (("verify",), ["stages.verify", "--study=", "--cells="]),
    "verify cells": (
        ("verify", f"NAME={HOSTILE}", f"CELLS=all {HOSTILE}"),
        ["stages.verify", f"--study={HOSTILE}", f"--cells=all {HOSTILE}"],
    ),
    "check": (("check",), ["stages.check", "--params", "params.yaml"]),
    "check a study": (("check", f"NAME={HOSTILE}"), ["stages.check", "--params", FILE]),
    "prune": (("prune", "DRY=1"), ["stages.prune", "--params", "params.yaml", "--dry"]),
    "prune a study": (("prune", f"NAME={HOSTILE}"), ["stages.prune", "--params", FILE]),
    "repro": (("repro", f"J={HOSTILE}"), ["stages.resolve", "--check", "-m", "stages.repro", "--jobs", HOSTILE]),
    "study": (("study", f"NAME={HOSTILE}"), ["stages.resolve", "--check", "--params", FILE,
                                             "repro", f"studies/{HOSTILE}/dvc.yaml"]),
    "study side by side": (("study", f"NAME={HOSTILE}", "J=2"), ["stages.resolve", "--check", "--params", FILE, "-m",
                                                                 "stages.repro", "--jobs", "2", "--params", FILE]),
    "study at a preset": (  # the study is then the one that stages.preset prints, here all that it was given
        ("study", f"NAME={HOSTILE}", f"PRESET={HOSTILE}"), ["stages.resolve", "--check", "--params", *MADE.splitlines(),
                                                            "repro", *MADE.replace("params", "dvc").splitlines()],
    ),
    "check at a preset": (
        ("check", f"NAME={HOSTILE}", f"PRESET={HOSTILE}"), ["stages.check", "--params", *MADE.splitlines()]
    ),
    "other data": (
        ("check", "NAME=c", f"DATA={HOSTILE}"),
        ["stages.check", "--params", *preset("c", "", HOSTILE).splitlines()],
    ),
    "new": (
        ("new", f"NAME={HOSTILE}", f"IMAGES={HOSTILE}"),
        ["stages.new", "--name", HOSTILE, "--images", HOSTILE, "--scale", "cpu", "--labels", "none"],
    ),
    "new, on request": (
        ("new", "NAME=pets", "IMAGES=x.zip", "SCALE=published", "LABELS=classes"),
        ["stages.new", "--name", "pets", "--images", "x.zip", "--scale", "published", "--labels", "classes"],
    ),
    "timings": (("--silent", "timings"), ["stages.timings", "--name", "digits",
                                          "repro", "--force", "--single-item", "report"]),
    "timings of a study": (
        ("--silent", "timings", f"NAME={HOSTILE}"), ["stages.timings", "--name", HOSTILE, "repro", "--force",
                                                     "--single-item", f"studies/{HOSTILE}/dvc.yaml:report"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GIVEN)
def test_make_passes_names_on_without_a_shell_reading_them(tmp_path: Path, case: str) -> None:
    arguments, called = GIVEN[case]
    (tmp_path / "studies" / HOSTILE).mkdir(parents=True)
    (tmp_path / "studies" / HOSTILE / "dvc.yaml").touch()
    done = make(tmp_path, *arguments)
    assert done.stdout.splitlines() == ["-m", *called], done.stderr
    assert not list(tmp_path.rglob("pwned"))


def test_a_name_that_the_system_sets_names_no_study(tmp_path: Path) -> None:
    assert make(tmp_path, "verify", NAME="DESKTOP-1").stdout.splitlines()[2:] == ["--study=", "--cells="]
    assert make(tmp_path, "check", NAME="DESKTOP-1").stdout.splitlines()[2:] == ["--params", "params.yaml"]
    assert (
        make(tmp_path, "check", "NAME=points", NAME="DESKTOP-1").stdout.splitlines()[3] == "studies/points/params.yaml"
    )
    told = make(tmp_path, "check", "NAME=points", PRESET="x", DATA="/data").stdout.splitlines()
    assert told == ["-m", "stages.check", "--params", "studies/points/params.yaml"]


def test_a_preset_that_cannot_be_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "studies/c").mkdir(parents=True)
    (tmp_path / "studies/c/dvc.yaml").touch()
    make(tmp_path, "check")
    (tmp_path / ".venv/bin/python").write_text('#!/bin/sh\n[ "$2" != stages.preset ] && echo "$@" || exit 1\n')
    (tmp_path / ".venv/bin/dvc").write_text("#!/bin/sh\necho ran\n")
    for target in ("study", "check"):
        own = {k: v for k, v in os.environ.items() if k not in VARIABLES}
        command = ["make", target, "NAME=c", "PRESET=smoke"]
        done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True)
        assert done.returncode and done.stdout == ""


def test_a_study_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "studies/points").mkdir(parents=True)
    for arguments in ((), ("NAME=nowhere",)):
        done = make(tmp_path, "study", *arguments)
        assert done.returncode and done.stdout == ""
        assert done.stderr.startswith("error: make study NAME=..., one of: points\n")
