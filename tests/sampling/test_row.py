"""A sampler row: the mistakes that it refuses, the values that it fills in, and its round trip through a file."""

import json
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.diffusion.exact import Gaussian
from pipeline.diffusion.grids import DISCRETIZATIONS
from pipeline.diffusion.schedule import SCALING_OF_SCHEDULE, SCHEDULES
from pipeline.sampling.fitted_grids import LEVELS
from pipeline.sampling.loop import sample
from pipeline.sampling.row import SOLVER_KEYS, Sampler, keys_of
from pipeline.sampling.solvers import SOLVERS

KEYS: dict[str, tuple[str, ...]] = {  # of a row, that a solver goes by
    "euler": (),
    "heun": ("alpha",),
    "midpoint": (),
    "rk4": (),
    "dpm_solver_2": (),
    "dpmpp_2s": (),
    "rk45": ("rtol", "atol"),
    "dpmpp_2m": (),
    "dpmpp_3m": (),
    "exp_adams": ("order",),
    "unipc": ("order", "variant"),
    "deis": ("order",),
    "ipndm": ("order",),
    "lms": ("order",),
    "ddim": ("eta",),
    "ddpm": ("variance",),
    "consistency": ("boundary",),
    "euler_maruyama": ("diffusion", "corrector_steps", "corrector_snr"),
    "dpmpp_2m_sde": (),
    "fitted": ("fit", "told", "start", "fit_images", "numbers"),
}
NUMBERS = Sampler(solver="fitted", nfe=(99,)).as_started(99).numbers
OTHER: dict[str, Any] = {  # than the default
    "order": 2,
    "variant": "bh1",
    "alpha": 0.5,
    "eta": 0.5,
    "variance": "beta",
    "boundary": 0.1,
    "diffusion": 0.5,
    "corrector_steps": 1,
    "corrector_snr": 0.2,
    "rtol": 1e-5,
    "atol": 1e-5,
    "fit": "times",
    "told": "fitted",
    "start": "ipndm",
    "fit_images": 32,
    "numbers": NUMBERS,
}
OF_FITS = {"fit", "told", "fit_images"}  # choose what is fitted, and not how the solver runs
LIST = {"discretization": "explicit", "sigmas": (9.0, 3.0, 1.0)}

CHURNS: list[dict[str, Any]] = [
    {"solver": name, "S_churn": S_churn} for name in ("euler", "heun", "rk4") for S_churn in (0.5, 4, 100)
] + [{"S_churn": 4, "S_min": 0.1, "S_max": 5}, {"solver": "euler_maruyama", "corrector_steps": 2}]

FIXED = {name: Sampler(solver=name, nfe=(99,)).build_solver() for name in SOLVERS if name != "rk45"}

all_solvers = pytest.mark.parametrize("solver", SOLVERS)


def refusal(**row: Any) -> str:
    """The line with which a row is refused."""
    with pytest.raises(ValidationError) as caught:
        Sampler(**row)
    [found] = caught.value.errors()
    assert len(found["msg"].splitlines()) == 1
    return ".".join([*(str(part) for part in found["loc"]), found["msg"]])


def test_every_solver_and_key_is_here() -> None:
    assert {name: tuple(keys_of(name)) for name in SOLVERS} == KEYS
    assert OTHER.keys() == SOLVER_KEYS <= Sampler.model_fields.keys()


