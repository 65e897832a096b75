"""One thin script a stage: read a row, call pipeline/, write a file. Here: what all of them share."""

import argparse
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, read_json, write_json
from pipeline.common.fingerprint import fingerprint

BYTES_PER_MAXRSS = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Arguments:
    """A stage's command line. By hand: `python -m stages.train --name digits --row edm`."""

    name: str
    row: str
    params: Path
    check: bool
    images: str

    @property
    def paths(self) -> Paths:
        """The study's files. Raises StudyError for a name that would lead elsewhere."""
        for name in (self.name, self.row or "none"):
            if not re.fullmatch(r"\w+", name, re.ASCII):
                raise StudyError(f"{name!r}: a name has letters, digits and underscores alone")
        return Paths(self.name)


def parse_arguments(description: str | None) -> Arguments:
    """Read the command line. DVC passes the study's section, quoted, and the row in DVC_STAGE ("train@edm"), not on
    the command line: no name from a study file is ever read by a shell."""
    row_of_stage = os.environ.get("DVC_STAGE", "").rpartition(":")[2].partition("@")[2]
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--name", default="", help="the study's name")
    parser.add_argument("--row", default=row_of_stage, help="the row's name")
    parser.add_argument("--root", help="the way to the repository's root (for DVC alone)")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the study file")
    parser.add_argument("--check", action="store_true", help="resolve: validate only, write nothing")
    parser.add_argument("--images", default="", help="measure: a folder or zip of images, to be measured by hand")
    found, _ = parser.parse_known_args()  # an unknown key of the section is read_study's to name
    return Arguments(found.name, found.row, found.params, found.check, found.images)


def run_stage(main: Callable[[Arguments], None], description: str | None, shared: bool = False) -> NoReturn:
    """Run a stage as this process's last act, with the exit code of `outcome`. shared: by several processes, where
    torchrun starts them.

    The process then ends at once, without waiting for its threads: whatever they write is written whole or not at all.
    Nor does it wait for PyTorch's own end, which takes up to a second.
    """
    code = outcome(main, description, shared)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # of output that could not be written, `outcome` has told
            print(end="", file=stream, flush=True)
    os._exit(code)


def check_code(arguments: Arguments, stage: str) -> None:
    """Refuse to run a stage on rows that other code has written. Raises StudyError."""
    if not arguments.name or stage == "resolve":
        return
    file = arguments.paths.code(stage)
    if read_json(file) != fingerprint(f"stages.{stage}"):
        raise StudyError(
            f"{file}: the rows were written by other code than this; run `dvc repro`, which resolves first"
        )


def outcome(main: Callable[[Arguments], None], description: str | None, shared: bool = False) -> int:
    """Run a stage and return its exit code: 1 after a StudyError or an unreadable file, of which stderr has one line.

    Seconds and peak memory go to a file that nothing depends on.
    """
    arguments = parse_arguments(description)
    start, first = time.perf_counter(), os.environ.get("RANK", "0") == "0"
    try:
        if not shared and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise StudyError("this stage is run by one process; torchrun is for stages.train and stages.sweep")
        check_code(arguments, Path(sys.argv[0]).stem)
        main(arguments)
        print(end="", flush=True)
        if arguments.name and not arguments.check and not arguments.images and first:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_MAXRSS
            stage = "_".join(filter(None, (Path(sys.argv[0]).stem, arguments.row)))
            timing = {"seconds": round(time.perf_counter() - start, 2), "peak_memory_mib": round(peak / 2**20)}
            write_json(arguments.paths.timing(stage), timing)
    except (StudyError, OSError) as error:
        message, code = "error: " + " ".join(str(error).split()), 1
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # PyTorch's, which most stages needn't import for this
            raise
        message, code = f"error: out of memory; finished work is kept ({str(error).splitlines()[0][:200]})", 1
    except KeyboardInterrupt:
        message, code = "interrupted: finished work is kept; run the same command again to go on", 130
    else:
        return 0
    print(message, file=sys.stderr, flush=True)
    return code
