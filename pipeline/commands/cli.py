"""The command line: `python -m pipeline <command>`. Each command imports what it needs when it runs."""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pipeline.common.environment import check_interpreter, launched
from pipeline.common.errors import StudyError, nearest
from pipeline.common.text import is_utf8, one_line

Command = Callable[[argparse.Namespace], None]
ROOT_STUDY = Path("params.yaml")
WRONG_COMMAND_LINE, INTERRUPTED = 2, 130


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong command line in one line and accepts no abbreviations."""

    def __init__(self, **keywords: object) -> None:
        super().__init__(**{"allow_abbrev": False} | keywords)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_COMMAND_LINE, f"error: {one_line(message)}; `{self.prog} --help` lists what is valid\n")


def study_file(arguments: argparse.Namespace) -> Path:
    """The params.yaml of the study that the command line names.

    `--study` names a folder in studies/, or the root study; without it the command uses the root study. With `--preset`
    or `--data` the study at that preset is written to studies/<study>_<preset>/ first, and is used. Raises StudyError.
    """
    from pipeline.params.places import STUDIES, names_taken
    from pipeline.params.presets import choose

    name, preset, data = arguments.study, arguments.preset, arguments.data
    if not (preset or data):
        files = {"": ROOT_STUDY} | {folder.lower(): path for path, folder in names_taken()}
        files |= {path.parent.name: path for path in files.values() if path != ROOT_STUDY}
        if name not in files:
            raise StudyError(f"study {name[:100]!r}: not found; {nearest(name, [each for each in files if each])}")
        return files[name]
    folder = choose(name, preset, data)
    if folder != name:
        print(f"{STUDIES / folder / 'params.yaml'}: written from {STUDIES / name}", file=sys.stderr)
    return STUDIES / folder / "params.yaml"


def check(arguments: argparse.Namespace) -> None:
    from pipeline.commands import stale

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as beside:
        beside.submit(stale.load)  # DVC loads while PyTorch does
        import torch

        from pipeline.commands.check import preview

        start_seconds = time.process_time()  # a stage's process needs as long before its work begins
        torch.set_num_threads(1)  # all tensors are small: several threads would take up to ten times as long
        found = preview(study_file(arguments), start_seconds, beside)
    for warning in found.warnings():
        print(f"warning: {one_line(warning)}", file=sys.stderr)
    print("\n".join(found.lines()))


def new(arguments: argparse.Namespace) -> None:
    from pipeline.commands.new import new_study

    print(new_study(arguments.study, arguments.images, arguments.scale, arguments.labels))


def prune(arguments: argparse.Namespace) -> None:
    from pipeline.commands.prune import prune_study

    prune_study(study_file(arguments), arguments.dry)


def verify(arguments: argparse.Namespace) -> None:
    from pipeline.commands.verify import verify_study

    if not verify_study(study_file(arguments), arguments.cells.strip()):
        sys.exit(1)


def accept(arguments: argparse.Namespace) -> None:
    from pipeline.commands.accept import accept as accept_studies

    accept_studies(arguments.study)


def measure(arguments: argparse.Namespace) -> None:
    from pipeline.commands.measure import measure_images

    measure_images(study_file(arguments), arguments.images)


def timings(arguments: argparse.Namespace) -> None:
    from pipeline.commands.timings import time_study

    time_study(study_file(arguments))


def import_(arguments: argparse.Namespace) -> None:
    from pipeline.commands.import_ import import_network

    print(import_network(arguments.file, arguments.out, arguments.sha256))


def docs(arguments: argparse.Namespace) -> None:
    from pipeline.commands.docs import write_docs

    write_docs()


def best(arguments: argparse.Namespace) -> None:
    from pipeline.commands.best import best_lines

    print(*best_lines(study_file(arguments), arguments.budget, arguments.seconds, arguments.model), sep="\n")


def claim(arguments: argparse.Namespace) -> None:
    from pipeline.commands.claim import claim_lines

    print(*claim_lines(study_file(arguments), arguments.claim), sep="\n")


def export(arguments: argparse.Namespace) -> None:
    from pipeline.commands.export import export_curve

    curve, budget, seed = arguments.curve, arguments.budget, arguments.seed
    print(*export_curve(study_file(arguments), curve, budget, seed, arguments.out), sep="\n")


def repro(arguments: argparse.Namespace) -> None:
    from pipeline.commands.repro import jobs_of, run_study

    jobs = jobs_of(arguments.jobs)
    run_study(study_file(arguments), jobs)


def parser() -> Parser:
    """The parser of all commands."""
    found = Parser(prog="python -m pipeline", description="Commands that come before, beside and after a study's run.")
    commands = found.add_subparsers(title="commands", required=True, metavar="command")
    of_study = Parser(add_help=False)
    of_study.add_argument("--study", default="", metavar="NAME", help="a folder in studies/ (default: the root study)")
    of_study.add_argument("--preset", default="", help="one of the study's presets, in a folder of its own")
    of_study.add_argument("--data", default="", help="another data set than the study's: a folder, an archive, a name")

    def add(run: Command, summary: str, parents: Sequence[Parser] = (of_study,)) -> Parser:
        command: Parser = commands.add_parser(
            run.__name__.rstrip("_"), help=summary, description=f"{summary[0].upper()}{summary[1:]}.", parents=parents
        )
        command.set_defaults(run=run)
        return command

    add(repro, "validate a study and run what has changed").add_argument(
        "--jobs", default="", metavar="J", help="independent stages at a time (default: one a core, up to 4; 1 on GPUs)"
    )
    add(check, "validate a study; print what would run and what it costs on this machine")
    add(verify, "make cells again from nothing and compare them with the committed results").add_argument(
        "--cells", default="", help='"all", or cells such as "edm:35:0,0 ddim:7" (default: a few of each method)'
    )
    add(prune, "delete the outputs of rows that are no longer in the study file").add_argument(
        "--dry", action="store_true", help="print what would be deleted, delete nothing"
    )
    add(measure, "score a folder or zip of images as the study scores its samples").add_argument(
        "--images", required=True, metavar="PATH", help="a folder or zip of images"
    )
    add(timings, "measure the seconds per image of every curve and write them into the report")
    command = add(best, "print the curves that may be best at a budget, from the committed results")
    command.add_argument("--budget", type=int, metavar="NFE", help="network evaluations for a sample")
    command.add_argument("--seconds", type=float, metavar="S", help="seconds per image, as `timings` measured them")
    command.add_argument("--model", default="", metavar="NAME", help="only curves of this model")
    add(claim, "say whether the committed results confirm or refute a claim").add_argument(
        "claim", help='such as "dpmpp_2m @ 11 < edm @ 19": the score of a curve at a NFE is lower (or >, higher)'
    )
    command = add(export, "write the sampler of a curve as a file that needs PyTorch alone")
    command.add_argument("--curve", required=True, metavar="NAME", help="a row of the study's curves")
    command.add_argument("--budget", type=int, metavar="NFE", help="one of the curve's budgets (default: the largest)")
    command.add_argument(
        "--seed", type=int, help="the training that fitted numbers are for (default: the curve's first)"
    )
    command.add_argument("--out", default="", metavar="FILE", help="default: build/<study>/exported/<curve>_<nfe>.py")
    command = add(new, "write studies/NAME/ for a folder or zip of images", ())
    command.add_argument("--study", required=True, metavar="NAME", help="the new study's name")
    command.add_argument("--images", required=True, metavar="PATH", help="a folder or zip of images")
    command.add_argument("--scale", default="cpu", help="cpu (default) or published")
    command.add_argument("--labels", default="none", help="none (default) or classes: what networks are conditioned on")
    command = add(accept, "take new code for committed results, after a sample of the work came out the same", ())
    command.add_argument("--study", default="", metavar="NAME", help="a folder in studies/, or all; default: root")
    command = add(import_, "convert a released network to a file of weights, without running anything in it", ())
    command.add_argument("file", metavar="FILE", help="a pickle of EDM or EDM2, a folder of diffusers, or our own file")
    command.add_argument("--out", required=True, metavar="PATH", help="the file to write, which ends in .safetensors")
    command.add_argument("--sha256", default="", help="the sha256 that the file of weights must have")
    add(docs, "write docs/design-space.md and params.schema.json, which are made from the code", ())
    return found


def terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM as a terminal handles Ctrl-C, which every process gets."""
    import psutil  # DVC needs it anyway

    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    1 after a StudyError, an unreadable file or lack of memory, 2 for a wrong command line, 130 after an interrupt; one
    line on stderr names the reason.
    """
    try:
        chosen = parser().parse_args(arguments)
        check_interpreter()
        if launched("WORLD_SIZE", 1) > 1:
            raise StudyError("commands run in one process; torchrun starts stages.train and stages.sweep alone")
        for option, value in vars(chosen).items():
            if value == []:  # argparse's result for "--"
                raise StudyError(f"--{option}: '--' is not valid; write a name or a path")
            if isinstance(value, str) and not is_utf8(value):
                raise StudyError(f"--{option}: {value!r} is not valid UTF-8; rename it")
        chosen.run(chosen)
        print(end="", flush=True)
    except (StudyError, OSError, MemoryError) as error:
        message = str(error)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # PyTorch's class; importing it takes seconds
            raise
        message = f"out of memory ({str(error).splitlines()[0][:200]})"
    except KeyboardInterrupt:
        print("interrupted: finished work is kept; run the same command again to go on", file=sys.stderr, flush=True)
        return INTERRUPTED
    else:
        return 0
    print("error: " + one_line(message), file=sys.stderr, flush=True)
    return 1
