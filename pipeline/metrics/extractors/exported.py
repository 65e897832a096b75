"""Runs the program in a file of `torch.export.save`, node by node, with an allow-list of operators.

`torch.export.load` unpickles members of the archive, evaluates the expressions of sizes as Python, and generates code
from the names in it. We do none of this. We read the program as JSON and the weights as raw numbers, ignore all else in
the archive, and call nothing but the operators of `operators.py`. So no code of the file runs, and no other file is
read or written.
"""

import io
import json
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from pipeline.common.errors import StudyError
from pipeline.common.text import shortened
from pipeline.metrics.extractors.operators import function_of

SCHEMA = 8  # the major version of the program's schema, which PyTorch raises if old readers cannot read new files
PROGRAM_BYTES = 32 << 20  # a program of 1,000 operators takes 3 MB

DTYPES = {
    **{1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 12: torch.bool},
    **{6: torch.float16, 7: torch.float32, 8: torch.float64, 13: torch.bfloat16},
    **{9: torch.complex32, 10: torch.complex64, 11: torch.complex128},
}
MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}

Json = dict[str, Any]
Values = dict[str, Any]
DEVICE = ""  # the key of the images' device among the values


def read_exported(content: bytes) -> "Program":
    """The network in a file of `torch.export.save`.

    Raises StudyError for what we do not allow, and any exception for a file that is something else.
    """
    members = _members(content)
    document = json.loads(members("models/model.json"))
    if document["schema_version"]["major"] != SCHEMA:
        raise StudyError(
            f"the program has another schema than {SCHEMA}; export it with the PyTorch of requirements.txt"
        )
    module = document["graph_module"]
    tensors = _tensors(members, "weights") | _tensors(members, "constants")
    held, inputs = {}, 0
    for spec in module["signature"]["input_specs"]:
        ((kind, value),) = spec.items()
        if kind == "user_input":
            inputs += 1
        elif kind in ("parameter", "buffer", "tensor_constant"):
            held[value["arg"]["name"]] = tensors[value[f"{kind}_name"]]
        else:
            raise StudyError(f"the program has an input of the kind {_quoted(kind)}; it takes images alone")
    if inputs != 1:
        raise StudyError(f"the program has {inputs} inputs; it takes images alone")
    outputs = []
    for spec in module["signature"]["output_specs"]:
        ((kind, value),) = spec.items()
        if kind != "user_output":
            raise StudyError(f"the program has an output of the kind {_quoted(kind)}; export it in eval mode")
        outputs.append(_Argument.of(value["arg"]))
    _check_result(module["module_call_graph"][0]["signature"]["out_spec"])
    return Program(held, _Graph.of(module["graph"], outputs))


