"""Choices that cannot change a result, and everything else in a study that has no use.

Such choices are found by trying: if sampling an exact denoiser gives the same points without the choice, or a network
is trained on the same targets without it, then the choice changes nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.common.errors import NotFinite, StudyError
from pipeline.common.randomness import generator
from pipeline.common.rows import Row
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.diffusion.exact import LabelledMixture
from pipeline.diffusion.grids import DISCRETIZATIONS
from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.evaluation.curve import TRANSFER, Curve
from pipeline.params.resolved import Resolved
from pipeline.sampling import thresholding
from pipeline.sampling.fitted_grids import fit
from pipeline.sampling.guidance import LabelledDenoiser, guided
from pipeline.sampling.loop import sample
from pipeline.sampling.row import Sampler
from pipeline.training.noise import NOISES, keys_of
from pipeline.training.objectives import OBJECTIVES
from pipeline.training.row import TRIED_SIGMA_DATA, WEIGHTING_KEYS, Model
from pipeline.training.weighting import WEIGHTINGS

AnyRow = TypeVar("AnyRow", bound=Row)
POINTS, STD, TOLERANCE = 4, 0.3, 1e-8
LARGEST_BUDGET = 150  # larger budgets are not tried
MOST_CALLS = 500  # of the exact denoiser by an adaptive solver, after which its trial is given up
TEACHER_LEVELS = 16
SIDE_PRODUCTS = ("train_seeds", "ema_halflives_images", "ema_sigma_rels", "snapshots", "classifier_images")
KEYS_OF_NOISE = {"noise"}.union(*(keys_of(name) for name in NOISES))


def differences(row: Row, base: Row) -> dict[str, Any]:
    """The design choices (fields with a title) in which a row differs from its base: key -> the row's value.

    Those that a row has as published with an objective that its base does not have are part of this objective.
    """
    published: Mapping[str, Any] = {}
    if isinstance(row, Model) and isinstance(base, Model) and row.objective != base.objective:
        published = OBJECTIVES[row.objective].published
    changed = {
        name: getattr(row, name)
        for name, field in type(row).model_fields.items()
        if field.title and getattr(row, name) != getattr(base, name)
    }
    return {name: value for name, value in changed.items() if (name, value) not in published.items()}


def _mixture(std: float) -> LabelledMixture:
    means = torch.tensor([[0.7, -0.2], [-0.4, 0.5]], dtype=torch.float64)
    return LabelledMixture(means, torch.tensor([0.3, 0.7], dtype=torch.float64), std)


def _denoiser(row: Sampler) -> DenoiserFunction:
    """The mixture's denoiser, guided to its two classes in turn if the row guides. A wider mixture is the snapshot."""
    exact, guidance = _mixture(STD), row.build_guidance()
    model = _halfway(exact) if row.variance == "learned" else exact
    labels = torch.arange(POINTS) % len(exact.means)
    return model if guidance.idle else guided(guidance, model, labels, _mixture(2 * STD), exact)


