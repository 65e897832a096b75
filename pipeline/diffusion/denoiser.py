"""A network as a denoiser D(z; sigma), its file format, and the counting of its evaluations."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pipeline.common.devices import Network, autocast, compiled_calls, state_type, to_device
from pipeline.common.errors import StudyError
from pipeline.common.files import write_bytes
from pipeline.diffusion.networks.registry import build
from pipeline.diffusion.parametrization import PARAMETRIZATIONS

DenoiserFunction = Callable[[Tensor, Tensor], Tensor]

FOREIGN = (StudyError, safetensors.SafetensorError, LookupError, ArithmeticError, TypeError, ValueError, RuntimeError)
MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Shape (N,) as (N, 1, 1, ...), to multiply a batch `like` (N, ...) in its dtype and on its device."""
    return to_device(values.to(like.dtype), like.device).reshape(-1, *(1,) * (like.ndim - 1))


class Denoiser(nn.Module):
    """D(z; sigma) = c_skip z + c_out F(c_in z, c_noise).

    `spec` holds what rebuilds it: parametrization, sigma_data, shape, (C, H, W) or (2,) for points, network and what
    that goes by (`KEYS`), memory_format, augmentation (how many numbers the network may be told of an image's
    augmentation), classes (how many images each class has; [] for a network that knows no labels).
    Raises StudyError where the network can't have that shape.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.spec = spec
        self.coefficients = PARAMETRIZATIONS[spec["parametrization"]]
        self.sigma_data: float = spec["sigma_data"]
        self.shape: tuple[int, ...] = tuple(spec["shape"])
        self.classes: list[int] = spec["classes"]
        self.network = build(spec)
        self.precision = "float32"
        self.calls: list[Network] = []  # what is called instead of the network, where that is compiled
        if len(self.shape) == 3:
            self.network.to(memory_format=MEMORY_FORMATS[spec["memory_format"]])

    def forward(self, z: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean of x0 given z (N, *shape) at noise level sigma, a scalar or (N,), in z's shape and dtype.

        labels (N,), int64, -1 for none: of each image, what a network with classes is told of it.
        """
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma.double().expand(len(z)), self.sigma_data)
        labels = None if labels is None else to_device(labels, z.device)
        [network] = self.calls or [self.network]
        with autocast(self.precision, z.device):
            f = network((per_sample(c_in, z) * z).float(), to_device(c_noise.float(), z.device), labels)
        return torch.addcmul(per_sample(c_skip, z) * z, per_sample(c_out, z), f.to(z))

    def run_on(self, device: torch.device, precision: str = "float32", compile: str = "none") -> Self:
        """Bring it to a device, to be called in a precision and compiled as a curve's row says. Returns itself."""
        self.precision = precision
        self.calls = [compiled_calls(self.network, device)] if compile == "default" else []
        return self.to(device)


@runtime_checkable
class Composite(Protocol):
    """A denoiser that asks several networks."""

    def over(self, wrap: Callable[[DenoiserFunction], DenoiserFunction]) -> DenoiserFunction:
        """The same of wrapped networks."""

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor: ...


class Counted:
    """A denoiser that counts its evaluations: `nfe` is how often a network was called, `sigmas` where.

    Of a composite one, the calls of all its networks count. Whether answers are finite is noted on their device, and
    looked at only when asked for.
    """

    def __init__(self, denoiser: DenoiserFunction) -> None:
        self.sigmas: list[Tensor] = []
        self.sums: list[Tensor] = []
        self.denoiser = denoiser.over(self._counting) if isinstance(denoiser, Composite) else self._counting(denoiser)

    @property
    def nfe(self) -> int:
        return len(self.sigmas)

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        return self.denoiser(z, sigma)

    def _counting(self, network: DenoiserFunction) -> DenoiserFunction:
        def counting(z: Tensor, sigma: Tensor) -> Tensor:
            answer = network(z, sigma)
            self.sigmas.append(sigma)
            self.sums.append(_sum(answer))  # not finite where an answer is not, and cheap
            return answer

        return counting

    def not_finite(self, *others: Tensor) -> int | None:
        """The index of the first answer that is not finite, of `others` behind them; None where all are."""
        sums = [*self.sums, *map(_sum, others)]
        finite = torch.stack(sums).isfinite().tolist() if sums else []
        return finite.index(False) if False in finite else None


def _sum(values: Tensor) -> Tensor:
    return values.sum(dtype=state_type(values.device))


def save_denoiser(denoiser: Denoiser, path: Path) -> None:
    """Write weights and spec as one safetensors file."""
    tensors = {name: value.contiguous() for name, value in denoiser.state_dict().items()}
    write_bytes(path, save(tensors, {"spec": json.dumps(denoiser.spec, sort_keys=True)}))


def load_denoiser(path: Path) -> Denoiser:
    """Read what save_denoiser wrote, in eval mode. Raises StudyError where the file is missing, cut or foreign."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            spec = json.loads((file.metadata() or {})["spec"])
        with torch.device("meta"):  # no weights are drawn, which would be from the generator that all threads share
            denoiser = Denoiser(spec)
        denoiser.to_empty(device="cpu").load_state_dict(load_file(path))
    except FileNotFoundError:
        raise StudyError(f"{path}: missing; `dvc repro` trains it") from None
    except FOREIGN as error:
        raise StudyError(f"{path}: not a model of this study ({error})") from None
    return denoiser.eval().requires_grad_(False)
