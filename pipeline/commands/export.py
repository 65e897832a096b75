"""`export`: the sampler of a curve as a file that needs PyTorch alone, and as a scheduler of diffusers."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from pipeline.commands.schedulers import is_edm, scheduler_config
from pipeline.common.errors import StudyError, nearest
from pipeline.common.files import Paths, read_json, write_json, write_text
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.fits import load_fits
from pipeline.params.resolve import resolve
from pipeline.params.resolved import Resolved
from pipeline.params.study import read_study
from pipeline.sampling.linear import Linear, linear, refuse_nonlinear
from pipeline.sampling.row import Sampler

WIDTH = 100
TEMPLATE = '''"""{title}

{about}
"""

import torch

# {rows_are}
ROWS = [
{rows}
]
RESULT = {result}


def combined(weights, values):
    return sum(weight * value for weight, value in zip(weights, values))


@torch.no_grad()
def sample(denoiser, noise{argument}):
    """Samples (N, ...) from standard normal noise (N, ...).

{usage}
    """
    values = [noise.float() if noise.device.type == "mps" else noise.double()]
    for sigma, weights in ROWS:
{draw}        z, sigma = combined(weights, values), torch.tensor(sigma, dtype=torch.float64)
        values.append(denoiser(z, sigma).to(z))
    return combined(RESULT, values)
'''
CALLS = "A row is a call of the denoiser: sigma, and the weights in its input of the noise and all answers before."
DRAWS_AND_CALLS = (
    "A row is a draw of noise (None), or a call of the denoiser: sigma, and the weights in its input of all before."
)
DRAW = """        if sigma is None:
            values.append(randn_like(values[0]))
            continue