def _halfway(exact: LabelledMixture) -> LabelledDenoiser:
    """The denoiser, which also answers a variance halfway between beta_tilde and beta; see `Denoiser.with_variance`."""

    def with_variance(z: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.cat([exact(z, sigma, labels), torch.full_like(z, 0.5)], dim=1)

    return with_variance


def sampled(row: Sampler) -> dict[Any, Any]:
    """The samples (POINTS, 2) that a row makes from the same noise, with the exact denoiser of a mixture, by budget.

    The other keys hold choices that matter to trained networks only: exact guides agree with each other, an exact
    denoiser hardly leaves the range of pixels, and a fitted solver has the numbers that its fit begins with.
    """
    oracle = _denoiser(row)
    noise = torch.randn(POINTS, 2, dtype=torch.float64, generator=generator("null axes", 0))
    samples: dict[Any, Any] = {"guide": None if row.build_guidance().idle else row.guide}
    made: dict[int, Tensor | None] = {}  # by number of steps
    samples["threshold"] = row.threshold, *(getattr(row, key) for key in thresholding.keys_of(row.threshold))
    samples["fit"] = (row.fit, row.told, row.start, row.fit_images) if row.solver == "fitted" else None
    fitted: list[tuple[float, ...]] = []
    if row.discretization == "optimised":
        fitted = fit(_mixture(STD), noise, *row.sigma_range, TEACHER_LEVELS)
    for budget in sorted(row.nfe):
        steps = row.steps(budget)
        if budget > LARGEST_BUDGET or (fitted and steps > len(fitted)):
            continue
        if steps not in made:
            try:
                started = row.with_grid(fitted[steps - 1]) if fitted else row.as_started(steps)
                made[steps] = _tried(oracle, noise, started, steps)
            except StudyError as error:  # an adaptive solver finds no step that is small enough
                samples["failure"], made[steps] = str(error), None
        if (x0 := made[steps]) is not None:
            samples[budget] = x0
    return samples


class _TooLong(Exception):
    """An adaptive solver takes too many steps to be tried."""


def _tried(oracle: DenoiserFunction, noise: Tensor, row: Sampler, steps: int) -> Tensor | None:
    """The samples that a row makes from noise; None if they are not finite, or take too long."""
    draws = generator("null axes", 1)
    calls = 0

    def limited(z: Tensor, sigma: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > MOST_CALLS:
            raise _TooLong
        return oracle(z, sigma)

    try:
        return sample(limited, noise, row, steps, lambda z: torch.randn(z.shape, dtype=z.dtype, generator=draws)).x0
    except (NotFinite, _TooLong):
        return None


def trained(row: Model) -> dict[str, Any]:
    """Everything that a training of this row depends on: coefficients, noise levels, weights, and the other choices."""
    u = torch.arange(1, 200, dtype=torch.float64) / 200
    levels = row.levels(u)
    sigma, sigma_data = levels[0], row.sigma_data or TRIED_SIGMA_DATA
    coefficients = PARAMETRIZATIONS[row.parametrization](sigma, sigma_data)
    others = row.model_dump(exclude={"parametrization", *KEYS_OF_NOISE, "weighting", *WEIGHTING_KEYS, *SIDE_PRODUCTS})
    others["ema_halflife_images"] = row.longest_average_images
    others["images"] = row.own_images
    del others["budget"]
    others["micro_batch"] = min(row.micro_batch or row.batch, row.batch)
    if row.pairs != "reflow":
        del others["reflow_pairs"]
    if row.labels == "none":
        del others["label_dropout"]
    if row.learning_rate_decay != "inverse_sqrt":
        del others["learning_rate_reference_images"]
    return others | {
        "learned": WEIGHTINGS[row.weighting].learned,
        "coefficients": torch.stack(coefficients),
        "levels": torch.stack(levels),
        "weighting": row.weight(u, levels, sigma_data, coefficients.c_out),
    }


def same(one: dict[Any, Any], two: dict[Any, Any]) -> bool:
    """Whether two outcomes agree to rounding in all keys that they share, samples among them."""
    common = one.keys() & two.keys()
    return bool(common - {"guide", "threshold", "fit", "failure"}) and all(
        torch.allclose(one[key], two[key], rtol=TOLERANCE, atol=TOLERANCE)
        if isinstance(one[key], Tensor)
        else one[key] == two[key]
        for key in common
    )


def null_choices(row: AnyRow, base: AnyRow, outcome: Callable[[AnyRow], dict[Any, Any]]) -> Iterator[str]:
    """The choices in which a row differs from its base, if its outcome is the same without the choice."""
    with_all: dict[Any, Any] | None = None
    for key in differences(row, base):
        try:
            without = type(row)(**row.model_dump() | {key: getattr(base, key)})
        except ValidationError:
            continue
        with_all = outcome(row) if with_all is None else with_all
        if same(with_all, outcome(without)):
            yield key


def sampler_reason(row: Sampler, key: str) -> str:
    """Why a choice of a sampler changes nothing."""
    solver = row.build_solver()
    if key in ("rho", "exponent", "shift", "spacing") and key not in DISCRETIZATIONS[row.discretization].keys:
        return f"discretization {row.discretization} has no {key}"
    if key in ("discretization", "rho", "exponent", "shift", "spacing") and solver.adaptive:
        return f"solver {row.solver} chooses its own steps"
    if key in ("schedule", "scaling") and solver.variable != "t":
        return f"solver {row.solver} steps in {solver.variable}, and so does not depend on the {key}"
    if key == "schedule":
        return f"solver {row.solver} takes the same steps in the schedules linear and flow, on the same noise levels"
    if key in ("guide", "guidance_min", "guidance_max") and row.build_guidance().idle:
        return f"guidance {row.guidance:g} does not guide"
    if key in ("S_min", "S_max", "S_noise") and not row.S_churn:
        return "without S_churn there is no churn"
    if key == "threshold_percentile":
        return f"threshold {row.threshold} has no percentile"
    if key == "order":
        return f"it is the default order of solver {row.solver}"
    if key in ("sigma_min", "sigma_max") and row.sigmas:
        return "the list of sigmas sets the range"
    if key == "sigma_min" and row.discretization == "flow":
        return "discretization flow always goes down to 0"
    return "sampling an exact denoiser gives the same points without it"


def model_reason(row: Model, key: str) -> str:
    """Why a choice of a model changes nothing."""
    if key in KEYS_OF_NOISE - {"noise", *keys_of(row.noise)}:
        return f"noise {row.noise} has no {key}"
    if key == "ema_halflife_images":
        longest = f"{row.longest_average_images:.0f}"
        return f"over a training of {row.own_images} images, ema_ramp_up limits the half-life to {longest}"
    if key == "budget":
        return "the row has no teacher"
    if key == "label_dropout":
        return "without labels there is nothing to drop"
    if key == "learning_rate_reference_images":
        return f"learning_rate_decay {row.learning_rate_decay} does not use it"
    if key == "micro_batch":
        return f"a batch has {row.batch} images"
    if key == "reflow_pairs":
        return f"pairs {row.pairs} does not use it"
    if key == "weighting":
        return f"for parametrization {row.parametrization} it equals the weighting of the base"
    return "the network is trained on the same targets without it"


def warnings(
    models: Mapping[str, Model],
    model_bases: Mapping[str, Model],
    curves: Mapping[str, Curve],
    curve_bases: Mapping[str, Sampler],
) -> list[str]:
    """One line for every choice that changes nothing, and for every two curves of one model that are the same sampler.

    model_bases, curve_bases: the row that each row is compared with. Curves with a `method` are not checked choice by
    choice, because they write a published method out in full.
    """
    lines = []
    for name, model in models.items():
        if model.import_ is not None or model_bases[name].import_ is not None:
            continue
        for key in null_choices(model, model_bases[name], trained):
            lines.append(_line(f"models.{name}", key, model, model_reason(model, key)))
    samplers, outcomes = {name: _sampler(curve) for name, curve in curves.items()}, dict[str, dict[Any, Any]]()

    def outcome(row: Sampler) -> dict[Any, Any]:
        content = row.filled().model_dump_json()
        if content not in outcomes:
            outcomes[content] = sampled(row)
        return outcomes[content]

    null = set()
    for name, row in samplers.items():
        if row.build_solver().adaptive and "failure" in outcome(row):
            raise StudyError(f"curves.{name}: {outcome(row)['failure']}; use another noise range or schedule")
        if curves[name].method:
            continue
        for key in null_choices(row, _sampler(curve_bases[name]), outcome):
            null.add(name)
            lines.append(_line(f"curves.{name}", key, row, sampler_reason(row, key)))
    names = list(curves)
    for i, name in enumerate(names):
        for other in names[:i]:
            row, earlier = samplers[name], samplers[other]
            fits = [
                (curve.model, *(getattr(curve, key) for key in TRANSFER)) for curve in (curves[name], curves[other])
            ]
            comparable = fits[0] == fits[1] and not null & {name, other}
            if comparable and differences(row, earlier) and same(outcome(row), outcome(earlier)):
                lines.append(f"curves.{name}: the same sampler as curves.{other}, written differently")
    return lines


def _sampler(curve: Sampler) -> Sampler:
    """The sampler of a curve, without the choices that no outcome depends on, such as the number of samples."""
    return Sampler.model_construct(**{key: getattr(curve, key) for key in Sampler.model_fields})


def _line(place: str, key: str, row: Row, reason: str) -> str:
    return f"{place}.{key}: {getattr(row, key)} changes nothing: {reason}"


def notes(rows: Resolved) -> list[str]:
    """All lines that `resolve` and `check` print as warnings; the report shows only the first part."""
    return [*rows.warnings, *remarks(rows)]


def remarks(rows: Resolved) -> list[str]:
    """One line for everything in a study that has no use: equal rows, equal budgets, and what no curve uses.

    No stage depends on these lines, because the report does not show them.
    """
    models = {name: entry.row for name, entry in rows.models.items()}
    curves = {name: entry.row for name, entry in rows.curves.items()}
    asked = {n: (models[row.model], row.model_copy(update={"model": "", "method": None})) for n, row in curves.items()}
    lines = [*_equal("models", models), *_equal("curves", asked)]
    for name, curve in curves.items():
        lines += _budgets(name, curve)
    for name, model in models.items():
        own = [curve for curve in curves.values() if name in (curve.model, curve.fitted_model)]
        lines += [*_unused(name, model, own), *_unused_seeds(name, model, own, models)]
    return lines


def _equal(section: str, rows: Mapping[str, object]) -> Iterator[str]:
    names = list(rows)
    for i, name in enumerate(names):
        if other := next((other for other in names[:i] if rows[other] == rows[name]), None):
            yield f"{section}.{name}: the same row as {section}.{other}; leave one of the two out"


def _budgets(name: str, row: Sampler) -> Iterator[str]:
    """Budgets that pay for the same number of steps, and so are one measurement."""
    by_steps: dict[int, list[int]] = {}
    for budget in sorted(row.nfe):
        by_steps.setdefault(row.steps(budget), []).append(budget)
    for steps, budgets in by_steps.items():
        if len(budgets) > 1:
            why = (
                f"solver {row.solver} chooses its steps by rtol and atol, not by the budget"
                if row.build_solver().adaptive
                else f"solver {row.solver} takes {steps} steps with each, {row.evaluations(steps)} evaluations"
            )
            listed = f"{', '.join(map(str, budgets[:-1]))} and {budgets[-1]}"
            yield f"curves.{name}.nfe: {listed} are one measurement: {why}"


def _unused(name: str, model: Model, curves: list[Curve]) -> Iterator[str]:
    """Products of a model's training that none of its curves uses."""
    guides = {curve.guide for curve in curves if not curve.build_guidance().idle}
    if model.classifier_images and "classifier" not in guides:
        why = "trains a classifier that guides no curve; use 0, or guide: classifier in a curve"
        yield f"models.{name}.classifier_images: {why}"
    uses_snapshots = "snapshot" in guides or any(
        curve.ema_halflife_images not in (None, *model.ema_halflives_images)
        or curve.ema_sigma_rel not in (None, *model.ema_sigma_rels)
        for curve in curves
    )
    if model.snapshots and not uses_snapshots:
        yield (
            f"models.{name}.snapshots: no curve uses them; use 0, or in a curve guide: snapshot or an average that the "
            "model does not track"
        )


def _unused_seeds(name: str, model: Model, curves: list[Curve], models: Mapping[str, Model]) -> Iterator[str]:
    """Trainings that neither a curve nor a student uses, if the model has a curve."""
    pairs = [(curve, train_seed) for curve in curves for train_seed, _ in curve.seeds]
    networks = {part for curve, seed in pairs for part in ((curve.model, seed), curve.fitted_to(seed, steps=1)[:2])}
    used = {seed for model_name, seed in networks if model_name == name}
    used |= {seed for student in models.values() if student.teacher == model for seed in student.train_seeds}
    if curves and (unused := [str(seed) for seed in model.train_seeds if seed not in used]):
        listed = ", ".join(unused)
        yield f"models.{name}.train_seeds: no curve uses {listed}; leave out what none needs, or add it to a curve's"
