"""A user's own network from a file: TorchScript, or an exported program that holds nothing which could run as code."""

import io
import json
import re
import warnings
from collections.abc import Callable
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from pipeline.common.errors import StudyError

FILE_OPERATORS = ("from_file", "save")  # what a network has no use for: operators that write files


def _script(content: bytes) -> nn.Module:
    """A TorchScript file. Its reader knows TorchScript's types alone and runs no Python; operators are looked at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated in favour of exported programs
        module = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
    _vet_graph(module.inlined_graph)
    return module


def _vet_graph(graph: Any) -> None:
    """Refuse operators other than PyTorch's own, and those of these that write files. Raises StudyError."""
    for node in graph.nodes():
        space, _, name = node.kind().partition("::")
        if space not in ("aten", "prim", "profiler") or name in FILE_OPERATORS or name == "PythonOp":
            raise StudyError(f"the script calls {node.kind()}, which is not for a feature extractor")
        for block in node.blocks():
            _vet_graph(block)


def _exported(content: bytes) -> nn.Module:
    """An exported program, once `_vet` has passed it; its guards, which are Python code, are left out."""
    from torch.export.pt2_archive._package import load_pt2  # torch.export.load would try the pickled format of old

    _vet(content)
    module = load_pt2(io.BytesIO(content)).exported_programs["model"].module(check_guards=False)
    for part in module.modules():  # always true of exported modules, which have no mode; the probe tells
        part.training = False
    return module


RECORDS = re.compile(
    r"models/model\.json|archive_format|archive_version|byteorder|\.data/\w+|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
)
STRINGS = {  # by the key that they stand under, in the program of an exported module
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
    """Refuse an exported program whose loading could run code. Raises StudyError.

    PyTorch unpickles some members of the archive, evaluates the expressions of sizes as Python, looks operators up by
    dotted names and generates code from the names of nodes. So: no members but plain tensors and a program, no pickled
    ones but sample inputs that load as tensors alone, and no strings in the program but names, ATen operators and
    sizes. Read by the reader that loads it afterwards, so that both see the same archive.
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
            if name not in ("metadata", "guards_code"):  # where it came from, and what is left out
                _vet_strings(part, "target" if name == "as_operator" else name)
    elif isinstance(value, list):
        for part in value:
            _vet_strings(part, key)
    elif isinstance(value, str) and not STRINGS.get(key, PLAIN).fullmatch(value):
        raise StudyError(f"the exported program has {shorten(value, 60)!r}, which loading could run as code")


FORMATS: dict[str, Callable[[bytes], nn.Module]] = {".pt": _script, ".ts": _script, ".pt2": _exported}
