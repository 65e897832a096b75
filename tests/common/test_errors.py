"""Messages are one line that a terminal prints as it is."""

import pytest

from pipeline.common.errors import StudyError, note
from pipeline.common.text import is_utf8

LINES = {
    "a plain one: Größe 猫": "a plain one: Größe 猫",
    "two\nlines\r\n and\ttabs": "two lines and tabs",
    "\x1b[31mred": "\\x1b[31mred",
    "left \u202e right": "left \\u202e right",
    "\ue000 \udcff \x00": "\\ue000 \\udcff \\x00",
    "cannot identify <_io.BytesIO object at 0x7f00> (x)": "cannot identify (x)",
    "a < b at 0x1 and <b> > 0": "a < b at 0x1 and <b> > 0",
}


@pytest.mark.parametrize("text", LINES)
def test_a_message_is_one_line_without_control_characters_and_addresses(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert str(StudyError(text)) == str(StudyError(str(StudyError(text)))) == LINES[text]
    note(text)
    assert capsys.readouterr().err == f"note: {LINES[text]}\n"


def test_names_in_other_encodings_are_no_text() -> None:
    assert is_utf8("Größe") and is_utf8("😀") and not is_utf8("caf\udce9") and not is_utf8("\ud800")
