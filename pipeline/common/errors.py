"""The errors that a user can correct, and lines on stderr about those that need no correction."""

import sys
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache

from pipeline.common.text import one_line

LONGEST_NAME = 60  # characters of a name that are compared with others


class StudyError(Exception):
    """A mistake in the study or its inputs. The message is one line: where, what is wrong, what to write instead."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class NotFinite(StudyError):
    """A loss, a weight, a denoiser's output or a sample is not finite."""


@cache
def say_once(message: str) -> None:
    """Print one line on stderr, the first time that it is called with this message."""
    print(one_line(message), file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Tell what was done with an input, on stderr."""
    print(f"note: {one_line(text)}", file=sys.stderr, flush=True)


def nearest(name: object, valid: Iterable[str]) -> str:
    """What to write instead of `name`: the most similar choice, if there is one, then all valid choices."""
    choices = sorted(valid)
    close = get_close_matches(str(name)[:LONGEST_NAME], choices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(choices)}"
