"""Cells of a study from nothing: its stages run in a scratch folder, for the chosen cells only.

Everything that a stage takes from a cache is below the working folder, so a stage in the scratch folder finds nothing.
"""

import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from pipeline.commands.repro import Device, Plan, devices, run
from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, write_json
from pipeline.common.fingerprint import ROOT, with_code
from pipeline.common.progress import bar
from pipeline.common.sealed import load_json
from pipeline.common.threads import cores
from pipeline.data.dataset import load_summary
from pipeline.evaluation.curve import Curve
from pipeline.params.resolve import with_autoencoders
from pipeline.params.resolved import CurveEntry, ModelEntry, Resolved
from pipeline.training.row import Model

OTHER_SEEDS = 2  # of the extractor, if another one comes out


class Place(NamedTuple):
    """A cell's place in a study. The cells of an image set have `sample_seed` 0, 1, ..., and 0 for the rest."""

    curve: str
    steps: int
    train_seed: int
    sample_seed: int


def places_of(name: str, curve: Curve) -> list[Place]:
    """The places of all cells of a curve."""
    return [Place(name, steps, *seeds) for steps, seeds in curve.cells()]


@dataclass(frozen=True)
class Remade:
    """Cells made again, and the instrument that measured them."""

    data: str
    """The content hash of the data."""
    extractor: str
    """The extractor's name."""
    hashes: dict[str, str]
    """"extractor" and "reference" -> hash."""
    cells: dict[Place, dict[str, Any]]
    """Records as in results.json."""


