"""The variational bound of discrete DDPM, L_0 + L_t + L_T, measured term by term in bits per dimension.

Ho et al. 2020 (arXiv 2006.11239, eq. 5, 8, 13) and Nichol and Dhariwal 2021 (arXiv 2102.09672, eq. 4-7) take T steps
through x_t = s(sigma_t) (x0 + sigma_t n), s = 1 / sqrt(1 + sigma^2). The terms depend only on the table
sigma_1 < ... < sigma_T, through the signal-to-noise ratios SNR_t = 1 / sigma_t^2 (Kingma et al. 2021, arXiv 2107.00630,
eq. 13-14). So any denoiser can be measured in z = x0 + sigma n.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.common.errors import NotFinite
from pipeline.common.randomness import generator
from pipeline.data.dataset import to_range
from pipeline.data.decoder import decoder_log_likelihood, pixel_levels
from pipeline.diffusion.denoiser import DenoiserFunction, parted, per_sample
from pipeline.metrics.estimate import Estimate
from pipeline.training.hybrid import decoder_nats, step_factors, transition_nats

BATCH = 256  # samples per evaluation; it is fixed, so that each image always gets the same noise
ROUNDS = 32  # independent estimates of L_t, whose spread gives its standard error
REPEATS = 2  # noises per image for L_0: the fewest that have a spread
STRETCHES = 5
TYPICAL_STD = 0.5  # of data in [-1, 1]; it only sets the importance sampling of t, not the value


@dataclass(frozen=True)
class Bound:
    """The bound's terms for given images, in bits per dimension.

    The standard errors are those of drawing noise and (image, t) pairs; L_T is exact, so its error is 0. They do not
    include the choice of images. L_t is the sum over t = 2..T; `shares` splits its value into equal stretches of t:
    (first t, last t, bits).
    """

    L_0: Estimate
    L_t: Estimate
    L_T: Estimate
    total: Estimate
    shares: list[tuple[int, int, float]]


def variational_bound(denoiser: DenoiserFunction, images: Tensor, sigmas: Tensor, seed: int, draws: int) -> Bound:
    """The bound of a denoiser for images (N, C, H, W), uint8, through the noise levels sigmas (T,), ascending.

    denoiser(z, sigma) -> D, with z (n, C, H, W) and sigma (n,), both float64. If it also answers v, as
    `Denoiser.with_variance` does, the bound is that of the learned variances. It is evaluated on 2 N samples for L_0,
    and for L_t on `draws` (image, t) pairs, rounded up to a multiple of ROUNDS. Both estimates are unbiased. With the
    same seed, images and table all denoisers get the same pairs and noise.
    Raises NotFinite if an answer of the denoiser is not finite, ValueError if sigmas do not ascend from above 0.
    """
    if sigmas.ndim != 1 or not bool((sigmas.diff(prepend=sigmas.new_zeros(1)) > 0).all()):
        raise ValueError("sigmas must ascend from above 0")
    sigmas, draw = sigmas.double().cpu(), generator("bound", seed)
    end = Estimate(prior_bits(images, float(sigmas[-1])), 0.0)
    start = _decoder_bits(denoiser, images, sigmas, draw)
    between, shares = _transition_bits(denoiser, images, sigmas, draws, draw)
    total = Estimate(start.value + between.value + end.value, math.hypot(start.se, between.se))
    return Bound(start, between, end, total, shares)


def prior_bits(images: Tensor, sigma: float) -> float:
    """L_T = KL(q(x_T | x0) || N(0, I)) = (x0^2 - 1) / (2 (1 + sigma^2)) + ln(1 + 1 / sigma^2) / 2, for a large sigma.

    The mean over images of any shape, uint8, in bits per dimension.
    """
    counts = torch.bincount(images.flatten().cpu(), minlength=256).double()
    square = float(counts @ pixel_levels().square()) / images.numel()
    return ((square - 1) / (1 + sigma**2) + math.log1p(sigma**-2)) / 2 / math.log(2)


def snr_steps(sigmas: Tensor) -> Tensor:
    """SNR_{t-1} - SNR_t for t = 2..T, (T - 1,), from sigmas (T,), without cancellation."""
    low, high = sigmas[:-1], sigmas[1:]
    return (high - low) / (low * high) * (1 / low + 1 / high)


@torch.no_grad()
def scores(
    denoiser: Callable[..., Tensor],
    images: Tensor,
    which: Tensor,
    sigma: Tensor,
    draw: torch.Generator,
    score: Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor],
    labels: Tensor | None = None,
) -> Tensor:
    """score(images, D, v, sigma), averaged over dimensions, for images[which] at noise levels sigma; all (M,).

    labels: of the images, (N,), which the denoiser gets, too, if they are given.
    """
    found = []
    for rows, levels in zip(which.split(BATCH), sigma.split(BATCH), strict=True):
        chosen = images[rows.to(images.device)]
        x0 = to_range(chosen).double()
        n = torch.randn(x0.shape, dtype=torch.float64, generator=draw).to(x0)
        told = () if labels is None else (labels[rows.to(labels.device)],)
        denoised, v = parted(denoiser(x0 + per_sample(levels, x0) * n, levels.to(x0), *told).to(x0), x0)
        scores = score(chosen, denoised, v, levels).flatten(1).mean(1).cpu()
        if not scores.isfinite().all():
            bad = float(levels[~scores.isfinite()][0])
            raise NotFinite(f"the bound at sigma {bad:.4g}: the denoiser's answer is not finite, or far too large")
        found.append(scores)
    return torch.cat(found)


def _decoder_bits(denoiser: DenoiserFunction, images: Tensor, sigmas: Tensor, draw: torch.Generator) -> Estimate:
    """L_0 = -ln p(x0 | x_1) at sigma = sigma_1, from REPEATS noises per image.

    At t = 0 there is no noise: the posterior's mean is D and its variance, beta-tilde_1, is 0, so that only one level
    would have a probability. The decoder uses the other variance of Ho et al., beta_1 = sigma^2 / (1 + sigma^2), or the
    learned one.
    """
    sigma = float(sigmas[0])
    std = sigma / math.sqrt(1 + sigma**2)

    def nats_of(chosen: Tensor, denoised: Tensor, v: Tensor | None, sigma: Tensor) -> Tensor:
        if v is None:
            return -decoder_log_likelihood(chosen, denoised, std)
        x0, (log_range, _) = to_range(chosen).double(), step_factors(sigmas)
        return decoder_nats(x0, denoised - x0, v, sigma, log_range[:1].expand(len(x0)))

    which = torch.arange(len(images)).repeat_interleave(REPEATS)
    nats = scores(
        denoiser,
        images,
        which,
        torch.full((len(which),), sigma, dtype=torch.float64),
        draw,
        nats_of,
    )
    bits = nats.reshape(-1, REPEATS) / math.log(2)
    return Estimate(float(bits.mean()), float((bits.var(1) / REPEATS).sum().sqrt()) / len(images))


def _transition_bits(
    denoiser: DenoiserFunction, images: Tensor, sigmas: Tensor, draws: int, draw: torch.Generator
) -> tuple[Estimate, list[tuple[int, int, float]]]:
    """The sum of L_{t-1} = (SNR_{t-1} - SNR_t) / 2 ||x0 - D(z; sigma_t)||^2 over t = 2..T, and its shares by stretch.

    This is KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)) if p has the variance of q, beta-tilde_t. For learned
    variances see `transition_nats`.
    Each round stratifies t and takes the images in turn, in a random order. Half of the draws are uniform in t, half
    follow the terms of Gaussian data (Nichol and Dhariwal, section 3.3, learn their distribution).
    """
    if len(sigmas) == 1:
        return Estimate(0.0, 0.0), []
    weights = snr_steps(sigmas) / 2
    terms = weights / (1 / sigmas[1:] ** 2 + TYPICAL_STD**-2)
    chances = (terms / terms.sum() + 1 / len(terms)) / 2
    size = -(-draws // ROUNDS)
    strata = (torch.arange(size) + torch.rand(ROUNDS, size, dtype=torch.float64, generator=draw)) / size
    t = torch.searchsorted(chances.cumsum(0)[:-1], strata, right=True)  # index 0 is t = 2; (ROUNDS, size)
    which = torch.stack([in_turn(len(images), size, draw) for _ in range(ROUNDS)])

    def over_weight(chosen: Tensor, denoised: Tensor, v: Tensor | None, sigma: Tensor) -> Tensor:
        """A term over its weight: the squared error, if the variances are not learned."""
        error = to_range(chosen).double() - denoised
        if v is None:
            return error.square()
        of_step = torch.searchsorted(sigmas, sigma)
        log_range, snr_step = (per_sample(factors[of_step], error) for factors in step_factors(sigmas))
        return transition_nats(error, v, log_range, snr_step) / (snr_step / 2)

    errors = scores(denoiser, images, which.flatten(), sigmas[1:][t].flatten(), draw, over_weight)
    bits = errors.reshape(t.shape) * (weights / chances)[t] / math.log(2)
    rounds = bits.mean(1)
    shares = [
        (int(s[0]) + 2, int(s[-1]) + 2, float((bits * ((t >= s[0]) & (t <= s[-1]))).mean()))
        for s in torch.arange(len(terms)).tensor_split(min(STRETCHES, len(terms)))
    ]
    return Estimate(float(rounds.mean()), float(rounds.std()) / math.sqrt(ROUNDS)), shares


def in_turn(count: int, size: int, draw: torch.Generator) -> Tensor:
    """`size` of `count` indices, in random orders; each index comes again only after all others."""
    return torch.cat([torch.randperm(count, generator=draw) for _ in range(-(-size // count))])[:size]
