"""Committed numbers compared with the same numbers made again.

On the machine and libraries that made them, numbers come back to the last digit. Elsewhere rounding errors differ, and
the tolerance depends on what differs first:

- The weights are the same. Only rounding separates the samples: at most SAME_WEIGHTS standard errors.
- The weights differ. Training amplifies rounding errors until the network is like that of another seed (Summers and
  Dinneen 2021, arXiv 2103.04514), so two values differ like two repetitions: TIMES sqrt(2) times the standard deviation
  of one. That is the spread over the committed repetitions of this curve at this budget. These few may be close by
  chance, so it is at least as many standard errors of the cell as repetitions usually spread over in the study.
- The extractor differs. If the study trains it, other rounding errors give another extractor, and scores by two of them
  differ for that reason alone. It is trained with other seeds as well, and the spread of their scores is added.
- The data differ: the tolerance is 0.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.commands.committed import HASHED, NOTHING, Record, Value
from pipeline.commands.remake import Place
from pipeline.report.results import FAILED

TIMES = 3.0  # standard deviations of a difference
SAME_WEIGHTS = 0.25  # standard errors
RETRAINING = 3.0  # times the error of resampling, in a study without repetitions (arXiv 2606.20536)
PARTS = ("study", *HASHED, "samples")


@dataclass(frozen=True)
class Number:
    """A committed number and the same one made again. differs: the first of PARTS that differs between their cells."""

    place: Place
    nfe: int
    metric: str
    committed: Value
    yours: Value
    tolerance: float
    differs: str

    @property
    def difference(self) -> float:
        return self.yours.value - self.committed.value

    @property
    def se(self) -> float:
        """The larger standard error of the two."""
        return float(np.fmax(self.committed.se, self.yours.se))

    @property
    def result(self) -> str:
        """ "identical" (to the last digit, with its standard error), "within" (its tolerance) or "outside"."""
        if self.committed.equals(self.yours):
            return "identical"
        return "within" if abs(self.difference) <= self.tolerance else "outside"


def _error(record: Record, metric: str) -> float:
    """The standard error of drawing a cell's samples. That of fd_infinity is the error of a fit: FD's replaces it."""
    return record.values.get("fd_corrected" if metric == "fd_infinity" else metric, NOTHING).se


class Spreads:
    """The spread of a number over repetitions, from the committed cells of a whole study."""

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
        """The standard deviation of a number over repetitions, which have other training seeds and other noise."""
        usual = self._ratios.get(metric, math.hypot(1, RETRAINING)) * se
        return max(self._points.get((place.curve, place.steps, metric), 0.0), usual)


def compare(
    committed: dict[Place, Record],
    yours: dict[Place, Record],
    spreads: Spreads,
    adaptive: Collection[str] = (),
    others: Sequence[dict[Place, Record]] = (),
) -> list[Number]:
    """Every number of the cells of both sides.

    adaptive: curves whose NFE depends on their samples. others: your cells, measured with extractors of other seeds.
    """
    found = []
    for place in dict.fromkeys([*yours, *committed]):
        one, two = (side.get(place, Record(0, 0, {}, {})) for side in (committed, yours))
        then, now = one.numbers(), two.numbers()
        differs = next((p for p in HASHED if p in one.hashes and one.hashes[p] != two.hashes.get(p)), "")
        if place not in committed or place not in yours:
            differs = "study"
        elif not differs and not all(then.get(m, NOTHING).equals(now.get(m, NOTHING)) for m in then | now):
            differs = PARTS[-1]
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
            limit = 0.0 if differs in ("study", "data") or metric == "samples" else limit
            found.append(Number(place, one.nfe or two.nfe, metric, own, again, limit, differs))
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
        | {"result": n.result, "differs_first": n.differs}
        for n in numbers
    ]


def _in_se(number: Number) -> float:
    return number.difference / number.se if number.se > 0 else math.nan


def table(numbers: Sequence[Number], metric: str) -> str:
    """One metric of every cell and all numbers outside their tolerance, in columns."""

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
    """What differs first, what was allowed for, and the counts, as sentences. elsewhere: how this machine differs."""
    differs = [n.differs for n in numbers if n.differs]
    first = min(differs, key=PARTS.index, default="")
    trained = dict.fromkeys(f"{n.place.curve}, seed {n.place.train_seed}" for n in numbers if n.differs == "weights")
    sampled = dict.fromkeys(f"{n.place.curve} at {n.nfe}" for n in numbers if n.differs == "samples")
    single = dict.fromkeys(f"{n.place.curve} at {n.nfe}" for n in numbers if n.differs == "study")
    found = [
        {
            "": "Data, extractor, reference, weights and samples are the same.",
            "study": f"The study file and the results have different cells: {_some(single)}.",
            "data": "The data differ, so that no number can be compared.",
            "extractor": "The data are the same; the extractor differs, and with it every score.",
            "reference": "Data and extractor are the same; the features of the real images differ.",
            "weights": f"Data, extractor and reference are the same; the weights differ: {_some(trained)}.",
            "samples": f"The weights are the same; samples or metrics differ: {_some(sampled)}.",
        }[first]
    ]
    if first and elsewhere:
        found.append(f"This machine differs from the one that made the results ({'; '.join(elsewhere)}).")
        allowed = ALLOWED + (f" {ALLOWED_EXTRACTOR}" if first == "extractor" else "")
        found += [allowed] if first not in ("study", "data") else []
    elif first:
        found.append(
            "This machine with these libraries made the results, so all numbers should be identical: the code, the "
            "study file or the results have changed since."
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
    f"Tolerance: {SAME_WEIGHTS} standard errors if the weights are the same; otherwise {TIMES:g} sqrt(2) standard "
    "deviations of a repetition, because training with other rounding errors is like training with another seed."
)
ALLOWED_EXTRACTOR = "The spread of scores between extractors of other seeds is added."


def _some(names: Collection[str], most: int = 8) -> str:
    shown = list(names)[:most]
    return "; ".join(shown) + (f"; and {len(names) - most} more" if len(names) > most else "")
