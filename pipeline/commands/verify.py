"""Committed results held against the same cells made again: what is equal, what lies within its errors, what does not.

On the machine and libraries that made them, numbers come back to the last digit. Elsewhere sums are rounded otherwise,
so a difference is allowed for, which goes by what differs first:

- The weights are the same. Rounding alone tells the samples apart: SAME_WEIGHTS standard errors at most.
- The weights differ. Training amplifies a rounding until the network is as good as another seed's (Summers and Dinneen
  2021, arXiv 2103.04514), so two honest values differ like two repetitions: TIMES sqrt(2) times the standard deviation
  of one. That is the spread over the committed repetitions of this curve at this budget, or, where these few happen to
  lie close together, as many standard errors of the cell as repetitions usually spread over in the study.
- The extractor differs. Where the study trains it, another rounding makes another one, and scores by two of them differ
  for that alone. It is trained with other seeds as well, and how far these scores lie apart is allowed for on top.
- The data differ: nothing is allowed for.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline.commands.recompute import Instrument, Place, places_of, recompute
from pipeline.common.devices import default_device
from pipeline.common.errors import StudyError, nearest
from pipeline.common.files import SHORT_HASH, Paths, read_json, write_csv
from pipeline.common.machine import machine
from pipeline.common.rows import NAME
from pipeline.evaluation.cell import Cell
from pipeline.evaluation.curve import Curve
from pipeline.metrics.names import headline
from pipeline.params.resolve import resolve
from pipeline.params.resolved import as_dicts
from pipeline.params.study import read_study
from pipeline.report.results import COLUMNS, FAILED, ORIGIN

TIMES = 3.0  # standard deviations of a difference
SAME_WEIGHTS = 0.25  # standard errors
RETRAINING = 3.0  # times the error of resampling: where a study has no repetitions (arXiv 2606.20536)
CELL = re.compile(rf"(?P<curve>{NAME[1:-1]})(:(?P<nfe>\d{{1,9}})(:(?P<train>\d{{1,10}}),(?P<sample>\d{{1,10}}))?)?")
ALL = "all"
HASHED = ("data", "extractor", "reference", "weights")  # each is made of those before it
PARTS = ("study", *HASHED, "samples")


class Value(NamedTuple):
    """A metric and its standard error; NaN where there is none."""

    value: float
    se: float

    def equals(self, other: "Value") -> bool:
        """To the last digit; what neither has is equal as well."""
        return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(self, other, strict=True))


NOTHING = Value(math.nan, math.nan)


@dataclass(frozen=True)
class Record:
    """One cell as it is stated: its counted NFE, its metrics, and the first digits of its hashes by part."""

    nfe: int
    samples: int
    values: dict[str, Value]
    hashes: dict[str, str]

    def numbers(self) -> dict[str, Value]:
        """All that is stated of it: counts, which have no error, and metrics."""
        return {"nfe": Value(self.nfe, 0.0), "samples": Value(self.samples, 0.0)} | self.values

    @classmethod
    def of(cls, cell: Cell, instrument: Instrument) -> "Record":
        """A cell made again."""
        values = {m["metric"]: Value(m["value"], m["se"]) for m in cell.metrics}
        found = instrument.summary["content_hash"], instrument.extractor.hash, instrument.reference.hash
        hashes = dict(zip(HASHED, (*found, cell.checkpoint), strict=True))
        short = {part: found[:SHORT_HASH] for part, found in hashes.items()}
        return cls(cell.nfe, cell.samples, values or {FAILED: Value(1.0, math.nan)}, short)


@dataclass(frozen=True)
class Committed:
    """A study's committed results: its cells, where they were made, and the rows that they were made from."""

    path: str
    cells: dict[Place, Record]
    machines: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Any] = field(default_factory=dict)


