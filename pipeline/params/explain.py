"""A mistake in a study file as one line: where it is, what is wrong, and what to write instead."""

from typing import Any, get_args

from pydantic import ValidationError

from pipeline.common.errors import StudyError, nearest
from pipeline.common.rows import MOST, NAME, Row
from pipeline.common.text import shortened
from pipeline.sampling.row import Sampler
from pipeline.training.row import Model

# Keys that a study file must not have, because `resolve`, or for round_steps the training, fills them in.
FILLED_IN = ("teacher", "like", "autoencoder", "round_steps", "seeds", "earlier", "numbers", "content", "released")
BOUNDS = {  # of JSON Schema, in words
    "exclusiveMinimum": "greater than",
    "minimum": "greater than or equal to",
    "exclusiveMaximum": "less than",
    "maximum": "less than or equal to",
    "multipleOf": "a multiple of",
}
KINDS = {"integer": "whole number", "number": "number", "string": "text", "array": "list", "object": "mapping"}


def _part(schema: type[Row], location: tuple[int | str, ...]) -> dict[str, Any]:
    """The JSON Schema of the value at a location; {} if it is unknown."""
    whole = schema.model_json_schema()

    def dereferenced(part: dict[str, Any]) -> dict[str, Any]:
        return whole["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part

    part = dereferenced(whole)
    for key in location:
        part = next((o for o in map(dereferenced, part.get("anyOf", [part])) if o.get("type") != "null"), {})
        item = part.get("items") if isinstance(key, int) else part.get("properties", {}).get(key)
        row = next(iter(part.get("patternProperties", {}).values()), None)
        part = dereferenced(item or row or part.get("additionalProperties") or {})
    return part


def _limit(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.4g}"


def _accepted(part: dict[str, Any], plural: bool = False) -> str:
    """The values that a JSON Schema accepts, in words: "a whole number greater than 0 or null"."""
    if "anyOf" in part:
        return " or ".join(_accepted(option) for option in part["anyOf"])
    if "enum" in part or "const" in part:
        return ", ".join(map(str, part.get("enum", [part.get("const")])))
    kind = part.get("type", "")
    if kind in ("null", "boolean"):
        return {"null": "null", "boolean": "true or false"}[kind]
    name = KINDS.get(kind, "mapping" if "properties" in part or "$ref" in part else "value")
    words = [f"{name}s" if plural else name if name == "text" else f"a {name}"]
    if kind == "string" and "pattern" in part:
        words.append("in one line")
    least = "at least 1 " if part.get("minItems", part.get("minProperties")) else ""
    if least or "items" in part:
        words.append(f"of {least}{_accepted(part['items'], plural=True) if 'items' in part else 'row'}")
    limits = {key: part[key] for key in BOUNDS if abs(part.get(key, MOST)) < MOST}
    words.append(" and ".join(f"{BOUNDS[key]} {_limit(limit)}" for key, limit in limits.items()))
    return " ".join(filter(None, words))


def _as_yaml(value: Any) -> str:
    """A value as a study file has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return shortened(repr(value))


def _correction(part: dict[str, Any], value: Any) -> str:
    """The value that was probably meant; "" if that is unclear."""
    options = part.get("anyOf", [part])
    kinds = {option.get("type") for option in options}
    if "null" in kinds and str(value).lower() in ("none", "off", "no", "false", "inf"):
        return "; write null"
    if "array" in kinds and isinstance(value, int | float) and not isinstance(value, bool):
        return f"; write [{value}]"
    try:
        is_whole = "integer" in kinds and isinstance(value, str) and float(value).is_integer()
    except ValueError:
        return ""
    return f"; write {float(value):.0f}" if is_whole else ""


def _keys(schema: type[Row], sections: list[str]) -> list[str]:
    """The keys that a study file may have in a section of a schema, such as ("sets", "a") of a study."""
    for name in sections:
        annotation = schema.model_fields[name].annotation if name in schema.model_fields else schema
        inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type)]
        schema = next((a for a in inner if issubclass(a, Row)), schema)
    has_base = issubclass(schema, Model | Sampler)
    keys = [field.alias or key for key, field in schema.model_fields.items() if key not in FILLED_IN]
    return keys + (["base"] if has_base else [])


def explain(error: ValidationError, place: str, schema: type[Row]) -> StudyError:
    """The first mistake that pydantic found in a row of `schema` at `place`, as one line."""
    first = error.errors()[0]
    location = [shortened(str(part)) for part in first["loc"] if part != "[key]"]
    where = ".".join([place, *location] if place else location)
    value, is_key = first["input"], first["loc"][-1:] == ("[key]",)
    part = {} if is_key else _part(schema, first["loc"])
    match first["type"]:
        case "extra_forbidden":
            message = f"unknown key; {nearest(location[-1], _keys(schema, location[:-1]))}"
        case "literal_error":
            choices = [str(c) for option in part.get("anyOf", [part]) for c in option.get("enum", ["null"])]
            message = f"unknown value {_as_yaml(value)}; {nearest(value, choices)}"
        case "missing":
            message = "missing"
        case "value_error" if not isinstance(value, bool):
            message = str(first["ctx"]["error"])
        case "string_pattern_mismatch" if is_key or first["ctx"]["pattern"] == NAME:
            message = f"{_as_yaml(value)}: a name has 1 to 60 letters, digits and underscores"
        case "less_than_equal" | "greater_than_equal" if MOST in map(abs, first["ctx"].values()):
            message = f"takes numbers of size {MOST:.0e} at most, not {_as_yaml(value)}"
        case "finite_number" if not isinstance(value, str):
            message = f"takes a finite number, not {_as_yaml(value)}"
        case _ if part:
            message = f"takes {_accepted(part)}, not {_as_yaml(value)}{_correction(part, value)}"
        case _:
            message = f"{first['msg'][0].lower()}{first['msg'][1:]}, not {_as_yaml(value)}"
    return StudyError(f"{where}: {message}")
