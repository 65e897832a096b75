"""The cost of measuring, beside torch-fidelity and torchmetrics: a Markdown table of times, peak memory and goals.

python -m benchmarks.measurement [--quick] [--large]: small sizes, or also sizes that take a quarter of an hour.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from pipeline.data.row import Data
from pipeline.data.sources import load
from pipeline.metrics.estimate import BlockMoments, Moments, moments
from pipeline.metrics.extractors.registry import load_extractor, make_extractor, save_extractor
from pipeline.metrics.extractors.row import Features
from pipeline.metrics.frechet import frechet_distance
from pipeline.metrics.kernel import kernel_distance
from pipeline.metrics.measurement import measure
from pipeline.metrics.neighbours import neighbour_metrics
from pipeline.metrics.reference import reference_of

Row = tuple[str, str, str]  # the measurement, its result, the goal


def features(n: int, d: int, seed: int, mix_seed: int = 0, parts: int = 4096) -> Iterator[Tensor]:
    """Float32 features (n, d), in parts: correlated, of full rank, with a decaying spectrum as of a network."""
    spectrum = torch.arange(1, d + 1) ** -0.5
    turn = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(mix_seed))).Q
    source = torch.Generator().manual_seed(seed)
    for start in range(0, n, parts):
        yield torch.randn(min(parts, n - start), d, generator=source) * spectrum @ turn + 0.05 * seed


def whole(n: int, d: int, seed: int, mix_seed: int = 0) -> Tensor:
    found, start = torch.empty(n, d), 0
    for part in features(n, d, seed, mix_seed):
        found[start : start + len(part)] = part
        start += len(part)
    return found


def timed(*tasks: Callable[[], float], repetitions: int) -> list[tuple[float, float]]:
    """(median seconds, value) of each task. The tasks run in turns."""
    seconds: list[list[float]] = [[] for _ in tasks]
    values = [task() for task in tasks[:1]] + [0.0] * (len(tasks) - 1)  # the first call warms up and fills the caches
    for _ in range(repetitions):
        for i, task in enumerate(tasks):
            start = time.perf_counter()
            values[i] = task()
            seconds[i].append(time.perf_counter() - start)
    return [(median(s), v) for s, v in zip(seconds, values, strict=True)]


def beside_peers(n: int, m: int, d: int, repetitions: int, goal: str) -> Row:
    """Frechet distance of n features from m, from moments; for n < d, from the features."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric  # here to save memory
    from torchmetrics.image.fid import _compute_fid

    x, real = whole(n, d, 1, mix_seed=1), moments(whole(m, d, 2))
    own = moments(x)
    statistics = [{"mu": side.mean.numpy(), "sigma": side.covariance.numpy()} for side in (own, real)]
    given: Tensor | Moments = x if n < d else own
    (ours, value), *peers = timed(
        lambda: frechet_distance(given, real),
        lambda: fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID],
        lambda: float(_compute_fid(own.mean, own.covariance, real.mean, real.covariance)),
        repetitions=repetitions,
    )
    found = [
        f"{name} {seconds:.2f} s ({seconds / ours:.1f}x, {abs(theirs / value - 1):.0e} apart)"
        for name, (seconds, theirs) in zip(("torch-fidelity", "torchmetrics"), peers, strict=True)
    ]
    return f"Frechet distance, n = {n}, d = {d}", f"{ours:.2f} s; {', '.join(found)}", goal


def small_distance(repetitions: int) -> Row:
    own, real = moments(whole(5000, 64, 1)), moments(whole(2000, 64, 2))
    [(seconds, _)] = timed(lambda: frechet_distance(own, real), repetitions=repetitions)
    return "Frechet distance, d = 64", f"{1000 * seconds:.2f} ms", "< 1 ms"


def cell(count: int) -> Row:
    """Repeated digits with a little noise, measured like a cell, with an extractor of the study's size."""
    dataset = load(Data())
    with TemporaryDirectory() as folder:  # the quality of the training does not change the cost
        save_extractor(make_extractor(Features(epochs=1), dataset)[0], Path(folder))
        extractor = load_extractor(Path(folder))
    reference = reference_of(extractor(dataset.images).features)
    noise = torch.randint(0, 9, (count, *dataset.images.shape[1:]), generator=torch.Generator().manual_seed(0))
    varied = (dataset.images[torch.arange(count) % len(dataset.images)] + noise).clamp(max=255).to(torch.uint8)
    [(seconds, _)] = timed(
        lambda: measure(varied.split(512), count, extractor, reference).metrics[0]["value"], repetitions=3
    )
    return f"A cell of {count} digits, with features", f"{seconds:.2f} s", "< 2 s"


def kernel(n: int, d: int) -> object:
    return kernel_distance(whole(n, d, 1), whole(n, d, 2)).value


def neighbours(n: int, d: int) -> object:
    return neighbour_metrics(whole(n, d, 1), whole(n, d, 2))


def stream(n: int, d: int) -> object:
    blocks = BlockMoments(n, torch.zeros(d))
    for part in features(n, d, 1, parts=1000):
        blocks.add(part)
    return blocks.all().mean.sum()


def _peak(task: Callable[[int, int], object], n: int, d: int) -> tuple[float, float, float]:
    """Seconds of a task, the peak memory of the process in GB, and that peak before the task."""

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9

    before, start = peak(), time.perf_counter()
    task(n, d)
    return time.perf_counter() - start, peak(), before


def memory(what: str, task: Callable[[int, int], object], n: int, d: int, goal: str) -> Row:
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        seconds, peak, before = fresh.submit(_peak, task, n, d).result()
    return f"{what}, n = {n}, d = {d}", f"{seconds:.1f} s, peak {peak:.2f} GB, {before:.2f} GB of it imports", goal


def rows(quick: bool, large: bool) -> Iterator[Row]:
    # Peaks of memory come first, because the peak of a child process starts at that of its parent.
    for n in (5000, 50_000)[: 1 if quick else 2]:
        yield memory("Block moments", stream, n, 64 if quick else 256, "the same at any n")
    if large:
        for what, task in (("Kernel distance", kernel), ("Precision to coverage", neighbours)):
            yield memory(what, task, 50_000, 2048, "< 2 GB")
    d, count, repetitions = (256, 1000, 3) if quick else (2048, 5000, 3)
    yield beside_peers(count, count, d, repetitions, "3x and 4x faster, 1e-8 apart")
    yield beside_peers(d // 4, count, d, repetitions, "faster still")
    yield small_distance(200)
    yield cell(200 if quick else 5000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, a few seconds")
    parser.add_argument("--large", action="store_true", help="50,000 features of 2048 dimensions too")
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads\n\n| What | Found | Goal |\n| --- | --- | --- |", flush=True)
    for row in rows(arguments.quick, arguments.large):
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
