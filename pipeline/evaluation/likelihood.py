"""The log-likelihood of data under the probability-flow ODE of a denoiser, and its traces."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from pipeline.common.errors import NotFinite, StudyError
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.sampling.counting import Counted
from pipeline.sampling.multistep import Multistep
from pipeline.sampling.ode import Ode
from pipeline.sampling.row import Sampler

TYPICAL_STD = 0.5  # of data in [-1, 1]; it only chooses which part of the trace is integrated in closed form
TRACES = ("exact", "hutchinson")
"""exact: The whole trace, sum_i e_i . (dD/dz) e_i, by one product with the Jacobian for each dimension.
Source: Chen et al. 2018, arXiv 1806.07366, eq. 8

hutchinson: An unbiased estimate, the mean of v . (dD/dz) v over random signs v, the same at all noise levels.
Source: Hutchinson 1989, doi 10.1080/03610918908812806; Grathwohl et al. 2019, arXiv 1810.01367, eq. 7
"""


@dataclass(frozen=True)
class Prior:
    """The normal distribution of z at sigma_max: N(mean, sigma_max^2 + variance) in every dimension."""

    mean: float = 0.0
    variance: float = 0.0

    def standardised(self, z: Tensor, sigma: float) -> Tensor:
        """z (N, ...), which is N(0, I) if z follows the prior."""
        return (z - self.mean) / math.hypot(sigma, math.sqrt(self.variance))

    def log_density(self, z: Tensor, sigma: float) -> Tensor:
        """ln p(z) of each sample of z (N, ...), in nats: (N,)."""
        variance = sigma**2 + self.variance
        squares = self.standardised(z, sigma).flatten(1).square()
        return -(squares + math.log(2 * math.pi * variance)).sum(1) / 2


@dataclass(frozen=True)
class LogLikelihood:
    """nats: ln p(x) of each sample, (N,). z: the samples at sigma_max, (N, ...).

    nfe: network calls. products: products with the Jacobian of D. Both are counted for one sample.
    """

    nats: Tensor
    z: Tensor
    nfe: int
    products: int


@torch.no_grad()
def log_likelihood(
    denoiser: DenoiserFunction,
    x: Tensor,
    sampler: Sampler,
    steps: int,
    trace: str = "exact",
    probes: Tensor | None = None,
    prior: Prior | None = None,
) -> LogLikelihood:
    """The log density at x of the model's distribution at sigma_min, by the ODE from sigma_min up to sigma_max.

    ln p(x) = ln p(z; sigma_max) + integral of tr d((z - D) / sigma)/dz over sigma (Chen et al. 2018, arXiv 1806.07366,
    eq. 8; Song et al. 2021, arXiv 2011.13456, app. D.2). The solver takes z through the levels above 0 of the sampler's
    grid of `steps` steps. The integral is that of a cubic spline in ln sigma through its integrand at these levels, so
    its error is of order 4, or of the solver's if that is lower. Multistep solvers have order 2, because their first
    step has order 1.

    denoiser(z, sigma) -> D, differentiable, whose samples do not affect each other. x: (N, ...), continuous, about in
    [-1, 1]. trace: one of TRACES; hutchinson needs probes (P, N, ...) of values 1 and -1. prior: N(0, sigma_max^2) by
    default.

    Raises StudyError for a solver that adds noise or chooses its own steps, a threshold, or a grid of one level,
    ValueError for hutchinson without probes or exact with them, NotFinite if an answer of the denoiser or the result is
    not finite.
    """
    if (trace == "hutchinson") != (probes is not None):
        raise ValueError("probes are for trace hutchinson, which needs them")
    check_solver(sampler)
    sigmas = sampler.grid(steps)[:-1].flip(0).tolist()
    if len(sigmas) < 2:
        raise StudyError(f"nfe: {steps} step has one noise level above 0; a likelihood needs two or more")
    network = Counted(denoiser)
    dimensions, products, rates = x[0].numel(), 0, list[Tensor]()
    known: tuple[Tensor, Tensor] | None = None  # the last z whose trace was taken, and its D

    def answer(z: Tensor, sigma: Tensor) -> Tensor:
        return known[1] if known and z is known[0] else network(z, sigma).to(z.dtype)

    z = x.double()
    path = travel(answer, z, sampler, sigmas)
    for sigma in sigmas:
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            denoised = answer(at, torch.tensor(sigma, dtype=torch.float64))
            found = exact_trace(denoised, at) if probes is None else hutchinson_trace(denoised, at, probes)
        network.sums[:] = [each.detach() for each in network.sums]  # else they would keep the graph
        products += dimensions if probes is None else len(probes)
        rates.append(_gaussian_trace(sigma, dimensions) - found)
        known = z, denoised.detach()
        z = next(path, z)
    along = torch.stack(rates)
    nats = (prior or Prior()).log_density(z, sigmas[-1]) + _integral(sigmas, along, dimensions)
    if network.not_finite(nats, along) is not None:
        raise NotFinite("an answer of the denoiser, or the likelihood, is not finite")
    return LogLikelihood(nats, z, network.nfe, products)


def _gaussian_trace(sigma: float, dimensions: int) -> float:
    """tr dD/dz of Gaussian data with standard deviation TYPICAL_STD."""
    return dimensions * TYPICAL_STD**2 / (sigma**2 + TYPICAL_STD**2)


def _integral(sigmas: Sequence[float], rates: Tensor, dimensions: int) -> Tensor:
    """The integral of d - tr dD/dz over ln sigma, for each sample: (N,).

    rates: the trace of Gaussian data minus tr dD/dz at each level, (K, N). The integral for Gaussian data is added in
    closed form.
    """
    logs = [math.log(sigma) for sigma in sigmas]
    values = rates.nan_to_num(0, 0, 0).cpu().numpy()  # the caller refuses what is not finite
    rest = CubicSpline(logs, values).integrate(logs[0], logs[-1])
    low, high = (math.log(sigma**2 + TYPICAL_STD**2) for sigma in (sigmas[0], sigmas[-1]))
    return torch.from_numpy(rest).to(rates) + dimensions / 2 * (high - low)


def exact_trace(denoised: Tensor, z: Tensor) -> Tensor:
    """tr dD/dz of each sample, (N,), by one product with the Jacobian per dimension. z (N, ...), D with its graph."""
    values, found = denoised.flatten(1), []
    for i in range(values.shape[1]):
        (row,) = torch.autograd.grad(values[:, i].sum(), z, retain_graph=True)
        found.append(row.flatten(1)[:, i])
    return torch.stack(found).sum(0)


def hutchinson_trace(denoised: Tensor, z: Tensor, probes: Tensor) -> Tensor:
    """The mean of v . (dD/dz) v over probes v, (P, N, ...), for each sample: (N,). D, z: (N, ...), D with its graph."""
    found = []
    for v in probes.to(denoised):
        (product,) = torch.autograd.grad(denoised, z, v, retain_graph=True)
        found.append((product * v).flatten(1).sum(1))
    return torch.stack(found).mean(0)


def travel(denoiser: DenoiserFunction, z: Tensor, sampler: Sampler, sigmas: Sequence[float]) -> Iterator[Tensor]:
    """Yield z (N, ...) after each step of the sampler's solver through noise levels above 0, rising or falling."""
    solver, ratio = sampler.build_solver(), sigmas[-1] / sigmas[-2]
    # Some solvers lower their order in the last steps. They get levels beyond the last one, to which they never go.
    more = solver.points if isinstance(solver, Multistep) else 0
    levels = [*sigmas, *(sigmas[-1] * ratio**k for k in range(1, more + 1))]
    ode = Ode(denoiser, sampler.build_schedule(), sampler.build_scaling())
    yield from islice(solver.run(ode, z, levels, torch.zeros_like), len(sigmas) - 1)


def check_solver(sampler: Sampler) -> None:
    """Raise StudyError for a solver that adds noise, along which there is no likelihood, or chooses its own steps.

    And for a threshold, with which an ODE cannot be run back, and for keys of how sampling begins and ends.
    """
    if sampler.threshold != "none":
        raise StudyError(f"threshold: {sampler.threshold} gives many z one D, so that no way leads back; use none")
    for key, default in (("end", "zero"), ("first_step", "network")):
        if (value := getattr(sampler, key)) != default:
            raise StudyError(f"{key}: {value} is for sampling; a likelihood needs {default}")
    solver = sampler.build_solver()
    key, why = "S_churn" if sampler.S_churn else "solver", ""
    if solver.stochastic:
        why = "adds noise, and a likelihood needs an ODE"
    elif solver.adaptive:
        why = "chooses its own levels, and the trace is integrated over given ones"
    elif solver.order is None:
        why = "has no order, and a likelihood needs a solution of the ODE"
    if why:
        raise StudyError(f"{key}: {getattr(sampler, key)} {why}; use a solver such as heun or unipc")
