"""Posterior sampling: a denoiser D(z; sigma) becomes one of E[x0 | z, y], given a measurement y = A(x0) + std n.

E[x0 | z, y] = D + sigma^2 grad_z ln p(y | z), and the methods differ in ln p(y | z). The result is a denoiser, so that
every solver, schedule and grid goes with every method. In formulas, e = y - A(D), J = dD/dz, and A^T is the transposed
Jacobian of A at D. The covariance of x0 given z is sigma^2 J.

Each function of METHODS takes a denoiser at z and sigma and a measurement. Its further arguments are keys.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.common.errors import StudyError, nearest
from pipeline.diffusion.denoiser import DenoiserFunction, parted
from pipeline.diffusion.schedule import VP_BETA_D, VP_BETA_MIN, VP_STEPS
from pipeline.sampling.counting import Composite
from pipeline.sampling.measurement import Linear, Measurement


@dataclass
class Bill:
    """What answers cost besides network calls: products with J^T, and steps of conjugate gradients.

    Both are counted for one sample. A product costs about as much as a call; through two networks, as of a guided
    denoiser, it counts twice.
    """

    products: int = 0
    cg_steps: int = 0


class Pull(Protocol):
    """v -> J^T v, (N, ...). The last product frees the graph of D."""

    def __call__(self, v: Tensor, last: bool = False) -> Tensor: ...


@dataclass(frozen=True)
class At:
    """A denoiser at z (N, ...) and sigma, a scalar."""

    denoiser: DenoiserFunction
    z: Tensor
    sigma: Tensor
    bill: Bill

    @property
    def variance(self) -> float:
        """sigma^2."""
        return float(self.sigma) ** 2

    def answer(self) -> Tensor:
        """D."""
        return parted(self.denoiser(self.z, self.sigma), self.z)[0]

    def linearised(self) -> tuple[Tensor, Pull]:
        """D, and products with J^T, from one call."""
        networks = 0

        def noted(network: DenoiserFunction) -> DenoiserFunction:
            def call(z: Tensor, sigma: Tensor) -> Tensor:
                nonlocal networks
                networks += 1
                return network(z, sigma)

            return call

        with torch.enable_grad():
            at = self.z.detach().requires_grad_()
            denoised = parted(_wrapped(self.denoiser, noted)(at, self.sigma), at)[0]

        def pull(v: Tensor, last: bool = False) -> Tensor:
            self.bill.products += networks
            return torch.autograd.grad(denoised, at, v, retain_graph=not last)[0]

        return denoised.detach(), pull


def replacement(at: At, measurement: Linear) -> Tensor:
    """The measured values replace those of D. For masks.

    A solver then moves the measured part of z along y + sigma n, as RePaint sets it before each step; the noise is that
    of z, where RePaint draws it anew. RePaint's resampling, which goes back up and repeats steps, is a loop over levels
    and not part of a denoiser. y is taken as exact, whatever std is.

    Formula: D + A^T e
    Source: Lugmayr et al. 2022, arXiv 2201.09865, eq. 8
    """
    denoised = at.answer()
    return denoised + measurement.adjoint(misfit(measurement, denoised))


def dps(at: At, measurement: Measurement, *, zeta: float = 1.0) -> Tensor:
    """p(y | z) is taken as p(y | x0 = D). zeta: a factor on its gradient; 1 is the likelihood.

    The paper multiplies grad |e|^2 by 1 / std^2. The formula has the 1/2 of the normal distribution's exponent, too.

    Formula: D + zeta sigma^2 / std^2 J^T A^T e
    Source: Chung et al. 2023, arXiv 2209.14687, sec. 3.2
    """
    denoised, pull = at.linearised()
    towards = measurement.adjoint_at(denoised, misfit(measurement, denoised))
    return denoised + zeta * at.variance / measurement.std**2 * pull(towards, last=True)


def dps_norm(at: At, measurement: Measurement, *, zeta: float = 1.0) -> Tensor:
    """DPS as its algorithm 1 has it, in the limit of many steps. zeta: the paper's zeta'.

    The algorithm moves x by -zeta' / |e| grad |e|^2 in each of DDPM's 1000 steps, whatever std is. The formula is the
    term of D that moves x as far per time. beta: the beta of DDPM's step at sigma. The authors' code has half of the
    paper's zeta', because it takes the gradient of |e|.

    Formula: D + 2 zeta sigma^2 / beta J^T A^T e / |e|, beta = sqrt(beta_min^2 + 2 beta_d ln(1 + sigma^2)) / 1000
    Source: Chung et al. 2023, arXiv 2209.14687, algorithm 1
    """
    denoised, pull = at.linearised()
    towards = measurement.adjoint_at(denoised, normalize(misfit(measurement, denoised), dim=1))
    beta = math.sqrt(VP_BETA_MIN**2 + 2 * VP_BETA_D * math.log1p(at.variance)) / VP_STEPS
    return denoised + 2 * zeta * at.variance / beta * pull(towards, last=True)


def pigdm(at: At, measurement: Linear, *, data_std: float = 1.0) -> Tensor:
    """The covariance of x0 given z is taken as r^2 I, that of Gaussian data with standard deviation data_std.

    This is the paper's score. Its algorithm 1 also multiplies it by r^2 in a step of DDIM.

    Formula: D + sigma^2 J^T A^T (r^2 A A^T + std^2 I)^-1 e, r^2 = sigma^2 data_std^2 / (sigma^2 + data_std^2)
    Source: Song et al. 2023, openreview 9_gsMA8MRKQ, eq. 7, where data_std is 1
    """
    denoised, pull = at.linearised()
    spread = at.variance * data_std**2 / (at.variance + data_std**2)
    values = measurement.svd.values
    weights = values / (spread * values**2 + measurement.std**2)
    return denoised + at.variance * pull(measurement.filtered(misfit(measurement, denoised), weights), last=True)


def tmp(at: At, measurement: Linear, *, covariance: str = "full") -> Tensor:
    """x0 given z is taken as normal with its exact covariance, sigma^2 J, so that Gaussian data have no error.

    covariance: full takes a product for each of the m numbers of y. diagonal takes two: it replaces A J A^T by a
    diagonal matrix, the sums of the rows of A J^T A^T, as the paper does for images (DTMPD).

    Formula: D + sigma^2 J^T A^T (sigma^2 A J A^T + std^2 I)^-1 e
    Source: Boys et al. 2024, arXiv 2310.06721, sec. 3
    """
    denoised, pull = at.linearised()
    e = misfit(measurement, denoised)
    if covariance == "diagonal":
        sums = measurement.apply(pull(measurement.adjoint(torch.ones_like(e))))
        solved = e / (at.variance * sums + measurement.std**2)
        return denoised + at.variance * pull(measurement.adjoint(solved), last=True)
    units = torch.eye(measurement.size, dtype=e.dtype, device=e.device)
    rows = torch.stack(  # of A J: (N, m, ...)
        [pull(measurement.adjoint(unit.expand_as(e)), last=i == measurement.size - 1) for i, unit in enumerate(units)],
        dim=1,
    )
    ajat = measurement.apply(rows.flatten(0, 1)).reshape(*e.shape, measurement.size)
    # Singular matrices give nan, which samplers refuse; they need std = 0 and a J of lower rank.
    solved = torch.linalg.solve_ex(at.variance * ajat + measurement.std**2 * units, e)[0]
    return denoised + at.variance * torch.einsum("nm,nm...->n...", solved, rows)


def mmps(at: At, measurement: Linear, *, iterations: int = 1) -> Tensor:
    """The same as tmp, without its matrix: conjugate gradients solve the system, with a product in each iteration.

    J^T A^T of the solution is summed along with the solution, so that it takes no further product. `iterations` of the
    number of different singular values suffice if J is a multiple of I, and m always. The default is that of the
    authors' library, azula.

    Formula: D + sigma^2 J^T A^T (sigma^2 A J A^T + std^2 I)^-1 e
    Source: Rozet et al. 2024, arXiv 2405.13712, sec. 4.2; Hestenes and Stiefel 1952
    """
    denoised, pull = at.linearised()
    direction = residual = misfit(measurement, denoised)
    square, pulled_sum = _dot(residual, residual), torch.zeros_like(denoised)
    for i in range(iterations):
        at.bill.cg_steps += 1
        pulled = pull(measurement.adjoint(direction), last=i == iterations - 1)
        image = at.variance * measurement.apply(pulled) + measurement.std**2 * direction
        length = _ratio(square, _dot(direction, image))
        pulled_sum += length.reshape(-1, *(1,) * (denoised.ndim - 1)) * pulled
        residual = residual - length * image
        before, square = square, _dot(residual, residual)
        direction = residual + _ratio(square, before) * direction
    return denoised + at.variance * pulled_sum


def ddnm(at: At, measurement: Linear) -> Tensor:
    """The part of D that A measures is replaced by that of y. It needs no gradient.

    With noise (DDNM+) the replacement is damped in directions whose noise in y, std / a for a singular value a, exceeds
    the noise of z. The paper compares it with the noise that a step adds. A denoiser knows no step, so this compares it
    with sigma, and leaves out the change of the step's noise.

    Formula: D + V diag(min(1, sigma a / std) / a) U^T e, for A = U diag(a) V^T
    Source: Wang et al. 2023, arXiv 2212.00490, sec. 3.1 and 3.3
    """
    denoised = at.answer()
    values = measurement.svd.values
    damping = (float(at.sigma) * values / measurement.std).clamp(max=1) if measurement.std else 1
    return denoised + measurement.filtered(misfit(measurement, denoised), damping / values)


def mpgd(at: At, measurement: Measurement, *, step: float = 1.0) -> Tensor:
    """A gradient step on |e|^2 / 2 from D, without the network's gradient and without the autoencoder's projection.

    The paper tunes its step c_t = step / 2 by task and by number of steps; the default is ours: for an A with
    orthonormal rows, step 1 makes e zero. The paper keeps the noise (z - D) / sigma of its step, where the solvers here
    use that of the answer.

    Formula: D + step A^T e
    Source: He et al. 2024, arXiv 2311.16424, algorithm 1
    """
    denoised = at.answer()
    return denoised + step * measurement.adjoint_at(denoised, misfit(measurement, denoised))


def misfit(measurement: Measurement, denoised: Tensor) -> Tensor:
    """e = y - A(D), (N, m)."""
    assert measurement.y is not None
    return measurement.y.to(denoised) - measurement.apply(denoised)


def _wrapped(denoiser: DenoiserFunction, wrap: Callable[[DenoiserFunction], DenoiserFunction]) -> DenoiserFunction:
    """The same denoiser, with all its networks wrapped."""
    return denoiser.over(wrap) if isinstance(denoiser, Composite) else wrap(denoiser)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(1, keepdim=True)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below; 0 where below is not positive, as where conjugate gradients have converged."""
    return torch.where(below > 0, above / below, 0)


