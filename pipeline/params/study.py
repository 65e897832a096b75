"""The study file: params.yaml to validated rows, written out in full. The only place where it is read."""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, StringConstraints, ValidationError

from pipeline.common.errors import StudyError, nearest
from pipeline.common.rows import Name, Row
from pipeline.data.dataset import ARCHIVE_SUFFIX, SOURCES, Data, unknown_source
from pipeline.data.points import POINTS
from pipeline.diffusion.averages import (
    LARGEST_ERROR,
    HalfLife,
    Power,
    Profile,
    profiles,
    snapshot_steps,
    synthesis_of,
)
from pipeline.diffusion.networks.registry import KEYS, check_network
from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.evaluation.curve import Curve, seed_pairs
from pipeline.evaluation.imageset import ImageSet
from pipeline.metrics.extractors.extractor import Features, check_suits
from pipeline.params.explain import FILLED_IN, explain
from pipeline.params.needs import Needs, shortfall
from pipeline.params.null_axes import differences, warnings
from pipeline.sampling.row import Sampler
from pipeline.training.row import NETWORK_KEYS, Model

__all__ = ["Curve", "Model", "Sampler", "Study", "parse_study", "read_study", "resolve", "unmet"]

Line = Annotated[str, StringConstraints(min_length=1, max_length=120, pattern=r"^[^\n]*$")]
COMBINATIONS = "combinations"
EMA_KEYS = (("ema_halflife_images", "ema_halflives_images"), ("ema_sigma_rel", "ema_sigma_rels"))  # curves', models'


DEFAULTS: dict[str, type[Model] | type[Curve]] = {"models": Model, "curves": Curve}  # the sections of `defaults`


class StudyInfo(Row):
    """Names of the study; `root` is the way from its dvc.yaml to the repository's root, `params` the way back here."""

    name: Name
    root: str = "."
    params: str = "params.yaml"


class Preset(Row):
    """One scale of a study: what is laid over its sections of the same names, key by key."""

    needs: Needs | None = None
    data: dict[str, Any] = Field(default_factory=dict)
    features: dict[str, Any] = Field(default_factory=dict)
    defaults: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Published(Row):
    """A value that others have published, to stand beside a curve's own at `nfe` evaluations.

    `images`: how many their network was trained on, where that is known.
    """

    curve: Name
    nfe: PositiveInt
    value: PositiveFloat
    what: Line
    source: Line
    images: PositiveInt | None = None


