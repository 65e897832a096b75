"""Non-leaky augmentation: random geometric transformations of x0, whose parameters are inputs of the network.

With all parameters at 0, the network models the data set without augmentation (Karras et al. 2022, arXiv 2206.00364,
app. F.2 and Table 6; after Jun et al. 2020 and StyleGAN2-ADA, arXiv 2006.06676).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.special import ndtri

from pipeline.common.devices import to_device

LABELS = 9  # numbers that describe an augmentation
A_SCALE = 2**0.2
A_ANISO = 2**0.2
A_TRANS = 1 / 8

SWITCHES = 6  # x-flip, y-flip, scaling, rotation, anisotropy, translation
SWITCH = torch.tensor([0, 1, 2, 3, 4, 4, 5, 5])  # the switch of each of a0 to a7


def draw(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """Draw a0 to a7 for each image, (N, 8) float64 on the CPU; 0 if the transformation is off.

    Every transformation has the same probability, EDM's A_prob. EDM also mirrors half of all images in x; see `mirror`.
    As in EDM's code, half of all anisotropic images are stretched along x or y, where a4 is 0, and the others in any
    direction.

    Image i uses the 14 uniform numbers from 14 i on, whatever the count, the probability and the outcomes.
    """
    u = torch.rand(count, SWITCHES + len(SWITCH), generator=generator, dtype=torch.float64)
    on, u = u.index_select(1, SWITCH) < probability, u[:, SWITCHES:]
    a = ndtri(u.clamp_min(2**-54))  # 0 is a possible draw, at which ndtri is infinite
    a[:, :2] = u[:, :2] >= 0.5
    a[:, 3] = math.pi * (2 * u[:, 3] - 1)
    a[:, 4] = (math.pi * (4 * u[:, 4] - 3)).where(u[:, 4] >= 0.5, 0)
    return a.where(on, 0)


def mirror(a: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """a (N, 8) with x mirrored first, with this probability."""
    mirrored = torch.rand(len(a), generator=generator) < probability
    return torch.cat([(a[:, :1] != mirrored[:, None]).to(a), a[:, 1:]], 1)


def conditioning(a: Tensor) -> Tensor:
    """The network's input for a (N, 8): (N, LABELS) float32, 0 for the identity (Table 6, last column)."""
    a0, a1, a2, a3, a4, a5, a6, a7 = a.unbind(1)
    return torch.stack([a0, a1, a2, a3.cos() - 1, a3.sin(), a5 * a4.cos(), a5 * a4.sin(), a6, a7], 1).float()


def transform(x0: Tensor, a: Tensor) -> Tensor:
    """Transform x0 (N, C, H, W) in [-1, 1] by a (N, 8), in the order of Table 6: flips first, translation last.

    Angles are counterclockwise on the screen: a3 = pi / 2 is `torch.rot90(x0, 1, (2, 3))`, and a5 > 0 stretches along
    the direction a4 from the x axis. Translation is right by A_trans a6 W and down by A_trans a7 H pixels. Outside, the
    image is reflected at its outermost pixels, which are not repeated. Flips are exact, and an image without any
    transformation is returned bit by bit.

    The interpolation is bicubic with a clamp instead of EDM's wavelet filters. On the 8x8 digits, moving by a fraction
    of a pixel and back leaves 0.37 of bilinear's squared error. Band-limited upsampling would leave less still, but
    rings throughout the image at hard edges. Shrinking has no filter against aliasing, because half of all factors are
    within 2^(+-0.14).
    """
    out = x0.clone()
    for column, axis in ((0, 3), (1, 2)):
        flipped = to_device(_indices(a[:, column]), x0.device)
        out.index_copy_(0, flipped, out.index_select(0, flipped).flip(axis))
    moved = _indices(a[:, 2:].any(1))
    if len(moved):
        theta = to_device(_sources(a.index_select(0, moved), x0.shape[2], x0.shape[3]).to(x0.dtype), x0.device)
        moved = to_device(moved, x0.device)
        still = out.index_select(0, moved)
        grid = F.affine_grid(theta, list(still.shape), align_corners=False)
        warped = F.grid_sample(still, grid, mode="bicubic", padding_mode="reflection", align_corners=True)
        out.index_copy_(0, moved, warped.clamp_(-1, 1))
    return out


def _indices(chosen: Tensor) -> Tensor:
    """The indices at which (N,) is not 0. It is on the CPU, like `a`, so that nothing waits for a GPU."""
    return chosen.nonzero().squeeze(1)


def _sources(a: Tensor, height: int, width: int) -> Tensor:
    """The inverse map without flips: theta (N, 2, 3), from units of half the size to those of the outermost pixels."""
    a2, a3, a4, a5 = a[:, 2:6].unbind(1)
    shrinking = A_SCALE ** -a2[:, None] * A_ANISO ** torch.stack([-a5, a5], 1)
    inverse = _turn(a4 - a3) * shrinking[:, None] @ _turn(-a4)
    inverse = inverse * a.new_tensor([[1, height / width], [width / height, 1]])  # angles and scales are in pixels
    to_outermost = a.new_tensor([[width / max(width - 1, 1)], [height / max(height - 1, 1)]])
    return to_outermost * torch.cat([inverse, inverse @ (-2 * A_TRANS * a[:, 6:, None])], 2)


def _turn(angle: Tensor) -> Tensor:
    """Rotation matrices (N, 2, 2) of angles (N,), counterclockwise on the screen, with y pointing down."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, sin, -sin, cos], 1).unflatten(1, (2, 2))
