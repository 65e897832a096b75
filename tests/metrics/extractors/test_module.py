"""A user's module: its features, and refusal of files that could run code."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.metrics.extractors import exported
from pipeline.metrics.extractors.registry import load_extractor, make_extractor, save_extractor
from pipeline.metrics.extractors.row import Features
from tests.metrics.extractors.small import Evil, colours, digits, one_line, sha256


class Own(nn.Module):
    """Features of the images' own, and logits where there are classes; no batch size is written into its graph."""

    def __init__(self, *layers: nn.Module, classes: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(6, classes) if classes else None

    def forward(self, images: Tensor) -> Any:
        features = self.layers(self.first(images / 255)).mean((2, 3))
        return features if self.head is None else (features, self.head(features))


class Transformer(nn.Module):
    """Attention, constants, contexts, several results, strings as arguments, and sizes that are products."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 3)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.qkv = nn.Linear(8, 24)
        self.act = nn.GELU(approximate="tanh")
        self.mean = torch.rand(3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.to(torch.float32) / 255 - self.mean, (12, 12), mode="bilinear", antialias=True)
        x = self.act(self.patches(x)).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        with torch.no_grad():
            x = F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))
        with torch.autocast("cpu", torch.bfloat16):
            x = torch.einsum("bnd,bnd->bnd", x, x).reshape(x.shape[0] * x.shape[1], 8)
        x = x.reshape(images.shape[0], -1, 8).masked_fill(torch.ones(8, device=x.device) > 2, float("-inf"))
        largest, _ = x.topk(2, 1)
        return largest.mean(1)


def written(module: nn.Module, path: Path) -> Path:
    dynamic = ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(module, (colours(2, 8, 8),), dynamic_shapes=dynamic), path)
    return path


def row_of(path: Path) -> Features:
    return Features(extractor="module", weights=str(path), hash=sha256(path)[:8])


@pytest.mark.parametrize(
    "module",
    [Own(nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout()), Own(classes=5), Transformer()],
    ids=["features", "logits", "transformer"],
)
def test_modules_give_what_they_gave_their_author(tmp_path: Path, module: nn.Module) -> None:
    path = written(module.eval(), tmp_path / "net.pt2")
    files, summary = make_extractor(row_of(path), digits(40))
    save_extractor(files, tmp_path / "made")
    extractor = load_extractor(tmp_path / "made")
    assert (extractor.name, extractor.hash, extractor.official) == ("module net", summary["hash"], False)
    assert (summary["name"], summary["wanted"]) == ("module net", "module")
    assert set(files) == {"extractor.json", "extractor.pt2"}
    theirs = torch.export.load(path).module(check_guards=False)
    for images in (colours(number, 8, 8) for number in (1, 8, 33)):
        found = extractor(images)
        with torch.no_grad():
            expected = [theirs(part) for part in images.split(extractor.batch)]
        parts = [part if isinstance(part, tuple) else (part, None) for part in expected]
        assert torch.equal(found.features, torch.cat([features.float() for features, _ in parts]))
        logits = [part for _, part in parts if part is not None]
        assert torch.equal(found.logits, torch.cat(logits)) if found.logits is not None else not logits


def test_a_value_is_forgotten_after_its_last_use(tmp_path: Path) -> None:
    program = exported.read_exported(written(Transformer().eval(), tmp_path / "net.pt2").read_bytes())
    last: dict[str, int] = {}
    for number, node in enumerate(program.graph.nodes):
        for argument in [*node.positional, *node.named.values(), *node.results]:
            last |= dict.fromkeys(argument.names(), number)
    kept = {name for argument in program.graph.outputs for name in argument.names()}
    finished = {name: number for number, node in enumerate(program.graph.nodes) for name in node.finished}
    assert finished == {name: number for name, number in last.items() if name not in kept} and len(finished) > 20


@pytest.mark.parametrize("layer", [nn.Dropout, lambda: nn.BatchNorm2d(6)])
def test_modules_exported_in_training_mode_are_refused(tmp_path: Path, layer: Callable[[], nn.Module]) -> None:
    row = row_of(written(Own(layer()).train(), tmp_path / "net.pt2"))
    cause = "module net: gives different features for the same image"
    message = one_line(lambda: make_extractor(row, digits(40)), cause, "export it in eval mode")
    assert message.startswith(f"{row.weights}: ")


class NotFinite(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (images.float().mean((2, 3)) - 1000).log()


class Square(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float()


class Batches(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().reshape(2, -1)


class Named(nn.Module):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": images.float().mean((2, 3)), "features": images.float().mean((2, 3))}


class Fixed(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (images + torch.zeros(2, 3, 8, 8)).mean((2, 3))


@pytest.mark.parametrize(
    ("module", "cause"),
    [
        (NotFinite(), "module net: features of 6 of 6 images are not finite"),
        (Square(), "module net: 6 images give [(6, 3, 8, 8)]; expected (N, d)"),
        (Batches(), "module net: 6 images give [(2, 576)]; expected (N, d)"),
        (Named(), "the program returns neither features nor (features, logits)"),
        (Fixed(), "module net: fails on 1, 5 or 6 uint8 images"),
    ],
)
def test_modules_of_other_features_are_refused(tmp_path: Path, module: nn.Module, cause: str) -> None:
    row = row_of(written(module, tmp_path / "net.pt2"))
    assert one_line(lambda: make_extractor(row, digits(40)), cause).startswith(f"{row.weights}: ")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("content", ["", "no module", "TorchScript", "cut"])
def test_files_that_are_no_programs_are_refused(tmp_path: Path, exported_file: Path, content: str) -> None:
    path = tmp_path / "net.pt2"
    path.write_text(content)
    if content == "TorchScript":
        torch.jit.save(torch.jit.trace(Own().eval(), colours(2, 8, 8), check_trace=False), path)
    elif content == "cut":
        path.write_bytes(exported_file.read_bytes()[:-600])
    assert one_line(lambda: make_extractor(row_of(path), digits(40)), "torch.export.save").startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["net.pt", "net.ts", "net.onnx", "net"])
def test_only_exported_programs_are_modules(name: str) -> None:
    with pytest.raises(
        ValidationError, match=r"weights: module needs the path of an exported program \(.pt2\); write it with torch"
    ):
        Features(extractor="module", weights=name)


def pickled(value: Any) -> bytes:
    torch.save(value, buffer := io.BytesIO())
    return buffer.getvalue()


Members = dict[str, bytes]
Change = Callable[[Members, str], object]

PROGRAM, WEIGHTS, CONSTANTS = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)


def code(mark: str) -> str:
    return f"__import__('os').mkdir('{mark}')"


def replaced(old: str, new: Callable[[str], str]) -> Change:
    """Replaces some text of the program; `new` takes the folder that an attack would make."""

    def change(members: Members, mark: str) -> None:
        assert old.encode() in members[PROGRAM]
        members[PROGRAM] = members[PROGRAM].replace(old.encode(), new(mark).encode())

    return change


def edited(edit: Callable[[dict[str, Any]], object]) -> Change:
    """Edits the graph."""

    def change(members: Members, mark: str) -> None:
        program = json.loads(members[PROGRAM])
        edit(program["graph_module"]["graph"])
        members[PROGRAM] = json.dumps(program).encode()

    return change


def payload(member: str, file: str, content: Callable[[Any], bytes]) -> Change:
    """Makes a tensor a pickle."""

    def change(members: Members, mark: str) -> None:
        config = json.loads(members[member])
        entry = {"path_name": file, "is_param": False, "use_pickle": True, "tensor_meta": None}
        config["config"] |= {name: entry for name in config["config"] or ["evil"]}
        members[member] = json.dumps(config).encode()
        members[f"{member.rpartition('/')[0]}/{file}"] = content(Evil(Path(mark)))

    return change


IGNORED: dict[str, Change] = {
    "sample inputs": lambda members, mark: members.update(
        {"data/sample_inputs/model.pt": pickled({"a": Evil(Path(mark))})}
    ),
    "weights of old": lambda members, mark: members.update({"data/weights/model.pt": pickled({"a": Evil(Path(mark))})}),
    "native code": lambda members, mark: members.update({"data/aotinductor/model/x.so": b"code"}),
    "a path out of the archive": lambda members, mark: members.update({f"../..{mark}": b"content"}),
    "a size": replaced("Symbol(", lambda mark: f"{code(mark)} or Symbol("),
    "a power tower": replaced("Symbol(", lambda _: f"{'Pow(Integer(9), ' * 50}Symbol("),
    "a name": replaced('"mean"', lambda mark: f'"x={code(mark)};x"'),
    "guards": replaced('"guards_code": []', lambda mark: f'"guards_code": ["{code(mark)}"]'),
    "a type": replaced("builtins.dict", lambda mark: f"os.{code(mark)}"),
}


def calling(target: str) -> Change:
    return replaced("torch.ops.aten.mean.dim", lambda _: target)


def power_tower(graph: dict[str, Any]) -> None:
    """2 to the power of 2 to the power ..., as operators on sizes, with the result as a dimension."""
    size, names = {"as_sym_int": {"as_int": 9}}, count()
    for node in graph["nodes"][:1] * 5:
        name = {"as_name": f"tower_{next(names)}"}
        inputs = [{"name": "", "arg": argument, "kind": 1} for argument in ({"as_int": 9}, size)]
        graph["nodes"].insert(
            0, node | {"target": "_operator.pow", "inputs": inputs, "outputs": [{"as_sym_int": name}]}
        )
        size = {"as_sym_int": name}
    graph["nodes"][:5] = graph["nodes"][4::-1]


def nested(graph: dict[str, Any]) -> None:
    """The whole graph within a context, and an operator that writes a file in it."""
    inner = json.loads(json.dumps(graph).replace("torch.ops.aten.mean.dim", "torch.ops.aten.from_file.default"))
    inputs = [{"as_bool": False}, {"as_graph": {"name": "inner", "graph": inner}}, *graph["inputs"]]
    graph["nodes"] = [
        {
            "target": "torch.ops.higher_order.wrap_with_set_grad_enabled",
            "inputs": [{"name": "", "arg": argument, "kind": 1} for argument in inputs],
            "outputs": graph["outputs"],
        }
    ]


REFUSED: dict[str, tuple[Change, str]] = {
    "a pickled weight": (payload(WEIGHTS, "weight_0", pickled), "is pickled"),
    "a pickled object": (payload(CONSTANTS, "opaque_obj_0", pickle.dumps), "is pickled"),
    "a function of Python": (calling("os.mkdir"), "calls 'os.mkdir', which is not among"),
    "a module of torch": (calling("torch.os.mkdir"), "calls 'torch.os.mkdir'"),
    "a file": (calling("torch.ops.aten.from_file.default"), "calls 'torch.ops.aten.from_file.default'"),
    "a file in a context": (edited(nested), "calls 'torch.ops.aten.from_file.default'"),
    "another's operator": (calling("torch.ops.mine.mean.dim"), "calls 'torch.ops.mine.mean.dim'"),
    "a higher order": (calling("torch.ops.higher_order.cond"), "calls 'torch.ops.higher_order.cond'"),
    "no check of bounds": (calling("torch.ops.aten._reshape_alias.default"), "calls 'torch.ops.aten._reshape_alias"),
    "an operator on text": (calling("torch.ops.aten.add.str"), "calls 'torch.ops.aten.add.str'"),
    "a given result": (calling("torch.ops.aten.mean.out"), "calls 'torch.ops.aten.mean.out'"),
    "a member of an operator": (calling("torch.ops.aten.mean.__init__"), "calls 'torch.ops.aten.mean.__init__'"),
    "no operator": (calling(""), "calls ''"),
    "another argument": (replaced("as_ints", lambda _: "as_operator"), "an argument of the kind 'as_operator'"),
    "a tower of sizes": (edited(power_tower), "computes with sizes that no image has"),
    "a training": (replaced("user_output", lambda _: "buffer_mutation"), "export it in eval mode"),
    "an object": (replaced("user_input", lambda _: "custom_obj"), "an input of the kind 'custom_obj'"),
    "another schema": (replaced('"major": 8', lambda _: '"major": 9'), "another schema than 8"),
    "no program": (lambda members, mark: members.pop(PROGRAM), "has no 'models/model.json'"),
    "depth": (lambda members, mark: members.update({PROGRAM: b"[" * 10**6}), "RecursionError"),
    "length": (lambda members, mark: members.update({PROGRAM: b" " * (40 << 20)}), "is longer than 32 MiB"),
    "long numbers": (edited(lambda graph: graph.update(inputs=int("9" * 4000))), "not an exported program"),
}


@pytest.fixture(scope="module")
def exported_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(Own(classes=2).eval(), tmp_path_factory.mktemp("exported") / "net.pt2")


def rezipped(good: Path, path: Path, change: Change, mark: Path, **keys: Any) -> Features:
    with zipfile.ZipFile(good) as archive:
        members = {name.removeprefix("net/"): archive.read(name) for name in archive.namelist()}
    change(members, str(mark))
    with zipfile.ZipFile(path, "w", **keys) as archive:
        for name, content in members.items():
            archive.writestr(f"net/{name}", content)
    return row_of(path)


@pytest.mark.parametrize("attack", IGNORED)
def test_what_would_run_elsewhere_is_not_even_read(tmp_path: Path, exported_file: Path, attack: str) -> None:
    row = rezipped(exported_file, tmp_path / "net.pt2", IGNORED[attack], tmp_path / "mark")
    assert make_extractor(row, digits(40))[1]["name"] == "module net"
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]


@pytest.mark.parametrize("attack", REFUSED)
def test_programs_that_networks_are_not_are_refused(tmp_path: Path, exported_file: Path, attack: str) -> None:
    change, cause = REFUSED[attack]
    row = rezipped(exported_file, path := tmp_path / "net.pt2", change, tmp_path / "mark")
    assert one_line(lambda: make_extractor(row, digits(40)), cause).startswith(f"{path}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]


def test_archives_that_are_longer_than_their_file_are_refused(tmp_path: Path, exported_file: Path) -> None:
    path, mark = tmp_path / "net.pt2", tmp_path / "mark"
    row = rezipped(exported_file, path, lambda *_: None, mark, compression=zipfile.ZIP_DEFLATED)
    one_line(lambda: make_extractor(row, digits(40)), f"{path}: the archive is compressed")
    rezipped(exported_file, path, lambda *_: None, mark)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"other/{PROGRAM}", b"{}")
    one_line(lambda: make_extractor(row_of(path), digits(40)), f"{path}: the archive has two members of one name")
