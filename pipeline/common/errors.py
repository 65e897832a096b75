"""The errors that a user can correct, and lines on stderr about those that need no correction."""

import sys
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache


class StudyError(Exception):
    """A mistake in the study or its inputs. The message is one line: where, what is wrong, what to write instead."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class NotFinite(StudyError):
    """A denoiser's output or a sample is not finite."""


@cache
def say_once(message: str) -> None:
    """Print one line on stderr, the first time that it is called with this message."""
    print(" ".join(message.split()), file=sys.stderr, flush=True)


def nearest(name: object, valid: Iterable[str]) -> str:
    """What to write instead of `name`: the most similar choice, if there is one, then all valid choices."""
    choices = sorted(valid)
    close = get_close_matches(str(name), choices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(choices)}"
