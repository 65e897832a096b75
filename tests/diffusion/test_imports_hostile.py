"""Hostile pickles are refused in one line, and nothing that they ask for happens."""

import io
import pickle
import struct
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.common.errors import StudyError
from pipeline.diffusion.imports import unpickle
from pipeline.diffusion.imports.read import read_network
from pipeline.diffusion.imports.unpickle import PARAMETER, PERSISTENT, STORAGE, TENSOR
from tests.diffusion.pickled import Call, Global, Writer, call_of, module, network, pickled, released, storage_of
from tests.diffusion.test_imports import CASES, SONG

GOOD, STATE = CASES["ddpmpp edm"], CASES["ddpmpp edm"].state
MARKER = "marker"  # the file that they would write
COMMAND = f"touch {MARKER}"
CODE = f"open({MARKER!r}, 'w')"
NAMES: dict[str, tuple[Any, ...]] = {
    "os.system": (COMMAND,),
    "os.popen": (COMMAND,),
    "posix.system": (COMMAND,),
    "nt.system": (COMMAND,),
    "subprocess.Popen": (("touch", MARKER),),
    "subprocess.check_output": (("touch", MARKER),),
    "builtins.eval": (CODE,),
    "builtins.exec": (CODE,),
    "builtins.compile": (CODE, "", "exec"),
    "builtins.open": (MARKER, "w"),
    "builtins.__import__": ("antigravity",),
    "builtins.getattr": ("", "join"),
    "builtins.setattr": ("", "a", 1),
    "builtins.type": ("A", (), {}),
    "__builtin__.eval": (CODE,),
    "importlib.import_module": ("antigravity",),
    "runpy.run_path": (MARKER,),
    "pathlib.Path.touch": (MARKER,),
    "shutil.copyfile": ("/dev/null", MARKER),
    "io.open": (MARKER, "w"),
    "pickle.loads": (pickle.dumps(1),),
    "torch.load": (MARKER,),
    "torch.hub.load": (MARKER, "a"),
    "torch.storage.os.system": (COMMAND,),
    "torch._utils.sys.exit": (),
    "numpy.load": (MARKER,),
    "numpy.core.multiarray.os.system": (COMMAND,),
    "collections.namedtuple": ("A", "b"),
    "copyreg._reconstructor": (1, 2, 3),
    "functools.partial": (COMMAND,),
    "operator.attrgetter": ("system",),
    "dnnlib.util.open_url": ("https://localhost",),
    "torch_utils.persistence._src_to_module": (CODE,),
    "sys.setrecursionlimit": (10**9,),
}


def forms(name: str, arguments: tuple[Any, ...]) -> Iterator[bytes]:
    """The ways in which a pickle can ask for a call."""
    head, given = b"\x80\x04", Writer().add(arguments).written
    old = name.rpartition(".")[0].encode() + b"\n" + name.rpartition(".")[2].encode() + b"\n"
    yield head + b"c" + old + given + b"R."
    yield head + b"(" + b"".join(Writer().add(each).written for each in arguments) + b"i" + old + b"."
    yield head + b"(c" + old + b"o."
    yield head + b"c" + old + given + b"}\x92."
    yield pickled(Call(name, arguments, new=True))
    yield released(Call(PERSISTENT, ({"type": "class", "class_name": "A", "state": Call(name, arguments)},)))
    yield released(Call(TENSOR, (Call(name, arguments), 0, (1,), (1,), False)))


def claims(code: bytes, size: int, length: str) -> bytes:
    return b"\x80\x04" + code + struct.pack(length, size) + b"a."


def tensor(**changes: Any) -> bytes:
    """A file with one tensor that lies. changes: storage, offset, size and stride."""
    honest = {"storage": Call(STORAGE, (storage_of(torch.zeros(4)),)), "offset": 0, "size": (4,), "stride": (1,)}
    lying = Call(TENSOR, (*(honest | changes).values(), False, {}))
    return around(module("A", {"a": 1}, {}, _parameters={"weight": Call(PARAMETER, (lying, False, {}))}))


def storage(count: int, name: str = "torch.FloatStorage", values: bytes = b"") -> Call:
    """A storage of so many values, as it says."""
    parts = [unpickle.MAGIC.to_bytes(10, "little"), 1001, {}, ("storage", Global(name), "0", "cpu", count, None), []]
    written = [b"\x8a\x0a" + parts[0], *(Writer().add(part).written for part in parts[1:])]
    written[3] += b"Q"
    return Call(STORAGE, (b"".join(b"\x80\x02" + part + b"." for part in written) + struct.pack("<q", count) + values,))


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(10**7))
    return stream.getvalue()


