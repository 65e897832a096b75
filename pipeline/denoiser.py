"""A network as a denoiser D(z; sigma), its file format, and the counting of its evaluations."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pipeline.errors import StudyError
from pipeline.files import write_bytes
from pipeline.networks.unet import UNet
from pipeline.parametrization import PARAMETRIZATIONS

DenoiserFunction = Callable[[Tensor, Tensor], Tensor]


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Shape (N,) as (N, 1, 1, ...), to multiply a batch `like` (N, ...) in its dtype and on its device."""
    return values.reshape(-1, *(1,) * (like.ndim - 1)).to(like)


class Denoiser(nn.Module):
    """D(z; sigma) = c_skip z + c_out F(c_in z, c_noise).

    `spec` holds what rebuilds it: parametrization, sigma_data, shape (C, H, W), channels, multipliers, blocks,
    labels (how many numbers about an image's augmentation the network may be told).
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.spec = spec
        self.coefficients = PARAMETRIZATIONS[spec["parametrization"]]
        self.sigma_data: float = spec["sigma_data"]
        self.shape: tuple[int, ...] = tuple(spec["shape"])
        halvings = len(spec["multipliers"]) - 1
        if any(side % 2**halvings for side in self.shape[1:]):
            raise StudyError(
                f"multipliers: {halvings + 1} levels halve the image {halvings} times, "
                f"which a size of {self.shape[1]} x {self.shape[2]} does not allow; use fewer levels"
            )
        self.network = UNet(
            self.shape[0], spec["channels"], tuple(spec["multipliers"]), spec["blocks"], spec.get("labels", 0)
        )
        self.network.to(memory_format=torch.channels_last)

    def forward(self, z: Tensor, sigma: Tensor) -> Tensor:
        """z (N, C, H, W) at noise level sigma, a scalar or (N,), to the mean of x0 given z, in z's shape and dtype."""
        sigma = sigma.to(z.device, torch.float64).expand(len(z))
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma, self.sigma_data)
        f = self.network((per_sample(c_in, z) * z).float(), c_noise.float())
        return torch.addcmul(per_sample(c_skip, z) * z, per_sample(c_out, z), f.to(z))


class Counted:
    """A denoiser that counts its evaluations: `nfe` is how often the network was called, `sigmas` where.

    Whether its answers are finite is noted on their device, and looked at only when asked for.
    """

    def __init__(self, denoiser: DenoiserFunction) -> None:
        self.denoiser = denoiser
        self.sigmas: list[Tensor] = []
        self.sums: list[Tensor] = []

    @property
    def nfe(self) -> int:
        return len(self.sigmas)

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        denoised = self.denoiser(z, sigma)
        self.sigmas.append(sigma)
        self.sums.append(denoised.sum(dtype=torch.float64))  # not finite where an answer is not, and cheap
        return denoised

    def not_finite(self, *others: Tensor) -> int | None:
        """The index of the first answer that is not finite, of `others` behind them; None where all are."""
        sums = [*self.sums, *(other.sum(dtype=torch.float64) for other in others)]
        finite = torch.stack(sums).isfinite().tolist() if sums else []
        return finite.index(False) if False in finite else None


def save_denoiser(denoiser: Denoiser, path: Path) -> None:
    """Write weights and spec as one safetensors file."""
    tensors = {name: value.contiguous() for name, value in denoiser.state_dict().items()}
    write_bytes(path, save(tensors, {"spec": json.dumps(denoiser.spec, sort_keys=True)}))


def load_denoiser(path: Path) -> Denoiser:
    """Read what save_denoiser wrote, in eval mode. Raises StudyError where the file is missing, cut or foreign."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            spec = json.loads((file.metadata() or {})["spec"])
        denoiser = Denoiser(spec)
        denoiser.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise StudyError(f"{path}: missing; `dvc repro` trains it") from None
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise StudyError(f"{path}: not a model of this study ({error})") from None
    return denoiser.eval().requires_grad_(False)
