"""Reads the pickles of released networks. It imports nothing, and calls nothing that a pickle names.

A pickle is a program for a stack machine. This machine has only the instructions that hold data. What a pickle would
call becomes a `Record`, if its name is on a list. Source: Python's pickletools, which describes the instructions.
"""

import io
import math
import pickletools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.sealed import FOREIGN
from pipeline.common.text import shortened

MOST_BYTES = 2**34  # of a file
MOST_INSTRUCTIONS = 2_000_000  # EDM's files have fewer than 100,000
DEEPEST = 100  # values within each other
LONGEST_NUMBER = 16  # bytes of a whole number
LARGEST_KEY = 2**31  # of a whole number that is a key
MAGIC = 0x1950A86A20F9469CFC6C  # the number that a storage by torch.save begins with
COUNT = 8  # bytes of the number of values, before the values of a storage
NUMBERS = {"f4": "f", "f8": "d", "i4": "i", "i8": "q", "b1": "?"}  # numpy's scalars, as `struct` names them
DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
TENSOR, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
STORAGE, DTYPE = "torch.storage._load_from_bytes", "numpy.dtype"
MAPPINGS = ("collections.OrderedDict", "dnnlib.util.EasyDict")
CONTAINERS = tuple(f"torch.nn.modules.container.{name}" for name in ("ModuleDict", "ModuleList", "Sequential"))
SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
SET, ARRAY = "builtins.set", "numpy.ndarray"
CALLED = (PERSISTENT, TENSOR, PARAMETER, STORAGE, DTYPE, SET, *MAPPINGS, *CONTAINERS, *SCALARS, *ARRAYS)
NAMES = frozenset((*CALLED, ARRAY, *DTYPES))


@dataclass(frozen=True)
class Name:
    """The name of a class or a function, which nobody looks up."""

    name: str


