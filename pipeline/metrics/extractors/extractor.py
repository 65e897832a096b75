"""Feature extractors by name: how each is had, what it makes of images, and what a score on it may be called."""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, Literal, NamedTuple, Self

import safetensors
import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.common.devices import default_device, to_device
from pipeline.common.download import download, timeout
from pipeline.common.errors import StudyError
from pipeline.common.files import content_hash, read_json, write_bytes
from pipeline.common.randomness import generator
from pipeline.common.rows import Row
from pipeline.data.dataset import Dataset, is_points, to_range
from pipeline.metrics.extractors.module import FORMATS

HELD_OUT = 5  # one image in so many is kept from training
BATCH = 256
LARGE_BATCH = 32  # where images are enlarged first
TOLERANCE = 1e-3  # relative; between features of the same image in different company

COORDINATES = "coordinates"  # the extractor of points, whose features are themselves

PREPROCESSING = {
    "classifier": "uint8 to [-1, 1]: x / 127.5 - 1",
    "inception": "uint8 RGB (grey repeated), bilinear as in TensorFlow 1 to 299 x 299, (x - 128) / 128",
    "dinov2": "uint8 RGB (grey repeated), bilinear as in TensorFlow 1 to 224 x 224, mean and deviation of ImageNet",
    "module": "uint8 RGB (grey repeated), all else by the module itself",
    COORDINATES: "points as they are",
}
COORDINATES_HASH = content_hash(COORDINATES, PREPROCESSING[COORDINATES])


class Unavailable(StudyError):
    """Weights that others publish cannot be had at present."""


@dataclass(frozen=True)
class Extracted:
    """features (N, d) and, where the extractor is a classifier, logits (N, k), float32, on the network's device."""

    features: Tensor
    logits: Tensor | None

    def on(self, device: torch.device) -> Self:
        """The same on a device."""
        return replace(
            self, features=self.features.to(device), logits=None if self.logits is None else self.logits.to(device)
        )


@dataclass(frozen=True)
class Extractor:
    """Features of uint8 images. `name` stands in the report, as in FD (name); `hash` tells weights and preprocessing.

    network: uint8 (N, C, H, W), or of points float32 (N, 2), to features (N, d), or to a tuple (features, logits).
    """

    name: str
    hash: str
    preprocessing: str
    network: nn.Module
    batch: int = BATCH
    rgb: bool = False  # grey images are repeated to three channels
    file_hash: str = ""  # sha256 of the file that the weights were published in
    movable: bool = True  # to a GPU; an exported program stays where it was exported to

    def on(self, device: torch.device) -> Self:
        """Itself, its network being on the device where it can be."""
        if self.movable:
            self.network.to(device)
        return self

    @property
    def official(self) -> bool:
        """Whether a score may be called FID: the Inception network with the weights that torch-fidelity publishes."""
        return self.name == "inception" and self.file_hash.startswith(official_prefix())

    @property
    def of_points(self) -> bool:
        """Whether it takes points and no images."""
        return self.name == COORDINATES

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Extracted:
        """images (N, C, H, W), uint8, or points (N, 2), in batches, on the network's device.

        Raises StudyError for a network in training mode, outputs of another shape, and outputs that are not finite.
        """
        if any(getattr(module, "training", False) for module in self.network.modules()):
            raise StudyError(f"{self.name}: the network is in training mode; call .eval() on it")
        found = [self._batch(batch) for batch in images.split(self.batch)]
        features, *logits = (torch.cat(parts) for parts in zip(*found, strict=True))
        finite = torch.cat([features, *logits], 1).isfinite().all(1)
        if not finite.all():
            bad = int((~finite).sum())
            raise StudyError(f"{self.name}: features of {bad} of {len(images)} images are not finite")
        return Extracted(features, logits[0] if logits else None)

    def _batch(self, images: Tensor) -> list[Tensor]:
        weight = next(chain(self.network.parameters(), self.network.buffers()), images)
        images = images.to(weight.device)
        if self.rgb and images.shape[1] == 1:
            images = images.repeat(1, 3, 1, 1)
        output = self.network(images)
        parts = list(output) if isinstance(output, tuple | list) else [output]
        tables = [isinstance(part, Tensor) and part.dim() == 2 and len(part) == len(images) for part in parts]
        if len(parts) not in (1, 2) or not all(tables):
            found = ", ".join(str(tuple(p.shape)) if isinstance(p, Tensor) else type(p).__name__ for p in parts)
            raise StudyError(f"{self.name}: {len(images)} images give [{found}]; expected (N, d), or (N, d) and (N, k)")
        return [part.float() for part in parts]


