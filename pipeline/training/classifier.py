"""Training the noise-aware classifier that guides a model, and how often it is right."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.common import processes
from pipeline.common.devices import CPU, to_device
from pipeline.common.randomness import generator
from pipeline.data.dataset import to_range
from pipeline.diffusion.classifier import Network, NoisyClassifier, load_classifier, save_classifier
from pipeline.diffusion.denoiser import per_sample

BATCH = 128
LEARNING_RATE = 2e-3
SIGMA_MIN, SIGMA_MAX = 0.01, 80.0  # below, data are as good as clean; above, they are as good as noise
ACCURACY_SIGMAS = (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 80.0)
ACCURACY_IMAGES = 1024


def _begin(network: Network, draw: torch.Generator) -> None:
    """The weights to start with: uniform within 1 / sqrt(inputs); the last layer's 0, which makes it p(y) anywhere."""
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

    classes: how many images of each there are. By cross-entropy at noise levels spread evenly in ln sigma from
    SIGMA_MIN to SIGMA_MAX, since samplers ask for its gradient over that whole range, about as often in every stretch.
    The loss is weighed with 1 / c(sigma), or else little would be learned at large sigma, where F moves it by c: so all
    levels pull at F with one strength. AdamW, with half a cosine down to 0. The result depends on the arguments alone,
    and is on the CPU, wherever it was trained.
    """
    spec = {"sigma_data": sigma_data, "shape": list(images.shape[1:]), "classes": [int(count) for count in classes]}
    classifier = NoisyClassifier(spec)
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
    """The classifier in a file, or, without one, a new one by `train_classifier`, which is then written there."""
    if path and path.exists():
        return load_classifier(path)
    classes = torch.bincount(labels).tolist()
    classifier = train_classifier(images, labels, classes, sigma_data, seed, count_images, device)
    if path and processes.first():
        save_classifier(classifier, path)
    return classifier


@torch.no_grad()
def accuracy_by_sigma(classifier: NoisyClassifier, images: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
    """The share of images told right at each of ACCURACY_SIGMAS: of some that it learned from, with noise anew."""
    draw = generator("noisy classifier accuracy", seed)
    chosen = torch.randperm(len(images), generator=draw)[:ACCURACY_IMAGES]
    found = {}
    for level in ACCURACY_SIGMAS:
        sigma = torch.full((len(chosen),), level, dtype=torch.float64)
        guesses = classifier(_noisy(images[chosen], sigma, draw), sigma).argmax(1)
        found[f"{level:g}"] = float((guesses == labels[chosen]).double().mean())
    return found
