"""All results of a study as tidy tables: cells, failures, seconds and losses."""

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import pandas as pd

from pipeline.common.errors import StudyError
from pipeline.common.files import SHORT_HASH, Paths, read_json
from pipeline.common.machine import check_comparable
from pipeline.common.sealed import load_json
from pipeline.evaluation.likelihoods import COLUMNS as LIKELIHOOD_COLUMNS
from pipeline.metrics.names import against
from pipeline.params.resolved import ReportRows

COLUMNS = ["curve", "model", "train_seed", "sample_seed", "steps", "nfe", "samples", "metric", "value", "se"]
ORIGIN = ["extractor", "reference_hash", "checkpoint"]  # columns after COLUMNS: the first digits of hashes
MEASURED = [*COLUMNS, "reference", *ORIGIN]  # of results.csv, whose metrics are apart from their reference
CSV_COLUMNS = [*MEASURED[:6], "depth", *MEASURED[6:]]  # of results.csv: `depth` is known from the row
LOSS_COLUMNS = ["model", "train_seed", "state", "sigma", "error", "loss", "gradient", "denoising_error", "map_error"]
TIMING_COLUMNS = ["curve", "nfe", "seconds_per_image", "images", "device", "checkpoint", "sampler"]
SEEDS = ["train_seed", "sample_seed"]
FAILED = "failed"  # the metric of a failed cell, with value 1


class Failure(NamedTuple):
    """A cell without samples, and the reason in one line."""

    curve: str
    nfe: int
    seeds: tuple[int, int]
    reason: str


class Results(NamedTuple):
    """All cells as one table, the failed cells, and the machine and the measurement of each curve or image set."""

    table: pd.DataFrame
    failures: list[Failure]
    machines: dict[str, dict[str, Any]]
    provenance: dict[str, dict[str, Any]]


def read_results(paths: Paths, rows: ReportRows) -> Results:
    """The results of all curves and image sets. Raises StudyError if they were not measured in the same way."""
    lines, failures, machines, provenance = [], [], {}, {}
    folders = {name: (paths.curve(name), entry.row.model) for name, entry in rows.curves.items()}
    folders |= {name: (paths.set(name), "") for name in rows.sets}
    for name, (folder, model) in folders.items():
        content = load_json(folder / "results.json")
        if not {"machine", "provenance", "cells"} <= content.keys():
            raise StudyError(f"{folder / 'results.json'}: written by another version of the code; run `dvc repro`")
        machines[name], own = content["machine"], content["provenance"]
        provenance[name] = own
        hashes = {"extractor": own["extractor_hash"][:SHORT_HASH], "reference_hash": own["reference_hash"][:SHORT_HASH]}
        for cell in content["cells"]:
            row = {"curve": name, "model": model} | hashes | {k: v for k, v in cell.items() if k != "metrics"}
            row["checkpoint"] = cell["checkpoint"][:SHORT_HASH]
            if reason := cell.get("failed", ""):
                failures.append(Failure(name, cell["nfe"], (cell["train_seed"], cell["sample_seed"]), reason))
                lines.append(row | {"metric": FAILED, "value": 1, "se": math.nan})
            lines += [row | metric for metric in cell["metrics"]]
    check_comparable(provenance)
    return Results(pd.DataFrame(lines, columns=COLUMNS + ORIGIN), failures, machines, provenance)


def read_published(paths: Paths) -> pd.DataFrame:
    """The results in results.csv, with COLUMNS, ORIGIN and `is_set`: whether a row is of an image set.

    Numbers that an image set lacks are 0. Raises StudyError if the file is missing or broken.
    """
    file = paths.reports / "results.csv"
    try:
        found = pd.read_csv(file, dtype=str, keep_default_na=False)[MEASURED]
        found = found.assign(
            is_set=found.train_seed == "",
            metric=list(map(against, found.reference, found.metric)),
            se=found.se.replace("", "nan"),
            **{key: found[key].replace("", "0") for key in COLUMNS[2:7]},
        )
        found = found.astype(dict.fromkeys(COLUMNS[2:7], int) | {"value": float, "se": float})
    except FileNotFoundError:
        raise StudyError(f"{file}: missing; `make repro` makes it") from None
    except (KeyError, ValueError, AttributeError) as error:
        raise StudyError(f"{file}: broken ({error}); take it from the repository, or run `make repro`") from None
    return found[[*COLUMNS, *ORIGIN, "is_set"]]


def distinct(points: Mapping[str, tuple[object, set[int]]]) -> list[str]:
    """The names without those that only repeat points of an earlier one. points: name -> (what it samples, budgets)."""
    found: dict[str, tuple[object, set[int]]] = {}
    for name, (own, budgets) in points.items():
        if not any(own == other and budgets <= measured for other, measured in found.values()):
            found[name] = own, budgets
    return list(found)


def of_curve(results: pd.DataFrame, curve: str) -> pd.DataFrame:
    """The rows of a curve, with the largest NFE among the repetitions of each point.

    A point is a number of steps. The repetitions of an adaptive solver may differ in NFE.
    """
    own = results[results.curve == curve]
    return own.assign(nfe=own.groupby("steps").nfe.transform("max"))


