"""What a study would do before it does: whether it goes with its data, what would run, and what that costs here."""

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pipeline.commands.cost import DVC_SECONDS, WITHIN, Estimate, Size, Work, model_size, off_by, speed
from pipeline.commands.stale import AFTER, ITS_ROW, NEW, Reason, Stage, Stale, file_text, locked, stages_of
from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, read_json
from pipeline.common.machine import machine
from pipeline.data.dataset import Data, described, is_image, load, shape_of
from pipeline.params.null_axes import remarks
from pipeline.params.places import check_place, read_yaml
from pipeline.params.study import Study, built_in, read_study, resolve, unmet
from pipeline.training.loop import check_examples
from pipeline.training.row import Model

FIRST = 32  # images of a folder or zip that are looked at
NAMED = 3  # rows that are named where there are more


def glance(row: Data, place: str = "data.source") -> dict[str, Any]:
    """A data set's summary, of a folder or zip as its first images and its list of files tell it. CIFAR-10 is
    downloaded where it is not there.

    Raises StudyError where it cannot be read, saying that it was named in `place`.
    """
    if built_in(row.source):
        return load(row, place).summary()
    found = load(row.model_copy(update={"limit": min(FIRST, row.limit or FIRST)}), place).summary()
    path = Path(row.source).expanduser()
    if path.is_dir():
        walk = os.walk(path, followlinks=True)
        names: Iterable[str] = (
            os.path.relpath(f"{folder}/{name}", path) for folder, _, files in walk for name in files
        )
    else:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    count = sum(map(is_image, names))
    return found | {"count": min(count, row.limit or count)}


def _prepared(paths: Paths, reason: Reason | None) -> dict[str, Any] | None:
    """The summary of the data set that was prepared, here or where the report was made, if it is this one."""
    summary = paths.metrics("prepare", "data")
    if (reason and (reason.how == NEW or reason.what == ITS_ROW)) or not summary.exists():
        return None
    found = read_json(summary)
    return found if isinstance(found, dict) and {"count", "classes", "sigma_data"} <= found.keys() else None


def sizes_on(rows: Mapping[str, Any], about: dict[str, Any]) -> dict[str, Size]:
    """The size of every model row's network on a data set, by its summary. Raises StudyError, naming the row, where one
    can't be trained on it."""
    shape = shape_of(about)
    images = torch.empty(about["count"], *shape, device="meta")
    labels = torch.empty(about["count"], device="meta") if about["classes"] else None
    found = {}
    for name in rows["models"]:
        row = Model(**rows[f"models/{name}"])
        try:
            check_examples(row, images, labels)
            found[name] = model_size(row, about)
        except StudyError as error:
            raise StudyError(f"models.{name}.{error}") from None
    return found


def check_sets(study: Study, samples: int, about: dict[str, Any]) -> None:
    """Raise StudyError where a set cannot be read, is of another size than the data, or has too few images."""
    for name, row in study.sets.items():
        place = f"sets.{name}.source"
        found = glance(Data(source=row.source, labels=False), place)
        if shape_of(found)[1:] != shape_of(about)[1:]:
            own, theirs = described(shape_of(about)), described(shape_of(found))
            raise StudyError(f"{place}: {theirs}, and the study's are {own}; convert them")
        if found["count"] < samples:
            raise StudyError(f"{place}: {found['count']} images, and the study measures {samples} at a time; add some")


