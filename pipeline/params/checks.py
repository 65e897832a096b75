"""Mistakes that a row does not show by itself: what cannot go together across rows, or with the data."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from pipeline.common.errors import StudyError, nearest
from pipeline.data.dataset import described, shape_of
from pipeline.data.listing import BUILT_IN, unknown_source
from pipeline.data.points import POINTS
from pipeline.data.row import Data
from pipeline.data.sources import glance
from pipeline.diffusion.autoencoder import decoder_size
from pipeline.diffusion.averages import (
    LARGEST_ERROR,
    HalfLife,
    Power,
    Profile,
    profiles,
    snapshot_steps,
    synthesis_of,
)
from pipeline.diffusion.networks.registry import check_network
from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.likelihood import check_solver
from pipeline.evaluation.likelihoods import Likelihood, lowest
from pipeline.metrics.extractors.registry import check_suits
from pipeline.params.checks_common import check_named, check_of_data, check_threshold
from pipeline.params.checks_given import check_measurements
from pipeline.params.explain import explain
from pipeline.params.resolved import Resolved
from pipeline.params.study import Study
from pipeline.training.autoencoder_row import AutoencoderRow
from pipeline.training.checks import check_models
from pipeline.training.row import NETWORK_KEYS, Model

WEIGHTS = (
    "space",
    "resolution",
    "upsampler",
    "network",
    *sorted(NETWORK_KEYS - {"dropout"}),
    "embedding",
    "labels",
    "sigma_data",
)  # what weights depend on

# All functions here raise StudyError, one line that says where, what is wrong, and what to write instead.


def check_data(study: Study) -> None:
    """Refuse a misspelt source, an extractor for another kind of data, and image sets beside points."""
    source = study.data.source
    if source not in BUILT_IN and get_close_matches(source, BUILT_IN, n=1) and not Path(source).exists():
        raise StudyError(f"data.source: {unknown_source(source)}")
    check_suits(study.features.extractor, source in POINTS)
    if source in POINTS and study.sets:
        raise StudyError(
            f"sets.{next(iter(study.sets))}: a set holds images, but the data {source} are points; write `sets: {{}}`"
        )


def check_model(study: Study, name: str, row: Model) -> None:
    """Refuse a model row that does not go with the kind of its data, or ties noise to classes."""
    source, points = study.data.source, study.data.source in POINTS
    try:
        check_network(row.network, points, source if points else "the data")
    except StudyError as error:
        raise StudyError(f"models.{name}.{error}") from None
    for key in ("augment", "flip"):
        if points and getattr(row, key):
            raise StudyError(f"models.{name}.{key}: only images can be mirrored, and {source} are points; use 0")
    for key, needs_classes in (("labels", row.labels == "classes"), ("classifier_images", row.classifier_images)):
        if needs_classes and not study.data.labels:
            raise StudyError(f"models.{name}.{key}: needs classes, but data.labels is false; leave one of the two out")
    if row.labels == "classes" and row.pairs == "optimal_transport":
        raise StudyError(
            f"models.{name}.pairs: optimal_transport would make the noise depend on the class, which it does not in "
            "sampling; use independent, or labels: none"
        )


def teaching_key(row: Model) -> str:
    """The key by which a model row learns from a teacher, if it does."""
    return "pairs" if row.pairs == "reflow" else "objective"


def check_teacher(row: Model, teacher: Model | None, place: str, which: str) -> None:
    """Refuse a teacher that lacks seeds of its student, or cannot teach it."""
    key = teaching_key(row)
    what = f"{place}.{key}: {getattr(row, key)}"
    missing = set(row.train_seeds) - set(teacher.train_seeds if teacher else ())
    if missing and not (teacher and teacher.import_ is not None):  # which is the same for all seeds
        seed = min(missing)
        raise StudyError(f"{place}.train_seeds: {which} has no seed {seed} to learn from; add it there")
    if teacher is None:
        return
    if teacher.objective != "denoising":
        raise StudyError(f"{what} learns from a denoiser, but {which} has objective {teacher.objective}")
    if key == "pairs":
        for own in ("space", "resolution"):
            if getattr(row, own) != getattr(teacher, own):
                valid = getattr(teacher, own) or "null"
                raise StudyError(f"{place}.{own}: {which} makes its pairs in another one; use {valid}")
        if teacher.upsampler:
            raise StudyError(f"{what} samples from {which}, which needs low-resolution images; name another base")
        if not PARAMETRIZATIONS[teacher.parametrization].flow:
            raise StudyError(
                f"{what} takes its pairs from a flow, but {which} has parametrization {teacher.parametrization}; name "
                "a flow as base"
            )
        if teacher.labels == "classes" and not teacher.label_dropout:
            raise StudyError(f"{what} samples from {which} without labels, which needs label_dropout above 0 there")
        return
    different = [key for key in WEIGHTS if getattr(row, key) != getattr(teacher, key)]
    if bool(row.augment) != bool(teacher.augment):  # networks are told about augmentations
        different.append("augment")
    if different:
        other, value = different[0], getattr(teacher, different[0])
        raise StudyError(
            f"{place}.{other}: the training starts from the weights of {which}, which has "
            f"{'null' if value is None else value}; use the same here"
        )
    paths = [PARAMETRIZATIONS[one.parametrization].path for one in (row, teacher)]
    if paths[0] is not paths[1] or (row.objective == "progressive" and row.parametrization != teacher.parametrization):
        raise StudyError(
            f"{place}.parametrization: {row.parametrization} does not go with the weights of {which}, which were "
            f"trained as {teacher.parametrization}"
        )


def check_curve(study: Study, name: str, curves: dict[str, Curve], models: dict[str, Model]) -> None:
    """Refuse a curve that shares its name in figures, or asks for something that its model or data do not have."""
    curve, place = curves[name], f"curves.{name}"
    if curve.method and any(curve.method in (row.method, other) for other, row in curves.items() if other != name):
        raise StudyError(f"{place}.method: another curve is already called {curve.method!r}; choose another name")
    if "model" not in (study.curves[name] or {}):
        raise StudyError(f"{place}.model: missing; write it in every curve, because dvc.yaml reads it there")
    check_named(f"{place}.model", curve.model, models)
    model = models[curve.model]
    check_threshold(place, curve, study.data.source)
    if curve.variance == "learned" and model.learned_variance == "none":
        raise StudyError(
            f"{place}.variance: model {curve.model} does not learn it; set learned_variance in its row, or use beta"
        )
    if missing := set(curve.train_seeds or ()) - set(model.train_seeds):
        listed = ", ".join(map(str, model.train_seeds))
        raise StudyError(f"{place}.train_seeds: model {curve.model} has no seed {min(missing)}; use some of {listed}")
    if model.space and curve.threshold != "none":
        raise StudyError(f"{place}.threshold: limits pixels, and model {curve.model} makes latents; use none")
    _check_cascade(place, curve, model, models)
    _check_students(place, curve, model)
    _check_transfer(place, curve, models)
    for name in dict.fromkeys([curve.model, curve.fitted_model or curve.model]):
        of = curve.model_copy(update={"model": name})
        _check_labels(place, of, models[name])
        _check_guide(place, of, models[name])
        _check_average(place, of, models[name])


def _check_cascade(place: str, curve: Curve, model: Model, models: dict[str, Model]) -> None:
    """Refuse stages of a cascade that do not fit together, and a strength that the upsampler was not trained for."""
    earlier, upsampler, of = curve.earlier, model.upsampler, f"model {curve.model}"
    if upsampler is None or earlier is None:
        if upsampler:
            raise StudyError(
                f"{place}.after: missing; {of} is an upsampler: name a curve that makes images {upsampler.height} "
                "pixels high"
            )
        for key in ("after", "strength", "truncated", "share"):
            if getattr(curve, key) != type(curve).model_fields[key].default:
                raise StudyError(f"{place}.{key}: {of} is no upsampler; leave it out, or name a model with upsampler")
        return
    before = models[earlier.model]
    if before.space:
        raise StudyError(f"{place}.after: curve {curve.after} makes latents of {before.space}; name a curve of pixels")
    if before.resolution != upsampler.height:
        made = f"images {before.resolution} pixels high" if before.resolution else "images of full size"
        raise StudyError(
            f"{place}.after: curve {curve.after} makes {made}, but {of} takes images {upsampler.height} pixels high; "
            f"name a curve of a model with resolution: {upsampler.height}"
        )
    if curve.strength > upsampler.strength:
        raise StudyError(
            f"{place}.strength: {curve.strength:g}, but {of} was trained for strengths up to {upsampler.strength:g}; "
            "use at most that, or raise strength in its upsampler"
        )
    for row, name in ((curve, place), (earlier, f"{place}.after: curve {curve.after}")):
        of_solver = row.build_solver().adaptive or row.solver == "fitted"
        if of_solver or row.discretization == "optimised":
            key, value = ("solver", row.solver) if of_solver else ("discretization", "optimised")
            raise StudyError(f"{name}.{key}: {value} is not for stages of a cascade; use another")
    for stage in curve.stages[:-1]:
        if missing := set(curve.train_seeds or model.train_seeds) - set(models[stage].train_seeds):
            raise StudyError(
                f"{place}.after: model {stage} has no training with seed {min(missing)}; add it there, or list common "
                "train_seeds"
            )
    _check_truncated(place, curve, upsampler.augmentation)
    try:
        Curve(**curve.model_dump())  # its share of the budgets
    except ValidationError as error:
        raise explain(error, place, Curve) from None
    _check_steps(place, curve, curve.step_counts, models)


def _check_steps(place: str, curve: Curve, counts: list[int], models: dict[str, Model], end: float = 0.0) -> None:
    """Refuse numbers of steps, to the noise level `end`, for which a stage before has no student or no grid."""
    if curve.earlier is None:
        return
    earlier, model = curve.earlier, models[curve.earlier.model]
    before = sorted({curve.earlier_steps(steps, end) for steps in counts})
    asked = f"{place}.nfe: asks curve {curve.after} for {{}} steps"
    students = [part.round_steps for part in model.rounds if part.round_steps]
    for steps in before:
        if students and steps not in students:
            listed = ", ".join(map(str, sorted(students)))
            raise StudyError(f"{asked.format(steps)}, but model {earlier.model} has students for {listed}")
        try:
            falls = earlier.ending_at(curve.earlier_end)._falls(steps)
        except ValueError as error:
            raise StudyError(f"{asked.format(steps)}: {error}") from None
        if not falls:
            raise StudyError(
                f"{place}.truncated: the noise levels of curve {curve.after} do not fall to {curve.strength:g} in "
                f"{steps} steps; use discretization edm there, or truncated: false"
            )
    _check_steps(place, earlier, before, models, curve.earlier_end)


def _check_truncated(place: str, curve: Curve, augmentation: str) -> None:
    """Refuse to end the stage before at a noise level that it does not have, or that the upsampler would not know."""
    if not curve.truncated or curve.earlier is None:
        return
    if augmentation != "noise":
        raise StudyError(f"{place}.truncated: leaves noise, but the model was trained with augmentation {augmentation}")
    if not curve.strength:
        raise StudyError(f"{place}.truncated: needs a strength above 0, the noise level at which the stage before ends")
    earlier = curve.earlier.ending_at(curve.earlier_end)
    low, high = earlier.sigma_range
    last = float(earlier.grid(1)[-1]) if low < high and not earlier.sigmas and not earlier.finest_steps else 0.0
    if abs(last / low - 1) > 1e-6:
        raise StudyError(
            f"{place}.truncated: the grid of curve {curve.after} has no noise level {curve.strength:g} to end at; use "
            "discretization edm there, or truncated: false"
        )


def _check_students(place: str, curve: Curve, model: Model) -> None:
    """Refuse numbers of steps, and averages, for which progressive distillation made no student."""
    if model.objective != "progressive":
        return
    made = sorted(part.round_steps or 0 for part in model.rounds)
    if missing := [steps for steps in curve.step_counts if steps not in made]:
        raise StudyError(
            f"{place}.nfe: model {curve.model} has no student for {missing[0]} steps; there are those for "
            f"{', '.join(map(str, made))}"
        )
    for key in ("ema_halflife_images", "ema_sigma_rel"):
        if getattr(curve, key):
            raise StudyError(f"{place}.{key}: the students of model {curve.model} have one average each; leave it out")


def _check_transfer(place: str, curve: Curve, models: dict[str, Model]) -> None:
    """Refuse a fitted solver of students, and networks that it cannot be fitted to."""
    if curve.solver != "fitted":
        return
    source = curve.fitted_model or curve.model
    check_named(f"{place}.fitted_model", source, models)
    for name in (curve.model, source):
        if models[name].objective == "progressive":
            raise StudyError(f"{place}.solver: model {name} has a student for each number of steps; use another solver")
        if models[name].upsampler:
            raise StudyError(f"{place}.solver: fitted is not for stages of a cascade; use another")
    for key in ("labels", "space", "resolution"):
        if getattr(models[source], key) != getattr(models[curve.model], key):
            use = f"{key}: {getattr(models[curve.model], key) or 'null'}"
            raise StudyError(
                f"{place}.fitted_model: {source} differs in {key} from {curve.model}; name a model with {use}"
            )
    seeds = models[source].train_seeds
    needed = (
        (curve.fitted_seed,) if curve.fitted_seed is not None else curve.train_seeds or models[curve.model].train_seeds
    )
    if missing := sorted(set(needed) - set(seeds)):
        key = "fitted_seed" if curve.fitted_seed is not None else "fitted_model"
        raise StudyError(
            f"{place}.{key}: model {source} has no training with seed {missing[0]}; valid: {', '.join(map(str, seeds))}"
        )
    if curve.fitted_nfe is not None:
        try:
            steps = curve.steps(curve.fitted_nfe)
            falls = curve._falls(steps)
        except ValueError as error:
            raise StudyError(f"{place}.fitted_nfe: {str(error).removeprefix('nfe: ')}") from None
        if not falls:
            raise StudyError(f"{place}.fitted_nfe: the noise levels of {steps} steps do not fall in float64; use fewer")
        if steps == 1 and curve.step_counts != [1]:
            raise StudyError(f"{place}.fitted_nfe: pays for one step, from which no other is interpolated; use more")


def _check_labels(place: str, curve: Curve, model: Model) -> None:
    of, guided = f"model {curve.model}", not curve.build_guidance().idle
    if curve.guide == "unconditional" and guided:
        if model.labels == "none":
            raise StudyError(f"{place}.guidance: {of} is unconditional; give it labels: classes, or use another guide")
        if curve.labels == "none":
            raise StudyError(f"{place}.labels: with none there is no class to guide to; use data, or guidance 1")
    if curve.guide == "classifier" and not model.classifier_images:
        raise StudyError(f"{place}.guide: {of} has no classifier; set classifier_images in its row")
    if model.labels == "classes" and not model.label_dropout and (key := _key_without_labels(curve)):
        raise StudyError(f"{place}.{key}: needs {of} without labels, and so label_dropout above 0 in its row")
    if curve.guide == "classifier" and curve.labels == "none":
        raise StudyError(f"{place}.labels: with none there is no class for the classifier to guide to; use data")
    if curve.labels == "none" and model.labels == "none":
        raise StudyError(f"{place}.labels: {of} is unconditional anyway; leave it out")


def _key_without_labels(curve: Curve) -> str | None:
    """The key of a curve that needs its model without labels, if there is one."""
    needed = {
        "guidance": curve.guide == "unconditional" and not curve.build_guidance().idle,
        "labels": curve.labels == "none",
        "discretization": curve.discretization == "optimised",
        "guide": curve.guide == "classifier",
    }
    return next((key for key, is_needed in needed.items() if is_needed), None)


def _check_guide(place: str, curve: Curve, model: Model) -> None:
    of = f"model {curve.model}"
    if curve.guide == "snapshot" and model.snapshots < 2:
        raise StudyError(f"{place}.guide: {of} has no earlier snapshot; set snapshots in its row, to 2 or more")
    if not curve.guide_images:
        return
    if curve.guide != "snapshot":
        raise StudyError(f"{place}.guide_images: goes with guide: snapshot, not with {curve.guide}; leave it out")
    *earlier, last = [step * model.batch for step in snapshot_steps(model)]
    if all(abs(images - curve.guide_images) > last / (len(earlier) + 1) / 2 for images in earlier):
        listed = ", ".join(map(str, earlier))
        raise StudyError(f"{place}.guide_images: {of} has no snapshot near {curve.guide_images} images; use {listed}")


def _check_average(place: str, curve: Curve, model: Model) -> None:
    """Refuse an average of the weights that the model neither tracks nor can make from its snapshots."""
    of = f"model {curve.model}"
    if curve.ema_halflife_images and curve.ema_sigma_rel:
        raise StudyError(f"{place}.ema_sigma_rel: a curve has one average; leave this or ema_halflife_images out")
    profile: Profile
    if curve.ema_halflife_images:
        key, of_model, value = "ema_halflife_images", "ema_halflives_images", str(curve.ema_halflife_images)
        profile = HalfLife(curve.ema_halflife_images, model.ema_ramp_up)
        same = model.model_copy(update={key: curve.ema_halflife_images})
        if same.longest_average_images == model.longest_average_images:
            raise StudyError(
                f"{place}.{key}: over {model.own_images} images this is the model's own average; leave it out"
            )
    elif curve.ema_sigma_rel:
        key, of_model, value = "ema_sigma_rel", "ema_sigma_rels", str(curve.ema_sigma_rel)
        profile = Power(curve.ema_sigma_rel)
    else:
        return
    _, *tracked = profiles(model)
    if profile in tracked:
        return
    if not model.snapshots:
        raise StudyError(
            f"{place}.{key}: {of} does not track {value}; add it to its {of_model}, or give it two ema_sigma_rels and "
            "snapshots, from which other averages are made"
        )
    if (error := synthesis_of(model, profile).error) > LARGEST_ERROR:
        raise StudyError(
            f"{place}.{key}: the snapshots of {of} give {value} with an error of {error:.0%}; add it to its "
            f"{of_model}, or take more snapshots or ema_sigma_rels"
        )


def common_samples(curves: dict[str, Curve]) -> int:
    """The number of samples behind every score. Refuses curves that differ in it: their scores are not comparable."""
    first, *others = curves
    for other in others:
        if curves[other].samples != curves[first].samples:
            raise StudyError(
                f"curves.{other}.samples: {curves[other].samples}, but curves.{first} has {curves[first].samples}; "
                "distances are comparable only at equal counts, so give all curves the same"
            )
    return curves[first].samples


def check_sets(study: Study, curves: dict[str, Curve]) -> None:
    """Refuse image sets that share a name with a curve, or a name in figures with a curve or another set."""
    for name, images in study.sets.items():
        if name in curves:
            raise StudyError(f"sets.{name}: a curve already has this name; rename the set")
        label = images.method or name
        if label in [row.method or other for other, row in (curves | study.sets).items() if other != name]:
            raise StudyError(f"sets.{name}.method: another row is already called {label!r}; choose another name")


def check_likelihood(study: Study, models: dict[str, Model]) -> None:
    """Refuse a likelihood of models, data or sampler choices that have none."""
    row, source = study.likelihood, study.data.source
    if row is None:
        return
    try:
        check_solver(row)
    except StudyError as error:
        raise StudyError(f"likelihood.{error}") from None
    if source in POINTS and row.dequantization not in (None, "none"):
        raise StudyError(f"likelihood.dequantization: {source} are points, which are continuous; leave it out")
    if source not in POINTS and row.dequantization == "none":
        raise StudyError("likelihood.dequantization: pixels have 256 levels and no density; use uniform")
    if row.discretization == "optimised":
        raise StudyError("likelihood.discretization: optimised grids are fitted to sampling; use another")
    if row.guide == "classifier" and not row.build_guidance().idle:
        raise StudyError("likelihood.guide: the trace of a classifier's gradient is not computed; use another guide")
    if row.step_counts[0] < 2:
        raise StudyError(f"likelihood.nfe: {min(row.nfe)} pays for one noise level; a likelihood needs two or more")
    low = row.sigma_range[0]
    for steps, level in ((steps, lowest(row, steps)) for steps in row.step_counts):
        if abs(level / low - 1) > 1e-6:
            raise StudyError(
                f"likelihood.discretization: the lowest of {steps} levels of {row.discretization} is {level:.3g}, but "
                f"the density is measured at sigma_min ({low:.3g}); use another, such as edm"
            )
    for name in row.models:
        check_named("likelihood.models", name, models)
        _check_likelihood_of(row, name, models[name])


def _check_likelihood_of(row: Likelihood, name: str, model: Model) -> None:
    check_of_data("likelihood.models", name, model)
    if model.objective != "denoising":
        raise StudyError(
            f"likelihood.models: {name} has objective {model.objective}, whose answers are no means, so no ODE has its "
            "likelihood; name models with objective denoising"
        )
    curve = row.curve(name, labels="data" if model.labels == "none" else row.labels)
    _check_labels("likelihood", curve, model)
    _check_guide("likelihood", curve, model)
    (low, high), path = row.sigma_range, PARAMETRIZATIONS[model.parametrization]
    for key, sigma, valid in (("sigma_min", low, low >= path.smallest), ("sigma_max", high, high <= path.largest)):
        if not valid:
            raise StudyError(
                f"likelihood.{key}: {sigma:g}, but model {name} with parametrization {model.parametrization} has noise "
                f"levels from {path.smallest:g} to {path.largest:g}; set {key} within them"
            )


def check_published(study: Study) -> None:
    """Refuse published values of curves that the study does not have."""
    for i, row in enumerate(study.published):
        if row.curve not in study.curves:
            raise StudyError(f"published.{i}.curve: no curve {row.curve!r}; {nearest(row.curve, study.curves)}")


def check_with_data(rows: Resolved) -> dict[str, Any]:
    """Refuse rows that do not go with the data: models that cannot be trained, image sets that cannot be compared.

    Returns the summary of a glance at the data set.
    """
    summary = glance(rows.data)
    shape = shape_of(summary)
    images = torch.empty(summary["count"], *shape, device="meta")
    labels = torch.empty(summary["count"], device="meta") if summary["classes"] else None
    for name, autoencoder in rows.autoencoders.items():
        try:
            spec = autoencoder.spec(shape)
            if autoencoder.folder:
                decoder_size(spec)  # builds its network, whose configuration may be of another kind
            if autoencoder.trained and autoencoder.batch > summary["count"]:
                raise StudyError(
                    f"batch: {autoencoder.batch}, but the data set has {summary['count']} images; use fewer"
                )
        except StudyError as error:
            with_key = str(error).partition(":")[0] in AutoencoderRow.model_fields
            place = "." if with_key else ".folder: " if autoencoder.folder else ": "
            raise StudyError(f"autoencoders.{name}{place}{error}") from None
    check_models({name: entry.row for name, entry in rows.models.items()}, summary, images, labels)
    check_measurements(rows, shape, summary["count"])
    for name, row in rows.sets.items():
        place = f"sets.{name}.source"
        other = glance(Data(source=row.source, labels=False), place)
        if shape_of(other)[1:] != shape[1:]:
            raise StudyError(
                f"{place}: {described(shape_of(other))}, but the study's data are {described(shape)}; convert them"
            )
        if other["count"] < rows.samples:
            raise StudyError(
                f"{place}: {other['count']} images, but each score takes {rows.samples}; add images, or lower "
                "`samples` of the curves"
            )
    return summary
