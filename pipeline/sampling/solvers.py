"""All solvers by name. A factory's arguments are the keys of a sampler row that its solver uses."""

from collections.abc import Callable

from pipeline.sampling.fitted import fitted
from pipeline.sampling.multistep import MULTISTEP
from pipeline.sampling.ode import Solver
from pipeline.sampling.singlestep import SINGLE_STEP
from pipeline.sampling.stochastic import STOCHASTIC

SOLVERS: dict[str, Callable[..., Solver]] = SINGLE_STEP | MULTISTEP | STOCHASTIC | {"fitted": fitted}
VARIANCES = ("beta_tilde", "beta", "learned")
"""beta_tilde: The variance of the posterior q(x_prev | x, x0).
Formula: r^2 (sigma^2 - sigma_next^2), r = sigma_next / sigma
Source: Ho et al. 2020, arXiv 2006.11239, sec. 3.2

beta: The variance of a step of the noising process.
Formula: (sigma^2 - sigma_next^2) (1 + sigma_next^2) / (1 + sigma^2)
Source: Ho et al. 2020, arXiv 2006.11239, sec. 3.2

learned: Between the two, by an output v of the network for each value. For models with `learned_variance`.
Formula: beta_tilde^(1 - v) beta^v
Source: Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 15
"""
