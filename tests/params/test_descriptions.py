"""Descriptions: what is read from docstrings, that none is missing, and that none describes what is not there."""

import pytest

from pipeline.common.rows import Row
from pipeline.data.row import Data
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.imageset import ImageSet
from pipeline.metrics.extractors.row import Features
from pipeline.params.descriptions import TABLES, Description, choices, description, docstrings, key_descriptions
from pipeline.params.needs import Needs
from pipeline.params.study import Preset, Published, Study, StudyInfo
from pipeline.sampling.row import Sampler
from pipeline.training.row import Model

ROWS = (Model, Curve, ImageSet, Data, Features, Needs, Preset, Published, Study, StudyInfo)


def test_words_formula_and_source_are_read_from_a_docstring() -> None:
    text = """A choice,
    in words.

    Details that the page leaves out: here.

    Formula: a + b,
        a = 2 c
    Source: Somebody 2022, arXiv 2206.00364; Somebody else 2023,
        arXiv 2303.00848
    """
    assert description(text) == Description(
        "A choice, in words.", "a + b, a = 2 c", "Somebody 2022, arXiv 2206.00364; Somebody else 2023, arXiv 2303.00848"
    )
    assert description("Words.\nSource: Somebody 2022") == Description("Words.", "", "Somebody 2022")
    assert description("Words.") == Description("Words.")
    assert description(None) == Description("")


def test_a_docstring_belongs_to_the_name_above_it() -> None:
    found = docstrings(Published)
    assert found["nfe"] == "Network evaluations of the published value."
    assert list(found) == list(Published.model_fields)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.__name__)
def test_every_key_of_a_row_is_described_in_a_line(row: type[Row]) -> None:
    found = key_descriptions(row)
    assert list(found) == list(row.model_fields)
    assert all(text and "\n" not in text for text in found.values())


def test_a_row_inherits_descriptions() -> None:
    assert "eta" not in docstrings(Curve) and key_descriptions(Curve)["eta"] == docstrings(Sampler)["eta"]


@pytest.mark.parametrize("key", TABLES)
def test_every_choice_is_described_and_no_other(key: str) -> None:
    table = TABLES[key]
    assert list(choices(key)) == list(table.objects) and all(choice.words for choice in choices(key).values())
    listed = docstrings(table.module).get(table.name, "").split("\n\n")
    assert {paragraph.partition(": ")[0] for paragraph in listed} - {""} <= set(table.objects)
