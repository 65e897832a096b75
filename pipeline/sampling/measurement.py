"""Measurements y = A(x) + std n, with n standard normal, of which posterior samplers are given y.

x is a batch (N, *shape), y is (N, m). Each function of MEASUREMENTS takes the shape of one x, std and its own keys.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import Parameter, signature
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from pipeline.common.errors import StudyError
from pipeline.common.randomness import generator


class Measurement:
    """An operator A on x of a shape, which gives m numbers (`size`), and the std of their noise.

    y: the numbers that were measured, (1, m) for all samples or (N, m); None until `observed` binds them.
    """

    y: Tensor | None = None
    picks = False  # whether A picks values of x

    def __init__(self, shape: Sequence[int], size: int, std: float) -> None:
        if not (math.isfinite(std) and std >= 0):
            raise StudyError(f"std: {std:g} is no standard deviation; write a finite number of at least 0")
        self.shape, self.size, self.std = tuple(shape), size, std

    def apply(self, x: Tensor) -> Tensor:
        """A(x), (N, m), of x (N, *shape)."""
        raise NotImplementedError

    def adjoint_at(self, x: Tensor, v: Tensor) -> Tensor:
        """The transposed Jacobian of A at x (N, *shape), times v (N, m): (N, *shape)."""
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            return torch.autograd.grad(self.apply(at), at, v)[0]

    def observed(self, y: Tensor) -> Self:
        """This measurement with y bound: (m,) or (1, m) for all samples, or (N, m)."""
        if y.ndim not in (1, 2) or y.shape[-1] != self.size:
            raise StudyError(
                f"y: has the shape {tuple(y.shape)}; this measurement gives ({self.size},) or (N, {self.size})"
            )
        bound = copy.copy(self)
        bound.y = y.reshape(-1, self.size)
        return bound

    def draw(self, x: Tensor, draws: torch.Generator) -> Tensor:
        """A draw of y, (N, m), of x (N, *shape)."""
        exact = self.apply(x)
        return exact + self.std * torch.randn(exact.shape, dtype=exact.dtype, generator=draws).to(exact.device)


@dataclass(frozen=True)
class Svd:
    """A = U diag(values) V^T with r values above 0. Each function maps a batch: `v_t` from (N, *shape) to (N, r), `v`
    back, `u_t` from (N, m) to (N, r), `u` back."""

    values: Tensor
    v_t: Callable[[Tensor], Tensor]
    v: Callable[[Tensor], Tensor]
    u_t: Callable[[Tensor], Tensor]
    u: Callable[[Tensor], Tensor]


class Linear(Measurement):
    """y = A x + std n for a matrix A, (m, d), of the d values of x. shape: that of x, by default (d,)."""

    def __init__(self, matrix: Tensor, std: float, shape: Sequence[int] | None = None) -> None:
        size, dimensions = matrix.shape
        super().__init__((dimensions,) if shape is None else shape, size, std)
        if math.prod(self.shape) != dimensions:
            raise StudyError(
                f"matrix: has {dimensions} columns, but x of shape {self.shape} has {math.prod(self.shape)} values"
            )
        self._matrix = matrix

    @property
    def matrix(self) -> Tensor:
        """A, (m, d)."""
        return self._matrix

    def apply(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self._matrix.to(x).T

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, (N, *shape), of y (N, m)."""
        return (y @ self._matrix.to(y)).reshape(-1, *self.shape)

    def adjoint_at(self, x: Tensor, v: Tensor) -> Tensor:
        return self.adjoint(v)

    @cached_property
    def svd(self) -> Svd:
        """The singular value decomposition, without values that are 0 to rounding."""
        u, values, v_t = torch.linalg.svd(self._matrix, full_matrices=False)
        kept = _above_rounding(values, max(self._matrix.shape))
        u, v_t = u[:, kept], v_t[kept]
        return Svd(
            values[kept],
            lambda x: x.flatten(1) @ v_t.to(x).T,
            lambda c: (c @ v_t.to(c)).reshape(-1, *self.shape),
            lambda y: y @ u.to(y),
            lambda c: c @ u.to(c).T,
        )

    def filtered(self, y: Tensor, weights: Tensor) -> Tensor:
        """V diag(weights) U^T y, (N, *shape): y (N, m), one weight per singular value, (r,)."""
        return self.svd.v(self.svd.u_t(y) * weights.to(y))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Moore and Penrose's pseudo-inverse of A times y (N, m): (N, *shape)."""
        return self.filtered(y, 1 / self.svd.values)


