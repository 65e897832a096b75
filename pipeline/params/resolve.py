"""A study file's rows written out in full: bases, defaults, relations between rows, and the state of the files they
name."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.common.errors import StudyError, nearest
from pipeline.common.files import CACHE, content_hash
from pipeline.common.fingerprint import code_hash
from pipeline.common.rows import Row
from pipeline.common.sealed import cached_json
from pipeline.common.text import shortened
from pipeline.data.listing import ARCHIVE_SUFFIX, BUILT_IN
from pipeline.data.watch import watched
from pipeline.diffusion.imports.folders import files_of
from pipeline.diffusion.imports.read import check_sha256, read_network, weights_file
from pipeline.diffusion.networks.registry import KEYS
from pipeline.diffusion.released import CONFIG, WEIGHTS
from pipeline.diffusion.spec import Spec
from pipeline.evaluation.curve import Curve, seed_pairs
from pipeline.evaluation.given_rows import PosteriorRow
from pipeline.params.cautions import cautions
from pipeline.params.checks import (
    check_curve,
    check_data,
    check_likelihood,
    check_model,
    check_published,
    check_sets,
    check_teacher,
    check_with_data,
    common_samples,
    teaching_key,
)
from pipeline.params.checks_common import check_named
from pipeline.params.checks_given import check_posteriors
from pipeline.params.explain import explain
from pipeline.params.null_axes import differences, warnings
from pipeline.params.resolved import CurveEntry, ModelEntry, NamedData, PosteriorEntry, Resolved
from pipeline.params.study import RowType, Study, check_defaults, refuse_filled_in
from pipeline.sampling.row import Sampler
from pipeline.training.autoencoder_row import AutoencoderRow
from pipeline.training.row import NETWORK_KEYS, Model

COMBINATIONS = "combinations"
OWN = ("method", "import", "sha256")  # keys that a row does not inherit
MOST_BASES = 100  # in a chain
MOST_NESTED = 8  # rows whose teacher, or the row whose cost they have, is such a row again

Written = dict[str, dict[str, Any] | None]  # the rows of a section, as the study file has them


def resolve(study: Study) -> Resolved:
    """Write out every row of a study in full. A row inherits from the base that it names, then from the defaults.

    Raises StudyError, one line that says where and what. The data are not read, see `resolve_with_data`; of networks
    that rows import, the settings are.
    """
    check_defaults(study.defaults, "defaults")
    check_data(study)
    rows = {name: _in_space(study, name, row) for name, row in _rows(study, "models", Model).items()}
    rows = {name: _with_released(name, row) for name, row in rows.items()}
    curves = _cascaded(_rows(study, "curves", Curve))
    posteriors = _rows(study, "posteriors", PosteriorRow)
    done: dict[str, Model] = {}
    models = {name: _complete(study, rows, name, done) for name in rows}
    for name in curves:
        check_curve(study, name, curves, models)
    samples = common_samples(curves)
    check_sets(study, curves)
    check_likelihood(study, models)
    check_posteriors(study, posteriors, models)
    check_published(study)
    source = study.data.source
    known = source in BUILT_IN or source.lower().endswith(ARCHIVE_SUFFIX)  # an archive must have CIFAR-10's sha256
    return Resolved(
        title=study.title,
        study=study.study,
        preset=study.preset,
        named_data=NamedData(source=Path(source).name, built_in=known, limit=study.data.limit),
        samples=samples,
        models={name: _model_entry(study, name, models) for name in models},
        curves={name: _curve_entry(study, name, curves, models) for name in curves},
        autoencoders=study.autoencoders,
        sets=study.sets,
        likelihood=study.likelihood and study.likelihood.filled(),
        measurements=study.measurements,
        posteriors={name: _posterior_entry(study, name, posteriors, models) for name in posteriors},
        given=study.given,
        published=study.published,
        report=study.report,
        warnings=tuple(_warnings(study, models, curves)),
        data=study.data,
        features=study.features,
        grids={name: _fitted_ranges(name, curves) for name in models},
    )


def resolve_with_data(study: Study) -> tuple[Resolved, dict[str, Any]]:
    """`resolve`, with the digests of the user's files filled in, and the summary of a glance at the data set.

    Raises StudyError also if a row cannot be trained on the data, or a file cannot be read.
    """
    rows = resolve(study)
    summary = check_with_data(rows)
    features = rows.features
    if features.weights:
        content = _content(features.weights, "features.weights")
        features = features.model_copy(update={"content": content})
    autoencoders = {
        name: row.model_copy(update={"content": _content_of_released(row.folder, f"autoencoders.{name}.folder")})
        for name, row in rows.autoencoders.items()
    }
    contents = {
        "autoencoders": autoencoders,
        "models": {
            name: entry.model_copy(update={"row": with_autoencoders(entry.row, autoencoders)})
            for name, entry in rows.models.items()
        },
        "data": rows.data.model_copy(update={"content": _content(rows.data.source, "data.source")}),
        "features": features,
        "sets": {
            name: row.model_copy(update={"content": _content(row.source, f"sets.{name}.source")})
            for name, row in rows.sets.items()
        },
    }
    return rows.model_copy(update=contents), summary


def _content(source: str, place: str) -> str:
    """The digest of the files that a study names in `place`."""
    try:
        return watched(source)
    except StudyError as error:
        raise StudyError(f"{place}: {error}") from None


def _content_of_released(folder: str | None, place: str) -> str:
    """The digest of a folder of an autoencoder; "" without one."""
    return content_hash(*(_content(f"{folder}/{name}", place) for name in (CONFIG, WEIGHTS))) if folder else ""


def with_autoencoders(row: Model, autoencoders: dict[str, AutoencoderRow]) -> Model:
    """A model row, and the rows that it needs, with the autoencoder of its space."""
    needed = {key: getattr(row, key) for key in ("teacher", "like") if getattr(row, key)}
    update: dict[str, Any] = {key: with_autoencoders(other, autoencoders) for key, other in needed.items()}
    if row.space:
        update["autoencoder"] = autoencoders[row.space]
    return row.model_copy(update=update)


def _chain(rows: Written, name: str, section: str) -> list[str]:
    """A row, the base that it names, the base of that one, and so on."""
    chain = [name]
    while (base := (rows[chain[-1]] or {}).get("base")) is not None:
        place = f"{section}.{chain[-1]}.base"
        if not isinstance(base, str) or base not in rows:
            raise StudyError(f"{place}: no row {shortened(repr(base))}; {nearest(base, rows)}")
        if base in chain:
            raise StudyError(f"{place}: the bases {' -> '.join((*chain, base))} form a circle; remove one of them")
        if len(chain) > MOST_BASES:
            raise StudyError(f"{place}: {name} has more than {MOST_BASES} bases in a chain; name an earlier row")
        chain.append(base)
    return chain


def _inherited(rows: Written, name: str, section: str) -> dict[str, Any]:
    """The keys of a row and of all its bases; the row's own override theirs. OWN keys are not inherited."""
    keys: dict[str, Any] = {}
    for heir in reversed(_chain(rows, name, section)):
        keys = {key: value for key, value in keys.items() if key not in OWN} | (rows[heir] or {})
    keys.pop("base", None)
    return keys


