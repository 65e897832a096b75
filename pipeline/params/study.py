"""The study file: params.yaml to validated rows, written out in full. The only place where it is read."""

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, StringConstraints, ValidationError

from pipeline.common.errors import StudyError, nearest
from pipeline.common.rows import Name, Row
from pipeline.data.row import Data
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.imageset import ImageSet
from pipeline.metrics.extractors.extractor import Features
from pipeline.params.explain import FILLED_IN, explain
from pipeline.params.needs import Needs, shortfall
from pipeline.training.row import Model

Line = Annotated[str, StringConstraints(min_length=1, max_length=120, pattern=r"^[^\n]*$")]


DEFAULTS: dict[str, type[Model] | type[Curve]] = {"models": Model, "curves": Curve}  # the sections of `defaults`


class StudyInfo(Row):
    """The `study` section: the study's name and paths."""

    name: Name
    """Name of the study, which is also the name of its folders reports/<name> and build/<name>."""
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
    images: PositiveInt | None = None
    """Images that the published network was trained on; null: unknown."""


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
    sets: dict[Name, ImageSet] = Field(default_factory=dict)
    """Images from elsewhere, measured like those of the curves; {} for none."""
    published: tuple[Published, ...] = ()
    """Published values, which the report shows beside those of this study's curves."""


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
        check_defaults({section: own}, f"{place}.defaults")
        defaults[section] = defaults.get(section, {}) | own
    return study.model_copy(update=over | {"defaults": defaults, "needs": preset.needs, "preset": name})


def unmet(study: Study) -> str | None:
    """What the study needs and this machine lacks, in one line; None where it has all."""
    others = {name: preset.needs or Needs() for name, preset in study.presets.items()}
    return shortfall(study.needs, study.preset, others)


def check_defaults(defaults: dict[str, dict[str, Any]], place: str) -> None:
    """Refuse sections that have no rows, and keys that none of their rows has."""
    for section, own in defaults.items():
        if section not in DEFAULTS:
            raise StudyError(f"{place}.{section}: unknown key; {nearest(section, DEFAULTS)}")
        keys = [key for key in DEFAULTS[section].model_fields if key not in FILLED_IN]
        if unknown := [key for key in own if key not in keys]:
            raise StudyError(f"{place}.{section}.{unknown[0]}: unknown key; {nearest(unknown[0], keys)}")