def read_committed(paths: Paths) -> Committed:
    """What a study's report states. Raises StudyError where there is none, or it is broken."""
    file = paths.reports / "results.csv"
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)[COLUMNS + ORIGIN]
        numbers = {key: table[key].replace("", "0").astype(int) for key in COLUMNS[2:7]}
        table = table.assign(**numbers, value=table.value.astype(float), se=table.se.replace("", "nan").astype(float))
    except FileNotFoundError:
        raise StudyError(f"{file}: missing; there are no results to verify: `make repro` makes them") from None
    except (KeyError, ValueError) as error:
        raise StudyError(f"{file}: broken ({error}); take it from the repository, or run `make repro`") from None
    summary = paths.metrics("prepare", "data")
    data = {"data": read_json(summary)["content_hash"][:SHORT_HASH]} if summary.exists() else {}
    cells = {}
    for place, own in table.groupby(["curve", "steps", "train_seed", "sample_seed"]):
        first = own.iloc[0]
        values = {row.metric: Value(row.value, row.se) for row in own.itertuples()}
        hashes = data | {"extractor": first.extractor, "reference": first.reference, "weights": first.checkpoint}
        cells[Place(*place)] = Record(int(first.nfe), int(first.samples), values, hashes)
    origins = paths.reports / "provenance.json"
    found = read_json(origins) if origins.exists() else {}
    return Committed(
        str(file),
        cells,
        {name: own["machine"] for name, own in found.items() if "machine" in own},
        {name: own["row"] for name, own in found.items() if "row" in own},
    )


