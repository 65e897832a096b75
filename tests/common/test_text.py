"""Text of users: what hides in it, and lines for a terminal."""

import pytest

from pipeline.common.errors import StudyError, nearest
from pipeline.common.text import LONGEST_LINE, hidden, one_line


@pytest.mark.parametrize(
    "character", [*"\0\a\b\r\x1b\x7f\x85\x9b\u200e\u202e\u2066\u2028\u2029\ufeff\ue000\ue002\uf8ff\U000f0000", "\ud800"]
)
def test_an_invisible_character_is_found_and_printed_as_its_code(character: str) -> None:
    assert hidden(f"a{character}b") == character
    assert one_line(f"a{character}b").isprintable()


@pytest.mark.parametrize(
    "text", ["", "EDM (Heun)", "Größe β, 10\u00a0000", "two\nlines\tand a tab", "👩\u200d🔬", "می\u200cخواهم"]
)
def test_text_of_any_language_has_nothing_hidden(text: str) -> None:
    assert hidden(text) is None


def test_a_long_line_keeps_its_beginning_and_its_end() -> None:
    line = str(StudyError(f"models.x.images: takes a number, not {'9 ' * 100_000}; write\n 5"))
    assert len(line) == LONGEST_LINE
    assert line.startswith("models.x.images: takes a number, not 9 9") and line.endswith("9 ; write 5")


def test_a_long_name_is_compared_with_valid_ones_at_once() -> None:
    assert nearest("a" * 10**6, ["edm", "flow"]) == "valid: edm, flow"
