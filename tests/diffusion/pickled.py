"""Pickles in the form of EDM's released files, made of records and tensors, an instruction at a time."""

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.diffusion.imports.unpickle import PARAMETER, PERSISTENT, STORAGE, TENSOR

SOURCE = "raise SystemExit('the source of a class was run')\n"


@dataclass(frozen=True)
class Global:
    """The name of a class or a function."""

    name: str


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a name with arguments; state: what BUILD sets; new: by NEWOBJ; items: of a mapping."""

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    new: bool = False
    items: Mapping[str, Any] = field(default_factory=dict)


class Writer:
    """Writes values as a pickle of protocol 4. Texts and calls that come again are taken from the memo."""

    def __init__(self) -> None:
        self.written, self.memo = b"", dict[Any, int]()
        self.calls: list[Call] = []

    def add(self, value: Any) -> "Writer":
        match value:
            case None | True | False:
                self.written += {None: b"N", True: b"\x88", False: b"\x89"}[value]
            case int():
                self.written += b"J" + struct.pack("<i", value)
            case float():
                self.written += b"G" + struct.pack(">d", value)
            case str() if value in self.memo:
                self.written += b"j" + struct.pack("<I", self.memo[value])
            case str():
                self.written += b"X" + struct.pack("<I", len(value.encode())) + value.encode() + b"\x94"
                self.memo[value] = len(self.memo)
            case bytes():
                self.written += b"B" + struct.pack("<I", len(value)) + value
            case tuple():
                self._marked(value, b"", b"t")
            case list():
                self._marked(value, b"]", b"e")
            case dict():
                self._marked([part for item in value.items() for part in item], b"}", b"u")
            case Tensor():
                self.add(call_of(value))
            case Global():
                module, _, name = value.name.rpartition(".")
                self.add(module).add(name)
                self.written += b"\x93"
            case Call() if id(value) in self.memo:
                self.written += b"j" + struct.pack("<I", self.memo[id(value)])
            case Call():
                self.calls.append(value)  # which keeps its id
                self.add(Global(value.name)).add(value.arguments)
                self.written += b"\x81" if value.new else b"R"
                if value.items:
                    self._marked([part for item in value.items.items() for part in item], b"", b"u")
                if value.state is not None:
                    self.add(value.state)
                    self.written += b"b"
                self.written += b"\x94"
                self.memo[id(value)] = len(self.memo)
        return self

    def _marked(self, values: Any, before: bytes, after: bytes) -> None:
        self.written += before + b"("
        for value in values:
            self.add(value)
        self.written += after


def pickled(value: Any) -> bytes:
    return b"\x80\x04" + Writer().add(value).written + b"."


def storage_of(tensor: Tensor) -> bytes:
    """The storage of a tensor as torch.save pickles it."""
    stream = io.BytesIO()
    storage = torch.storage.TypedStorage(wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True)
    torch.save(storage, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def call_of(tensor: Tensor) -> Call:
    arguments = (Call(STORAGE, (storage_of(tensor),)), 0, tuple(tensor.shape), tensor.stride(), False)
    return Call(TENSOR, (*arguments, Call("collections.OrderedDict")))


def module(name: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], **state: Any) -> Call:
    """A module with everything within it. arguments: those that it was made with; tensors: by their full names."""
    own, within = dict[str, Any](), dict[str, dict[str, Tensor]]()
    for key, tensor in tensors.items():
        head, _, rest = key.partition(".")
        if rest:
            within.setdefault(head, {})[rest] = tensor
        else:
            own[key] = tensor
    buffers = {key: value for key, value in own.items() if key in ("resample_filter", "freqs", "phases")}
    parameters = {key: Call(PARAMETER, (value, False, {})) for key, value in own.items() if key not in buffers}
    modules = {key: module("Part", {}, part) for key, part in within.items()}
    content: dict[str, Any] = {
        "training": False,
        "_parameters": Call("collections.OrderedDict", items=parameters | {"absent": None}),
        "_buffers": Call("collections.OrderedDict", items=buffers),
        "_modules": Call("collections.OrderedDict", items=modules),
        "_init_args": (),
        "_init_kwargs": Call("dnnlib.util.EasyDict", new=True, items=arguments) if arguments else {},
    }
    content |= state
    if set(tensors) and all(key.count(".") > 1 for key in tensors):  # as the encoder and the decoder
        return Call("torch.nn.modules.container.ModuleDict", new=True, state=content)
    meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": name, "state": content}
    return Call(PERSISTENT, (meta,))


def network(kind: str, inner: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], **state: Any) -> Call:
    """A network within its preconditioning. inner: the name of its class; state: of the preconditioning."""
    place = "unet" if kind == "Precond" else "model"
    modules = Call("collections.OrderedDict", items={place: module(inner, arguments, tensors)})
    return module(kind, {"use_fp16": False}, {}, _modules=modules, **state)


def released(ema: Any) -> bytes:
    """A file with a network under `ema`, and with the other entries of released files."""
    root = Call("numpy.core.multiarray.scalar", (Call("numpy.dtype", ("f8", False, True)), struct.pack("<d", 0.5)))
    return pickled({"ema": ema, "loss_fn": module("EDMLoss", {"P_mean": -1.2, "root": root}, {}), "augment_pipe": None})
