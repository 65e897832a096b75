"""The page as a file: its marks, its data and its charts."""

import json
from pathlib import Path

from pipeline.common.files import Paths
from pipeline.report.charts import Axis, Look, chart, floor, point
from pipeline.report.page import data, library, marked, to_html, unmarked
from pipeline.report.statistics import Floor
from pipeline.report.study import METRICS
from tests.report.studies import CURVES


def test_markdown_has_no_marks(plain: Paths) -> None:
    text = (plain.reports / "report.md").read_text()
    assert unmarked(text) == text and "#cell" not in text


def test_an_invalid_mark_is_plain_text() -> None:
    """Marks in a title are neither links nor errors."""
    page = to_html(f"# {marked('9', 3)} \ue000x\ue001 \ue002\n", "t", Path())
    body = page.split("<main")[1].split("</main")[0]
    assert ">9 x" in body and "data-cell" not in body
    assert not any(mark in body for mark in "\ue000\ue001\ue002")


def test_data_cannot_end_its_script() -> None:
    value = {"</script><script>": ["<!--", "</SCRIPT>", "模"]}
    assert "<" not in data(value) and json.loads(data(value)) == value
    assert "</script" not in library().lower() and "<!--" not in library()


def test_names_are_values_of_a_chart_and_never_fields() -> None:
    hostile = "a.b['c'] + datum.x \\ \""
    points = [point(hostile, 1, 2, 1, 3), point(hostile, 2, 1), floor(Floor(0.1, 0))]
    found = chart({"": points}, {hostile: Look(0, "o")}, Axis("x"), Axis("y"))
    fields = set()

    def walk(part: object) -> None:
        if isinstance(part, dict):
            fields.update(value for key, value in part.items() if key == "field" and isinstance(value, str))
            for key, value in part.items():
                if key != "values":
                    walk(value)
        elif isinstance(part, list):
            for value in part:
                walk(value)

    walk(found)
    assert fields <= {"x", "y", "low", "high", "bottom", "series", "dashed", "count", "note", "place"}
    assert [p["series"] for p in found["data"]["values"]] == [hostile, hostile, "floor (real data)"]


def test_the_page_has_all_metrics(plain: Paths) -> None:
    text = (plain.reports / "report.html").read_text()
    behind = json.loads(text.split('id="behind">')[1].split("</script>")[0])
    assert {metric for metric, _ in behind["metrics"]} == set(METRICS)
    by_name = dict(behind["curves"])
    assert list(by_name) == list(CURVES)
    assert all(len(cell) == 5 + 2 * len(METRICS) for cell in by_name["edm"]["cells"])
