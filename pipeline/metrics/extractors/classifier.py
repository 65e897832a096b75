"""The default extractor: a small classifier that the study trains on its own images."""

from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.common.devices import default_device, to_device
from pipeline.common.errors import StudyError
from pipeline.common.files import content_hash
from pipeline.common.randomness import generator
from pipeline.common.sealed import FOREIGN
from pipeline.common.tensors import decode, encode
from pipeline.data.dataset import Dataset, to_range
from pipeline.metrics.extractors.extractor import BATCH, Extractor, Record
from pipeline.metrics.extractors.row import Features

HELD_OUT = 5  # one of so many images is kept from training, unless the caller says which ones
PREPROCESSING = "uint8 to [-1, 1]: x / 127.5 - 1"


class FeatureNetwork(nn.Module):
    """A small convolutional classifier. The features are the inputs of its last layer, averaged over the image.

    All layers are convolutions: the training of a linear layer rounds differently on processors of different makers,
    and two classifiers that begin alike end with features on another scale.
    """

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
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (N, C, H, W), uint8, to features (N, width) and logits (N, classes)."""
        pooled = self.body(to_range(images)).mean((2, 3), keepdim=True)
        return pooled.flatten(1), self.head(pooled).flatten(1)


def pretext(dataset: Dataset) -> tuple[str, Tensor, Tensor, int]:
    """The classifier's task: (name, images, labels, number of classes).

    The classes of the data set; without classes, the number of quarter turns of an image (Gidaris et al. 2018,
    arXiv 1803.07728). Raises StudyError for images that are neither labelled nor square.
    """
    if dataset.labels is not None and len(dataset.classes) > 1:
        return "classifier", dataset.images, dataset.labels, len(dataset.classes)
    if dataset.images.shape[-1] != dataset.images.shape[-2]:
        raise StudyError(
            "images without classes must be square, because the classifier learns how far they are turned; crop them"
        )
    turned = torch.cat([dataset.images.rot90(k, (2, 3)) for k in range(4)])
    return "rotation classifier", turned, torch.arange(4).repeat_interleave(len(dataset.images)), 4


def train_classifier(row: Features, dataset: Dataset, left_out: Tensor | None = None) -> tuple[bytes, dict[str, Any]]:
    """Train the classifier: the content of its file, and its accuracy on the images that its training leaves out.

    left_out: their places (k,); by default a random fifth, which is seeded. The result depends only on the arguments
    and on the device.
    """
    name, images, labels, classes = pretext(dataset)
    count = len(dataset.images)
    if left_out is None:
        left_out = torch.randperm(count, generator=generator("held out", row.seed))[: count // HELD_OUT]
    held = torch.zeros(count, dtype=torch.bool)
    held[left_out] = True
    held = held.repeat(len(images) // count)
    shape = {"image_channels": images.shape[1], "size": min(images.shape[2:]), "width": row.width, "classes": classes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator("classifier", row.seed).initial_seed())
        network = FeatureNetwork(**shape)
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
    content = encode(network.state_dict(), "extractor", {"name": name, "shape": shape})
    return content, {"held_out_images": len(guesses), "held_out_accuracy": accuracy}


def obtain(row: Features, dataset: Dataset, left_out: Tensor | None) -> tuple[bytes, Record]:
    content, held_out = train_classifier(row, dataset, left_out)
    return content, {"file": "extractor.safetensors", **held_out}


def build(content: bytes, record: Record) -> Extractor:
    try:
        tensors, extractor = decode(content, "extractor")
        with torch.random.fork_rng(devices=[]):
            name, network = extractor["name"], FeatureNetwork(**extractor["shape"])
        network.load_state_dict(tensors)
    except FOREIGN as error:
        raise StudyError(f"not an extractor of this study ({shorten(str(error), 300)})") from None
    return Extractor(name, content_hash(PREPROCESSING, content), PREPROCESSING, network.eval().requires_grad_(False))