class Factored(Linear):
    """A linear measurement with a known singular value decomposition, so that it needs no matrix."""

    def __init__(self, shape: Sequence[int], size: int, std: float, svd: Svd, picks: bool = False) -> None:
        Measurement.__init__(self, shape, size, std)
        self.svd, self.picks = svd, picks

    @property
    def matrix(self) -> Tensor:
        dimensions = math.prod(self.shape)
        return self.apply(torch.eye(dimensions, dtype=torch.float64).reshape(-1, *self.shape)).T

    def apply(self, x: Tensor) -> Tensor:
        return self.svd.u(self.svd.v_t(x) * self.svd.values.to(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.filtered(y, self.svd.values)


class Clip(Measurement):
    """See `clip`."""

    def __init__(self, shape: Sequence[int], std: float, limit: float) -> None:
        super().__init__(shape, math.prod(shape), std)
        self.limit = limit

    def apply(self, x: Tensor) -> Tensor:
        return x.flatten(1).clamp(-self.limit, self.limit)


def _above_rounding(values: Tensor, size: int) -> Tensor:
    return values > size * torch.finfo(values.dtype).eps * values.max()


def _orthogonal(
    shape: Sequence[int],
    std: float,
    size: int,
    value: float,
    v_t: Callable[[Tensor], Tensor],
    v: Callable[[Tensor], Tensor],
    picks: bool = False,
) -> Factored:
    """A = value V^T: its rows are orthogonal and equally long."""
    values = torch.full((size,), value, dtype=torch.float64)
    return Factored(shape, size, std, Svd(values, v_t, v, lambda y: y, lambda c: c), picks)


def _placed(c: Tensor, kept: Tensor, shape: Sequence[int]) -> Tensor:
    """x (N, *shape) with c (N, r) at the indices `kept`, (r,), of x as a vector, else 0."""
    return c.new_zeros(len(c), math.prod(shape)).index_copy(1, kept.to(c.device), c).reshape(-1, *shape)


def _picking(shape: Sequence[int], std: float, kept: Tensor) -> Factored:
    """A picks the values with indices `kept`, (m,), of x as a vector."""

    def v_t(x: Tensor) -> Tensor:
        return x.flatten(1)[:, kept.to(x.device)]

    return _orthogonal(shape, std, len(kept), 1.0, v_t, lambda c: _placed(c, kept, shape), picks=True)


def _image(name: str, shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width. Raises StudyError if x is no image."""
    if len(shape) != 3:
        raise StudyError(f"{name}: measures images (channels, height, width), but x has the shape {tuple(shape)}")
    channels, height, width = shape
    return channels, height, width


def identity(shape: Sequence[int], std: float) -> Linear:
    """x with noise. All singular values are 1.

    Formula: A x = x
    """
    return _picking(shape, std, torch.arange(math.prod(shape)))


def mask(
    shape: Sequence[int],
    std: float,
    *,
    box: Sequence[int] | None = None,
    share: float | None = None,
    kept: Sequence[int] | Tensor | None = None,
    seed: int = 0,
) -> Linear:
    """Some pixels of an image, each with all its channels, or some coordinates of a point. All singular values are 1.

    box: (top, left, height, width) of the pixels that are not measured. share: of the pixels or coordinates that are
    measured, drawn by `seed`. kept: those that are measured, as a list of indices (row by row), or as a boolean tensor
    of an image's (height, width) or of the shape of x. Exactly one of the three is needed.

    Formula: A x = x at the measured places
    """
    if sum(choice is not None for choice in (box, share, kept)) != 1:
        raise StudyError("mask: needs exactly one of box, share and kept")
    places = shape[-2:] if len(shape) == 3 else shape
    count, channels = math.prod(places), shape[0] if len(shape) == 3 else 1
    if box is not None:
        _, height, width = _image("mask: box", shape)
        top, left, rows, columns = box
        if min(box) < 0 or top + rows > height or left + columns > width:
            raise StudyError(f"mask: the box {tuple(box)} is not inside of an image of {height} x {width}")
        measured = torch.ones(height, width, dtype=torch.bool)
        measured[top : top + rows, left : left + columns] = False
    elif share is not None:
        if not 0 < share <= 1:
            raise StudyError(f"mask: share {share:g} is not above 0 and at most 1")
        order = torch.randperm(count, generator=generator("mask", seed))
        measured = torch.zeros(count, dtype=torch.bool)
        measured[order[: max(1, round(share * count))]] = True
    elif isinstance(kept, Tensor) and kept.dtype == torch.bool:
        measured = kept
        if tuple(measured.shape) not in (tuple(places), tuple(shape)):
            raise StudyError(f"mask: kept has the shape {tuple(measured.shape)}, but x has {tuple(shape)}")
    else:
        indices = torch.as_tensor(kept, dtype=torch.int64)
        if not len(indices) or indices.min() < 0 or indices.max() >= count or len(indices.unique()) < len(indices):
            raise StudyError(f"mask: kept must list different numbers from 0 to {count - 1}, at least one")
        measured = torch.zeros(count, dtype=torch.bool)
        measured[indices] = True
    if not measured.any():
        raise StudyError("mask: nothing is measured; keep at least one value")
    if measured.numel() == count:
        measured = measured.flatten().repeat(channels)
    return _picking(shape, std, measured.flatten().nonzero()[:, 0])


def downsample(shape: Sequence[int], std: float, *, factor: int = 2) -> Linear:
    """The means of blocks of factor x factor pixels. All singular values are 1 / factor.

    Formula: (A x)_block = sum over the block of x / factor^2
    """
    channels, height, width = _image("downsample", shape)
    if factor < 1 or height % factor or width % factor:
        raise StudyError(f"downsample: factor {factor} does not divide an image of {height} x {width}")
    blocks = (channels, height // factor, width // factor)

    def v_t(x: Tensor) -> Tensor:
        return avg_pool2d(x, factor).flatten(1) * factor

    def v(c: Tensor) -> Tensor:
        small = c.reshape(-1, *blocks) / factor
        return small.repeat_interleave(factor, 2).repeat_interleave(factor, 3)

    return _orthogonal(shape, std, math.prod(blocks), 1 / factor, v_t, v)


def blur(shape: Sequence[int], std: float, *, width: float = 1.0) -> Linear:
    """A Gaussian blur with circular boundaries; width: the kernel's standard deviation, in pixels.

    With circular boundaries its singular values are known: they are the discrete Fourier transform of the kernel, which
    is a Gaussian summed over all periods and divided by its sum. Its singular vectors are products of Hartley's
    cos + sin. Values that are 0 to rounding are left out.

    Formula: A x = k * x, k_ij = k_i k_j, k_i ~ sum over p of exp(-(i + p n)^2 / (2 width^2))
    Source: Davis 1979, Circulant Matrices; Bracewell 1983, doi 10.1364/JOSA.73.001832
    """
    channels, rows, columns = _image("blur", shape)
    if not 0 < width < math.inf:
        raise StudyError(f"blur: width {width:g} is not positive and finite")
    (vertical, of_rows), (horizontal, of_columns) = _circular(rows, width), _circular(columns, width)
    values = (of_rows[:, None] * of_columns).flatten().repeat(channels)
    kept = _above_rounding(values, len(values)).nonzero()[:, 0]

    def turned(x: Tensor) -> Tensor:  # its own inverse
        return vertical.to(x) @ x @ horizontal.to(x)

    def v_t(x: Tensor) -> Tensor:
        return turned(x).flatten(1)[:, kept.to(x.device)]

    def v(c: Tensor) -> Tensor:
        return turned(_placed(c, kept, shape))

    svd = Svd(values[kept], v_t, v, lambda y: v_t(y.reshape(-1, *shape)), lambda c: v(c).flatten(1))
    return Factored(shape, len(values), std, svd)


def _circular(n: int, width: float) -> tuple[Tensor, Tensor]:
    """Hartley's orthonormal basis of n points, (n, n), and the eigenvalues of the blur in it, (n,)."""
    i = torch.arange(n, dtype=torch.float64)
    reach = math.ceil(10 * width / n) + 1  # periods until the Gaussian is 0 to rounding
    periods = n * torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = (-((i[:, None] + periods) ** 2) / (2 * width**2)).exp().sum(1)
    angles = 2 * math.pi / n * (i[:, None] * i % n)
    return (angles.cos() + angles.sin()) / math.sqrt(n), angles.cos() @ (kernel / kernel.sum())


def random(shape: Sequence[int], std: float, *, projections: int, seed: int = 0) -> Linear:
    """Projections on random orthonormal vectors, drawn by `seed`. All singular values are 1.

    The vectors span a uniformly distributed subspace: they are the Q of a Gaussian matrix.

    Formula: A x = Q^T x
    Source: Stewart 1980, doi 10.1137/0717034
    """
    dimensions = math.prod(shape)
    if not 1 <= projections <= dimensions:
        raise StudyError(f"random: {projections} projections of {dimensions} dimensions; write 1 to {dimensions}")
    drawn = torch.randn(dimensions, projections, dtype=torch.float64, generator=generator("projections", seed))
    q = torch.linalg.qr(drawn).Q
    return _orthogonal(
        shape, std, projections, 1.0, lambda x: x.flatten(1) @ q.to(x), lambda c: (c @ q.to(c).T).reshape(-1, *shape)
    )


def clip(shape: Sequence[int], std: float, *, limit: float = 0.5) -> Measurement:
    """Values that saturate at -limit and limit. It is not linear, and its gradient is 0 where it saturates.

    Formula: A(x) = max(-limit, min(limit, x))
    """
    if not 0 < limit < math.inf:
        raise StudyError(f"clip: limit {limit:g} is not positive and finite")
    return Clip(shape, std, limit)


def keys_of(operator: str) -> dict[str, Parameter]:
    """The keys of a measurement, without the shape of x and std."""
    parameters = list(signature(MEASUREMENTS[operator]).parameters.values())[2:]
    return {parameter.name: parameter for parameter in parameters}


MEASUREMENTS: dict[str, Callable[..., Measurement]] = {
    "identity": identity,
    "mask": mask,
    "downsample": downsample,
    "blur": blur,
    "random": random,
    "clip": clip,
}
