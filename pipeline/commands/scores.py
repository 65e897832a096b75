"""The scores of a study's committed results, and comparisons of them: what `best` and `claim` answer from.

They need the study file and reports/<study>, and no outputs in build/.
"""

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from pipeline.commands.verify import other_rows
from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, read_json
from pipeline.metrics.names import headline, label
from pipeline.params.resolve import resolve
from pipeline.params.resolved import Resolved
from pipeline.params.study import read_study
from pipeline.report.results import at_budget, distinct, read_published, read_timings
from pipeline.report.statistics import Interval, estimate
from pipeline.report.verdicts import Compared, Point, Verdicts


class Scores:
    """The scores of the curves of a study, by curve and budget."""

    def __init__(self, rows: Resolved, paths: Paths) -> None:
        """Raises StudyError if the study has no results, or broken ones."""
        self.rows, self.paths, found = rows, paths, read_published(paths)
        self.table = found[~found.is_set]
        extractor = read_json(paths.metrics("features", "extractor"))
        self.metric = headline(extractor["name"])
        self.label = label(self.metric, extractor["name"], extractor["official"])
        self._cells: dict[Point, pd.DataFrame] = {}

    def cells(self, curve: str, budget: int) -> pd.DataFrame:
        """The cells of a curve within a budget, by seeds; empty without a result."""
        key = curve, budget
        if key not in self._cells:
            self._cells[key] = at_budget(self.table, curve, self.metric, budget)
        return self._cells[key]

    def points(self, curve: str) -> dict[int, int]:
        """The budgets of a curve at which it has a result, rising, with the NFE that it uses there."""
        found = {budget: self.cells(curve, budget) for budget in sorted(self.rows.curves[curve].row.nfe)}
        return {budget: int(own.nfe.iloc[0]) for budget, own in found.items() if not own.empty}

    def nfe(self, point: Point) -> int:
        """The NFE that a curve uses at a budget."""
        return self.points(point[0])[point[1]]

    def estimate(self, point: Point) -> Interval:
        """The mean score of a point and its interval."""
        return estimate(self.cells(*point))

    @cached_property
    def samplers(self) -> dict[str, str]:
        """The hash of each curve's sampler."""
        return {name: entry.row.sampler_hash for name, entry in self.rows.curves.items()}

    @cached_property
    def verdicts(self) -> Verdicts:
        """All comparisons between points."""
        curves = self.rows.curves
        own = distinct(
            {name: ((e.row.model, e.row.fitting_hash), set(self.points(name))) for name, e in curves.items()}
        )
        methods = [name for name, entry in curves.items() if entry.row.method] or list(curves)[:1]
        return Verdicts(curves, own, methods, self.cells, self.rows.report.smallest_effect)

    def between(self, one: Point, two: Point) -> Compared:
        """The contrast of two points with a result, the first minus the second.

        The row that the study names first is the base, as in the report, so that a claim and its converse agree.
        """
        names = list(self.rows.curves)
        place = {point: (names.index(point[0]), point[1]) for point in (one, two)}
        if place[one] >= place[two]:
            return self.verdicts.between(one, two)
        found = self.verdicts.between(two, one)
        return replace(found, contrast=found.contrast._replace(effect=-found.contrast.effect))

    @cached_property
    def seconds(self) -> dict[Point, float]:
        """The measured seconds per image, by curve and NFE; empty if nobody timed the study."""
        found = read_timings(self.paths, self.table, self.samplers)
        return {(row.curve, row.nfe): row.seconds_per_image for row in found.itertuples()}

    def changes(self, curves: list[str]) -> list[str]:
        """How the rows of curves differ from those that made the results, in sentences."""
        origins = self.paths.reports / "provenance.json"
        made = {name: own["row"] for name, own in read_json(origins).items()} if origins.exists() else {}
        return [f"The study file has changed since: {change}." for change in other_rows(made, curves, self.rows)]


def read_scores(params: Path) -> Scores:
    """The scores of a study. Raises StudyError as `Scores` does."""
    rows = resolve(read_study(params))
    found = Scores(rows, Paths(rows.study.name))
    if not any(found.points(name) for name in rows.curves):
        raise StudyError(f"{found.paths.reports / 'results.csv'}: no curve of {params} has a result; run `make repro`")
    return found
