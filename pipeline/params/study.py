"""The study file, params.yaml: its outline, and its content as an object."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError

from pipeline.common.errors import StudyError, nearest
from pipeline.common.rows import Name, PositiveFloat, PositiveInt, Row
from pipeline.data.row import Data
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.given_rows import Given, MeasurementRow, PosteriorRow
from pipeline.evaluation.imageset import ImageSet
from pipeline.evaluation.likelihoods import Likelihood
from pipeline.metrics.extractors.row import Features
from pipeline.params.explain import FILLED_IN, explain
from pipeline.params.needs import Needs, shortfall
from pipeline.params.reading import parse, text_of
from pipeline.sampling.protocols import ENDS, FIRST_STEPS
from pipeline.training.autoencoder_row import AutoencoderRow
from pipeline.training.row import Model

Line = Annotated[str, StringConstraints(min_length=1, max_length=120, pattern=r"^[^\n]*$")]
RowType = type[Model] | type[Curve] | type[PosteriorRow]
DEFAULTS: dict[str, RowType] = {"models": Model, "curves": Curve, "posteriors": PosteriorRow}  # sections of `defaults`
OVERRIDDEN = ("models", "curves")  # the sections whose rows a preset overrides


class StudyInfo(Row):
    """The `study` section: the study's name and paths."""

    name: Name
    """Name of the study, which is also that of its folders `reports/<name>` and `build/<name>`."""
    root: str = "."
    """Path from the study's dvc.yaml to the root of the repository."""
    params: str = "params.yaml"
    """Path from the root of the repository to this file."""


class Preset(Row):
    """A scale of the study: keys that override those of the study's sections of the same names."""

    needs: Needs | None = None
    """What this scale needs of the machine; null: what the study needs."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Keys of `data` that this preset overrides."""
    features: dict[str, Any] = Field(default_factory=dict)
    """Keys of `features` that this preset overrides."""
    defaults: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Keys of `defaults` that this preset overrides."""
    autoencoders: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    """Keys of rows of `autoencoders` that this preset overrides."""
    models: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    """Keys of rows of `models` that this preset overrides; rows based on them inherit these."""
    curves: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    """Keys of rows of `curves` that this preset overrides, except `model`."""
    instead: dict[Literal["models", "curves", "published"], Any] = Field(default_factory=dict)
    """Sections that replace those of the study. Such a preset has a study file of its own, which `--preset` writes."""


class Published(Row):
    """A row of `published`: a value that the report shows beside those of a curve."""

    curve: Name
    """The curve of this study that reproduces the published setting."""
    nfe: PositiveInt
    """Network evaluations of the published value."""
    value: PositiveFloat
    """The published FID."""
    what: Line
    """What was measured: method, network, setting."""
    source: Line
    """Citation: authors, year, arXiv number, table."""
    checked: bool = False
    """Whether somebody has read the value in the text of its source."""
    images: PositiveInt | None = None
    """Images that the published network was trained on; null: unknown."""
    end: Literal[ENDS] | None = None  # type: ignore[valid-type]
    """Where the published sampler ends; null: as the curve does."""
    first_step: Literal[tuple(FIRST_STEPS)] | None = None  # type: ignore[valid-type]
    """The first evaluation of the published sampler; null: as the curve's."""
    depth: PositiveInt | None = None
    """Its evaluations that wait for each other, if others run side by side with them; null: as the curve's."""
    our_nfe: PositiveInt | None = None
    """Evaluations with which the curve visits the same noise levels, if they differ from nfe; null: nfe."""