def mask_only(measurement: Measurement) -> str | None:
    return (
        None if measurement.picks else "replaces measured values, and this measurement picks none; use a mask or ddnm"
    )


def linear_only(measurement: Measurement) -> str | None:
    if isinstance(measurement, Linear):
        return None
    return "needs a linear measurement, with singular values and an adjoint; use dps or mpgd"


def _noisy_only(measurement: Measurement) -> str | None:
    return None if measurement.std > 0 else "divides by std, which is 0; write a std above 0 or use dps_norm"


def _any(measurement: Measurement) -> str | None:
    return None


@dataclass(frozen=True)
class Method:
    """answer: E[x0 | z, y] from a denoiser at z, a measurement and keys. refusal: what a measurement lacks for it.

    products: those of an answer, from the size m of the measurement and all keys.
    """

    answer: Callable[..., Tensor]
    refusal: Callable[[Measurement], str | None]
    products: Callable[..., int]


def _no_product(size: int, **keys: Any) -> int:
    return 0


def _one_product(size: int, **keys: Any) -> int:
    return 1


METHODS: dict[str, Method] = {
    "replacement": Method(replacement, mask_only, _no_product),
    "dps": Method(dps, _noisy_only, _one_product),
    "dps_norm": Method(dps_norm, _any, _one_product),
    "pigdm": Method(pigdm, linear_only, _one_product),
    "tmp": Method(tmp, linear_only, lambda size, covariance: size if covariance == "full" else 2),
    "mmps": Method(mmps, linear_only, lambda size, iterations: iterations),
    "ddnm": Method(ddnm, linear_only, _no_product),
    "mpgd": Method(mpgd, _any, _no_product),
}
COVARIANCES = ("full", "diagonal")