def _base(rows: Written, name: str) -> str:
    """The row that a row is compared with: the base that it names, else the first row of the section."""
    return (rows[name] or {}).get("base") or next(iter(rows))


def _names_base(rows: Written, name: str) -> bool:
    return (rows[name] or {}).get("base") is not None


def _rows(study: Study, section: str, schema: RowType) -> dict[str, Any]:
    """Every row of a section as a validated object."""
    written: Written = getattr(study, section)
    defaults = study.defaults.get(section, {})
    rows = {}
    inherited = {name: _inherited(written, name, section) for name in written}
    for name, keys in inherited.items():
        full = _defaults(defaults, keys, schema) | keys
        refuse_filled_in(full, f"{section}.{name}")
        try:
            rows[name] = schema(**full)
        except ValidationError as error:
            raise explain(error, f"{section}.{name}", schema) from None
        except ArithmeticError as error:
            raise StudyError(f"{section}.{name}: its numbers lead out of the range of float64: {error}") from None
    return rows


def _defaults(defaults: dict[str, Any], row: dict[str, Any], schema: RowType) -> dict[str, Any]:
    """The defaults that apply to a row: not those for other networks than its own, and none to an imported one."""
    if schema is not Model:
        return defaults
    if row.get("import") is not None:
        return {}
    network = row.get("network", defaults.get("network", schema.model_fields["network"].default))
    others = NETWORK_KEYS - set(KEYS[network]) if isinstance(network, str) and network in KEYS else set()
    return {key: value for key, value in defaults.items() if key not in others}


