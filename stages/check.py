"""Validate a study file, and preview what it would run and what that costs on this machine. Writes no result."""

import sys
import time

import torch

from pipeline.commands.check import preview
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    start_seconds = time.process_time()  # what it took to get here, as any stage does
    torch.set_num_threads(1)  # all tensors are small: several threads would take up to ten times as long
    found = preview(arguments.params, start_seconds)
    for warning in found.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    print("\n".join(found.lines()))


if __name__ == "__main__":
    run_stage(main, __doc__)