@dataclass(frozen=True)
class Preview:
    """What a study would do: `reasons` for the stages that would run, the `work` of all, and what they once took;
    `lack`: what this machine has too little of to run it."""

    path: Path
    rows: Mapping[str, Any]
    about: Mapping[str, Any]
    stages: list[Stage]
    reasons: Mapping[str, Reason]
    work: Mapping[str, Work]
    timings: Mapping[str, float]
    start_seconds: float
    cores: int
    lack: str | None = None

    def warnings(self) -> list[str]:
        lack = [self.lack] if self.lack else []
        return [*lack, *self.rows["report"]["warnings"], *remarks(dict(self.rows))]

    def lines(self) -> Iterator[str]:
        """The preview, to be printed."""
        yield f"{self.path}: {len(self.rows['models'])} models, {len(self.rows['curves'])} curves"
        classes = f", {len(self.about['classes'])} classes" if self.about["classes"] else ""
        source = self.rows["data"]["source"]
        yield f"{source!r}: {self.about['count']:,} {described(shape_of(dict(self.about)))}{classes}"
        yield ""
        if not self.reasons:
            yield f"all {len(self.stages)} stages are up to date"
        else:
            yield from self._table()
            yield from self._sums()
        yield from self._accuracy()

    def _table(self) -> Iterator[str]:
        yield f"{'stage':<10}{'to run':>9}{'evaluations':>14}{'minutes':>9}{'memory':>9}  why"
        for kind, group in groupby(self.stages, key=lambda stage: stage.kind):
            stages = list(group)
            running = [stage for stage in stages if stage.name in self.reasons]
            if not running:
                continue
            of = f"{len(running)} of {len(stages)}" if len(stages) > 1 else "1"
            evaluations = sum(self.work[stage.name].evaluations for stage in running)
            counted = f"{evaluations:,}" if evaluations else "-"
            minutes, memory = self._minutes(running), self._gib(running)
            yield f"{kind:<10}{of:>9}{counted:>14}{minutes:>9.1f}{memory:>6.1f} GiB  {self._why(running)}"

    def _sums(self) -> Iterator[str]:
        running = [stage for stage in self.stages if stage.name in self.reasons]
        evaluations = sum(self.work[stage.name].evaluations for stage in running)
        counted = f"{len(running)} of {len(self.stages)}"
        minutes, memory = self._minutes(running), self._gib(running)
        yield f"{'together':<10}{counted:>9}{evaluations:>14,}{minutes:>9.1f}{memory:>6.1f} GiB"
        yield ""
        device, whole = machine()["device"], self._minutes(self.stages)
        yield f"minutes of {self.cores} cores, {device}; of the whole study {whole:.1f}; what .cache holds takes none"

    def _accuracy(self) -> Iterator[str]:
        found = off_by({name: work.seconds for name, work in self.work.items()}, self.timings)
        yield f"9 of 10 trainings and sweeps took between 1/{WITHIN} and {WITHIN} times as long (docs/checking.md)"
        if found:
            yield (
                f"the {len(found)} that this folder has timed took {median(found):.2f} times as long in the middle, "
                f"from {found[0]:.2f} to {found[-1]:.2f}"
            )

    def _minutes(self, stages: Iterable[Stage]) -> float:
        return sum(self.work[stage.name].seconds + self.start_seconds + DVC_SECONDS for stage in stages) / 60

    def _gib(self, stages: Iterable[Stage]) -> float:
        return max(self.work[stage.name].mib for stage in stages) / 1024

    def _why(self, stages: list[Stage]) -> str:
        """New rows by name, then what has changed, then what waits for others."""
        by_reason: dict[str, list[str]] = {}
        for stage in stages:
            reason = self.reasons[stage.name]
            what = f" ({reason.what})" if reason.what and reason.how != AFTER else ""
            by_reason.setdefault(reason.how + what, []).append(stage.name.partition("@")[2])
        parts = []
        for told, names in by_reason.items():
            rest = len(names) - NAMED
            listed = ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
            parts.append(f"{told}: {listed}" if listed else told)
        return "; ".join(parts)


def preview(path: Path, start_seconds: float) -> Preview:
    """Validate a study file as `resolve` does, then look at its data and at what was run before.

    start_seconds: of a stage's process, before it does anything. Raises StudyError, one line saying where and what.
    """
    study = read_study(path)
    rows = resolve(study)
    graph, paths = check_place(path, study), Paths(study.study.name)
    stages = stages_of(graph, read_yaml(path))
    written = {str(paths.rows / f"{name}.json"): file_text(row) for name, row in rows.items()}
    reasons = Stale(stages, locked(graph), written).reasons()
    about = _prepared(paths, reasons.get("prepare")) or glance(study.data)
    sizes = sizes_on(rows, about)
    if "dimensions" not in about:
        check_sets(study, rows["samples"], about)
    here = speed(start_seconds)
    estimate = Estimate(rows, about, sizes, here)
    work = {stage.name: estimate.of(stage.name) for stage in stages}
    timings = {}
    for stage in stages:
        timing = paths.timing(stage.name.replace("@", "_"))
        if stage.kind in ("train", "sweep") and timing.exists():
            timings[stage.name] = read_json(timing)["seconds"]
    return Preview(path, rows, about, stages, reasons, work, timings, here.start_seconds, here.cores, unmet(study))