def _in_space(study: Study, name: str, row: Model) -> Model:
    """A model row with the autoencoder that it names."""
    if row.space is None:
        return row
    check_named(f"models.{name}.space", row.space, study.autoencoders, "autoencoder")
    return row.model_copy(update={"autoencoder": study.autoencoders[row.space]})


def _with_released(name: str, row: Model) -> Model:
    """A model row with what the file of the network that it imports says."""
    if row.import_ is None:
        return row
    path = Path(row.import_).expanduser()
    try:
        files = [Path(file) for file in (files_of(path) if path.is_dir() else [weights_file(path)])]
        hashes = {file: watched(str(file)) for file in files}
        found = hashes[weights_file(path)]
        if row.sha256:
            check_sha256(path, row.sha256, found)
        key = content_hash(*hashes.values(), code_hash("pipeline.diffusion.imports.read"))
        record = cached_json(CACHE / "imports" / f"{key}.json", lambda: read_network(path).spec.record())
    except StudyError as error:
        raise StudyError(f"models.{name}.import: {error}") from None
    return row.with_released(found, Spec.of(record))


def _cascaded(curves: dict[str, Curve]) -> dict[str, Curve]:
    """Curve rows with the stages before them."""

    def with_earlier(name: str, later: tuple[str, ...] = ()) -> Curve:
        row = curves[name]
        if row.after is None:
            return row
        place = f"curves.{name}.after"
        check_named(place, row.after, curves, "curve")
        if row.after in (*later, name):
            circle = " after ".join((*later, name, row.after))
            raise StudyError(f"{place}: the stages {circle} form a circle; name a curve of a smaller resolution")
        if len(later) > MOST_NESTED:
            raise StudyError(f"{place}: more than {MOST_NESTED} stages in a cascade; use fewer")
        earlier = with_earlier(row.after, (*later, name)).filled()
        return row.model_copy(update={"earlier": earlier.model_copy(update={"method": None})})

    return {name: with_earlier(name) for name in curves}


def _with_teacher(study: Study, models: dict[str, Model], name: str, done: dict[str, Model]) -> Model:
    """A model row with its teacher, if it learns from one: the base that it names. done: as for `_complete`."""
    row = models[name]
    if not row.needs_teacher:
        return row
    key = teaching_key(row)
    written = study.models[name] or {}
    base = written.get("base")
    if base is None:
        raise StudyError(f"models.{name}.{key}: {getattr(row, key)} learns from a trained model; name that row as base")
    if key not in written:  # the row inherits it, and with it the teacher
        teacher, which = _with_teacher(study, models, base, done).teacher, f"the teacher of base {base}"
    else:
        teacher, which = _complete(study, models, base, done), f"base {base}"
    if teacher and teacher.released:
        row = _without_network(row, written, f"models.{name}", which)
    check_teacher(row, teacher, f"models.{name}", which)
    row = row.model_copy(update={"teacher": teacher})
    least = row.batch * max(len(row.rounds), row.snapshots, 1)
    if row.budget == "total" and row.own_images < least:
        taken = teacher.total_images if teacher else 0
        raise StudyError(
            f"models.{name}.images: {row.images} in all, of which the teacher takes {taken}; use at least "
            f"{taken + least}, or budget: own"
        )
    return row


def _without_network(row: Model, written: dict[str, Any], place: str, which: str) -> Model:
    """A student of an imported network, whose own keys of a network are the defaults."""
    if own := [key for key in written if key == "network" or key in NETWORK_KEYS]:
        raise StudyError(f"{place}.{own[0]}: the network is that of {which}; leave it out")
    defaults = {key: Model.model_fields[key].default for key in ("network", *NETWORK_KEYS)}
    return row.model_copy(update=defaults)


def _complete(study: Study, models: dict[str, Model], name: str, done: dict[str, Model]) -> Model:
    """A model row with the other rows that it needs: its teacher, and the row whose cost its network must have.

    done: the rows that are complete, which this one is added to.
    """
    if name not in done:
        done[name] = row = _with_like(study, models, name, done)
        if _nested(row) > MOST_NESTED:
            key = "equal" if row.like and _nested(row.like) == MOST_NESTED else teaching_key(row)
            raise StudyError(f"models.{name}.{key}: more than {MOST_NESTED} rows need each other in turn; use fewer")
    return done[name]


