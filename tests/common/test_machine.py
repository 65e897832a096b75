"""Provenance: results that were measured in different ways are not compared."""

import json
from typing import Any

import pytest

from pipeline.common.errors import StudyError
from pipeline.common.machine import LIBRARIES, check_comparable, libraries, machine

SAME: dict[str, Any] = {"extractor": "classifier", "samples": 5000, "libraries": {"torch": "2.14"}}


def test_results_measured_in_the_same_way_are_comparable() -> None:
    check_comparable({})
    check_comparable({"edm": SAME})
    check_comparable({name: dict(reversed(SAME.items())) for name in ("edm", "vp", "ve")})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("extractor", "inception", "extractor is classifier for the first and inception for the second"),
        ("samples", 4999, "samples is 5000 for the first and 4999 for the second"),
        ("libraries", {"torch": "2.13"}, r"libraries is \{'torch': '2.14'\} for the first and \{'torch': '2.13'\}"),
        ("device", "cuda", "device is None for the first and cuda for the second"),
    ],
)
def test_the_first_two_results_that_differ_are_named(key: str, value: object, message: str) -> None:
    given = {"edm": SAME, "vp": SAME, "ve": SAME | {key: value}, "flow": SAME | {key: "other"}}
    with pytest.raises(StudyError, match=rf"^edm and ve are not comparable: {message}") as caught:
        check_comparable(given)
    assert len(str(caught.value).splitlines()) == 1


def test_a_key_that_is_missing_is_a_difference() -> None:
    fewer = {key: value for key, value in SAME.items() if key != "samples"}
    for pair in ({"edm": SAME, "ve": fewer}, {"edm": fewer, "ve": SAME}):
        with pytest.raises(StudyError, match="samples is"):
            check_comparable(pair)


def test_provenance_is_json_and_names_every_library() -> None:
    found = json.loads(json.dumps(machine()))
    assert set(found["libraries"]) == {"torch", *LIBRARIES} and found["libraries"] == libraries()
    assert all(found.values())
