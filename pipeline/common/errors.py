"""The one kind of error that a user can mend."""

from collections.abc import Iterable
from difflib import get_close_matches


class StudyError(Exception):
    """Something in the study or its inputs is wrong. The message is one line: where, what, and what would be right."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class NotFinite(StudyError):
    """A denoiser's answer or a sample is not finite."""


def nearest(name: object, valid: Iterable[str]) -> str:
    """What to write instead of `name`: its nearest neighbour among `valid` where there is one, then the choices."""
    choices = sorted(valid)
    close = get_close_matches(str(name), choices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(choices)}"
