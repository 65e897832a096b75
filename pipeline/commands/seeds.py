"""What further seeds of every row cost, and how small an effect they let a study tell."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import harmonic_mean, median_low
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.commands.cost import Estimate
from pipeline.metrics.names import TRAIN, headline
from pipeline.params.resolved import CurveEntry, ModelEntry, Resolved
from pipeline.report.comparisons import Population, detectable, overlap, population
from pipeline.report.results import at_budget

MORE = (1, 2)  # the further seeds that a line is about
GROWING = ("train", "losses", "likelihood", "given", "grids", "sweep")  # the stages whose work grows with the seeds


def with_more_seeds(rows: Resolved, more: int) -> Resolved:
    """A study with `more` further training seeds in every model, from which its curves sample, too."""
    models: dict[str, ModelEntry] = {}
    new: dict[str, list[int]] = {}
    for name, entry in rows.models.items():
        seeds = entry.row.train_seeds
        new[name] = [seed for seed in range(len(seeds) + more) if seed not in seeds][:more]
        row = entry.row.model_copy(update={"train_seeds": (*seeds, *new[name])})
        models[name] = entry.model_copy(update={"row": row})
    curves: dict[str, CurveEntry] = {}
    for name, curve in rows.curves.items():
        samplings = curve.row.sample_seeds if curve.row.repetitions == "crossed" else curve.row.sample_seeds[:1]
        pairs = [(train, sample) for train in new[curve.row.model] for sample in samplings]
        own = curve.row.model_copy(update={"seeds": (*curve.row.seeds, *pairs)})
        curves[name] = curve.model_copy(update={"row": own})
    return rows.model_copy(update={"models": models, "curves": curves})


def minutes_of_seeds(estimate: Estimate, stages: Iterable[str], more: int) -> float:
    """The minutes that `more` further seeds of every row add to a run of all `stages`, by their names in dvc.yaml."""
    larger = replace(estimate, study=with_more_seeds(estimate.study, more))
    growing = [stage for stage in stages if stage.partition("@")[0] in GROWING]
    return sum(larger.of(stage).seconds - estimate.of(stage).seconds for stage in growing) / 60


class Power(NamedTuple):
    """How small an effect a study tells at a budget, and on what that depends.

    scatter: the variances of ln score between the trainings of a row. seeds: the trainings of either side of a typical
    comparison. comparisons: their number with one base. within: whether both sides sample one network; the variances
    are then half of those of their paired differences.
    """

    budget: int
    scatter: Population
    seeds: float
    comparisons: int
    within: bool

    def ratio(self, more: int = 0) -> float:
        """The smallest ratio of scores that is told in 80% of cases, with `more` further seeds of every row."""
        return detectable(self.scatter, self.seeds + more, self.comparisons)


def power(results: pd.DataFrame, rows: Resolved) -> Power | None:
    """The power of comparisons with the first curve, from results of the study with any seeds; None if unknown.

    results: the table of results.csv. The budget is the largest that most curves have. Comparisons are those of models,
    or of samplers if the study has one model. A row of one training, or with a score that is not positive, tells
    nothing.
    """
    first, metric = next(iter(rows.curves)), headline(rows.features.extractor)
    budgets = [budget for entry in rows.curves.values() for budget in entry.row.nfe]
    budget = max((b for b in budgets if 2 * budgets.count(b) > len(rows.curves)), default=max(budgets))
    logs = {name: _logs(at_budget(results, name, metric, budget)) for name in rows.curves}
    others = [name for name, entry in rows.curves.items() if name != first and entry.base == first]
    within = len(rows.models) == 1
    if within:
        logs = {name: (logs[name] - logs[first]).dropna() / math.sqrt(2) for name in others}
    kept = {name: own.to_numpy() for name, own in logs.items() if len(own) > 1}
    found = population(
        [float(np.var(own, ddof=1)) for own in kept.values()],
        [len(own) - 1 for own in kept.values()],
        [name if within else rows.curves[name].row.model for name in kept],
        overlap(list(kept.values())) if within else 0.0,
    )
    contrasts = [name for name in others if within or rows.curves[name].row.model != rows.curves[first].row.model]
    if found is None or not contrasts:
        return None
    counts = {name: len({train for train, _ in entry.row.seeds}) for name, entry in rows.curves.items()}
    asked = set(rows.curves[first].row.nfe)
    return Power(
        budget=budget,
        scatter=found,
        seeds=median_low(harmonic_mean([counts[name], counts[first]]) for name in contrasts),
        comparisons=sum(len(asked & set(rows.curves[name].row.nfe)) for name in others),
        within=within,
    )


def _logs(cells: pd.DataFrame) -> pd.Series:
    """ln of the mean score of each training, from cells by seeds; empty if one is not positive."""
    means = cells.value.groupby("train_seed").mean()
    found: pd.Series = np.log(means) if (means > 0).all() else means.iloc[:0]
    return found


def worth(rows: Resolved, minutes: Mapping[int, float], file: Path) -> str:
    """One line: what MORE further seeds of every row cost, and what they let the study tell.

    minutes: of each number of MORE. file: the results.csv of the study's last run.
    """
    table = _table(file)
    found = None if table is None else power(table, rows)
    costs = {more: f"{more} more seed{'s' * (more > 1)} of every row: {minutes[more]:.1f} min" for more in MORE}
    if found is None:
        unknown = "what effects they let it tell is unknown until it has results of several seeds"
        return "; ".join([*costs.values(), unknown])
    which = "samplers of one network" if found.within else "models"
    now = f"at {found.budget} evaluations the study tells {found.ratio():.2f}-fold effects between {which}"
    return "; ".join([f"{now} in 4 of 5 cases", *(f"{costs[more]}, {found.ratio(more):.2f}-fold" for more in MORE)])


def _table(file: Path) -> pd.DataFrame | None:
    """The measurements of curves in results.csv; None if it is missing or broken."""
    types = {"train_seed": int, "sample_seed": int, "steps": int, "nfe": int, "value": float}
    try:
        text = pd.read_csv(file, dtype=str, keep_default_na=False)
        own = (text.train_seed != "") & (text.reference == TRAIN)  # image sets have no training
        return text[own].astype(types).assign(se=np.nan)
    except (OSError, ValueError, KeyError, AttributeError):
        return None
