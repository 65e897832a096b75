"""What a study needs of the machine that runs it, and what is said where it has less."""

import os
from typing import Annotated

import torch
from pydantic import Field

from pipeline.common.devices import CHOICE
from pipeline.common.rows import Row

GIB = 2**30


class Needs(Row):
    """The `needs` section: what the study needs of the machine."""

    gpu_gib: Annotated[float, Field(ge=0)] = 0
    """Memory of the GPU that the study needs, in GiB; 0: no GPU."""


def gpu_count() -> int:
    """How many GPUs PyTorch finds; 0 where NFE_DEVICE names another device."""
    return torch.cuda.device_count() if (os.environ.get(CHOICE) or "cuda") == "cuda" else 0


def gpu_gib() -> float:
    """The memory of the smallest GPU that PyTorch may use, in GiB; 0 where there is none."""
    return min((torch.cuda.get_device_properties(i).total_memory for i in range(gpu_count())), default=0) / GIB


def shortfall(needs: Needs, preset: str | None, others: dict[str, Needs]) -> str | None:
    """What a study needs that this machine lacks, in one line, with the presets that it would do for; None: nothing.

    preset: the one that holds; others: what each preset of the study needs.
    """
    if not needs.gpu_gib or (found := gpu_gib()) >= needs.gpu_gib:
        return None
    here = f"the smallest that PyTorch may use here has {found:.1f}" if found else "PyTorch finds none here"
    fit = [f"PRESET={name}" for name, other in others.items() if other.gpu_gib <= found]
    instead = f"; {' or '.join(fit)} runs here" if fit else "; run it where there is one"
    who = f"preset {preset}" if preset else "this study"
    return f"needs.gpu_gib: {who} takes a GPU of {needs.gpu_gib:g} GiB, and {here}{instead}"
