"""Many samples of one seed, generated in batches that the processes of a job share."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch
from safetensors.torch import load, save
from torch import Tensor

from pipeline.common import processes
from pipeline.common.devices import CPU
from pipeline.common.errors import NotFinite, StudyError, say_once
from pipeline.data.dataset import to_data
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.sampling.cascade import Stage
from pipeline.sampling.guidance import BySample
from pipeline.sampling.loop import Samples
from pipeline.sampling.row import Sampler

# A matrix product of very few rows takes another code path in the linear algebra library and rounds differently. So do
# the last values of a tensor if fewer than 32 are left for PyTorch's vector loop; channels come in multiples of 8.
MIN_BATCH, BATCH_STEP = 16, 4
GROUP = 64  # samples for which an adaptive solver chooses one step
ALL = slice(None)

Decode = Callable[[Tensor], Tensor]


def batches(sampler: Sampler, count: int, batch: int) -> list[Tensor]:
    """The indices of `count` samples, split into batches of about `batch`: (n,) each.

    An adaptive solver chooses one step for a whole batch, so it always gets groups of GROUP samples, whatever `count`
    and `batch` are; the last group may reach beyond `count`.
    """
    if sampler.build_solver().adaptive:
        return [torch.arange(first, first + GROUP) for first in range(0, count, GROUP)]
    return list(torch.arange(count).tensor_split(-(-count // batch)))


def generate(
    denoiser: DenoiserFunction | BySample,
    shape: tuple[int, ...],
    sampler: Sampler,
    steps: int,
    seed: int,
    count: int,
    batch: int,
    device: torch.device = CPU,
    decode: Decode | None = None,
) -> Iterator[tuple[Tensor, int]]:
    """Yield `count` samples of `shape` in batches of about `batch`, and the counted NFE of each batch.

    Images are uint8 (n, C, H, W), points float32 (n, 2), on the device. decode: brings samples of `shape` to pixels, if
    they are not there. Sample i and its class depend on (seed, i) alone; its initial noise is the same for every
    sampler. The processes of a job share the batches, and each process
    receives all of them. Raises NotFinite as `sample` does, and StudyError if a batch does not fit into memory.
    """
    if processes.count() == 1:
        yield from generate_share(denoiser, shape, sampler, steps, seed, count, batch, device, decode)
        return
    share = slice(processes.rank(), None, processes.count())
    own = generate_share(denoiser, shape, sampler, steps, seed, count, batch, device, decode, share)
    yield from _exchanged(own, len(batches(sampler, count, batch)), device)


def generate_share(
    denoiser: DenoiserFunction | BySample,
    shape: tuple[int, ...],
    sampler: Sampler,
    steps: int,
    seed: int,
    count: int,
    batch: int,
    device: torch.device = CPU,
    decode: Decode | None = None,
    share: slice = ALL,
) -> Iterator[tuple[Tensor, int]]:
    """Yield those batches of `generate` that `share` selects.

    If a batch does not fit into the device's memory, this batch and all later ones are halved, once, and one line on
    stderr says so. A second time it is a StudyError. So it is for a share, because other processes rely on its batches.
    """
    waiting, halved = deque(batches(sampler, count, batch)[share]), False
    while waiting:
        indices = waiting[0]
        try:
            samples = _sample_batch(denoiser, shape, sampler, steps, seed, indices, device, decode)
        except torch.OutOfMemoryError:
            if halved or share != ALL or len(indices) <= MIN_BATCH or sampler.build_solver().adaptive:
                raise StudyError(
                    f"out of memory on {device} with {len(indices)} samples at a time; "
                    f"set batch: {max(len(indices) // 2, 1)} in the curve's row"
                ) from None
            say_once(f"out of memory with {len(indices)} samples at a time: from here on with half as many")
            torch.cuda.empty_cache()
            waiting, halved = deque(half for whole in waiting for half in whole.tensor_split(2)), True
            continue
        waiting.popleft()
        yield to_data(samples.x0[: int((indices < count).sum())]), samples.nfe


def _sample_batch(
    denoiser: DenoiserFunction | BySample,
    shape: tuple[int, ...],
    sampler: Sampler,
    steps: int,
    seed: int,
    indices: Tensor,
    device: torch.device,
    decode: Decode | None,
) -> Samples:
    """Samples with these indices (n,), repeated until the batch has a size at which results round alike."""
    size = max(MIN_BATCH, -(-len(indices) // BATCH_STEP) * BATCH_STEP)
    padded = indices[torch.arange(size) % len(indices)].tolist()
    made, _ = Stage(denoiser, shape, sampler, steps).samples(seed, padded, device)
    if decode is None:
        return made
    x0 = decode(made.x0)
    if not x0.isfinite().all():
        raise NotFinite("the decoder's answer is not finite")
    return Samples(x0, made.nfe)


def _exchanged(own: Iterable[tuple[Tensor, int]], count: int, device: torch.device) -> Iterator[tuple[Tensor, int]]:
    """All `count` batches of a job, in order, from this process's own; process r has batches r, r + processes, ...

    If one is not finite, every process raises NotFinite when it gets there.
    """
    tensors, nfe, failed = dict[str, Tensor](), list[int](), ""
    try:
        for samples, evaluations in own:
            tensors[str(len(nfe))] = samples.cpu().contiguous()
            nfe.append(evaluations)
    except NotFinite as error:
        failed = str(error)
    parts = [load(content) for content in processes.exchange(save(tensors))]
    records = [json.loads(text) for text in processes.exchange(json.dumps({"nfe": nfe, "failed": failed}).encode())]
    for number in range(count):
        index, rank = divmod(number, len(parts))
        if index == len(parts[rank]):
            raise NotFinite(records[rank]["failed"])
        yield parts[rank][str(index)].to(device), records[rank]["nfe"][index]


def mean_nfe(costs: Iterable[tuple[int, int]]) -> int:
    """The mean NFE of a sample, rounded up, from (samples, nfe) of each batch; batches of an adaptive solver differ."""
    counts, nfe = zip(*costs, strict=True)
    return -(-sum(n * cost for n, cost in zip(counts, nfe, strict=True)) // sum(counts))
