"""What can't go together across the rows of a study, as one line that says where and what."""

from difflib import get_close_matches
from pathlib import Path

from pipeline.common.errors import StudyError, nearest
from pipeline.data.listing import unknown_source
from pipeline.data.points import POINTS
from pipeline.data.sources import SOURCES
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
from pipeline.evaluation.curve import Curve
from pipeline.metrics.extractors.extractor import check_suits
from pipeline.params.study import Study
from pipeline.training.row import Model

EMA_KEYS = (("ema_halflife_images", "ema_halflives_images"), ("ema_sigma_rel", "ema_sigma_rels"))  # curves', models'


def check_data(study: Study) -> None:
    """Refuse a source with a typo, an extractor of another kind of data, and image sets beside points."""
    _check_source(study.data.source)
    points = study.data.source in POINTS
    check_suits(study.features.extractor, points)
    if points and study.sets:
        raise StudyError(f"sets.{next(iter(study.sets))}: a set holds images, and {study.data.source} are points")


def _check_source(source: str) -> None:
    """Refuse a built-in data set's name with a typo, before anything is concluded from it."""
    if source not in SOURCES and get_close_matches(source, SOURCES, n=1) and not Path(source).exists():
        raise StudyError(f"data.source: {unknown_source(source)}")


def check_model(study: Study, name: str, row: Model) -> None:
    """Refuse what a row's data can't have. Raises StudyError, one line saying where and what."""
    source, points = study.data.source, study.data.source in POINTS
    try:
        check_network(row.network, points, source if points else "the data")
    except StudyError as error:
        raise StudyError(f"models.{name}.{error}") from None
    for key in ("augment", "flip"):
        if points and getattr(row, key):
            raise StudyError(f"models.{name}.{key}: only images have mirror images, and {source} are points; use 0")
    for key, asked in (("labels", row.labels == "classes"), ("classifier_images", row.classifier_images)):
        if asked and not study.data.labels:
            raise StudyError(f"models.{name}.{key}: data.labels is false; leave one of the two out")
    if row.labels == "classes" and row.pairs == "optimal_transport":
        raise StudyError(
            f"models.{name}.pairs: optimal_transport would tie noise to classes, which samples are not to; use "
            "independent, or labels: none"
        )


def check_curve(study: Study, name: str, curves: dict[str, Curve], models: dict[str, Model]) -> None:
    """Refuse a curve that has another one's name in the figures, or asks for what its model can't give."""
    curve = curves[name]
    if curve.method and any(curve.method in (row.method, other) for other, row in curves.items() if other != name):
        raise StudyError(f"curves.{name}.method: {curve.method!r} names another curve already")
    if "model" not in (study.curves[name] or {}):
        raise StudyError(f"curves.{name}.model: missing; every curve names its model itself, for dvc.yaml")
    if curve.model not in models:
        raise StudyError(f"curves.{name}.model: no model {curve.model!r}; {nearest(curve.model, models)}")
    _check_model_of(name, curve, models[curve.model])


def _check_model_of(name: str, curve: Curve, model: Model) -> None:
    """Refuse what the curve's model can't give. Raises StudyError, one line saying where and what."""
    place, of = f"curves.{name}", f"model {curve.model}"
    guided = not curve.build_guidance().idle
    if curve.guide == "unconditional" and guided:
        if model.labels == "none":
            raise StudyError(f"{place}.guidance: {of} is unconditional; give it labels: classes, or take another guide")
        if curve.labels == "none":
            raise StudyError(f"{place}.labels: none leaves nothing to guide to; use data, or guidance 1")
    if curve.guide == "classifier" and not model.classifier_images:
        raise StudyError(f"{place}.guide: {of} has no classifier; say classifier_images in its row")
    if model.labels == "classes" and not model.label_dropout and (key := _unlabelled(curve)):
        raise StudyError(f"{place}.{key}: {of} is asked without labels, which label_dropout 0 never taught it")
    if curve.guide == "classifier" and curve.labels == "none":
        raise StudyError(f"{place}.labels: none leaves a classifier nothing to guide to; use data")
    if curve.guide == "snapshot" and model.snapshots < 2:
        raise StudyError(f"{place}.guide: {of} has no earlier snapshot; say snapshots in its row, 2 or more")
    if curve.guide_images and curve.guide != "snapshot":
        raise StudyError(f"{place}.guide_images: guide {curve.guide} has none; it goes with guide: snapshot")
    taken = [step * model.batch for step in snapshot_steps(model)] if model.snapshots else []
    earlier = [
        i for i in taken[:-1] if curve.guide_images and abs(i - curve.guide_images) <= taken[-1] / len(taken) / 2
    ]
    if curve.guide_images and not earlier:
        at = ", ".join(map(str, taken[:-1]))
        raise StudyError(f"{place}.guide_images: {of} has no earlier snapshot near {curve.guide_images}; it has {at}")
    if curve.labels == "none" and model.labels == "none":
        raise StudyError(f"{place}.labels: {of} is unconditional anyway; leave it out")
    _check_average(place, of, curve, model)


