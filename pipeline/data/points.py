"""Sets of points in the plane, each from a formula, so that figures can show a whole distribution.

Points are independent draws, the class first, and lie within about [-1, 1]. Each set has its own generator and float64
arithmetic, so that a name gives the same points everywhere. `moon`, `arm`, `board` and `ring` are the geometry, which
the exact denoisers of the sets share.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.common.randomness import generator

COUNT = 8192
MOONS_STD = 0.05
SPIRAL_STD, SPIRAL_RADIUS, SPIRAL_TURNS = 0.02, 0.9, 1.5
SQUARES = 4  # along each side of the checkerboard
COMPONENTS, RING_RADIUS, RING_STD = 8, 0.8, 0.05


class Drawn(NamedTuple):
    """x (N, 2), float64; labels (N,), int64; the names of the classes."""

    x: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def moon(which: Tensor, angle: Tensor) -> Tensor:
    """Points of two interlocking half circles of radius 2/3, of the upper (0) or the lower one (1): (N, 2).

    which (N,); angle (N,), in [0, pi], uniform in the data.
    """
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    middle = torch.tensor([0.5, 0.25], dtype=torch.float64)
    return (torch.where(which[:, None] == 0, upper, lower) - middle) / 1.5


def arm(which: Tensor, share: Tensor) -> Tensor:
    """Points of two arms of Archimedes' spiral, half a turn apart: (N, 2).

    which (N,): 0 or 1; share (N,): of the arm's angle, in [0, 1], the root of a uniform number in the data.
    """
    angle = 2 * math.pi * SPIRAL_TURNS * share + math.pi * which
    return SPIRAL_RADIUS * share[:, None] * torch.stack([angle.cos(), angle.sin()], 1)


def board(row: Tensor, pair: Tensor, place: Tensor) -> Tensor:
    """Points of the checkerboard's squares: (N, 2).

    row (N,), below SQUARES; pair (N,), below SQUARES / 2: the square along its row; place (N, 2): the place in the
    square, in [0, 1], uniform in the data.
    """
    corner = torch.stack([2 * pair + row % 2, row], 1)
    return (corner + place) * 2 / SQUARES - 1


def ring(component: Tensor) -> Tensor:
    """The means of the mixture's Gaussians, component (N,), below COMPONENTS: (N, 2)."""
    angle = component.double() * 2 * math.pi / COMPONENTS
    return RING_RADIUS * torch.stack([angle.cos(), angle.sin()], 1)


def two_moons(count: int, draws: torch.Generator) -> Drawn:
    """Two moons with noise of MOONS_STD, uniform in the angle; the class is the moon."""
    which = torch.randint(2, (count,), generator=draws)
    x = moon(which, math.pi * _uniform((count,), draws))
    return Drawn(x + MOONS_STD * _normal((count, 2), draws), which, ("upper", "lower"))


def spiral(count: int, draws: torch.Generator) -> Drawn:
    """Two arms with noise of SPIRAL_STD; the class is the arm.

    The radius is proportional to the angle, and the angle to the root of a uniform number: the density along an arm is
    then about constant.
    """
    which = torch.randint(2, (count,), generator=draws)
    x = arm(which, _uniform((count,), draws).sqrt())
    return Drawn(x + SPIRAL_STD * _normal((count, 2), draws), which, ("first arm", "second arm"))


def checkerboard(count: int, draws: torch.Generator) -> Drawn:
    """Uniform on every other one of the SQUARES x SQUARES squares of [-1, 1]^2; the class is the row."""
    row = torch.randint(SQUARES, (count,), generator=draws)
    pair = torch.randint(SQUARES // 2, (count,), generator=draws)
    x = board(row, pair, _uniform((count, 2), draws))
    return Drawn(x, row, tuple(f"row {i}" for i in range(SQUARES)))


def mixture(count: int, draws: torch.Generator) -> Drawn:
    """COMPONENTS Gaussians of standard deviation RING_STD, evenly spaced on a ring; the class is the Gaussian."""
    component = torch.randint(COMPONENTS, (count,), generator=draws)
    names = tuple(f"component {i}" for i in range(COMPONENTS))
    return Drawn(ring(component) + RING_STD * _normal((count, 2), draws), component, names)


def _uniform(shape: tuple[int, ...], draws: torch.Generator) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=draws)


def _normal(shape: tuple[int, ...], draws: torch.Generator) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=draws)


def draw(name: str, count: int = COUNT) -> Drawn:
    """The set with this name, a key of POINTS."""
    return POINTS[name](count, generator(f"points {name}"))


POINTS: dict[str, Callable[[int, torch.Generator], Drawn]] = {
    "two_moons": two_moons,
    "spiral": spiral,
    "checkerboard": checkerboard,
    "mixture": mixture,
}
