"""The U-Nets of EDM's released files, with their tensors' names: DDPM++, NCSN++ and ADM (arXiv 2206.00364, app. F.2).

All inputs and outputs are as for `registry.build`. The weights that a network starts with do not matter, because they
are read from a file.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Direction = Literal["up", "down"] | None
HEAD = 64  # channels of a head of ADM
EMBEDDING = 4  # width of the embedding as a multiple of the channels


@dataclass(frozen=True)
class Kind:
    """One of the three architectures. taps: of the filter that resamples; fourier: NCSN++'s embedding and encoder."""

    taps: tuple[int, ...] = (1, 1)
    fourier: bool = False
    adm: bool = False


KINDS = {
    "edm_ddpmpp": Kind(),
    "edm_ncsnpp": Kind(taps=(1, 3, 3, 1), fourier=True),
    "edm_adm": Kind(adm=True),
}


@dataclass(frozen=True)
class Sizes:
    """The sizes of a network, named as in a `Spec`. classes: the number of labels; inputs, outputs: channels."""

    inputs: int
    outputs: int
    height: int
    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    classes: int
    augmentation: int


def one_hot(labels: Tensor | None, x: Tensor, classes: int) -> Tensor:
    """Labels (N,) as (N, classes); zeros for -1, and for None with x (N, ...)."""
    if labels is None:
        return x.new_zeros(len(x), classes)
    return (F.one_hot(labels.clamp(min=0), classes) * (labels >= 0)[:, None]).to(x.dtype)


def resampled(x: Tensor, kernel: Tensor, direction: Direction, padding: int) -> Tensor:
    """x (N, C, H, W) with half or twice the resolution. kernel (1, 1, k, k) filters each channel."""
    kernels = kernel.repeat(x.shape[1], 1, 1, 1)
    if direction == "down":
        return F.conv2d(x, kernels, stride=2, padding=padding, groups=x.shape[1])
    return F.conv_transpose2d(x, 4 * kernels, stride=2, padding=padding, groups=x.shape[1])


