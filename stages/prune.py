"""Delete what rows that are no longer in the study file have left: `make prune`, or to look first, `make prune DRY=1`.

No stage of the graph. With --dry: print only.
"""

import argparse

from pipeline.commands.prune import delete, leftovers
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--dry", action="store_true")
    dry = parser.parse_known_args()[0].dry
    found, lock = leftovers(arguments.params), arguments.params.with_name("dvc.lock")
    verb = "would delete" if dry else "deleted"
    if not dry:
        delete(found, lock)
    for each in (*found.outputs, *(f"{stage} in {lock}" for stage in found.stages)):
        print(f"{verb} {each}")
    if not found.outputs and not found.stages:
        print(f"{arguments.params}: nothing is left of rows that are gone")


if __name__ == "__main__":
    run_stage(main, __doc__)
