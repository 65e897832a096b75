"""`python -m pipeline accept` takes new code for old results if a sample of the work is equal to the last byte."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.commands.differences import first_difference
from pipeline.common.files import write_json
from tests.workspace import Workspace


@pytest.fixture(scope="module")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The tiny study with a second flow, failed trainings and an image set, run once.

    The tests below go on from each other's state.
    """
    tiny_study = Workspace(tmp_path_factory.mktemp("repository"), quick=["report"])
    tiny_study.study["models"]["again"] = {"base": "flow", "weighting": "unit", "pairs": "reflow", "reflow_pairs": 64}
    tiny_study.study["models"]["wild"] = {"learning_rate": 1e12, "train_seeds": [0, 1]}
    tiny_study.study["curves"]["wild"] = {"model": "wild"}
    tiny_study.study["sets"]["real"] = {"source": "digits"}
    del tiny_study.study["curves"]["rho_3"]
    tiny_study.repro()
    return tiny_study


def accept(tiny_study: Workspace) -> tuple[int, str, str]:
    done = tiny_study.run("python", "-m", "pipeline", "accept")
    return done.returncode, done.stdout, done.stderr


def edit(tiny_study: Workspace, file: str, old: str, new: str) -> None:
    path = tiny_study.root / "pipeline" / file
    text = path.read_text()
    assert old in text, f"{file} does not hold {old!r}"
    path.write_text(text.replace(old, new))


def split(tiny_study: Workspace, file: str, start: str, other: str) -> None:
    """Move the end of a module, from `start` on, into another module, which it imports."""
    path = tiny_study.root / "pipeline" / file
    text, _, moved = path.read_text().partition(start)
    name, module = start.removeprefix("def ").rstrip("("), "pipeline." + other.removesuffix(".py").replace("/", ".")
    path.write_text(text.replace("\nimport torch\n", f"\nimport torch\nfrom {module} import {name}\n", 1))
    (tiny_study.root / "pipeline" / other).write_text(f"from collections.abc import Iterable\n\n\n{start}{moved}")


def test_without_a_change_there_is_nothing_to_accept(tiny_study: Workspace) -> None:
    assert accept(tiny_study) == (0, "tiny: no stage is stale; there is nothing to accept\n", "")


def test_a_renamed_variable_and_a_split_module_are_accepted_and_nothing_runs_again(tiny_study: Workspace) -> None:
    before, lock = tiny_study.results(), (tiny_study.root / "dvc.lock").read_text()
    edit(tiny_study, "training/loop.py", "batch_losses", "losses_of_batch")
    split(tiny_study, "sampling/batches.py", "def mean_nfe(", "sampling/costs.py")
    code, printed, error = accept(tiny_study)
    assert (code, error) == (0, ""), error
    assert printed.endswith("tiny: every byte agrees; dvc.lock has the new code (reports/tiny/accepted.json)\n")
    assert (tiny_study.root / "dvc.lock").read_text() != lock
    record = json.loads((tiny_study.root / "reports/tiny/accepted.json").read_text())
    assert record["train"]["first_steps"].keys() == {"edm", "flow", "again", "wild"}
    assert {"train", "sweep", "measure"} <= record["code"].keys()
    assert record["train"]["whole"] == "edm, seed 0" and record["sweep"].keys() == {"edm", "flow", "wild"}
    assert "measure@real" in record["whole"] and "report" not in record["whole"]
    assert tiny_study.repro() <= {"report"}
    changed = {name for name, content in tiny_study.results().items() if before.get(name) != content}
    assert all("/rows/" in name or name.endswith("accepted.json") for name in changed)


