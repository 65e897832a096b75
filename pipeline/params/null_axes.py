"""Choices of a row that cannot change its result, found by trying: without the choice, an exact denoiser is sampled to
the same points, or a network is trained on the same target. And what else a study holds for nothing."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.common.errors import NotFinite
from pipeline.common.randomness import generator
from pipeline.common.rows import Row
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.diffusion.exact import LabelledMixture
from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.evaluation.curve import Curve
from pipeline.params.resolved import Resolved
from pipeline.sampling.fitted_grids import fit
from pipeline.sampling.grids import DISCRETIZATIONS
from pipeline.sampling.guidance import guided
from pipeline.sampling.loop import sample
from pipeline.sampling.row import Sampler
from pipeline.training.noise import NOISES, keys_of
from pipeline.training.row import TRIED_SIGMA_DATA, WEIGHTING_KEYS, Model
from pipeline.training.weighting import WEIGHTINGS

AnyRow = TypeVar("AnyRow", bound=Row)
POINTS, STD, TOLERANCE = 4, 0.3, 1e-8
LARGEST_BUDGET = 150  # beyond it a budget is not tried
TEACHER_LEVELS = 16
BESIDE = ("train_seeds", "ema_halflives_images", "ema_sigma_rels", "snapshots", "classifier_images")  # of a training
KEYS_OF_NOISE = {"noise"}.union(*(keys_of(name) for name in NOISES))


def differences(row: Row, base: Row) -> dict[str, Any]:
    """The design choices (fields with a title) in which a row differs from its base, as written: name -> value."""
    return {
        name: getattr(row, name)
        for name, field in type(row).model_fields.items()
        if field.title and getattr(row, name) != getattr(base, name)
    }


def _mixture(std: float) -> LabelledMixture:
    means = torch.tensor([[0.7, -0.2], [-0.4, 0.5]], dtype=torch.float64)
    return LabelledMixture(means, torch.tensor([0.3, 0.7], dtype=torch.float64), std)


def _denoiser(row: Sampler) -> DenoiserFunction:
    """The mixture's denoiser, guided to its classes by turns where the row guides; a wider one is its snapshot."""
    exact, guidance = _mixture(STD), row.build_guidance()
    labels = torch.arange(POINTS) % len(exact.means)
    return exact if guidance.idle else guided(guidance, exact, labels, _mixture(2 * STD), exact)


def sampled(row: Sampler) -> dict[Any, Any]:
    """By budget, what a row makes of a few points of noise with the exact denoiser of a mixture.

    And the guide, where there is one: exact ones agree with each other, as trained ones do not.
    """
    oracle = _denoiser(row)
    noise = torch.randn(POINTS, 2, dtype=torch.float64, generator=generator("null axes", 0))
    found: dict[Any, Any] = {"guide": None if row.build_guidance().idle else row.guide}
    fitted: list[tuple[float, ...]] = []
    if row.discretization == "optimised":
        fitted = fit(_mixture(STD), noise, *row.sigma_range, TEACHER_LEVELS)
    for budget in sorted(row.nfe):
        steps = row.steps(budget)
        if budget > LARGEST_BUDGET or (fitted and steps > len(fitted)):
            continue
        draws = generator("null axes", 1)
        randn_like = lambda z, draws=draws: torch.randn(z.shape, dtype=z.dtype, generator=draws)  # noqa: E731
        try:
            on_grid = row.with_grid(fitted[steps - 1]) if fitted else row
            found[budget] = sample(oracle, noise, on_grid, steps, randn_like).x0
        except NotFinite:
            continue
    return found


def trained(row: Model) -> dict[str, Any]:
    """What a network of this row is trained on: coefficients, noise levels and weights, and all its other choices."""
    u = torch.arange(1, 200, dtype=torch.float64) / 200
    sigma = row.distribution.sigma(u)
    sigma_data = row.sigma_data or TRIED_SIGMA_DATA
    coefficients = PARAMETRIZATIONS[row.parametrization](sigma, sigma_data)
    others = row.model_dump(exclude={"parametrization", *KEYS_OF_NOISE, "weighting", *WEIGHTING_KEYS, *BESIDE})
    others["ema_halflife_images"] = row.longest_average_images
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
        "sigma": sigma,
        "weighting": row.weight(u, sigma, sigma_data, coefficients.c_out),
    }


