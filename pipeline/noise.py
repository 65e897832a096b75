"""Training noise distributions over sigma, each as its quantile function: uniform u in (0, 1) to sigma.

(Karras et al. 2022, arXiv 2206.00364, Table 1, row "noise distribution".) u is float64 of any shape.
"""

from torch import Tensor
from torch.special import ndtri

from pipeline.schedule import EPS_T, VP_PUBLISHED, VP_STEPS, iddpm_sigmas

VE_RANGE = (0.02, 100.0)


def lognormal(u: Tensor, P_mean: float, P_std: float) -> Tensor:
    """ln sigma ~ N(P_mean, P_std^2) (EDM)."""
    return (P_mean + P_std * ndtri(u)).exp()


def vp_uniform(u: Tensor, P_mean: float, P_std: float) -> Tensor:
    """t ~ U(EPS_T, 1) on the VP schedule (DDPM in continuous time)."""
    return VP_PUBLISHED.sigma(EPS_T + u * (1 - EPS_T))


def ve_loguniform(u: Tensor, P_mean: float, P_std: float) -> Tensor:
    """ln sigma uniform over VE_RANGE (Song et al. 2021, arXiv 2011.13456)."""
    low, high = VE_RANGE
    return low * (high / low) ** u


def iddpm_uniform(u: Tensor, P_mean: float, P_std: float) -> Tensor:
    """One of the M iDDPM noise levels above 0, each as likely (Nichol and Dhariwal 2021)."""
    return iddpm_sigmas().to(u.device).flip(0)[1 + (u * VP_STEPS).long()]


def flow_uniform(u: Tensor, P_mean: float, P_std: float) -> Tensor:
    """t ~ U(0, 1) on the flow path, which is ln sigma ~ Logistic(0, 1) (Liu et al. 2022, arXiv 2209.03003)."""
    return u / (1 - u)


NOISES = {
    "lognormal": lognormal,
    "vp_uniform": vp_uniform,
    "ve_loguniform": ve_loguniform,
    "iddpm_uniform": iddpm_uniform,
    "flow_uniform": flow_uniform,
}
