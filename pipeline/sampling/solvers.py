"""All solvers by name. A factory's arguments are the keys of a sampler row that its solver goes by."""

from collections.abc import Callable

from pipeline.sampling.multistep import MULTISTEP
from pipeline.sampling.ode import Solver
from pipeline.sampling.singlestep import SINGLE_STEP
from pipeline.sampling.stochastic import STOCHASTIC

SOLVERS: dict[str, Callable[..., Solver]] = SINGLE_STEP | MULTISTEP | STOCHASTIC
VARIANCES = ("beta_tilde", "beta")
