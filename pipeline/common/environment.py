"""What a process takes from the environment of its user: nothing that results or figures could depend on."""

import os
import sys
from io import TextIOWrapper

from pipeline.common.errors import StudyError
from pipeline.common.fingerprint import ROOT


def settle() -> None:
    """Keep the user's settings of Python, matplotlib and the terminal out of this process and those that it starts.

    A script calls it before it imports libraries.
    """
    others = {os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    others -= {str(ROOT)}
    sys.path.sort(key=lambda entry: os.path.abspath(entry) in others)  # the pinned packages come first
    os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # not every terminal has every letter of a title


def check_interpreter() -> None:
    """Raise StudyError if Python runs without `assert`, because libraries find unusable results by it."""
    if sys.flags.optimize:
        raise StudyError("PYTHONOPTIMIZE: it switches checks of the libraries off; unset it, and leave -O out")


def launched(name: str, default: int) -> int:
    """A number that torchrun gives to the processes it starts: WORLD_SIZE, RANK, LOCAL_RANK or LOCAL_WORLD_SIZE.

    An empty variable counts as none. Raises StudyError if it is no whole number.
    """
    text = os.environ.get(name) or str(default)
    if not text.isascii() or not text.isdigit():
        raise StudyError(f"{name}={text!r}: torchrun sets it to a whole number; unset it")
    return int(text)


def drop_unwritten() -> None:
    """Drop output that nobody reads or that has no room. Python would try again when it ends, and report it again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            print(end="", file=stream, flush=True)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
