"""Files with a seal, which is the sha256 of the rest of the file: a reader notices every changed bit.

The seal is the first entry of a JSON object; tensors.py has files of tensors. `reading` names a broken output of a
stage, and `kept` passes over a broken file of `.cache`.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

from safetensors import SafetensorError

from pipeline.common.errors import StudyError, say_once
from pipeline.common.files import write_bytes

T = TypeVar("T")
OBJECT = len("{")  # where JSON has its seal
SIZE = 80  # bytes of a seal; a multiple of 8 keeps tensors aligned
FOREIGN = (  # the errors of readers
    StudyError,
    SafetensorError,
    LookupError,
    ArithmeticError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
)


class Missing(StudyError):
    """A file that does not exist."""


class Broken(StudyError):
    """A file that is damaged, or that other code has written."""

    def __init__(self, fault: str) -> None:
        super().__init__(f"{fault}; delete it and run `make repro`")
        self.fault = fault


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the errors of reading a file, and of using its content, into Missing or Broken, which name the file."""
    try:
        yield
    except (Missing, Broken):
        raise
    except FileNotFoundError:
        raise Missing(f"{path}: missing; `dvc repro` makes it") from None
    except FOREIGN as error:
        reason = shorten(str(error) if isinstance(error, StudyError | ValueError) else repr(error), 300)
        raise Broken(f"{path}: not as this study wrote it ({reason})") from None


def kept(load: Callable[[Path], T], path: Path) -> T | None:
    """What a file of `.cache` holds; None if it is missing or broken. A line on stderr says that it is broken."""
    try:
        return load(path)
    except Missing:
        return None
    except Broken as error:
        say_once(f"{error.fault}; it is made again")
        return None


def sealed(content: bytes, place: int) -> bytes:
    """A file's content with its seal as the first entry of the JSON object that begins before the byte `place`."""
    return content[:place] + _seal(content) + content[place:]


def unsealed(content: bytes, place: int) -> bytes:
    """Inverse of `sealed`. Raises ValueError if a bit has changed since."""
    rest = content[:place] + content[place + SIZE :]
    if content[place : place + SIZE] != _seal(rest):
        raise ValueError("its sha256 is not that of its content")
    return rest


def _seal(content: bytes) -> bytes:
    return f'"sha256": "{hashlib.sha256(content).hexdigest()}",'.encode().ljust(SIZE)


def sealed_json(value: Mapping[str, Any]) -> bytes:
    return sealed((json.dumps(value, indent=1, allow_nan=False) + "\n").encode(), OBJECT)


def save_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with its seal, whole or not at all."""
    write_bytes(path, sealed_json(value))


def load_json(path: Path) -> dict[str, Any]:
    """The object that `save_json` wrote. Raises Missing or Broken."""
    with reading(path):
        value: dict[str, Any] = json.loads(unsealed(path.read_bytes(), OBJECT))
        return value


def cached_json(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The object in a file of `.cache`; if the file is missing or broken, `make` makes the object again."""
    if kept(load_json, path) is None:
        save_json(path, make())
    return load_json(path)
