"""The rows of a study and their results, as every section of the report reads them."""

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, read_json
from pipeline.evaluation.curve import TRANSFER, Curve
from pipeline.metrics.names import COORDINATES, headline, label
from pipeline.params.resolved import ReportRows
from pipeline.report.given import GivenResults
from pipeline.report.nll import Nll
from pipeline.report.page import marked
from pipeline.report.results import (
    FAILED,
    at_budget,
    distinct,
    failed_at,
    of_curve,
    read_likelihood,
    read_losses,
    read_results,
    read_timings,
)
from pipeline.report.statistics import Floor, Interval, estimate, floor_of, summarise
from pipeline.report.text import plain, stated, stated_verdict
from pipeline.report.verdicts import Verdict, Verdicts
from pipeline.sampling.row import keys_of
from pipeline.training.row import Model

METRICS = (
    "w2",
    "sliced_w2",
    "fd_corrected",
    "fd",
    "fd_infinity",
    "kd",
    "precision",
    "recall",
    "density",
    "coverage",
    "near_duplicates",
    "score",
)


STAGED = ("space", "resolution", "upsampler", "autoencoder", "after", "strength", "truncated", "share", "earlier")
FITTED = (*keys_of("fitted"), *TRANSFER)
PROTOCOL = ("end", "first_step", "exponent")
APART = ("nfe", "seeds", "method")  # keys of a curve that do not affect its sampling
SMALL_BUDGET = 7  # the small budget of tables is the one nearest to it
ROTATIONS = "rotation classifier"  # its classes are rotations, so an Inception score of it is meaningless


