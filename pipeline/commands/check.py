"""`check`: a preview of a study. It validates the study with its data, and says what would run and what that costs."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.commands.cost import DVC_SECONDS, WITHIN, Estimate, Work, decoder_size_of, model_size, off_by, speed
from pipeline.commands.seeds import MORE, minutes_of_seeds, worth
from pipeline.commands.stale import Reason, reasons_of_rows
from pipeline.common.files import Paths, read_json
from pipeline.common.machine import machine
from pipeline.data.dataset import described, shape_of
from pipeline.metrics.extractors.inception import lacking
from pipeline.params.null_axes import notes
from pipeline.params.places import check_place
from pipeline.params.resolve import resolve_with_data
from pipeline.params.resolved import Resolved
from pipeline.params.study import read_study, unmet
from pipeline.training.bill import bills

NAMED = 3  # rows that are named if there are more


@dataclass(frozen=True)
class Preview:
    """What a study would do."""

    path: Path
    rows: Resolved
    about: Mapping[str, Any]
    """The summary of its data set."""
    stages: Mapping[str, Reason | None]
    """Every stage but `resolve`, and why it would run; None if it would not."""
    work: Mapping[str, Work]
    timings: Mapping[str, float]
    """The seconds that trainings and sweeps took when they last ran here."""
    start_seconds: float
    """The time that a stage's process takes to start."""
    cores: int
    seeds: str
    """What further seeds cost and buy, in one line."""
    weighted: Mapping[str, Mapping[int, float]]
    """FLOP-weighted NFE of the methods by budget; empty if their evaluations cost the same and none is decoded."""
    lacks: tuple[str, ...] = ()
    """What this machine lacks to run it."""

    @property
    def running(self) -> list[str]:
        return [stage for stage, reason in self.stages.items() if reason]

    def warnings(self) -> list[str]:
        return [*self.lacks, *notes(self.rows)]

    def lines(self) -> Iterator[str]:
        """The preview, to be printed."""
        yield f"{self.path}: {len(self.rows.models)} models, {len(self.rows.curves)} curves"
        classes = f", {len(self.about['classes'])} classes" if self.about["classes"] else ""
        source = self.rows.data.source
        held = f", {self.about['heldout']:,} more held out" if self.about.get("heldout") else ""
        yield f"{source!r}: {self.about['count']:,} {described(shape_of(dict(self.about)))}{classes}{held}"
        yield ""
        if self.running:
            yield from self._table()
        else:
            yield f"all {len(self.stages)} stages are up to date"
        yield from self._bills()
        yield from self._weighted()
        yield from self._accuracy()
        yield self.seeds

    def _table(self) -> Iterator[str]:
        yield f"{'stage':<10}{'to run':>9}{'evaluations':>14}{'minutes':>9}{'memory':>9}  why"
        for kind, group in groupby(self.stages, key=lambda stage: stage.partition("@")[0]):
            stages = list(group)
            if running := [stage for stage in stages if self.stages[stage]]:
                count = f"{len(running)} of {len(stages)}" if len(stages) > 1 else "1"
                yield f"{kind:<10}{count:>9}{self._sums(running)}  {self._why(running)}"
        yield f"{'together':<10}{f'{len(self.running)} of {len(self.stages)}':>9}{self._sums(self.running)}"
        yield ""
        minutes = self._minutes(self.stages)
        yield (
            f"minutes on {self.cores} cores, {machine()['device']}; the whole study takes {minutes:.1f}; "
            "work that is in .cache takes none"
        )

    def _sums(self, stages: Iterable[str]) -> str:
        work = [self.work[stage] for stage in stages]
        evaluations, memory = sum(each.evaluations for each in work), max(each.mib for each in work) / 1024
        counted = f"{evaluations:,}" if evaluations else "-"
        return f"{counted:>14}{self._minutes(stages):>9.1f}{memory:>6.1f} GiB"

    def _bills(self) -> Iterator[str]:
        """Images and evaluations of one training of each model that learns from a teacher, and of those beside it."""
        names = self.rows.billed
        if not names:
            return
        width = max(10, *(len(name) + 2 for name in names))
        yield ""
        yield f"{'':<{width}}{'images':>12}{'evaluations':>38}"
        yield f"{'training':<{width}}" + 2 * f"{'own':>12}{'teacher':>13}{'together':>13}"
        for name in names:
            own, teacher, both = bills(self.rows.models[name].row).values()
            counts = (own.images, teacher.images, both.images, own.evaluations, teacher.evaluations, both.evaluations)
            texts = [f"{count:,}" if count else "-" for count in counts]
            yield f"{name:<{width}}" + "".join(f"{text:>{12 + (i % 3 > 0)}}" for i, text in enumerate(texts))
        yield "of one seed; a teacher is trained once, however many learn from it"
        yield ""

    def _weighted(self) -> Iterator[str]:
        """FLOP-weighted NFE of the methods at each of their budgets, if their networks differ."""
        if not self.weighted:
            return
        width = max(map(len, self.weighted)) + 2
        yield f"{'FLOP-weighted NFE':<{width}}  budget: evaluations of the first model of full images that cost as much"
        for name, costs in self.weighted.items():
            yield f"{name:<{width}}  " + ", ".join(f"{budget}: {cost:.3g}" for budget, cost in costs.items())
        yield ""

    def _accuracy(self) -> Iterator[str]:
        ratios = off_by({name: self.work[name].seconds for name in self.timings}, self.timings)
        yield f"9 of 10 trainings and sweeps took between 1/{WITHIN} and {WITHIN} times as long (docs/checking.md)"
        if ratios:
            yield (
                f"the {len(ratios)} timed in this folder took {median(ratios):.2f} times as long (median), "
                f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
            )

    def _minutes(self, stages: Iterable[str]) -> float:
        return sum(self.work[stage].seconds + self.start_seconds + DVC_SECONDS for stage in stages) / 60

    def _why(self, stages: list[str]) -> str:
        """Each reason once, with the rows that it applies to."""
        rows: dict[str, list[str]] = {}
        for stage in stages:
            rows.setdefault(str(self.stages[stage]), []).append(stage.partition("@")[2])
        parts = []
        for reason, names in rows.items():
            more = len(names) - NAMED
            listed = ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
            parts.append(f"{reason}: {listed}" if listed else reason)
        return "; ".join(parts)


