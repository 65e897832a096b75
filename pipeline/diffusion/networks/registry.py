"""The networks by name: how each is built from a spec, and what it costs."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Literal, NamedTuple

import torch
from torch import nn

from pipeline.common.errors import StudyError
from pipeline.common.size import Size, size_of
from pipeline.diffusion.networks import edm
from pipeline.diffusion.networks.ddpmpp import DDPMpp
from pipeline.diffusion.networks.dit import DiT
from pipeline.diffusion.networks.edm2 import EDM2UNet
from pipeline.diffusion.networks.embedding import Common, Conditioned
from pipeline.diffusion.networks.mlp import MLP
from pipeline.diffusion.networks.unet import UNet
from pipeline.diffusion.networks.unet2d import UNet2D
from pipeline.diffusion.spec import Spec

CHANNELS_STEP = 8  # channels come in multiples of it
LARGEST_GAP = 0.25  # largest relative difference in cost between a network and the one it should match


def check_network(network: str, points: bool, data: str = "the data") -> None:
    """Refuse a network for images if the data are points, and the reverse. Raises StudyError.

    network: a key of NETWORKS. data: how the message names the data.
    """
    if points and network != "mlp":
        raise StudyError(f"network: {network} is for images, and {data} are points; use mlp")
    if not points and network == "mlp":
        images = ", ".join(name for name in NETWORKS if name != "mlp")
        raise StudyError(f"network: mlp is for points, and {data} are images; use one of {images}")


def _check_levels(spec: Spec) -> None:
    _, height, width = spec.shape
    halvings = len(spec.multipliers) - 1
    if height % 2**halvings or width % 2**halvings:
        raise StudyError(
            f"multipliers: {halvings + 1} levels halve the image {halvings} times, "
            f"but {2**halvings} does not divide both {height} and {width}; use fewer levels"
        )


def _check_attention(spec: Spec) -> None:
    heights = [spec.shape[1] >> i for i in range(len(spec.multipliers))]
    for resolution in spec.attention:
        if resolution not in heights:
            raise StudyError(
                f"attention: no level has a height of {resolution} pixels; "
                f"the levels for these images have {', '.join(map(str, heights))}"
            )


def _check_patch(spec: Spec) -> None:
    _, height, width = spec.shape
    if height % spec.patch or width % spec.patch:
        raise StudyError(
            f"patch: patches of {spec.patch} x {spec.patch} do not tile images of {height} x {width}; "
            "use a number that divides both"
        )


def _common(spec: Spec) -> Common:
    outputs = spec.shape[0] * (2 if spec.learned_variance else 1)
    told = spec.low_strength > 0
    return Common(spec.embedding, spec.dropout, len(spec.classes), spec.augmentation, outputs, told)


def _inputs(spec: Spec) -> int:
    """The channels of the network's input: the image's, and those of the low-resolution image of an upsampler."""
    return spec.shape[0] + (spec.low[0] if spec.low else 0)


def _unet(spec: Spec) -> UNet:
    """A compact U-Net, scaled and shifted by the embedding.

    Source: after Song et al. 2021, arXiv 2011.13456
    """
    _check_levels(spec)
    return UNet(_inputs(spec), spec.channels, spec.multipliers, spec.blocks, _common(spec))


def _ddpmpp(spec: Spec) -> DDPMpp:
    """DDPM++ in EDM's setting.

    Source: Song et al. 2021, arXiv 2011.13456; Karras et al. 2022, arXiv 2206.00364, app. F.2
    """
    _check_levels(spec)
    _check_attention(spec)
    sizes = spec.channels, spec.multipliers, spec.blocks, spec.attention
    return DDPMpp(_inputs(spec), spec.shape[1], *sizes, _common(spec))


def _dit(spec: Spec) -> DiT:
    """DiT: a transformer on patches, with adaLN-Zero.

    Source: Peebles and Xie 2023, arXiv 2212.09748
    """
    _check_patch(spec)
    _, height, width = spec.shape
    return DiT((_inputs(spec), height, width), spec.channels, spec.blocks, spec.patch, _common(spec))


def _mlp(spec: Spec) -> MLP:
    """A residual MLP for points: DiT's blocks without attention.

    Source: after Peebles and Xie 2023, arXiv 2212.09748
    """
    return MLP(spec.shape[0], spec.channels, spec.blocks, _common(spec))


NETWORKS: dict[str, Callable[[Spec], Conditioned]] = {"unet": _unet, "ddpmpp": _ddpmpp, "dit": _dit, "mlp": _mlp}

_EVERY = ("channels", "blocks", "embedding", "dropout")
KEYS: dict[str, tuple[str, ...]] = {  # the keys of a model row that each network uses
    "unet": (*_EVERY, "multipliers"),
    "ddpmpp": (*_EVERY, "multipliers", "attention"),
    "dit": (*_EVERY, "patch"),
    "mlp": _EVERY,
}


def _sizes(spec: Spec) -> edm.Sizes:
    """The sizes of a released network."""
    _check_levels(spec)
    _check_attention(spec)
    outputs = spec.shape[0] * (2 if spec.learned_variance else 1)
    sizes = spec.channels, spec.multipliers, spec.blocks, spec.attention
    return edm.Sizes(spec.shape[0], outputs, spec.shape[1], *sizes, len(spec.classes), spec.augmentation)


def _edm(kind: edm.Kind, spec: Spec) -> edm.EDMUNet:
    return edm.EDMUNet(_sizes(spec), kind)


RELEASED: dict[str, Callable[[Spec], nn.Module]] = {  # the networks of released files, which no row chooses
    **{name: partial(_edm, kind) for name, kind in edm.KINDS.items()},
    "edm2": lambda spec: EDM2UNet(_sizes(spec)),
    "unet2d": lambda spec: UNet2D(spec.config),
}


def build(spec: Spec) -> nn.Module:
    """The network of a denoiser's spec, with weights from PyTorch's global generator.

    It maps x (N, *shape), c_noise (N,), labels (N,) int64 (-1 for none, or None) and augmentation (N, A) (or None) to
    F (N, *shape), which is 0 before training. An upsampler gets two more inputs; see `upsampling.conditioning`. If it
    learns the variance, its output has twice the channels; see `parted`. Raises StudyError if the network does not
    support that shape.
    """
    check_network(spec.network, points=len(spec.shape) == 1)
    return (NETWORKS | RELEASED)[spec.network](spec)


class Cost(NamedTuple):
    """Trained numbers, and floating-point operations of one evaluation of one image; see `Size`."""

    parameters: int
    flops: int


@lru_cache(maxsize=256)
def size(spec: Spec) -> Size:
    """The size of the spec's network; nothing is computed. Raises StudyError if there is no such network."""
    labels = torch.empty(1, dtype=torch.int64) if spec.classes else None
    low = (None, torch.empty(1, spec.low[0], *spec.shape[1:]), torch.empty(1, 1)) if spec.low else ()
    return size_of(partial(build, spec), torch.empty(1, *spec.shape), torch.empty(1), labels, *low)


