"""Distances between D and the target of an objective.

The loss is lambda(sigma) d(D - target). Each function here returns d / c_out^2 of an image, (N,), from difference
(N, ...), where D - target = c_out difference, and c_out (N,), on one device. So nothing is divided by c_out, which is 0
at the boundary of a consistency map.
"""

import math
from collections.abc import Callable

from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]
HUBER = 0.00054  # c of pseudo_huber is this times the root of the number of values


def squared(difference: Tensor, c_out: Tensor) -> Tensor:
    """The mean of the squares.

    Formula: mean(a^2)
    Source: Ho et al. 2020, arXiv 2006.11239
    """
    return difference.square().flatten(1).mean(1)


def pseudo_huber(difference: Tensor, c_out: Tensor) -> Tensor:
    """The norm, which is smooth around 0, so that an image far off counts less than by its square.

    Formula: sqrt(sum(a^2) + c^2) - c, c = 0.00054 sqrt(d)
    Source: Song and Dhariwal 2024, arXiv 2310.14189, sec. 3.3
    """
    squares, c = difference.square().flatten(1).sum(1), HUBER * math.sqrt(difference[0].numel())
    return squares / ((c_out.square() * squares + c**2).sqrt() + c)


DISTANCES: dict[str, Distance] = {"squared": squared, "pseudo_huber": pseudo_huber}
