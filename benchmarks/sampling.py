"""The cost of the loop around the network, as a Markdown table: time beyond the bare network's, compared with the loops
of diffusers; reads of the samples' values; and tensors kept.

python -m benchmarks.sampling [--quick] [--threads 2]: --quick measures each time once instead of three times. On a busy
machine two threads wait for each other, and times differ tenfold; with one thread they do not.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.diffusion.denoiser import Denoiser, DenoiserFunction
from pipeline.sampling.loop import draw_like, sample
from pipeline.sampling.multistep import Multistep
from pipeline.sampling.row import Sampler
from pipeline.sampling.solvers import SOLVERS
from pipeline.training.row import Model

Row = tuple[str, str, str]  # measurement, result, goal
Loop = Callable[[DenoiserFunction], object]

SHAPE = (1, 8, 8)  # the default study's images
SIGMA_DATA = 0.5
BATCH = 512
FEW = 16  # samples if nothing is timed
EVALUATIONS = 18  # the budget

SAMPLERS = {name: Sampler(solver=name) for name in SOLVERS} | {
    "heun with churn": Sampler(solver="heun", S_churn=40.0),
    "ddim, eta 1": Sampler(solver="ddim", eta=1.0),
}
BETAS: dict[str, Any] = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def network() -> Denoiser:
    """The default study's denoiser with random weights, without any tensor of zeros."""
    torch.manual_seed(0)
    denoiser = Denoiser(Model().spec(SIGMA_DATA, SHAPE)).eval().requires_grad_(False)
    for parameter in denoiser.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return denoiser


def noise(count: int) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def ours(row: Sampler, denoiser: DenoiserFunction, count: int = BATCH) -> int:
    return sample(denoiser, noise(count), row, row.steps(EVALUATIONS), draw_like).nfe


# Times.


class Twice:
    """A network that evaluates every input twice, once for the loop and once by itself, in alternating order."""

    def __init__(self, denoiser: DenoiserFunction) -> None:
        self.denoiser = denoiser
        self.nfe = 0
        self.seconds = [0.0, 0.0]  # for the loop, by itself

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        self.nfe += 1
        for which in (0, 1) if self.nfe % 2 else (1, 0):
            start = time.perf_counter()
            denoised = self.denoiser(z, sigma)
            self.seconds[which] += time.perf_counter() - start
        return denoised


class Overhead(NamedTuple):
    """The time of a loop beyond the network's: relative to the bare network, and relative to the loop's network calls,
    which other work on the machine disturbs less. own_seconds: the loop without its network calls."""

    over_bare: float
    over_calls: float
    nfe: int
    bare_seconds: float
    own_seconds: float

    def __str__(self) -> str:
        return f"{self.over_bare:+.1%} ({self.over_calls:.2%}, {self.own_seconds / self.nfe * 1e3:.2f} ms a call)"


@torch.no_grad()
def overheads(*loops: tuple[Loop, DenoiserFunction], repetitions: int) -> list[Overhead]:
    """The overhead of each loop: medians over rounds, in which the loops take turns. A first round is not counted."""
    found: list[list[Overhead]] = [[] for _ in loops]
    for turn in range(-1, repetitions):
        for (loop, denoiser), rounds in zip(loops, found, strict=True):
            twice, start = Twice(denoiser), time.perf_counter()
            loop(twice)
            calls, bare = twice.seconds
            whole = time.perf_counter() - start - bare
            if turn >= 0:
                rounds.append(Overhead(whole / bare - 1, whole / calls - 1, twice.nfe, bare, whole - calls))
    return [Overhead(*(median(column) for column in zip(*rounds, strict=True))) for rounds in found]


class Peer(NamedTuple):
    """A scheduler of diffusers, its state (z or z / sqrt(1 + sigma^2)) and the answer it expects (D, eps or F)."""

    scheduler: Callable[[], Any]
    solver: str
    steps: int
    variance_preserving: bool
    answer: str


