"""All solvers by name. A factory's arguments are the keys of a sampler row that its solver goes by."""

from collections.abc import Callable

from pipeline.multistep import MULTISTEP
from pipeline.path import Solver
from pipeline.singlestep import SINGLE_STEP
from pipeline.stochastic import STOCHASTIC

SOLVERS: dict[str, Callable[..., Solver]] = SINGLE_STEP | MULTISTEP | STOCHASTIC
VARIANCES = ("beta_tilde", "beta")
