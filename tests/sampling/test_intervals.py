"""What guidance in an interval of noise levels costs."""

from itertools import combinations
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pipeline.sampling.loop import sample
from pipeline.sampling.ode import SingleStep
from pipeline.sampling.row import Sampler
from tests.sampling.test_row import CHURNS, FIXED


def of_interval(solver: str, low: float, high: float | None, grid: str) -> Sampler:
    return Sampler(solver=solver, discretization=grid, guidance=2, guidance_min=low, guidance_max=high, nfe=(50,))


all_grids = pytest.mark.parametrize("grid", ["edm", "vp", "iddpm", "flow"])
ONCE = [  # one evaluation a step, at the grid's level; fitted solvers refuse intervals
    name for name, solver in FIXED.items() if solver.stages == 1 and name != "fitted"
]


@all_grids
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.2, 5.0), (30.0, None)])
@pytest.mark.parametrize("solver", ["euler", *(name for name in FIXED if name not in (*ONCE, "fitted"))])
def test_an_interval_buys_the_most_steps_of_all_that_a_budget_pays(
    solver: str, low: float, high: float | None, grid: str
) -> None:
    """The cost never falls with the steps, which the bisection in `steps` requires."""
    row = of_interval(solver, low, high, grid)
    costs = [row.evaluations(steps) for steps in range(1, 19)]
    assert costs == sorted(costs)
    for budget in range(2, 19):
        assert row.steps(budget) == max(steps for steps, cost in enumerate(costs, 1) if cost <= budget)


def dry_run(row: Sampler, steps: int) -> int:
    """The calls of a whole sampling with two networks that answer 0."""
    zero = lambda z, sigma: torch.zeros_like(z)  # noqa: E731
    return sample(row.build_guidance()(zero, zero), torch.zeros(1, 1), row, steps, torch.zeros_like).nfe


@pytest.mark.parametrize("keys", [*({"solver": name} for name in FIXED), *CHURNS], ids=str)
@pytest.mark.parametrize("grid", ["edm", "flow", "ddpm"])
def test_the_cost_of_an_interval_is_that_of_a_dry_run(keys: dict[str, Any], grid: str) -> None:
    """Intervals that begin and end at noise levels, between them, and beyond them, also with many levels."""
    for steps in (1, 2, 17):
        levels = Sampler(discretization=grid, solver="euler", nfe=(99,)).grid(steps).tolist()
        ends = (0.0, levels[len(levels) // 2], 0.3, 7.0, levels[0], 1.2 * levels[0])
        for low, high in combinations(sorted(set(ends)), 2):
            try:
                row = Sampler(
                    **keys, discretization=grid, guidance=2, guidance_min=low, guidance_max=high, nfe=(4 * steps + 20,)
                )
            except ValidationError:  # an interval of no noise level
                continue
            assert row.evaluations(steps) == dry_run(row, steps), (steps, low, high)


def test_many_steps_are_counted_without_taking_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 5,000 steps only those at the ends of the interval, and the last."""
    tried = []
    step = SingleStep.run
    monkeypatch.setattr(SingleStep, "run", lambda *given: tried.append(given[3]) or step(*given))
    row = Sampler(solver="heun", guidance=2, guidance_min=0.4, guidance_max=5, nfe=(9999,))
    assert row.evaluations(5000) > 10_000 and row.steps(9999) < 5000
    assert {len(levels) for levels in tried} == {2} and len(tried) < 100


@all_grids
def test_an_interval_costs_the_same_for_all_solvers_with_an_evaluation_a_step(grid: str) -> None:
    costs = {}
    for solver in ONCE:
        row = of_interval(solver, 0.2, 5.0, grid)
        costs[solver] = [row.evaluations(steps) for steps in (1, 7, 12)]
    assert all(cost == costs["euler"] for cost in costs.values()), costs
