"""A user's network from a file: TorchScript or an exported program, refused if loading it could run code."""

import io
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from pipeline.common.errors import StudyError
from pipeline.common.files import content_hash
from pipeline.data.dataset import Dataset
from pipeline.metrics.extractors.extractor import LARGE_BATCH, Extractor, Record
from pipeline.metrics.extractors.row import Features
from pipeline.metrics.extractors.weights import path_of, read

PREPROCESSING = "uint8 RGB (grey repeated), all else by the module itself"

FILE_OPERATORS = ("from_file", "save")  # operators that write files; a network does not need them


def _script(content: bytes) -> nn.Module:
    """A TorchScript file. Its reader knows only TorchScript's types and runs no Python; we check the operators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated in favour of exported programs
        module = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
    _vet_graph(module.inlined_graph)
    return module


def _vet_graph(graph: Any) -> None:
    """Refuse operators that are not PyTorch's, and PyTorch's operators that write files. Raises StudyError."""
    for node in graph.nodes():
        space, _, name = node.kind().partition("::")
        if space not in ("aten", "prim", "profiler") or name in FILE_OPERATORS or name == "PythonOp":
            raise StudyError(f"the script calls {node.kind()}, which no feature extractor needs; export without it")
        for block in node.blocks():
            _vet_graph(block)


def _exported(content: bytes) -> nn.Module:
    """An exported program that `_vet` has passed. Its guards, which are Python code, are ignored."""
    from torch.export.pt2_archive._package import load_pt2  # torch.export.load would also try the old pickled format

    _vet(content)
    module = load_pt2(io.BytesIO(content)).exported_programs["model"].module(check_guards=False)
    for part in module.modules():  # exported modules have no mode and always say True; the probe detects training mode
        part.training = False
    return module


RECORDS = re.compile(
    r"models/model\.json|archive_format|archive_version|byteorder|\.data/\w+|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
)
STRINGS = {  # valid strings by their key, in the program of an exported module
    "target": re.compile(
        r"torch\.ops\.aten\.(?!from_file|save)(_?[a-zA-Z]\w*)\.[a-zA-Z]\w*|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
        r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|neg|pow|eq|ne|lt|le|gt|ge)|torch\.sym_[a-z]+"
    ),
    "expr_str": re.compile(
        r"(Symbol\('[a-z]+\d+'(, [a-z]+=(True|False))*\)"
        r"|\b(Add|Mul|Pow|Integer|Rational|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv)(?=\()|[\d\s,()+*/-])*"
    ),
    "in_spec": re.compile(r"(?!.*__)[\w.,:\"\\ {}\[\]]*"),
    "out_spec": re.compile(r"(?!.*__)[\w.,:\"\\ {}\[\]]*"),
    "as_string": re.compile(r"[\w., >-]*"),
}
PLAIN = re.compile(r"[\w.+-]*")


def _vet(content: bytes) -> None:
    """Refuse an exported program if loading it could run code. Raises StudyError.

    PyTorch unpickles some members of the archive, evaluates the expressions of sizes as Python, looks up operators by
    dotted names and generates code from the names of nodes. So we allow only plain tensors and a program as members,
    only sample inputs that load as tensors as pickles, and only names, ATen operators and sizes as strings. The reader
    is the one that loads the program afterwards, so that both see the same archive.
    """
    from torch.export.pt2_archive import PT2ArchiveReader

    with PT2ArchiveReader(io.BytesIO(content)) as archive:
        if strange := [name for name in archive.get_file_names() if not RECORDS.fullmatch(name)]:
            raise StudyError(f"the archive has a member {strange[0]!r}, which loading could run as code")
        for name in ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json"):
            for tensor, payload in json.loads(archive.read_bytes(name))["config"].items():
                if payload["use_pickle"] is not False:
                    raise StudyError(f"the tensor {tensor!r} is pickled; export it as a plain one")
        torch.load(io.BytesIO(archive.read_bytes("data/sample_inputs/model.pt")), weights_only=True)
        _vet_strings(json.loads(archive.read_bytes("models/model.json")), "")


def _vet_strings(value: Any, key: str) -> None:
    if isinstance(value, dict):
        for name, part in value.items():
            _vet_strings(name, "")
            if name not in ("metadata", "guards_code"):  # the origin of a node, and the ignored guards
                _vet_strings(part, "target" if name == "as_operator" else name)
    elif isinstance(value, list):
        for part in value:
            _vet_strings(part, key)
    elif isinstance(value, str) and not STRINGS.get(key, PLAIN).fullmatch(value):
        raise StudyError(f"the exported program has {shorten(value, 60)!r}, which loading could run as code")


FORMATS: dict[str, Callable[[bytes], nn.Module]] = {".pt": _script, ".ts": _script, ".pt2": _exported}


def obtain(row: Features, dataset: Dataset) -> tuple[bytes, Record]:
    path = path_of(row.weights or "")
    if path.suffix not in FORMATS:
        raise StudyError(f"{path}: a module is a TorchScript file (.pt, .ts) or an exported program (.pt2)")
    return read(path, row.hash or "")[0], {"file": f"extractor{path.suffix}", "stem": path.stem}


def build(content: bytes, record: Record) -> Extractor:
    reader = FORMATS[Path(record["file"]).suffix]
    try:
        network = reader(content)
    except StudyError:
        raise
    except Exception as error:  # the readers can raise anything
        cause = shorten(f"{type(error).__name__}: {error}", 300)
        raise StudyError(f"cannot be read as a module ({cause})") from None
    weights = content_hash(PREPROCESSING, content)
    name, movable = f"module {record['stem']}", reader is not _exported
    return Extractor(name, weights, PREPROCESSING, network, LARGE_BATCH, rgb=True, movable=movable)
