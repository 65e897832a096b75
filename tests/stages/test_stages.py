"""Every stage by itself: what is wrong with its inputs is one line, and what was there before stays."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.common.errors import StudyError
from pipeline.common.fingerprint import fingerprint, stage_fingerprints
from pipeline.params.resolve import resolve
from pipeline.params.study import read_study
from pipeline.training.row import Model
from stages import Arguments, outcome, parse_arguments
from tests.imports import ROOT

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
    "broken params": ("resolve", (), {"params.yaml": "models: {"}, "params.yaml: not valid YAML"),
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


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str
    before: dict[Path, bytes]
    after: dict[Path, bytes]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Every case, run in a folder with earlier outputs; two at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("rows"))
        earlier = rows() | {"build/t/models/edm/seed_0.safetensors": "old", "reports/t/report.md": "old"}

    def run(case: str) -> Outcome:
        stage, arguments, files, _ = CASES[case]
        folder = tmp_path_factory.mktemp("case")
        for name, text in (earlier | files).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        before = contents(folder)
        environment = {k: v for k, v in os.environ.items() if k != "DVC_STAGE"} | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", f"stages.{stage}", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        return Outcome(done.returncode, done.stdout, done.stderr, before, contents(folder))

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(CASES, pool.map(run, CASES), strict=True))


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][3]])
def test_what_is_wrong_is_one_line_and_earlier_outputs_stay(outcomes: dict[str, Outcome], case: str) -> None:
    outcome = outcomes[case]
    assert (outcome.code, outcome.out) == (1, ""), outcome.err
    assert outcome.err.startswith(f"error: {CASES[case][3]}") and len(outcome.err.splitlines()) == 1
    assert outcome.after == outcome.before


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


def test_a_stage_whose_output_nobody_takes_has_failed() -> None:
    read, write = os.pipe()
    os.close(read)
    command = "from stages import run_stage; run_stage(lambda arguments: print('found'), '')"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "error: [Errno 32] Broken pipe\n")
