"""Several processes of one job, started by PyTorch's torchrun, and what they exchange.

A process that was started alone is a job of one. The result of a job does not depend on the number of its processes.
"""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.common.devices import default_device
from pipeline.common.environment import launched
from pipeline.common.errors import StudyError

PATIENCE = timedelta(minutes=60)  # to wait for another process, which may be writing or measuring alone
LOST = (
    "another process of this job has ended, or the job was stopped; finished work is kept: run the same command again "
    "to continue"
)


@contextmanager
def job() -> Iterator[None]:
    """Connect the processes that torchrun has started; used as a decorator of a stage's `main`.

    Raises StudyError if another process does not answer. When torchrun stops this process with SIGTERM, because
    another one has failed, it ends with one line on stderr and exit code 1.
    """
    if launched("WORLD_SIZE", 1) == 1:
        yield
        return
    signal.signal(signal.SIGTERM, _stop)
    try:
        _connect()
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from here on, the process ends by itself
    dist.destroy_process_group()


def _connect() -> None:
    device = default_device()
    if device.type == "cuda":
        here, gpus = launched("LOCAL_WORLD_SIZE", 1), torch.cuda.device_count()
        if here > gpus:
            raise StudyError(f"--nproc-per-node: {here} processes, but {gpus} GPUs; use at most one process per GPU")
        torch.cuda.set_device(device)
    with _lost():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)


def _stop(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM: the interpreter prints the message on stderr and exits with 1."""
    raise SystemExit(f"error: {LOST}")


def count() -> int:
    """The number of processes in this job."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The index of this process in the job."""
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Whether this process writes the job's files."""
    return rank() == 0


def part(batch: int) -> slice:
    """This process's part of a batch. Raises StudyError if the number of processes does not divide it."""
    if batch % count():
        raise StudyError(
            f"batch: {count()} processes cannot share {batch} images equally; use as many processes as divide it"
        )
    size = batch // count()
    return slice(rank() * size, (rank() + 1) * size)


def workers_on(device: torch.device) -> int | None:
    """Threads that share this process's work, for `threads.side_by_side`.

    None, one per core, on a CPU; 1 if several processes must take the same pieces in the same order; 0, the calling
    thread alone, on a GPU.
    """
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
    """The contents of all processes, in order of rank. All processes must call it."""
    if count() == 1:
        return [content]
    with _lost():
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(count())]
        dist.all_gather(lengths, torch.tensor([len(content)]))
        longest = max(int(length) for length in lengths)
        padded = torch.frombuffer(bytearray(content.ljust(longest, b"\0")), dtype=torch.uint8)
        received = [torch.empty(longest, dtype=torch.uint8) for _ in lengths]
        dist.all_gather(received, padded)
    return [values[: int(length)].numpy().tobytes() for values, length in zip(received, lengths, strict=True)]


@contextmanager
def _lost() -> Iterator[None]:
    """Turn the errors of torch.distributed into one line."""
    try:
        yield
    except RuntimeError as error:
        raise StudyError(f"{LOST} ({next(iter(str(error).splitlines()), '')[:200]})") from None
