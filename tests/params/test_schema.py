"""The JSON Schema of study files: as the models are by now, right about every study here, wrong about no mistake."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from pipeline.data.row import Data
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.given_rows import Given, MeasurementRow, PosteriorRow
from pipeline.evaluation.imageset import ImageSet
from pipeline.evaluation.likelihoods import Likelihood
from pipeline.metrics.extractors.row import Features
from pipeline.params.descriptions import TABLES
from pipeline.params.explain import FILLED_IN
from pipeline.params.needs import Needs
from pipeline.params.resolve import resolve
from pipeline.params.schema import FILE, study_schema, text
from pipeline.params.study import Preset, Published, Reporting, Study, StudyInfo, read_study
from pipeline.training.row import Model
from tests.imports import ROOT

STUDIES = [ROOT / "params.yaml", *sorted(ROOT.glob("studies/*/params.yaml"))]
VALIDATOR = Draft7Validator(study_schema())
GOOD = """
study: {name: t, root: ., params: params.yaml}
preset: small
presets:
  small: {data: {limit: 200}, features: {epochs: 1}, defaults: {models: {batch: 64}, curves: {nfe: [4]}}}
  large: {needs: {gpu_gib: 12.5}}
needs: {gpu_gib: 0}
data: {source: digits, limit: 300}
features: {extractor: classifier}
defaults: {models: {images: 512}, curves: {samples: 40}}
models:
  edm:
  snr: {base: edm, weighting: snr, sigma_data: null}
curves:
  edm: {model: edm, nfe: [4, 7], S_max: .inf}
  rho_3: {base: edm, model: snr, rho: 3}
sets: {theirs: {source: x.zip, nfe: 35}}
measurements: {noisy: {operator: identity, std: 0.5}, box: {operator: mask, std: 1, box: [0, 0, 4, 4]}}
posteriors:
  dps:
  mmps: {base: dps, posterior: mmps, given: [noisy], tune: {iterations: [1, 4]}, nfe: [81]}
given: {problems: 8, draws: 16}
published:
  - {curve: edm, nfe: 35, value: 1.97, what: "EDM", source: "A 2022", images: 7}
