"""EDM2's magnitude-preserving U-Net with the released files' names of tensors (Karras et al. 2024, arXiv 2312.02696).

Equations are those of the paper's appendix B; the configuration is G, figure 21. All inputs and outputs are as for
`registry.build`.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.diffusion.networks.edm import Sizes, one_hot

HEAD = 64  # channels of a head
RESIDUAL, ATTENTION = 0.3, 0.3  # shares of the branch in sums
BALANCE = 0.5  # share of labels, and of skips
LARGEST = 256.0  # activations are clipped to it
EPSILON = 1e-4
SILU_RMS = 0.596  # of silu(n), n standard normal


def normalized(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """x with a root mean square of 1 over dims (eq. 66)."""
    size = math.prod(x.shape[dim] for dim in dims)
    return x / (EPSILON + torch.linalg.vector_norm(x, dim=dims, keepdim=True) / math.sqrt(size))


def mp_silu(x: Tensor) -> Tensor:
    """SiLU that keeps the magnitude (eq. 81)."""
    return F.silu(x) / SILU_RMS


def mp_sum(a: Tensor, b: Tensor, share: float) -> Tensor:
    """(1 - share) a + share b, scaled to keep the magnitude (eq. 88)."""
    return a.lerp(b, share) / math.hypot(1 - share, share)


def mp_cat(a: Tensor, b: Tensor) -> Tensor:
    """a and b (N, C, H, W) side by side, with equal contributions to what follows (eq. 103)."""
    of_a, of_b = a.shape[1], b.shape[1]
    scale = math.sqrt((of_a + of_b) / 2)
    return torch.cat([scale / math.sqrt(of_a) * a, scale / math.sqrt(of_b) * b], dim=1)


class MPLayer(nn.Module):
    """A linear layer (kernel 0) or a convolution whose weights are normalized in each call (eq. 47).

    In training the stored weights are normalized, too (eq. 66).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *(kernel, kernel) * bool(kernel)))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        dims = tuple(range(1, self.weight.ndim))
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalized(self.weight, dims))
        weight = normalized(self.weight, dims) * (gain / math.sqrt(self.weight[0].numel()))
        return F.linear(x, weight) if x.ndim == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class MPFourier(nn.Module):
    """sqrt(2) cos(f c_noise + phase) of random f and phases (eq. 75): c_noise (N,) to (N, width)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(width))
        self.register_buffer("phases", 2 * math.pi * torch.rand(width))

    def forward(self, c_noise: Tensor) -> Tensor:
        return math.sqrt(2) * (c_noise[:, None] * self.freqs + self.phases).cos()


class Block(nn.Module):
    """A block of the encoder, which normalizes its input per pixel, or of the decoder."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        encodes: bool,
        direction: Literal["up", "down"] | None = None,
        attends: bool = False,
    ) -> None:
        super().__init__()
        self.encodes, self.direction, self.heads = encodes, direction, outputs // HEAD if attends else 0
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPLayer(outputs if encodes else inputs, outputs, 3)
        self.emb_linear = MPLayer(embedding, outputs)
        self.conv_res1 = MPLayer(outputs, outputs, 3)
        self.conv_skip = MPLayer(inputs, outputs, 1) if inputs != outputs else None
        if self.heads:
            self.attn_qkv, self.attn_proj = MPLayer(outputs, 3 * outputs, 1), MPLayer(outputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        if self.direction:
            x = F.avg_pool2d(x, 2) if self.direction == "down" else F.interpolate(x, scale_factor=2.0)
        if self.encodes:
            x = normalized(x if self.conv_skip is None else self.conv_skip(x), (1,))
        gain = self.emb_linear(embedding, self.emb_gain)[:, :, None, None] + 1
        branch = self.conv_res1(mp_silu(self.conv_res0(mp_silu(x)) * gain))
        if not self.encodes and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, branch, RESIDUAL)
        if self.heads:
            count, channels = x.shape[:2]
            qkv = self.attn_qkv(x).reshape(count, self.heads, channels // self.heads, 3, -1)  # q, k, v alternate
            q, k, v = normalized(qkv, (2,)).permute(3, 0, 1, 4, 2)
            attended = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
            x = mp_sum(x, self.attn_proj(attended), ATTENTION)
        return x.clamp(-LARGEST, LARGEST)


class EDM2UNet(nn.Module):
    """F(x, c_noise): x (N, C, H, W) and c_noise (N,) to (N, C, H, W)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        levels = [(sizes.height >> level, sizes.channels * m) for level, m in enumerate(sizes.multipliers)]
        width, out = max(outputs for _, outputs in levels), levels[0][1]
        self.emb_fourier = MPFourier(out)
        self.emb_noise = MPLayer(out, width)
        self.emb_label = MPLayer(sizes.classes, width) if sizes.classes else None
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self.enc[f"{sizes.height}x{sizes.height}_conv"] = MPLayer(sizes.inputs + 1, out, 3)
        skips = [out]
        for level, (side, outputs) in enumerate(levels):
            name = f"{side}x{side}"
            if level:
                self.enc[f"{name}_down"] = Block(out, out, width, True, "down")
                skips.append(out)
            for i in range(sizes.blocks):
                self.enc[f"{name}_block{i}"] = Block(out, outputs, width, True, attends=side in sizes.attention)
                out = outputs
                skips.append(out)
        for level, (side, outputs) in reversed([*enumerate(levels)]):
            name = f"{side}x{side}"
            if level < len(levels) - 1:
                self.dec[f"{name}_up"] = Block(out, out, width, False, "up")
            else:
                self.dec[f"{name}_in0"] = Block(out, out, width, False, attends=True)
                self.dec[f"{name}_in1"] = Block(out, out, width, False)
            for i in range(sizes.blocks + 1):
                attends = side in sizes.attention
                self.dec[f"{name}_block{i}"] = Block(out + skips.pop(), outputs, width, False, attends=attends)
                out = outputs
        self.out_conv, self.out_gain = MPLayer(out, sizes.outputs, 3), nn.Parameter(torch.zeros([]))

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Tensor:
        embedding = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            classes = self.emb_label.weight.shape[1]
            chosen = self.emb_label(one_hot(labels, x, classes) * math.sqrt(classes))
            embedding = mp_sum(embedding, chosen, BALANCE)
        embedding = mp_silu(embedding)
        x, skips = torch.cat([x, torch.ones_like(x[:, :1])], dim=1), []
        for layer in self.enc.values():
            x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for name, block in self.dec.items():
            x = block(mp_cat(x, skips.pop()) if "_block" in name else x, embedding)
        return self.out_conv(x, self.out_gain)
