"""A sampler row: how one curve is sampled from a model."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from inspect import signature
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.rows import MOST, NonNegativeFloat, PositiveFloat, PositiveInt, Row, axis
from pipeline.diffusion.grids import DISCRETIZATIONS, EDM_RHO, LEVELS, SPACINGS
from pipeline.diffusion.parametrization import BOUNDARY
from pipeline.diffusion.schedule import SCALING_OF_SCHEDULE, SCALINGS, SCHEDULES, Scaling, Schedule
from pipeline.sampling.counting import Counted
from pipeline.sampling.fitted import FITS, STARTS, TOLD, Numbers
from pipeline.sampling.guidance import GUIDES, Guidance
from pipeline.sampling.multistep import VARIANTS, Multistep
from pipeline.sampling.ode import Ode, SingleStep, Solver
from pipeline.sampling.protocols import ENDS, FIRST_STEPS
from pipeline.sampling.solvers import SOLVERS, VARIANCES
from pipeline.sampling.stochastic import Churned
from pipeline.sampling.thresholding import THRESHOLDS, thresholding

Budgets = Annotated[tuple[Annotated[int, Field(ge=1, le=10_000)], ...], Field(min_length=1)]
_NO_LIMIT = BeforeValidator(lambda value: None if isinstance(value, int | float) and value > MOST else value)
Upper = Annotated[Annotated[float, Field(gt=0)] | None, _NO_LIMIT]  # None: no limit, because no sigma is above MOST
Sigmas = Annotated[tuple[PositiveFloat, ...], Field(min_length=1, max_length=10_000)]


def keys_of(solver: str) -> list[str]:
    """The keys of a row that a solver uses."""
    return list(signature(SOLVERS[solver]).parameters)


SOLVER_KEYS = frozenset(key for solver in SOLVERS for key in keys_of(solver))


class Sampler(Row):
    """A sampler: solver, grid of noise levels, schedule, scaling and guidance."""

    solver: Literal[tuple(SOLVERS)] = axis("heun", "solver")  # type: ignore[valid-type]
    """The method that integrates the ODE or SDE."""
    order: Annotated[int, Field(ge=1, le=9)] | None = axis(None, "order")
    """Order of unipc (2 or 3) and of exp_adams, deis, ipndm, lms (1 to 4); null: 3 for the first two, else 4."""
    variant: Literal[tuple(VARIANTS)] = axis("bh2", "variant")  # type: ignore[valid-type]
    """The function B(h), which acts in steps that combine two evaluations. For unipc."""
    alpha: Annotated[float, Field(gt=0, le=1)] = axis(1.0, "alpha")
    """Place of the second evaluation in a step: 1 Heun, 2/3 Ralston, 1/2 midpoint. For heun."""
    eta: Annotated[float, Field(ge=0, le=1)] = axis(0.0, "eta")
    """Strength of the noise: 0 DDIM, 1 DDPM's ancestral sampler. For ddim."""
    variance: Literal[VARIANCES] = axis("beta_tilde", "variance")  # type: ignore[valid-type]
    """Variance of the noise that a step adds; learned: for models with `learned_variance`. For ddpm."""
    diffusion: NonNegativeFloat = axis(1.0, "diffusion")
    """Strength of the SDE: 0 the ODE, 1 the reverse of the noising SDE. For euler_maruyama."""
    corrector_steps: Annotated[int, Field(ge=0, le=100)] = axis(0, "Langevin corrector")
    """Langevin steps after each step. For euler_maruyama."""
    corrector_snr: PositiveFloat = axis(0.16, "Langevin corrector")
    """Signal-to-noise ratio that sets the size of Langevin steps. For euler_maruyama."""
    boundary: NonNegativeFloat = axis(BOUNDARY, "boundary")
    """Noise level at which the consistency map ends; 0 for models of objective easy_consistency. For consistency."""
    rtol: Annotated[float, Field(gt=0, lt=1)] = axis(1e-3, "tolerance")
    """Relative tolerance. For rk45."""
    atol: Annotated[float, Field(gt=0, lt=1)] = axis(1e-3, "tolerance")
    """Absolute tolerance. For rk45."""
    fit: Literal[FITS] = axis("both", "fit")  # type: ignore[valid-type]
    """Which numbers are fitted to the model: the noise levels, the weights of evaluations, or both. For fitted."""
    told: Literal[TOLD] = axis("state", "fit")  # type: ignore[valid-type]
    """The noise level that the network is told: that of the state, or a fitted one. For fitted."""
    start: Literal[tuple(STARTS)] = axis("dpmpp_2m", "fit")  # type: ignore[valid-type]
    """The solver that a fit begins with, on the row's grid. For fitted."""
    fit_images: Annotated[int, Field(ge=1, le=100_000)] = axis(256, "fit")
    """Initial noises that a solver is fitted on; as many others measure its error. For fitted."""
    numbers: Numbers | None = None
    """The fitted numbers of one number of steps; the stage `grids` fits them."""
    S_churn: NonNegativeFloat = axis(0.0, "churn")
    """Strength of EDM's churn: noise before each step of a deterministic single-step solver; 0: none."""
    S_min: NonNegativeFloat = axis(0.0, "churn")
    """Lowest sigma with churn."""
    S_max: Upper = axis(None, "churn")
    """Highest sigma with churn; null: no limit."""
    S_noise: PositiveFloat = axis(1.0, "churn")
    """Factor on the standard deviation of churn's noise."""
    discretization: Literal[tuple(DISCRETIZATIONS)] = axis("edm", "discretization")  # type: ignore[valid-type]
    """The grid of noise levels."""
    rho: PositiveFloat = axis(EDM_RHO, "rho")
    """Exponent of discretization edm."""
    exponent: PositiveFloat = axis(1.0, "exponent")
    """The levels are uniform in the power 1 / exponent of t. For discretization time."""
    shift: PositiveFloat = axis(1.0, "shift")
    """Factor on sigma. For discretization flow."""
    spacing: Literal[tuple(SPACINGS)] = axis("linspace", "spacing")  # type: ignore[valid-type]
    """Which of DDPM's levels are used. For discretization ddpm."""
    finest_steps: PositiveInt | None = axis(None, "discretization")
    """Use every k-th level of the grid of so many steps, as progressive distillation does; null: a grid of its own."""
    sigmas: Sigmas | None = axis(None, "discretization")
    """The falling list of noise levels above 0. For discretization explicit."""
    sigma_min: PositiveFloat | None = axis(None, "noise range")
    """Lowest noise level above 0; null: as published with the grid."""
    sigma_max: PositiveFloat | None = axis(None, "noise range")
    """Highest noise level; null: as published with the grid."""
    end: Literal[ENDS] = axis("zero", "end")  # type: ignore[valid-type]
    """The last noise level: 0, or sigma_min, at which many published samplers stop."""
    first_step: Literal[tuple(FIRST_STEPS)] = axis("network", "first step")  # type: ignore[valid-type]
    """The first evaluation: a call of the network, or a formula that costs no call."""
    schedule: Literal[tuple(SCHEDULES)] = axis("linear", "schedule")  # type: ignore[valid-type]
    """sigma(t) of the ODE; any schedule goes with any grid and solver."""
    scaling: Literal[tuple(SCALINGS)] | None = axis(None, "scaling")  # type: ignore[valid-type]
    """s of the ODE in x = s z; null: as published with the schedule."""
    guidance: NonNegativeFloat = axis(1.0, "guidance")
    """Guidance weight w; 1 is no guidance (0 for guide classifier)."""
    guide: Literal[tuple(GUIDES)] = axis("unconditional", "guidance")  # type: ignore[valid-type]
    """What guides: the model without label, an earlier snapshot of it, or a classifier."""
    guidance_min: NonNegativeFloat = axis(0.0, "guidance")
    """Guidance acts only above this sigma."""
    guidance_max: Upper = axis(None, "guidance")
    """Guidance acts only up to this sigma; null: no limit."""
    threshold: Literal[tuple(THRESHOLDS)] = axis("none", "threshold")  # type: ignore[valid-type]
    """How D, guided or not, is brought back into the range of pixels before the solver uses it. For images."""
    threshold_percentile: Annotated[float, Field(gt=0, le=1)] = axis(0.995, "threshold")
    """Quantile of a sample's absolute values above which they are clipped. For threshold dynamic."""
    nfe: Budgets = (4, 7, 11, 19, 35)
    """Budgets of network evaluations; each pays for as many steps as it can."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key in sorted(SOLVER_KEYS - set(keys_of(self.solver))):
            if getattr(self, key) != type(self).model_fields[key].default:
                those = ", ".join(name for name in SOLVERS if key in keys_of(name))
                raise ValueError(f"{key}: solver {self.solver} does not use it; {key} is for {those}")
        if self.sigmas and self.discretization != "explicit":
            raise ValueError(f"sigmas: discretization {self.discretization} uses none; a list is for explicit")
        if not self.sigmas and self.discretization == "explicit":
            raise ValueError("sigmas: discretization explicit needs a list of noise levels, such as [80, 5, 1, 0.1]")
        if self.finest_steps and self.discretization in ("explicit", "optimised"):
            raise ValueError(f"finest_steps: discretization {self.discretization} has no grid of so many steps")
        low, high = self.sigma_range
        if low >= high and not self.sigmas:
            raise ValueError(f"sigma_min ({low}) must be below sigma_max ({high})")
        if len(set(self.nfe)) < len(self.nfe):
            raise ValueError("nfe: a budget is listed twice; list each once")
        if self.S_max is not None and self.S_min > self.S_max:
            raise ValueError(f"S_min ({self.S_min}) must not be above S_max ({self.S_max})")
        self._check_guidance()
        self._check_protocol()
        if self.solver == "fitted" and self.discretization == "optimised":
            raise ValueError("discretization: solver fitted begins with a grid that depends on no model; use another")
        if self.solver == "fitted" and self.guide == "classifier" and not self.build_guidance().idle:
            raise ValueError("guide: solver fitted cannot differentiate a classifier's gradient; use another guide")
        solver = self.build_solver()
        if solver.adaptive and max(self.nfe) < self.evaluations(2):
            raise ValueError(f"nfe: solver {self.solver} needs at least {self.evaluations(2)} evaluations")
        counts = self.step_counts
        most = counts[-1]
        if odd := [count for count in counts if (self.finest_steps or count) % count]:
            raise ValueError(f"finest_steps: {self.finest_steps} is no multiple of {odd[0]} steps, which nfe pays for")
        if self.order and isinstance(solver, Multistep):
            needed = solver.points if self._above_zero and not solver.lower_at_end else solver.steps_needed
            if most < needed:
                raise ValueError(f"order: {self.order} needs {needed} steps, and nfe pays for at most {most}")
        if not self._falls(most):
            raise ValueError(
                "rho, shift, sigmas, sigma_min, sigma_max: the noise levels must fall from step to step in float64; "
                "use other values or fewer steps"
            )
        return self

    def _check_guidance(self) -> None:
        guidance = self.build_guidance()
        if self.guidance_max is not None and self.guidance_min >= self.guidance_max:
            raise ValueError(f"guidance_min ({self.guidance_min}) must be below guidance_max ({self.guidance_max})")
        if not guidance.limited:
            return
        low, high = self.sigma_range
        if self.guidance_min >= high or (self.guidance_max is not None and self.guidance_max < low):
            raise ValueError(f"guidance_min, guidance_max: no sigma of the range {low:g} to {high:g} lies between them")
        if guidance.idle:
            raise ValueError(
                f"guidance_min, guidance_max: guidance {self.guidance:g} with guide {self.guide} has no effect to "
                "limit; use another weight"
            )
        if self.solver == "fitted":
            raise ValueError(
                "guidance_min, guidance_max: solver fitted moves its noise levels across their limits; use guidance at "
                "all noise levels"
            )
        if self.discretization == "optimised":
            raise ValueError(
                "guidance_min, guidance_max: their cost on an optimised grid is unknown until the grid is fitted; use "
                "another discretization, or guidance at all noise levels"
            )

    def _check_protocol(self) -> None:
        maps = self.solver == "consistency" or self.build_solver().adaptive
        if self._above_zero:
            if maps:
                raise ValueError(f"end: solver {self.solver} ends at 0; use zero, or another solver")
            if self.discretization == "optimised":
                raise ValueError("end: an optimised grid is fitted to steps that end at 0; use zero, or another grid")
            trailing = self.discretization == "ddpm" and self.spacing == "trailing"
            if trailing or self.discretization == "flow":
                what = "spacing trailing" if trailing else "discretization flow"
                raise ValueError(f"end: {what} has no level at sigma_min; use zero, or another grid")
            if self.sigmas and len(self.sigmas) < 2:
                raise ValueError("sigmas: end sigma_min needs two noise levels or more")
        if self.first_step == "analytic":
            if maps:
                raise ValueError(f"first_step: solver {self.solver} needs the network; use network, or another solver")
            if self.variance == "learned":
                raise ValueError("first_step: analytic gives no variance; use network, or variance beta or beta_tilde")

    @property
    def _above_zero(self) -> bool:
        """Whether the last noise level is above 0."""
        return self.end == "sigma_min"

    def _falls(self, steps: int) -> bool:
        """Whether the noise levels of a grid and their times are finite and fall from step to step."""
        if self.discretization == "optimised":
            if steps > LEVELS:
                raise ValueError(f"nfe: {steps} steps, but an optimised grid has at most {LEVELS}")
            return True
        try:
            sigmas = self.grid(steps)
            times = self.build_schedule().t(sigmas)
        except StudyError as error:
            raise ValueError(str(error)) from None
        except ArithmeticError:
            return False
        first, last = times[0], times[sigmas > 0][-1]
        spans = self.build_schedule().sigma(first + (last - first)) > 0  # one step from the first level to the last one
        return bool((sigmas.diff() < 0).all() and (times.diff() < 0).all() and times.isfinite().all() and spans)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """(sigma_min, sigma_max) of the grid. The vp schedule solves its constants for the same range."""
        published = DISCRETIZATIONS[self.discretization]
        low, high = (self.sigmas[-1], self.sigmas[0]) if self.sigmas else (published.sigma_min, published.sigma_max)
        return self.sigma_min or low, self.sigma_max or high

    def filled(self) -> Self:
        """This row with its noise range and scaling written out, if other choices determine them."""
        low, high = self.sigma_range
        scaling = self.scaling or SCALING_OF_SCHEDULE[self.schedule]
        return self.model_copy(update={"sigma_min": low, "sigma_max": high, "scaling": scaling})

    def build_solver(self) -> Solver:
        """The row's solver. Raises ValueError if its choices do not fit together."""
        solver = SOLVERS[self.solver](**{key: getattr(self, key) for key in keys_of(self.solver)})
        if not self.S_churn:
            return solver
        if not isinstance(solver, SingleStep) or solver.stochastic:
            raise ValueError(
                f"S_churn: solver {self.solver} does not use it; churn is for deterministic single-step solvers with "
                "fixed steps, such as euler or heun"
            )
        return Churned(solver, self.S_churn, self.S_min, self.S_max, self.S_noise)

    def build_guidance(self) -> Guidance:
        return Guidance(self.guidance, self.guide, self.guidance_min, self.guidance_max)

    def build_threshold(self) -> Callable[[Tensor], Tensor]:
        """What the row does to D (N, ...) before the solver uses it."""
        return thresholding(self.threshold, threshold_percentile=self.threshold_percentile)

    def evaluations(self, steps: int, end: float = 0.0) -> int:
        """The network calls of `steps` steps, guidance included; the least possible number for an adaptive solver.

        end: the noise level at which they end; 0: that of the row.
        """
        return self._cost(end)(steps)

    def depth(self, steps: int, end: float = 0.0) -> int:
        """The evaluations of `steps` steps that wait for each other: guided networks run side by side, so count once.

        The least possible number for an adaptive solver. end: as in `evaluations`.
        """
        return self._answers(steps, end)

    def _answers(self, steps: int, end: float = 0.0) -> int:
        solver = self.build_solver()
        count = solver.stages * steps if end or self._above_zero else solver.evaluations(steps)
        return count - (self.first_step == "analytic")

    def _cost(self, end: float = 0.0) -> Callable[[int], int]:
        guidance = self.build_guidance()
        if guidance.evaluations > 1 and guidance.limited:
            adaptive = self.build_solver().adaptive
            return self._answers if adaptive else partial(_counted, self.ending_at(end))
        return lambda steps: guidance.evaluations * self._answers(steps, end)

    def steps(self, budget: int, end: float = 0.0) -> int:
        """The largest number of steps, to the noise level `end`, that costs at most `budget` evaluations; 2 for an
        adaptive solver.

        An adaptive solver counts its steps as one, and the last step, to 0, as another. Raises ValueError if the budget
        does not pay for one step, or for none with a call of the network.
        """
        if self.build_solver().adaptive:
            return 2
        cost = self._cost(end)
        first = 1 if cost(1) else 2  # an analytic step without a call is no sampler
        choices: Sequence[int] = range(first, max(budget, 1) + 2)
        if self.sigmas:
            choices = [len(self.sigmas) - self._above_zero]
            if choices[0] < first:
                raise ValueError("first_step: analytic leaves no call of the network; use network, or more sigmas")
        affordable = bisect_right(choices, budget, key=cost)  # the cost rises with the steps
        if not affordable:
            needed = f"{cost(choices[0])}{' with guidance' if self.build_guidance().evaluations > 1 else ''}"
            what = f"its {len(self.sigmas)} sigmas" if self.sigmas else "one step" if first == 1 else "two steps"
            raise ValueError(f"nfe: {budget} evaluations are too few; solver {self.solver} needs {needed} for {what}")
        return choices[affordable - 1]

    @property
    def step_counts(self) -> list[int]:
        """The numbers of steps that the budgets pay for, rising; several budgets may pay for equally many."""
        return sorted({self.steps(budget) for budget in self.nfe})

    def grid(self, steps: int) -> Tensor:
        """The noise levels of `steps` steps: float64, (steps + 1,); for adaptive solvers the range.

        The last one is 0, or the lowest above 0 if `end` is sigma_min.
        """
        if self.build_solver().adaptive:
            low, high = self.sigma_range
            return torch.tensor([high, low, 0.0], dtype=torch.float64)
        if self.numbers:
            if steps != len(self.numbers.told):
                raise StudyError(f"solver fitted: {steps} steps, but it is fitted for {len(self.numbers.told)}")
            return torch.tensor(self.numbers.sigmas, dtype=torch.float64)
        choices: dict[str, Any] = {key: getattr(self, key) for key in ("rho", "exponent", "shift", "spacing", "sigmas")}
        choices["schedule"] = self.build_schedule()
        finest = self.finest_steps or steps
        if finest % steps:
            raise StudyError(f"finest_steps: {finest} is no multiple of {steps} steps")
        above = int(self._above_zero)
        levels = DISCRETIZATIONS[self.discretization](finest + above, *self.sigma_range, **choices)
        return levels[: len(levels) - above : finest // steps]

    def with_grid(self, sigmas: tuple[float, ...]) -> Self:
        """This row on an explicit grid in the same range. sigmas: falling noise levels above 0."""
        low, high = self.sigma_range
        grid = {"discretization": "explicit", "sigmas": sigmas, "sigma_min": low, "sigma_max": high}
        return self.model_copy(update=grid)

    def as_started(self, steps: int) -> Self:
        """This row with the numbers that a fit begins with, for trials; unchanged for another solver."""
        if self.solver != "fitted":
            return self
        sigmas = self.grid(steps)
        numbers = Numbers.of(sigmas, sigmas[:-1], STARTS[self.start].weights(sigmas))
        return self.model_copy(update={"numbers": numbers})

    def ending_at(self, end: float) -> Self:
        """This row, ending at noise level `end`; unchanged for an end of 0."""
        return self.model_copy(update={"sigma_min": end, "end": "sigma_min"}) if end else self

    def build_schedule(self) -> Schedule:
        return SCHEDULES[self.schedule](*self.sigma_range)

    def build_scaling(self) -> Scaling:
        return SCALINGS[self.scaling or SCALING_OF_SCHEDULE[self.schedule]]


@lru_cache(maxsize=4096)
def _counted(sampler: Sampler, steps: int) -> int:
    """The network calls of `steps` steps if only some noise levels are guided.

    A step evaluates between its two noise levels, the upper one raised by churn. So the cost of a step is known if
    guidance acts at both ends, or lies beyond both. The other steps, and an analytic one, are tried, each by itself, on
    networks that answer 0. For an invalid grid all evaluations count as guided.
    """
    sampler = sampler.model_copy(update={"variance": "beta"})  # costs the same, and needs no answer but D
    solver, guidance = sampler.build_solver(), sampler.build_guidance()
    try:
        valid = sampler._falls(steps)
    except ValueError:
        valid = False
    if not valid:
        return guidance.evaluations * sampler._answers(steps)
    factor = 1.0
    if isinstance(solver, Churned):
        factor, solver = solver.factor(steps), replace(solver, S_churn=solver.S_churn / steps)
    counted = Counted(guidance(_zeros, _zeros))
    denoiser = FIRST_STEPS[sampler.first_step](counted)
    ode, z = Ode(denoiser, sampler.build_schedule(), sampler.build_scaling()), torch.zeros(1, dtype=torch.float64)
    sigmas = sampler.grid(steps)
    lower, upper = (1 - 1e-9) * sigmas[1:], (1 + 1e-9) * factor * sigmas[:-1]  # a level within rounding is tried, too
    high = math.inf if guidance.high is None else guidance.high
    guided = (lower > guidance.low) & (upper <= high)
    plain = (lower > high) | (upper <= guidance.low)
    plain[-1] &= bool(sigmas[-1] > 0)  # the step to 0 has fewer evaluations
    if sampler.first_step == "analytic":
        guided[0] = plain[0] = False
    for i in (~(guided | plain)).nonzero().flatten().tolist():
        list(solver.run(ode, z, sigmas[i : i + 2].tolist(), torch.zeros_like))
    return counted.nfe + solver.stages * int(guidance.evaluations * guided.sum() + plain.sum())


def _zeros(z: Tensor, sigma: Tensor) -> Tensor:
    return torch.zeros_like(z)