def remake(rows: Resolved, places: Sequence[Place], extractors: Collection[str]) -> list[Remade]:
    """Make cells of a study again.

    extractors: how the hashes of the extractors that measured the committed cells begin. If the study trains its
    extractor and another one comes out, the same cells follow, as OTHER_SEEDS extractors of other seeds measure them.
    Raises StudyError with a stage's own line if one fails.
    """
    with scratch_folder() as folder:
        work = _Remaking(_narrowed(rows, places), places, folder)
        made = [work.measure(work.training())]
        seed, own = rows.features.seed, made[0]
        another = not own.hashes["extractor"].startswith(tuple(extractors)) and own.extractor.endswith("classifier")
        for other in range(seed + 1, seed + 1 + OTHER_SEEDS) if another else ():
            work.write_rows(extractor_seed=other)
            made.append(work.measure({}))
        return made


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder."""
    with TemporaryDirectory(prefix="nfe-bench-", ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()


def run_stage(stage: str, study: str, folder: Path, device: Device = Device()) -> None:  # noqa: B008
    """Run a stage, such as train@edm, of the study whose rows are below `folder`, on a device.

    Raises StudyError with the stage's own line if it fails.
    """
    kind, _, row = stage.partition("@")
    command = [sys.executable, "-m", f"stages.{kind}", f"--name={study}", f"--row={row}"]
    if device.cores:
        os.sched_setaffinity(0, device.cores)  # of this thread, whose processes inherit it
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | device.environment
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        line = next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise StudyError(f"{stage}: {line.removeprefix('error: ')}")


def _narrowed(rows: Resolved, places: Sequence[Place]) -> Resolved:
    """The rows of a study that asks for the cells at these places, and names its files by absolute paths.

    A curve has its chosen steps with all of its chosen seeds. Models that no cell needs keep their rows.
    """
    chosen = [place for place in places if place.curve in rows.curves]
    curves: dict[str, CurveEntry] = {}
    seeds: dict[str, set[int]] = {}
    for name in dict.fromkeys(place.curve for place in chosen):
        entry, own = rows.curves[name], [place for place in chosen if place.curve == name]
        pairs = tuple(pair for pair in entry.row.seeds if pair in {place[2:] for place in own})
        budgets = tuple(nfe for nfe in entry.row.nfe if entry.row.steps(nfe) in {place.steps for place in own})
        curves[name] = entry.model_copy(update={"row": entry.row.model_copy(update={"nfe": budgets, "seeds": pairs})})
        for model in entry.row.stages:
            seeds.setdefault(model, set()).update(place.train_seed for place in own)
        for place in own if entry.row.solver == "fitted" else ():
            model, seed, _ = entry.row.fitted_to(place.train_seed, place.steps)
            seeds.setdefault(model, set()).add(seed)
    models: dict[str, ModelEntry] = dict(rows.models)
    for name, own_seeds in seeds.items():
        row = models[name].row.model_copy(update={"train_seeds": tuple(sorted(own_seeds))})
        models[name] = models[name].model_copy(update={"row": row})
    autoencoders = {name: _absolute(row, "folder") for name, row in rows.autoencoders.items()}
    models = {
        name: entry.model_copy(update={"row": with_absolute_imports(with_autoencoders(entry.row, autoencoders))})
        for name, entry in models.items()
    }
    fitted = {curve.row.model for curve in curves.values() if curve.row.discretization == "optimised"}
    return rows.model_copy(
        update={
            "data": _absolute(rows.data, "source"),
            "features": _absolute(rows.features, "weights"),
            "autoencoders": autoencoders,
            "models": models,
            "curves": curves,
            "sets": {name: _absolute(row, "source") for name, row in rows.sets.items()},
            "grids": {name: rows.grids[name] if name in fitted else () for name in seeds},
        }
    )


def _absolute(row: Any, key: str) -> Any:
    """A row that names a file or folder by an absolute path, if it is one."""
    path = Path(getattr(row, key) or "").expanduser()
    return row.model_copy(update={key: str(path.resolve())}) if getattr(row, key) and path.exists() else row


def with_absolute_imports(row: Model) -> Model:
    """A model row whose released network, and that of its teachers, is named by an absolute path."""
    found: Model = _absolute(row, "import_")
    return found.model_copy(update={"teacher": row.teacher and with_absolute_imports(row.teacher)})


def _depth(row: Model) -> int:
    """The number of teachers that are trained before a row."""
    return 0 if row.teacher is None else 1 + _depth(row.teacher)


class _Remaking:
    """The stages that make cells again below a folder."""

    def __init__(self, rows: Resolved, places: Sequence[Place], folder: Path) -> None:
        self.rows, self.places, self.folder = rows, places, folder
        self.paths = Paths(rows.study.name)
        self.write_rows(rows.features.seed)

    def write_rows(self, extractor_seed: int) -> None:
        features = self.rows.features.model_copy(update={"seed": extractor_seed})
        for name, content in with_code(self.rows.model_copy(update={"features": features}).files()).items():
            write_json(self.folder / self.paths.rows / f"{name}.json", content)

    def training(self) -> dict[str, set[str]]:
        """The data and the models, and what each stage waits for: a model for those that may be its teacher."""
        depths = {name: _depth(self.rows.models[name].row) for name in self.rows.grids}
        needs = {"prepare": set[str]()} | ({"autoencode": {"prepare"}} if depths else {})
        for name, depth in depths.items():
            needs[f"train@{name}"] = {"autoencode", *(f"train@{each}" for each, less in depths.items() if less < depth)}
        return needs | ({"grids": needs.keys() - {"prepare"}} if depths else {})

    def measure(self, before: dict[str, set[str]]) -> Remade:
        """Measure all cells, after the stages `before`: stage -> the stages that it waits for."""
        sets = {place.curve for place in self.places if place.curve in self.rows.sets}
        own = [*(f"sweep@{name}" for name in self.rows.curves), *(f"measure@{name}" for name in sorted(sets))]
        needs = before | {"features": before.keys() & {"prepare"}, "reference": {"features"}}
        needs |= {stage: {"reference", *(before.keys() & {"grids"})} for stage in own}
        self._run(needs)
        contents = {name: load_json(self.folder / self.paths.curve(name) / "results.json") for name in self.rows.curves}
        contents |= {name: load_json(self.folder / self.paths.set(name) / "results.json") for name in sets}
        found = {
            Place(name, cell["steps"], cell["train_seed"], cell["sample_seed"]): cell
            for name, content in contents.items()
            for cell in content["cells"]
        }
        origin = next(iter(contents.values()))["provenance"]
        hashes = {"extractor": origin["extractor_hash"], "reference": origin["reference_hash"]}
        summary = load_summary(self.folder / self.paths.data)
        cells = {place: found[place] for place in self.places if place in found}
        return Remade(summary["content_hash"], origin["extractor"], hashes, cells)

    def _run(self, needs: dict[str, set[str]]) -> None:
        """Run stages side by side, each when those that it needs have ended."""
        jobs = min(cores(), max(len(self.rows.curves), 1))
        with bar("verify", len(needs), "stage") as progress:

            def start(stage: str, label: str, device: Device) -> int:
                run_stage(stage, self.rows.study.name, self.folder, device)
                progress.update(1)
                return 0

            run(Plan(list(needs), needs, list(needs)), jobs, devices(jobs), start)
