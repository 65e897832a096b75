"""A study at another of its presets, in a folder of its own: `make study NAME=cifar10 PRESET=smoke`. No stage of the
graph.

Prints the name of the folder in studies/ that holds it. With --data: on another data set than its own.
"""

import argparse
import sys

from pipeline.params.presets import STUDIES, choose
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for name in ("study", "preset", "data"):
        parser.add_argument(f"--{name}", default="")
    own, _ = parser.parse_known_args()
    folder = choose(own.study, own.preset, own.data)
    if folder != own.study:
        print(f"{STUDIES / folder / 'params.yaml'}: written from {STUDIES / own.study}", file=sys.stderr)
    print(folder)


if __name__ == "__main__":
    run_stage(main, __doc__)