class Study(Row):
    """A whole study file, its preset laid over its sections. Rows stay as written; `resolve` fills them in."""

    title: Annotated[str, StringConstraints(min_length=1, max_length=200)] = "What a design choice buys"
    study: StudyInfo
    preset: Name | None = None
    presets: dict[Name, Preset] = Field(default_factory=dict)
    needs: Needs = Needs()
    data: Data = Data()
    features: Features = Features()
    defaults: dict[str, dict[str, Any]] = Field(default_factory=dict)
    models: Annotated[dict[Name, dict[str, Any] | None], Field(min_length=1)]
    curves: Annotated[dict[Name, dict[str, Any] | None], Field(min_length=1)]
    sets: dict[Name, ImageSet] = Field(default_factory=dict)
    published: tuple[Published, ...] = ()


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader to which a key written twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [(key.tag, key.value) for key, _ in node.value]
        twice = [key for i, key in enumerate(keys) if key in keys[:i] and isinstance(node.value[i][0], yaml.ScalarNode)]
        if twice:
            raise yaml.MarkedYAMLError(problem=f"the key {twice[0][1]!r} stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)  # resolves merge keys (<<), which may repeat


def read_study(path: Path) -> Study:
    """Read and validate a study file's outline, its preset laid over it. Raises StudyError, one line saying where and
    what."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise StudyError(f"{path}: no such study file") from None
    except ValueError as error:
        raise StudyError(f"{path}: not valid YAML: {error}") from None
    return parse_study(text, path)


def parse_study(text: str, path: Path) -> Study:
    """What `read_study` makes of a study file's text, which stands, or is to stand, at `path`."""
    try:
        content = yaml.load(text, _UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise StudyError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise StudyError(f"{path}: a study file is a mapping with the keys {', '.join(Study.model_fields)}")
    try:
        study = Study(**{str(key): value for key, value in content.items()})
    except ValidationError as error:
        raise explain(error, "", Study) from None
    if "sets" not in content:
        raise StudyError(f"{path}: sets: missing; where there are none, write `sets: {{}}`, which dvc.yaml goes by")
    return _with_preset(study)


def _with_preset(study: Study) -> Study:
    """A study with its preset laid over its own sections; all presets are looked at, whichever holds."""
    presets = {name: row.model_copy(update={"needs": row.needs or study.needs}) for name, row in study.presets.items()}
    laid = {name: _laid(study, name, preset) for name, preset in presets.items()}
    if study.preset is None:
        return study.model_copy(update={"presets": presets})
    if not laid:
        raise StudyError(f"preset: {study.preset!r}, but there are no presets; write some, or leave it out")
    if study.preset not in laid:
        raise StudyError(f"preset: no preset {study.preset!r}; {nearest(study.preset, laid)}")
    return laid[study.preset].model_copy(update={"presets": presets})


def _laid(study: Study, name: str, preset: Preset) -> Study:
    """A study with one of its presets laid over it, and that preset's name. Raises StudyError for what can't be."""
    place, over = f"presets.{name}", dict[str, Any]()
    for section in ("data", "features"):
        schema: type[Data] | type[Features] = type(getattr(study, section))
        written = getattr(study, section).model_dump(exclude_unset=True) | getattr(preset, section)
        try:
            over[section] = schema(**{str(key): value for key, value in written.items()})
        except ValidationError as error:
            raise explain(error, f"{place}.{section}", schema) from None
    defaults = {section: dict(own) for section, own in study.defaults.items()}
    for section, own in preset.defaults.items():
        _check_defaults({section: own}, f"{place}.defaults")
        defaults[section] = defaults.get(section, {}) | own
    return study.model_copy(update=over | {"defaults": defaults, "needs": preset.needs, "preset": name})


def unmet(study: Study) -> str | None:
    """What the study needs and this machine lacks, in one line; None where it has all."""
    others = {name: preset.needs or Needs() for name, preset in study.presets.items()}
    return shortfall(study.needs, study.preset, others)


def _check_defaults(defaults: dict[str, dict[str, Any]], place: str) -> None:
    """Refuse sections that have no rows, and keys that none of their rows has."""
    for section, own in defaults.items():
        if section not in DEFAULTS:
            raise StudyError(f"{place}.{section}: unknown key; {nearest(section, DEFAULTS)}")
        keys = [key for key in DEFAULTS[section].model_fields if key not in FILLED_IN]
        if unknown := [key for key in own if key not in keys]:
            raise StudyError(f"{place}.{section}.{unknown[0]}: unknown key; {nearest(unknown[0], keys)}")


def _written(
    rows: dict[str, dict[str, Any] | None], name: str, place: str, seen: tuple[str, ...] = ()
) -> dict[str, Any]:
    """What a row says together with all its bases, the row's own word last; a `method` names one row alone."""
    row = dict(rows[name] or {})
    base = row.pop("base", None)
    if base is None:
        return row
    if not isinstance(base, str) or base not in rows:
        raise StudyError(f"{place}.{name}.base: no row {base!r}; {nearest(base, rows)}")
    if base in (*seen, name):
        raise StudyError(f"{place}.{name}.base: the rows {' -> '.join((*seen, name, base))} go round in a circle")
    inherited = _written(rows, base, place, (*seen, name))
    return {key: value for key, value in inherited.items() if key != "method"} | row


def _base(rows: dict[str, dict[str, Any] | None], name: str) -> str:
    """The row that a row differs from: the one it names, else the section's first."""
    return (rows[name] or {}).get("base") or next(iter(rows))


def _rows(study: Study, section: str, schema: type[Model] | type[Curve]) -> dict[str, Any]:
    """Every row of a section as a validated object."""
    rows: dict[str, dict[str, Any] | None] = getattr(study, section)
    defaults = study.defaults.get(section, {})
    resolved = {}
    for name in rows:
        own = _written(rows, name, section)
        written = {str(key): value for key, value in (_defaults(defaults, own, schema) | own).items()}
        if filled := [key for key in FILLED_IN if written.get(key) is not None]:
            raise StudyError(f"{section}.{name}.{filled[0]}: `resolve` fills this key in; leave it out")
        try:
            resolved[name] = schema(**written)
        except ValidationError as error:
            raise explain(error, f"{section}.{name}", schema) from None
    return resolved


def _defaults(defaults: dict[str, Any], own: dict[str, Any], schema: type[Model] | type[Curve]) -> dict[str, Any]:
    """The defaults that a row has: not those of another network than its own."""
    network = (
        own.get("network", defaults.get("network", schema.model_fields["network"].default)) if schema is Model else ""
    )
    others = NETWORK_KEYS - set(KEYS[network]) if network in KEYS else set()
    return {key: value for key, value in defaults.items() if key not in others}


def _check_source(source: str) -> None:
    """Refuse a built-in data set's name with a typo, before anything is concluded from it."""
    if source not in SOURCES and get_close_matches(source, SOURCES, n=1) and not Path(source).exists():
        raise StudyError(f"data.source: {unknown_source(source)}")


def _taught(study: Study, models: dict[str, Model], name: str) -> Model:
    """A model row with its teacher, where it takes pairs from one: the base that it names."""
    row = models[name]
    if row.pairs != "reflow":
        return row
    written = study.models[name] or {}
    base = written.get("base")
    if base is None:
        raise StudyError(f"models.{name}.pairs: reflow takes its pairs from a flow; name that row as the base")
    if "pairs" not in written:  # an heir of a second flow has its teacher, too
        teacher = _taught(study, models, base).teacher
        return _learning(row, teacher, f"models.{name}", f"teacher of base {base}")
    if not PARAMETRIZATIONS[models[base].parametrization].flow:
        raise StudyError(
            f"models.{name}.pairs: reflow takes its pairs from a flow, but the base {base} has parametrization "
            f"{models[base].parametrization}"
        )
    return _learning(row, _complete(study, models, base), f"models.{name}", f"base {base}")


def _complete(study: Study, models: dict[str, Model], name: str) -> Model:
    """A model row with the rows that it needs of others: its teacher, and the one whose cost its network is to have."""
    row = _taught(study, models, name)
    _check_model(study, name, row)
    if not row.equal:
        return row
    if "channels" in (study.models[name] or {}):
        raise StudyError(f"models.{name}.channels: equal: {row.equal} finds them; leave one of the two out")
    base = _base(study.models, name)
    if base == name:
        raise StudyError(f"models.{name}.equal: {row.equal} of the base, but the first row has none; leave it out")
    return row.model_copy(update={"like": _complete(study, models, base)})


def _check_model(study: Study, name: str, row: Model) -> None:
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


def _learning(row: Model, teacher: Model | None, place: str, which: str) -> Model:
    """A row with its teacher, which has all of its seeds."""
    if missing := set(row.train_seeds) - set(teacher.train_seeds if teacher else ()):
        raise StudyError(f"{place}.train_seeds: the {which} has no seed {min(missing)} to take pairs from")
    if teacher and teacher.labels == "classes" and not teacher.label_dropout:
        raise StudyError(
            f"{place}.pairs: reflow asks the {which} without labels, which label_dropout 0 never taught it"
        )
    return row.model_copy(update={"teacher": teacher})


def _differences(row: Model, base: Model) -> dict[str, Any]:
    """The design choices in which a model row differs from its base; another teacher makes other pairs."""
    return differences(row, base) | ({"pairs": row.pairs} if row.teacher != base.teacher else {})


def _titles(schema: type[Row], names: dict[str, Any]) -> set[str]:
    return {schema.model_fields[name].title or "" for name in names}


def resolve(study: Study) -> dict[str, Any]:
    """Every row written out in full, as JSON values: {"data": .., "curves": names, "models/edm": .., "report": ..}.

    "propose": the first model, for which noise is proposed. "grids": the noise ranges for which a grid is to be fitted
    to each model. "report" holds `warnings` of null axes.

    A row carries its `base` (the row it names, else the section's first one), the `differences` from it, and its
    `axis`: the title that all differences share, "combinations" where they share none, and "" where there are none.
    `explicit` tells whether a curve names its base.
    A curve on another model than its base's differs in what that model differs in from its own base.
    Raises StudyError, one line saying where and what.
    """
    _check_defaults(study.defaults, "defaults")
    _check_source(study.data.source)
    points = study.data.source in POINTS
    check_suits(study.features.extractor, points)
    if points and study.sets:
        raise StudyError(f"sets.{next(iter(study.sets))}: a set holds images, and {study.data.source} are points")
    models, curves = _rows(study, "models", Model), _rows(study, "curves", Curve)
    models = {name: _complete(study, models, name) for name in models}
    out: dict[str, Any] = {
        "data": study.data.model_dump(mode="json"),
        "features": study.features.model_dump(mode="json"),
        "models": list(models),
        "curves": list(curves),
    }
    first = next(iter(models))
    out["propose"] = {"model": first, "row": models[first].model_dump(mode="json")}
    relation: dict[str, dict[str, Any]] = {}
    for name, row in models.items():
        base = _base(study.models, name)
        changed = _differences(row, models[base])
        relation[name] = {"base": base, "differences": changed, "titles": _titles(Model, changed)}
        out[f"models/{name}"] = row.model_dump(mode="json")
    fitted: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    report: dict[str, Any] = {
        "title": study.title,
        "study": study.study.model_dump(mode="json"),
        "models": {},
        "curves": {},
        "sets": {},
    }
    for name, curve in curves.items():
        if curve.method and any(curve.method in (row.method, other) for other, row in curves.items() if other != name):
            raise StudyError(f"curves.{name}.method: {curve.method!r} names another curve already")
        if "model" not in (study.curves[name] or {}):
            raise StudyError(f"curves.{name}.model: missing; every curve names its model itself, for dvc.yaml")
        if curve.model not in models:
            raise StudyError(f"curves.{name}.model: no model {curve.model!r}; {nearest(curve.model, models)}")
        _check_curve(name, curve, models[curve.model])
        base = _base(study.curves, name)
        changed, titles = differences(curve, curves[base]), _titles(Curve, differences(curve, curves[base]))
        if curve.model != curves[base].model:
            other = _differences(models[curve.model], models[curves[base].model])
            changed, titles = other | changed, titles | _titles(Model, other)
        seeds = seed_pairs(models[curve.model].train_seeds, curve.sample_seeds, curve.repetitions)
        out[f"curves/{name}"] = curve.filled().model_dump(mode="json", exclude={"method"}) | {"seeds": seeds}
        if curve.discretization == "optimised" and curve.sigma_range not in fitted[curve.model]:
            fitted[curve.model].append(curve.sigma_range)
        report["curves"][name] = out[f"curves/{name}"] | {"method": curve.method} | _filed(base, changed, titles)
        report["curves"][name]["explicit"] = (study.curves[name] or {}).get("base") is not None
    out["grids"] = fitted
    report["samples"] = out["samples"] = _common_samples(curves)
    for name, images in study.sets.items():
        if name in curves:
            raise StudyError(f"sets.{name}: a curve has this name already")
        labels = [row.method or other for other, row in (curves | study.sets).items() if other != name]
        if (images.method or name) in labels:
            raise StudyError(f"sets.{name}.method: {images.method or name!r} names a curve or another set already")
        out[f"sets/{name}"] = images.model_dump(mode="json")
        report["sets"][name] = out[f"sets/{name}"]
    report["warnings"] = _null_axes(study, models, curves)
    report |= _published(study)
    for name, found in relation.items():
        report["models"][name] = out[f"models/{name}"] | _filed(found["base"], found["differences"], found["titles"])
    return out | {"report": report}


def built_in(source: str) -> bool:
    """Whether a source is known for what it is: by its name, or as an archive, of which there is one, by its sha256."""
    return source in SOURCES or source.lower().endswith(ARCHIVE_SUFFIX)


def _published(study: Study) -> dict[str, Any]:
    """What the report needs in order to set published values beside its own; {} where there are none."""
    for i, row in enumerate(study.published):
        if row.curve not in study.curves:
            raise StudyError(f"published.{i}.curve: no curve {row.curve!r}; {nearest(row.curve, study.curves)}")
    if not study.published:
        return {}
    source = study.data.source
    return {
        "published": [row.model_dump(mode="json") for row in study.published],
        "data": {"source": Path(source).name, "built_in": built_in(source), "limit": study.data.limit},
        "preset": study.preset,
    }


def _check_curve(name: str, curve: Curve, model: Model) -> None:
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


def _null_axes(study: Study, models: dict[str, Model], curves: dict[str, Curve]) -> list[str]:
    """Warnings of choices that change nothing; the first row of each section is held against the defaults."""
    plain = Model(**_defaults(study.defaults.get("models", {}), {}, Model))
    rows = {name: Sampler(**row.model_dump(include=set(Sampler.model_fields))) for name, row in curves.items()}
    return warnings(
        {n: (row, models[base] if (base := _base(study.models, n)) != n else plain) for n, row in models.items()},
        {n: (row, rows[base] if (base := _base(study.curves, n)) != n else Sampler()) for n, row in rows.items()},
        {name: row.model for name, row in curves.items()},
        {name for name, row in curves.items() if row.method},
    )


def _common_samples(curves: dict[str, Curve]) -> int:
    """The number of samples that all curves are measured with: scores at different counts can't be compared."""
    first, *others = curves
    for other in others:
        if curves[other].samples != curves[first].samples:
            raise StudyError(
                f"curves.{other}.samples: {curves[other].samples}, but curves.{first} has {curves[first].samples}; "
                "distances at different counts can't stand in one figure, so give all curves the same"
            )
    return curves[first].samples


def _filed(base: str, changed: dict[str, Any], titles: set[str]) -> dict[str, Any]:
    axis = "" if not changed else titles.pop() if len(titles) == 1 else COMBINATIONS
    return {"base": base, "differences": changed, "axis": axis}