class Reporting(Row):
    """The `report` section: how the report judges."""

    smallest_effect: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Smallest effect of interest: a ratio of two scores within 1 / (1 + this) and 1 + this is called equivalent."""


class Study(Row):
    """A study file with its preset applied. Rows stay as written; `resolve` fills them in."""

    title: Annotated[str, StringConstraints(min_length=1, max_length=200)] = "What a design choice buys"
    """Title of the report."""
    study: StudyInfo
    """Name and paths of the study, which dvc.yaml reads."""
    preset: Name | None = None
    """The active preset; null: none."""
    presets: dict[Name, Preset] = Field(default_factory=dict)
    """Scales of the study. The active one overrides keys of the sections below."""
    needs: Needs = Needs()
    """What the study needs of the machine."""
    data: Data = Data()
    """The data set."""
    features: Features = Features()
    """The features that distances between images are measured on."""
    defaults: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Values that all rows of a section have unless they, or their bases, override them."""
    models: Annotated[dict[Name, dict[str, Any] | None], Field(min_length=1)]
    """One row for each model; a row says how it differs from its base. The first row is the baseline."""
    curves: Annotated[dict[Name, dict[str, Any] | None], Field(min_length=1)]
    """One sampler row on one model each, measured at budgets of NFE. The first row is the baseline."""
    autoencoders: dict[Name, AutoencoderRow] = Field(default_factory=dict)
    """Autoencoders in whose latents models are trained, one row each; models name them in `space`."""
    sets: dict[Name, ImageSet] = Field(default_factory=dict)
    """Images from elsewhere, measured like those of the curves; {} for none."""
    likelihood: Likelihood | None = None
    """The likelihood of the data under some of the models; null: not measured."""
    measurements: dict[Name, MeasurementRow] = Field(default_factory=dict)
    """What posterior samplers are given, one row for each operator and noise."""
    posteriors: dict[Name, dict[str, Any] | None] = Field(default_factory=dict)
    """Samplers of x0 given a measurement, one row each. The first row is the baseline."""
    given: Given = Given()
    """The problems that posterior samplers solve, and the budget of their tuning."""
    published: tuple[Published, ...] = ()
    """Published values, which the report shows beside those of this study's curves."""
    report: Reporting = Reporting()
    """How the report judges differences."""


def read_study(path: Path) -> Study:
    """Read a study file and apply its preset; rows are validated by `resolve`.

    Raises StudyError, one line that says where and what.
    """
    return parse_study(text_of(path), path)


def parse_study(text: str, path: Path) -> Study:
    """Do the work of `read_study` on the text of a study file; `path` is its place in messages."""
    content = parse(text, path)
    if not isinstance(content, dict):
        raise StudyError(f"{path}: a study file must be a mapping with the keys {', '.join(Study.model_fields)}")
    try:
        study = Study(**content)
    except ValidationError as error:
        raise explain(error, "", Study) from None
    if "sets" not in content:
        raise StudyError(f"{path}: sets: missing; write `sets: {{}}` if there are none, because dvc.yaml reads it")
    rows: dict[str, Row] = {"data": study.data, "features": study.features}
    for section in ("sets", "autoencoders"):
        rows |= {f"{section}.{name}": row for name, row in getattr(study, section).items()}
    for place, row in rows.items():
        refuse_filled_in(row.model_dump(exclude_unset=True), place)
    return _apply_preset(study)


def refuse_filled_in(row: Mapping[str, Any], place: str) -> None:
    """Refuse a row with a key that only `resolve` fills in. Raises StudyError."""
    for key in FILLED_IN:
        if row.get(key) is not None:
            raise StudyError(f"{place}.{key}: `resolve` fills this key in; leave it out")


def _apply_preset(study: Study) -> Study:
    """A study with its active preset applied. Refuses mistakes in all presets, whichever is active."""
    presets = {name: row.model_copy(update={"needs": row.needs or study.needs}) for name, row in study.presets.items()}
    scaled = {name: _overridden(_replaced(study, name, preset), name, preset) for name, preset in presets.items()}
    if study.preset is None:
        return study.model_copy(update={"presets": presets})
    if not presets:
        raise StudyError(f"preset: {study.preset!r}, but the study has no presets; add some, or leave preset out")
    if study.preset in presets and presets[study.preset].instead:
        raise StudyError(
            f"preset: {study.preset} has rows of its own, so it needs a study file of its own; "
            f"run `make study NAME={study.study.name} PRESET={study.preset}`"
        )
    if study.preset not in scaled:
        raise StudyError(f"preset: no preset {study.preset!r}; {nearest(study.preset, scaled)}")
    return scaled[study.preset].model_copy(update={"presets": presets})


