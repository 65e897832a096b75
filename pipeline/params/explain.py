"""A mistake in a study file as one line: where it stands, what it is, and what would be right."""

from typing import Any, get_args

from pydantic import ValidationError

from pipeline.common.errors import StudyError, nearest
from pipeline.common.rows import NAME, Row
from pipeline.data.row import Data
from pipeline.sampling.row import Sampler
from pipeline.training.row import Model

FILLED_IN = ("teacher", "like", "seeds")  # keys of a resolved row that no written one has
BOUNDS = {  # of JSON Schema, in words
    "exclusiveMinimum": "greater than",
    "minimum": "greater than or equal to",
    "exclusiveMaximum": "less than",
    "maximum": "less than or equal to",
    "multipleOf": "a multiple of",
}
KINDS = {"integer": "whole number", "number": "number", "string": "text", "array": "list", "object": "mapping"}


def _part(schema: type[Row] | type[Data], location: tuple[int | str, ...]) -> dict[str, Any]:
    """The JSON Schema of what stands at a place; {} where none is known."""
    whole = schema.model_json_schema()

    def found(part: dict[str, Any]) -> dict[str, Any]:
        return whole["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part

    part = found(whole)
    for key in location:
        part = next((o for o in map(found, part.get("anyOf", [part])) if o.get("type") != "null"), {})
        own = part.get("items") if isinstance(key, int) else part.get("properties", {}).get(key)
        named = next(iter(part.get("patternProperties", {}).values()), None)
        part = found(own or named or part.get("additionalProperties") or {})
    return part


def _limit(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.4g}"


def _taken(part: dict[str, Any], many: bool = False) -> str:
    """What a JSON Schema takes, in words."""
    if "anyOf" in part:
        return " or ".join(_taken(option) for option in part["anyOf"])
    if "enum" in part or "const" in part:
        return ", ".join(map(str, part.get("enum", [part.get("const")])))
    kind = part.get("type", "")
    if kind in ("null", "boolean"):
        return {"null": "null", "boolean": "true or false"}[kind]
    name = KINDS.get(kind, "value")
    words = [f"{name}s" if many else name if name == "text" else f"a {name}"]
    if kind == "string" and "pattern" in part:
        words.append("in one line")
    few = "at least 1 " if part.get("minItems", part.get("minProperties")) else ""
    if few or "items" in part:
        words.append(f"of {few}{_taken(part['items'], many=True) if 'items' in part else 'row'}")
    words.append(" and ".join(f"{text} {_limit(part[key])}" for key, text in BOUNDS.items() if key in part))
    return " ".join(filter(None, words))


def _shown(value: Any) -> str:
    """A value as a study file has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true (or yes, on)", False: "false (or no, off)"}[value]
    return repr(value)


def _instead(part: dict[str, Any], value: Any) -> str:
    """What was meant, where that can be told."""
    options = part.get("anyOf", [part])
    kinds = {option.get("type") for option in options}
    if "null" in kinds and str(value).lower() in ("none", "off", "no", "false"):
        return "; write null"
    if kinds & {"array"} and isinstance(value, int | float) and not isinstance(value, bool):
        return f"; write [{value}]"
    try:
        whole = kinds & {"integer"} and isinstance(value, str) and float(value).is_integer()
    except ValueError:
        return ""
    return f"; write {float(value):.0f}" if whole else ""


def explain(error: ValidationError, place: str, schema: type[Row] | type[Data]) -> StudyError:
    """The first of pydantic's complaints as one line: where, what, and what would be right."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"] if part != "[key]"]
    where = ".".join([place, *location] if place else location)
    value, is_key = first["input"], first["loc"][-1:] == ("[key]",)
    part = {} if is_key else _part(schema, first["loc"])
    match first["type"]:
        case "extra_forbidden":
            for name in location[:-1]:
                annotation = schema.model_fields[name].annotation if name in schema.model_fields else schema
                inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type)]
                schema = next((a for a in inner if issubclass(a, Row | Data)), schema)
            is_row = issubclass(schema, Model | Sampler)
            keys = [key for key in schema.model_fields if key not in FILLED_IN] + (["base"] if is_row else [])
            message = f"unknown key; {nearest(location[-1], keys)}"
        case "literal_error":
            choices = [str(c) for option in part.get("anyOf", [part]) for c in option.get("enum", ["null"])]
            message = f"unknown value {_shown(value)}; {nearest(value, choices)}"
        case "missing":
            message = "missing"
        case "value_error" if not isinstance(value, bool):
            message = str(first["ctx"]["error"])
        case "string_pattern_mismatch" if is_key or first["ctx"]["pattern"] == NAME:
            message = f"{_shown(value)}: a name has 1 to 60 letters, digits and underscores"
        case "finite_number":
            message = f"takes a finite number, not {value!r}"
        case _ if is_key:
            message = "a key is text; put it in quotes, or write numbers without commas"
        case _ if part:
            message = f"takes {_taken(part)}, not {_shown(value)}{_instead(part, value)}"
        case _:
            message = f"{first['msg'][0].lower()}{first['msg'][1:]}, not {value!r}"
    return StudyError(f"{where}: {message}")
