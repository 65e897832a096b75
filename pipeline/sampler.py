"""A sampler row: how one curve is sampled from a model."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from pipeline.discretization import DISCRETIZATIONS
from pipeline.errors import StudyError
from pipeline.rows import Row, axis
from pipeline.schedule import SCALING_OF_SCHEDULE, SCALINGS, SCHEDULES, Scaling, Schedule
from pipeline.solver import SOLVERS, STOCHASTIC, Solver

Budgets = Annotated[tuple[Annotated[int, Field(ge=1, le=10_000)], ...], Field(min_length=1)]


class Sampler(Row):
    """A sampler. `scaling`, `sigma_min` and `sigma_max` None mean: as published with the schedule and the grid."""

    solver: Literal[tuple(SOLVERS)] = axis("heun", "solver")  # type: ignore[valid-type]
    alpha: Annotated[float, Field(gt=0, le=1)] = axis(1.0, "alpha")
    eta: Annotated[float, Field(ge=0, le=1)] = axis(0.0, "eta")
    discretization: Literal[tuple(DISCRETIZATIONS)] = axis("edm", "discretization")  # type: ignore[valid-type]
    rho: PositiveFloat = axis(7.0, "rho")
    sigma_min: PositiveFloat | None = axis(None, "noise range")
    sigma_max: PositiveFloat | None = axis(None, "noise range")
    schedule: Literal[tuple(SCHEDULES)] = axis("linear", "schedule")  # type: ignore[valid-type]
    scaling: Literal[tuple(SCALINGS)] | None = axis(None, "scaling")  # type: ignore[valid-type]
    nfe: Budgets = (4, 7, 11, 19, 35)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.sigma_range
        if low >= high:
            raise ValueError(f"sigma_min ({low}) must be below sigma_max ({high})")
        if self.eta and self.solver not in STOCHASTIC:
            raise ValueError(f"eta: solver {self.solver} adds no noise; eta goes with {', '.join(sorted(STOCHASTIC))}")
        if self.alpha != 1 and self.solver != "heun":
            raise ValueError(f"alpha: solver {self.solver} has none; alpha goes with heun")
        if len(set(self.nfe)) < len(self.nfe):
            raise ValueError("nfe: a budget stands twice")
        if not self._falls():
            raise ValueError("rho, sigma_min, sigma_max: the noise levels don't fall from step to step in float64")
        return self

    def _falls(self) -> bool:
        """Whether the finest grid's noise levels, and their times, are finite and fall from step to step."""
        try:
            sigmas = self.grid(max(self.steps(budget) for budget in self.nfe))
            times = self.build_schedule().t(sigmas)
        except StudyError as error:
            raise ValueError(str(error)) from None
        except OverflowError:
            return False
        return bool((sigmas.diff() < 0).all() and (times.diff() < 0).all() and times.isfinite().all())

    @property
    def sigma_range(self) -> tuple[float, float]:
        """(sigma_min, sigma_max)."""
        published = DISCRETIZATIONS[self.discretization]
        return self.sigma_min or published.sigma_min, self.sigma_max or published.sigma_max

    def filled(self) -> Self:
        """This row with every None replaced by what it stands for."""
        low, high = self.sigma_range
        scaling = self.scaling or SCALING_OF_SCHEDULE[self.schedule]
        return self.model_copy(update={"sigma_min": low, "sigma_max": high, "scaling": scaling})

    def build_solver(self) -> Solver:
        return SOLVERS[self.solver](self.alpha, self.eta)

    def steps(self, budget: int) -> int:
        """As many steps as cost at most `budget` evaluations. Raises ValueError where not even one does."""
        solver = self.build_solver()
        steps = max((n for n in range(1, budget + 1) if solver.evaluations(n) <= budget), default=0)
        if not steps:
            raise ValueError(f"nfe: {budget} evaluations are too few for a step of solver {self.solver}")
        return steps

    def grid(self, steps: int) -> Tensor:
        """The noise levels of `steps` steps, the last one 0: float64, (steps + 1,)."""
        return DISCRETIZATIONS[self.discretization](steps, *self.sigma_range, self.rho)

    def build_schedule(self) -> Schedule:
        return SCHEDULES[self.schedule](*self.sigma_range)

    def build_scaling(self) -> Scaling:
        return SCALINGS[self.scaling or SCALING_OF_SCHEDULE[self.schedule]]
