"""Training of the noise-aware classifier that guides a model, and its accuracy."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.common import processes
from pipeline.common.devices import CPU, to_device
from pipeline.common.randomness import generator
from pipeline.common.sealed import kept
from pipeline.data.dataset import to_range
from pipeline.diffusion.classifier import Network, NoisyClassifier, load_classifier, save_classifier
from pipeline.diffusion.denoiser import per_sample

BATCH = 128
LEARNING_RATE = 2e-3
SIGMA_MIN, SIGMA_MAX = 0.01, 80.0  # below, data are nearly clean; above, they are nearly pure noise
ACCURACY_SIGMAS = (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 80.0)
ACCURACY_IMAGES = 1024


def _begin(network: Network, draw: torch.Generator) -> None:
    """Draw initial weights: uniform within 1 / sqrt(inputs); 0 in the last layer, so that the output is p(y)."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=draw)
        elif isinstance(module, nn.GroupNorm):
            module.reset_parameters()
    for parameter in network.head.weights.parameters():
        nn.init.zeros_(parameter)


def _noisy(images: Tensor, sigma: Tensor, draw: torch.Generator) -> Tensor:
    """x0 + sigma n of images (N, C, H, W), uint8, or points (N, 2), floats, at noise levels (N,)."""
    x0 = to_range(images) if images.dtype == torch.uint8 else images.float()
    return x0 + per_sample(sigma, x0) * torch.randn(x0.shape, generator=draw)


def train_classifier(
    images: Tensor,
    labels: Tensor,
    classes: Sequence[int],
    sigma_data: float,
    seed: int,
    count_images: int,
    device: torch.device = CPU,
) -> NoisyClassifier:
    """Train on `count_images` draws from images (N, C, H, W), uint8, or points (N, 2), with labels (N,), int64.

    classes: the number of images in each class. The loss is the cross-entropy at noise levels that are uniform in
    ln sigma from SIGMA_MIN to SIGMA_MAX, because samplers need the gradient over this range. Its weight is
    1 / c(sigma), without which little would be learned at large sigma, where F changes the loss by c. The optimizer
    is AdamW, with half a cosine down to 0. The result depends on the arguments alone and is on the CPU.
    """
    classifier = NoisyClassifier(sigma_data, images.shape[1:], [int(count) for count in classes])
    _begin(classifier.network, generator("noisy classifier", seed))
    classifier.to(device)
    optimizer = torch.optim.AdamW(classifier.parameters(), LEARNING_RATE, weight_decay=0.01)
    steps = max(count_images // BATCH, 1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        draw = generator("noisy classifier step", seed, step)
        chosen = torch.randint(len(images), (BATCH,), generator=draw)
        sigma = SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** torch.rand(BATCH, generator=draw, dtype=torch.float64)
        z = to_device(_noisy(images[chosen], sigma, draw), device)
        optimizer.zero_grad()
        losses = F.nll_loss(classifier(z, sigma), to_device(labels[chosen], device), reduction="none")
        (losses / to_device(classifier.scale(sigma).float(), device)).mean().backward()
        optimizer.step()
        schedule.step()
    return classifier.to(CPU).eval().requires_grad_(False)


def kept_classifier(
    path: Path | None,
    images: Tensor,
    labels: Tensor,
    sigma_data: float,
    seed: int,
    count_images: int,
    device: torch.device = CPU,
) -> NoisyClassifier:
    """The classifier in the file `path`. If it is missing or broken, `train_classifier` trains it for that file."""
    if path and (found := kept(load_classifier, path)):
        return found
    classes = torch.bincount(labels).tolist()
    classifier = train_classifier(images, labels, classes, sigma_data, seed, count_images, device)
    if path and processes.first():
        save_classifier(classifier, path)
    return classifier


@torch.no_grad()
def accuracy_by_sigma(classifier: NoisyClassifier, images: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
    """The accuracy at each of ACCURACY_SIGMAS, on training images with new noise."""
    draw = generator("noisy classifier accuracy", seed)
    chosen = torch.randperm(len(images), generator=draw)[:ACCURACY_IMAGES]
    accuracy = {}
    for level in ACCURACY_SIGMAS:
        sigma = torch.full((len(chosen),), level, dtype=torch.float64)
        guesses = classifier(_noisy(images[chosen], sigma, draw), sigma).argmax(1)
        accuracy[f"{level:g}"] = float((guesses == labels[chosen]).double().mean())
    return accuracy