class Layer(nn.Module):
    """Resampling, then a convolution; `last` resamples after it. kernel 0: resampling alone."""

    resample_filter: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        direction: Direction = None,
        taps: tuple[int, ...] = (),
        last: bool = False,
    ) -> None:
        super().__init__()
        self.direction, self.last = direction, last
        self.padding, self.border = kernel // 2, (len(taps) - 1) // 2 if direction else 0
        made = nn.Conv2d(inputs, outputs, kernel) if kernel else None
        self.weight = made.weight if made else None
        self.bias = made.bias if made else None
        if direction:
            row = torch.tensor(taps, dtype=torch.float32)
            self.register_buffer("resample_filter", torch.outer(row, row)[None, None] / row.sum() ** 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.direction and not self.last:
            x = resampled(x, self.resample_filter, self.direction, self.border)
        if self.weight is not None:
            x = F.conv2d(x, self.weight, self.bias, padding=self.padding + (self.border if self.last else 0))
        return resampled(x, self.resample_filter, self.direction, 0) if self.last else x


class Block(nn.Module):
    """A residual block with the embedding between its convolutions, and attention after it if it has heads.

    DDPM++ and NCSN++ add the embedding and halve the variance of sums; ADM scales and shifts by it.
    """

    def __init__(
        self, inputs: int, outputs: int, embedding: int, kind: Kind, direction: Direction = None, attends: bool = False
    ) -> None:
        super().__init__()
        self.adm, self.rescale = kind.adm, 1.0 if kind.adm else math.sqrt(0.5)
        self.heads = (outputs // HEAD if kind.adm else 1) if attends else 0
        self.norm0, self.norm1 = _norm(inputs, kind), _norm(outputs, kind)
        self.conv0 = Layer(inputs, outputs, 3, direction, kind.taps)
        self.affine = nn.Linear(embedding, outputs * (2 if kind.adm else 1))
        self.conv1 = Layer(outputs, outputs, 3)
        self.skip = None
        if inputs != outputs or direction:
            self.skip = Layer(inputs, outputs, 0 if kind.adm and inputs == outputs else 1, direction, kind.taps)
        if self.heads:
            self.norm2 = _norm(outputs, kind)
            self.qkv, self.proj = Layer(outputs, 3 * outputs, 1), Layer(outputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h, told = self.conv0(F.silu(self.norm0(x))), self.affine(embedding)[:, :, None, None]
        if self.adm:
            scale, shift = told.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), scale + 1)
        else:
            h = self.norm1(h + told)
        x = ((x if self.skip is None else self.skip(x)) + self.conv1(F.silu(h))) * self.rescale
        if not self.heads:
            return x
        count, channels = x.shape[:2]
        qkv = self.qkv(self.norm2(x)).reshape(count, self.heads, channels // self.heads, 3, -1)  # q, k, v alternate
        attended = F.scaled_dot_product_attention(*qkv.permute(3, 0, 1, 4, 2)).transpose(2, 3).reshape(x.shape)
        return (x + self.proj(attended)) * self.rescale


class Frequencies(nn.Module):
    """The random frequencies of NCSN++'s embedding, which are not trained."""

    freqs: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(count))


class EDMUNet(nn.Module):
    """F(x, c_noise): x (N, C, H, W) and c_noise (N,) to (N, outputs, H, W), of a released network."""

    def __init__(self, sizes: Sizes, kind: Kind) -> None:
        super().__init__()
        self.kind, self.channels = kind, sizes.channels
        noise, width = sizes.channels * (2 if kind.fourier else 1), sizes.channels * EMBEDDING
        self.map_noise = Frequencies(noise // 2) if kind.fourier else None
        classes, augmentation = sizes.classes, sizes.augmentation
        self.map_label = nn.Linear(classes, width if kind.adm else noise, bias=not kind.adm) if classes else None
        self.map_augment = nn.Linear(augmentation, noise, bias=False) if augmentation else None
        self.map_layer0, self.map_layer1 = nn.Linear(noise, width), nn.Linear(width, width)

        out = sizes.channels * (sizes.multipliers[0] if kind.adm else 1)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        levels = [(sizes.height >> level, sizes.channels * m) for level, m in enumerate(sizes.multipliers)]
        side, seen, skips = sizes.height, sizes.inputs, [out]
        self.enc[f"{side}x{side}_conv"] = Layer(sizes.inputs, out, 3)
        for level, (side, outputs) in enumerate(levels):
            name = f"{side}x{side}"
            if level:
                self.enc[f"{name}_down"] = Block(out, out, width, kind, "down")
                skips.append(out)
                if kind.fourier:
                    self.enc[f"{name}_aux_residual"] = Layer(seen, out, 3, "down", kind.taps, last=True)
                    seen = out
            for i in range(sizes.blocks):
                self.enc[f"{name}_block{i}"] = Block(out, outputs, width, kind, attends=side in sizes.attention)
                out = outputs
                skips.append(out)
        for level, (side, outputs) in reversed([*enumerate(levels)]):
            name = f"{side}x{side}"
            if level < len(levels) - 1:
                self.dec[f"{name}_up"] = Block(out, out, width, kind, "up")
            else:
                self.dec[f"{name}_in0"] = Block(out, out, width, kind, attends=True)
                self.dec[f"{name}_in1"] = Block(out, out, width, kind)
            for i in range(sizes.blocks + 1):
                attends = side in sizes.attention and (kind.adm or i == sizes.blocks)
                self.dec[f"{name}_block{i}"] = Block(out + skips.pop(), outputs, width, kind, attends=attends)
                out = outputs
        norm, head = _norm(out, kind), Layer(out, sizes.outputs, 3)
        if kind.adm:
            self.out_norm, self.out_conv = norm, head
        else:
            self.dec[f"{side}x{side}_aux_norm"], self.dec[f"{side}x{side}_aux_conv"] = norm, head

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Tensor:
        embedding = self._embedded(x, c_noise, labels, augmentation)
        skips: list[Tensor] = []
        seen = x
        for name, layer in self.enc.items():
            if name.endswith("aux_residual"):
                x = skips[-1] = seen = (x + layer(seen)) * math.sqrt(0.5)
                continue
            x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            if isinstance(layer, Block):
                x = layer(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, embedding)
        if self.kind.adm:
            return self.out_conv(F.silu(self.out_norm(x)))
        *_, norm, head = self.dec.values()
        return head(F.silu(norm(x)))

    def _embedded(self, x: Tensor, c_noise: Tensor, labels: Tensor | None, augmentation: Tensor | None) -> Tensor:
        """The embedding (N, 4 channels). ADM adds the label's after both layers, the others before them."""
        if self.map_noise is not None:
            angles = c_noise[:, None] * (2 * math.pi * self.map_noise.freqs)
        else:  # DDPM++'s frequencies end at 1e-4, ADM's one step before
            half = self.channels // 2
            steps = torch.arange(half, device=x.device) / (half if self.kind.adm else half - 1)
            angles = c_noise[:, None] * 1e-4**steps
        waves = angles.cos(), angles.sin()
        embedding = torch.cat(waves if self.kind.adm else waves[::-1], dim=1)
        label = None
        if self.map_label is not None:
            chosen = one_hot(labels, x, self.map_label.in_features)
            label = self.map_label(chosen if self.kind.adm else chosen * math.sqrt(self.map_label.in_features))
        if label is not None and not self.kind.adm:
            embedding = embedding + label
        if self.map_augment is not None and augmentation is not None:
            embedding = embedding + self.map_augment(augmentation)
        embedding = self.map_layer1(F.silu(self.map_layer0(embedding)))
        return F.silu(embedding if label is None or not self.kind.adm else embedding + label)


def _norm(channels: int, kind: Kind) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-5 if kind.adm else 1e-6)