def peers() -> dict[str, Peer]:
    import diffusers as d  # slow to import, and only needed here

    whole, half = EVALUATIONS, (EVALUATIONS + 1) // 2
    x0: dict[str, Any] = {"prediction_type": "sample"} | BETAS
    karras: dict[str, Any] = {"use_karras_sigmas": True}
    return {
        "EulerDiscrete": Peer(partial(d.EulerDiscreteScheduler, **x0, **karras), "euler", whole, False, "D"),
        "HeunDiscrete": Peer(partial(d.HeunDiscreteScheduler, **BETAS, **karras), "heun", half, False, "eps"),
        "EDMDPMSolverMultistep": Peer(d.EDMDPMSolverMultistepScheduler, "dpmpp_2m", whole, False, "F"),
        "DPMSolverMultistep": Peer(
            partial(d.DPMSolverMultistepScheduler, **x0, **karras), "dpmpp_2m", whole, True, "D"
        ),
        "UniPCMultistep": Peer(
            partial(d.UniPCMultistepScheduler, solver_order=3, **x0, **karras), "unipc", whole, True, "D"
        ),
        "DDIM": Peer(partial(d.DDIMScheduler, clip_sample=False, **x0), "ddim", whole, True, "D"),
    }


def answering(denoiser: DenoiserFunction, peer: Peer) -> DenoiserFunction:
    """The network as a peer's scheduler calls it, with x in float32; a change of coordinates is included."""

    def answer(x: Tensor, sigma: Tensor) -> Tensor:
        level = float(sigma)
        z = x * (1 + level**2) ** 0.5 if peer.variance_preserving else x
        denoised = denoiser(z, sigma)
        if peer.answer == "eps":
            return (z - denoised) / level
        if peer.answer == "F":
            total = level**2 + SIGMA_DATA**2
            return (denoised - SIGMA_DATA**2 / total * z) / (level * SIGMA_DATA / total**0.5)
        return denoised

    return answer


def theirs(peer: Peer, denoiser: DenoiserFunction) -> None:
    """The usual loop of a diffusers pipeline, in float32."""
    scheduler = peer.scheduler()
    scheduler.set_timesteps(peer.steps)
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas.double()
    else:
        abar = scheduler.alphas_cumprod.double()[scheduler.timesteps]
        sigmas = ((1 - abar) / abar).sqrt()
    x = noise(BATCH) * scheduler.init_noise_sigma
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        scheduler.scale_model_input(x, t)  # our network scales its input itself
        x = scheduler.step(denoiser(x, sigma), t, x).prev_sample


def beside_the_network(name: str, denoiser: Denoiser, repetitions: int) -> Row:
    [found] = overheads((partial(ours, SAMPLERS[name]), denoiser), repetitions=repetitions)
    return (
        f"`{name}`, {found.nfe:.0f} evaluations",
        f"{found}, {found.bare_seconds / found.nfe * 1e3:.1f} ms the network",
        "<= 5%",
    )


def beside_peer(name: str, peer: Peer, denoiser: Denoiser, repetitions: int) -> Row:
    own, other = overheads(
        (partial(ours, SAMPLERS[peer.solver]), denoiser),
        (partial(theirs, peer), answering(denoiser, peer)),
        repetitions=repetitions,
    )
    assert own.nfe == other.nfe
    return f"`{peer.solver}` and {name}", f"{own} and {other}", "no more than diffusers'"


# Reads of values, and tensors kept.


LOOKS = (torch.ops.aten._local_scalar_dense, torch.ops.aten.equal, torch.ops.aten.nonzero)


