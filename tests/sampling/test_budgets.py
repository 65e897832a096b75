"""A sampler takes as many steps as its budget of network evaluations pays for."""

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.sampling.row import Sampler, keys_of
from pipeline.sampling.solvers import SOLVERS


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_sampler_takes_as_many_steps_as_its_budget_pays(solver: str) -> None:
    sampler = Sampler(solver=solver)
    cost = sampler.build_solver().evaluations
    for budget in (1, 2, 3, 4, 7, 36):
        if sampler.build_solver().adaptive:
            assert sampler.steps(budget) == 2  # its own, and the last
            continue
        assert cost(sampler.steps(budget)) <= budget < cost(sampler.steps(budget) + 1)
    assert ("eta" in keys_of(solver)) == _accepts(solver=solver, eta=0.5)


def _accepts(**keys: Any) -> bool:
    try:
        return bool(Sampler(**keys))
    except ValidationError:
        return False
