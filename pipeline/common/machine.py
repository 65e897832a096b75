"""What made a result: a hash of the code in use, and the machine and libraries that it ran on."""

import platform
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.common.errors import StudyError
from pipeline.common.files import content_hash

LIBRARIES = ("numpy", "torch-fidelity", "torchdiffeq", "torchmetrics")


@cache
def code_hash() -> str:
    """A hash over the sources of every `pipeline` module that is imported by now, and PyTorch's version."""
    modules = {n: m for n, m in list(sys.modules.items()) if n.split(".")[0] == "pipeline"}
    files = [Path(m.__file__) for _, m in sorted(modules.items()) if m.__file__]
    return content_hash(torch.__version__, *files)


def _processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def libraries() -> dict[str, str]:
    """The versions of the libraries that results are made with."""
    return {"torch": str(torch.__version__)} | {name: version(name) for name in LIBRARIES}


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """The device, the system and the versions that a result's bytes may depend on. device None: the CPU."""
    on_gpu = device is not None and device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU ({_processor()})",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": libraries(),
    }


def check_comparable(provenance: dict[str, dict[str, Any]]) -> None:
    """Refuse to put results side by side that were not measured alike: name -> what a result was measured with.

    Raises StudyError that names the first two results that differ, in what, and how.
    """
    if not provenance:
        return
    first, *others = provenance
    for other in others:
        one, two = provenance[first], provenance[other]
        for key in {**one, **two}:
            if one.get(key) != two.get(key):
                raise StudyError(
                    f"{first} and {other} cannot stand in one figure: {key} is {one.get(key)} for the first and "
                    f"{two.get(key)} for the second; measure both alike (`dvc repro --force` measures again)"
                )