@all_solvers
@pytest.mark.parametrize("key", OTHER)
def test_a_key_is_taken_by_the_solvers_that_go_by_it_and_refused_by_the_others(solver: str, key: str) -> None:
    """Its default is valid with every solver."""
    row = {"solver": solver, "nfe": (99,)}
    assert Sampler(**row, **{key: Sampler.model_fields[key].default}) == Sampler(**row)
    if key in KEYS[solver]:
        other = Sampler(**row, **{key: OTHER[key]})
        assert getattr(other, key) == OTHER[key]
        assert (other.build_solver() != Sampler(**row).build_solver()) == (key not in OF_FITS)
    else:
        those = ", ".join(name for name, keys in KEYS.items() if key in keys)
        message = f"{key}: solver {solver} does not use it; {key} is for {those}"
        assert refusal(**row, **{key: OTHER[key]}).endswith(message)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rho of 0": ({"rho": 0}, "rho.Input should be greater than 0"),
    "rho below 0": ({"rho": -7}, "rho.Input should be greater than 0"),
    "shift of 0": ({"shift": 0}, "shift.Input should be greater than 0"),
    "equal ends": ({"sigma_min": 80}, "sigma_min (80.0) must be below sigma_max (80.0)"),
    "crossed ends": ({"sigma_max": 0.001}, "sigma_min (0.002) must be below sigma_max (0.001)"),
    "crossed ends of a fitted grid": (
        {"discretization": "optimised", "sigma_min": 90},
        "sigma_min (90.0) must be below sigma_max (80.0)",
    ),
    "no evaluation": ({"nfe": (4, 0)}, "nfe.1.Input should be greater than or equal to 1"),
    "no budget": ({"nfe": ()}, "nfe.Tuple should have at least 1 item"),
    "a budget twice": ({"nfe": (4, 4)}, "nfe: a budget is listed twice"),
    "a budget below one step": (
        {"solver": "heun", "nfe": (4,)} | LIST,
        "nfe: 4 evaluations are too few; solver heun needs 5 for its 3 sigmas",
    ),
    "an order without its steps": (
        {"solver": "unipc", "order": 3, "nfe": (3, 4)},
        "order: 3 needs 5 steps, and nfe pays for at most 4",
    ),
    "an order that is too high": ({"solver": "deis", "order": 5}, "order: solver deis has orders 1 to 4"),
    "an order of UniPC's without corrector": (
        {"solver": "unipc", "order": 1},
        "order: solver unipc has orders 2 and 3",
    ),
    "eta above 1": ({"solver": "ddim", "eta": 1.5}, "eta.Input should be less than or equal to 1"),
    "eta of heun": ({"eta": 1}, "eta: solver heun does not use it; eta is for ddim"),
    "an unknown solver": ({"solver": "huen"}, "solver.Input should be"),
    "an unknown grid": ({"discretization": "karras"}, "discretization.Input should be"),
    "an unknown schedule": ({"schedule": "sine"}, "schedule.Input should be"),
    "an unknown scaling": ({"scaling": "ve"}, "scaling.Input should be"),
    "an unknown spacing": ({"spacing": "middle"}, "spacing.Input should be"),
    "an unknown variance": ({"solver": "ddpm", "variance": "fixed"}, "variance.Input should be"),
    "an unknown variant": ({"solver": "unipc", "variant": "bh3"}, "variant.Input should be"),
    "an unknown threshold": ({"threshold": "clip"}, "threshold.Input should be"),
    "a percentile of nothing": ({"threshold": "dynamic", "threshold_percentile": 0}, "should be greater than 0"),
    "a percentile in percent": ({"threshold": "dynamic", "threshold_percentile": 99.5}, "less than or equal to 1"),
    "an unknown key": ({"s_churn": 1}, "s_churn.Extra inputs are not permitted"),
    "churn of steps of many": (
        {"solver": "dpmpp_2m", "S_churn": 1},
        "does not use it; churn is for deterministic single-step",
    ),
    "churn of a noisy solver": (
        {"solver": "ddpm", "S_churn": 1},
        "does not use it; churn is for deterministic single-step",
    ),
    "churn of noisy DDIM": (
        {"solver": "ddim", "eta": 1, "S_churn": 1},
        "does not use it; churn is for deterministic single-step",
    ),
    "churn of an adaptive solver": (
        {"solver": "rk45", "S_churn": 1},
        "does not use it; churn is for deterministic single-step",
    ),
    "churn below 0": ({"S_churn": -1}, "S_churn.Input should be greater than or equal to 0"),
    "churn without end": ({"S_churn": math.inf}, "S_churn.Input should be a finite number"),
    "explicit without a list": ({"discretization": "explicit"}, "sigmas: discretization explicit needs a list"),
    "a list without explicit": (
        {"sigmas": (9, 3)},
        "sigmas: discretization edm uses none; a list is for explicit",
    ),
    "an empty list": (LIST | {"sigmas": ()}, "sigmas.Tuple should have at least 1 item"),
    "a level of 0": (LIST | {"sigmas": (9, 0)}, "sigmas.1.Input should be greater than 0"),
    "levels that rise": (LIST | {"sigmas": (1, 3, 9), "nfe": (9,)}, "the noise levels must fall from step to step"),
    "a level twice": (LIST | {"sigmas": (9, 3, 3), "nfe": (9,)}, "the noise levels must fall from step to step"),
    "levels beyond float64": ({"rho": 1e-3}, "the noise levels must fall from step to step"),
    "levels that rounding makes one": (
        {"sigma_min": 3, "sigma_max": 3 + 2**-51},
        "the noise levels must fall from step to step",
    ),
    "more steps than iDDPM's levels": (
        {"solver": "ddim", "discretization": "iddpm", "nfe": (993,)},
        "discretization iddpm: 993 steps, but only 992 noise levels",
    ),
    "more steps than DDPM's levels": (
        {"solver": "ddpm", "discretization": "ddpm", "nfe": (1001,)},
        "discretization ddpm: 1001 steps, but only 1000 noise levels",
    ),
    "more steps than a fitted grid's levels": (
        {"solver": "ddim", "discretization": "optimised", "nfe": (LEVELS + 1,)},
        f"nfe: {LEVELS + 1} steps, but an optimised grid has at most {LEVELS}",
    ),
    "churn of a fitted solver": ({"solver": "fitted", "S_churn": 1}, "S_churn: solver fitted does not use it"),
    "noise of a fitted solver": ({"solver": "fitted", "eta": 1}, "eta: solver fitted does not use it; eta is for ddim"),
    "tolerances of a fitted solver": ({"solver": "fitted", "rtol": 0.1}, "rtol: solver fitted does not use it"),
    "a fit that begins with noise": ({"solver": "fitted", "start": "ddpm"}, "start.Input should be 'ipndm' or"),
    "a fit of nothing": ({"solver": "fitted", "fit": "none"}, "fit.Input should be 'times', 'coefficients' or 'both'"),
    "a fitted solver on a fitted grid": (
        {"solver": "fitted", "discretization": "optimised"},
        "discretization: solver fitted begins with a grid that depends on no model; use another",
    ),
    "a fitted solver in an interval": (
        {"solver": "fitted", "guidance": 2, "guidance_max": 5},
        "guidance_min, guidance_max: solver fitted moves its noise levels across their limits; use guidance at all",
    ),
    "a fitted solver and a classifier's gradient": (
        {"solver": "fitted", "guide": "classifier", "guidance": 2},
        "guide: solver fitted cannot differentiate a classifier's gradient; use another guide",
    ),
    "numbers of another number of steps": (
        {"solver": "fitted", "nfe": (4,), "numbers": NUMBERS},
        "solver fitted: 4 steps, but it is fitted for 99",
    ),
    "guidance below 0": ({"guidance": -1}, "guidance.Input should be greater than or equal to 0"),
    "an unknown guide": ({"guide": "conditional"}, "guide.Input should be"),
    "an empty interval": (
        {"guidance": 2, "guidance_min": 3, "guidance_max": 3},
        "guidance_min (3.0) must be below guidance_max (3.0)",
    ),
    "an interval of no guidance": (
        {"guidance_min": 1},
        "guidance 1 with guide unconditional has no effect to limit; use another weight",
    ),
    "an interval of a snapshot's no guidance": (
        {"guide": "snapshot", "guidance_max": 1},
        "guidance 1 with guide snapshot has no effect to limit",
    ),
    "an interval of a classifier's no guidance": (
        {"guide": "classifier", "guidance": 0, "guidance_max": 1},
        "guidance 0 with guide classifier has no effect to limit",
    ),
    "an interval on a fitted grid": (
        {"guidance": 2, "guidance_max": 1, "discretization": "optimised"},
        "is unknown until the grid is fitted; use another discretization",
    ),
    "a budget below one guided step": (
        {"guidance": 2, "nfe": (1, 4)},
        "nfe: 1 evaluations are too few; solver heun needs 2 with guidance for one step",
    ),
    "a budget below one step that an interval guides": (
        {"guidance": 2, "guidance_min": 1, "nfe": (1,)},
        "nfe: 1 evaluations are too few; solver heun needs 2 with guidance for one step",
    ),
    "a budget below a guided list": (
        {"guidance": 2, "guidance_max": 5, "nfe": (8,)} | LIST,
        "nfe: 8 evaluations are too few; solver heun needs 9 with guidance for its 3 sigmas",
    ),
    "a guided adaptive solver's budget": (
        {"guidance": 2, "solver": "rk45", "nfe": (17,)},
        "nfe: solver rk45 needs at least 18 evaluations",
    ),
    "an interval on a grid that doesn't fall": (
        {"guidance": 2, "guidance_max": 5, "sigma_min": 3, "sigma_max": 3 + 2**-51},
        "the noise levels must fall from step to step",
    ),
    "an interval on more steps than levels": (
        {"guidance": 2, "guidance_max": 0.01, "solver": "ddim", "discretization": "iddpm", "nfe": (2000,)},
        "discretization iddpm: 1000 steps, but only 992 noise levels",
    ),
    "an interval above all noise levels": (
        {"guidance": 2, "guidance_min": 80},
        "guidance_min, guidance_max: no sigma of the range 0.002 to 80 lies between them",
    ),
    "an interval below all noise levels": (
        {"guidance": 2, "guidance_max": 0.01, "sigma_min": 0.02},
        "guidance_min, guidance_max: no sigma of the range 0.02 to 80 lies between them",
    ),
    "an adaptive solver that ends above 0": (
        {"solver": "rk45", "end": "sigma_min", "nfe": (20,)},
        "end: solver rk45 ends at 0; use zero, or another solver",
    ),
    "a consistency map that ends above 0": (
        {"solver": "consistency", "end": "sigma_min"},
        "end: solver consistency ends at 0; use zero, or another solver",
    ),
    "a fitted grid that ends above 0": (
        {"discretization": "optimised", "end": "sigma_min"},
        "end: an optimised grid is fitted to steps that end at 0; use zero, or another grid",
    ),
    "a flow that ends above 0": (
        {"discretization": "flow", "end": "sigma_min"},
        "end: discretization flow has no level at sigma_min; use zero, or another grid",
    ),
    "trailing levels that end above 0": (
        {"discretization": "ddpm", "spacing": "trailing", "end": "sigma_min"},
        "end: spacing trailing has no level at sigma_min; use zero, or another grid",
    ),
    "one level, the first and the last": (
        LIST | {"sigmas": (9.0,), "end": "sigma_min"},
        "sigmas: end sigma_min needs two noise levels or more",
    ),
    "an analytic step of an adaptive solver": (
        {"solver": "rk45", "first_step": "analytic", "nfe": (20,)},
        "first_step: solver rk45 needs the network; use network, or another solver",
    ),
    "an analytic step of a consistency map": (
        {"solver": "consistency", "first_step": "analytic"},
        "first_step: solver consistency needs the network; use network, or another solver",
    ),
    "an analytic step without the variance": (
        {"solver": "ddpm", "variance": "learned", "first_step": "analytic"},
        "first_step: analytic gives no variance; use network, or variance beta or beta_tilde",
    ),
    "an analytic step alone": (
        LIST | {"sigmas": (9.0,), "first_step": "analytic"},
        "first_step: analytic leaves no call of the network; use network, or more sigmas",
    ),
    "a budget below the step after an analytic one": (
        {"guidance": 2, "first_step": "analytic", "nfe": (1,)},
        "nfe: 1 evaluations are too few; solver heun needs 4 with guidance for two steps",
    ),
    "an end that does not exist": ({"end": "sigma_max"}, "end.Input should be 'zero' or 'sigma_min'"),
    "a first step that does not exist": ({"first_step": "afs"}, "first_step.Input should be 'network' or 'analytic'"),
    "an exponent of 0": ({"exponent": 0}, "exponent.Input should be greater than 0"),
    "a truth value in a list": ({"nfe": [7, True]}, "nfe.Value error, true is not valid here"),
    "a truth value": ({"S_churn": True}, "S_churn.Value error, true is not valid here"),
    "no number": ({"S_max": math.nan}, "S_max.Input should be a finite number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_refused_in_one_line(case: str) -> None:
    row, message = REFUSED[case]
    assert message in refusal(**row)


def test_the_largest_numbers_of_steps_are_accepted() -> None:
    Sampler(solver="ddim", discretization="iddpm", nfe=(992,))
    Sampler(solver="ddpm", discretization="ddpm", nfe=(1000,))
    Sampler(solver="ddim", discretization="optimised", nfe=(LEVELS,))
    Sampler(solver="lms", order=4, nfe=(4,))
    assert Sampler(**LIST, nfe=(5,)).steps(5) == Sampler(**LIST, nfe=(19,)).steps(19) == 3
    assert Sampler(discretization="explicit", sigmas=(9.0,), solver="euler", nfe=(1,)).grid(1).tolist() == [9, 0]


def test_an_infinite_s_max_is_no_limit() -> None:
    row = Sampler(S_churn=1, S_max=math.inf)
    assert row.S_max is None and row == Sampler(S_churn=1) and row.build_solver() == Sampler(S_churn=1).build_solver()


@pytest.mark.parametrize(
    ("guide", "weight", "cost"),
    [
        ("unconditional", 1, 1),
        ("unconditional", 0, 1),
        ("unconditional", 1.5, 2),
        ("snapshot", 1, 1),
        ("snapshot", 2, 2),
        ("classifier", 0, 1),
        ("classifier", 1, 2),
    ],
)
@all_solvers
def test_guidance_halves_what_a_budget_buys(solver: str, guide: str, weight: float, cost: int) -> None:
    if (solver, guide) == ("fitted", "classifier") and cost > 1:
        pytest.skip("its gradients pass through no classifier")
    plain = Sampler(solver=solver, nfe=(99,))
    row = Sampler(solver=solver, nfe=(99,), guide=guide, guidance=weight)
    assert row.evaluations(7) == cost * plain.evaluations(7) == cost * plain.build_solver().evaluations(7)
    assert [row.steps(cost * budget) for budget in range(1, 30)] == [plain.steps(budget) for budget in range(1, 30)]


def test_an_infinite_guidance_max_is_no_limit() -> None:
    assert Sampler(guidance=2, guidance_max=math.inf) == Sampler(guidance=2)


@pytest.mark.parametrize("name", DISCRETIZATIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_range_and_scaling_of_a_row(name: str, schedule: str) -> None:
    keys = {"discretization": name, "schedule": schedule, "nfe": (9,)} | (
        {"sigmas": (9, 3, 1)} if name == "explicit" else {}
    )
    filled, published = Sampler(**keys).filled(), DISCRETIZATIONS[name]
    assert filled.scaling == SCALING_OF_SCHEDULE[schedule]
    if name != "explicit":
        assert (filled.sigma_min, filled.sigma_max) == (published.sigma_min, published.sigma_max)
        own = Sampler(**keys, sigma_min=0.1, sigma_max=9)
        assert own.sigma_range == own.filled().sigma_range == (0.1, 9)
    assert filled.sigma_range == Sampler(**keys).sigma_range


GAUSSIAN = Gaussian(0.1, 0.5)
WAYS: dict[str, dict[str, Any]] = {name: {"solver": name} for name in SOLVERS} | {
    "churned": {"S_churn": 4, "S_min": 0.1, "S_max": 50, "S_noise": 1.003},
    "unlimited churn": {"S_churn": 4, "S_max": math.inf},
    "explicit": LIST | {"schedule": "vp"},
    "time in vp": {"discretization": "time", "schedule": "vp", "sigma_min": 0.01},
    "shifted": {"discretization": "flow", "schedule": "flow", "shift": 3},
    "trailing": {"solver": "ddpm", "discretization": "ddpm", "spacing": "trailing", "variance": "beta"},
    "deis in cosine": {"solver": "deis", "order": 2, "schedule": "cosine", "scaling": "flow"},
    "corrected": {"solver": "euler_maruyama", "diffusion": 0.5, "corrector_steps": 1, "schedule": "ve"},
    "UniPC's B_1": {"solver": "unipc", "order": 2, "variant": "bh1"},
    "clipped": {"threshold": "static"},
    "thresholded": {"threshold": "dynamic", "threshold_percentile": 0.9},
    "guided": {"guidance": 2.5, "guide": "snapshot"},
    "guided in between": {"guidance": 2.5, "guidance_min": 0.2, "guidance_max": 5},
    "ending at sigma_min": {"solver": "ipndm", "end": "sigma_min", "first_step": "analytic"},
    "exponent": {"discretization": "time", "exponent": 2, "schedule": "vp"},
    "guided by a classifier": {"guide": "classifier"},
}


def samples(row: Sampler) -> bytes:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    def randn_like(x: Tensor) -> Tensor:
        return torch.randn(x.shape, dtype=x.dtype, generator=generator)

    return sample(GAUSSIAN, noise, row.as_started(row.steps(19)), row.steps(19), randn_like).x0.numpy().tobytes()


@pytest.mark.parametrize("way", WAYS)
def test_a_filled_row_samples_the_same_bytes_and_is_full(way: str) -> None:
    row = Sampler(**WAYS[way], nfe=(19,))
    filled = row.filled()
    assert filled.filled() == filled
    assert None not in (filled.sigma_min, filled.sigma_max, filled.scaling)
    assert samples(filled) == samples(row)


@pytest.mark.parametrize("way", WAYS)
def test_a_row_comes_back_from_json(way: str) -> None:
    for row in (Sampler(**WAYS[way], nfe=(19,)), Sampler(**WAYS[way], nfe=(19,)).filled()):
        again = Sampler(**json.loads(json.dumps(row.model_dump(mode="json"), allow_nan=False)))
        assert again == row and samples(again) == samples(row)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_row_with_a_grid_of_its_own_stays_in_its_schedule(schedule: str) -> None:
    """VP's constants depend on the row's range, not on the ends of the list."""
    row = Sampler(solver="euler", discretization="optimised", schedule=schedule, nfe=(3,))
    own = row.with_grid((80.0, 3.0, 0.47))
    assert own.grid(3).tolist() == [80, 3, 0.47, 0] and own.steps(3) == 3
    levels = torch.tensor([80.0, 3.0, 0.47], dtype=torch.float64)
    assert torch.equal(own.build_schedule().t(levels), row.build_schedule().t(levels))
    again = Sampler(**json.loads(json.dumps(own.filled().model_dump(mode="json"))))
    assert samples(again) == samples(own)


def test_a_fitted_grid_that_is_missing_is_an_error_of_one_line() -> None:
    with pytest.raises(StudyError, match="optimised: not fitted") as caught:
        sample(GAUSSIAN, torch.zeros(2, 2), Sampler(solver="ddim", discretization="optimised"), 4)
    assert len(str(caught.value).splitlines()) == 1


def test_rows_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Sampler().rho = 3