def cost(spec: Spec) -> Cost:
    """The cost of the spec's network; nothing is computed. Raises StudyError if there is no such network."""
    found = size(spec)
    return Cost(found.parameters, found.flops)


def equal_channels(
    spec: Spec, like_spec: Spec, what: Literal["parameters", "flops"], beside: tuple[int, int] = (0, 0)
) -> int:
    """The number of channels, a multiple of 8, with which the spec's network costs nearly as much as like_spec's.

    what: the cost to match. beside: what either costs beside its network. Raises StudyError if the nearest cost is off
    by more than a quarter.
    """
    target: int = getattr(cost(like_spec), what) + beside[1]

    def found(channels: int) -> int:
        return int(getattr(cost(replace(spec, channels=channels)), what)) + beside[0]

    most = CHANNELS_STEP
    while found(most) < target:
        most *= 2
    choices = range(CHANNELS_STEP, most + 1, CHANNELS_STEP)
    above = bisect_left(choices, target, key=found)  # a network costs more the more channels it has
    channels = min(choices[max(above - 1, 0) : above + 1], key=lambda choice: abs(found(choice) - target))
    if abs(found(channels) - target) > LARGEST_GAP * target:
        raise StudyError(
            f"equal: no number of channels gives this {spec.network} about {target} {what}, the cost of its base; "
            f"the nearest, {channels} channels, gives {found(channels)}; use more or fewer blocks"
        )
    return channels