def same(one: dict[Any, Any], two: dict[Any, Any]) -> bool:
    """Whether two outcomes agree to rounding in all that both have."""
    common = one.keys() & two.keys()  # of samplers the guide always, which alone says nothing
    return bool(common - {"guide"}) and all(
        torch.allclose(one[key], two[key], rtol=TOLERANCE, atol=TOLERANCE)
        if isinstance(one[key], Tensor)
        else one[key] == two[key]
        for key in common
    )


def null_choices(row: AnyRow, base: AnyRow, outcome: Callable[[AnyRow], dict[Any, Any]]) -> Iterator[str]:
    """The choices in which a row differs from its base though its outcome would be the same without each of them."""
    own: dict[Any, Any] | None = None
    for key in differences(row, base):
        try:
            without = type(row)(**row.model_dump() | {key: getattr(base, key)})
        except ValidationError:
            continue
        own = outcome(row) if own is None else own
        if same(own, outcome(without)):
            yield key


def sampler_reason(row: Sampler, key: str) -> str:
    """Why a choice changes nothing, where that is known."""
    solver = row.build_solver()
    if key in ("rho", "shift", "spacing") and key not in DISCRETIZATIONS[row.discretization].keys:
        return f"discretization {row.discretization} has no {key}"
    if key in ("discretization", "rho", "shift", "spacing") and solver.adaptive:
        return f"solver {row.solver} chooses its steps by itself"
    if key in ("schedule", "scaling") and solver.variable != "t":
        return f"solver {row.solver} steps in {solver.variable}, whatever the {key}"
    if key == "schedule":
        return f"on one grid of noise levels solver {row.solver} takes the same steps in linear and in flow"
    if key in ("guide", "guidance_min", "guidance_max") and row.build_guidance().idle:
        return f"there is no guidance where guidance is {row.guidance:g}"
    if key in ("S_min", "S_max", "S_noise") and not row.S_churn:
        return "there is no churn without S_churn"
    if key == "order":
        return f"it is what solver {row.solver} has by itself"
    if key in ("sigma_min", "sigma_max") and row.sigmas:
        return "the list of sigmas has its own ends"
    if key == "sigma_min" and row.discretization == "flow":
        return "discretization flow goes down to 0 by itself"
    return "an exact denoiser is sampled to the same points without it"


def model_reason(row: Model, key: str) -> str:
    """Why a choice changes nothing, where that is known."""
    if key in KEYS_OF_NOISE - {"noise", *keys_of(row.noise)}:
        return f"noise {row.noise} has no {key}"
    if key == "ema_halflife_images":
        longest = f"{row.longest_average_images:.0f}"
        return f"over a training of {row.images} images the average has a half-life of {longest} at most"
    if key == "label_dropout":
        return "there are no labels to drop"
    if key == "learning_rate_reference_images":
        return f"learning_rate_decay {row.learning_rate_decay} has none"
    if key == "micro_batch":
        return f"a batch has {row.batch} images"
    if key == "reflow_pairs":
        return f"pairs {row.pairs} has none"
    if key == "weighting":
        return f"for parametrization {row.parametrization} it is the weighting of the base"
    return "the network is trained on the same targets without it"


