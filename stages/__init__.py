"""One thin script for each stage: read a row, call pipeline/, write a file. This module has what all stages share."""

import argparse
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from pipeline.common.environment import check_interpreter, drop_unwritten, launched, settle
from pipeline.common.errors import StudyError, nearest
from pipeline.common.files import Paths, read_json, write_json
from pipeline.common.fingerprint import fingerprint
from pipeline.common.text import one_line

BYTES_PER_MAXRSS = 1 if sys.platform == "darwin" else 1024
INTERRUPTED = 130
INTERRUPTION = "interrupted: finished work is kept; run the same command again to continue"

settle()  # before a stage imports its libraries


@dataclass(frozen=True)
class Arguments:
    """The command line of a stage. By hand: `python -m stages.train --name digits --row edm`."""

    name: str
    row: str = ""
    params: Path = Path("params.yaml")

    @property
    def paths(self) -> Paths:
        """The study's files. Raises StudyError if a name could lead to another folder."""
        for name in (self.name, self.row or "none"):
            if not re.fullmatch(r"\w+", name, re.ASCII):
                raise StudyError(f"{name!r}: a name has letters, digits and underscores only")
        return Paths(self.name)


def parse_arguments(description: str | None) -> Arguments:
    """Read the command line.

    DVC passes the study's section, quoted, on the command line, and the row in DVC_STAGE ("train@edm"). So no shell
    ever reads the name of a row. Raises StudyError for an option that is not a key of the section.
    """
    row_of_stage = os.environ.get("DVC_STAGE", "").rpartition(":")[2].partition("@")[2]
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--name", default="", help="the study's name")
    parser.add_argument("--row", default=row_of_stage, help="the row's name")
    parser.add_argument("--root", help="the path from dvc.yaml to the repository's root (only DVC uses it)")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the study file")
    values, others = parser.parse_known_args()
    if others:
        key = others[0].removeprefix("--").partition("=")[0]
        raise StudyError(f"study.{key[:100]}: unknown key; {nearest(key, ('name', 'root', 'params'))}")
    return Arguments(values.name, values.row, values.params)


def run_stage(main: Callable[[Arguments], None], description: str | None, shared: bool = False) -> NoReturn:
    """Run a stage and exit with the code of `outcome`. shared: torchrun may start several processes of it."""
    _handle_signals(signal.default_int_handler)
    code = outcome(main, description, shared)
    drop_unwritten()  # `outcome` has reported output that cannot be written
    if code == INTERRUPTED:  # end by the signal, as a shell expects, without waiting for threads
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    sys.exit(code)


def _handle_signals(handler: Callable[[int, FrameType | None], Any]) -> None:
    """Let SIGTERM and Ctrl-C call a handler. A signal that this process was started to ignore stays ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    """Handle a signal while the script imports its libraries: say so in one line and end by the signal."""
    print(INTERRUPTION, file=sys.stderr, flush=True)
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


if sys.argv[0] == "-m":  # Python imports this package before the script of the stage, which imports for seconds
    _handle_signals(_end)


def outcome(main: Callable[[Arguments], None], description: str | None, shared: bool = False) -> int:
    """Run a stage and return its exit code.

    1 after a StudyError, an unreadable file or lack of memory, 130 after an interrupt; one line on stderr names the
    reason. Seconds and peak memory are written to a file that no stage depends on.
    """
    start = time.perf_counter()
    try:
        check_interpreter()
        arguments = parse_arguments(description)
        if not shared and launched("WORLD_SIZE", 1) > 1:
            raise StudyError("one process runs this stage; torchrun is for stages.train and stages.sweep")
        _check_code(arguments)
        main(arguments)
        print(end="", flush=True)
        if arguments.name and launched("RANK", 0) == 0:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_MAXRSS
            stage = "_".join(filter(None, (_stage(), arguments.row)))
            timing = {"seconds": round(time.perf_counter() - start, 2), "peak_memory_mib": round(peak / 2**20)}
            write_json(arguments.paths.timing(stage), timing)
    except (StudyError, OSError) as error:
        message, code = f"error: {one_line(str(error))}", 1
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # PyTorch's class; importing it takes seconds
            raise
        message, code = f"error: out of memory; finished work is kept ({str(error).splitlines()[0][:200]})", 1
    except KeyboardInterrupt:
        message, code = INTERRUPTION, INTERRUPTED
    else:
        return 0
    print(message, file=sys.stderr, flush=True)
    return code


def _stage() -> str:
    """The stage that this process runs: the name of its script."""
    return Path(sys.argv[0]).stem


def _check_code(arguments: Arguments) -> None:
    """Refuse rows that other code has written, so that DVC never files a result under the wrong code."""
    if not arguments.name or _stage() == "resolve":
        return
    file = arguments.paths.code(_stage())
    if read_json(file) != fingerprint(f"stages.{_stage()}"):
        raise StudyError(f"{file}: other code has written the rows; run `dvc repro`, which resolves the study first")