class Report:
    """All rows and their results. Raises StudyError if results were not measured in the same way."""

    def __init__(self, paths: Paths, figures: Path) -> None:
        self.paths, self.figures = paths, figures
        self.rows = rows = ReportRows(**read_json(paths.rows / "report.json"))
        self.models, self.curves, self.sets = rows.models, rows.curves, rows.sets
        self.results, self.failures, self.machines, self.provenance = read_results(paths, rows)
        self.measured = next(iter(self.provenance.values()))
        self.data = read_json(paths.metrics("prepare", "data"))
        self.extractor = read_json(paths.metrics("features", "extractor"))
        self.headline = headline(self.extractor["name"])  # the metric that is the score
        self.of_points = self.extractor["name"] == COORDINATES
        self.thing = "point" if self.of_points else "image"  # one item of the data
        self.things = self.thing + "s"
        self.reference = read_json(paths.metrics("reference", "floor"))
        self.agreement = read_json(paths.metrics("agreement", "libraries"))
        self.agreement |= {name: read_json(paths.metrics("measure", name))["agreement"] for name in self.sets}
        self.training = {name: read_json(paths.metrics("train", name)) for name in self.models}
        self.autoencoders = read_json(paths.metrics("autoencode", "autoencoders"))
        self.reconstructions = read_json(paths.metrics("reconstruct", "autoencoders"))
        self.oracle = read_json(paths.metrics("oracle", "solvers"))
        self.losses = read_losses(paths, [name for name in self.models if self.trainings(name)])
        self.learning = read_json(paths.metrics("losses", "models"))
        self.proposal = read_json(paths.metrics("propose", "noise"))
        fits = paths.metrics("grids", "solvers")
        self.fits: list[dict[str, Any]] = read_json(fits)["solvers"] if fits.exists() else []  # new in the stage
        asked = rows.likelihood.models if rows.likelihood else ()
        self.nll = Nll(*read_likelihood(paths, asked), asked) if asked else None
        self.given = GivenResults.read(paths, rows) if rows.posteriors else None
        self._check_origins()
        self.methods = [name for name, entry in self.curves.items() if entry.row.method] or list(self.curves)[:1]
        self.colours = {self.label(name): i for i, name in enumerate([*self.methods, *self.sets])}
        self.score = self.metric(self.headline)
        self._hashes: dict[str, str] = {}
        self.links: dict[str, int] = {}  # the key of each linked cell -> its place
        self._rows = {name: own for name, own in self.results.groupby("curve", sort=False)}
        self._failed: dict[tuple[str, int], bool] = {}
        self._points: dict[tuple[str, str], dict[int, Interval]] = {}
        self._cells: dict[tuple[str, int, str], pd.DataFrame] = {}

    def _check_origins(self) -> None:
        """Raise StudyError if the extractor or the reference is not the one of the curves."""
        for place, found, key in (
            ("features/extractor", self.extractor.get("hash"), "extractor_hash"),
            ("reference/floor", self.reference.get("reference_hash"), "reference_hash"),
        ):
            if found != self.measured[key]:
                raise StudyError(
                    f"{self.paths.reports}/metrics/{place}.json: its hash is {found}, but the curves were measured "
                    f"with {self.measured[key]}; run `dvc repro`"
                )

    @cached_property
    def staged(self) -> bool:
        """Whether any model lives in latents or makes a stage of a cascade. If not, no row uses the keys of STAGED."""
        return any(e.row.space or e.row.resolution or e.row.upsampler for e in self.models.values())

    @cached_property
    def unused(self) -> frozenset[str]:
        """The keys that the report leaves out: those of STAGED, FITTED and PROTOCOL if no row uses any of
        the group, and the sha256 of imported networks.

        No row of a study file has `numbers`.
        """
        rows = [entry.row for entry in self.curves.values()]
        fitted = any(row.solver == "fitted" for row in rows)
        protocol = any(getattr(row, key) != Curve.model_fields[key].default for row in rows for key in PROTOCOL)
        imported = any(entry.row.import_ is not None for entry in self.models.values())
        groups = {STAGED: self.staged, FITTED: fitted, PROTOCOL: protocol, ("sha256",): imported}
        return frozenset(["numbers", *(key for keys, used in groups.items() if not used for key in keys)])

    def flat(self, section: str, name: str) -> dict[str, Any]:
        """`ReportRows.flat`, without unused keys."""
        return _without(self.rows.flat(section, name), self.unused)

    @cached_property
    def finished(self) -> bool:
        """Whether any curve has a point."""
        return any(self.points(name) for name in self.curves)

    @cached_property
    def timings(self) -> pd.DataFrame:
        """Seconds per image of the current curves, without timings of other weights or samplers."""
        return read_timings(self.paths, self.results, {name: self.sampler(name) for name in self.curves})

    @cached_property
    def fittings(self) -> dict[str, tuple[str, str]]:
        """The model of each curve, and a hash of how it is sampled and what is fitted for it, its budgets left out."""
        return {name: (entry.row.model, entry.row.fitting_hash) for name, entry in self.curves.items()}

    @cached_property
    def distinct(self) -> list[str]:
        """The curves without those that only repeat points of an earlier curve with other seeds."""
        return distinct(
            {
                name: (self.fittings[name], {b for b in e.row.nfe if self.having([name], b)})
                for name, e in self.curves.items()
            }
        )

    @cached_property
    def samplers(self) -> dict[str, list[str]]:
        """The distinct curves of each model that has at least two."""
        found: dict[str, list[str]] = {}
        for name in self.distinct:
            found.setdefault(self.curves[name].row.model, []).append(name)
        return {model: names for model, names in found.items() if len(names) > 1}

    def metric(self, name: str) -> str:
        """The name of a metric with this extractor: it is FID only with Inception features."""
        return label(name, self.extractor["name"], self.extractor["official"])

    @cached_property
    def metrics(self) -> list[str]:
        """The measured, meaningful metrics in the order of the tables, the score first."""
        others = [metric for metric in METRICS if metric != self.headline]
        meaningful = [m for m in (self.headline, *others) if m != "score" or self.extractor["name"] != ROTATIONS]
        return [metric for metric in meaningful if (self.results.metric == metric).any()]

    def floor(self, metric: str) -> Floor | None:
        return floor_of(metric, self.reference, self.rows.samples)

    @cached_property
    def score_floor(self) -> Floor:
        """The floor of the score. Raises StudyError if it was not measured."""
        found = self.floor(self.headline)
        if not found:
            raise StudyError(
                f"{self.paths.reports}/metrics/reference/floor.json: {self.headline} was not measured; run `dvc repro`"
            )
        return found

    def _of(self, curve: str) -> pd.DataFrame:
        """The results of a curve: repeated lookups in all results would be slow."""
        return self._rows.get(curve, self.results.iloc[:0])

    def label(self, name: str) -> str:
        """What figures and tables call a curve or an image set: its method if it has one, else its name."""
        own = self.curves[name].row.method if name in self.curves else self.sets[name].method
        return own or name

    def model(self, curve: str) -> Model:
        """The row of the model that a curve samples."""
        return self.models[self.curves[curve].row.model].row

    def fitted_part(self, curve: str) -> str:
        """What of a curve is fitted to a network: its "solver", its "grid", or nothing ("")."""
        row = self.curves[curve].row
        return "solver" if row.solver == "fitted" else "grid" if row.discretization == "optimised" else ""

    def failed_trainings(self, model: str) -> dict[str, str]:
        """Why trainings of a model failed, by seed."""
        reasons: dict[str, str] = self.training[model].get("failed", {})
        return reasons

    def trainings(self, model: str) -> int:
        """The number of trainings of a model that did not fail."""
        return len(self.models[model].row.train_seeds) - len(self.failed_trainings(model))

    def share_trained(self, model: str) -> str:
        """How many of a model's trainings did not fail: "2 of 3 trainings"; empty if none failed."""
        total = len(self.models[model].row.train_seeds)
        return f"{self.trainings(model)} of {total} trainings" if self.failed_trainings(model) else ""

    def sampler(self, curve: str) -> str:
        """A hash of how a curve is sampled from its model, its budgets left out."""
        if curve not in self._hashes:
            self._hashes[curve] = self.curves[curve].row.sampler_hash
        return self._hashes[curve]

    def budgets(self, curves: list[str]) -> list[int]:
        """The union of the budgets of these curves."""
        return sorted({budget for name in curves for budget in self.curves[name].row.nfe})

    def common_budgets(self, curves: list[str]) -> list[int]:
        """The budgets that all of these curves have in params.yaml, with or without a result."""
        return sorted(set.intersection(*(set(self.curves[name].row.nfe) for name in curves)))

    def contested_budgets(self, curves: list[str]) -> list[int]:
        """The common budgets of these curves at which at least two of them have a result."""
        return [budget for budget in self.common_budgets(curves) if len(self.having(curves, budget)) > 1]

    def having(self, curves: list[str], budget: int) -> list[str]:
        """The curves with a result at a budget: it is one of their budgets, and the point within it did not fail."""
        return [n for n in curves if budget in self.curves[n].row.nfe and not self.cells(n, budget).empty]

    def missing(self, curve: str, budget: int) -> str:
        """The text in place of a missing result at a budget: "failed", or nothing if the curve has no point there."""
        key = curve, budget
        if key not in self._failed:
            self._failed[key] = budget in self.curves[curve].row.nfe and failed_at(self._of(curve), curve, budget)
        return FAILED if self._failed[key] else ""

    def with_points(self, names: list[str]) -> list[str]:
        """The curves and image sets that have any point."""
        return [name for name in names if self.points(name)]

    def cells(self, curve: str, budget: int, metric: str | None = None) -> pd.DataFrame:
        """The cells of a curve for a metric (None: the score) within a budget, by seeds; empty without a result."""
        key = curve, budget, metric or self.headline
        if key not in self._cells:
            self._cells[key] = at_budget(self._of(curve), curve, key[2], budget)
        return self._cells[key]

    def estimate(self, curve: str, budget: int, metric: str | None = None) -> Interval:
        """The mean and interval of a curve that has a result at a budget."""
        return estimate(self.cells(curve, budget, metric))

    def stated_at(self, curve: str, budget: int, metric: str | None = None) -> str:
        """The mean of a curve at a budget with its 95% half width, or the text of a missing result."""
        if not self.having([curve], budget):
            return self.missing(curve, budget)
        return self.linked(stated(self.estimate(curve, budget, metric)), curve, self.nfe(curve, budget), metric)

    def linked(
        self, text: str, curve: str, nfe: int, metric: str | None = None, base: tuple[str, int] = ("", 0)
    ) -> str:
        """A number that the page links to its cells: those of a curve at a counted NFE for a metric (None: the score)
        and, for a difference, those of `base`, (curve, NFE)."""
        key = f"{curve}/{nfe}/{metric or self.headline}" + (f"/{base[0]}/{base[1]}" if base[0] else "")
        return marked(text, self.links.setdefault(key, len(self.links)))

    @cached_property
    def verdicts(self) -> Verdicts:
        """All comparisons of the score between curves."""
        return Verdicts(self.curves, self.distinct, self.methods, self.cells, self.rows.report.smallest_effect)

    def verdict(self, curve: str, base: str, budget: int) -> Verdict:
        """The one verdict of the report on a curve against a base at a budget at which both have a result."""
        return self.verdicts.verdict(curve, base, budget)

    def course(self, curve: str, base: str) -> dict[int, Verdict]:
        """The verdicts on a curve against a base, at all common budgets at which both have a result."""
        shared = [b for b in self.common_budgets([curve, base]) if len(self.having([curve, base], b)) == 2]
        return {budget: self.verdict(curve, base, budget) for budget in shared}

    def compared(self, curve: str, base: str, budget: int) -> str:
        """The verdict on a curve against a base that both have a result at a budget, linked to their cells."""
        text = stated_verdict(self.verdict(curve, base, budget))
        return self.linked(text, curve, self.nfe(curve, budget), base=(base, self.nfe(base, budget)))

    def difference_at(self, curve: str, base: str, budget: int) -> str:
        """`compared`; if either curve has no result at the budget, whether it failed."""
        if len(self.having([curve, base], budget)) == 2:
            return self.compared(curve, base, budget)
        base_failed = budget in self.curves[curve].row.nfe and self.missing(base, budget)
        return self.missing(curve, budget) or (f"base {FAILED}" if base_failed else "")

    def stated_point(self, curve: str, nfe: int, metric: str | None = None) -> str:
        """A metric (None: the score) of a curve or image set at a counted NFE."""
        return self.linked(stated(self.points(curve, metric)[nfe]), curve, nfe, metric)

    def nfe(self, curve: str, budget: int) -> int:
        """The NFE that a curve with a result at a budget uses."""
        return int(self.cells(curve, budget).nfe.iloc[0])

    def depth(self, curve: str, steps: int, nfe: int) -> int | None:
        """The evaluations of a sample that wait for each other. None if unknown: of image sets, guided rk45."""
        row = self.curves[curve].row if curve in self.curves else None
        if row is None or row.build_solver().adaptive:
            return nfe if row and not row.side_by_side else None
        return row.depth(steps)

    @cached_property
    def side_by_side(self) -> bool:
        """Whether any curve calls networks that do not wait for each other, so that its depth is below its NFE."""
        return any(entry.row.side_by_side for entry in self.curves.values())

    def points(self, curve: str, metric: str | None = None) -> dict[int, Interval]:
        """The mean and interval of a curve by counted NFE."""
        key = curve, metric or self.headline
        if key not in self._points:
            self._points[key] = summarise(self._of(curve), *key)
        return self._points[key]

    def lowest(self, curves: list[str]) -> dict[int, Interval]:
        """The lowest mean of several curves and its interval, by counted NFE."""
        found: dict[int, Interval] = {}
        for nfe, point in (pair for name in curves for pair in self.points(name).items()):
            if nfe not in found or point.mean < found[nfe].mean:
                found[nfe] = point
        return dict(sorted(found.items()))

    def steps(self, curve: str) -> dict[int, int]:
        """The number of steps at each measured NFE of a curve, with and without a result."""
        own = of_curve(self._of(curve), curve)
        return {int(nfe): int(steps) for nfe, steps in zip(own.nfe, own.steps, strict=True)}

    def best_point(self, curve: str) -> tuple[float, int]:
        """The mean score of the best point of a curve that has any, and its NFE."""
        return min((point.mean, nfe) for nfe, point in self.points(curve).items())

    @cached_property
    def best_of_all(self) -> tuple[str, int, float]:
        """The curve, the NFE and the mean score of the study's best point."""
        (mean, nfe), name = min((self.best_point(name), name) for name in self.with_points(self.distinct))
        return name, nfe, mean

    def best(self, curves: list[str], budget: int) -> list[str]:
        """The curve of the smallest mean at a budget, then the others that may be the best; empty without a result."""
        having = self.having(curves, budget)
        return self.verdicts.may_be_best(having, budget) if having else []

    @cached_property
    def ablations(self) -> dict[str, list[str]]:
        """The curves of each axis on which they differ from their base, by title, without methods."""
        found: dict[str, list[str]] = {}
        for name, entry in self.curves.items():
            if entry.axis and name not in self.methods:
                found.setdefault(entry.axis, []).append(name)
        return found

    def choice(self, name: str) -> str:
        """The changes of a row as written in params.yaml: "rho 3", "P_mean -1 + P_std 1"."""
        return " + ".join(f"{key} {plain(value)}" for key, value in self.curves[name].differences.items()) or name


def _without(row: dict[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    """A row, and the rows in it, without some keys."""
    return {key: _without(own, keys) if isinstance(own, dict) else own for key, own in row.items() if key not in keys}


def low_and_high(budgets: list[int]) -> list[int]:
    """The budget nearest to SMALL_BUDGET, in ratio, and the largest one; `budgets` ascend."""
    return list(dict.fromkeys([min(budgets, key=lambda b: abs(math.log(b / SMALL_BUDGET))), budgets[-1]]))