LABELS = {
    "w2": ("2-Wasserstein distance", "2-Wasserstein distance"),
    "sliced_w2": ("sliced 2-Wasserstein distance", "sliced 2-Wasserstein distance"),
    "fd": ("FID", "FD ({})"),
    "fd_corrected": ("bias-corrected FID", "bias-corrected FD ({})"),
    "fd_infinity": ("FID at infinite samples", "FD ({}) at infinite samples"),
    "kd": ("KID", "KD ({})"),
    "score": ("Inception score", "IS ({})"),
    "precision": ("precision", "precision ({})"),
    "recall": ("recall", "recall ({})"),
    "density": ("density", "density ({})"),
    "coverage": ("coverage", "coverage ({})"),
    "near_duplicates": ("near-duplicates", "near-duplicates ({})"),
}


def label(metric: str, name: str, official: bool) -> str:
    """What a metric, a key of LABELS, is called on an extractor: FID and its kin on the official network alone."""
    return LABELS[metric][0 if official else 1].format(name)


def headline(extractor: str) -> str:
    """The metric that a study's headline figures and comparisons are made with, by its extractor's name."""
    return "w2" if extractor == COORDINATES else "fd_corrected"


class Network(nn.Module):
    """A small convolutional classifier; what its last layer sees, averaged over the image, are the features."""

    def __init__(self, image_channels: int, size: int, width: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(image_channels, width // 2, 3, padding=1)]
        inputs = width // 2
        while True:
            layers += [nn.GroupNorm(4, inputs), nn.ReLU(), nn.Conv2d(inputs, width, 3, padding=1)]
            inputs = width
            if size <= 4:
                break
            layers += [nn.GroupNorm(4, width), nn.ReLU(), nn.Conv2d(width, width, 3, stride=2, padding=1)]
            size = (size + 1) // 2
        self.body = nn.Sequential(*layers, nn.GroupNorm(4, width), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (N, C, H, W), uint8, to features (N, width) and logits (N, classes)."""
        features = self.body(to_range(images)).mean((2, 3))
        return features, self.head(features)


def pretext(dataset: Dataset) -> tuple[str, Tensor, Tensor, int]:
    """What the classifier learns: (name, images, labels, number of classes).

    The data set's own classes, or, where it has none, by how many quarters an image was turned
    (Gidaris et al. 2018, arXiv 1803.07728).
    """
    if dataset.labels is not None and len(dataset.classes) > 1:
        return "classifier", dataset.images, dataset.labels, len(dataset.classes)
    if dataset.images.shape[-1] != dataset.images.shape[-2]:
        raise StudyError(
            "images without classes must be square, since the extractor learns to tell how they are turned"
        )
    turned = torch.cat([dataset.images.rot90(k, (2, 3)) for k in range(4)])
    return "rotation classifier", turned, torch.arange(4).repeat_interleave(len(dataset.images)), 4


def train_classifier(row: "Features", dataset: Dataset) -> tuple[bytes, dict[str, Any]]:
    """Train the classifier: its file's content, and how it does on the held-out fifth of the images.

    The split is by image and seeded; the result depends on the arguments alone, and on the device it is trained on.
    """
    name, images, labels, classes = pretext(dataset)
    count = len(dataset.images)
    order = torch.randperm(count, generator=generator("held out", row.seed))
    held = torch.zeros(count, dtype=torch.bool)
    held[order[: count // HELD_OUT]] = True
    held = held.repeat(len(images) // count)
    shape = {"image_channels": images.shape[1], "size": min(images.shape[2:]), "width": row.width, "classes": classes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator("classifier", row.seed).initial_seed())
        network = Network(**shape)
    device = default_device()
    network.to(device)
    images, labels = images.to(device), labels.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=row.learning_rate, weight_decay=0.01)
    seen = (~held).nonzero().squeeze(1)
    batches = -(-len(seen) // row.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, row.learning_rate, total_steps=row.epochs * batches)
    for epoch in range(row.epochs):
        shuffled = seen[torch.randperm(len(seen), generator=generator("classifier order", row.seed, epoch))]
        for batch in to_device(shuffled, device).split(row.batch):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch])[1], labels[batch]).backward()
            optimizer.step()
            schedule.step()
    network.eval()
    held = held.to(device)
    with torch.no_grad():
        guesses = torch.cat([network(batch)[1].argmax(1) for batch in images[held].split(BATCH)])
    accuracy = float((guesses == labels[held]).cpu().double().mean()) if len(guesses) else 0.0
    # One key of metadata: safetensors writes several in an order that changes from run to run.
    content = save(network.cpu().state_dict(), {"extractor": json.dumps({"name": name, "shape": shape})})
    return content, {"held_out_images": len(guesses), "held_out_accuracy": accuracy}


def _obtain_classifier(row: "Features", dataset: Dataset) -> tuple[bytes, dict[str, Any]]:
    content, held_out = train_classifier(row, dataset)
    return content, {"file": "extractor.safetensors", **held_out}


def _build_classifier(content: bytes, record: dict[str, Any]) -> Extractor:
    preprocessing = PREPROCESSING["classifier"]
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        extractor = json.loads(header["__metadata__"]["extractor"])
        with torch.random.fork_rng(devices=[]):
            name, network = extractor["name"], Network(**extractor["shape"])
        network.load_state_dict(load(content))
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise StudyError(f"not an extractor of this study ({shorten(str(error), 300)})") from None
    return Extractor(name, content_hash(preprocessing, content), preprocessing, network.eval().requires_grad_(False))


def official_prefix() -> str:
    """How the sha256 of torch-fidelity's Inception weights begins, from their file's name."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return Path(URL_INCEPTION_V3).stem.rpartition("-")[2]


def _obtain_inception(row: "Features", dataset: Dataset) -> tuple[bytes, dict[str, Any]]:
    path = _home(row.weights) if row.weights else _official_file()
    content, file_hash = _read(path, row.hash or official_prefix())
    return _as_safetensors(path, content), {"file": "extractor.safetensors", "file_hash": file_hash}


def _official_file() -> Path:
    """torch-fidelity's Inception weights in torch hub's cache, downloaded where they are not there."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
    try:
        if not _begins_with(path, official_prefix()):
            download(URL_INCEPTION_V3, path, official_prefix())
        if not _begins_with(path, official_prefix()):
            raise ValueError(f"{path.name}: its sha256 does not begin with {official_prefix()}")
    except Exception as error:  # whatever a network, a proxy or a full disk brings forth
        raise Unavailable(f"{type(error).__name__}: {error}") from None
    return path


def _begins_with(path: Path, prefix: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest().startswith(prefix)


def _as_safetensors(path: Path, content: bytes) -> bytes:
    """A file of weights, .safetensors or PyTorch's own, as safetensors. Never unpickles anything but tensors."""
    try:
        if path.suffix == ".safetensors":
            state = load(content)
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return save({name: tensor.contiguous().clone() for name, tensor in state.items()})
    except Exception as error:  # unpickling raises what it likes
        cause = shorten(f"{type(error).__name__}: {error}", 200)
        raise StudyError(f"{path}: not a file of weights, a mapping of names to tensors ({cause})") from None


def _build_inception(content: bytes, record: dict[str, Any]) -> Extractor:
    """torch-fidelity's class unpickles the file it is given without restraint: it gets bytes made here from tensors."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    preprocessing = PREPROCESSING["inception"]
    try:
        state = load(content)
        torch.save(state, made := io.BytesIO())
        made.seek(0)
        with torch.random.fork_rng(devices=[]):
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], made)
    except (safetensors.SafetensorError, RuntimeError) as error:
        causes = "; ".join(shorten(line, 160) for line in str(error).splitlines()[:4])
        raise StudyError(f"not the weights of torch-fidelity's Inception v3: {causes}") from None
    weights = content_hash(preprocessing, _digests(state), record["file_hash"])
    return Extractor("inception", weights, preprocessing, network, LARGE_BATCH, rgb=True, file_hash=record["file_hash"])


def _obtain_dinov2(row: "Features", dataset: Dataset) -> tuple[bytes, dict[str, Any]]:
    return b"", {"file": None}  # code and weights stay in torch hub's cache


def _build_dinov2(content: bytes, record: dict[str, Any]) -> Extractor:
    """The choice of Stein et al. 2023, arXiv 2306.04675. torch hub runs the code that its authors publish."""
    preprocessing = PREPROCESSING["dinov2"]
    try:
        from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

        with timeout(), torch.random.fork_rng(devices=[]):
            network = FeatureExtractorDinoV2("dinov2-vit-l-14", ["dinov2"])
    except Exception as error:  # torch hub runs code from elsewhere
        raise Unavailable(f"{type(error).__name__}: {error}") from None
    weights = content_hash(preprocessing, _digests(network.model.state_dict()))
    return Extractor("dinov2-vit-l-14", weights, preprocessing, network, LARGE_BATCH, rgb=True)


def _obtain_module(row: "Features", dataset: Dataset) -> tuple[bytes, dict[str, Any]]:
    path = _home(row.weights or "")
    if path.suffix not in FORMATS:
        raise StudyError(f"{path}: a module is a TorchScript file (.pt, .ts) or an exported program (.pt2)")
    return _read(path, row.hash or "")[0], {"file": f"extractor{path.suffix}", "stem": path.stem}


def _build_module(content: bytes, record: dict[str, Any]) -> Extractor:
    preprocessing, kind = PREPROCESSING["module"], FORMATS[Path(record["file"]).suffix]
    movable = kind is not FORMATS[".pt2"]
    try:
        network = kind(content)
    except StudyError:
        raise
    except Exception as error:  # the readers raise whatever they stumble upon
        cause = shorten(f"{type(error).__name__}: {error}", 300)
        raise StudyError(f"cannot be read as a module ({cause})") from None
    weights = content_hash(preprocessing, content)
    return Extractor(f"module {record['stem']}", weights, preprocessing, network, LARGE_BATCH, True, "", movable)


def _obtain_coordinates(row: "Features", dataset: Dataset) -> tuple[bytes, dict[str, Any]]:
    return b"", {"file": None}


def _build_coordinates(content: bytes, record: dict[str, Any]) -> Extractor:
    return Extractor(COORDINATES, COORDINATES_HASH, PREPROCESSING[COORDINATES], nn.Identity().eval())


def _home(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise StudyError(f"features.weights: {path!r} names no home folder") from None


def _read(path: Path, prefix: str) -> tuple[bytes, str]:
    """A file's content and sha256. Raises StudyError where it is missing or its sha256 begins otherwise."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror})") from None
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(prefix):
        raise StudyError(
            f"{path}: its sha256 is {found}; expected {prefix}...; set features.hash if it is the right file"
        )
    return content, found


def _digests(state: dict[str, Tensor]) -> list[list[Any]]:
    """Name, type, shape and sha256 of each tensor, in the order of their names."""
    digests = []
    for name, tensor in sorted(state.items()):
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digests.append([name, str(tensor.dtype), list(tensor.shape), hashlib.sha256(raw.data).hexdigest()])
    return digests


def probe(extractor: Extractor, shape: tuple[int, ...]) -> int:
    """The number of features, from seeded noise of the shape (C, H, W), or (2,) of points.

    Raises StudyError where an image's features change from call to call or with the images beside it, as they do where
    dropout or batch normalization is in training mode, and where images cannot be taken in any number.
    """
    if len(shape) == 1:
        images = torch.randn(6, *shape, generator=generator("probe"))
    else:
        images = torch.randint(0, 256, (6, *shape), generator=generator("probe"), dtype=torch.uint8)
    try:
        found = extractor(images).features
        others = [extractor(images).features]
        others += [torch.cat([extractor(part).features for part in images.split(size)]) for size in (5, 1)]
    except StudyError:
        raise
    except Exception as error:  # a user's module raises what it likes
        cause = shorten(str(error), 300)
        raise StudyError(f"{extractor.name}: fails on 1, 5 or 6 uint8 images of {shape}: {cause}") from None
    change = max(float((found - other).abs().max()) for other in others)
    if change > TOLERANCE * float(found.abs().max()):
        raise StudyError(
            f"{extractor.name}: gives different features for the same image (by {change:.2g}) from call to call or in"
            " different company; export it in eval mode"
        )
    return found.shape[1]


def check_suits(extractor: str, points: bool) -> None:
    """Raise StudyError where an extractor, a key of EXTRACTORS, is for images and the data are points, or vice versa.

    None is put in another's place unasked: a report would then say another thing than its study file.
    """
    if points and extractor != COORDINATES:
        raise StudyError(
            f"features.extractor: {extractor} takes images, and the data are points; write `{COORDINATES}`"
        )
    if not points and extractor == COORDINATES:
        valid = ", ".join(sorted(set(EXTRACTORS) - {COORDINATES}))
        raise StudyError(f"features.extractor: {COORDINATES} takes points, and the data are images; valid: {valid}")


def make_extractor(row: "Features", dataset: Dataset) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The extractor that a row asks for, or the classifier where published weights cannot be had: files and summary.

    The summary's `fallback` says why the classifier took its place. Raises StudyError for everything else.
    """
    check_suits(row.extractor, is_points(dataset.images))
    try:
        fallback, (files, made) = None, _make(row.extractor, row, dataset)
    except Unavailable as error:
        fallback, (files, made) = str(error), _make("classifier", row, dataset)
    return files, made | {"wanted": row.extractor, "fallback": fallback}


def _make(name: str, row: "Features", dataset: Dataset) -> tuple[dict[str, bytes], dict[str, Any]]:
    content, record = EXTRACTORS[name].obtain(row, dataset)
    try:
        extractor = EXTRACTORS[name].build(content, record)
        dimensions = probe(extractor, tuple(dataset.images.shape[1:]))
    except Unavailable:
        raise
    except StudyError as error:
        raise StudyError(f"{row.weights or name}: {error}") from None
    record = {"extractor": name, "hash": extractor.hash} | record
    files = {"extractor.json": (json.dumps(record, indent=1) + "\n").encode()}
    if record["file"]:
        files[record["file"]] = content
    summary = {
        "name": extractor.name,
        "dimensions": dimensions,
        "official": extractor.official,
        "hash": extractor.hash,
        "preprocessing": extractor.preprocessing,
        "held_out_images": record.get("held_out_images"),
        "held_out_accuracy": record.get("held_out_accuracy"),
    }
    return files, summary


def save_extractor(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        write_bytes(folder / name, content)


def load_extractor(folder: Path) -> Extractor:
    """The extractor in a folder, in eval mode. Raises StudyError where it is missing, broken or another one."""
    place = folder / "extractor.json"
    record = read_json(place)
    try:
        build, wanted = EXTRACTORS[record["extractor"]].build, record["hash"]
        file = record["file"]
        place = folder / (file or "extractor.json")
        extractor = build(place.read_bytes() if file else b"", record)
    except FileNotFoundError:
        raise StudyError(f"{place}: missing; `dvc repro` makes it") from None
    except Unavailable as error:
        raise StudyError(f"{place}: weights cannot be had ({error})") from None
    except StudyError as error:
        raise StudyError(f"{place}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{folder / 'extractor.json'}: not the description of an extractor ({error!r})") from None
    if extractor.hash != wanted:
        raise StudyError(
            f"{place}: not the extractor of the hash {wanted} in extractor.json; delete it and run `dvc repro`"
        )
    return extractor


class Kind(NamedTuple):
    """How an extractor is had and put together.

    obtain: the content of its file and what else to remember of it; its errors say where. build: that, to an extractor;
    its errors say what alone. Either raises Unavailable where the weights are published elsewhere and cannot be had.
    """

    obtain: Callable[["Features", Dataset], tuple[bytes, dict[str, Any]]]
    build: Callable[[bytes, dict[str, Any]], Extractor]


EXTRACTORS = {
    "classifier": Kind(_obtain_classifier, _build_classifier),
    "inception": Kind(_obtain_inception, _build_inception),
    "dinov2": Kind(_obtain_dinov2, _build_dinov2),
    "module": Kind(_obtain_module, _build_module),
    COORDINATES: Kind(_obtain_coordinates, _build_coordinates),
}


class Features(Row):
    """The `features` section: the extractor, its file, and how the classifier is trained.

    Without `hash`, Inception weights must be torch-fidelity's. If an extractor's weights are unavailable, the study
    uses the classifier.
    """

    extractor: Literal[tuple(EXTRACTORS)] = "classifier"  # type: ignore[valid-type]
    """The feature extractor: classifier (trained on the data), inception (FID), dinov2, module, coordinates."""
    weights: Annotated[str, Field(min_length=1)] | None = None
    """File of the extractor's weights. For inception and module."""
    hash: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")] | None = None
    """First digits of the sha256 of that file, at least 8."""
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 64
    """Channels of the classifier, which is the number of features."""
    epochs: PositiveInt = 30
    """Epochs of the classifier's training."""
    batch: PositiveInt = 64
    """Images per step of the classifier's training."""
    learning_rate: PositiveFloat = 2e-3
    """Learning rate of the classifier's training."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the classifier's training."""

    @model_validator(mode="after")
    def _file_where_there_is_one(self) -> Self:
        if self.weights and self.extractor in ("classifier", "dinov2", COORDINATES):
            raise ValueError(f"weights: {self.extractor} takes no file; inception and module do")
        if self.extractor == "module" and not self.weights:
            raise ValueError("weights: module needs the path of a TorchScript file or an exported program")
        if self.hash and not self.weights:
            raise ValueError("hash: belongs to the file in weights, and there is none")
        return self
