"""The machine and the libraries that made a result, and whether results are comparable."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.common.errors import StudyError

LIBRARIES = ("numpy", "torch-fidelity", "torchdiffeq", "torchmetrics")


def _processor() -> str:
    """The processor's name as the system reports it, or its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def libraries() -> dict[str, str]:
    """The installed version of each library that computes results."""
    return {"torch": str(torch.__version__)} | {name: version(name) for name in LIBRARIES}


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """The device, system and versions that the bytes of a result may depend on. device None: the CPU."""
    on_gpu = device is not None and device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU ({_processor()})",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": libraries(),
    }


def check_comparable(provenance: dict[str, dict[str, Any]]) -> None:
    """Refuse to compare results that were measured in different ways.

    provenance: how each result was measured, by name. Raises StudyError that names the first two results that differ,
    the key, and both values.
    """
    if not provenance:
        return
    first, *others = provenance
    for other in others:
        one, two = provenance[first], provenance[other]
        for key in {**one, **two}:
            if one.get(key) != two.get(key):
                raise StudyError(
                    f"{first} and {other} are not comparable: {key} is {one.get(key)} for the first and "
                    f"{two.get(key)} for the second; measure both in the same way (`dvc repro --force` measures again)"
                )
