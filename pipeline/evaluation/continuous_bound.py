"""The variational bound of any denoiser in continuous time, L_0 + L_diffusion + L_T, term by term, per dimension."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.common.randomness import generator
from pipeline.data.dataset import is_points, to_range
from pipeline.data.decoder import pixel_levels
from pipeline.diffusion.denoiser import per_sample
from pipeline.evaluation.bound import REPEATS, ROUNDS, in_turn, scores
from pipeline.evaluation.likelihood import TYPICAL_STD, Prior
from pipeline.metrics.estimate import Estimate, mean_estimate
from pipeline.training.noise import Distribution, Levels

STRETCHES = 16
INSIDE = 1e-6  # u stays this far from 0 and 1, where a distribution's levels may be infinite


@dataclass(frozen=True)
class ContinuousBound:
    """The bound's terms in bits per dimension. The standard errors are those of drawing noise and noise levels.

    For points, L_0 is the entropy of their noise at sigma_min, and the bound is one of their density there. shares: the
    part of L_diffusion in each of STRETCHES equal stretches of ln sigma: (lowest sigma, highest sigma, bits).
    """

    L_0: Estimate
    L_diffusion: Estimate
    L_T: float
    total: Estimate
    shares: list[tuple[float, float, float]]


def continuous_bound(
    denoiser: Callable[..., Tensor],
    data: Tensor,
    sigma_range: tuple[float, float],
    prior: Prior,
    proposal: Distribution | None,
    seed: int,
    draws: int,
    labels: Tensor | None = None,
) -> ContinuousBound:
    """The bound on -log p of images (N, C, H, W), uint8, or on that of points (N, 2), float32, at sigma_min.

    L_diffusion is the integral of ||x0 - D||^2 / sigma^2 over ln sigma (Kingma et al. 2021, arXiv 2107.00630, eq. 18,
    with SNR = 1 / sigma^2), L_T the divergence of z at sigma_max from `prior`. An image's levels are read from z at
    sigma_min, each pixel by itself, with p(level | z) in proportion to N(z; level, sigma_min^2).

    denoiser(z, sigma) -> D, with z (n, ...) and sigma (n,), both float64; it also gets the images' labels if these are
    given, (N,). It is called on `draws` pairs of an image and a noise level, rounded up to a multiple of ROUNDS. Half
    of the levels are uniform in ln sigma, half follow `proposal`, whose weights stay bounded that way (Owen and Zhou
    2000, doi 10.1080/01621459.2000.10473909); a discrete or missing proposal leaves them all uniform. Raises NotFinite
    if an answer is not finite.
    """
    draw, (low, high) = generator("continuous bound", seed), sigma_range
    start = _reconstruction(data, low, draw)
    between, shares = _diffusion(denoiser, data, sigma_range, proposal, draws, draw, labels)
    end = _prior_bits(data, high, prior)
    total = Estimate(start.value + between.value + end, math.hypot(start.se, between.se))
    return ContinuousBound(start, between, end, total, shares)


def _reconstruction(data: Tensor, sigma: float, draw: torch.Generator) -> Estimate:
    """L_0: for images -ln p(level | z), p in proportion to N(z; level, sigma^2); for points N(0, sigma^2)'s entropy."""
    if is_points(data):
        return Estimate(math.log2(2 * math.pi * math.e * sigma**2) / 2, 0.0)
    levels, bits = pixel_levels(), list[Tensor]()
    for image in data.cpu().repeat_interleave(REPEATS, 0):
        x0 = levels[image.flatten().long()]
        n = torch.randn(x0.shape, dtype=torch.float64, generator=draw)
        exponents = -(((x0 + sigma * n)[:, None] - levels) ** 2) / (2 * sigma**2)
        bits.append((exponents.logsumexp(1) + n.square() / 2).mean() / math.log(2))
    of_images = torch.stack(bits).reshape(-1, REPEATS)
    return Estimate(float(of_images.mean()), float((of_images.var(1) / REPEATS).sum().sqrt()) / len(of_images))


