"""One entry to all posterior samplers: budgets, costs and refusals."""

from typing import Any

import pytest
import torch

from pipeline.common.errors import StudyError
from pipeline.diffusion.denoiser import new_denoiser
from pipeline.diffusion.exact import Gaussian
from pipeline.sampling import sample
from pipeline.sampling.annealed import LOOPS
from pipeline.sampling.conditional import ALL, Drawn, cost, draw_given, keys_of, refusal, steps_within
from pipeline.sampling.measurement import Linear, Measurement, clip, mask
from pipeline.sampling.posterior import METHODS, given
from pipeline.sampling.row import Sampler
from pipeline.training.row import Model
from tests.sampling.test_posterior import MASK, MEASURED, MIXTURE, normal

CHOICES: list[tuple[str, dict[str, Any]]] = [
    *((method, {}) for method in ALL),
    ("tmp", {"covariance": "diagonal"}),
    ("mmps", {"iterations": 3}),
    ("repaint", {"resamplings": 3}),
    ("daps", {"prior_steps": 2, "spread": 0.5}),
    ("pnpdm", {"prior_steps": 1}),
]
ROWS: dict[str, Sampler] = {
    **{solver: Sampler(solver=solver) for solver in ("euler", "heun", "dpmpp_2m", "ddim", "unipc")},
    "heun with churn": Sampler(solver="heun", S_churn=40.0),
    "guided": Sampler(solver="heun", guidance=2.0),
    "guided in an interval": Sampler(solver="heun", guidance=2.0, guidance_min=0.1, guidance_max=3.0),
    "explicit": Sampler(discretization="explicit", sigmas=(3.0, 0.5, 0.02), nfe=(9,)),
    "finest": Sampler(solver="euler", finest_steps=12, nfe=(4,)),
    "ddpm grid": Sampler(discretization="ddpm"),
}
choices = pytest.mark.parametrize(("method", "keys"), CHOICES, ids=str)
rows = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


def measurement_for(method: str) -> Linear:
    return MASK if method in ("replacement", "repaint") else MEASURED


def test_both_registries_are_here_and_share_no_name() -> None:
    assert [*METHODS, *LOOPS] == list(ALL)
    assert keys_of("mmps") == {"iterations": 1} and keys_of("daps") == {"prior_steps": 5, "spread": 1.0}


@choices
@rows
def test_the_predicted_cost_is_the_counted_bill(method: str, keys: dict[str, Any], row: Sampler) -> None:
    seen = measurement_for(method)
    denoiser = row.build_guidance()(MIXTURE, Gaussian(0.1, 0.5))
    for steps in (3,) if row.sigmas else (1, 2, 6):
        drawn = draw_given(denoiser, seen, normal(2, 5), row, steps, method, **keys)
        assert drawn.cost == drawn.calls + 2 * drawn.products
        assert drawn.cost == cost(method, keys, row, steps, seen.size), steps


@choices
@rows
def test_a_budget_pays_for_as_many_steps_as_it_can(method: str, keys: dict[str, Any], row: Sampler) -> None:
    size = measurement_for(method).size

    def price(steps: int) -> int:
        return cost(method, keys, row, steps, size)

    listed = [3] if row.sigmas else [1, 2, 3, 4, 6, 12] if row.finest_steps and method in LOOPS else range(1, 200)
    for budget in (60, 61, 100, 150):
        steps = steps_within(method, keys, row, size, budget)
        assert price(steps) <= budget
        above = [other for other in listed if other > steps]
        assert not above or price(above[0]) > budget
    needed = price(listed[0])
    assert price(steps_within(method, keys, row, size, needed)) == needed
    what = "the 3 sigmas" if row.sigmas else "one step"
    for budget in {0, needed - 1}:
        with pytest.raises(StudyError) as caught:
            steps_within(method, keys, row, size, budget)
        assert str(caught.value) == f"nfe: a budget of {budget} is below {what} of {method}, which costs {needed}"


def test_the_line_about_a_budget() -> None:
    with pytest.raises(StudyError, match=r"^nfe: a budget of 5 is below one step of tmp, which costs 65$"):
        steps_within("tmp", {}, Sampler(), 32, 5)


def test_adaptive_solvers_have_two_steps_and_loops_ignore_them() -> None:
    row = Sampler(solver="rk45")
    assert steps_within("dps", {}, row, 3, 100) == 2
    assert steps_within("diffpir", {}, row, 3, 35) == 35
    with pytest.raises(StudyError, match="nfe: a budget of 5 is below one step of tmp, which costs"):
        steps_within("tmp", {}, row, 32, 5)


