"""The command line: strict, quick to help, and one line on stderr for whatever is wrong."""

import os
import shutil
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.commands import cli, stale
from pipeline.commands.cli import main, parser, study_file
from pipeline.common.errors import StudyError
from tests.imports import ROOT

COMMANDS = (
    "check", "new", "prune", "verify", "accept", "measure", "timings", "docs", "repro", "best", "claim", "export",
)  # fmt: skip
GOOD = "study: {name: t, root: ., params: params.yaml}\nmodels: {edm: {}}\ncurves: {edm: {model: edm}}\nsets: {}\n"


def run(*arguments: str, code: str = "from pipeline.commands.cli import main; sys.exit(main())", **environment: str):  # type: ignore[no-untyped-def]
    """A command in a process of its own, in the working directory."""
    own = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-c", f"import sys; {code}", *arguments]
    return subprocess.run(command, env=own, capture_output=True, text=True)


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the study t at its root and the study other in studies/other, entered.

    `check` loads DVC in no second process.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "ProcessPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setattr(stale, "load", lambda: None)
    Path("params.yaml").write_text(GOOD)
    (other := Path("studies/folder/params.yaml")).parent.mkdir(parents=True)
    other.write_text(
        GOOD.replace(
            "{name: t, root: ., params: params.yaml}", "{name: other, root: ../.., params: studies/folder/params.yaml}"
        )
    )
    return tmp_path


WRONG = {
    "no command": ((), "the following arguments are required: command"),
    "an unknown command": (("chekc",), "argument command: invalid choice: 'chekc'"),
    "an unknown option": (("check", "--stdy", "x"), "unrecognized arguments: --stdy x"),
    "an abbreviation": (("verify", "--cell", "all"), "unrecognized arguments: --cell all"),
    "another argument": (("prune", "now"), "unrecognized arguments: now"),
    "another command's option": (("check", "--dry"), "unrecognized arguments: --dry"),
    "no images": (("measure",), "the following arguments are required: --images"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_command_line_is_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, line = WRONG[case]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    printed = capsys.readouterr()
    assert (caught.value.code, printed.out, len(printed.err.splitlines())) == (2, "", 1)
    assert printed.err.startswith(f"error: {line}") and "--help` lists what is valid" in printed.err


def test_help_lists_every_command_and_loads_nothing_slow() -> None:
    code = (
        "from pipeline.commands.cli import parser; parser().print_help(); "
        "print(*{'torch', 'numpy', 'pydantic', 'yaml', 'dvc', 'pandas'} & set(sys.modules))"
    )
    done = run(code=code)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == ""
    assert all(f"    {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0 and f"python -m pipeline {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("study", "file"),
    [("", "params.yaml"), ("t", "params.yaml"), ("folder", "studies/folder/params.yaml"),
     ("other", "studies/folder/params.yaml")],
)  # fmt: skip
def test_a_study_is_found_by_its_folder_or_its_name(study: str, file: str) -> None:
    assert study_file(parser().parse_args(["check", f"--study={study}"])) == Path(file)


@pytest.mark.parametrize("study", ["nowhere", "../x", "$(touch pwned)", "studies/folder", "a\nb"])
def test_a_study_that_does_not_exist_is_one_line(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--study", study]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: study ") and "not found; " in line and line.endswith("valid: folder, other, t")


def test_a_preset_is_written_and_a_study_without_presets_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--study=folder", "--preset=small"]) == 1
    assert capsys.readouterr().err.startswith("error: PRESET: studies/folder/params.yaml has no presets")
    file = Path("studies/folder/params.yaml")
    file.write_text(f"{file.read_text()}preset: large\npresets: {{small: {{data: {{limit: 9}}}}, large: {{}}}}\n")
    for graph in (Path("dvc.yaml"), file.with_name("dvc.yaml")):
        graph.write_text("")
    arguments = parser().parse_args(["check", "--study=folder", "--preset=small"])
    assert study_file(arguments) == Path("studies/folder_small/params.yaml")
    assert capsys.readouterr().err == "studies/folder_small/params.yaml: written from studies/folder\n"
    assert study_file(parser().parse_args(["check", "--study=folder", "--preset=large"])) == file


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (StudyError("a: wrong\n  and more"), 1, "error: a: wrong and more\n"),
        (FileNotFoundError(2, "No such file", "x"), 1, "error: [Errno 2] No such file: 'x'\n"),
        (type("OutOfMemoryError", (RuntimeError,), {})("40 GiB\nand more"), 1, "error: out of memory (40 GiB)\n"),
        (KeyboardInterrupt(), 130, "interrupted: finished work is kept; run the same command again to go on\n"),
    ],
)
def test_a_command_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    def fail(arguments: object) -> None:
        raise error

    monkeypatch.setattr(
        cli, "parser", lambda: types.SimpleNamespace(parse_args=lambda _: types.SimpleNamespace(run=fail))
    )
    assert main(["check"]) == code
    assert capsys.readouterr().err == line


def test_a_programming_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "study_file", lambda arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["prune"])


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["check"]) == 1
    assert capsys.readouterr().err.startswith("error: commands run in one process; ")


MISTAKES = {
    "no study file": (("check",), "params.yaml: no such study file"),
    "jobs": (("repro", "--jobs", "two"), "--jobs 'two': the number of stages at a time must be"),
    "measure": (("measure", "--images", "x.zip"), "build/t/data/summary.json: missing"),
    "timings": (("timings",), "build/t/rows/report.json: missing; `dvc repro` makes it"),
    "verify": (("verify",), "reports/t/results.csv: missing; there are no results to verify"),
    "no graph": (("repro",), "dvc.yaml: missing; "),
    "another's name": (("prune",), "study.name: studies/folder/params.yaml already has the name 't'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, line = MISTAKES[case]
    if case == "no study file":
        Path("params.yaml").unlink()
    if case == "another's name":
        Path("dvc.yaml").touch()
        Path("studies/folder/params.yaml").write_text(GOOD)
    before = sorted(Path().rglob("*"))
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1 and printed.err.startswith(f"error: {line}")
    assert sorted(Path().rglob("*")) == before


NO_NAMES = {
    "caf\udce9": "'caf\\udce9' is not valid UTF-8; rename it",
    "--": "'--' is not valid; write a name or a path",
}


@pytest.mark.parametrize("name", NO_NAMES)
@pytest.mark.parametrize("option", ["study", "images", "scale", "labels"])
def test_a_name_that_cannot_be_one_is_one_line(option: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"study": "pets", "images": "x", option: name}
    assert main(["new", *(f"--{key}={value}" for key, value in given.items())]) == 1
    assert capsys.readouterr().err == f"error: --{option}: {NO_NAMES[name]}\n"


@pytest.mark.parametrize("buffering", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_a_command_whose_output_nobody_takes_has_failed(buffering: dict[str, str]) -> None:
    shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
    read, write = os.pipe()
    os.close(read)
    own = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | {"PYTHONPATH": str(ROOT)} | buffering
    command = [sys.executable, "-m", "pipeline", "prune", "--dry"]
    done = subprocess.run(command, env=own, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "error: [Errno 32] Broken pipe\n")