def keys_of(method: str) -> Mapping[str, Any]:
    """The keys of a method and their defaults."""
    return defaults(METHODS[method].answer)


def defaults(function: Callable[..., Any]) -> Mapping[str, Any]:
    """The keys of a method's function, which follow its first two arguments, and their defaults."""
    parameters = list(signature(function).parameters.values())[2:]
    return {parameter.name: parameter.default for parameter in parameters}


def check_keys(
    method: str, valid: Mapping[str, Any], keys: Mapping[str, Any], most: Mapping[str, float] | None = None
) -> None:
    """Raise StudyError for a key that a method does not have, or a value that is not valid.

    valid: the keys and their defaults. most: the largest values of keys that have one.
    """
    if unknown := sorted(set(keys) - set(valid)):
        raise StudyError(f"{unknown[0]}: method {method} has no such key; valid: {', '.join(valid) or 'none'}")
    for name, value in keys.items():
        if name == "covariance":
            if value not in COVARIANCES:
                raise StudyError(f"covariance: no {value!r}; {nearest(value, COVARIANCES)}")
        elif not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
            raise StudyError(f"{name}: {value} is not positive and finite")
        elif isinstance(valid[name], int) and not isinstance(value, int):
            raise StudyError(f"{name}: {value} is no whole number")
        elif most and value > most.get(name, math.inf):
            raise StudyError(f"{name}: {value} is above {most[name]:g}")


