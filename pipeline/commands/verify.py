"""`verify`: committed results compared with the same cells made again. comparison.py explains the tolerances."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.commands.committed import ALL, Committed, choose, read_committed, records
from pipeline.commands.comparison import CSV_COLUMNS, Number, Spreads, compare, conclusion, csv_rows, table
from pipeline.commands.remake import Place, remake
from pipeline.common.devices import default_device
from pipeline.common.files import Paths, read_json, write_csv
from pipeline.common.machine import machine
from pipeline.metrics.names import headline
from pipeline.params.resolve import resolve
from pipeline.params.resolved import Resolved
from pipeline.params.study import read_study

RELATION = ("base", "axis", "differences", "explicit", "method")  # keys of a row that change no number


class Verdict(NamedTuple):
    """Every number compared, the metric of the study's headline figure, and the conclusion."""

    numbers: list[Number]
    headline: str
    sentences: list[str]


def verify_study(params: Path, cells: str) -> bool:
    """Verify a study's committed cells, print the table and write all numbers to build/<study>/verify.csv; whether no
    number is outside its tolerance. cells: see `choose`. Raises StudyError as `verify` does."""
    rows = resolve(read_study(params))
    verdict = verify(rows, cells, lambda line: print(line, flush=True))
    file = Paths(rows.study.name).build / "verify.csv"
    write_csv(file, CSV_COLUMNS, csv_rows(verdict.numbers))
    print(table(verdict.numbers, verdict.headline), *verdict.sentences, f"Every number: {file}", sep="\n")
    return all(number.result != "outside" for number in verdict.numbers)


def verify(rows: Resolved, cells: str, begin: Callable[[str], object]) -> Verdict:
    """Make the cells that `cells` names again and compare them with the committed ones.

    begin: called with a line on the work to come. Raises StudyError if there are no results or no such cells, or if a
    stage fails.
    """
    paths = Paths(rows.study.name)
    committed = read_committed(paths)
    places = choose(cells, rows, committed)
    begin(f"{paths.study}: {len(places)} of {len(committed.cells)} cells, from nothing; no cache is used")
    made, *others = remake(rows, places, {committed.cells[place].hashes["extractor"] for place in places})
    expected = {place: record for place, record in committed.cells.items() if cells == ALL or place in set(places)}
    curves = {place.curve for place in places} & rows.curves.keys()
    adaptive = {name for name in curves if rows.curves[name].row.build_solver().adaptive}
    numbers = compare(expected, records(made), Spreads(committed.cells), adaptive, list(map(records, others)))
    changed = [
        f"The study file has changed since: {change}."
        for change in other_rows(committed.rows, [place.curve for place in places], rows)
    ]
    sentences = conclusion(numbers, other_machine(committed, paths, places, rows))
    return Verdict(numbers, headline(made.extractor), [*changed, *sentences])


def other_machine(committed: Committed, paths: Paths, places: Collection[Place], rows: Resolved) -> list[str]:
    """How this machine and its libraries differ from those that made the cells: "python: 3.11.7 then, 3.12.3 now"."""
    found: list[str] = []
    for curve in dict.fromkeys(place.curve for place in places):
        if curve not in committed.machines:
            found.append("no record of that machine")
        found += _changes(committed.machines.get(curve, {}), machine())
        if curve in rows.curves:
            trained = paths.metrics("train", rows.curves[curve].row.model)
            found += _changes(read_json(trained)["machine"] if trained.exists() else {}, machine(default_device()))
    return list(dict.fromkeys(found))


def other_rows(made: Mapping[str, dict[str, Any]], curves: Iterable[str], rows: Resolved) -> list[str]:
    """How the study file's curves differ from those that made the results. made: the latter, by name."""
    found = []
    for curve in dict.fromkeys(curves):
        now, then = rows.flat("curves" if curve in rows.curves else "sets", curve), made.get(curve, {})
        keys = [key for key in now if key in then and key not in RELATION]
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