def warnings(
    models: dict[str, tuple[Model, Model]],
    curves: dict[str, tuple[Sampler, Sampler]],
    model_of: dict[str, str],
    spelled_out: set[str],
) -> list[str]:
    """One line for every choice that changes nothing, and for every two curves of one model that are one sampler.

    models, curves: name -> (row, what it is compared with); model_of: the curves' models; spelled_out: the curves whose
    choices are not looked at one by one, since they spell a published method out.
    """
    lines = []
    for name, (model, model_base) in models.items():
        for key in null_choices(model, model_base, trained):
            lines.append(_line(f"models.{name}", key, model, model_reason(model, key)))
    outcomes: dict[str, dict[Any, Any]] = {}

    def outcome(row: Sampler) -> dict[Any, Any]:
        content = row.filled().model_dump_json()
        if content not in outcomes:
            outcomes[content] = sampled(row)
        return outcomes[content]

    null = set()
    for name, (curve, base) in curves.items():
        if name in spelled_out:
            continue
        for key in null_choices(curve, base, outcome):
            null.add(name)
            lines.append(_line(f"curves.{name}", key, curve, sampler_reason(curve, key)))
    names = list(curves)
    for i, name in enumerate(names):
        row = curves[name][0]
        for other in names[:i]:
            earlier = curves[other][0]
            alike = model_of[name] == model_of[other] and not null & {name, other}
            if alike and differences(row, earlier) and same(outcome(row), outcome(earlier)):
                lines.append(f"curves.{name}: the same sampler as curves.{other}, by another name")
    return lines


def _line(place: str, key: str, row: Row, reason: str) -> str:
    return f"{place}.{key}: {getattr(row, key)} changes nothing: {reason}"


def remarks(rows: Resolved) -> list[str]:
    """One line for everything in a study that has no use: equal rows, equal budgets, and what no curve uses.

    `resolve` prints these beside the warnings. The report does not show them, so no stage depends on them.
    """
    models = {name: entry.row for name, entry in rows.models.items()}
    curves = {name: entry.row for name, entry in rows.curves.items()}
    asked = {n: (models[row.model], row.model_copy(update={"model": "", "method": None})) for n, row in curves.items()}
    lines = [*_equal("models", models), *_equal("curves", asked)]
    for name, curve in curves.items():
        lines += _budgets(name, curve)
    for name, model in models.items():
        lines += _unused(name, model, [curve for curve in curves.values() if curve.model == name])
    return lines


def _equal(section: str, rows: Mapping[str, object]) -> Iterator[str]:
    names = list(rows)
    for i, name in enumerate(names):
        if other := next((other for other in names[:i] if rows[other] == rows[name]), None):
            yield f"{section}.{name}: the same row as {section}.{other}, by another name; leave one of the two out"


def _budgets(name: str, row: Sampler) -> Iterator[str]:
    """Budgets that pay for equally many steps, which are one measurement."""
    paid: dict[int, list[int]] = {}
    for budget in sorted(row.nfe):
        paid.setdefault(row.steps(budget), []).append(budget)
    for steps, budgets in paid.items():
        if len(budgets) > 1:
            why = (
                f"solver {row.solver} chooses its steps by rtol and atol, whatever the budget"
                if row.build_solver().adaptive
                else f"solver {row.solver} takes {steps} steps with each, {row.evaluations(steps)} evaluations"
            )
            listed = f"{', '.join(map(str, budgets[:-1]))} and {budgets[-1]}"
            yield f"curves.{name}.nfe: {listed} are one measurement: {why}"


def _unused(name: str, model: Model, curves: list[Curve]) -> Iterator[str]:
    """What is trained or kept beside a model, and no curve samples with."""
    guides = {curve.guide for curve in curves if not curve.build_guidance().idle}
    if model.classifier_images and "classifier" not in guides:
        yield f"models.{name}.classifier_images: trains a classifier that guides no curve; use 0, or guide one by it"
    made = any(
        curve.ema_halflife_images not in (None, *model.ema_halflives_images)
        or curve.ema_sigma_rel not in (None, *model.ema_sigma_rels)
        for curve in curves
    )
    if model.snapshots and not made and "snapshot" not in guides:
        alone = " alone, which is its end," if model.snapshots == 1 else ""
        yield (
            f"models.{name}.snapshots: {model.snapshots}{alone} for no curve; use 0, or say guide: snapshot or an "
            "average that only snapshots give in a curve's row"
        )