def check_measurement(method: str, refusal: Callable[[Measurement], str | None], measurement: Measurement) -> None:
    """Raise StudyError if the measurement has no y, or if the method cannot use it."""
    if measurement.y is None:
        raise StudyError("given: the measurement has no y; bind it with observed(y)")
    if reason := refusal(measurement):
        raise StudyError(f"posterior: {method} {reason}")


def check_shape(measurement: Measurement, z: Tensor) -> None:
    """Raise StudyError if the measurement is not of the shape of z (N, ...)."""
    if tuple(z.shape[1:]) != measurement.shape:
        raise StudyError(f"given: the measurement is of {measurement.shape}, but x has {tuple(z.shape[1:])}")


@dataclass(frozen=True)
class Given:
    """A denoiser of E[x0 | z, y]. bill: what its answers have cost besides network calls."""

    denoiser: DenoiserFunction
    measurement: Measurement
    answer: Callable[[At, Measurement], Tensor]
    bill: Bill = field(default_factory=Bill)

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | z, y; sigma]: z (N, *shape), sigma a scalar. A variance after D is left out."""
        check_shape(self.measurement, z)
        with torch.no_grad():
            return self.answer(At(self.denoiser, z, sigma, self.bill), self.measurement)

    def over(self, wrap: Callable[[DenoiserFunction], DenoiserFunction]) -> Self:
        """The same denoiser, with the same bill, with all its networks wrapped."""
        return replace(self, denoiser=_wrapped(self.denoiser, wrap))


def given(denoiser: DenoiserFunction, measurement: Measurement, method: str, **keys: Any) -> Given:
    """The denoiser of E[x0 | z, y] by a method of METHODS, with its keys: a denoiser for `pipeline.sampling.sample`.

    denoiser(z, sigma) -> D, differentiable for methods with products, and whose samples do not affect each other. It
    may be guided, but a classifier's part is missing in J. measurement: with y bound by `observed`.

    Raises StudyError for a name or a key that does not exist, and for a measurement that the method cannot use.
    """
    if method not in METHODS:
        raise StudyError(f"posterior: no method {method!r}; {nearest(method, METHODS)}")
    check_keys(method, keys_of(method), keys)
    check_measurement(method, METHODS[method].refusal, measurement)
    return Given(denoiser, measurement, partial(METHODS[method].answer, **keys))
