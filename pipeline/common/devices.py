"""The device that networks run on: choosing it, bringing data there, precision, compilation, and how much fits.

What a device can't do is said once on stderr, and the work goes on without.
"""

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pipeline.common.errors import StudyError

CPU = torch.device("cpu")
CHOICE = "NFE_DEVICE"  # the environment variable that names another device than the default
CPU_BATCH, LARGEST_BATCH, SMALLEST_BATCH = 512, 4096, 16
PROBE = 32  # images whose evaluation tells how much memory one takes
RECOMPILED = 64  # times that one network may be, for other shapes and labels, before it runs as it is
FREE_SHARE = 0.6  # of the free memory, for a batch: the rest is the allocator's waste, and the solvers' states

Network = Callable[..., Tensor]  # network(x, c_noise, labels, augmentation), as all of pipeline.networks


@cache
def say_once(message: str) -> None:
    """One line on stderr, the first time."""
    print(" ".join(message.split()), file=sys.stderr, flush=True)


def default_device() -> torch.device:
    """The GPU where there is one, in a job of several processes this one's own; NFE_DEVICE names another: cpu, cuda or
    mps. Raises StudyError where there is none of that name."""
    chosen = os.environ.get(CHOICE, "")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if chosen and not there.get(chosen):
        raise StudyError(
            f"{CHOICE}={chosen}: no such device here; valid: {', '.join(k for k, v in there.items() if v)}"
        )
    if (chosen or "cuda") == "cuda" and there["cuda"]:
        _make_repeatable()
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device(chosen or "cpu")


@cache
def _make_repeatable() -> None:
    """The same bytes from the same inputs on one GPU, where its libraries have such algorithms, and float32 in full."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device, for which nothing waits: a GPU copies it from pinned memory when it gets there."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.contiguous().pin_memory().to(device, non_blocking=True)
    return values.to(device)


def to_device_together(vectors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Vectors of one length, by name, on the device as float32, copied in one transfer."""
    return dict(zip(vectors, to_device(torch.stack([*vectors.values()]).float(), device), strict=True))


def state_type(device: torch.device) -> torch.dtype:
    """What samplers keep their state in: float64, but on Apple's GPUs, which have no such numbers, float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def exact_device(device: torch.device) -> torch.device:
    """Where sums are made that need float64: on the device, but for Apple's, whose are made on the CPU."""
    return device if state_type(device) == torch.float64 else CPU


def make_gradients_repeatable() -> None:
    """Have attention's gradients made in one order, so that they are the same bytes each time; a GPU's faster kernels
    for them are not."""
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """What a network is called in, to multiply in `precision`: a row's `float32` or `bfloat16`."""
    if precision == "float32":
        return nullcontext()
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        say_once("precision: the GPU has no bfloat16; float32 takes its place")
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def compiled(network: Network, attempt: Callable[[Network], object], mode: str | None = None) -> Network:
    """The network, compiled; itself where there is no compiler, or where `attempt`, a call of it, fails."""
    try:
        torch._dynamo.config.recompile_limit = RECOMPILED
        candidate: Network = torch.compile(network, dynamic=False, mode=mode)
        attempt(candidate)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler raises: what is wrong with the network itself, shows without, too
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        say_once(f"compile: not possible here ({reason[:200]}); it goes on without")
        return network
    return candidate


def compiled_calls(network: Network, device: torch.device) -> Network:
    """The network for calls without gradients, compiled at the first one, on a GPU into CUDA graphs; see `compiled`.

    Answers are copies, since the next call overwrites a graph's own.
    """
    mode = "reduce-overhead" if device.type == "cuda" else None
    found: list[Network] = []

    def call(*arguments: Tensor | None) -> Tensor:
        if not found:
            found.append(compiled(network, lambda candidate: candidate(*arguments), mode))
        return found[0](*arguments).clone()

    return call


def fitting_batch(call: Callable[[int], object], device: torch.device) -> int:
    """How many samples to make at a time: as many as fit into a GPU's free memory, a power of two; else CPU_BATCH.

    call: evaluates the network once, on so many images.
    """
    if device.type != "cuda":
        return CPU_BATCH
    call(PROBE)  # which is when libraries take memory that they keep
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call(PROBE)
    each = max(torch.cuda.max_memory_allocated(device) - before, 1) / PROBE
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - before
    most = max(int(FREE_SHARE * free / each), 1)
    return min(max(1 << (most.bit_length() - 1), SMALLEST_BATCH), LARGEST_BATCH)