def choose(text: str, rows: dict[str, Any], committed: Committed) -> list[Place]:
    """The cells that `text` names, of a resolved study: "all", "edm:35:0,0 ddim:7 flow", or "", a few of each method.

    A few: each headline method's first repetition at its smallest, middle and largest budget, or the first curve's
    where no row has a method.
    A budget may be the one in the study file, or the counted NFE of results.csv. Raises StudyError for what names no
    cell, and where a cell has no committed result.
    """
    curves, sets = rows["report"]["curves"], rows["report"]["sets"]
    every = [place for name in curves for place in places_of(rows, name)]
    every += [place for place in committed.cells if place.curve in sets]
    if text == ALL:
        chosen = every
    elif words := text.split():
        chosen = list(dict.fromkeys(place for word in words for place in _named(word, rows, every, committed)))
    else:
        methods = [name for name, row in curves.items() if row["method"]] or list(curves)[:1]
        first = {name: tuple(curves[name]["seeds"][0]) for name in methods}
        steps = {name: sorted({place.steps for place in places_of(rows, name)}) for name in methods}
        few = {name: {own[0], own[len(own) // 2], own[-1]} for name, own in steps.items()}
        chosen = [p for p in every if first.get(p.curve) == (p.train_seed, p.sample_seed) and p.steps in few[p.curve]]
    for place in chosen:
        if place not in committed.cells:
            where = f"{place.steps} steps, seeds {place.train_seed} and {place.sample_seed}"
            raise StudyError(f"{committed.path}: nothing of {place.curve} at {where}; `make repro` measures it")
    if empty := [name for name in sets if text == ALL and all(place.curve != name for place in chosen)]:
        raise StudyError(f"{committed.path}: nothing of {empty[0]}; `make repro` measures it")
    return chosen


def _named(word: str, rows: dict[str, Any], every: list[Place], committed: Committed) -> list[Place]:
    found = CELL.fullmatch(word)
    if not found:
        raise StudyError(
            f"CELLS: {word[:80]!r} names no cell; write a curve, edm, its budget, edm:35, its seeds, edm:35:0,0"
        )
    name, nfe, train, sample = found["curve"], found["nfe"], found["train"], found["sample"]
    own = [place for place in every if place.curve == name]
    if not own:
        raise StudyError(
            f"CELLS: {word}: no curve {name!r}; {nearest(name, rows['report']['curves'] | rows['report']['sets'])}"
        )
    budgets = {place: _budgets(place, rows, committed) for place in own}
    if nfe and not (own := [place for place in own if int(nfe) in budgets[place]]):
        there = ", ".join(map(str, sorted(set().union(*budgets.values()))))
        raise StudyError(f"CELLS: {word}: {name} has no budget {nfe}; it has {there}")
    if train and not (those := [place for place in own if place[2:] == (int(train), int(sample))]):
        there = " ".join(f"{place.train_seed},{place.sample_seed}" for place in own)
        raise StudyError(f"CELLS: {word}: {name} has no seeds {train},{sample}; it has {there}")
    return those if train else own


def _budgets(place: Place, rows: dict[str, Any], committed: Committed) -> set[int]:
    """What a cell's NFE may be called: its budgets, and what was counted."""
    counted = {committed.cells[place].nfe} if place in committed.cells else set()
    if place.curve not in rows["report"]["curves"]:
        return counted
    sampler = Curve(**rows[f"curves/{place.curve}"])
    return counted | {budget for budget in sampler.nfe if sampler.steps(budget) == place.steps}


@dataclass(frozen=True)
class Number:
    """A committed number and the same one made again. parted: the first of PARTS in which their cells differ, or ""."""

    place: Place
    nfe: int
    metric: str
    committed: Value
    yours: Value
    tolerance: float
    parted: str

    @property
    def difference(self) -> float:
        return self.yours.value - self.committed.value

    @property
    def se(self) -> float:
        """The larger standard error of the two."""
        return float(np.fmax(self.committed.se, self.yours.se))

    @property
    def result(self) -> str:
        """One of "identical" (to the last digit, with its standard error), "within" (its tolerance) and "outside"."""
        if self.committed.equals(self.yours):
            return "identical"
        return "within" if abs(self.difference) <= self.tolerance else "outside"


def _error(record: Record, metric: str) -> float:
    """The standard error of drawing a cell's samples; that of a fit is none, and FD's stands in."""
    return record.values.get("fd_corrected" if metric == "fd_infinity" else metric, NOTHING).se


class Spreads:
    """How far repetitions of a number lie apart, from the committed cells of a whole study."""

    def __init__(self, cells: dict[Place, Record]) -> None:
        values: dict[tuple[str, int, str], list[float]] = {}
        errors: dict[tuple[str, int, str], list[float]] = {}
        for place, record in cells.items():
            for metric, found in record.numbers().items():
                values.setdefault((place.curve, place.steps, metric), []).append(found.value)
                errors.setdefault((place.curve, place.steps, metric), []).append(_error(record, metric))
        self._points = {key: float(np.std(own, ddof=1)) for key, own in values.items() if len(own) > 1}
        ratios: dict[str, list[float]] = {}
        for key, sd in self._points.items():
            if (error := float(np.sqrt(np.mean(np.square(errors[key]))))) > 0:
                ratios.setdefault(key[2], []).append(sd / error)
        self._ratios = {metric: float(np.median(own)) for metric, own in ratios.items()}

    def sd(self, place: Place, metric: str, se: float) -> float:
        """The standard deviation of a number over repetitions: other training seeds, other noise."""
        usual = self._ratios.get(metric, math.hypot(1, RETRAINING)) * se
        return max(self._points.get((place.curve, place.steps, metric), 0.0), usual)


def compare(
    committed: dict[Place, Record],
    yours: dict[Place, Record],
    spreads: Spreads,
    adaptive: Collection[str] = (),
    others: Sequence[dict[Place, Record]] = (),
) -> list[Number]:
    """Every number of the cells that either side has.

    adaptive: the curves whose NFE goes by their samples; others: cells of yours as extractors of other seeds see them.
    """
    found = []
    for place in dict.fromkeys([*yours, *committed]):
        one, two = (side.get(place, Record(0, 0, {}, {})) for side in (committed, yours))
        then, now = one.numbers(), two.numbers()
        parted = next((p for p in HASHED if p in one.hashes and one.hashes[p] != two.hashes.get(p)), "")
        if place not in committed or place not in yours:
            parted = "study"
        elif not parted and not all(then.get(m, NOTHING).equals(now.get(m, NOTHING)) for m in then | now):
            parted = PARTS[-1]
        same_weights = one.hashes.get("weights") == two.hashes.get("weights")
        for metric in then | now:
            se = float(np.nan_to_num(np.fmax(_error(one, metric), _error(two, metric))))
            repetition, rounding = spreads.sd(place, metric, se), SAME_WEIGHTS * se
            if metric == "nfe" and place.curve in adaptive:
                repetition, rounding = max(repetition, 1.0), 1.0
            own, again = then.get(metric, NOTHING), now.get(metric, NOTHING)
            seen = [again.value, *(each[place].values[metric].value for each in others if metric in each[place].values)]
            instrument = float(np.std(seen, ddof=1)) if len(seen) > 1 else 0.0
            error = math.hypot(instrument, 0.0 if same_weights else repetition)
            limit = TIMES * math.sqrt(2) * error + (rounding if same_weights else 0.0)
            limit = 0.0 if parted in ("study", "data") or metric == "samples" else limit
            found.append(Number(place, one.nfe or two.nfe, metric, own, again, limit, parted))
    return found


CSV_COLUMNS = [
    *("curve", "steps", "nfe", "train_seed", "sample_seed", "metric", "committed", "yours", "difference", "se"),
    *("difference_in_se", "tolerance", "result", "differs_first"),
]


def csv_rows(numbers: Sequence[Number]) -> list[dict[str, Any]]:
    """All numbers in full, with CSV_COLUMNS."""
    return [
        n.place._asdict()
        | {"nfe": n.nfe, "metric": n.metric, "committed": n.committed.value, "yours": n.yours.value}
        | {"difference": n.difference, "se": n.se, "difference_in_se": _in_se(n), "tolerance": n.tolerance}
        | {"result": n.result, "differs_first": n.parted}
        for n in numbers
    ]


def _in_se(number: Number) -> float:
    return number.difference / number.se if number.se > 0 else math.nan


def table(numbers: Sequence[Number], metric: str) -> str:
    """One metric of every cell, and whatever else lies outside, in columns."""

    def shown(value: float, digits: int) -> str:
        return "" if math.isnan(value) else f"{value:.{digits}g}"

    rows = [
        {
            "curve": n.place.curve,
            "NFE": n.nfe,
            "seeds": f"{n.place.train_seed},{n.place.sample_seed}",
            "metric": n.metric,
            "committed": shown(n.committed.value, 6),
            "yours": shown(n.yours.value, 6),
            "difference": shown(n.difference, 2),
            "se": shown(n.se, 2),
            "in se": shown(_in_se(n), 2),
            "tolerance": shown(n.tolerance, 2),
            "result": n.result,
        }
        for n in numbers
        if n.metric in (metric, FAILED) or n.result == "outside"
    ]
    return pd.DataFrame(rows).to_string(index=False) if rows else ""


def conclusion(numbers: Sequence[Number], elsewhere: Sequence[str]) -> list[str]:
    """In sentences: what differs first, what was allowed for, and the sum. elsewhere: how this machine is another."""
    parted = [n.parted for n in numbers if n.parted]
    first = min(parted, key=PARTS.index, default="")
    trained = dict.fromkeys(f"{n.place.curve}, seed {n.place.train_seed}" for n in numbers if n.parted == "weights")
    sampled = dict.fromkeys(f"{n.place.curve} at {n.nfe}" for n in numbers if n.parted == "samples")
    single = dict.fromkeys(f"{n.place.curve} at {n.nfe}" for n in numbers if n.parted == "study")
    found = [
        {
            "": "Data, extractor, reference, weights and samples are the same.",
            "study": f"The study file and the results do not hold the same cells: {_some(single)}.",
            "data": "The data differ already, so that nothing that follows can be compared.",
            "extractor": "The data are the same; the extractor differs already, and with it every score.",
            "reference": "Data and extractor are the same; what it makes of the real images differs.",
            "weights": f"Data, extractor and reference are the same; the training differs already: {_some(trained)}.",
            "samples": f"The weights are the same; samples or metrics differ: {_some(sampled)}.",
        }[first]
    ]
    if first and elsewhere:
        found.append(f"Another machine than the one that made the results ({'; '.join(elsewhere)}).")
        allowed = ALLOWED + (f" {ALLOWED_EXTRACTOR}" if first == "extractor" else "")
        found += [allowed] if first not in ("study", "data") else []
    elif first:
        found.append(
            "This machine and its libraries made the results, so that all should be identical: the code, the study "
            "file or the results have changed since."
        )
    count = {result: sum(n.result == result for n in numbers) for result in ("identical", "within", "outside")}
    cells = len({n.place for n in numbers})
    outside = dict.fromkeys(
        f"{n.place.curve}:{n.nfe}:{n.place.train_seed},{n.place.sample_seed}" for n in numbers if n.result == "outside"
    )
    said = (
        f"{len(numbers)} numbers of {cells} cells: {count['identical']} identical, {count['within']} within tolerance"
    )
    return [*found, f"{said}, {count['outside']} outside{f': {_some(outside)}' if outside else ''}"]


ALLOWED = (
    f"Allowed for: {SAME_WEIGHTS} standard errors where the weights are the same; else {TIMES:g} times sqrt(2) "
    "standard deviations of a repetition, as a training that was rounded otherwise is as good as another seed's."
)
ALLOWED_EXTRACTOR = "On top of it comes how far scores by extractors of other seeds lie apart."


def _some(names: Collection[str], most: int = 8) -> str:
    shown = list(names)[:most]
    return "; ".join(shown) + (f"; and {len(names) - most} more" if len(names) > most else "")


def other_machine(committed: Committed, paths: Paths, places: Collection[Place], rows: dict[str, Any]) -> list[str]:
    """In what this machine and its libraries differ from those that made cells: "python: 3.11.7 then, 3.12.3 now"."""
    found: list[str] = []
    for curve in dict.fromkeys(place.curve for place in places):
        if curve not in committed.machines:
            found.append("nothing tells which machine that was")
        found += _changes(committed.machines.get(curve, {}), machine())
        if curve in rows["report"]["curves"]:
            trained = paths.metrics("train", rows[f"curves/{curve}"]["model"])
            found += _changes(read_json(trained)["machine"] if trained.exists() else {}, machine(default_device()))
    return list(dict.fromkeys(found))


def other_rows(committed: Committed, places: Collection[Place], rows: dict[str, Any]) -> list[str]:
    """In what the study file's curves differ from those that the results were made from."""
    found = []
    for curve in dict.fromkeys(place.curve for place in places):
        now, then = ((rows["report"]["curves"] | rows["report"]["sets"])[curve], committed.rows.get(curve, {}))
        keys = [key for key in now if key in then and key not in ("base", "axis", "differences", "explicit", "method")]
        changes = _changes({key: then[key] for key in keys}, {key: now[key] for key in keys})
        found += [f"curves.{curve}.{change}" for change in changes]
    return found


def _changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    found = []
    for key in (key for key in now if key in then and then[key] != now[key]):
        if isinstance(now[key], dict) and isinstance(then[key], dict):
            found += _changes(then[key], now[key])
        else:
            found.append(f"{key}: {then[key]} then, {now[key]} now")
    return found


class Verdict(NamedTuple):
    """Every number compared, the metric that the study's figures are made with, and what is to be said of it."""

    numbers: list[Number]
    headline: str
    sentences: list[str]


def verify(rows: dict[str, Any], text: str, begin: Callable[[str], object]) -> Verdict:
    """Make the cells that `text` names (`choose`) of a resolved study again, and compare them with what is committed.

    begin: told what is about to be done. Raises StudyError where there are no results, no such cells, and as the stages
    do.
    """
    paths = Paths(rows["report"]["study"]["name"])
    committed = read_committed(paths)
    places = choose(text, rows, committed)
    begin(f"{paths.study}: {len(places)} of {len(committed.cells)} cells, from nothing; no cache is used")
    own, found, others = recompute(rows, places, {committed.cells[place].hashes["extractor"] for place in places})
    expected = {place: record for place, record in committed.cells.items() if text == ALL or place in set(places)}
    yours, *seen = [{place: Record.of(cell, own) for place, cell in cells.items()} for cells in (found, *others)]
    curves = {place.curve for place in places} & rows["report"]["curves"].keys()
    adaptive = {name for name in curves if Curve(**rows[f"curves/{name}"]).build_solver().adaptive}
    numbers = compare(expected, yours, Spreads(committed.cells), adaptive, seen)
    changed = [f"The study file has changed since: {change}." for change in other_rows(committed, places, rows)]
    sentences = conclusion(numbers, other_machine(committed, paths, places, rows))
    return Verdict(numbers, headline(own.extractor.name), [*changed, *sentences])


def verify_study(params: Path, cells: str) -> bool:
    """Verify a study's committed cells, print the table and write all numbers to build/<study>/verify.csv; whether no
    number is outside its tolerance."""
    rows = json.loads(json.dumps(as_dicts(resolve(read_study(params)))))
    found = verify(rows, cells, lambda line: print(line, flush=True))
    place = Paths(rows["report"]["study"]["name"]).build / "verify.csv"
    write_csv(place, CSV_COLUMNS, csv_rows(found.numbers))
    print(table(found.numbers, found.headline), *found.sentences, f"Every number: {place}", sep="\n")
    return all(number.result != "outside" for number in found.numbers)
