"""A study file's rows written out in full: bases and defaults, how rows relate, and what `resolve` writes."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.common.errors import StudyError, nearest
from pipeline.common.rows import Row
from pipeline.data.listing import ARCHIVE_SUFFIX
from pipeline.data.sources import SOURCES
from pipeline.diffusion.networks.registry import KEYS
from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.evaluation.curve import Curve, seed_pairs
from pipeline.params.checks import check_curve, check_data, check_model, check_published, check_sets, common_samples
from pipeline.params.explain import FILLED_IN, explain
from pipeline.params.null_axes import differences, warnings
from pipeline.params.resolved import CurveEntry, ModelEntry, NamedData, Resolved
from pipeline.params.study import Study, check_defaults
from pipeline.sampling.row import Sampler
from pipeline.training.row import NETWORK_KEYS, Model

COMBINATIONS = "combinations"


def resolve(study: Study) -> Resolved:
    """Every row of a study written out in full.

    A row inherits from the base that it names, then from the defaults. Raises StudyError, one line saying where and
    what.
    """
    check_defaults(study.defaults, "defaults")
    check_data(study)
    written, curves = _rows(study, "models", Model), _rows(study, "curves", Curve)
    models = {name: _complete(study, written, name) for name in written}
    for name in curves:
        check_curve(study, name, curves, models)
    samples = common_samples(curves)
    check_sets(study, curves)
    check_published(study)
    return Resolved(
        title=study.title,
        study=study.study,
        preset=study.preset,
        named_data=NamedData(
            source=Path(study.data.source).name, built_in=built_in(study.data.source), limit=study.data.limit
        ),
        samples=samples,
        models={name: _model_entry(study, name, models) for name in models},
        curves={name: _curve_entry(study, name, curves, models) for name in curves},
        sets=study.sets,
        published=study.published,
        warnings=tuple(_null_axes(study, models, curves)),
        data=study.data,
        features=study.features,
        grids={name: _ranges(name, curves) for name in models},
    )


def built_in(source: str) -> bool:
    """Whether a source is known by its name, or, being an archive, by its sha256."""
    return source in SOURCES or source.lower().endswith(ARCHIVE_SUFFIX)


def _ranges(model: str, curves: dict[str, Curve]) -> tuple[tuple[float, float], ...]:
    """The noise ranges of a model's curves whose grids are fitted, each once."""
    fitted = [row for row in curves.values() if row.model == model and row.discretization == "optimised"]
    return tuple(dict.fromkeys(row.sigma_range for row in fitted))


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


def _names_base(rows: dict[str, dict[str, Any] | None], name: str) -> bool:
    return (rows[name] or {}).get("base") is not None


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
    check_model(study, name, row)
    if not row.equal:
        return row
    if "channels" in (study.models[name] or {}):
        raise StudyError(f"models.{name}.channels: equal: {row.equal} finds them; leave one of the two out")
    base = _base(study.models, name)
    if base == name:
        raise StudyError(f"models.{name}.equal: {row.equal} of the base, but the first row has none; leave it out")
    return row.model_copy(update={"like": _complete(study, models, base)})


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


def _axis(changed: dict[str, Any], titles: set[str]) -> str:
    """The title that all changed choices share."""
    if not changed:
        return ""
    return titles.pop() if len(titles) == 1 else COMBINATIONS


def _titles(schema: type[Row], keys: dict[str, Any]) -> set[str]:
    return {schema.model_fields[key].title or "" for key in keys}


def _model_entry(study: Study, name: str, models: dict[str, Model]) -> ModelEntry:
    base = _base(study.models, name)
    changed = _differences(models[name], models[base])
    axis, explicit = _axis(changed, _titles(Model, changed)), _names_base(study.models, name)
    return ModelEntry(base=base, differences=changed, axis=axis, explicit=explicit, row=models[name])


def _curve_entry(study: Study, name: str, curves: dict[str, Curve], models: dict[str, Model]) -> CurveEntry:
    base, row = _base(study.curves, name), curves[name]
    changed = differences(row, curves[base])
    titles = _titles(Curve, changed)
    if row.model != curves[base].model:
        of_models = _differences(models[row.model], models[curves[base].model])
        changed, titles = of_models | changed, titles | _titles(Model, of_models)
    seeds = tuple(seed_pairs(models[row.model].train_seeds, row.sample_seeds, row.repetitions))
    full = row.filled().model_copy(update={"seeds": seeds})
    axis, explicit = _axis(changed, titles), _names_base(study.curves, name)
    return CurveEntry(base=base, differences=changed, axis=axis, explicit=explicit, row=full)


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
