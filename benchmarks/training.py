"""The cost of each choice in a model row: a Markdown table of the times of a training step relative to the baseline.

python -m benchmarks.training [--quick]: with --quick, a fifth of the steps. Steps of the baseline and of the row
alternate on one thread. The time is that of the thread on the processor, on which other work has little influence.
"""

import argparse
import time
from statistics import median
from typing import Any

import torch

from pipeline.common.devices import CPU
from pipeline.diffusion.denoiser import new_denoiser
from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.training.batches import Examples
from pipeline.training.draws import DRAWS
from pipeline.training.loop import advance, pairs_from
from pipeline.training.noise import NOISES
from pipeline.training.objectives import OBJECTIVES
from pipeline.training.row import Model
from pipeline.training.run import Run
from pipeline.training.weighting import WEIGHTINGS

SHAPE, SIGMA_DATA = (1, 8, 8), 0.5  # images of the default study
WARM_UP = 10
GOAL = 1.02
EXCEPTED = ("draws: adaptive", "weighting: uncertainty", "pairs: optimal_transport")
FLOW = {"parametrization": "flow", "noise": "flow_uniform"}

CHOICES: dict[str, dict[str, Any]] = {
    "the baseline itself": {},
    **{
        f"parametrization: {name}": {"parametrization": name}
        for name in PARAMETRIZATIONS
        if name not in ("edm", "consistency")
    },
    **{f"weighting: {name}": {"weighting": name} for name in WEIGHTINGS if name not in ("unit", "vlb", "inverse_step")},
    "weighting: vlb": {"weighting": "vlb", "noise": "ve_loguniform"},  # EDM's noise does not work with it
    **{f"noise: {name}": {"noise": name} for name in NOISES if name != "lognormal"},
    **{f"draws: {name}": {"draws": name} for name in DRAWS if name != "independent"},
    "pairs: optimal_transport": FLOW | {"pairs": "optimal_transport"},
    "pairs: reflow": FLOW | {"pairs": "reflow", "reflow_pairs": 512},
    "augment: 0.12": {"augment": 0.12},
    **{f"objective: {name}": {"objective": name} for name in OBJECTIVES if name != "denoising"},
    "objective: consistency_distillation, teacher_step: euler": {
        "objective": "consistency_distillation",
        "teacher_step": "euler",
    },
}
OF_OBJECTIVES = {"progressive": 3.2, "consistency_training": 2.2, "easy_consistency": 2.2}  # goals
OF_TEACHER_STEPS = {"euler": 2.8, "heun": 3.7}


def goal(name: str) -> float | None:
    """The most that a step of a row may cost relative to the baseline; None if it is only stated."""
    choices = CHOICES[name]
    if (objective := choices.get("objective")) is None:
        return None if name in EXCEPTED else GOAL
    return OF_OBJECTIVES.get(objective) or OF_TEACHER_STEPS[choices.get("teacher_step", "heun")]


def compare(choices: dict[str, Any], steps: int) -> tuple[float, float]:
    """Milliseconds of a baseline step, and the row's step relative to it: medians over `steps` pairs of steps."""
    images = torch.randint(0, 256, (1797, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = [Model(), Model(**choices)]
    specs = [row.spec(SIGMA_DATA, SHAPE) for row in rows]
    teacher = new_denoiser(specs[1], 1).eval().requires_grad_(False)
    runs = [Run(spec, row, 0, teacher=teacher) for spec, row in zip(specs, rows, strict=True)]
    examples = [Examples(images, pairs=pairs_from(teacher, row, 0, CPU)) for row in rows]
    times: list[list[float]] = [[], []]
    for step in range(WARM_UP + steps):
        for i in (0, 1) if step % 2 else (1, 0):
            start = time.thread_time()
            advance(runs[i], examples[i])
            times[i].append(time.thread_time() - start)
    base, row = (median(seconds[WARM_UP:]) for seconds in times)
    return base * 1e3, row / base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    steps = 40 if parser.parse_args().quick else 200
    torch.set_num_threads(1)
    print("| row | baseline step (ms) | step relative to the baseline | goal |\n| --- | --- | --- | --- |")
    for name, choices in CHOICES.items():
        base, ratio = compare(choices, steps)
        print(
            f"| {name} | {base:.1f} | {ratio:.3f} | {f'<= {most}' if (most := goal(name)) else 'stated'} |", flush=True
        )


if __name__ == "__main__":
    main()