def _diffusion(
    denoiser: Callable[..., Tensor],
    data: Tensor,
    sigma_range: tuple[float, float],
    proposal: Distribution | None,
    draws: int,
    draw: torch.Generator,
    labels: Tensor | None,
) -> tuple[Estimate, list[tuple[float, float, float]]]:
    """L_diffusion and its shares. Each round stratifies the levels and takes the images in turn, in a random order."""
    low, high = map(math.log, sigma_range)
    size = -(-draws // ROUNDS)
    strata = (torch.arange(size) + torch.rand(ROUNDS, size, dtype=torch.float64, generator=draw)) / size
    logs, density = _levels(strata, low, high, proposal)
    which = torch.stack([in_turn(len(data), size, draw) for _ in range(ROUNDS)])

    def with_reference(z: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        return torch.cat([denoiser(z, sigma, *labels), _reference(z, sigma)], dim=1)

    def gained(chosen: Tensor, denoised: Tensor, reference: Tensor | None, sigma: Tensor) -> Tensor:
        assert reference is not None
        x0 = to_range(chosen).double()
        return (x0 - denoised).square() - (x0 - reference).square()

    levels = logs.exp().flatten()
    errors = scores(with_reference, data, which.flatten(), levels, draw, gained, labels).reshape(logs.shape)
    bits = errors * (-2 * logs).exp() / density / math.log(2)
    edges = torch.linspace(low, high, STRETCHES + 1, dtype=torch.float64)
    stretch = (torch.searchsorted(edges, logs, right=True) - 1).clamp(0, STRETCHES - 1)
    known = _reference_bits(data, edges.exp()).diff().tolist()
    shares = [
        (math.exp(edges[k]), math.exp(edges[k + 1]), float((bits * (stretch == k)).mean()) + known[k])
        for k in range(STRETCHES)
    ]
    rounds = mean_estimate(bits.mean(1))
    return Estimate(rounds.value + math.fsum(known), rounds.se), shares


def _reference(z: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser of data N(0, TYPICAL_STD^2), a control variate: it has most of the scatter of other denoisers."""
    return z * per_sample(TYPICAL_STD**2 / (sigma**2 + TYPICAL_STD**2), z)


def _reference_bits(data: Tensor, sigma: Tensor) -> Tensor:
    """The integral of the reference's ||x0 - D||^2 / sigma^2 over ln sigma up to sigma (K,), up to a constant."""
    s, square = TYPICAL_STD**2, float(to_range(data).double().square().mean())
    u = sigma**2
    return ((u / (u + s)).log() + (s - square) / (u + s)) / 2 / math.log(2)


def _levels(u: Tensor, low: float, high: float, proposal: Distribution | None) -> tuple[Tensor, Tensor]:
    """ln sigma between low and high from u in (0, 1), and the density over ln sigma there, both in u's shape."""
    if proposal is None or isinstance(proposal, Levels):
        return low + u * (high - low), torch.full_like(u, 1 / (high - low))
    ends = proposal.u(torch.tensor([low, high], dtype=torch.float64).exp()).clamp(INSIDE, 1 - INSIDE)
    first, last = ends.tolist()
    if first >= last:
        return _levels(u, low, high, None)
    uniform = low + 2 * u * (high - low)
    proposed = proposal.sigma(first + (2 * u - 1).clamp(min=0) * (last - first)).log()
    logs = torch.where(u < 0.5, uniform, proposed).clamp(low, high)
    place = proposal.u(logs.exp())
    own = torch.where((place > first) & (place < last), proposal.density(place.clamp(first, last)) / (last - first), 0)
    return logs, (1 / (high - low) + own) / 2


def _prior_bits(data: Tensor, sigma: float, prior: Prior) -> float:
    """L_T: the divergence of N(x0, sigma^2) from the prior, the mean over all values of the data."""
    variance = sigma**2 + prior.variance
    square = float((to_range(data).double() - prior.mean).square().mean())
    return ((sigma**2 + square) / variance - 1 - math.log(sigma**2 / variance)) / 2 / math.log(2)
