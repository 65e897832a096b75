"""The hybrid loss L_simple + 0.001 L_vlb, whose second term trains the variances of a discrete chain.

A step of the chain sigma_1 < ... < sigma_T goes from x_t to x_(t-1). Its p(x_(t-1) | x_t) has the mean of
q(x_(t-1) | x_t, x0 = D) and, for each value, the variance beta_tilde^(1 - v) beta^v (Nichol and Dhariwal 2021, arXiv
2102.09672, eqs. 10, 15 and 16). The terms of the bound depend only on v, D - x0 and SNR_t = 1 / sigma_t^2.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from pipeline.common.devices import state_type, to_device, to_device_together
from pipeline.data.dataset import to_uint8
from pipeline.data.decoder import decoder_log_likelihood
from pipeline.diffusion.denoiser import per_sample

LEARNED_VARIANCES = ("none", "hybrid")
"""none: The network does not learn the variance.

hybrid: The network learns it by the hybrid loss L_simple + 0.001 L_vlb; in L_vlb, the variational bound, D is constant.
Source: Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 16
"""
CHAINS = {"ddpm": "ddpm_uniform", "iddpm": "iddpm_uniform"}  # parametrization -> the noise that is its chain
VLB_WEIGHT = 1e-3


def transition_nats(error: Tensor, v: Tensor, log_range: Tensor, snr_step: Tensor) -> Tensor:
    """KL(q(x_(t-1) | x_t, x0) || p(x_(t-1) | x_t)) of each value, in nats, for t >= 2.

    error: D - x0. log_range: ln(beta / beta_tilde). snr_step: SNR_(t-1) - SNR_t. All broadcast. It is 1/2 snr_step
    error^2 at v = 0, where both variances are beta_tilde.

    Formula: (w + (1 + snr_step error^2) exp(-w) - 1) / 2, w = v log_range
    Source: Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 6
    """
    w = v * log_range
    return (w + torch.expm1(-w) + snr_step * error.square() * torch.exp(-w)) / 2


def decoder_nats(x0: Tensor, error: Tensor, v: Tensor, sigma: Tensor, log_range: Tensor) -> Tensor:
    """-ln p(x0 | x_1) of each value of images x0 at sigma_1, in nats, where error is D - x0; x0, error, v: (N, ...).

    The decoder's variance is beta_1 exp((v - 1) log_range), with beta_1 = sigma_1^2 / (1 + sigma_1^2). sigma and
    log_range, at t = 1: (N,). Images off the levels of a pixel, such as augmented ones, are rounded to them.

    Source: Ho et al. 2020, arXiv 2006.11239, eq. 13
    """
    precise = v.to(state_type(v.device))  # tails lose their digits in float32
    beta = sigma**2 / (1 + sigma**2)
    std = per_sample(beta.sqrt(), precise) * torch.exp((precise - 1) * per_sample(log_range, precise) / 2)
    return -decoder_log_likelihood(to_uint8(x0), (x0 + error).to(precise), std)


def step_factors(levels: Tensor) -> tuple[Tensor, Tensor]:
    """log_range and snr_step of `transition_nats` for the steps from levels sigma_1 < ... < sigma_T: (T,) each.

    At t = 1, log_range is ln(beta_1 / beta_tilde_2), because beta_tilde_1 is 0, and snr_step is 0.
    """
    snr = levels**-2
    # beta_tilde_2 = beta_1 (1 - sigma_1^2 / sigma_2^2); elsewhere beta / beta_tilde = (1 + SNR_(t-1)) / (1 + SNR_t)
    log_range = torch.cat([-torch.log1p(-snr[1:2] / snr[:1]), -torch.log1p(snr).diff()])
    return log_range, torch.cat([torch.zeros_like(snr[:1]), -snr.diff()])


@dataclass(frozen=True)
class Steps:
    """The steps of a chain of `length` levels that start at the N levels of a batch.

    (N,) each, float32 on the device: sigma; c_out of the parametrization; log_range and snr_step of `step_factors`.
    first: bool, on the CPU: whether t is 1.
    """

    length: int
    sigma: Tensor
    c_out: Tensor
    log_range: Tensor
    snr_step: Tensor
    first: Tensor

    @classmethod
    def of(cls, levels: Tensor, sigma: Tensor, c_out: Tensor, device: torch.device) -> Self:
        """The steps from levels sigma (N,) of a chain, ascending, (T,); c_out (N,). All are float64 on the CPU."""
        log_range, snr_step = step_factors(levels)
        t = torch.searchsorted(levels, sigma)
        vectors = {"sigma": sigma, "c_out": c_out, "log_range": log_range[t], "snr_step": snr_step[t]}
        return cls(length=len(levels), first=t == 0, **to_device_together(vectors, device))

    def part(self, images: slice) -> Self:
        """The steps of some of the images."""
        parts: dict[str, Any] = {key: value[images] for key, value in vars(self).items() if key != "length"}
        return replace(self, **parts)


def bound_bits(steps: Steps, x0: Tensor, difference: Tensor, v: Tensor) -> Tensor:
    """The bound's term of each image, in bits per dimension: L_(t-1), or the decoder's L_0 at t = 1. (N,)

    x0, difference (F minus its target) and v: (N, C, H, W). The gradient reaches v alone.
    """
    error = per_sample(steps.c_out, x0) * difference.detach()
    nats = transition_nats(error, v, per_sample(steps.log_range, x0), per_sample(steps.snr_step, x0))
    nats = nats.flatten(1).mean(1)
    if bool(steps.first.any()):
        rows = to_device(steps.first.nonzero()[:, 0], x0.device)
        images, error, v = (values.index_select(0, rows) for values in (x0, error, v))
        decoded = decoder_nats(images, error, v, steps.sigma[rows], steps.log_range[rows])
        nats = nats.index_copy(0, rows, decoded.flatten(1).mean(1).to(nats))
    return nats / math.log(2)