report: {smallest_effect: 0.05}
"""


def complaints(study: str) -> list[str]:
    return [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in VALIDATOR.iter_errors(yaml.safe_load(study))]


def test_the_file_is_up_to_date_and_a_json_schema() -> None:
    assert (ROOT / FILE).read_text() == text(), "`make docs` writes it anew"
    Draft7Validator.check_schema(json.loads(text()))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.name)
def test_every_study_names_the_schema_and_validates_against_it(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named and (path.parent / named[1]).resolve() == ROOT / FILE
    assert complaints(path.read_text()) == []


def test_a_study_with_every_kind_of_row_validates_as_it_resolves(tmp_path: Path) -> None:
    (path := tmp_path / "params.yaml").write_text(GOOD)
    resolve(read_study(path))
    assert complaints(GOOD) == []


MISTAKES = {  # what is replaced, by what, the place, a part of the complaint
    "a key with a typo": ("weighting: snr", "weigthing: snr", "models.snr", "'weigthing' was unexpected"),
    "a name with a typo": ("weighting: snr", "weighting: srn", "models.snr.weighting", "'srn' is not one of"),
    "text for a number": ("rho: 3", "rho: three", "curves.rho_3.rho", "'three' is not of type 'number'"),
    "a fraction of an image": ("images: 512", "images: 0.5", "defaults.models.images", "not of type 'integer'"),
    "a truth value": ("rho: 3", "rho: yes", "curves.rho_3.rho", "True is not of type 'number'"),
    "below its bound": ("samples: 40", "samples: 10", "defaults.curves.samples", "less than the minimum of 40"),
    "a number for a list": ("nfe: [4, 7]", "nfe: 4", "curves.edm.nfe", "4 is not of type 'array'"),
    "a budget twice": ("nfe: [4, 7]", "nfe: [4, 4]", "curves.edm.nfe", "has non-unique elements"),
    "no model": ("model: snr, ", "", "curves.rho_3", "'model' is a required property"),
    "a curve of nothing": ("{base: edm, model: snr, rho: 3}", "", "curves.rho_3", "None is not of type 'object'"),
    "what resolve fills in": ("weighting: snr", "teacher: {}", "models.snr", "'teacher' was unexpected"),
    "a base among the defaults": ("samples: 40", "base: edm", "defaults.curves", "'base' was unexpected"),
    "a section with a typo": ("\nsets:", "\nset:", "", "'sets' is a required property"),
    "a name with a dash": ("snr: {", "edm-snr: {", "models", "'edm-snr' does not match"),
    "no models": (
        "models:\n  edm:\n  snr: {base: edm, weighting: snr, sigma_data: null}",
        "models: {}",
        "models",
        "{}",
    ),
    "an extractor of nobody": ("extractor: classifier", "extractor: fid", "features.extractor", "not one of"),
    "a limit of one image": ("limit: 300", "limit: 1", "data.limit", "is not valid under any of the given schemas"),
    "a set without images": ("source: x.zip, ", "", "sets.theirs", "'source' is a required property"),
    "a preset's section": ("{needs: {gpu_gib: 12.5}}", "{sets: {}}", "presets.large", "'sets' was unexpected"),
    "a preset's row": (
        "{needs: {gpu_gib: 12.5}}",
        "{models: {edm: {bach: 64}}}",
        "presets.large.models.edm",
        "'bach' was unexpected",
    ),
    "a preset's model of a curve": (
        "{needs: {gpu_gib: 12.5}}",
        "{curves: {edm: {model: edm}}}",
        "presets.large.curves.edm",
        "'model' was unexpected",
    ),
    "a preset's key": ("batch: 64", "bach: 64", "presets.small.defaults.models", "'bach' was unexpected"),
    "a preset's limit": ("limit: 200", "limit: 1", "presets.small.data.limit", "is not valid under any of the given"),
    "a negative need": ("12.5", "-1", "presets.large.needs.gpu_gib", "less than the minimum of 0"),
    "a need of nobody": ("needs: {gpu_gib: 0}", "needs: {gpu: 0}", "needs", "'gpu' was unexpected"),
    "a published value of nothing": ("value: 1.97, ", "", "published.0", "'value' is a required property"),
    "an operator with a typo": ("identity", "identty", "measurements.noisy.operator", "'identty' is not one of"),
    "a measurement without noise": (
        "std: 0.5",
        "std: 0",
        "measurements.noisy.std",
        "less than or equal to the minimum",
    ),
    "a measurement of nothing": (", std: 1,", ",", "measurements.box", "'std' is a required property"),
    "a method with a typo": ("posterior: mmps", "posterior: mpms", "posteriors.mmps.posterior", "is not one of"),
    "a range of one value": ("[1, 4]", "[1]", "posteriors.mmps.tune.iterations", "too short"),
    "few problems": ("problems: 8", "problems: 1", "given.problems", "less than the minimum of 4"),
    "no name": ("{name: t, root: .,", "{root: .,", "study", "'name' is a required property"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_typical_mistake_is_told_at_its_place(case: str) -> None:
    old, new, place, cause = MISTAKES[case]
    assert GOOD.count(old) == 1
    lines = complaints(GOOD.replace(old, new))
    assert any(line.startswith(f"{place}: ") and cause in line for line in lines), lines


def properties(*place: str) -> dict[str, Any]:
    """The keys of the rows at a place of the schema, references resolved."""
    whole: Any = study_schema()
    part = whole["properties"]
    for key in place:
        part = part[key]
    part = next(iter(part["patternProperties"].values())) if "patternProperties" in part else part.get("items", part)
    names = {key: row.get("$ref", "").rpartition("/")[2] for key, row in part["properties"].items()}
    return {key: whole["definitions"].get(names[key], row) for key, row in part["properties"].items()}


ROWS: dict[Any, tuple[str, ...]] = {
    StudyInfo: ("study",), Data: ("data",), Features: ("features",), Model: ("models",), Curve: ("curves",),
    ImageSet: ("sets",), Needs: ("needs",), Preset: ("presets",), Published: ("published",),
    Likelihood: ("likelihood",), Reporting: ("report",), MeasurementRow: ("measurements",),
    PosteriorRow: ("posteriors",), Given: ("given",),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.__name__)
def test_every_key_that_can_be_written_is_described_and_no_other(row: Any) -> None:
    keys = properties(*ROWS[row])
    written = {field.alias or key for key, field in row.model_fields.items()}
    assert set(keys) - {"base"} == written - set(FILLED_IN)
    assert all(key["description"] for key in keys.values())


def test_every_section_of_a_study_is_described() -> None:
    sections = study_schema()["properties"]
    assert set(sections) == set(Study.model_fields) and all(part["description"] for part in sections.values())


def test_rows_complete_with_names_descriptions_and_defaults() -> None:
    keys = properties("models")
    assert keys == {"base": keys["base"]} | properties("defaults", "properties", "models")
    assert set(Model.model_fields["noise"].annotation.__args__) == set(keys["noise"]["enum"])  # type: ignore[union-attr]
    for name, field in Model.model_fields.items():
        if name not in FILLED_IN:
            assert keys[field.alias or name]["default"] == (
                list(field.default) if isinstance(field.default, tuple) else field.default
            )
            assert keys[field.alias or name].get("title") == field.title


def test_every_choice_is_described_where_it_is_completed() -> None:
    sections = ("likelihood", "measurements", "posteriors", "autoencoders", "models", "curves")
    keys = {key: part for section in sections for key, part in properties(section).items()}
    keys |= {"augmentation": keys["upsampler"]["properties"]["augmentation"]}
    for key in TABLES:
        [option] = [part for part in keys[key].get("anyOf", [keys[key]]) if "enum" in part]
        assert len(option["enumDescriptions"]) == len(option["enum"]) and all(option["enumDescriptions"])
    weightings = dict(zip(keys["weighting"]["enum"], keys["weighting"]["enumDescriptions"], strict=True))
    assert weightings["uniform_x0"] == "Constant on x0. Formula: 1"
