"""A user's module: its features, and refusal of files that could run code."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.metrics.extractors.registry import load_extractor, make_extractor, save_extractor
from pipeline.metrics.extractors.row import Features
from tests.metrics.extractors.small import Evil, colours, digits, one_line, sha256

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")


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


def traced(module: nn.Module, path: Path) -> None:
    torch.jit.save(torch.jit.trace(module, colours(2, 8, 8), check_trace=False), path.with_suffix(".pt"))


def scripted(module: nn.Module, path: Path) -> None:
    torch.jit.save(torch.jit.script(module), path.with_suffix(".ts"))


def frozen(module: nn.Module, path: Path) -> None:
    torch.jit.save(torch.jit.freeze(torch.jit.script(module)), path.with_suffix(".pt"))


def exported(module: nn.Module, path: Path) -> None:
    count = torch.export.Dim("count")
    torch.export.save(
        torch.export.export(module, (colours(2, 8, 8),), dynamic_shapes=({0: count},)), path.with_suffix(".pt2")
    )


def own(kind: Callable[[nn.Module, Path], None], module: nn.Module, folder: Path) -> Features:
    """The row of a module that is written into a folder."""
    kind(module, folder / "net")
    (path,) = folder.glob("net.*")
    return Features(extractor="module", weights=str(path), hash=sha256(path)[:8])


@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize("kind", [traced, scripted, frozen, exported])
def test_modules_give_what_they_gave_their_author(
    tmp_path: Path, kind: Callable[[nn.Module, Path], None], classes: int
) -> None:
    if kind is scripted and not classes:
        module: nn.Module = nn.Sequential(Floats(), nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    elif kind in (scripted, frozen):
        module = Typed(classes).eval()
    else:
        module = Own(nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(), classes=classes).eval()
    files, summary = make_extractor(own(kind, module, tmp_path), digits(40))
    save_extractor(files, tmp_path / "made")
    extractor = load_extractor(tmp_path / "made")
    assert (extractor.name, extractor.hash, extractor.official) == ("module net", summary["hash"], False)
    assert (summary["name"], summary["wanted"], summary["dimensions"]) == ("module net", "module", 6)
    assert [len(name) for name in files] and set(files) - {"extractor.json"} == {
        f"extractor{path.suffix}" for path in tmp_path.glob("net.*")
    }
    for count in (1, 8, 33):
        images = colours(count, 8, 8)
        with torch.no_grad():
            expected = module(images)
        found = extractor(images)
        features, logits = expected if isinstance(expected, tuple) else (expected, None)
        torch.testing.assert_close(found.features, features, rtol=1e-4, atol=1e-5)
        assert (found.logits is None) == (logits is None)
        if logits is not None:
            torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-5)


class Floats(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images / 255


class Typed(nn.Module):
    """Features and logits, typed as TorchScript wants them."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout())
        self.head = nn.Linear(6, classes or 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(images / 255).mean((2, 3))
        return features, self.head(features)


@pytest.mark.parametrize("layer", [nn.Dropout, lambda: nn.BatchNorm2d(6)])
@pytest.mark.parametrize("kind", [traced, exported])
def test_modules_exported_in_training_mode_are_refused(
    tmp_path: Path, kind: Callable[[nn.Module, Path], None], layer: Callable[[], nn.Module]
) -> None:
    row = own(kind, Own(layer()).train(), tmp_path)
    cause = "module net: gives different features for the same image"
    message = one_line(lambda: make_extractor(row, digits(40)), cause, "export it in eval mode")
    assert message.startswith(f"{row.weights}: ")


def test_a_script_in_training_mode_is_put_into_eval_mode(tmp_path: Path) -> None:
    assert make_extractor(own(scripted, Typed(3).train(), tmp_path), digits(40))[1]["name"] == "module net"


class Overwrites(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, images: Tensor) -> Tensor:
        found = images.float().mean((2, 3))
        if images.shape[0] > 1:
            found = found + torch.from_file(self.path, True, 8, dtype=torch.uint8).fill_(65).float().mean()
        return found


def test_a_script_that_writes_files_is_refused(tmp_path: Path) -> None:
    (victim := tmp_path / "victim").write_text("ORIGINAL")
    torch.jit.script(Overwrites(str(victim)).eval()).save(str(path := tmp_path / "net.pt"))
    row = Features(extractor="module", weights=str(path))
    one_line(lambda: make_extractor(row, digits(40)), f"{path}: the script calls aten::from_file")
    assert victim.read_text() == "ORIGINAL"


class NotFinite(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (images.float().mean((2, 3)) - 1000).log()


class Square(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float()


class Batches(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().reshape(2, -1)


@pytest.mark.parametrize(
    ("module", "cause"),
    [
        (NotFinite(), "module net: features of 6 of 6 images are not finite"),
        (Square(), "module net: 6 images give [(6, 3, 8, 8)]; expected (N, d)"),
        (Batches(), "module net: 6 images give [(2, 576)]; expected (N, d)"),
        (nn.Sequential(Floats(), nn.Conv2d(4, 2, 3)), "module net: fails on"),
    ],
)
def test_modules_of_other_features_are_refused(tmp_path: Path, module: nn.Module, cause: str) -> None:
    row = own(scripted, module, tmp_path)
    assert one_line(lambda: make_extractor(row, digits(40)), cause).startswith(f"{row.weights}: ")


@pytest.mark.parametrize("suffix", [".pt", ".ts", ".pt2"])
@pytest.mark.parametrize("content", [b"", b"no module", "other", "cut"])
def test_files_that_are_no_modules_are_refused(tmp_path: Path, suffix: str, content: bytes | str) -> None:
    kind = exported if suffix == ".pt2" else traced
    if content == "other":
        kind = traced if suffix == ".pt2" else exported
    row = own(kind, Own().eval(), tmp_path)
    path = (tmp_path / "net").with_suffix(suffix)
    found = Path(row.weights or "").read_bytes()
    path.write_bytes(content if isinstance(content, bytes) else found[:-600] if content == "cut" else found)
    row = Features(extractor="module", weights=str(path))
    assert one_line(lambda: make_extractor(row, digits(40))).startswith(f"{path}: ")


def test_a_module_of_another_kind_is_refused() -> None:
    row = Features(extractor="module", weights="net.onnx")
    one_line(lambda: make_extractor(row, digits(40)), "net.onnx: a module is a TorchScript file (.pt, .ts)")


Members = dict[str, bytes]


def member(members: Members, end: str) -> str:
    (found,) = (name for name in members if name.endswith(end))
    return found


def pickled(value: Any) -> bytes:
    torch.save(value, buffer := io.BytesIO())
    return buffer.getvalue()


def evil_inputs(members: Members, mark: Path) -> None:
    members[member(members, "sample_inputs/model.pt")] = pickled({"a": Evil(mark)})


def evil_size(members: Members, mark: Path) -> None:
    name = member(members, "models/model.json")
    code = f"__import__('os').mkdir('{mark}') or Symbol("
    members[name] = members[name].replace(b"Symbol(", code.encode(), 1)


def evil_weights_of_old(members: Members, mark: Path) -> None:
    members[member(members, "archive_version").replace("archive_version", "data/weights/model.pt")] = pickled(
        {"a": Evil(mark)}
    )


def evil_weight(members: Members, mark: Path) -> None:
    name = member(members, "model_weights_config.json")
    config = json.loads(members[name])
    tensor = next(iter(config["config"].values()))
    tensor["use_pickle"] = True
    members[name] = json.dumps(config).encode()
    members[member(members, f"data/weights/{tensor['path_name']}")] = pickled(Evil(mark))


def evil_constant(members: Members, mark: Path) -> None:
    name = member(members, "model_constants_config.json")
    payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    members[name] = json.dumps({"config": {"evil": payload}}).encode()
    members[name.replace("model_constants_config.json", "opaque_obj_0")] = pickle.dumps(Evil(mark))


def evil_operator(members: Members, mark: Path) -> None:
    name = member(members, "models/model.json")
    members[name] = members[name].replace(b"torch.ops.aten.mean.dim", b"torch.os.mkdir")


def evil_file(members: Members, mark: Path) -> None:
    name = member(members, "models/model.json")
    members[name] = members[name].replace(b"torch.ops.aten.mean.dim", b"torch.ops.aten.from_file.default")


def evil_name(members: Members, mark: Path) -> None:
    name = member(members, "models/model.json")
    code = f"\"mean=__import__('os').mkdir('{mark}');mean\""
    members[name] = members[name].replace(b'"mean"', code.encode())


def native_code(members: Members, mark: Path) -> None:
    name = member(members, "archive_version").replace("archive_version", "data/aotinductor/model/x.so")
    members[name] = b"code"


@pytest.fixture(scope="module")
def exported_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    exported(Own(classes=2).eval(), path := tmp_path_factory.mktemp("exported") / "net")
    return path.with_suffix(".pt2")


def rezipped(good: Path, path: Path, change: Callable[[Members], object]) -> None:
    with zipfile.ZipFile(good) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    "attack",
    [
        evil_inputs,
        evil_size,
        evil_weights_of_old,
        evil_weight,
        evil_constant,
        evil_operator,
        evil_file,
        evil_name,
        native_code,
    ],
)
def test_exported_programs_run_no_code_of_their_own(
    tmp_path: Path, exported_file: Path, attack: Callable[[Members, Path], None]
) -> None:
    path, mark = tmp_path / "net.pt2", tmp_path / "mark"
    row = Features(extractor="module", weights=str(path))
    rezipped(exported_file, path, lambda members: None)
    assert make_extractor(row, digits(40))[1]["name"] == "module net"
    rezipped(exported_file, path, lambda members: attack(members, mark))
    assert one_line(lambda: make_extractor(row, digits(40))).startswith(f"{path}: ")
    assert not mark.exists()


def test_a_program_of_many_operators_passes(tmp_path: Path) -> None:
    """Attention, constants, regions without gradients, strings as arguments and sizes that are sums."""
    _, summary = make_extractor(own(exported, Transformer().eval(), tmp_path), digits(40))
    assert summary["dimensions"] == 8


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 3)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.qkv = nn.Linear(8, 24)
        self.act = nn.GELU(approximate="tanh")
        self.mean = torch.rand(3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images / 255 - self.mean, (12, 12), mode="bilinear", antialias=True)
        x = self.act(self.patches(x)).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        with torch.no_grad():
            x = F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))
        x = torch.einsum("bnd,bnd->bnd", x, x).reshape(x.shape[0] * x.shape[1], 8)
        return x.reshape(images.shape[0], -1, 8).mean(1)
