"""What a study needs of the machine, and the message if the machine has less."""

import os

import torch

from pipeline.common.devices import CHOICE
from pipeline.common.rows import NonNegativeFloat, Row

GIB = 2**30


class Needs(Row):
    """The `needs` section: what the study needs of the machine."""

    gpu_gib: NonNegativeFloat = 0
    """Memory of the GPU that the study needs, in GiB; 0: no GPU."""


def gpu_count() -> int:
    """The number of GPUs that PyTorch finds; 0 if NFE_DEVICE names another device."""
    return torch.cuda.device_count() if (os.environ.get(CHOICE) or "cuda") == "cuda" else 0


def gpu_gib() -> float:
    """The memory of the smallest GPU that PyTorch may use, in GiB; 0 without a GPU."""
    return min((torch.cuda.get_device_properties(i).total_memory for i in range(gpu_count())), default=0) / GIB


def shortfall(needs: Needs, preset: str | None, others: dict[str, Needs]) -> str | None:
    """What a study needs and this machine lacks, in one line that names the presets which run here; None if nothing.

    preset: the active one; others: the needs of each preset.
    """
    if not needs.gpu_gib or (memory := gpu_gib()) >= needs.gpu_gib:
        return None
    here = f"the smallest GPU here has {memory:.1f} GiB" if memory else "PyTorch finds no GPU here"
    fit = [f"PRESET={name}" for name, other in others.items() if other.gpu_gib <= memory]
    instead = f"; {' or '.join(fit)} runs here" if fit else "; run it on a machine with such a GPU"
    who = f"preset {preset}" if preset else "this study"
    return f"needs.gpu_gib: {who} needs a GPU of {needs.gpu_gib:g} GiB, but {here}{instead}"
