"""The study file: params.yaml to validated rows, written out in full. The only place where it is read."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, PositiveInt, StringConstraints, ValidationError

from pipeline.data import Data
from pipeline.errors import StudyError, nearest
from pipeline.features import Features
from pipeline.imageset import ImageSet, Label
from pipeline.model import Model
from pipeline.null_axes import differences, warnings
from pipeline.parametrization import PARAMETRIZATIONS
from pipeline.rows import Row, Seeds
from pipeline.sampler import Sampler

__all__ = ["Curve", "Model", "Sampler", "Study", "read_study", "resolve"]

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]{1,60}$")]
COMBINATIONS = "combinations"


class Curve(Sampler):
    """A sampler row on one model, measured over NFE budgets. `method` names it in the headline figure.

    `repetitions`: training and sampling seeds side by side, or each with each.
    """

    model: Name
    method: Label | None = None
    samples: Annotated[int, Field(ge=40)] = 1024
    batch: PositiveInt = 512
    sample_seeds: Seeds = (0, 1, 2)
    repetitions: Literal["paired", "crossed"] = "paired"


class StudyInfo(Row):
    """Names of the study; `root` is the way from its dvc.yaml to the repository's root, `params` the way back here."""

    name: Name
    root: str = "."
    params: str = "params.yaml"


class Study(Row):
    """A whole study file. Rows stay as written; `resolve` fills them in."""

    title: Annotated[str, StringConstraints(min_length=1, max_length=200)] = "What a design choice buys"
    study: StudyInfo
    data: Data = Data()
    features: Features = Features()
    defaults: dict[str, dict[str, Any]] = Field(default_factory=dict)
    models: Annotated[dict[Name, dict[str, Any] | None], Field(min_length=1)]
    curves: Annotated[dict[Name, dict[str, Any] | None], Field(min_length=1)]
    sets: dict[Name, ImageSet] = Field(default_factory=dict)


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader to which a key written twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [(key.tag, key.value) for key, _ in node.value]
        twice = [key for i, key in enumerate(keys) if key in keys[:i] and isinstance(node.value[i][0], yaml.ScalarNode)]
        if twice:
            raise yaml.MarkedYAMLError(problem=f"the key {twice[0][1]!r} stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)  # resolves merge keys (<<), which may repeat


def _explain(error: ValidationError, place: str, schema: type[Row] | type[Data]) -> StudyError:
    """The first of pydantic's complaints as one line: where, what, and the nearest valid name."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"] if part != "[key]"]
    where = ".".join([place, *location] if place else location)
    value = first["input"]
    match first["type"]:
        case "extra_forbidden":
            for part in location[:-1]:
                annotation = schema.model_fields[part].annotation if part in schema.model_fields else schema
                inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type)]
                schema = next((a for a in inner if issubclass(a, Row | Data)), schema)
            is_row = issubclass(schema, Model | Sampler)
            keys = [key for key in schema.model_fields if key != "teacher"] + (["base"] if is_row else [])
            message = f"unknown key; {nearest(location[-1], keys)}"
        case "literal_error":
            choices = re.findall(r"'([^']*)'", first["ctx"]["expected"])
            message = f"unknown value {value!r}; {nearest(value, choices)}"
        case "missing":
            message = "missing"
        case "value_error":
            message = str(first["ctx"]["error"])
        case "string_pattern_mismatch" if first["loc"][-1:] == ("[key]",):
            message = "a name has 1 to 60 letters, digits and underscores"
        case _:
            message = f"{first['msg'][0].lower()}{first['msg'][1:]}, not {value!r}"
    return StudyError(f"{where}: {message}")


def read_study(path: Path) -> Study:
    """Read and validate a study file's outline. Raises StudyError, one line saying where and what."""
    try:
        content = yaml.load(path.read_text(), _UniqueKeys)
    except FileNotFoundError:
        raise StudyError(f"{path}: no such study file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise StudyError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise StudyError(f"{path}: a study file is a mapping with the keys {', '.join(Study.model_fields)}")
    try:
        study = Study(**{str(key): value for key, value in content.items()})
    except ValidationError as error:
        raise _explain(error, "", Study) from None
    if "sets" not in content:
        raise StudyError(f"{path}: sets: missing; where there are none, write `sets: {{}}`, which dvc.yaml goes by")
    return study


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
    unknown = [key for key in defaults if key not in schema.model_fields]
    if unknown:
        raise StudyError(f"defaults.{section}.{unknown[0]}: unknown key; {nearest(unknown[0], schema.model_fields)}")
    resolved = {}
    for name in rows:
        try:
            resolved[name] = schema(**{str(k): v for k, v in (defaults | _written(rows, name, section)).items()})
        except ValidationError as error:
            raise _explain(error, f"{section}.{name}", schema) from None
    return resolved


def _taught(study: Study, models: dict[str, Model], name: str) -> Model:
    """A model row with its teacher, where it takes pairs from one: the base that it names."""
    row = models[name]
    if row.teacher:
        raise StudyError(f"models.{name}.teacher: not for rows to say; pairs: reflow takes the base as its teacher")
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
    return _learning(row, _taught(study, models, base), f"models.{name}", f"base {base}")


def _learning(row: Model, teacher: Model | None, place: str, which: str) -> Model:
    """A row with its teacher, which has all of its seeds."""
    if missing := set(row.train_seeds) - set(teacher.train_seeds if teacher else ()):
        raise StudyError(f"{place}.train_seeds: the {which} has no seed {min(missing)} to take pairs from")
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
    for section in study.defaults:
        if section not in ("models", "curves"):
            raise StudyError(f"defaults.{section}: unknown key; {nearest(section, ('models', 'curves'))}")
    models, curves = _rows(study, "models", Model), _rows(study, "curves", Curve)
    models = {name: _taught(study, models, name) for name in models}
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
    for name, found in relation.items():
        report["models"][name] = out[f"models/{name}"] | _filed(found["base"], found["differences"], found["titles"])
    return out | {"report": report}


def _null_axes(study: Study, models: dict[str, Model], curves: dict[str, Curve]) -> list[str]:
    """Warnings of choices that change nothing; the first row of each section is held against the defaults."""
    plain = Model(**study.defaults.get("models", {}))
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


def seed_pairs(
    train_seeds: tuple[int, ...], sample_seeds: tuple[int, ...], repetitions: str = "paired"
) -> list[tuple[int, int]]:
    """(train seed, sample seed) of each repetition: both lists side by side, the shorter one going round again.

    Crossed, every training seed with every sampling seed, which tells what either adds to the spread.
    """
    if repetitions == "crossed":
        return [(train, sample) for train in train_seeds for sample in sample_seeds]
    count = max(len(train_seeds), len(sample_seeds))
    return [(train_seeds[i % len(train_seeds)], sample_seeds[i % len(sample_seeds)]) for i in range(count)]
