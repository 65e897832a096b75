"""Loss weightings lambda(sigma) on D: the loss is E lambda(sigma) || D(x0 + sigma n; sigma) - x0 ||^2.

Each function takes sigma (float64, any shape), sigma_data and c_out (sigma's shape), and returns lambda in that shape.
"""

from torch import Tensor

MIN_SNR_GAMMA = 5.0


def unit(sigma: Tensor, sigma_data: float, c_out: Tensor) -> Tensor:
    """1 / c_out^2: one on the network's own target, which is what each method of the table was published with."""
    return c_out**-2


def edm(sigma: Tensor, sigma_data: float, c_out: Tensor) -> Tensor:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (Karras et al. 2022, arXiv 2206.00364, Table 1)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def snr(sigma: Tensor, sigma_data: float, c_out: Tensor) -> Tensor:
    """1 / sigma^2: one on eps (Ho et al. 2020, arXiv 2006.11239)."""
    return sigma**-2


def min_snr(sigma: Tensor, sigma_data: float, c_out: Tensor) -> Tensor:
    """min(1 / sigma^2, 5) (Hang et al. 2023, arXiv 2303.09556)."""
    return (sigma**-2).clamp(max=MIN_SNR_GAMMA)


def soft_min_snr(sigma: Tensor, sigma_data: float, c_out: Tensor) -> Tensor:
    """1 / (sigma^2 + sigma_data^2) (Crowson et al. 2024, arXiv 2401.11605)."""
    return 1 / (sigma**2 + sigma_data**2)


WEIGHTINGS = {"unit": unit, "edm": edm, "snr": snr, "min_snr": min_snr, "soft_min_snr": soft_min_snr}
