"""Feature extractors for Frechet distances, each with a name and a content hash of its weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import safetensors
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data import Dataset, to_range
from pipeline.errors import StudyError
from pipeline.files import content_hash, write_bytes
from pipeline.randomness import generator
from pipeline.rows import Row

HELD_OUT = 5  # one image in so many is kept from training
BATCH = 256


class Classifier(Row):
    """The `features` section of the study: how the extractor is trained."""

    width: Annotated[int, Field(ge=8, multiple_of=8)] = 64
    epochs: PositiveInt = 30
    batch: PositiveInt = 64
    learning_rate: PositiveFloat = 2e-3
    seed: Annotated[int, Field(ge=0)] = 0


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

    def features(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) in [-1, 1] to (N, width)."""
        return self.body(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@dataclass(frozen=True)
class Extractor:
    """Features of uint8 images. `name` stands in the report, as in FD (name); `hash` tells its weights."""

    name: str
    hash: str
    network: Network

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """images (N, C, H, W), uint8, to float32 features (N, d), in batches, independent of how many there are."""
        return torch.cat([self.network.features(to_range(batch)) for batch in images.split(BATCH)])


def pretext(dataset: Dataset) -> tuple[str, Tensor, Tensor, int]:
    """What the extractor learns: (name, images, labels, number of classes).

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


def train_extractor(row: Classifier, dataset: Dataset) -> tuple[bytes, dict[str, object]]:
    """Train the extractor: its file's content, and a summary with the accuracy on the held-out fifth of the images.

    The split is by image and seeded; the result depends on the arguments alone.
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
    optimizer = torch.optim.AdamW(network.parameters(), lr=row.learning_rate, weight_decay=0.01)
    seen = (~held).nonzero().squeeze(1)
    batches = -(-len(seen) // row.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, row.learning_rate, total_steps=row.epochs * batches)
    for epoch in range(row.epochs):
        shuffled = seen[torch.randperm(len(seen), generator=generator("classifier order", row.seed, epoch))]
        for batch in shuffled.split(row.batch):
            optimizer.zero_grad()
            F.cross_entropy(network(to_range(images[batch])), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        guesses = torch.cat([network(to_range(batch)).argmax(1) for batch in images[held].split(BATCH)])
    accuracy = float((guesses == labels[held]).double().mean()) if len(guesses) else 0.0
    # One key of metadata: safetensors writes several in an order that changes from run to run.
    content = save(network.state_dict(), {"extractor": json.dumps({"name": name, "shape": shape})})
    summary = {"name": name, "dimensions": row.width, "held_out_images": len(guesses), "held_out_accuracy": accuracy}
    return content, summary


def save_extractor(content: bytes, folder: Path) -> None:
    write_bytes(folder / "extractor.safetensors", content)


def load_extractor(folder: Path) -> Extractor:
    """The extractor in a folder, in eval mode. Raises StudyError where it is missing or broken."""
    path = folder / "extractor.safetensors"
    try:
        with safetensors.safe_open(path, "pt") as file:
            extractor = json.loads((file.metadata() or {})["extractor"])
        name, network = extractor["name"], Network(**extractor["shape"])
        network.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise StudyError(f"{path}: missing; `dvc repro` trains it") from None
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise StudyError(f"{path}: not an extractor of this study ({error})") from None
    return Extractor(name, content_hash(path), network.eval().requires_grad_(False))