class Looks(TorchDispatchMode):
    """Counts how often the host reads a value that was computed from `start`, by the evaluations made so far.

    On a GPU each read would wait. All computed tensors are kept, because an address identifies a storage only then.
    """

    def __init__(self, denoiser: DenoiserFunction, start: Tensor) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.derived = {start.untyped_storage().data_ptr(): start}
        self.nfe = 0
        self.at: list[int] = []

    def evaluate(self, z: Tensor, sigma: Tensor) -> Tensor:
        self.nfe += 1
        return self.denoiser(z, sigma)

    def comes_from_start(self, tree: Any) -> bool:
        if isinstance(tree, (list, tuple)):
            return any(map(self.comes_from_start, tree))
        return isinstance(tree, Tensor) and tree.untyped_storage().data_ptr() in self.derived

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if self.comes_from_start([*args, *(kwargs or {}).values()]):
            for tensor in found if isinstance(found, (list, tuple)) else [found]:
                if isinstance(tensor, Tensor):
                    self.derived[tensor.untyped_storage().data_ptr()] = tensor
            if func.overloadpacket in LOOKS:
                self.at.append(self.nfe)
        return found


class Lists(TorchFunctionMode):
    """Counts `tolist`, `numpy` and `cpu` as reads; on the CPU they dispatch no operation."""

    def __init__(self, looks: Looks) -> None:
        super().__init__()
        self.looks = looks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.cpu) and self.looks.comes_from_start(args):
            self.looks.at.append(self.looks.nfe)
        return func(*args, **(kwargs or {}))


def looks(row: Sampler, denoiser: Denoiser) -> tuple[int, int]:
    """The number of reads of a sampler's loop before its last evaluation, and after it."""
    z = noise(FEW)
    with Looks(denoiser, z) as seen, Lists(seen):
        sample(seen.evaluate, z, row, row.steps(EVALUATIONS), draw_like)
    before = sum(at < seen.nfe for at in seen.at)
    return before, len(seen.at) - before


def kept(row: Sampler, denoiser: Denoiser) -> int:
    """The most tensors of z's size that a loop holds during a network call, besides the network's input."""
    start, most = noise(FEW).double(), 0

    def held() -> dict[int, int]:
        tensors = [o for o in gc.get_objects() if type(o) is Tensor and o.shape == start.shape]
        return {t.untyped_storage().data_ptr(): id(t) for t in tensors}

    gc.collect()
    others = set(held())

    def evaluate(z: Tensor, sigma: Tensor) -> Tensor:
        nonlocal most
        most = max(most, len(set(held()) - others - {z.untyped_storage().data_ptr()}))
        return denoiser(z, sigma)

    sample(evaluate, start, row, row.steps(EVALUATIONS), draw_like)
    return most


def all_looks(denoiser: Denoiser) -> Iterator[Row]:
    names: dict[tuple[int, int], list[str]] = {}
    for name, row in SAMPLERS.items():
        names.setdefault(looks(row, denoiser), []).append(name)
    for (before, after), those in names.items():
        goal = "as its steps need" if before else "0, and 1 at the end"
        yield f"Reads of values: {', '.join(f'`{n}`' for n in those)}", f"{before}, and {after} at the end", goal


def all_kept(denoiser: Denoiser) -> Iterator[Row]:
    for name, row in SAMPLERS.items():
        solver = row.build_solver()
        if isinstance(solver, Multistep):
            goal = solver.points + 1 if solver.corrects else solver.points - 1  # a corrector also keeps the previous z
            yield f"Tensors kept beside z: `{name}`, {solver.points} points", str(kept(row, denoiser)), str(goal)


def rows(quick: bool) -> Iterator[Row]:
    denoiser, repetitions = network(), 1 if quick else 3
    for name in SAMPLERS:
        yield beside_the_network(name, denoiser, repetitions)
    for name, peer in peers().items():
        yield beside_peer(name, peer, denoiser, repetitions)
    yield from all_looks(denoiser)
    yield from all_kept(denoiser)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="measure each time once")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads, batches of {BATCH}: the time that a loop adds to the network's\n")
    print("| Measurement | Result | Goal |\n| --- | --- | --- |", flush=True)
    for row in rows(arguments.quick):
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