def cells(results: pd.DataFrame, curve: str, metric: str) -> pd.DataFrame:
    """The cells of a curve for one metric, without points that have a failed repetition.

    The standard error of `fd_infinity` is that of a fit and not of drawing samples, so it becomes NaN.
    """
    return _of_metric(of_curve(results, curve), metric)


def _of_metric(own: pd.DataFrame, metric: str) -> pd.DataFrame:
    found = own[(own.metric == metric) & ~own.steps.isin(own[own.metric == FAILED].steps)]
    return found.assign(se=math.nan) if metric == "fd_infinity" else found


def at_budget(results: pd.DataFrame, curve: str, metric: str, budget: int) -> pd.DataFrame:
    """nfe, value and se of a curve at its largest NFE within a budget, by (training seed, sampling seed).

    Empty if there is no such point or if it failed; a point of smaller NFE does not replace it.
    """
    own = of_curve(results, curve)
    found = _of_metric(own, metric)
    largest = own[(own.nfe <= budget) & own.metric.isin([metric, FAILED])].nfe.max()
    return found[found.nfe == largest].set_index(SEEDS)[["nfe", "value", "se"]]


def failed_at(results: pd.DataFrame, curve: str, budget: int) -> bool:
    """Whether a repetition of the point at a curve's largest NFE within a budget failed."""
    own = of_curve(results, curve)
    own = own[own.nfe <= budget]
    return bool((own[own.nfe == own.nfe.max()].metric == FAILED).any())


def read_timings(paths: Paths, results: pd.DataFrame, samplers: Mapping[str, str]) -> pd.DataFrame:
    """The rows that `make timings` wrote, with TIMING_COLUMNS; empty if the file does not exist.

    samplers: the hash of each curve's sampler. Timings of other weights or samplers are left out.
    """
    if not paths.timings.exists():
        return pd.DataFrame(columns=TIMING_COLUMNS)
    try:
        found = pd.read_csv(paths.timings, dtype={"curve": str, "checkpoint": str, "sampler": str})
        found = found.astype({"nfe": int, "seconds_per_image": float})[TIMING_COLUMNS]
    except (KeyError, ValueError, TypeError) as error:
        raise StudyError(f"{paths.timings}: broken ({error}); delete the file or run `make timings`") from None
    trained = results[results.checkpoint != ""]
    checkpoints = trained.drop_duplicates("curve").set_index("curve").checkpoint
    current = {name: (checkpoints.get(name), sampler) for name, sampler in samplers.items()}
    own = [current.get(row.curve) == (row.checkpoint, row.sampler) for row in found.itertuples()]
    return found[pd.Series(own, index=found.index, dtype=bool)]


def read_losses(paths: Paths, models: Collection[str]) -> pd.DataFrame:
    """Losses and gradients of all models by seed, state and noise level, with LOSS_COLUMNS; NaN if not measured.

    Raises StudyError if the table is missing, broken, or has no row of a model.
    """
    names, numbers = ["model", "state"], LOSS_COLUMNS[3:]
    unknown = {column: ["", "nan"] for column in numbers}  # pandas would read a model called null as NaN
    try:
        found = pd.read_csv(paths.losses, dtype=dict.fromkeys(names, str), keep_default_na=False, na_values=unknown)
        found = found.astype({"train_seed": int} | dict.fromkeys(numbers, float))[LOSS_COLUMNS]
    except FileNotFoundError:
        raise StudyError(f"{paths.losses}: missing; `dvc repro` makes it") from None
    except (KeyError, ValueError, TypeError) as error:
        raise StudyError(f"{paths.losses}: broken ({error}); run `dvc repro`") from None
    if missing := [name for name in models if not (found.model == name).any()]:
        raise StudyError(f"{paths.losses}: no row of model {missing[0]}; run `dvc repro`")
    return found[found.model.isin(list(models))]


def read_likelihood(paths: Paths, models: Collection[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The lines of the likelihood of models, with the columns of `Line`, and its summary. Numbers of failures are NaN.

    Raises StudyError if the table is missing or broken, or a model was not measured.
    """
    file, summary = paths.reports / "likelihood.csv", read_json(paths.metrics("likelihood", "models"))
    names, counts = ["model", "part", "failed"], ["train_seed", "steps", "images"]
    numbers = [column for column in LIKELIHOOD_COLUMNS if column not in names + counts]
    unknown = {column: ["", "nan"] for column in numbers}  # pandas would read a model called null as NaN
    try:
        found = pd.read_csv(file, dtype=dict.fromkeys(names, str), keep_default_na=False, na_values=unknown)
        found = found.astype(dict.fromkeys(counts, int) | dict.fromkeys(numbers, float))[LIKELIHOOD_COLUMNS]
    except FileNotFoundError:
        raise StudyError(f"{file}: missing; `dvc repro` makes it") from None
    except (KeyError, ValueError, TypeError) as error:
        raise StudyError(f"{file}: broken ({error}); run `dvc repro`") from None
    if missing := [name for name in models if name not in summary["models"]]:
        raise StudyError(f"{paths.metrics('likelihood', 'models')}: no model {missing[0]}; run `dvc repro`")
    return found[found.model.isin(list(models))], summary
