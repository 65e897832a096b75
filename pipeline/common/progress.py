"""Progress on the terminal; silent if the output is not one."""

import sys

from tqdm import tqdm

from pipeline.common import processes


def bar(title: str, total: int, unit: str) -> tqdm:
    """A progress bar on stderr, with its rate and the time left. Call .update(n) from any thread.

    Only the first process of a job shows one.
    """
    disable = None if processes.first() else True
    return tqdm(
        desc=title, total=total, unit=f" {unit}", unit_scale=True, dynamic_ncols=True, disable=disable, leave=False
    )


def tell(progress: tqdm, line: str) -> None:
    """Print a line above the bar, if there is one."""
    if not progress.disable:
        progress.write(line, file=sys.stderr)
