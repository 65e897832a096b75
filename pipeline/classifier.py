"""A classifier of noisy data, p(y | z; sigma), whose gradient guides a model that knows no classes."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data import to_range
from pipeline.denoiser import per_sample
from pipeline.devices import CPU, to_device
from pipeline.errors import StudyError
from pipeline.files import write_bytes
from pipeline.parametrization import edm_path
from pipeline.randomness import generator

WIDTH, GROUP_CHANNELS = 64, 8
SMALLEST_SIDE = 4  # images are halved down to it
LAYERS = 3  # of the network of points
BATCH = 128
LEARNING_RATE = 2e-3
SIGMA_MIN, SIGMA_MAX = 0.01, 80.0  # below, data are as good as clean; above, they are as good as noise
ACCURACY_SIGMAS = (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 80.0)
ACCURACY_IMAGES = 1024


class Layer(nn.Module):
    """Normalise maps, scale and shift by the noise level's embedding, activate, and then one layer of weights.

    Points are not normalised, whose distance from the origin would be lost.
    """

    def __init__(self, weights: nn.Module, maps: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(WIDTH // GROUP_CHANNELS, WIDTH) if maps else nn.Identity()
        self.affine = nn.Linear(WIDTH, 2 * WIDTH)
        self.weights = weights

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.affine(embedding).reshape(len(x), -1, *(1,) * (x.ndim - 2)).chunk(2, dim=1)
        return self.weights(F.silu(torch.addcmul(shift, self.norm(x), scale + 1)))


class Network(nn.Module):
    """F(x, c_noise): x (N, C, H, W), or (N, d) of points, and c_noise (N,) to (N, classes)."""

    def __init__(self, shape: Sequence[int], classes: int) -> None:
        super().__init__()
        maps = len(shape) > 1
        self.embed = nn.Sequential(nn.Linear(1, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU())
        weights: list[nn.Module]
        pooling: list[nn.Module]
        if maps:
            self.stem: nn.Module = nn.Conv2d(shape[0], WIDTH, 3, padding=1)
            strides = [1] + max(math.ceil(math.log2(min(shape[1:]) / SMALLEST_SIDE)), 0) * [2]
            weights = [nn.Conv2d(WIDTH, WIDTH, 3, stride=stride, padding=1) for stride in strides]
            pooling, features = [nn.AdaptiveAvgPool2d(SMALLEST_SIDE), nn.Flatten()], WIDTH * SMALLEST_SIDE**2
        else:
            self.stem = nn.Linear(shape[0], WIDTH)
            weights, pooling, features = [nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)], [], WIDTH
        self.layers = nn.ModuleList(Layer(each, maps) for each in weights)
        self.head = Layer(nn.Sequential(*pooling, nn.Linear(features, classes)), maps)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        embedding = self.embed(c_noise[:, None])
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x, embedding)
        return self.head(x, embedding)


class NoisyClassifier(nn.Module):
    """ln p(y | z; sigma) = log_softmax(ln p(y) + c F(c_in z; c_noise)), c = c_in sigma_data; c_in, c_noise as EDM's.

    What a Gaussian of std sigma_data tells of its mean goes as c for z = x0 + sigma n, so that F's answers are of one
    size at all noise levels, and p(y | z; sigma) goes to the classes' shares, p(y), as sigma grows.
    `spec` holds what rebuilds it: sigma_data, shape ((C, H, W), or (2,) of points), classes (images of each).
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.spec = spec
        self.sigma_data: float = spec["sigma_data"]
        self.shape: tuple[int, ...] = tuple(spec["shape"])
        self.classes: tuple[int, ...] = tuple(spec["classes"])
        self.log_shares = torch.tensor(self.classes, dtype=torch.float64).log().log_softmax(0).float()
        with torch.device("meta"):  # weights come from elsewhere, and no random numbers from the threads' common source
            self.network = Network(self.shape, len(self.classes))
        self.network.to_empty(device="cpu")

    def forward(self, z: Tensor, sigma: Tensor) -> Tensor:
        """ln p(y | z; sigma): z (N, *shape) at noise level sigma, a scalar or (N,), to (N, classes), float32."""
        sigma = sigma.double().expand(len(z))
        c_in, c_noise = edm_path(sigma, self.sigma_data)
        logits = self.network((per_sample(c_in, z) * z).float(), to_device(c_noise.float(), z.device))
        shares = to_device(self.log_shares, z.device)
        return (shares + per_sample(self.scale(sigma), logits) * logits).log_softmax(1)

    def scale(self, sigma: Tensor) -> Tensor:
        """c(sigma), in sigma's shape."""
        return edm_path(sigma, self.sigma_data)[0] * self.sigma_data

    def log_gradient(self, z: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """grad_z ln p(labels | z; sigma): z (N, *shape), sigma a scalar or (N,), labels (N,), to z's shape."""
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            chosen = self(at, sigma).gather(1, to_device(labels, z.device)[:, None]).sum()
        return torch.autograd.grad(chosen, at)[0]


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


def save_classifier(classifier: NoisyClassifier, path: Path) -> None:
    """Write weights and spec as one safetensors file."""
    tensors = {name: value.contiguous() for name, value in classifier.state_dict().items()}
    write_bytes(path, save(tensors, {"classifier": json.dumps(classifier.spec, sort_keys=True)}))


def missing(path: Path) -> StudyError:
    """What to say where there is no classifier's file."""
    return StudyError(f"{path}: missing; set classifier_images in the model's row")


def load_classifier(path: Path) -> NoisyClassifier:
    """Read what save_classifier wrote, in eval mode. Raises StudyError where the file is missing, cut or foreign."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            spec = json.loads((file.metadata() or {})["classifier"])
        classifier = NoisyClassifier(spec)
        classifier.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise missing(path) from None
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise StudyError(f"{path}: not a classifier of this study ({shorten(str(error), 300)})") from None
    return classifier.eval().requires_grad_(False)