@dataclass(eq=False, repr=False)
class Record:
    """What a pickle would call: a name and its arguments; state: what it would set in the result."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


def read_pickle(path: Path) -> Any:
    """The content of a pickle: plain values, and `Record` for everything else.

    Raises StudyError, one line that names the file, if it is not whole or asks for more than released networks need.
    """
    if path.stat().st_size > MOST_BYTES:
        raise StudyError(f"{path}: larger than {MOST_BYTES >> 30} GiB, so not a released network")
    try:
        return _Machine().run(io.BytesIO(path.read_bytes()))
    except FOREIGN as error:
        raise StudyError(f"{path}: not the pickle of a released network ({reason(error)})") from None


def reason(error: Exception) -> str:
    """What an error of a reader says."""
    if isinstance(error, KeyError):
        return f"{shortened(repr(error.args[0]))} is missing"
    return str(error) if isinstance(error, StudyError) else f"{type(error).__name__}: {shortened(str(error))}"


def wholes(values: Any, least: int, most: int, longest: int = 16) -> tuple[int, ...]:
    """A list or tuple of whole numbers. Raises StudyError if it is anything else."""
    if not isinstance(values, list | tuple) or len(values) > longest:
        raise StudyError(f"takes a list of at most {longest} whole numbers")
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise StudyError(f"takes whole numbers from {least} to {most}")
    return tuple(values)


def tensor_of(record: Any, storages: dict[int, Tensor]) -> Tensor:
    """The tensor of a record. storages: those read so far, by the identity of their bytes.

    Raises an error of FOREIGN if it is not the record of a tensor, or goes beyond its storage.
    """
    if not isinstance(record, Record) or record.name != TENSOR:
        raise StudyError("not a tensor")
    storage, offset, *shape = record.arguments[:4]
    size, stride, [offset] = (wholes(sides, 0, MOST_BYTES) for sides in (*shape, [offset]))
    if not isinstance(storage, Record) or storage.name != STORAGE:
        raise StudyError("a tensor without a storage")
    [content] = storage.arguments
    if id(content) not in storages:
        storages[id(content)] = _storage(content)
    values = storages[id(content)]
    if math.prod(size) > len(values):
        raise StudyError(f"a tensor of {size}, but its storage has {len(values)} values")
    return torch.as_strided(values, size, stride, offset).contiguous()


def _storage(content: bytes) -> Tensor:
    """The values of a storage that torch.save wrote in its form before PyTorch 1.6, as all pickled storages are."""
    stream = io.BytesIO(content)
    magic, _version, _system, storage, _keys = (_Machine(storage=True).run(stream) for _ in range(5))
    if magic != MAGIC or not isinstance(storage, Record) or storage.name != STORAGE:
        raise StudyError("a storage in another form than torch.save's before PyTorch 1.6")
    _, kind, _, _, count, *_ = storage.arguments
    dtype, found = DTYPES[kind.name], int.from_bytes(stream.read(COUNT), "little")
    values = stream.read()
    if count != found or len(values) != found * dtype.itemsize:
        raise StudyError(f"a storage of {found} values with {len(values)} bytes")
    return torch.frombuffer(bytearray(values), dtype=dtype) if found else torch.empty(0, dtype=dtype)


class _Machine:
    """Runs one pickle. storage: whether it is a part of a storage, which alone has persistent names."""

    def __init__(self, storage: bool = False) -> None:
        self.storage = storage
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.depths: dict[int, tuple[int, Any]] = {}  # by identity: how many values within each other it has, and it
        self.parts: dict[int, Any] = {}  # by identity: values within others

    def run(self, stream: io.BytesIO) -> Any:
        """The result. Raises an error of FOREIGN if the pickle is not whole, or has another instruction or name."""
        for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
            if count == MOST_INSTRUCTIONS:
                raise StudyError(f"more than {MOST_INSTRUCTIONS:,} instructions")
            if instruction.name == "STOP":
                [result] = self.stack
                return result
            self._step(instruction.name, argument)
        raise StudyError("it has no end")

    def _step(self, instruction: str, argument: Any) -> None:
        stack = self.stack
        match instruction:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[instruction])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                if instruction == "LONG1" and argument.bit_length() > 8 * LONGEST_NUMBER:
                    raise StudyError(f"a whole number of more than {LONGEST_NUMBER} bytes")
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                stack.append(argument)
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_SET":
                stack.append({} if instruction == "EMPTY_DICT" else () if instruction == "EMPTY_TUPLE" else [])
            case "MARK":
                self.outer.append(stack)
                self.stack = []
            case "TUPLE" | "LIST" | "DICT":
                items = self._marked()
                made = tuple(items) if instruction == "TUPLE" else items
                self._push(_mapping(items) if instruction == "DICT" else made, items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(instruction[-1]))][::-1]
                self._push(tuple(items), items)
            case "APPEND" | "APPENDS" | "ADDITEMS":
                items = [stack.pop()] if instruction == "APPEND" else self._marked()
                self._last(list, items).extend(items)
            case "SETITEM" | "SETITEMS":
                items = [stack.pop(-2), stack.pop()] if instruction == "SETITEM" else self._marked()
                self._last(dict, items).update(_mapping(items))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if instruction == "MEMOIZE" else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL" | "STACK_GLOBAL":
                name = stack.pop() if instruction == "STACK_GLOBAL" else argument.partition(" ")[2]
                module = stack.pop() if instruction == "STACK_GLOBAL" else argument.partition(" ")[0]
                stack.append(_name(module, name))
            case "REDUCE" | "NEWOBJ":
                arguments, called = stack.pop(), stack.pop()
                made = _called(called, arguments)
                self._push(made, arguments if isinstance(made, Record) else ())
            case "BUILD":
                state = stack.pop()
                record = self._last(Record, [state])
                if record.state is not None:
                    raise StudyError("an object that is built twice")
                record.state = state
            case "BINPERSID" if self.storage:
                arguments = stack.pop()
                self._push(Record(STORAGE, arguments), [arguments])
            case _:
                raise StudyError(f"it uses the instruction {instruction}, which no released network needs")

    def _marked(self) -> list[Any]:
        """The values since the last mark, which leave the stack."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def _push(self, value: Any, parts: Sequence[Any]) -> None:
        self._hold(value, parts)
        self.stack.append(value)

    def _last(self, kind: type[Any], parts: Sequence[Any]) -> Any:
        """The value on top of the stack, which gets these parts. It is not within another, which has its depth."""
        value = self.stack[-1]
        if not isinstance(value, kind):
            raise StudyError(f"it changes something that is no {kind.__name__.lower()}")
        self._hold(value, parts)
        if id(value) in self.parts:
            raise StudyError("it changes something that is within another value")
        return value

    def _hold(self, value: Any, parts: Sequence[Any]) -> None:
        """Note the depth of a value that gets these parts."""
        within = [part for part in parts if isinstance(part, tuple | list | dict | Record)]
        self.parts.update((id(part), part) for part in within)
        for part in within:
            depth = 1 + self.depths.get(id(part), (0,))[0]
            if depth > DEEPEST:
                raise StudyError(f"more than {DEEPEST} values within each other")
            if depth > self.depths.get(id(value), (0,))[0]:
                self.depths[id(value)] = depth, value


def _mapping(items: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn as a mapping. Keys are text or small whole numbers, which are quick to compare."""
    for key in items[::2]:
        if not (isinstance(key, str) or (isinstance(key, int) and abs(key) < LARGEST_KEY)):
            raise StudyError(f"a mapping with a key of type {type(key).__name__}")
    return dict(zip(items[::2], items[1::2], strict=True))


def _name(module: Any, name: Any) -> Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise StudyError("a name that is no text")
    full = f"{module}.{name}"
    if "." in name or full not in NAMES:
        raise StudyError(f"it names {shortened(full)}, which no released network needs; nothing was run")
    return Name(full)


def _called(called: Any, arguments: Any) -> Any:
    """What the call of a name gives: a value for mappings, sets, parameters and numbers, else a record."""
    if not isinstance(called, Name) or called.name not in CALLED or not isinstance(arguments, tuple):
        raise StudyError(f"it calls {called.name if isinstance(called, Name) else 'a value'}, which is no function")
    name = called.name
    if name in MAPPINGS:
        if arguments:
            raise StudyError(f"it makes a {name} of arguments")
        return {}
    if name in (SET, PARAMETER):
        return arguments[0]
    if name in SCALARS:
        dtype, content = arguments
        code = dtype.arguments[0] if isinstance(dtype, Record) and dtype.arguments else None
        if not isinstance(code, str):
            raise StudyError("a number without a type")
        [value] = struct.unpack(f"<{NUMBERS[code]}", content)
        return value
    return Record(name, arguments)
