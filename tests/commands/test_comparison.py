"""Numbers compared with those made again: what is allowed for, what is outside, and the table of both."""

import math
from typing import Any

import pytest

from pipeline.commands.committed import Record, Value
from pipeline.commands.comparison import RETRAINING, SAME_WEIGHTS, TIMES, Number, Spreads, compare, conclusion, table
from pipeline.commands.remake import Place
from pipeline.report.results import FAILED

HASHES = {"data": "d", "extractor": "e", "reference": "r", "weights": "w"}
HERE = Place("edm", 2, 0, 0)


def record(value: float, se: float = 0.1, nfe: int = 3, **hashes: str) -> Record:
    return Record(nfe, 40, {"fd_corrected": Value(value, se)}, HASHES | hashes)


def number(one: Record, two: Record, repetitions: tuple[float, ...] = (1.0,), se: float = 0.1, **more: Any) -> Number:
    """What is found of a cell whose committed repetitions have these values."""
    cells = {Place("edm", 2, seed, seed): record(value, se) for seed, value in enumerate(repetitions)}
    found = compare({HERE: one}, {HERE: two}, Spreads(cells), **more)
    return next(n for n in found if n.metric == "fd_corrected")


@pytest.mark.parametrize(
    ("one", "two", "repetitions", "tolerance", "differs"),
    [
        (record(1.0), record(1.01, 0.12), (1.0, 1.4), SAME_WEIGHTS * 0.12, "samples"),
        (record(1.0), record(1.1, weights="other"), (1.0, 1.4), TIMES * math.sqrt(2) * math.sqrt(0.08), "weights"),
        (
            record(1.0),
            record(1.1, weights="other"),
            (1.0,),
            TIMES * math.sqrt(2) * 0.1 * math.hypot(1, RETRAINING),
            "weights",
        ),
        (record(1.0), record(1.1, reference="other"), (1.0, 1.4), SAME_WEIGHTS * 0.1, "reference"),
        (record(1.0), record(1.1, data="other", weights="other"), (1.0, 1.4), 0.0, "data"),
    ],
)
def test_what_is_allowed_for_goes_by_what_differs_first(
    one: Record, two: Record, repetitions: tuple[float, ...], tolerance: float, differs: str
) -> None:
    found = number(one, two, repetitions)
    assert found.differs == differs and found.tolerance == pytest.approx(tolerance)
    assert found.result == ("within" if found.difference <= tolerance else "outside")


def test_repetitions_that_happen_to_agree_do_not_narrow_the_tolerance() -> None:
    """At this number of steps they are equal; usually they lie some standard errors apart."""
    cells = {
        Place("edm", steps, seed, seed): record(value)
        for steps, values in ((2, (1.0, 1.0)), (3, (1.0, 1.3)), (4, (1.0, 4.0)))
        for seed, value in enumerate(values)
    }
    assert Spreads(cells).sd(HERE, "fd_corrected", 0.2) == pytest.approx(2 * 0.3 / math.sqrt(2))


def test_extractors_of_other_seeds_widen_the_tolerance() -> None:
    others = [{HERE: record(3.0)}, {HERE: record(5.0)}]
    found = number(record(1.0, extractor="other"), record(1.0), others=others)
    assert found.differs == "extractor"
    assert found.tolerance == pytest.approx(TIMES * math.sqrt(2) * 2.0 + SAME_WEIGHTS * 0.1)


def test_counted_evaluations_must_be_equal_but_for_adaptive_solvers() -> None:
    def nfe(**more: Any) -> Number:
        found = compare({HERE: record(1.0)}, {HERE: record(1.0, nfe=4)}, Spreads({HERE: record(1.0)}), **more)
        return next(n for n in found if n.metric == "nfe")

    assert (nfe().result, nfe(adaptive={"edm"}).result) == ("outside", "within")


def test_a_difference_that_nothing_is_known_of_is_outside() -> None:
    assert number(record(1.0), Record(3, 40, {FAILED: Value(1.0, math.nan)}, HASHES)).result == "outside"
    failed = Record(3, 40, {FAILED: Value(1.0, math.nan)}, HASHES)
    assert {n.result for n in compare({HERE: failed}, {HERE: failed}, Spreads({}))} == {"identical"}


def test_the_table_shows_the_headline_and_all_that_lies_outside() -> None:
    values = {"fd": Value(1.0, 0.1), "fd_corrected": Value(1.0, 0.1), "kd": Value(1.0, 0.1)}
    one = Record(3, 40, values, HASHES)
    two = Record(3, 40, values | {"kd": Value(2.0, 0.1)}, HASHES)
    lines = table(compare({HERE: one}, {HERE: two}, Spreads({})), "fd_corrected").splitlines()
    assert [line.split()[3] for line in lines[1:]] == ["fd_corrected", "kd"]
    assert lines[2].split()[4:] == ["1", "2", "1", "0.1", "10", "0.025", "outside"]
    assert conclusion([], [])[0] == "Data, extractor, reference, weights and samples are the same."