def preview(path: Path, start_seconds: float, beside: Executor | None = None) -> Preview:
    """Validate a study file with its data, as `resolve` does, and estimate its stages.

    start_seconds: the time that a stage's process takes to start. beside: a process that has loaded DVC, if there is
    one. Raises StudyError, one line saying where and what.
    """
    study = read_study(path)
    rows, about = resolve_with_data(study)
    graph, paths = check_place(path, study), Paths(study.study.name)
    if beside:
        stages = beside.submit(reasons_of_rows, graph, paths.rows, rows.files()).result()
    else:
        stages = reasons_of_rows(graph, paths.rows, rows.files())
    speed_here = speed(start_seconds)
    sizes = {name: model_size(entry.row, about) for name, entry in rows.models.items()}
    decoders = {name: decoder_size_of(row, about) for name, row in rows.autoencoders.items()}
    estimate = Estimate(rows, about, sizes, speed_here, decoders)
    work = {stage: estimate.of(stage) for stage in stages}
    timings = {}
    for stage in (stage for stage in stages if stage.startswith(("train@", "sweep@"))):
        timing = paths.timing(stage.replace("@", "_"))
        if timing.exists():
            timings[stage] = read_json(timing)["seconds"]
    weights = lacking(rows.features) if stages["features"] else None
    lacks = tuple(line for line in (unmet(study), weights) if line)
    minutes = {more: minutes_of_seeds(estimate, stages, more) for more in MORE}
    seeds = worth(rows, minutes, paths.reports / "results.csv")
    start, weighted = speed_here.start_seconds, _weighted(estimate)
    return Preview(path, rows, about, stages, work, timings, start, speed_here.cores, seeds, weighted, lacks)


def _weighted(estimate: Estimate) -> dict[str, dict[int, float]]:
    """See `Preview.weighted`."""
    rows = estimate.study
    curves = {name: entry.row for name, entry in rows.curves.items() if entry.row.method}
    flops = {estimate.sizes[model].flops for row in curves.values() for model in row.stages}
    decoded = any(rows.models[row.model].row.space for row in curves.values())
    if len(flops) < 2 and not decoded:
        return {}
    return {name: {budget: estimate.weighted(row, budget) for budget in row.nfe} for name, row in curves.items()}