def test_a_grid_of_listed_levels_limits_the_steps_of_loops() -> None:
    row = Sampler(discretization="ddpm", sigma_max=0.05, nfe=(3,))
    levels = steps_within("diffpir", {}, row, 3, 500)
    assert 1 < levels < 500 and len(row.grid(levels)) == levels + 1
    with pytest.raises(StudyError, match="noise levels in the range"):
        row.grid(levels + 1)


@pytest.mark.parametrize("method", ALL)
def test_draws_are_those_of_each_phase(method: str) -> None:
    seen, row = measurement_for(method), Sampler()
    drawn = draw_given(MIXTURE, seen, normal(3, 5), row, 4, method, torch.ones_like)
    if method in LOOPS:
        made = LOOPS[method].draw(MIXTURE, seen, normal(3, 5), row, 4, torch.ones_like)
        expected = Drawn(made.x0, made.nfe, 0, 0)
    else:
        denoiser = given(MIXTURE, seen, method)
        made = sample(denoiser, normal(3, 5), row, 4, torch.ones_like)
        expected = Drawn(made.x0, made.nfe, denoiser.bill.products, denoiser.bill.cg_steps)
    assert drawn.x0.equal(expected.x0)
    assert (drawn.calls, drawn.products, drawn.cg_steps) == (expected.calls, expected.products, expected.cg_steps)


@pytest.mark.parametrize("method", ALL)
def test_networks_of_images_can_be_asked(method: str) -> None:
    network = new_denoiser(Model(channels=8, multipliers=(1,), blocks=1).spec(0.5, (1, 4, 4)), 0).eval()
    seen = mask((1, 4, 4), 0.1, box=(1, 1, 2, 2)).observed(normal(12))
    steps = steps_within(method, {}, Sampler(), 12, 100)
    drawn = draw_given(network, seen, normal(2, 1, 4, 4), Sampler(), steps, method)
    assert drawn.x0.shape == (2, 1, 4, 4) and drawn.x0.dtype == torch.float64 and not drawn.x0.requires_grad
    assert drawn.cost == cost(method, {}, Sampler(), steps, 12) <= 100


REFUSED: dict[str, tuple[str, Measurement, dict[str, Any], str | None]] = {
    "none": ("tmp", Linear(normal(3, 5), 0.1), {}, None),
    "none of a loop": ("daps", Linear(normal(3, 5), 0.1), {}, None),
    "name": ("dap", MEASURED, {}, "posterior: no method 'dap'; did you mean 'daps'? valid: "),
    "key": ("mmps", MEASURED, {"zeta": 1.0}, "zeta: method mmps has no such key; valid: iterations"),
    "key of a loop": ("repaint", MASK, {"zeta": 1.0}, "zeta: method repaint has no such key; valid: resamplings"),
    "value": ("diffpir", MEASURED, {"renoise": 2.0}, "renoise: 2.0 is above 1"),
    "covariance": ("tmp", MEASURED, {"covariance": "diag"}, "covariance: no 'diag'; did you mean 'diagonal'"),
    "whole": ("mmps", MEASURED, {"iterations": 1.5}, "iterations: 1.5 is no whole number"),
    "std": ("dps", Linear(normal(3, 5), 0.0), {}, "posterior: dps divides by std, which is 0"),
    "mask": ("repaint", MEASURED, {}, "posterior: repaint replaces measured values"),
    "clip": ("pnpdm", clip((5,), 0.1), {}, "posterior: pnpdm needs a linear measurement"),
}


@pytest.mark.parametrize(("method", "measurement", "keys", "line"), REFUSED.values(), ids=REFUSED)
def test_refusals_are_one_line(method: str, measurement: Measurement, keys: dict[str, Any], line: str | None) -> None:
    reason = refusal(method, measurement, keys)
    if line is None:
        assert reason is None
        return
    assert reason is not None and reason.startswith(line) and len(reason.splitlines()) == 1
    with pytest.raises(StudyError) as caught:
        draw_given(MIXTURE, measurement.observed(normal(measurement.size)), normal(2, 5), Sampler(), 3, method, **keys)
    assert str(caught.value) == reason


def test_a_product_through_two_networks_counts_twice() -> None:
    row = Sampler(solver="euler", guidance=2.0)
    drawn = draw_given(row.build_guidance()(MIXTURE, Gaussian(0.1, 0.5)), MEASURED, normal(2, 5), row, 4, "pigdm")
    assert (drawn.calls, drawn.products, drawn.cost) == (8, 8, 24)
