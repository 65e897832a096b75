"""All results of a study as tidy tables: cells, failures, seconds and losses."""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import pandas as pd

from pipeline.common.errors import StudyError
from pipeline.common.files import SHORT_HASH, Paths, read_json
from pipeline.common.machine import check_comparable
from pipeline.params.resolved import ReportRows

COLUMNS = ["curve", "model", "train_seed", "sample_seed", "steps", "nfe", "samples", "metric", "value", "se"]
ORIGIN = ["extractor", "reference", "checkpoint"]  # the first digits of their hashes, behind COLUMNS
LOSS_COLUMNS = ["model", "train_seed", "state", "sigma", "error", "loss", "gradient"]
TIMING_COLUMNS = ["curve", "nfe", "seconds_per_image", "images", "device", "checkpoint", "sampler"]
SEEDS = ["train_seed", "sample_seed"]
FAILED = "failed"  # the metric of a cell that gave no samples: its value is 1


class Failure(NamedTuple):
    """A cell that gave no samples, and why, in one line."""

    curve: str
    nfe: int
    seeds: tuple[int, int]
    reason: str


class Results(NamedTuple):
    """All cells as one table, those that failed, each row's machine, and what each was measured with."""

    table: pd.DataFrame
    failures: list[Failure]
    machines: dict[str, dict[str, Any]]
    provenance: dict[str, dict[str, Any]]


def read_results(paths: Paths, rows: ReportRows) -> Results:
    """The results of the declared curves and image sets. Raises StudyError where they were not measured alike."""
    lines, failures, machines, provenance = [], [], {}, {}
    folders = {name: (paths.curve(name), entry.row.model) for name, entry in rows.curves.items()}
    folders |= {name: (paths.set(name), "") for name in rows.sets}
    for name, (folder, model) in folders.items():
        content = read_json(folder / "results.json")
        if not isinstance(content, dict) or not {"machine", "provenance", "cells"} <= content.keys():
            raise StudyError(f"{folder / 'results.json'}: made by another version of the code; run `dvc repro`")
        machines[name], own = content["machine"], content["provenance"]
        provenance[name] = own
        hashes = {"extractor": own["extractor_hash"][:SHORT_HASH], "reference": own["reference_hash"][:SHORT_HASH]}
        for cell in content["cells"]:
            row = {"curve": name, "model": model} | hashes | {k: v for k, v in cell.items() if k != "metrics"}
            row["checkpoint"] = cell["checkpoint"][:SHORT_HASH]
            if reason := cell.get("failed", ""):
                failures.append(Failure(name, cell["nfe"], (cell["train_seed"], cell["sample_seed"]), reason))
                lines.append(row | {"metric": FAILED, "value": 1, "se": math.nan})
            lines += [row | metric for metric in cell["metrics"]]
    check_comparable(provenance)
    return Results(pd.DataFrame(lines, columns=COLUMNS + ORIGIN), failures, machines, provenance)


def of_curve(results: pd.DataFrame, curve: str) -> pd.DataFrame:
    """A curve's rows, each at the largest NFE of its point's repetitions, which an adaptive solver's may differ in.

    A point is a number of steps.
    """
    own = results[results.curve == curve]
    return own.assign(nfe=own.groupby("steps").nfe.transform("max"))


def cells(results: pd.DataFrame, curve: str, metric: str) -> pd.DataFrame:
    """A curve's cells of one metric, without the points of which any repetition failed.

    An error of fit is no error of drawing the samples, and is left out.
    """
    return _of_metric(of_curve(results, curve), metric)


def _of_metric(own: pd.DataFrame, metric: str) -> pd.DataFrame:
    found = own[(own.metric == metric) & ~own.steps.isin(own[own.metric == FAILED].steps)]
    return found.assign(se=math.nan) if metric == "fd_infinity" else found


def at_budget(results: pd.DataFrame, curve: str, metric: str, budget: int) -> pd.DataFrame:
    """A curve's value and se at its largest NFE within a budget, by (train seed, sample seed).

    Empty where there is none, or where that point failed: a smaller one does not take its place.
    """
    own = of_curve(results, curve)
    found = _of_metric(own, metric)
    largest = own[(own.nfe <= budget) & own.metric.isin([metric, FAILED])].nfe.max()
    return found[found.nfe == largest].set_index(SEEDS)[["nfe", "value", "se"]]


def failed_at(results: pd.DataFrame, curve: str, budget: int) -> bool:
    """Whether a curve's largest NFE within a budget is that of a point of which a repetition failed."""
    own = of_curve(results, curve)
    own = own[own.nfe <= budget]
    return bool((own[own.nfe == own.nfe.max()].metric == FAILED).any())


def read_timings(paths: Paths) -> pd.DataFrame:
    """What `make timings` measured, with at least TIMING_COLUMNS; empty where it has not."""
    if not paths.timings.exists():
        return pd.DataFrame(columns=TIMING_COLUMNS)
    try:
        found = pd.read_csv(paths.timings, dtype={"curve": str, "checkpoint": str, "sampler": str})
        return found.astype({"nfe": int, "seconds_per_image": float})[TIMING_COLUMNS]
    except (KeyError, ValueError, TypeError) as error:
        raise StudyError(f"{paths.timings}: broken ({error}); delete it, or measure again by `make timings`") from None


def read_losses(paths: Paths, models: Collection[str]) -> pd.DataFrame:
    """Of every declared model, by training seed, state and noise level: its losses and gradients, with LOSS_COLUMNS.

    What could not be measured is NaN. Raises StudyError where the table is missing or broken, or a model is not in it.
    """
    names, numbers = ["model", "state"], ["sigma", "error", "loss", "gradient"]
    unknown = {column: ["", "nan"] for column in numbers}  # a model may be called what pandas takes for a NaN
    try:
        found = pd.read_csv(paths.losses, dtype=dict.fromkeys(names, str), keep_default_na=False, na_values=unknown)
        found = found.astype({"train_seed": int} | dict.fromkeys(numbers, float))[LOSS_COLUMNS]
    except FileNotFoundError:
        raise StudyError(f"{paths.losses}: missing; `dvc repro` makes it") from None
    except (KeyError, ValueError, TypeError) as error:
        raise StudyError(f"{paths.losses}: broken ({error}); run `dvc repro`") from None
    if missing := [name for name in models if not (found.model == name).any()]:
        raise StudyError(f"{paths.losses}: nothing of model {missing[0]}; run `dvc repro`")
    return found[found.model.isin(list(models))]