"""
ARGUMENT = ", randn_like=lambda z: torch.randn(z.shape, device=z.device).to(z)"
USAGE = (
    "denoiser(z, sigma) returns the mean of x0 given z = x0 + sigma n: z (N, ...), sigma a float64 scalar on the CPU."
)
GUIDED = {
    "unconditional": "D_u + {weight:g} (D - D_u), where D_u is the network without labels",
    "snapshot": "D_u + {weight:g} (D - D_u), where D_u is an earlier snapshot of the network",
    "classifier": "D + {weight:g} sigma^2 grad_z log p(y | z; sigma)",
}


def export_curve(params: Path, name: str, budget: int | None, seed: int | None, out: str) -> list[str]:
    """Write the sampler of a curve at a budget (None: the largest), and return lines that say what was written.

    seed: the training whose fitted numbers are used, if the curve has any; None: the curve's first. Raises StudyError
    if the sampler has no fixed numbers, or if there is no such curve, budget or training.
    """
    rows = resolve(read_study(params))
    paths = Paths(rows.study.name)
    if name not in rows.curves:
        raise StudyError(f"--curve: no curve {name[:100]!r} in {params}; {nearest(name, rows.curves)}")
    curve = rows.curves[name].row
    steps = steps_at(name, curve, budget)
    seed = curve.seeds[0][0] if seed is None else seed
    sampler = runnable(name, curve, paths, steps, seed)
    numbers = linear(sampler, steps)
    file = Path(out) if out else paths.build / "exported" / f"{name}_{curve.evaluations(steps)}.py"
    if file.is_dir():
        raise StudyError(f"--out: {file} is a folder; name a file in it, such as {file / (name + '.py')}")
    config = scheduler_config(sampler, steps, sigma_data_of(rows, curve, paths))
    write_text(file, source(rows, name, steps, numbers, None if sampler is curve else seed))
    lines = [f"{file}: {curve.evaluations(steps)} network evaluations, {steps} steps; it needs PyTorch alone"]
    folder = file.with_name(f"{file.stem}_scheduler")
    scheduler = folder / "scheduler_config.json"
    if config is None:
        scheduler.unlink(missing_ok=True)  # of another curve
        return [*lines, "diffusers: no scheduler makes these samples"]
    write_json(scheduler, config)
    state = "z: give it EDM's network F" if is_edm(config) else "z / sqrt(1 + sigma^2): give it D"
    return [*lines, f"{scheduler}: diffusers, {steps} steps", f"The state of {config['_class_name']} is {state}."]


def steps_at(name: str, curve: Curve, budget: int | None) -> int:
    """The steps of a curve at one of its budgets, or at what one of them really costs; None: at the largest."""
    counts = {budget: curve.steps(budget) for budget in sorted(curve.nfe)}
    counts = {curve.evaluations(steps): steps for steps in counts.values()} | counts
    if budget is not None and budget not in counts:
        raise StudyError(f"--budget: {name} has no budget {budget}; it has {', '.join(map(str, sorted(curve.nfe)))}")
    return counts[max(curve.nfe) if budget is None else budget]


def runnable(name: str, curve: Curve, paths: Paths, steps: int, seed: int) -> Sampler:
    """The sampler that a curve uses at a number of steps for the networks of a training seed, with its fitted numbers.

    Raises StudyError if they are missing, or if the row is more than one sampler with fixed numbers.
    """
    if curve.after:
        raise StudyError(f"{name}: a cascade, which is more than one sampler; export {curve.after}, its first stage")
    try:
        refuse_nonlinear(curve)
    except StudyError as error:
        raise StudyError(f"{name}: {error}") from None
    if curve.discretization != "optimised" and curve.solver != "fitted":
        return curve
    trained = sorted({train for train, _ in curve.seeds})
    if seed not in trained:
        raise StudyError(f"--seed: {name} has no training {seed}; it has {', '.join(map(str, trained))}")
    return load_fits(paths.grids(curve.model)).applied(curve, seed, steps)


def sigma_data_of(rows: Resolved, curve: Curve, paths: Paths) -> float:
    """The model's sigma_data, else that of the data in the committed summary, else EDM's 0.5."""
    summary = paths.metrics("prepare", "data")
    measured = read_json(summary)["sigma_data"] if summary.exists() else 0.5
    return float(rows.models[curve.model].row.sigma_data or measured)


def source(rows: Resolved, name: str, steps: int, numbers: Linear, seed: int | None = None) -> str:
    """The exported file: Python with the numbers of a curve's sampler. seed: of the training, if they are fitted."""
    curve = rows.curves[name].row
    nfe, space = curve.evaluations(steps), rows.models[curve.model].row.space
    about = [
        f"For networks of the model {curve.model}: solver {curve.solver}, discretization {curve.discretization}, "
        f"schedule {curve.schedule}, {steps} steps. `python -m pipeline export` of nfe-bench wrote it.",
        "" if seed is None else _fitted_to(curve, seed, steps),
        f"Samples are latents of {space}." if space else "",
    ]
    usage = [USAGE]
    if not curve.build_guidance().idle:
        formula = GUIDED[curve.guide].format(weight=curve.guidance)
        usage.append(f"It must be guided, at the cost of {nfe} network evaluations in all: {formula}.")
    if numbers.stochastic:
        usage.append("randn_like(z) draws standard normal noise of z's shape.")
    return TEMPLATE.format(
        title=f"Sampler {name} of the study {rows.study.name}, at {nfe} network evaluations (NFE).",
        about=textwrap.fill(" ".join(filter(None, about)), WIDTH),
        rows_are=DRAWS_AND_CALLS if numbers.stochastic else CALLS,
        rows="\n".join(_row(sigma, weights) for sigma, weights in numbers.rows),
        result=_wrapped(f"[{_numbers(numbers.result)}]", "RESULT = ", "    ")[len("RESULT = ") :],
        argument=ARGUMENT if numbers.stochastic else "",
        usage="\n".join(textwrap.fill(line, WIDTH, initial_indent="    ", subsequent_indent="    ") for line in usage),
        draw=DRAW if numbers.stochastic else "",
    )


def _fitted_to(curve: Curve, seed: int, steps: int) -> str:
    """What the numbers of a curve for a training seed are fitted to."""
    model, own, fitted_steps = curve.fitted_to(seed, steps)
    of = f" of the model {model}" if model != curve.model else ""
    interpolated = f" for {fitted_steps} steps, and interpolated" if fitted_steps != steps else ""
    return f"Its numbers are fitted to the network of training seed {own}{of}{interpolated}."


def _row(sigma: float | None, weights: Sequence[float]) -> str:
    return "    (None, [])," if sigma is None else _wrapped(f"({sigma!r}, [{_numbers(weights)}]),", "    ", "        ")


def _wrapped(text: str, first: str, later: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=later, break_long_words=False)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(map(repr, values))
