"""The errors that a user can correct, and notes on what was done with an input."""

import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches

ADDRESS = re.compile(r" ?<[^<>]* at 0x[0-9a-fA-F]+>")  # Python's name of an object without one: different in each run


class StudyError(Exception):
    """A mistake in the study or its inputs. The message is one line: where, what is wrong, what to write instead."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class NotFinite(StudyError):
    """A denoiser's output or a sample is not finite."""


def is_text(name: str) -> bool:
    """Whether UTF-8 can hold a name. It cannot if the name on the disk or the command line is in another encoding."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def printable(text: str) -> str:
    """A text in one line: characters that a terminal would obey, or cannot show, as escapes; no object's address."""
    line = " ".join(ADDRESS.sub("", text).split())
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def note(text: str) -> None:
    """Tell what was done with an input, on stderr."""
    print(f"note: {printable(text)}", file=sys.stderr, flush=True)


def nearest(name: object, valid: Iterable[str]) -> str:
    """What to write instead of `name`: the most similar choice, if there is one, then all valid choices."""
    choices = sorted(valid)
    close = get_close_matches(str(name), choices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(choices)}"