def _replaced(study: Study, name: str, preset: Preset) -> Study:
    """A study with the sections that one preset has instead of its own. Raises StudyError."""
    place, instead = f"presets.{name}.instead", {str(section): rows for section, rows in preset.instead.items()}
    own = dict[str, Any](study=study.study, models=study.models, curves=study.curves)
    try:
        found = Study(**own | instead)
    except ValidationError as error:
        raise explain(error, place, Study) from None
    sections = {section: getattr(found, section) for section in instead}
    for section in OVERRIDDEN:
        for row, keys in sections.get(section, {}).items():
            written = {key: value for key, value in (keys or {}).items() if key != "base"}
            _check_keys(written, section, f"{place}.{section}.{row}")
    return study.model_copy(update=sections)


def _overridden(study: Study, name: str, preset: Preset) -> Study:
    """A study with the sections of one preset over its own. Raises StudyError."""
    place, sections = f"presets.{name}", dict[str, Any]()
    for section in ("data", "features"):
        schema: type[Data] | type[Features] = type(getattr(study, section))
        keys = getattr(study, section).model_dump(exclude_unset=True) | getattr(preset, section)
        refuse_filled_in(keys, f"{place}.{section}")
        try:
            sections[section] = schema(**keys)
        except ValidationError as error:
            raise explain(error, f"{place}.{section}", schema) from None
    sections["autoencoders"] = _overridden_autoencoders(study.autoencoders, preset.autoencoders, place)
    defaults = {section: dict(values) for section, values in study.defaults.items()}
    for section, values in preset.defaults.items():
        check_defaults({section: values}, f"{place}.defaults")
        defaults[section] = defaults.get(section, {}) | values
    for section in OVERRIDDEN:
        sections[section] = _overridden_rows(getattr(study, section), getattr(preset, section), f"{place}.{section}")
    return study.model_copy(update=sections | {"defaults": defaults, "needs": preset.needs, "preset": name})


def _overridden_autoencoders(
    rows: Mapping[str, AutoencoderRow], overrides: Mapping[str, dict[str, Any]], place: str
) -> dict[str, AutoencoderRow]:
    """The autoencoders with the keys that a preset overrides in them. Raises StudyError."""
    found = dict(rows)
    for name, keys in overrides.items():
        own = f"{place}.autoencoders.{name}"
        if name not in rows:
            raise StudyError(f"{own}: no such row; {nearest(name, rows)}")
        refuse_filled_in(keys, own)
        try:
            found[name] = AutoencoderRow(**rows[name].model_dump(exclude_unset=True) | keys)
        except ValidationError as error:
            raise explain(error, own, AutoencoderRow) from None
    return found


def _overridden_rows(rows: Mapping[str, Any], overrides: Mapping[str, dict[str, Any]], place: str) -> dict[str, Any]:
    """The rows of a section with the keys that a preset overrides in them. Raises StudyError."""
    section = place.rpartition(".")[2]
    for name, keys in overrides.items():
        if name not in rows:
            raise StudyError(f"{place}.{name}: no such row; {nearest(name, rows)}")
        _check_keys(keys, section, f"{place}.{name}", ("model",))  # dvc.yaml reads a curve's model in its row
    return {name: (row or {}) | overrides[name] if name in overrides else row for name, row in rows.items()}


def check_defaults(defaults: dict[str, dict[str, Any]], place: str) -> None:
    """Refuse sections of `defaults` without rows, and keys that their rows do not have. Raises StudyError."""
    for section, values in defaults.items():
        if section not in DEFAULTS:
            raise StudyError(f"{place}.{section}: unknown key; {nearest(section, DEFAULTS)}")
        _check_keys(values, section, f"{place}.{section}")


def _check_keys(values: Mapping[str, Any], section: str, place: str, without: tuple[str, ...] = ()) -> None:
    """Refuse keys that the rows of a section do not have, and those of `without`. Raises StudyError."""
    fields = DEFAULTS[section].model_fields
    keys = [field.alias or key for key, field in fields.items() if key not in (*FILLED_IN, *without)]
    if unknown := [key for key in values if key not in keys]:
        raise StudyError(f"{place}.{unknown[0]}: unknown key; {nearest(unknown[0], keys)}")


def unmet(study: Study) -> str | None:
    """The need of the study that this machine does not meet, in one line; None if it meets all."""
    others = {name: preset.needs or Needs() for name, preset in study.presets.items()}
    return shortfall(study.needs, study.preset, others)