def _members(content: bytes) -> Callable[[str], bytes]:
    """A reader of the archive's members by their path below its root folder, each no longer than it is in the file."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    infos = archive.infolist()
    by_name = {info.filename.partition("/")[2]: info for info in infos}
    if len(by_name) < len(infos):
        raise StudyError("the archive has two members of one name; export it again")
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos) or sum(i.file_size for i in infos) > len(
        content
    ):
        raise StudyError("the archive is compressed; leave it as torch.export.save writes it")

    def read(name: str) -> bytes:
        if name not in by_name:
            raise StudyError(f"the archive has no {_quoted(name)}; write it with torch.export.save")
        if name.endswith(".json") and by_name[name].file_size > PROGRAM_BYTES:
            raise StudyError(f"{_quoted(name)} is longer than {PROGRAM_BYTES >> 20} MiB")
        return archive.read(by_name[name])

    return read


def _tensors(members: Callable[[str], bytes], kind: str) -> dict[str, Tensor]:
    """The tensors of the kind, weights or constants, by name. Tensors that shared memory still do."""
    storages: dict[tuple[str, torch.dtype], Tensor] = {}
    tensors = {}
    for name, payload in json.loads(members(f"data/{kind}/model_{kind}_config.json"))["config"].items():
        file, meta = payload["path_name"], payload["tensor_meta"]
        if payload["use_pickle"] is not False or meta is None:
            raise StudyError(f"the tensor {_quoted(name)} is pickled; export it as a plain one")
        key = file, DTYPES[meta["dtype"]]
        if key not in storages:
            raw = bytearray(members(f"data/{kind}/{file}"))
            storages[key] = torch.frombuffer(raw, dtype=key[1]) if raw else torch.empty(0, dtype=key[1])
        size, stride = ([number["as_int"] for number in meta[part]] for part in ("sizes", "strides"))
        tensors[name] = storages[key].as_strided(size, stride, meta["storage_offset"]["as_int"])
    return tensors


def _check_result(spec: str) -> None:
    """Refuse results that are no tensor, tuple or list: a dictionary does not say what is the features."""
    tree = json.loads(spec)[1]
    parts = tree["children_spec"]
    if tree["type"] not in (None, "builtins.tuple", "builtins.list") or any(part["type"] for part in parts):
        raise StudyError("the program returns neither features nor (features, logits)")


class Program(nn.Module):
    """A graph with its tensors, which move to a device as those of any module do."""

    def __init__(self, tensors: dict[str, Tensor], graph: "_Graph") -> None:
        super().__init__()
        self.names, self.graph = list(tensors), graph
        for number, tensor in enumerate(tensors.values()):
            self.register_buffer(f"tensor_{number}", tensor)
        self.eval()

    def forward(self, images: Tensor) -> list[Any]:
        tensors = {name: self.get_buffer(f"tensor_{number}") for number, name in enumerate(self.names)}
        return self.graph.run(images.device, [tensors.get(name, images) for name in self.graph.inputs])


@dataclass(frozen=True)
class _Argument:
    kind: str
    value: Any

    @classmethod
    def of(cls, argument: Json) -> Self:
        ((kind, value),) = argument.items()
        if kind not in KINDS:
            raise StudyError(f"the program has an argument of the kind {_quoted(kind)}, which no extractor needs")
        return cls(kind, _Graph.of(value["graph"]) if kind == "as_graph" else value)

    def read(self, values: Values) -> Any:
        return KINDS[self.kind](self.value, values)

    def names(self) -> list[str]:
        """The names that it reads or, as a result, sets."""
        parts = self.value if isinstance(self.value, list) else [self.value]
        return [name for part in parts if isinstance(part, dict) for name in _names(part)]


def _names(part: Json) -> list[str]:
    """The name in a reference to a tensor or a size, or in an optional one, if it has one."""
    part = part.get("as_tensor", part)
    return [str(part[key]) for key in ("name", "as_name") if key in part]


def _one(part: Json, values: Values) -> Any:
    """The tensor or size of a reference, None, or a literal."""
    if names := _names(part):
        return values[names[0]]
    ((kind, literal),) = part.items()
    return None if kind == "as_none" else literal


def _list(parts: list[Json], values: Values) -> list[Any]:
    return [_one(part, values) for part in parts]


KINDS: dict[str, Callable[[Any, Values], Any]] = {
    "as_none": lambda value, values: None,
    **dict.fromkeys(("as_tensor", "as_optional_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"), _one),
    **dict.fromkeys(("as_tensors", "as_optional_tensors", "as_sym_ints", "as_sym_floats", "as_sym_bools"), _list),
    **dict.fromkeys(("as_int", "as_ints", "as_bool", "as_bools", "as_string"), lambda value, values: value),
    "as_graph": lambda graph, values: partial(graph.run, values[DEVICE]),
    "as_float": lambda value, values: float(value),  # infinity is written as a string
    "as_floats": lambda value, values: [float(number) for number in value],
    "as_scalar_type": lambda value, values: DTYPES[value],
    "as_memory_format": lambda value, values: MEMORY_FORMATS[value],
    "as_layout": lambda value, values: {7: torch.strided}[value],
    "as_device": lambda value, values: values[DEVICE],
}
"""The kinds of arguments that we read, with their value among all values."""


@dataclass(frozen=True)
class _Node:
    function: Callable[..., Any]
    positional: list[_Argument]
    named: dict[str, _Argument]
    results: list[_Argument]
    finished: list[str]
    """The names that no later node reads, so that their memory is free again."""

    def run(self, values: Values) -> None:
        positional = [argument.read(values) for argument in self.positional]
        result = self.function(*positional, **{name: argument.read(values) for name, argument in self.named.items()})
        for argument, value in zip(self.results, [result] if len(self.results) == 1 else result or (), strict=True):
            if names := argument.names():
                values.update(zip(names, value if isinstance(argument.value, list) else [value], strict=True))
        for name in self.finished:
            values.pop(name, None)


@dataclass(frozen=True)
class _Graph:
    inputs: list[str]
    nodes: list[_Node]
    outputs: list[_Argument]

    @classmethod
    def of(cls, graph: Json, outputs: list[_Argument] | None = None) -> Self:
        """Resolves every operator, so that a graph with one that we do not allow is refused before any is called."""
        outputs = [_Argument.of(argument) for argument in graph["outputs"]] if outputs is None else outputs
        needed = {name for argument in outputs for name in argument.names()}
        nodes = []
        for node in reversed(graph["nodes"]):
            arguments = [(part["name"], part["kind"], _Argument.of(part["arg"])) for part in node["inputs"]]
            results = [_Argument.of(argument) for argument in node["outputs"]]
            touched = {name for argument in [*results, *(a for *_, a in arguments)] for name in argument.names()}
            positional = [argument for _, kind, argument in arguments if kind == 1]
            named = {name: argument for name, kind, argument in arguments if kind != 1}
            nodes.append(
                _Node(
                    WRAPPERS.get(node["target"]) or function_of(node["target"]),
                    positional,
                    named,
                    results,
                    sorted(touched - needed),
                )
            )
            needed |= touched
        inputs = [name for argument in graph["inputs"] for name in _Argument.of(argument).names()]
        return cls(inputs, nodes[::-1], outputs)

    def run(self, device: torch.device, inputs: Iterable[Any]) -> list[Any]:
        values = {DEVICE: device, **dict(zip(self.inputs, inputs, strict=True))}
        for node in self.nodes:
            node.run(values)
        return [argument.read(values) for argument in self.outputs]


def _within(context: Callable[..., Any], *arguments: Any) -> Any:
    """What a graph gives within a context. The arguments are the context's, the graph, and the graph's inputs."""
    place = next(place for place, argument in enumerate(arguments) if isinstance(argument, partial))
    with context(*arguments[:place]):
        results = arguments[place](arguments[place + 1 :])
    return results[0] if len(results) == 1 else results


WRAPPERS = {
    "torch.ops.higher_order.wrap_with_set_grad_enabled": partial(_within, torch.set_grad_enabled),
    "torch.ops.higher_order.wrap_with_autocast": partial(_within, torch.autocast),
}


def _quoted(text: str) -> str:
    return repr(shortened(text))
