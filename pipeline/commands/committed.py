"""A study's committed results, and the choice of cells among them."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.commands.remake import Place, Remade, places_of
from pipeline.common.errors import StudyError, nearest
from pipeline.common.files import SHORT_HASH, Paths, read_json
from pipeline.common.rows import NAME
from pipeline.params.resolved import Resolved
from pipeline.report.results import FAILED, read_published

CELL = re.compile(rf"(?P<curve>{NAME[1:-1]})(:(?P<nfe>\d{{1,9}})(:(?P<train>\d{{1,10}}),(?P<sample>\d{{1,10}}))?)?")
ALL = "all"
HASHED = ("data", "extractor", "reference", "weights")  # each depends on those before it


class Value(NamedTuple):
    """A metric and its standard error; NaN for an unknown one."""

    value: float
    se: float

    def equals(self, other: "Value") -> bool:
        """Whether both are equal to the last digit; two NaN are equal."""
        return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(self, other, strict=True))


NOTHING = Value(math.nan, math.nan)


@dataclass(frozen=True)
class Record:
    """One cell: its counted NFE, its metrics, and the first digits of its hashes by part."""

    nfe: int
    samples: int
    values: dict[str, Value]
    hashes: dict[str, str]

    def numbers(self) -> dict[str, Value]:
        """All numbers of the cell: counts, which have no error, and metrics."""
        return {"nfe": Value(self.nfe, 0.0), "samples": Value(self.samples, 0.0)} | self.values


def records(made: Remade) -> dict[Place, Record]:
    """The records of cells made again."""
    return {place: _record(made, cell) for place, cell in made.cells.items()}


def _record(made: Remade, cell: dict[str, Any]) -> Record:
    values = {m["metric"]: Value(m["value"], math.nan if m["se"] is None else m["se"]) for m in cell["metrics"]}
    full = {"data": made.data, **made.hashes, "weights": cell["checkpoint"]}
    hashes = {part: full[part][:SHORT_HASH] for part in HASHED}
    return Record(cell["nfe"], cell["samples"], values or {FAILED: Value(1.0, math.nan)}, hashes)


@dataclass(frozen=True)
class Committed:
    """A study's committed results: its cells, and by curve the machine and the row that made them."""

    path: str
    cells: dict[Place, Record]
    machines: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Any] = field(default_factory=dict)


def read_committed(paths: Paths) -> Committed:
    """The results in a study's report. Raises StudyError if they are missing or broken."""
    file = paths.reports / "results.csv"
    if not file.exists():
        raise StudyError(f"{file}: missing; there are no results to verify: `make repro` makes them")
    table = read_published(paths)
    summary = paths.metrics("prepare", "data")
    data = {"data": read_json(summary)["content_hash"][:SHORT_HASH]} if summary.exists() else {}
    cells = {}
    for place, own in table.groupby(["curve", "steps", "train_seed", "sample_seed"]):
        first = own.iloc[0]
        values = {row.metric: Value(row.value, row.se) for row in own.itertuples()}
        hashes = data | {"extractor": first.extractor, "reference": first.reference_hash, "weights": first.checkpoint}
        cells[Place(*place)] = Record(int(first.nfe), int(first.samples), values, hashes)
    origins = paths.reports / "provenance.json"
    found = read_json(origins) if origins.exists() else {}
    return Committed(
        str(file),
        cells,
        {name: own["machine"] for name, own in found.items() if "machine" in own},
        {name: own["row"] for name, own in found.items() if "row" in own},
    )


def choose(text: str, rows: Resolved, committed: Committed) -> list[Place]:
    """The places of the cells that `text` names: "all", "edm:35:0,0 ddim:7 flow", or "" for a few of each method.

    A few: the first repetition of each headline method, or of the first curve if no row has a method, at its smallest,
    middle and largest budget. A budget is one in the study file or a counted NFE in results.csv. Raises StudyError if a
    word names no cell, or a cell has no committed result.
    """
    every = [place for name, entry in rows.curves.items() for place in places_of(name, entry.row)]
    every += [place for place in committed.cells if place.curve in rows.sets]
    if text == ALL:
        chosen = every
    elif words := text.split():
        chosen = list(dict.fromkeys(place for word in words for place in _named(word, rows, every, committed)))
    else:
        chosen = list(_few(rows, every))
    for place in chosen:
        if place not in committed.cells:
            where = f"{place.steps} steps, seeds {place.train_seed} and {place.sample_seed}"
            raise StudyError(f"{committed.path}: no result of {place.curve} at {where}; `make repro` measures it")
    if empty := [name for name in rows.sets if text == ALL and all(place.curve != name for place in chosen)]:
        raise StudyError(f"{committed.path}: no result of {empty[0]}; `make repro` measures it")
    return chosen


def _few(rows: Resolved, every: list[Place]) -> Iterator[Place]:
    for name in [name for name, entry in rows.curves.items() if entry.row.method] or list(rows.curves)[:1]:
        steps = sorted({place.steps for place in every if place.curve == name})
        few, first = {steps[0], steps[len(steps) // 2], steps[-1]}, rows.curves[name].row.seeds[0]
        yield from (place for place in every if place.curve == name and place.steps in few and place[2:] == first)


def _named(word: str, rows: Resolved, every: list[Place], committed: Committed) -> list[Place]:
    match = CELL.fullmatch(word)
    if not match:
        raise StudyError(
            f"CELLS: {word[:80]!r} names no cell; write a curve, edm, or with its budget, edm:35, or with its seeds, "
            "edm:35:0,0"
        )
    name, nfe, train, sample = match["curve"], match["nfe"], match["train"], match["sample"]
    of_curve = [place for place in every if place.curve == name]
    if not of_curve:
        raise StudyError(f"CELLS: {word}: no curve {name!r}; {nearest(name, rows.curves.keys() | rows.sets.keys())}")
    budgets = {place: _budgets(place, rows, committed) for place in of_curve}
    at_budget = [place for place in of_curve if not nfe or int(nfe) in budgets[place]]
    if not at_budget:
        valid = ", ".join(map(str, sorted(set().union(*budgets.values()))))
        raise StudyError(f"CELLS: {word}: {name} has no budget {nfe}; it has {valid}")
    with_seeds = [place for place in at_budget if not train or place[2:] == (int(train), int(sample))]
    if not with_seeds:
        valid = " ".join(f"{place.train_seed},{place.sample_seed}" for place in at_budget)
        raise StudyError(f"CELLS: {word}: {name} has no seeds {train},{sample}; it has {valid}")
    return with_seeds


def _budgets(place: Place, rows: Resolved, committed: Committed) -> set[int]:
    """The budgets that name a cell: those in its row, and its counted NFE."""
    counted = {committed.cells[place].nfe} if place in committed.cells else set()
    if place.curve not in rows.curves:
        return counted
    curve = rows.curves[place.curve].row
    return counted | {budget for budget in curve.nfe if curve.steps(budget) == place.steps}
