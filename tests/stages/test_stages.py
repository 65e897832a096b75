"""Every stage by itself: what is wrong with its inputs is one line, and what was there before stays."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.common.errors import StudyError
from pipeline.common.fingerprint import fingerprint, stage_fingerprints
from pipeline.params.resolve import resolve
from pipeline.params.study import read_study
from pipeline.training.row import Model
from stages import INTERRUPTION, Arguments, outcome, parse_arguments
from tests.imports import ROOT
from tests.scripts import run_module

STAGES = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")
GOOD = "study: {name: t}\nmodels: {edm: {}}\ncurves: {edm: {model: edm}}\nsets: {}\n"
BY_DVC = ("--name", "t", "--root", ".", "--params", "params.yaml")


def rows() -> dict[str, str]:
    """The resolved rows of the good study, as files."""
    (path := Path("params.yaml")).write_text(GOOD)
    found = resolve(read_study(path)).files() | {f"code/{name}": code for name, code in stage_fingerprints().items()}
    return {f"build/t/rows/{name}.json": json.dumps(row) for name, row in found.items()}


CASES: dict[str, tuple[str, tuple[str, ...], dict[str, str], str]] = {  # stage, arguments, files, the line
    "unknown key": ("resolve", BY_DVC, {"params.yaml": GOOD + "modles: {}\n"}, "modles: unknown key; did you mean"),
    "unknown study key": ("resolve", (*BY_DVC, "--rot", "x"), {"params.yaml": GOOD.replace("t}", "t, rot: x}")},
                          "study.rot: unknown key; did you mean 'root'?"),
    "broken params": ("resolve", (), {"params.yaml": "models: {"}, "params.yaml: line 2: not valid YAML"),
    "unknown option": ("train", (*BY_DVC, "--rows=edm"), {}, "study.rows: unknown key; "),
    "other code": ("train", (*BY_DVC, "--row", "edm"), {"build/t/rows/code/train.json": "{}"},
                   "build/t/rows/code/train.json: other code has written the rows; run `dvc repro`"),
    "row elsewhere": ("train", (*BY_DVC, "--row", "../x"), {}, "'../x': a name has letters, digits"),
    "train": ("train", (*BY_DVC, "--row", "edm"), {}, "build/t/data/summary.json: missing; `dvc repro` makes it"),
    "sweep": ("sweep", (*BY_DVC, "--row", "edm"), {},
              "build/t/features/extractor.json: missing; `dvc repro` makes it"),
    "measure": ("measure", (*BY_DVC, "--row", "other"), {}, "build/t/rows/sets/other.json: missing"),
    "no sets": ("resolve", BY_DVC, {"params.yaml": GOOD.replace("sets: {}\n", "")}, "params.yaml: sets: missing"),
}  # fmt: skip
CASES |= {
    stage: (stage, ("--name", "other"), {}, "build/other/")
    for stage in STAGES
    if stage not in ("resolve", "train", "sweep", "measure")
}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The rows of the good study, and earlier outputs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("rows"))
        return rows() | {"build/t/models/edm/seed_0.safetensors": "old", "reports/t/report.md": "old"}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_one_line_and_earlier_outputs_stay(
    earlier: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    stage, arguments, files, line = CASES[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    write(tmp_path, earlier | files)
    before = contents(tmp_path)
    code, printed = run_module(f"stages.{stage}", *arguments), capsys.readouterr()
    assert (code, printed.out) == (1, ""), printed.err
    assert printed.err.startswith(f"error: {line}") and len(printed.err.splitlines()) == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("stage", "row"),
    [("train@edm", "edm"), ("studies/a@b/dvc.yaml:sweep@rho_3", "rho_3"), ("prepare", ""), ("", "")],
)
def test_the_row_comes_from_dvc_unless_it_is_named(monkeypatch: pytest.MonkeyPatch, stage: str, row: str) -> None:
    monkeypatch.setenv("DVC_STAGE", stage)
    monkeypatch.setattr(sys, "argv", ["train", *BY_DVC])
    assert parse_arguments("").row == row
    monkeypatch.setattr(sys, "argv", ["train", *BY_DVC, "--row", "other"])
    assert parse_arguments("").row == "other"


@pytest.mark.parametrize("name", ["../x", "a.b", "$(touch x)", "a\nb", "é", ""])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(StudyError, match="letters, digits and underscores"):
        _ = Arguments(name, "edm").paths
    with pytest.raises(StudyError, match="letters, digits and underscores"):
        _ = Arguments("t", name or " ").paths


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (StudyError("a: wrong\n  and more"), 1, "error: a: wrong and more\n"),
        (FileNotFoundError(2, "No such file", "x"), 1, "error: [Errno 2] No such file: 'x'\n"),
        (KeyboardInterrupt(), 130, "interrupted: finished work is kept; run the same command again to continue\n"),
    ],
)
def test_a_stage_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    def main(arguments: Arguments) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["stage"])
    assert outcome(main, "") == code
    assert capsys.readouterr().err == line


def test_a_programming_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(arguments: Arguments) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(ZeroDivisionError):
        outcome(main, "")


def test_a_stage_leaves_its_timing_where_nothing_depends_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stages/train.py", *BY_DVC, "--row", "edm"])
    code = tmp_path / "build/t/rows/code/train.json"
    code.parent.mkdir(parents=True)
    code.write_text(json.dumps(fingerprint("stages.train")))
    assert outcome(lambda arguments: print(Model().steps), "") == 0
    assert set(contents(tmp_path)) == {Path("build/t/timings/train_edm.json"), code.relative_to(tmp_path)}
    timing = json.loads((tmp_path / "build/t/timings/train_edm.json").read_text())
    assert timing["seconds"] >= 0 and timing["peak_memory_mib"] > 0


ENDING = """
import sys, threading
from pipeline.common.errors import StudyError
from stages import run_stage

def main(arguments):
    print("line\\n" * 100_000, end="")
    print("note", end=" ", file=sys.stderr)
    if arguments.row == "wrong":
        raise StudyError("a: wrong")
    if arguments.row == "interrupted":
        threading.Thread(target=threading.Event().wait).start()
        raise KeyboardInterrupt

run_stage(main, "")
"""


@pytest.mark.parametrize(
    ("row", "code", "message"),
    [
        ("", 0, "note "),
        ("wrong", 1, "note error: a: wrong\n"),
        ("interrupted", -2, "note interrupted: finished work is kept; run the same command again to continue\n"),
    ],
)
def test_a_stage_prints_everything_before_it_ends(row: str, code: int, message: str) -> None:
    """An interrupt ends it at once, although one of its threads never ends."""
    command = [sys.executable, "-c", ENDING, "--row", row]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (code, message) and done.stdout == "line\n" * 100_000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stage_that_is_stopped_while_it_imports_says_so_in_one_line(tmp_path: Path, number: signal.Signals) -> None:
    begun = tmp_path / "begun"
    (tmp_path / "torch.py").write_text(f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(60)")
    with subprocess.Popen(
        [sys.executable, "-m", "stages.train"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:
        while not begun.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert (process.communicate(timeout=20)[1], process.returncode) == (f"{INTERRUPTION}\n", -number)


@pytest.mark.parametrize("buffering", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_a_stage_whose_output_nobody_takes_has_failed(buffering: dict[str, str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = "from stages import run_stage; run_stage(lambda arguments: print('found'), '')"
    own = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | buffering
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, env=own, stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "error: [Errno 32] Broken pipe\n")
