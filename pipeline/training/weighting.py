"""Loss weightings lambda(sigma) on D: the loss is E lambda(sigma) || D(x0 + sigma n; sigma) - x0 ||^2.

Each is a function of sigma (float64, any shape) that returns lambda in that shape. Its further arguments are
sigma_data; in sigma's shape c_out, snr_rate (-d SNR / du of the noise distribution) and step (from sigma down to the
other noise level of an objective that compares two); and keys of a model row.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor, nn


def unit(sigma: Tensor, c_out: Tensor) -> Tensor:
    """Constant on the network's target, as each method was published.

    Formula: 1 / c_out^2
    Source: Karras et al. 2022, arXiv 2206.00364, Table 1
    """
    return c_out**-2


def edm(sigma: Tensor, sigma_data: float) -> Tensor:
    """EDM's weighting, whatever the parametrization.

    Formula: (sigma^2 + sigma_data^2) / (sigma sigma_data)^2
    Source: Karras et al. 2022, arXiv 2206.00364, Table 1
    """
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def snr(sigma: Tensor) -> Tensor:
    """The signal-to-noise ratio: constant on eps.

    Formula: 1 / sigma^2
    Source: Ho et al. 2020, arXiv 2006.11239
    """
    return sigma**-2


def truncated_snr(sigma: Tensor) -> Tensor:
    """The signal-to-noise ratio, at least 1.

    Formula: max(1 / sigma^2, 1)
    Source: Salimans and Ho 2022, arXiv 2202.00512, sec. 4
    """
    return (sigma**-2).clamp(min=1.0)


def min_snr(sigma: Tensor, gamma: float = 5.0) -> Tensor:
    """The signal-to-noise ratio, at most gamma.

    Formula: min(1 / sigma^2, gamma)
    Source: Hang et al. 2023, arXiv 2303.09556
    """
    return (sigma**-2).clamp(max=gamma)


def soft_min_snr(sigma: Tensor, sigma_data: float) -> Tensor:
    """A smooth minimum of the signal-to-noise ratio and 1 / sigma_data^2.

    Formula: 1 / (sigma^2 + sigma_data^2)
    Source: Crowson et al. 2024, arXiv 2401.11605
    """
    return 1 / (sigma**2 + sigma_data**2)


def p2(sigma: Tensor, k: float = 1.0, gamma: float = 1.0) -> Tensor:
    """1 / (k + SNR)^gamma on eps.

    Formula: 1 / (sigma^2 (k + 1 / sigma^2)^gamma)
    Source: Choi et al. 2022, arXiv 2204.00227, eq. 8
    """
    return sigma**-2 / (k + sigma**-2) ** gamma


def sigmoid(sigma: Tensor, bias: float = 2.0) -> Tensor:
    """sigmoid(bias - ln SNR) on eps, at the noise levels that `noise` draws.

    The paper's loss is an integral over ln SNR with this weight. At a drawn level it divides by the density of the
    noise, which then changes the variance of the loss and not its mean. Nothing is divided here. So the weight in the
    paper's sense is this one times the density; under ve_loguniform, whose density is constant, both agree up to a
    factor.

    Formula: 1 / (sigma^2 + exp(-bias))
    Source: after Kingma and Gao 2023, arXiv 2303.00848
    """
    return 1 / (sigma**2 + math.exp(-bias))


def uniform_x0(sigma: Tensor) -> Tensor:
    """Constant on x0.

    Formula: 1
    Source: Salimans and Ho 2022, arXiv 2202.00512
    """
    return torch.ones_like(sigma)


def uniform_v(sigma: Tensor) -> Tensor:
    """Constant on v, which is SNR + 1.

    Formula: (1 + sigma^2) / sigma^2
    Source: Salimans and Ho 2022, arXiv 2202.00512
    """
    return (1 + sigma**2) / sigma**2


def uniform_velocity(sigma: Tensor) -> Tensor:
    """Constant on the flow's velocity.

    Formula: (1 + sigma)^2 / sigma^2
    Source: Liu et al. 2022, arXiv 2209.03003
    """
    return ((1 + sigma) / sigma) ** 2


def uniform_score(sigma: Tensor) -> Tensor:
    """Constant on the score.

    Formula: 1 / sigma^4
    Source: Song et al. 2021, arXiv 2011.13456
    """
    return sigma**-4


def inverse_step(sigma: Tensor, step: Tensor) -> Tensor:
    """The inverse of the step between the two noise levels that a consistency objective compares.

    Formula: 1 / step
    Source: Song and Dhariwal 2024, arXiv 2310.14189, sec. 3.1; Geng et al. 2024, arXiv 2406.14548
    """
    return 1 / step


def vlb(sigma: Tensor, snr_rate: Tensor) -> Tensor:
    """The variational bound in nats per dimension, for any noise distribution; snr_rate = -d(1 / sigma^2) / du.

    With T levels it is T (SNR_(t-1) - SNR_t) / 2 (eq. 14).

    Formula: snr_rate / 2
    Source: Kingma et al. 2021, arXiv 2107.00630, eq. 17
    """
    return snr_rate / 2


@dataclass(frozen=True)
class Weighting:
    """lambda(sigma). If `learned`, a head u(sigma) is trained beside the network: lambda / e^u ||D - x0||^2 + u."""

    function: Callable[..., Tensor]
    learned: bool = False

    @property
    def keys(self) -> list[str]:
        """The names of its arguments, without sigma."""
        return list(signature(self.function).parameters)[1:]

    @property
    def optional(self) -> set[str]:
        """The keys of a model row among its arguments; they have published defaults."""
        return {key for key, p in signature(self.function).parameters.items() if p.default is not p.empty}

    def __call__(self, sigma: Tensor, **choices: object) -> Tensor:
        """lambda. choices may hold other keys, too; None is the published default."""
        given = {key: choices[key] for key in self.keys if choices.get(key) is not None}
        return self.function(sigma, **given)


class Uncertainty(nn.Module):
    """u(sigma) for a learned weighting, linear in Fourier features of ln sigma and 0 at the start.

    ln_sigma (N,) to u (N,), float32.

    Source: Karras et al. 2024, arXiv 2312.02696, eqs. 21 to 23
    """

    FEATURES = 128
    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        shares = (torch.arange(self.FEATURES // 2, dtype=torch.float64) + 0.5) / (self.FEATURES // 2)
        frequencies = 2 * math.pi * torch.special.ndtri(shares) / 4  # normal, on ln(sigma) / 4
        self.register_buffer("frequencies", frequencies.float(), persistent=False)
        self.weight, self.bias = nn.Parameter(torch.zeros(self.FEATURES)), nn.Parameter(torch.zeros(()))

    def forward(self, ln_sigma: Tensor) -> Tensor:
        angles = ln_sigma[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1) @ self.weight + self.bias


WEIGHTINGS = {
    "unit": Weighting(unit),
    "edm": Weighting(edm),
    "snr": Weighting(snr),
    "truncated_snr": Weighting(truncated_snr),
    "min_snr": Weighting(min_snr),
    "soft_min_snr": Weighting(soft_min_snr),
    "p2": Weighting(p2),
    "sigmoid": Weighting(sigmoid),
    "uniform_x0": Weighting(uniform_x0),
    "uniform_eps": Weighting(snr),
    "uniform_v": Weighting(uniform_v),
    "uniform_velocity": Weighting(uniform_velocity),
    "uniform_score": Weighting(uniform_score),
    "inverse_step": Weighting(inverse_step),
    "vlb": Weighting(vlb),
    "uncertainty": Weighting(unit, learned=True),
}
"""uncertainty: Divided by e^u, where a head learns u(sigma) beside the network.
Formula: 1 / c_out^2
Source: Karras et al. 2024, arXiv 2312.02696, eqs. 21 to 23
"""
