"""A classifier of noisy data, p(y | z; sigma), whose gradient guides a model that knows no classes."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.common.devices import to_device
from pipeline.common.sealed import reading
from pipeline.common.tensors import load_tensors, save_tensors
from pipeline.diffusion.denoiser import per_sample
from pipeline.diffusion.parametrization import edm_path

WIDTH, GROUP_CHANNELS = 64, 8
SMALLEST_SIDE = 4  # pixels; strided convolutions halve images down to it
LAYERS = 3  # of the network for points


class Layer(nn.Module):
    """Normalise maps, scale and shift by the embedding of the noise level, activate, and apply one layer of weights.

    Points are not normalised, because that would lose their distance from the origin.
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
    """F(x, c_noise): images x (N, C, H, W) or points (N, D), and c_noise (N,), to (N, classes)."""

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
        self.layers = nn.ModuleList(Layer(layer, maps) for layer in weights)
        self.head = Layer(nn.Sequential(*pooling, nn.Linear(features, classes)), maps)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        embedding = self.embed(c_noise[:, None])
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x, embedding)
        return self.head(x, embedding)


class NoisyClassifier(nn.Module):
    """ln p(y | z; sigma) = log_softmax(ln p(y) + c F(c_in z; c_noise)), c = c_in sigma_data, with EDM's c_in, c_noise.

    For Gaussian classes of width sigma_data, the log-odds that z = x0 + sigma n gives scale with c. So F has one scale
    at all noise levels, and p(y | z; sigma) approaches the shares p(y) of the classes as sigma grows.
    """

    def __init__(self, sigma_data: float, shape: Sequence[int], classes: Sequence[int]) -> None:
        """shape: (C, H, W) of images or (2,) of points. classes: the number of images in each class."""
        super().__init__()
        self.sigma_data, self.shape, self.classes = sigma_data, tuple(shape), tuple(classes)
        self.log_shares = torch.tensor(self.classes, dtype=torch.float64).log().log_softmax(0).float()
        with torch.device("meta"):  # draws no initial weights from the generator that all threads share
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


def save_classifier(classifier: NoisyClassifier, path: Path) -> None:
    """Write weights and arguments as one safetensors file."""
    arguments = {key: getattr(classifier, key) for key in ("classes", "shape", "sigma_data")}
    save_tensors(path, classifier.state_dict(), "classifier", arguments)


def load_classifier(path: Path) -> NoisyClassifier:
    """Read a file by `save_classifier`, in eval mode. Raises StudyError if it is missing, broken or no classifier's."""
    with reading(path):
        tensors, arguments = load_tensors(path, "classifier")
        classifier = NoisyClassifier(**arguments)
        classifier.load_state_dict(tensors)
    return classifier.eval().requires_grad_(False)