def _unlabelled(curve: Curve) -> str | None:
    """The key by which a curve asks its model without a label, if one does."""
    asked = {
        "guidance": curve.guide == "unconditional" and not curve.build_guidance().idle,
        "labels": curve.labels == "none",
        "discretization": curve.discretization == "optimised",
        "guide": curve.guide == "classifier",
    }
    return next((key for key, value in asked.items() if value), None)


def _check_average(place: str, of: str, curve: Curve, model: Model) -> None:
    if curve.ema_halflife_images and curve.ema_sigma_rel:
        raise StudyError(f"{place}.ema_sigma_rel: ema_halflife_images is said as well; a curve has one average")
    wanted: Profile
    if curve.ema_halflife_images:
        wanted, key, plural = HalfLife(curve.ema_halflife_images, model.ema_ramp_up), *EMA_KEYS[0]
    elif curve.ema_sigma_rel:
        wanted, key, plural = Power(curve.ema_sigma_rel), *EMA_KEYS[1]
    else:
        return
    own = model.longest_average_images
    if model.model_copy(update={"ema_halflife_images": curve.ema_halflife_images or 0}).longest_average_images == own:
        raise StudyError(f"{place}.{key}: over {model.images} images that is the model's own average; leave it out")
    _, *others = profiles(model)
    if wanted in others:
        return
    if not model.snapshots:
        raise StudyError(
            f"{place}.{key}: {of} does not track {getattr(curve, key)}; add it to its {plural}, or give it two "
            "ema_sigma_rels and snapshots, from which other lengths are made"
        )
    if (error := synthesis_of(model, wanted).error) > LARGEST_ERROR:
        raise StudyError(
            f"{place}.{key}: what the snapshots of {of} give for {getattr(curve, key)} would be {error:.0%} off; add "
            f"it to its {plural}, or take more snapshots of more ema_sigma_rels"
        )


def common_samples(curves: dict[str, Curve]) -> int:
    """The number of samples that all curves are measured with: scores at different counts can't be compared."""
    first, *others = curves
    for other in others:
        if curves[other].samples != curves[first].samples:
            raise StudyError(
                f"curves.{other}.samples: {curves[other].samples}, but curves.{first} has {curves[first].samples}; "
                "distances at different counts can't stand in one figure, so give all curves the same"
            )
    return curves[first].samples


def check_sets(study: Study, curves: dict[str, Curve]) -> None:
    """Refuse sets that have a curve's name, or another one's in the figures."""
    for name, images in study.sets.items():
        if name in curves:
            raise StudyError(f"sets.{name}: a curve has this name already")
        labels = [row.method or other for other, row in (curves | study.sets).items() if other != name]
        if (images.method or name) in labels:
            raise StudyError(f"sets.{name}.method: {images.method or name!r} names a curve or another set already")


def check_published(study: Study) -> None:
    """Refuse published values of curves that the study does not have."""
    for i, row in enumerate(study.published):
        if row.curve not in study.curves:
            raise StudyError(f"published.{i}.curve: no curve {row.curve!r}; {nearest(row.curve, study.curves)}")
