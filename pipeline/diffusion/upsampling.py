"""Low-resolution images that an upsampler is conditioned on: averaged down, augmented, and brought to full size.

Conditioning augmentation (Ho et al. 2021, arXiv 2106.15282, sec. 4.2): the low-resolution image is given with noise or
blur of a strength that the network is told, so that it learns not to trust details which samples lack.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.common.devices import to_device
from pipeline.common.errors import StudyError

AUGMENTATIONS = ("noise", "blur")
"""noise: Gaussian noise is added to the low-resolution image.
Formula: low + strength n
Source: Ho et al. 2021, arXiv 2106.15282, sec. 4.2

blur: The low-resolution image, brought to full size, is blurred by a Gaussian kernel, at the borders reflected.
Formula: exp(-x^2 / (2 strength^2))
Source: Ho et al. 2021, arXiv 2106.15282, sec. 4.2
"""
REACH = 3  # standard deviations of the kernel of a blur


@dataclass(frozen=True)
class Low:
    """Low-resolution images (N, C, h, w), with noise already added; the strength of their augmentation (N,), on the
    CPU."""

    images: Tensor
    strength: Tensor

    def part(self, own: slice) -> "Low":
        return Low(self.images[own], self.strength[own])


def low_shape(shape: tuple[int, ...], height: int, key: str) -> tuple[int, ...]:
    """The shape (C, h, w) of images (C, H, W) averaged down to `height`, which must be below theirs.

    Raises StudyError, with the name of the key, if no whole factor does so.
    """
    if len(shape) == 1:
        raise StudyError(f"{key}: {height} pixels high, but the data are points; leave it out")
    channels, full, width = shape
    factor, rest = divmod(full, height)
    if rest or factor < 2 or width % factor:
        factors = [each for each in range(2, full + 1) if full % each == 0 and width % each == 0]
        valid = ", ".join(str(full // each) for each in factors) or "no height"
        raise StudyError(
            f"{key}: images of {full} x {width} cannot be averaged to a height of {height}; valid: {valid}"
        )
    return channels, height, width // factor


def averaged(x: Tensor, height: int) -> Tensor:
    """x (N, C, H, W) averaged down to `height`, over squares of pixels."""
    return F.avg_pool2d(x, x.shape[2] // height)


def enlarged(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """x (N, C, h, w) brought to the size (H, W), by linear interpolation."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def blurred(x: Tensor, std: Tensor, largest: float) -> Tensor:
    """x (N, C, H, W) convolved with a Gaussian of standard deviation std (N,), in pixels; 0 leaves it as it is.

    std is on the CPU. largest: the largest std that there may be, which sets the size of the kernel.
    """
    reach = min(math.ceil(REACH * largest), min(x.shape[2:]) - 1)
    place = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-(place**2) / (2 * std.double().clamp(min=1e-6)[:, None] ** 2))
    kernel = to_device((kernel / kernel.sum(1, keepdim=True)).to(x.dtype), x.device)
    count, channels, height, width = x.shape
    flat = F.pad(x, (reach,) * 4, mode="reflect").reshape(1, count * channels, height + 2 * reach, width + 2 * reach)
    kernels = kernel.repeat_interleave(channels, 0)[:, None]
    for shaped in (kernels[..., None], kernels[:, :, None]):  # down the columns, then along the rows
        flat = F.conv2d(flat, shaped, groups=count * channels)
    return flat.reshape(x.shape)


def conditioning(low: Low, size: tuple[int, ...], sigma_data: float, augmentation: str, largest: float) -> list[Tensor]:
    """The further inputs of an upsampler: images (N, C, H, W) of about unit variance, and strengths (N, 1) in [0, 1].

    size: (H, W). augmentation: of AUGMENTATIONS; noise is in `low` already. largest: the largest strength in training.
    """
    images, strength = enlarged(low.images.float(), size), low.strength.double()
    variance = torch.full_like(strength, sigma_data**2)
    if augmentation == "blur":
        images = blurred(images, strength, largest)
    else:
        variance = variance + strength**2
    told = strength / largest if largest else torch.zeros_like(strength)
    scale, told = (to_device(values.float(), images.device) for values in (variance.rsqrt(), told))
    return [images * scale[:, None, None, None], told[:, None]]
