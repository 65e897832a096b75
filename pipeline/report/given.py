"""Posterior samplers against exact posteriors: means, intervals and paired comparisons over problems and trainings."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from pipeline.common.files import Paths, read_json
from pipeline.common.tensors import load_tensors
from pipeline.evaluation.given import EXACT, HELDOUT, LEVELS, PRIOR, Cell, Line, load_cells
from pipeline.evaluation.given_rows import PosteriorRow
from pipeline.params.resolved import PosteriorEntry, ReportRows
from pipeline.report.comparisons import LEVEL, Contrast, holm, judged, may_be_best
from pipeline.report.statistics import Interval
from pipeline.report.verdicts import ROUNDING, Verdict
from pipeline.sampling.row import Sampler

DISTANCE, SCORE = "sliced_w2", "energy_score"  # the headline with an exact posterior, and without one
COVERAGES = {f"coverage_{level * 100:.0f}": level for level in LEVELS}
TINY = 1e-300  # the least distance that has a logarithm
SAME = 1e-9  # exact draws at a smaller distance from each other are all one x0
LARGEST = 700.0  # the largest logarithm of a number


class Key(NamedTuple):
    """A row on one measurement and part of the problems, at a budget of cost; the budget of exact draws is 0."""

    row: str
    measurement: str
    part: str
    budget: int


@dataclass(frozen=True)
class Point:
    """The cells of a key: the line of the first, and values by training and problem.

    values: score -> (T, P), means over the sampling seeds of each training, of the distance's logarithm. T is 1 for the
    exact denoiser. trainings: their seeds, () for the exact denoiser. ranks: (cells, P, K). shown: the first draws of
    the first cell. failed: the reasons why this point has no result.
    """

    line: Line
    trainings: tuple[int, ...]
    values: dict[str, np.ndarray]
    ranks: np.ndarray
    shown: np.ndarray
    failed: tuple[str, ...] = ()

    @classmethod
    def of(cls, cells: Sequence[Cell], spread: np.ndarray | None = None) -> Self:
        """The point of cells that differ in their seeds only. It fails if one fails or its headline is not finite.

        spread: the problems whose distances count, (P,) of bool; None: all. With fewer than two there is no distance.
        """
        line, reasons = cells[0].line, [cell.line.failed for cell in cells if cell.line.failed]
        reasons += [] if reasons else [reason for cell in cells if (reason := _infinite(cell))]
        trainings = tuple(dict.fromkeys(int(cell.line.train_seed) for cell in cells if cell.line.train_seed != ""))
        if reasons:
            return cls(line, trainings, {}, np.empty(0), np.empty(0), tuple(dict.fromkeys(reasons)))
        groups = [[cell for cell in cells if cell.line.train_seed == seed] for seed in trainings] or [list(cells)]
        values = {}
        for score in cells[0].scores:
            if score == DISTANCE and spread is not None and spread.sum() < 2:
                continue
            own = [[_scale(score, cell.scores[score].numpy(), spread) for cell in group] for group in groups]
            values[score] = np.stack([np.mean(group, 0) for group in own])
        ranks = np.stack([cell.ranks.numpy() for cell in cells])
        return cls(line, trainings, values, ranks, cells[0].shown.numpy())


def _infinite(cell: Cell) -> str:
    """Why a cell has no result although its sampling did not fail; empty if it has one."""
    name = DISTANCE if DISTANCE in cell.scores else SCORE
    values = cell.scores[name].numpy()
    count = int((~np.isfinite(values)).sum())
    return f"samples of {count} of {len(values)} problems are not finite or too large to score" if count else ""


def _scale(score: str, values: np.ndarray, spread: np.ndarray | None) -> np.ndarray:
    """The values whose mean the report uses: of the distance, logarithms for the problems that count."""
    if score != DISTANCE:
        return values
    return np.log(np.maximum(values if spread is None else values[spread], TINY))


def crossed(values: np.ndarray, trainings: Sequence[np.ndarray] = (), floor: float = 0.0) -> Contrast:
    """The mean of values by problem, (P,), and its error over problems and trainings, which are crossed.

    trainings: for each network, the mean over problems of each of its trainings, (T,). A single training adds no error.
    floor: the least variance between problems.

    Problems and trainings are two random factors. The variance is that of the means of problems over P, plus that of
    the means of trainings over T. In expectation it exceeds the true one by the variance of their interaction over
    P T, so intervals are too wide rather than too narrow (as for the pigeonhole bootstrap, Owen 2007, doi
    10.1214/07-AOAS122). Degrees of freedom: Satterthwaite 1946, Biometrics Bulletin 2, 110.
    """
    count = len(values)
    with np.errstate(all="ignore"):
        parts = [(max(float(np.var(values, ddof=1)), floor) / count, count - 1)] if count > 1 else []
        parts += [(float(np.var(own, ddof=1)) / len(own), len(own) - 1) for own in trainings if len(own) > 1]
    mean, square = float(np.mean(values)), sum(part for part, _ in parts)
    if not (parts and math.isfinite(mean) and math.isfinite(square)):
        return Contrast(mean, 1, math.inf, 0)
    shares = [(part / square if square else 1.0, df) for part, df in parts]
    df = sum(share for share, _ in shares) ** 2 / sum(share**2 / df for share, df in shares)
    return Contrast(mean, 1, square, df)


def interval_of(found: Contrast, count: int, logs: bool) -> Interval:
    """A mean with its 95% interval, of logarithms as a geometric mean."""
    half = found.half_width()
    ends = (found.effect, found.effect - half, found.effect + half)
    mean, low, high = (math.exp(min(end, LARGEST)) if logs else end for end in ends)
    return Interval(mean, low, high, count)


def contrast(one: Point, two: Point, score: str) -> Contrast:
    """One point minus another one, paired by problem, and by training if both rows use the same networks.

    Of two models, the trainings are independent; those of one model are pairs.
    """
    own, base = one.values[score], two.values[score]
    shared = [seed for seed in one.trainings if seed in two.trainings] if one.line.model == two.line.model else []
    if shared:
        own, base = (
            values[[point.trainings.index(seed) for seed in shared]] for values, point in ((own, one), (base, two))
        )
    differences = own.mean(0) - base.mean(0)
    if np.abs(differences).max() <= ROUNDING:
        return Contrast(0.0, 1, 0.0, len(differences) - 1)
    means = [values.mean(1) for values in (own, base)]
    return crossed(differences, [means[0] - means[1]] if shared else means)


class GivenResults:
    """The results of the stages `tune` and `given`.

    rows: the study. cells: row -> its cells, with EXACT. tuned: row -> the records of its tuning. problems: the first
    problems, "measurement/part/name" -> tensor. shape: that of one x0.
    """

    def __init__(
        self,
        rows: ReportRows,
        cells: Mapping[str, Sequence[Cell]],
        tuned: Mapping[str, list[dict[str, Any]]],
        problems: Mapping[str, np.ndarray],
        shape: Sequence[int],
    ) -> None:
        self.rows, self.entries, self.given = rows, rows.posteriors, rows.given
        self.tuned, self.problems, self.shape = tuned, problems, tuple(shape)
        self.margin = math.log1p(rows.report.smallest_effect)
        grouped: dict[Key, list[Cell]] = {}
        for name, own in cells.items():
            for cell in own:
                line = cell.line
                grouped.setdefault(Key(name, line.measurement, line.part, line.nfe), []).append(cell)
        self.spread = {
            cell.line.measurement: cell.scores[DISTANCE].numpy() > SAME for cell in cells.get(EXACT, []) if cell.scores
        }
        self.points = {
            key: Point.of(own, self.spread.get(key.measurement) if key.part == PRIOR else None)
            for key, own in grouped.items()
        }

    @classmethod
    def read(cls, paths: Paths, rows: ReportRows) -> Self:
        """Raises Missing or Broken."""
        folder = paths.build / "posteriors"
        cells = {name: load_cells(_file(folder, name)) for name in [EXACT, *rows.posteriors]}
        tensors, record = load_tensors(_file(folder, "problems"), "problems")
        problems = {name: tensor.numpy() for name, tensor in tensors.items()}
        return cls(rows, cells, read_json(paths.metrics("tune", "posteriors")), problems, record["shape"])

    # Rows

    def row(self, name: str) -> PosteriorRow:
        return self.entries[name].row

    @property
    def oracles(self) -> list[str]:
        """The rows with the exact denoiser."""
        return [name for name in self.entries if self.row(name).model is None]

    @property
    def networks(self) -> list[str]:
        """The rows with a trained network."""
        return [name for name in self.entries if self.row(name).model is not None]

    def _pairs(self, kind: Callable[[PosteriorEntry, PosteriorRow], bool]) -> dict[str, str]:
        """The rows with their bases, if they name one and are of a kind."""
        return {
            name: entry.base
            for name, entry in self.entries.items()
            if entry.explicit and entry.base != name and kind(entry, self.row(entry.base))
        }

    @cached_property
    def tuned_pairs(self) -> dict[str, str]:
        """Tuned row -> the same row without tuning."""
        return self._pairs(lambda entry, base: not entry.differences and bool(entry.row.tune) and not base.tune)

    @cached_property
    def network_pairs(self) -> dict[str, str]:
        """Row with a network -> the same row with the exact denoiser."""
        return self._pairs(lambda entry, base: set(entry.differences) == {"model"} and base.model is None)

    @cached_property
    def sampler_pairs(self) -> dict[str, str]:
        """Row with another solver, grid or range -> its base."""
        keys = set(Sampler.model_fields) - {"nfe"}
        return self._pairs(lambda entry, base: bool(entry.differences) and set(entry.differences) <= keys)

    @property
    def variants(self) -> list[str]:
        """One row with the exact denoiser for each method and choice: without rows that another one tunes, and without
        other solvers."""
        superseded = {*self.tuned_pairs.values(), *self.sampler_pairs}
        return [name for name in self.oracles if name not in superseded]

    # Points

    @property
    def measurements(self) -> list[str]:
        return list(self.rows.measurements)

    def point(self, row: str, measurement: str, part: str, budget: int) -> Point | None:
        """The point of a row; None if it was not measured or failed."""
        found = self.points.get(Key(row, measurement, part, budget))
        return found if found and not found.failed else None

    def failed(self, row: str, measurement: str, part: str, budget: int) -> bool:
        found = self.points.get(Key(row, measurement, part, budget))
        return bool(found and found.failed)

    def measured(self, names: Sequence[str], measurement: str, part: str) -> list[str]:
        """Those of the rows that were measured, also those that failed."""
        own = {key.row for key in self.points if (key.measurement, key.part) == (measurement, part)}
        return [name for name in names if name in own]

    def budgets(self, names: Sequence[str], measurement: str, part: str) -> list[int]:
        """All budgets of the rows on a measurement."""
        own = {k.budget for k in self.points if k.row in names and (k.measurement, k.part) == (measurement, part)}
        return sorted(own)

    def largest(self, row: str, measurement: str, part: str) -> int:
        """The largest budget of a row that was measured."""
        return self.budgets([row], measurement, part)[-1]

    def exact(self, measurement: str, part: str = PRIOR) -> Point | None:
        """The point of further draws of the exact posterior."""
        return self.point(EXACT, measurement, part, 0)

    def estimate(self, point: Point, score: str) -> Interval | None:
        """The mean of a score with its interval: geometric of the distance, else arithmetic. None if it is unknown or
        not finite.

        The variance of a coverage between problems is at least that of RANKED independent ranks.
        """
        if score not in point.values:
            return None
        values = point.values[score]
        level = COVERAGES.get(score)
        floor = level * (1 - level) / point.ranks.shape[2] if level else 0.0
        with np.errstate(all="ignore"):
            found = crossed(values.mean(0), [values.mean(1)], floor)
        return interval_of(found, values.shape[1], score == DISTANCE) if math.isfinite(found.effect) else None

    # Comparisons

    def best(self, names: Sequence[str], measurement: str, part: str, budget: int, score: str = DISTANCE) -> list[str]:
        """The row with the lowest mean at a budget, then the others that may be the best; empty without a result."""
        found = {
            name: own for name in names if (own := self.point(name, measurement, part, budget)) and score in own.values
        }
        if not found:
            return []
        ordered = sorted(found, key=lambda name: float(found[name].values[score].mean()))
        kept = may_be_best(ordered, lambda one, two: contrast(found[one], found[two], score))
        return [ordered[0], *(name for name in kept if name != ordered[0])]

    def verdicts(self, pairs: Mapping[Any, tuple[Point, Point]], score: str = DISTANCE) -> dict[Any, Verdict]:
        """The verdicts on pairs of points, corrected for all of them by Holm's method.

        Equivalence has the margin of the study's curves, with Bonferroni's correction.
        """
        found = {key: contrast(*points, score) for key, points in pairs.items()}
        open_ones = [key for key, own in found.items() if own.variance or not own.df]
        adjusted = dict(zip(open_ones, holm([found[key].p for key in open_ones]), strict=True))
        family, logs = max(len(open_ones), 1), score == DISTANCE
        verdicts = {}
        for key, own in found.items():
            p, half = adjusted.get(key, 1.0 if own.effect == 0 else own.p), own.half_width(LEVEL / family)
            word = judged(own.effect, half, p, self.margin if logs else -1.0) if own.known else "undecided"
            one, two = pairs[key]
            plain = interval_of(own, one.values[score].shape[1], logs)
            low, high = own.effect - half, own.effect + half
            ends = (math.exp(min(low, LARGEST)), math.exp(min(high, LARGEST))) if logs else (low, high)
            alone = any(len(point.trainings) == 1 for point in (one, two))
            verdicts[key] = Verdict(word, plain, ends, p, logs, "one training" if alone else "")
        return verdicts

    def against(self, pairs: Mapping[str, str]) -> dict[tuple[str, str, int], Verdict]:
        """The verdicts on rows against their bases: (row, measurement, budget) -> verdict, one family."""
        found = {}
        for name, base in pairs.items():
            for key, point in self.points.items():
                if key.row == name and key.part == PRIOR and not point.failed and DISTANCE in point.values:
                    other = self.point(base, key.measurement, PRIOR, key.budget)
                    if other and DISTANCE in other.values:
                        found[name, key.measurement, key.budget] = point, other
        return self.verdicts(found)

    @cached_property
    def tuning(self) -> dict[tuple[str, str, int], Verdict]:
        """Tuned rows against the same rows without tuning."""
        return self.against(self.tuned_pairs)

    @cached_property
    def network_verdicts(self) -> dict[tuple[str, str, int], Verdict]:
        """Rows with networks against the same rows with the exact denoiser."""
        return self.against(self.network_pairs)

    def same_keys(self, row: str, measurement: str, budget: int) -> bool:
        """Whether a row with a network has the same keys as its base; tuned rows choose theirs."""
        points = [self.point(name, measurement, PRIOR, budget) for name in (row, self.network_pairs[row])]
        return len({point.line.keys for point in points if point}) == 1

    @cached_property
    def sampler_verdicts(self) -> dict[tuple[str, str, int], Verdict]:
        """Rows with other solvers against their bases."""
        return self.against(self.sampler_pairs)

    @cached_property
    def against_exact(self) -> dict[tuple[str, str], Verdict]:
        """Every row at its largest budget against exact draws: (row, measurement) -> verdict, one family."""
        found = {}
        for measurement in self.measurements:
            exact = self.exact(measurement)
            for name in self.measured(list(self.entries), measurement, PRIOR):
                point = self.point(name, measurement, PRIOR, self.largest(name, measurement, PRIOR))
                if exact and point and DISTANCE in point.values and DISTANCE in exact.values:
                    found[name, measurement] = point, exact
        return self.verdicts(found)

    @cached_property
    def calibration(self) -> dict[tuple[str, str], str]:
        """Whether central 90% intervals cover "less" or "more" than 90% of truths, or "": (row, measurement) -> word.

        At the largest budget of each row, corrected for all rows and measurements by Holm's method.
        """
        score = list(COVERAGES)[-1]
        level, found = COVERAGES[score], {}
        for measurement in self.measurements:
            for name in self.measured(list(self.entries), measurement, PRIOR):
                point = self.point(name, measurement, PRIOR, self.largest(name, measurement, PRIOR))
                if point:
                    values = point.values[score]
                    floor = level * (1 - level) / point.ranks.shape[2]
                    found[name, measurement] = crossed(values.mean(0) - level, [values.mean(1)], floor)
        adjusted = holm([own.p for own in found.values()])
        return {
            key: "" if p >= LEVEL else "less" if own.effect < 0 else "more"
            for (key, own), p in zip(found.items(), adjusted, strict=True)
        }

    @property
    def failures(self) -> dict[tuple[str, str, str, str], list[int]]:
        """(row, measurement, part, reason) -> the budgets that failed."""
        found: dict[tuple[str, str, str, str], list[int]] = {}
        for key, point in self.points.items():
            for reason in point.failed:
                found.setdefault((key.row, key.measurement, key.part, reason), []).append(key.budget)
        return found

    @property
    def heldout(self) -> bool:
        return any(key.part == HELDOUT for key in self.points)


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"
