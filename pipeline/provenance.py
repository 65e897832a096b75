"""What made a result: a hash of the code in use, and the machine and libraries that it ran on."""

import platform
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pipeline.files import content_hash


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


def machine() -> dict[str, Any]:
    """The device, the system and the versions that a result's bytes may depend on."""
    return {
        "device": f"CPU ({_processor()})",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
