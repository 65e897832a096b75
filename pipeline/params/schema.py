"""A JSON Schema of study files, with which editors complete, explain and check every key.

Types, names, limits and defaults come from the rows that validate a study, descriptions from their docstrings.
"""

import json
from typing import Any

from pipeline.common.rows import NAME, Row
from pipeline.data.row import Data
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.given_rows import Given, MeasurementRow, PosteriorRow
from pipeline.evaluation.imageset import ImageSet
from pipeline.evaluation.likelihoods import Likelihood
from pipeline.metrics.extractors.row import Features
from pipeline.params.descriptions import TABLES, choices, key_descriptions
from pipeline.params.explain import FILLED_IN
from pipeline.params.needs import Needs
from pipeline.params.study import Preset, Published, Reporting, Study, StudyInfo
from pipeline.training.autoencoder_row import AutoencoderRow
from pipeline.training.row import Model, Upsampler

FILE = "params.schema.json"
DRAFT = "http://json-schema.org/draft-07/schema#"  # editors support this draft best
DIFFERENT = ("nfe", "models", "train_seeds", "sample_seeds", "given")  # lists without duplicates
BASE = {
    "description": "The row that this row inherits all other keys from and is compared with. Without `base`, a row "
    "inherits nothing and is compared with the first row of its section.",
    "type": "string",
    "pattern": NAME,
}


def properties_of(row: type[Row]) -> dict[str, Any]:
    """The JSON Schema of each key of a row, as pydantic has it."""
    whole = row.model_json_schema()
    return whole.get("properties") or whole["$defs"][row.__name__]["properties"]


def _keys(row: type[Row]) -> dict[str, Any]:
    """The keys of a row that a study file may have, with the titles of the report's axes and with descriptions."""
    properties, descriptions = properties_of(row), key_descriptions(row)
    keys = {}
    for key, info in row.model_fields.items():
        if key in FILLED_IN:
            continue
        title, written = info.title, info.alias or key
        part = {name: value for name, value in properties[written].items() if name not in ("title", "$ref")}
        if key == "upsampler":
            part = _mapping(_keys(Upsampler), ("from",), type=["object", "null"]) | {"default": None}
        if key in TABLES:
            for option in part.get("anyOf", [part]):
                if "enum" in option:
                    option["enumDescriptions"] = [_in_a_line(key, name) for name in option["enum"]]
        different = {"uniqueItems": True} if key in DIFFERENT else {}
        keys[written] = ({"title": title} if title else {}) | {"description": descriptions[key]} | part | different
    return keys


def _in_a_line(key: str, name: str) -> str:
    choice = choices(key)[name]
    return choice.words + (f" Formula: {choice.formula}" if choice.formula else "")


def _mapping(properties: dict[str, Any], required: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    needed = {"required": list(required)} if required else {}
    return {"type": "object", "properties": properties, "additionalProperties": False} | needed | more


def _rows(row: dict[str, Any], least: int = 0) -> dict[str, Any]:
    """Rows by name."""
    named = {"type": "object", "patternProperties": {NAME: row}, "additionalProperties": False}
    return named | ({"minProperties": least} if least else {})


def study_schema() -> dict[str, Any]:
    """The JSON Schema (draft 7) of a study file as it is written: rows with their `base`, before `resolve` fills in."""
    definitions = {f"model.{key}": part for key, part in _keys(Model).items()}
    definitions |= {f"curve.{key}": part for key, part in _keys(Curve).items()} | {"base": BASE}
    model, curve = (
        {name.partition(".")[2]: {"$ref": f"#/definitions/{name}"} for name in definitions if name.startswith(kind)}
        for kind in ("model.", "curve.")
    )
    base = {"base": {"$ref": "#/definitions/base"}}
    without_model = {key: part for key, part in curve.items() if key != "model"}
    top = _keys(Study)
    asked, posterior = (
        {key: curve[key] if part == definitions.get(f"curve.{key}") else part for key, part in _keys(row).items()}
        for row in (Likelihood, PosteriorRow)
    )
    own = {key: part for key, part in posterior.items() if "$ref" not in part}
    definitions |= {f"posterior.{key}": part for key, part in own.items()}
    posterior |= {key: {"$ref": f"#/definitions/posterior.{key}"} for key in own}
    scaled = {
        "needs": _mapping(_keys(Needs)),
        "data": _mapping(_keys(Data)),
        "features": _mapping(_keys(Features)),
        "defaults": _mapping({"models": _mapping(model), "curves": _mapping(curve), "posteriors": _mapping(posterior)}),
    }
    autoencoders = _rows(_mapping(_keys(AutoencoderRow)))
    rows = {
        "models": _rows(_mapping(base | model, type=["object", "null"]), least=1),
        "curves": _rows(_mapping(base | curve, ("model",)), least=1),
        "published": {
            "type": "array",
            "items": _mapping(_keys(Published), ("curve", "nfe", "value", "what", "source")),
        },
    }
    overridden = scaled | {
        "autoencoders": autoencoders,
        "models": _rows(_mapping(model)),
        "curves": _rows(_mapping(without_model)),
        "instead": _mapping(rows),
    }
    preset = {key: {"description": part["description"]} | overridden[key] for key, part in _keys(Preset).items()}
    sections = (
        scaled
        | rows
        | {
            "study": _mapping(_keys(StudyInfo), ("name", "root", "params")),  # dvc.yaml reads all three
            "presets": _rows(_mapping(preset)),
            "autoencoders": autoencoders,
            "sets": _rows(_mapping(_keys(ImageSet), ("source",))),
            "likelihood": _mapping(asked, ("models",), type=["object", "null"]),
            "measurements": _rows(_mapping(_keys(MeasurementRow), ("operator", "std"))),
            "posteriors": _rows(_mapping(base | posterior, type=["object", "null"])),
            "given": _mapping(_keys(Given)),
            "report": _mapping(_keys(Reporting)),
        }
    )
    properties = {
        key: {"description": part["description"]} | sections[key] if key in sections else part
        for key, part in top.items()
    }
    whole = _mapping(properties, ("study", "models", "curves", "sets"))
    return {"$schema": DRAFT, "title": "A study of nfe-bench"} | whole | {"definitions": definitions}


def text() -> str:
    """The content of the schema's file."""
    return json.dumps(study_schema(), indent=1, ensure_ascii=False) + "\n"
