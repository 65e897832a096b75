"""What must hold on a GPU: the same numbers as on a CPU, the same bytes again, no waiting, and ends that lose no work.

Each check takes a device and returns a line about what it found; it raises Failed where something else comes out. On a
CPU, the checks that compare devices compare the CPU with itself.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.common.devices import CPU
from pipeline.common.randomness import SampleNoise
from pipeline.diffusion.denoiser import Denoiser, DenoiserFunction, new_denoiser
from pipeline.diffusion.exact import Mixture
from pipeline.diffusion.grids import DISCRETIZATIONS
from pipeline.diffusion.schedule import SCALINGS, SCHEDULES
from pipeline.metrics.frechet import frechet_distance
from pipeline.metrics.kernel import kernel_distance
from pipeline.metrics.neighbours import neighbour_metrics
from pipeline.sampling.batches import generate
from pipeline.sampling.loop import Samples, sample
from pipeline.sampling.row import Sampler
from pipeline.sampling.solvers import SOLVERS
from pipeline.training.batches import Examples
from pipeline.training.checkpoint import load_checkpoint, save_checkpoint, state
from pipeline.training.loop import advance
from pipeline.training.noise import NOISES
from pipeline.training.objectives import OBJECTIVES
from pipeline.training.row import Model
from pipeline.training.run import Run
from pipeline.training.weighting import WEIGHTINGS

SHAPE, SIGMA_DATA, CLASSES = (1, 8, 8), 0.5, [30, 34]
SMALL = {"channels": 16, "blocks": 1, "multipliers": (1, 2), "batch": 16, "images": 640, "warmup_images": 64}
CHOICES: dict[str, dict[str, Any]] = {
    "labels, augmentation, flips": {"labels": "classes", "augment": 0.5, "flip": 0.5},
    "dropout, clipping, micro-batches": {"dropout": 0.2, "clip_norm": 1.0, "micro_batch": 8},
    "attention, averages by power": {"network": "ddpmpp", "attention": (8,), "ema_sigma_rels": (0.1,)},
}
SOLVED, TRAINED = 1e-8, 1e-3  # relative differences between devices: of samples in float64, of losses in float32
BFLOAT16, COMPILED = 0.05, 1e-3  # relative differences from float32
STEPS = 5


class Failed(Exception):
    """A check found something else than it should."""


def held(condition: bool, message: str) -> None:
    """Raise Failed with the message unless the condition holds."""
    if not condition:
        raise Failed(message)


def _images() -> Tensor:
    return torch.randint(0, 256, (sum(CLASSES), *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _labels() -> Tensor:
    return torch.arange(sum(CLASSES)) % len(CLASSES)


def trained(device: torch.device, steps: int = STEPS, **choices: Any) -> tuple[Run, Examples]:
    """A small network after some steps."""
    row = Model(**SMALL | choices)
    spec = row.spec(SIGMA_DATA, SHAPE, CLASSES)
    run = Run(spec, row, 0, device, teacher=new_denoiser(spec, 1).eval())
    examples = Examples(_images().to(device), _labels() if row.labels == "classes" else None)
    for _ in range(steps):
        advance(run, examples)
    run.check()
    return run, examples


def solved(device: torch.device, sampler: Sampler, denoiser: DenoiserFunction | None = None) -> Samples:
    """Samples of a mixture in the plane by its exact denoiser, or of a network."""
    means = torch.tensor([[0.6, 0.2], [-0.4, 0.5], [0.0, -0.7]], dtype=torch.float64, device=device)
    exact = Mixture(means, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64, device=device), 0.1)
    noise = SampleNoise(0, range(16))
    drawn = noise.randn((2,) if denoiser is None else SHAPE).to(device)
    return sample(denoiser or exact, drawn, sampler.as_started(6), 6, noise.randn_like)


def apart(found: Tensor, expected: Tensor) -> float:
    """The relative difference of two tensors, in the root mean square."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm())


