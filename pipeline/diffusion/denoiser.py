"""A network as a denoiser D(z; sigma), and its file format."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from pipeline.common.devices import Network, autocast, compiled_calls, to_device
from pipeline.common.errors import StudyError
from pipeline.common.sealed import reading
from pipeline.common.tensors import load_tensors, save_tensors
from pipeline.diffusion.networks.layers import seeded
from pipeline.diffusion.networks.registry import build
from pipeline.diffusion.parametrization import PARAMETRIZATIONS, Coefficients
from pipeline.diffusion.spec import Spec
from pipeline.diffusion.upsampling import Low, conditioning

DenoiserFunction = Callable[[Tensor, Tensor], Tensor]
Inputs = Sequence[Tensor]  # of an upsampler: see `Denoiser.low_inputs`

MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values (N,) as (N, 1, 1, ...), to multiply a batch `like` (N, ...) in its dtype and on its device."""
    return to_device(values.to(like.dtype), like.device).reshape(-1, *(1,) * (like.ndim - 1))


def parted(answer: Tensor, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """An answer for a batch `like` (N, C, ...) in its parts, of `like`'s shape each: F or D, and the variance.

    The second part is None unless the answer has 2 C channels.
    """
    if answer.shape == like.shape:
        return answer, None
    first, second = answer.chunk(2, dim=1)
    return first, second


def network_parts(output: Tensor, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """F and v of a network's output for a batch `like` (N, C, ...), in its shape each. v is None if it is not learned.

    v is the place of a step's variance between beta_tilde (0) and beta (1), in logarithms; the network's output 2 v - 1
    is not limited to [-1, 1] (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 15).
    """
    f, place = parted(output, like)
    return f, None if place is None else (1 + place.to(like)) / 2


def denoised(
    network: Network, coefficients: Coefficients, z: Tensor, *conditions: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """D(z; sigma), and v of `network_parts`, in z's shape and dtype (N, ...).

    coefficients: of the parametrization at sigma, (N,) each. conditions: the network's further inputs.
    """
    c_skip, c_out, c_in, c_noise = coefficients
    output = network((per_sample(c_in, z) * z).float(), to_device(c_noise.float(), z.device), *conditions)
    f, v = network_parts(output, z)
    return torch.addcmul(per_sample(c_skip, z) * z, per_sample(c_out, z), f.to(z)), v


class Denoiser(nn.Module):
    """D(z; sigma) = c_skip z + c_out F(c_in z, c_noise).

    The network gets its initial weights from PyTorch's global generator; `new_denoiser` seeds it. Raises StudyError if
    the network cannot have the spec's shape.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.coefficients = PARAMETRIZATIONS[spec.parametrization]
        self.sigma_data, self.shape, self.classes = spec.sigma_data, spec.shape, spec.classes
        self.network = build(spec)
        self.precision = "float32"
        self.calls: list[Network] = []  # the compiled network, if there is one
        if len(self.shape) == 3:
            self.network.to(memory_format=MEMORY_FORMATS[spec.memory_format])

    def forward(self, z: Tensor, sigma: Tensor, labels: Tensor | None = None, low: Inputs = ()) -> Tensor:
        """The mean of x0 given z (N, *shape) at noise level sigma, a scalar or (N,), in z's shape and dtype.

        labels (N,), int64: the classes, -1 for none. A network without classes ignores them. low: `low_inputs`, which
        an upsampler needs.
        """
        return self._answer(z, sigma, labels, low)[0]

    def with_variance(self, z: Tensor, sigma: Tensor, labels: Tensor | None = None, low: Inputs = ()) -> Tensor:
        """D, and after it along the channels v of `network_parts`, from one call of the network: (N, 2 C, ...).

        Raises StudyError if the network does not learn the variance.
        """
        denoised, v = self._answer(z, sigma, labels, low)
        if v is None:
            raise StudyError(
                "variance: learned needs a network that learns it; set learned_variance in the model's row"
            )
        return torch.cat([denoised, v], dim=1)

    def _answer(self, z: Tensor, sigma: Tensor, labels: Tensor | None, low: Inputs) -> tuple[Tensor, Tensor | None]:
        """D, and v of `network_parts`."""
        coefficients = self.coefficients(sigma.double().expand(len(z)), self.sigma_data)
        labels = None if labels is None else to_device(labels, z.device)
        others = (None, *low) if low else ()
        [network] = self.calls or [self.network]
        with autocast(self.precision, z.device):
            return denoised(network, coefficients, z, labels, *others)

    def low_inputs(self, low: Low) -> list[Tensor]:
        """The inputs `low` and `strength` of an upsampler's network."""
        spec = self.spec
        return conditioning(low, spec.shape[1:], self.sigma_data, spec.low_augmentation, spec.low_strength)

    def run_on(self, device: torch.device, precision: str = "float32", compile: str = "none") -> Self:
        """Move it to a device and set the precision and compilation of its calls, as in a curve row."""
        self.precision = precision
        self.calls = [compiled_calls(self.network, device)] if compile == "default" else []
        return self.to(device)


def new_denoiser(spec: Spec, seed: int) -> Denoiser:
    """A denoiser with the initial weights of a seed."""
    return seeded(lambda: Denoiser(spec), "weights", seed)


def save_denoiser(denoiser: Denoiser, path: Path) -> None:
    """Write weights and spec as one safetensors file."""
    save_tensors(path, denoiser.state_dict(), "spec", denoiser.spec.record())


def load_denoiser(path: Path) -> Denoiser:
    """Read a file by `save_denoiser`, in eval mode. Raises StudyError if it is missing, broken or not a denoiser's."""
    with reading(path):
        tensors, record = load_tensors(path, "spec")
        with torch.device("meta"):  # draws no initial weights from the generator that all threads share
            denoiser = Denoiser(Spec.of(record))
        denoiser.to_empty(device="cpu").load_state_dict(tensors)
    return denoiser.eval().requires_grad_(False)