def branching(depth: int) -> bytes:
    """Modules with the same module in two places, and so on: 2^depth modules in a short file."""
    within = module("A", {"a": 1}, {})
    for _ in range(depth):
        within = module("A", {"a": 1}, {}, _modules={"a": within, "b": within})
    return around(within)


def around(within: Call) -> bytes:
    """A file with a module as its network."""
    given = module("SongUNet", SONG, {}, _modules={"a": within})
    about = {"img_resolution": 8, "img_channels": 2, "label_dim": 0} | STATE
    return released(module("EDMPrecond", {"a": 1}, {}, _modules={"model": given}, **about))


def shared(count: int) -> bytes:
    """A tensor of 1000 values in many places."""
    one = call_of(torch.zeros(1000))
    return around(module("A", {"a": 1}, {}, _parameters={f"weight{i}": one for i in range(count)}))


def listed(depth: int) -> Any:
    """A list of twice the same list, and so on, as an argument: too long for any message."""
    within: Any = Call("builtins.set", ([1, 2],))
    for _ in range(depth):
        within = Call("builtins.set", ([within, within],))
    return released(network("EDMPrecond", "SongUNet", SONG | {"encoder_type": within}, {}, **STATE))


def typed(code: bytes) -> bytes:
    """A number by numpy. code: instructions that give its type."""
    numpy = b"\x80\x04cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n"
    return numpy + code + b"\x85RC\x04\x00\x00\x00\x00\x86R."


def repeated(entries: dict[str, Any], count: int = 1_000) -> bytes:
    """Modules that share the mapping of their parameters."""
    parameters = Call("collections.OrderedDict", items=entries)
    modules = {f"m{i}": module("A", {"a": 1}, {}, _parameters=parameters) for i in range(count)}
    return around(module("A", {"a": 1}, {}, _modules=modules))


def doubled(depth: int) -> Any:
    """A tuple of twice the same tuple, and so on."""
    within: Any = ()
    for _ in range(depth):
        within = Call("builtins.set", ((within, within),))
    return within


