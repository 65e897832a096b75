"""The device that networks run on: its choice, transfers to it, precision, compilation, and the batch that fits.

If a device lacks a feature, one line on stderr says so, and the work continues without it.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.common.environment import launched
from pipeline.common.errors import StudyError, say_once

CPU = torch.device("cpu")
CHOICE = "NFE_DEVICE"  # the environment variable that overrides the default device
CPU_BATCH, LARGEST_BATCH, SMALLEST_BATCH = 512, 4096, 16
PROBE = 32  # images in the call that measures memory per image
RECOMPILED = 64  # compilations of a network, one for each combination of shapes, before it runs uncompiled
FREE_SHARE = 0.6  # of free memory, for a batch; the allocator and the solvers' states need the rest

Network = Callable[..., Tensor]  # network(x, c_noise, labels, augmentation), see pipeline.diffusion.networks


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU; each process of a job has its own GPU.

    NFE_DEVICE overrides it with cpu, cuda or mps. Raises StudyError if this machine has no such device.
    """
    chosen = os.environ.get(CHOICE, "")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if chosen and not available.get(chosen):
        raise StudyError(
            f"{CHOICE}={chosen}: no such device here; valid: {', '.join(k for k, v in available.items() if v)}"
        )
    if (chosen or "cuda") == "cuda" and available["cuda"]:
        _make_repeatable()
        return torch.device("cuda", launched("LOCAL_RANK", 0) % torch.cuda.device_count())
    return torch.device(chosen or "cpu")


@cache
def _make_repeatable() -> None:
    """Enable deterministic algorithms, if PyTorch has them, and full float32 precision on the GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. The caller does not wait for a GPU, which copies from pinned memory."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.contiguous().pin_memory().to(device, non_blocking=True)
    return values.to(device)


def to_device_together(vectors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Vectors of one length, by name, on the device as float32, copied in one transfer."""
    return dict(zip(vectors, to_device(torch.stack([*vectors.values()]).float(), device), strict=True))


def state_type(device: torch.device) -> torch.dtype:
    """The dtype of samplers' states: float64, or float32 on Apple's GPUs, which lack float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def exact_device(device: torch.device) -> torch.device:
    """The device for sums that need float64: the CPU for Apple's GPUs, else the device itself."""
    return device if state_type(device) == torch.float64 else CPU


def repeatable_gradients(device: torch.device) -> AbstractContextManager[object]:
    """While it lasts, a GPU's attention has deterministic gradients."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cuda" else nullcontext()


def make_gradients_repeatable() -> None:
    """Disable the GPU's fast attention kernels, whose gradients are not deterministic."""
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which a network multiplies in a row's `precision`, float32 or bfloat16."""
    if precision == "float32":
        return nullcontext()
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        say_once("precision: the GPU has no bfloat16; using float32")
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def compiled(network: Network, attempt: Callable[[Network], object], mode: str | None = None) -> Network:
    """The compiled network, or the network itself if there is no compiler or `attempt`, a call of it, fails."""
    try:
        torch._dynamo.config.recompile_limit = RECOMPILED
        candidate: Network = torch.compile(network, dynamic=False, mode=mode)
        attempt(candidate)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers raise anything; the network's own errors show without one, too
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        say_once(f"compile: not possible here ({reason[:200]}); continuing without")
        return network
    return candidate


def compiled_calls(network: Network, device: torch.device) -> Network:
    """The network for calls without gradients, compiled at the first call, on a GPU into CUDA graphs; see `compiled`.

    It returns copies, because the next call overwrites the output of a CUDA graph.
    """
    mode = "reduce-overhead" if device.type == "cuda" else None
    functions: list[Network] = []

    def call(*arguments: Tensor | None) -> Tensor:
        if not functions:
            functions.append(compiled(network, lambda candidate: candidate(*arguments), mode))
        return functions[0](*arguments).clone()

    return call


def fitting_batch(call: Callable[[int], object], device: torch.device) -> int:
    """The number of samples per batch: CPU_BATCH, or on a GPU the power of two that fits into its free memory.

    call: evaluates the network once, on the given number of images.
    """
    if device.type != "cuda":
        return CPU_BATCH
    call(PROBE)  # at the first call, libraries take memory that they keep
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call(PROBE)
    per_image = max(torch.cuda.max_memory_allocated(device) - before, 1) / PROBE
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - before
    most = max(int(FREE_SHARE * free / per_image), 1)
    return min(max(1 << (most.bit_length() - 1), SMALLEST_BATCH), LARGEST_BATCH)