REFUSED = {
    "the loss": ("training/distances.py", ".square()", ".square().mul(1.0000001)", "losses: "),
    "one model's weighting": ("training/noise.py", "return shift * u / (1 - u)", "return shift * u / (1.0000002 - u)",
                              "train@flow: "),
    "a solver": ("sampling/ode.py", "alpha=-rate / sigma", "alpha=-rate / sigma * 1.0000001", "sweep@"),
    "samples": ("sampling/batches.py", "to_data(samples.x0", "to_data(1.01 * samples.x0", "sweep@"),
    "a metric": ("metrics/kernel.py", "= root.square()", "= root.square().mul_(1.0000001)", "reference: "),
    "the data": ("data/dataset.py", "total / n / 127.5 - 1", "total / n / 127.50001 - 1", "prepare: "),
}  # fmt: skip


@pytest.mark.parametrize("change", REFUSED)
def test_a_change_in_the_seventh_digit_is_refused_and_nothing_is_committed(tiny_study: Workspace, change: str) -> None:
    file, old, new, place = REFUSED[change]
    lock, record = ((tiny_study.root / name).read_bytes() for name in ("dvc.lock", "reports/tiny/accepted.json"))
    before = (tiny_study.root / "pipeline" / file).read_text()
    edit(tiny_study, file, old, new)
    code, _, error = accept(tiny_study)
    (tiny_study.root / "pipeline" / file).write_text(before)
    assert code == 1 and len(error.splitlines()) == 1
    assert error.startswith(f"error: {place}") and (" before" in error or "differ" in error), error
    assert lock == (tiny_study.root / "dvc.lock").read_bytes()
    assert record == (tiny_study.root / "reports/tiny/accepted.json").read_bytes()


def test_outputs_that_are_not_those_of_the_lock_are_refused(tiny_study: Workspace) -> None:
    edit(tiny_study, "training/loop.py", "losses_of_batch", "batch_losses")
    file = tiny_study.root / "reports/tiny/losses.csv"
    content = file.read_bytes()
    file.write_bytes(content + b"\n")
    code, _, error = accept(tiny_study)
    assert code == 1 and error.startswith("error: reports/tiny/losses.csv: modified, so it is not the output of losses")
    file.write_bytes(content)


def test_outputs_that_are_missing_come_from_the_cache(tiny_study: Workspace) -> None:
    shutil.rmtree(tiny_study.root / "build/tiny/models/edm")
    code, _, error = accept(tiny_study)
    assert (code, error) == (0, "")
    assert (tiny_study.root / "build/tiny/models/edm/seed_0.safetensors").exists()


def test_a_study_without_results_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.commands.accept import accept
    from pipeline.common.errors import StudyError

    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match=r"^dvc.lock: missing; there are no results to accept"):
        accept("")
    with pytest.raises(StudyError, match=r"^study 'x': no such study; valid: all"):
        accept("x")


def test_the_first_difference_is_named(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        write_json(folder / "a.json", {"x": 1, "y": 0.123456789})
        (folder / "b.bin").write_bytes(b"\xff\x00")
    assert first_difference(one, two) is None
    write_json(two / "a.json", {"x": 1, "y": 0.123456788})
    found = first_difference(one, two)
    assert found == "one/a.json, line 3: ' \"y\": 0.123456789' before, ' \"y\": 0.123456788' now"
    write_json(two / "a.json", {"x": 1, "y": 0.123456789})
    (two / "b.bin").write_bytes(b"\xff\x01")
    assert first_difference(one, two) == "one/b.bin: the bytes differ"
    (two / "b.bin").unlink()
    assert first_difference(one, two) == "one/b.bin does not exist now"


def test_hashes_of_trainings_stay_if_only_other_stages_are_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.commands.accept import Sample
    from pipeline.common.files import Paths

    monkeypatch.chdir(tmp_path)
    first_steps = {"edm": {"outputs": "a", "seeds": {"0": "b"}}}
    write_json(Path("reports/t/accepted.json"), {"train": {"first_steps": first_steps, "whole": "edm, seed 0"}})
    assert Sample(Paths("t"), {}).compare() == {"whole": [], "train": {"first_steps": first_steps}, "sweep": {}}