def solvers_agree(device: torch.device) -> str:
    """Every solver, schedule and grid gives the CPU's samples."""
    samplers = {name: Sampler(solver=name) for name in SOLVERS} | {"churn": Sampler(S_churn=5)}
    samplers |= {f"schedule {name}": Sampler(schedule=name) for name in SCHEDULES}
    samplers |= {f"scaling {name}": Sampler(schedule="vp", scaling=name) for name in SCALINGS}
    samplers |= {
        f"grid {name}": Sampler(discretization=name)
        for name in DISCRETIZATIONS
        if name not in ("optimised", "explicit")
    }
    worst, where = max((apart(solved(device, own).x0, solved(CPU, own).x0), name) for name, own in samplers.items())
    held(worst <= SOLVED, f"{where}: samples differ by {worst:.1e} from the CPU's")
    return f"{len(samplers)} samplers differ by at most {worst:.1e} from the CPU ({where})"


def trainings_agree(device: torch.device) -> str:
    """The losses of the first steps are the CPU's, for every kind of batch, weighting and noise."""
    rows = CHOICES | {f"weighting {n}": {"weighting": n} for n in WEIGHTINGS if n not in ("vlb", "inverse_step")}
    rows |= {f"noise {n}": {"noise": n} for n in NOISES} | {"vlb": {"weighting": "vlb", "noise": "ve_loguniform"}}
    rows |= {f"objective {n}": {"objective": n} for n in OBJECTIVES}
    worst, where = 0.0, ""
    for name, choices in rows.items():
        if name.startswith("dropout") and device.type != "cpu":  # a GPU draws its own masks
            continue
        ours, theirs = (trained(each, 2, **choices)[0].losses[:2] for each in (device, CPU))
        worst, where = max((worst, where), (apart(ours, theirs), name))
    held(worst <= TRAINED, f"{where}: losses differ by {worst:.1e} from the CPU's")
    return f"{len(rows)} rows differ by at most {worst:.1e} from the CPU in their losses ({where})"


def metrics_agree(device: torch.device) -> str:
    """Distances between sets of features are the CPU's."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 32, generator=draw), torch.randn(250, 32, generator=draw) * 1.1

    def found(on: torch.device) -> Tensor:
        a, b = x.to(on), y.to(on)
        metrics = [frechet_distance(a, b), kernel_distance(a[:250], b).value]
        return torch.tensor(metrics + [each.value for each in neighbour_metrics(a[:250], b).values()])

    worst = apart(found(device), found(CPU))
    held(worst <= SOLVED, f"metrics differ by {worst:.1e} from the CPU's")
    return f"Frechet and kernel distance, precision and recall differ by {worst:.1e} from the CPU"


@contextmanager
def waits_counted(device: torch.device) -> Iterator[list[str]]:
    """The places in which the CPU waited for the GPU, by CUDA's own warnings."""
    places: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    places += [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]


def nothing_waits(device: torch.device) -> str:
    """No step of training, and no step of a sampler but the last, waits for the GPU."""
    for name, choices in CHOICES.items():
        run, examples = trained(device, 2, **choices)
        with waits_counted(device) as places:
            for _ in range(3):
                advance(run, examples)
        held(not places, f"training with {name} waits {len(places)} times in 3 steps, at {', '.join(places[:3])}")
    run, _ = trained(device, 1)
    denoiser = run.denoiser.eval().requires_grad_(False)
    most = 0
    for own in (Sampler(), Sampler(S_churn=5), Sampler(solver="dpmpp_2m")):
        solved(device, own, denoiser)
        with waits_counted(device) as places:
            solved(device, own, denoiser)
        most = max(most, len(places))
    held(most <= 2, f"sampling waits {most} times in 6 steps, at {', '.join(places[:3])}")
    return f"no wait in training; at most {most} a batch of samples"


