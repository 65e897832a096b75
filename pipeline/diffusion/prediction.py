"""What a network may predict, and how each kind of it becomes any other: x0, eps, v, score and velocity.

All are linear in the noisy state x = (x0 + sigma n) / sqrt(1 + sigma^2), whose parts are cos(phi) x0 + sin(phi) n with
tan(phi) = sigma, and in v = cos(phi) n - sin(phi) x0, which is known from any kind but where that kind says nothing.
(Salimans and Ho 2022, arXiv 2202.00512, appendix D; velocity from Liu et al. 2022, arXiv 2209.03003.)
"""

from collections.abc import Callable

from torch import Tensor

Parts = tuple[Tensor, Tensor]


def cos_sin(sigma: Tensor) -> Parts:
    """cos and sin of the angle whose tangent is sigma, from 0 to infinity: any shape to two of that shape."""
    return (1 + sigma**2).rsqrt(), (1 + sigma**-2).rsqrt()


def x0(cos: Tensor, sin: Tensor) -> Parts:
    return cos, -sin


def eps(cos: Tensor, sin: Tensor) -> Parts:
    return sin, cos


def v(cos: Tensor, sin: Tensor) -> Parts:
    return cos * 0, cos * 0 + 1


def score(cos: Tensor, sin: Tensor) -> Parts:
    """-eps / sigma, of z = x0 + sigma n: 0 at infinity, and infinite at 0."""
    return -cos, -(cos**2) / sin


def velocity(cos: Tensor, sin: Tensor) -> Parts:
    """n - x0."""
    return sin - cos, sin + cos


KINDS: dict[str, Callable[[Tensor, Tensor], Parts]] = {
    "x0": x0,
    "eps": eps,
    "v": v,
    "score": score,
    "velocity": velocity,
}


def convert(value: Tensor, x: Tensor, sigma: Tensor, source: str, target: str) -> Tensor:
    """A prediction of kind `source` as one of kind `target`: names of KINDS; value and x in one shape, which sigma
    (float64, 0 to infinity) broadcasts to.

    Raises ValueError where the source says nothing of the others: x0 and score at sigma 0, eps and score at infinity.
    """
    if source == target:
        return value
    cos, sin = cos_sin(sigma)
    from_x, from_v = KINDS[source](cos, sin)
    if not ((from_v != 0) & from_v.isfinite()).all():
        raise ValueError(f"{source} says nothing of {target} at sigma {0 if (sin == 0).any() else 'infinity'}")
    to_x, to_v = KINDS[target](cos, sin)
    v_value = (value - from_x * x) / from_v
    return to_x * x + to_v * v_value