EMPTY = call_of(torch.zeros(0))
BOMBS: dict[str, bytes] = {
    "branching embedding": released(
        network("EDMPrecond", "SongUNet", SONG | {"embedding_type": doubled(40)}, {}, **STATE)
    ),
    "shared empty tensors": repeated({f"weight{i}": EMPTY for i in range(2_000)}),
    "shared nothing": repeated({f"weight{i}": None for i in range(50_000)}),
    "shared long name": repeated({"a" * 10**6: EMPTY}),
    "shared long name of nothing": repeated({"a" * 10**6: None}),
    "long name of a module": around(module("A", {"a": 1}, {}, _modules={"a" * 1_001: module("A", {"a": 1}, {})})),
    "branching modules within limits of depth": branching(19),
    "branching type": typed(b"N" + b"".join(b"\x94h%c\x86" % i for i in range(60))),
    "deep type": typed(b"N" + b"\x85" * 1_500_000),
    "number of no type": typed(b"")[:-1].replace(b"\x85R", b")R") + b".",
    "type of text": b"\x80\x04cnumpy.core.multiarray\nscalar\n\x8c\x01aC\x00\x86R.",
    "list in itself": b"\x80\x04]\x94h\x00a.",
    "lists that grow within": b"\x80\x04]\x94]\x94ah\x01Na.",
    "object in itself": pickled(Call(TENSOR))[:-1] + b"\x94h\x03b.",
    "bytes": claims(b"\x8e", 2**62, "<Q"),
    "text": claims(b"\x8d", 2**62, "<Q"),
    "short bytes": claims(b"B", 2**32 - 1, "<I"),
    "bytearray": claims(b"\x96", 2**62, "<Q"),
    "number": claims(b"\x8b", 2**31 - 1, "<i"),
    "frame": claims(b"\x95", 2**62, "<Q"),
    "memo": b"\x80\x04Nr\xff\xff\xff\xff.",
    "no memo": b"\x80\x04h\x07.",
    "lists": b"\x80\x04" + b"](" * 50_000 + b"e" * 50_000 + b".",
    "tuples": b"\x80\x04N" + b"\x85" * 100_000 + b".",
    "marks": b"\x80\x04" + b"(" * 100_000 + b".",
    "long number": b"\x80\x04\x8a\xff" + b"\x7f" * 255 + b".",
    "key": b"\x80\x04}N\x85Ns.",
    "extension": b"\x80\x04\x82\x01.",
    "long extension": b"\x80\x04\x84\x01\x00\x00\x00.",
    "persistent": b"\x80\x04Pos.system\n.",
    "persistent tuple": b"\x80\x04)Q.",
    "buffer": b"\x80\x05\x97.",
    "nothing": b"",
    "stop": b".",
    "text file": b"a network",
    "zip": zipped(),
    "two results": b"\x80\x04NN.",
    "empty stack": b"\x80\x040.",
    "dotted": b"\x80\x04" + Writer().add("torch").add("_utils._rebuild_tensor_v2").written + b"\x93.",
    "number as name": b"\x80\x04K\x01K\x02\x93.",
    "value called": b"\x80\x04K\x01)R.",
    "built dictionary": pickled({})[:-1] + b"}b.",
    "built twice": pickled(Call(TENSOR, (), state={"a": 1}))[:-1] + b"}b.",
    "no ema": pickled({"emma": 1}),
    "ema is text": released("os.system"),
    "ema is a tensor": released(call_of(torch.zeros(2))),
    "meta is text": released(Call(PERSISTENT, ("os.system",))),
    "deep modules": around(module("A", {"a": 1}, {f"{'a.' * 100}b": torch.zeros(1)})),
    "branching modules": branching(60),
    "branching lists": listed(60),
    "shared tensor": shared(100),
    "size": tensor(size=(10**9, 10**9)),
    "size of text": tensor(size=("a", 10**9)),
    "sizes": tensor(size=(1,) * 100_000),
    "negative size": tensor(size=(-4,)),
    "broadcast": tensor(size=(10**9,), stride=(0,)),
    "stride": tensor(stride=(100,)),
    "negative stride": tensor(stride=(-1,)),
    "offset": tensor(offset=100),
    "offset of text": tensor(offset="a"),
    "no storage": tensor(storage=None),
    "storage of text": tensor(storage=Call(STORAGE, ("a",))),
    "storage in a zip": tensor(storage=Call(STORAGE, (zipped(),))),
    "huge storage": tensor(storage=storage(2**30)),
    "negative storage": tensor(storage=storage(-1)),
    "storage of code": tensor(storage=storage(0, "os.system")),
    "storage that calls": tensor(storage=Call(STORAGE, (pickled(Call("os.system", (COMMAND,))),))),
    "cut storage": tensor(storage=Call(STORAGE, (storage_of(torch.zeros(4))[:-3],))),
    "long storage": tensor(storage=Call(STORAGE, (storage_of(torch.zeros(4)) + b"a",))),
}
HOSTILE = {
    f"{name} {i}": content for name, given in NAMES.items() for i, content in enumerate(forms(name, given))
} | BOMBS


def refused(path: Path, content: bytes) -> str:
    """The line that refuses a file. Nothing is imported, and no file is written."""
    path.write_bytes(content)
    before = set(sys.modules)
    with pytest.raises(StudyError) as error:
        read_network(path)
    assert set(sys.modules) == before
    assert [*path.parent.iterdir()] == [path]
    line = str(error.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and line.isprintable()
    return line


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands would write their marker here."""
    read = tmp_path / "good.pkl"
    read.write_bytes(GOOD.content())
    read_network(read)  # imports what reading needs
    read.unlink()
    monkeypatch.chdir(tmp_path)


def test_refuses_hostile_pickles(tmp_path: Path) -> None:
    assert len(HOSTILE) >= 200
    start = time.process_time()
    for name, content in HOSTILE.items():
        line = refused(tmp_path / "hostile.pkl", content)
        if name.startswith("os.system "):
            assert "os.system" in line or "INST" in line
    assert time.process_time() - start < 60


def test_names_what_it_does_not_run(tmp_path: Path) -> None:
    line = refused(tmp_path / "hostile.pkl", HOSTILE["os.system 0"])
    assert line.endswith("(it names os.system, which no released network needs; nothing was run)")


@pytest.mark.parametrize("name", NAMES)
def test_the_forms_work_elsewhere(name: str) -> None:
    """Python's own pickletools accept every form, so that none is refused for a slip of the test."""
    import pickletools

    for content in forms(name, NAMES[name]):
        assert [*pickletools.genops(content)][-1][0].name == "STOP"


def test_refuses_truncated_files(tmp_path: Path) -> None:
    content = GOOD.content()
    for percent in range(100):
        refused(tmp_path / "cut.pkl", content[: len(content) * percent // 100])


def test_refuses_too_many_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle, "MOST_INSTRUCTIONS", 1000)
    assert "more than 1,000 instructions" in refused(tmp_path / "long.pkl", b"\x80\x04" + b"N" * 1001 + b".")