def equal_bytes(device: torch.device) -> str:
    """Two trainings end with equal bytes, and two runs of a sampler."""
    for name, choices in CHOICES.items():
        one, other = (state(trained(device, **choices)[0]) for _ in range(2))
        differ = [key for key in one if not torch.equal(one[key], other[key])]
        held(not differ, f"two trainings with {name} differ in {len(differ)} tensors, first in {differ[:1]}")
    denoiser = trained(device)[0].denoiser.eval().requires_grad_(False)
    one, other = (
        torch.cat([part.cpu() for part, _ in generate(denoiser, SHAPE, Sampler(S_churn=5), 6, 0, 40, 24, device)])
        for _ in range(2)
    )
    held(torch.equal(one, other), "two runs of a sampler differ")
    return f"{len(CHOICES)} trainings of {STEPS} steps and 40 samples, twice: equal bytes"


def precisions_agree(device: torch.device) -> str:
    """bfloat16 and compiled calls give float32's samples and losses but for rounding."""
    denoiser = trained(device)[0].denoiser.eval().requires_grad_(False)
    exact, found = solved(device, Sampler(), denoiser).x0, {}
    for name, limit, choices in (
        ("bfloat16", BFLOAT16, {"precision": "bfloat16"}),
        ("compiled", COMPILED, {"compile": "default"}),
    ):
        own: Denoiser = denoiser.run_on(device, **choices)
        samples = apart(solved(device, Sampler(), own).x0, exact)
        losses = apart(trained(device, **choices)[0].losses[:STEPS], trained(device)[0].losses[:STEPS])
        held(max(samples, losses) <= limit, f"{name}: samples differ by {samples:.1e}, losses by {losses:.1e}")
        found[name] = f"samples {samples:.1e}, losses {losses:.1e}"
    return "; ".join(f"{name}: {text}" for name, text in found.items())


def memory_runs_out(device: torch.device) -> str:
    """A batch of samples that does not fit is halved, and the samples stay the same."""
    denoiser = trained(device)[0].denoiser.eval().requires_grad_(False)
    limit, largest = 40, [0]

    def hungry(z: Tensor, sigma: Tensor) -> Tensor:
        if len(z) > limit:
            if device.type == "cuda":
                torch.empty(2**50, dtype=torch.uint8, device=device)
            raise torch.OutOfMemoryError("a rehearsal")
        largest[0] = max(largest[0], len(z))
        return denoiser(z, sigma)

    def samples(of: DenoiserFunction, batch: int) -> Tensor:
        return torch.cat([part.cpu() for part, _ in generate(of, SHAPE, Sampler(), 4, 0, 64, batch, device)])

    held(torch.equal(samples(hungry, 64), samples(denoiser, 32)), "samples differ after a batch was halved")
    return f"64 samples at a time do not fit, {largest[0]} do: equal bytes"


def training_resumes(device: torch.device) -> str:
    """A training that continues from its checkpoint ends with the bytes of one that never stopped."""
    for name, choices in CHOICES.items():
        whole = state(trained(device, 2 * STEPS, **choices)[0])
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "checkpoint.safetensors"
            save_checkpoint(trained(device, **choices)[0], checkpoint, {})
            run, examples = trained(device, 0, **choices)
            load_checkpoint(run, checkpoint, {})
        for _ in range(STEPS):
            advance(run, examples)
        differ = [key for key, value in state(run).items() if not torch.equal(value, whole[key])]
        held(not differ, f"{name}: {len(differ)} tensors differ after a restart, first {differ[:1]}")
    return f"{len(CHOICES)} trainings, stopped after {STEPS} of {2 * STEPS} steps: equal bytes"


CHECKS: dict[str, Callable[[torch.device], str]] = {
    "solvers, schedules and grids agree with the CPU": solvers_agree,
    "training agrees with the CPU": trainings_agree,
    "metrics agree with the CPU": metrics_agree,
    "nothing waits for the GPU": nothing_waits,
    "equal bytes of two runs": equal_bytes,
    "bfloat16 and compiled calls agree with float32": precisions_agree,
    "out of memory": memory_runs_out,
    "resume": training_resumes,
}
