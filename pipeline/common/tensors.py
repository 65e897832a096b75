"""Files of tensors and a record: safetensors with a seal as the first entry of their metadata.

Without its seal a file is as `encode` made it. The hashes of weights and references in results are those of this
content.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from pipeline.common.files import write_bytes
from pipeline.common.sealed import SIZE, reading, sealed, unsealed

LENGTH = 8  # bytes of the number that begins a safetensors file: the length of its header
METADATA = LENGTH + len('{"__metadata__":{')  # where the seal is


def encode(tensors: Mapping[str, Tensor], kind: str, record: Any = None) -> bytes:
    """Tensors as safetensors, with a record for JSON under the one key `kind` of the metadata.

    The bytes depend on the arguments alone. With several keys, safetensors would write them in random order.
    """
    return to_safetensors({name: t.cpu().contiguous() for name, t in tensors.items()}, {kind: json.dumps(record)})


def decode(content: bytes, kind: str) -> tuple[dict[str, Tensor], Any]:
    """Inverse of `encode`. Raises an error of FOREIGN if it is not of this kind."""
    header = json.loads(content[LENGTH:][: int.from_bytes(content[:LENGTH], "little")])
    return from_safetensors(content), json.loads(header["__metadata__"][kind])


def write_sealed(path: Path, content: bytes) -> None:
    """Write the content from `encode` with its seal, whole or not at all."""
    write_bytes(path, _resized(sealed(content, METADATA), SIZE))


def read_sealed(path: Path) -> bytes:
    """The content that `write_sealed` wrote. Raises Missing or Broken."""
    with reading(path):
        return unsealed(_resized(path.read_bytes(), -SIZE), METADATA)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], kind: str, record: Any = None) -> None:
    write_sealed(path, encode(tensors, kind, record))


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], Any]:
    """The tensors and the record that `save_tensors` wrote as this kind. Raises Missing or Broken."""
    with reading(path):
        return decode(read_sealed(path), kind)


def _resized(content: bytes, change: int) -> bytes:
    """A safetensors file whose header is longer by `change` bytes, according to its first bytes."""
    length = int.from_bytes(content[:LENGTH], "little") + change
    return (length % 2 ** (8 * LENGTH)).to_bytes(LENGTH, "little") + content[LENGTH:]