def _nested(row: Model) -> int:
    return max((1 + _nested(other) for other in (row.teacher, row.like) if other), default=0)


def _with_like(study: Study, models: dict[str, Model], name: str, done: dict[str, Model]) -> Model:
    row = _with_teacher(study, models, name, done)
    check_model(study, name, row)
    if not row.equal:
        return row
    if "channels" in (study.models[name] or {}):
        raise StudyError(f"models.{name}.channels: equal: {row.equal} chooses the channels; leave one of the two out")
    base = _base(study.models, name)
    if base == name:
        raise StudyError(
            f"models.{name}.equal: the first row has no base whose {row.equal} its network could have; leave it out"
        )
    return row.model_copy(update={"like": _complete(study, models, base, done)})


def _model_differences(row: Model, base: Model) -> dict[str, Any]:
    """The design choices in which a model row differs from its base; another teacher teaches something else. The
    training of an imported network is unknown."""
    key, changed = teaching_key(row if row.teacher else base), differences(row, base)
    if row.import_ is not None:
        return {name: value for name, value in changed.items() if name in ("sha256", "parametrization", "labels")}
    changed.pop("sha256", None)
    return changed | ({key: getattr(row, key)} if row.teacher != base.teacher else {})


def _titles(schema: type[Row], keys: dict[str, Any]) -> set[str]:
    return {schema.model_fields[key].title or "" for key in keys}


def _axis(titles: set[str]) -> str:
    """The axis of a row, from the titles of the choices in which it differs from its base."""
    return COMBINATIONS if len(titles) > 1 else next(iter(titles), "")


def _model_entry(study: Study, name: str, models: dict[str, Model]) -> ModelEntry:
    base = _base(study.models, name)
    changed = _model_differences(models[name], models[base])
    return ModelEntry(
        base=base,
        differences=changed,
        axis=_axis(_titles(Model, changed)),
        explicit=_names_base(study.models, name),
        row=models[name],
    )


def _curve_entry(study: Study, name: str, curves: dict[str, Curve], models: dict[str, Model]) -> CurveEntry:
    base, row = _base(study.curves, name), curves[name]
    changed = differences(row, curves[base])
    titles = _titles(Curve, changed)
    if row.model != curves[base].model:
        of_models = _model_differences(models[row.model], models[curves[base].model])
        changed, titles = of_models | changed, titles | _titles(Model, of_models)
    train_seeds = row.train_seeds or models[row.model].train_seeds
    seeds = tuple(seed_pairs(train_seeds, row.sample_seeds, row.repetitions))
    return CurveEntry(
        base=base,
        differences=changed,
        axis=_axis(titles),
        explicit=_names_base(study.curves, name),
        row=row.filled().model_copy(update={"train_seeds": train_seeds, "seeds": seeds}),
    )


def _posterior_entry(
    study: Study, name: str, rows: dict[str, PosteriorRow], models: dict[str, Model]
) -> PosteriorEntry:
    base, row = _base(study.posteriors, name), rows[name]
    changed = differences(row, rows[base])
    return PosteriorEntry(
        base=base,
        differences=changed,
        axis=_axis(_titles(PosteriorRow, changed)),
        explicit=_names_base(study.posteriors, name),
        row=row.filled(),
    )


def _fitted_ranges(model: str, curves: dict[str, Curve]) -> tuple[tuple[float, float], ...]:
    """The noise ranges of a model's curves with a fitted grid, each once."""
    fitted = [row for row in curves.values() if row.model == model and row.discretization == "optimised"]
    return tuple(dict.fromkeys(row.sigma_range for row in fitted))


def _warnings(study: Study, models: dict[str, Model], curves: dict[str, Curve]) -> list[str]:
    """Warnings of choices that change nothing, or that do not suit a model.

    The first row of a section is compared with the defaults.
    """
    plain = Model(**_defaults(study.defaults.get("models", {}), {}, Model))
    model_bases = {name: models[base] if (base := _base(study.models, name)) != name else plain for name in models}
    curve_bases = {name: curves[base] if (base := _base(study.curves, name)) != name else Sampler() for name in curves}
    return [*warnings(models, model_bases, curves, curve_bases), *cautions(models, curves, study.likelihood)]
