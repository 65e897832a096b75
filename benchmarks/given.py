"""The price of posterior samplers: the time of a run over that of the network calls and products that it counts.

python -m benchmarks.given: the network is that of the default study, with weights as they are initialised; half of the
pixels of digits are measured. Methods with products need calls that record a graph. Such a call, a plain call and a
product are timed alone. They alternate with the run, on one thread, and the time is that of the thread on the
processor, on which other work has little influence.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.diffusion.denoiser import Denoiser, new_denoiser
from pipeline.sampling.conditional import ALL, Drawn, cost, draw_given, steps_within
from pipeline.sampling.measurement import Linear, mask
from pipeline.sampling.row import Sampler
from pipeline.training.row import Model

SHAPE = (1, 8, 8)  # the default study's images
BATCH = 512
BUDGET = 14  # of each run, or one step
ROUNDS = 5
SIGMA = torch.tensor(0.5, dtype=torch.float64)
EULER = Sampler(solver="euler")
GOAL = 0.10


class Prices(NamedTuple):
    """Seconds of a plain call, a call that records a graph, and a product with J^T."""

    call: float
    recorded: float
    product: float

    def bill(self, drawn: Drawn) -> float:
        """Seconds that the calls and products of a run should take."""
        return drawn.calls * (self.recorded if drawn.products else self.call) + drawn.products * self.product


def seconds(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def prices(network: Denoiser, z: Tensor) -> Prices:
    at, answers = z.clone().requires_grad_(), []
    with torch.no_grad():
        call = seconds(lambda: network(z, SIGMA))
    recorded = seconds(lambda: answers.append(network(at, SIGMA)))
    product = seconds(lambda: torch.autograd.grad(answers[0], at, z))
    return Prices(call, recorded, product)


def row(network: Denoiser, measurement: Linear, noise: Tensor, method: str) -> tuple[list[Prices], str]:
    """The prices of all rounds, and a method's line of the table."""
    one = cost(method, {}, EULER, 1, measurement.size)
    steps = steps_within(method, {}, EULER, measurement.size, max(BUDGET, one))
    drawn: list[Drawn] = []
    rounds, ratios = [], []
    for _ in range(ROUNDS):
        before = prices(network, noise)
        measured = seconds(lambda: drawn.append(draw_given(network, measurement, noise, EULER, steps, method)))
        after = prices(network, noise)
        rounds += [before, after]
        ratios.append(2 * measured / (before.bill(drawn[-1]) + after.bill(drawn[-1])))
    ratio = median(ratios)
    within = "yes" if abs(ratio - 1) <= GOAL else "no"
    return rounds, f"| {method} | {steps} | {drawn[-1].calls} | {drawn[-1].products} | {ratio:.2f} | {within} |"


def main() -> None:
    torch.set_num_threads(1)
    network = new_denoiser(Model().spec(0.5, SHAPE), 0).eval().requires_grad_(False)
    draws = torch.Generator().manual_seed(0)
    noise = torch.randn(BATCH, *SHAPE, dtype=torch.float64, generator=draws)
    measurement = mask(SHAPE, 0.1, share=0.5)
    seen = measurement.observed(measurement.draw(0.5 * noise.flip(0), draws))
    draw_given(network, seen, noise, EULER, 1, "dps")  # the first call sets up PyTorch's kernels
    print(f"| method | steps | calls | products | time / price | within {GOAL:.0%} |")
    print("| --- | --- | --- | --- | --- | --- |")
    rounds = []
    for method in ALL:
        found, line = row(network, seen, noise, method)
        rounds += found
        print(line, flush=True)
    call, recorded, product = (median(column) for column in zip(*rounds, strict=True))
    print(f"\nIn plain calls: a call with a graph {recorded / call:.2f}, a product {product / call:.2f}.")
    print(f"The currency prices an answer with one product at 3; it takes {(recorded + product) / call:.2f}.")


if __name__ == "__main__":
    main()
