"""Plain scalars of YAML, which are text without quotes: PyYAML reads them as YAML 1.1, DVC as YAML 1.2.

A study file may have only scalars that both read alike, and everything that we write can be read so.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import yaml

Reader = Callable[[str], Any]
LOADER = yaml.SafeLoader("")  # only its tables are used
OTHERS = {"timestamp": "a date", "merge": "a merge of mappings", "value": "a default value"}  # kinds of YAML 1.1 alone
WORDS = {"": None, "~": None} | {
    spelling: value
    for word, value in {"null": None, "true": True, "false": False}.items()
    for spelling in (word, word.capitalize(), word.upper())
}
NUMBERS: dict[str, Reader] = {  # YAML 1.2's core schema, section 10.3.2, with signs before 0o and 0x, as DVC takes them
    r"[-+]?[0-9]+": int,
    r"[-+]?0o[0-7]+": lambda text: int(text.replace("0o", "", 1), 8),
    r"[-+]?0x[0-9a-fA-F]+": lambda text: int(text, 16),
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?": float,
    r"[-+]?\.(inf|Inf|INF)": lambda text: float(text.replace(".", "")),
    r"\.(nan|NaN|NAN)": lambda text: math.nan,
}


class _Other(str):
    """A value of a kind that no study has, in words."""


def _old(text: str) -> Any:
    """The value of a plain scalar in YAML 1.1, as PyYAML reads it."""
    tag = LOADER.resolve(yaml.ScalarNode, text, (True, False))
    kind = tag.rpartition(":")[2]
    try:
        return _Other(OTHERS[kind]) if kind in OTHERS else LOADER.construct_object(yaml.ScalarNode(tag, text))
    except ValueError:
        return _Other("a number without digits")


def _new(text: str) -> Any:
    """The value of a plain scalar in YAML 1.2."""
    if text in WORDS:
        return WORDS[text]
    return next((read(text) for pattern, read in NUMBERS.items() if re.fullmatch(pattern, text, re.A)), text)


def _is_spaced_number(text: str) -> bool:
    """Whether a text is a number but for its underscores, on which readers of YAML 1.2 do not agree."""
    digits = text.replace("_", "")
    is_number = re.fullmatch(r"[-+]?(\.|0[box])?", digits) or not isinstance(_new(digits), str)
    return "_" in text and text[0] in "+-.0123456789" and bool(is_number)


def ambiguity(text: str) -> str | None:
    """Both readings of a plain scalar, in words, if they differ; None if YAML 1.1 and YAML 1.2 read it alike."""
    old, new = _old(text), _new(text)
    if (type(old), repr(old)) == (type(new), repr(new)) and not _is_spaced_number(text):
        return None
    return f"{_words(old)} in YAML 1.1 and {_words(new)} in YAML 1.2"


def _words(value: Any) -> str:
    return str(value) if isinstance(value, _Other) else "text" if isinstance(value, str) else in_a_line(value)


def spellings(text: str) -> list[str]:
    """Ways to write a plain scalar that has two readings: each value as both dialects read it."""
    values = dict.fromkeys(in_a_line(value) for value in (_old(text), _new(text)) if not isinstance(value, str))
    return [*values, f'"{text}"']


def value_of(text: str) -> Any:
    """The value of a plain scalar that has one reading."""
    return _new(text)


def is_text(text: str) -> bool:
    """Whether both dialects read a plain scalar as this text."""
    return isinstance(_new(text), str) and not ambiguity(text)


class _Dumper(yaml.SafeDumper):
    """Writes text in quotes if a dialect would read it as something else."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_text(text) else "'")


_Dumper.add_representer(str, _quoted)


def dump(value: Any, **style: Any) -> str:
    """A value as YAML that both dialects read alike. style: as of `yaml.dump`."""
    return str(yaml.dump(value, Dumper=_Dumper, **style))


def in_a_line(value: Any, **style: Any) -> str:
    """The same on one line, which goes into a line of a file or of a message."""
    text = dump(value, **{"default_flow_style": True, "width": math.inf} | style)
    return text.removesuffix("\n").removesuffix("\n...")
