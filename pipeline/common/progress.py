"""Progress on the terminal; silent where the output is none."""

import sys

from tqdm import tqdm

from pipeline.common import processes


def bar(title: str, total: int, unit: str) -> tqdm:
    """A progress bar on stderr, with its rate and the time left, of a job's first process. Call .update(n) from any
    thread."""
    silent = None if processes.first() else True
    return tqdm(
        desc=title, total=total, unit=f" {unit}", unit_scale=True, dynamic_ncols=True, disable=silent, leave=False
    )


def tell(progress: tqdm, line: str) -> None:
    """One line above the bar, where there is one."""
    if not progress.disable:
        progress.write(line, file=sys.stderr)
