"""Several processes of one job, as PyTorch's torchrun starts them: who is who, and what they tell each other.

A process that was started alone is a job of one. What a job computes doesn't depend on how many processes it has.
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.common.devices import default_device
from pipeline.common.errors import StudyError

PATIENCE = timedelta(minutes=60)  # what a process waits for the others, of which one may write or measure meanwhile
LOST = (
    "another process of this job has ended, or the job was stopped; finished work is kept: run the same command again "
    "to go on"
)


def join() -> None:
    """Meet the other processes, where torchrun has started some. Raises StudyError where they do not come."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    signal.signal(signal.SIGTERM, _end)
    device = default_device()
    if device.type == "cuda":
        here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if here > gpus:
            raise StudyError(f"--nproc-per-node: {here} processes, but {gpus} GPUs; use at most one a GPU")
        torch.cuda.set_device(device)
    with _lost():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)


def count() -> int:
    """How many there are in this job."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Whether this is the one that writes."""
    return rank() == 0


def part(batch: int) -> slice:
    """This process's part of a batch. Raises StudyError where it can't be dealt out equally."""
    if batch % count():
        raise StudyError(
            f"batch: {batch} images can't be dealt out equally to {count()} processes; use as many as divide it"
        )
    size = batch // count()
    return slice(rank() * size, (rank() + 1) * size)


def workers_on(device: torch.device) -> int | None:
    """How many threads share work of this process (`parallel.side_by_side`): as many as there are cores (None), but
    one where several processes must take the same pieces in the same order, and none beside it where a GPU works."""
    if device.type != "cpu":
        return 0
    return None if count() == 1 else 1


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in one message."""
    if count() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _lost():
        dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def exchange(content: bytes) -> list[bytes]:
    """What every process has to tell, in their order; all must call it."""
    if count() == 1:
        return [content]
    with _lost():
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(count())]
        dist.all_gather(lengths, torch.tensor([len(content)]))
        longest = max(int(length) for length in lengths)
        padded = torch.frombuffer(bytearray(content.ljust(longest, b"\0")), dtype=torch.uint8)
        told = [torch.empty(longest, dtype=torch.uint8) for _ in lengths]
        dist.all_gather(told, padded)
    return [each[: int(length)].numpy().tobytes() for each, length in zip(told, lengths, strict=True)]


def _end(number: int, frame: FrameType | None) -> None:
    """Say why the job ends, when torchrun sends the signal to those that are left."""
    print(f"error: {LOST}", file=sys.stderr, flush=True)
    os._exit(1)


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch.distributed's own errors are such
        raise StudyError(f"{LOST} ({next(iter(str(error).splitlines()), '')[:200]})") from None
