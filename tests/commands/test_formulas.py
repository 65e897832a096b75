"""The formulas on the page of the design space are those of the code."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy
import torch
from scipy.special import ndtri
from sympy.parsing.sympy_parser import convert_xor, implicit_multiplication, parse_expr, standard_transformations
from torch import Tensor

from pipeline.commands.axes import AXES, coefficients, evaluations
from pipeline.common.randomness import generator
from pipeline.diffusion.averages import HalfLife, Power, exponent
from pipeline.diffusion.grids import DISCRETIZATIONS, SPACINGS
from pipeline.diffusion.parametrization import BOUNDARY, PARAMETRIZATIONS
from pipeline.diffusion.schedule import EPS_S, EPS_T, IDDPM_C2, SCALINGS, SCHEDULES, VP_BETA_D, VP_BETA_MIN, VP_STEPS
from pipeline.diffusion.upsampling import blurred
from pipeline.sampling.guidance import GUIDES
from pipeline.sampling.multistep import VARIANTS
from pipeline.sampling.ode import Ode, RandnLike, SingleStep
from pipeline.sampling.protocols import FIRST_STEPS
from pipeline.sampling.row import Sampler
from pipeline.sampling.solvers import SOLVERS
from pipeline.sampling.stochastic import Churned
from pipeline.sampling.thresholding import THRESHOLDS, thresholding
from pipeline.training.batches import _low
from pipeline.training.distances import DISTANCES
from pipeline.training.noise import NOISES
from pipeline.training.noise import keys_of as keys_of_noise
from pipeline.training.objectives import LEVEL_GROWTHS, OBJECTIVES, Objective, Question
from pipeline.training.optimizer import DECAYS
from pipeline.training.row import Model, Upsampler
from pipeline.training.weighting import WEIGHTINGS

AXES_BY_TITLE = {axis.title: axis for axis in AXES}


def evaluate(formula: str, **values: Any) -> Any:
    """A formula of the page at values of its letters: "f(a, x), a = g(x)"."""
    head, *rest = re.split(r", (\w+) = ", formula)
    symbols: dict[str, Any] = {name: sympy.Symbol(name) for name in (*values, *rest[::2])}
    functions = {"max": sympy.Max, "min": sympy.Min, "q": sympy.Function("q"), "round": sympy.Function("nearest")}
    functions |= {"ceil": sympy.ceiling} | {name: sympy.Function(name) for name in ("sum", "mean", "log2")}
    own = {name: values.pop(name) for name in [*values] if callable(values[name])}  # functions among the letters
    functions |= {name: sympy.Function(name) for name in own}
    transformations = (*standard_transformations, implicit_multiplication, convert_xor)

    def of(text: str) -> sympy.Expr:
        return parse_expr(text, symbols | functions, transformations)

    expression = of(head)
    for name, text in zip(rest[::2], rest[1::2], strict=True):
        expression = expression.subs(symbols[name], of(text))
    used = sorted(expression.free_symbols, key=str)
    arithmetic = {"q": ndtri, "nearest": np.rint, "sum": np.sum, "mean": np.mean, "log2": np.log2}
    function = sympy.lambdify(used, expression, [arithmetic | own, "numpy"])
    return function(*(values[str(symbol)] for symbol in used))


BETAS = {"beta_d": VP_BETA_D, "beta_min": VP_BETA_MIN, "eps_s": EPS_S, "eps_t": EPS_T, "M": VP_STEPS, "C_2": IDDPM_C2}
U = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
SIGMA = torch.logspace(-2, 2, 50, dtype=torch.float64)
SD = 0.5
Check = Callable[[], tuple[Any, Any]]  # what the formula gives, and what the code gives


def checks() -> dict[tuple[str, str], Check]:
    """How each formula of the page is held against the code: by section and entry."""
    found: dict[tuple[str, str], Check] = {}

    def add(title: str, name: str, code: Callable[[], Any], formula: str | None = None, **values: Any) -> None:
        text = AXES_BY_TITLE[title].choices[name].formula if formula is None else formula
        found[title, name] = lambda: (evaluate(text, **values), code())

    low, high = DISCRETIZATIONS["vp"].sigma_min, DISCRETIZATIONS["vp"].sigma_max
    for name, schedule in SCHEDULES.items():
        add("Schedules", name, lambda s=schedule: s(low, high).sigma(U), t=U.numpy(), **BETAS)
    for name, scaling in SCALINGS.items():
        add("Scalings", name, lambda s=scaling: s.s(SIGMA), sigma=SIGMA.numpy())
    for name, grid in DISCRETIZATIONS.items():
        if not AXES_BY_TITLE["Grids"].choices[name].formula:
            continue
        ends = {"sigma_min": grid.sigma_min, "sigma_max": grid.sigma_max}
        add(
            "Grids", name, lambda g=grid, e=ends: g(8, *e.values(), rho=5.0, shift=3.0)[:-1],
            i=np.arange(8.0), N=8.0, rho=5.0, shift=3.0, **ends, **BETAS,
        )  # fmt: skip
    for name, spacing in SPACINGS.items():
        add("Spacings of DDPM's levels", name, lambda s=spacing: s(7, 100), i=np.arange(7.0), N=7.0, K=100.0)
    for name, row in PARAMETRIZATIONS.items():
        for key, text in coefficients(name).items():
            if "nearest" not in text:
                values = {"sigma": SIGMA.numpy(), "sigma_data": SD, "e": BOUNDARY, **BETAS}
                code = lambda r=row, k=key: getattr(r(SIGMA, SD), k)  # noqa: E731
                add("Parametrizations", f"{name} {key}", code, text, **values)
    row = Model(P_mean=-0.4, P_std=1.1, shift=2.0, logit_mean=0.3, logit_std=0.8, mode_scale=0.7)
    for name, noise in NOISES.items():
        if AXES_BY_TITLE["Training noise"].choices[name].formula:
            keys = {key: getattr(row, key) for key in keys_of_noise(name)}
            add("Training noise", name, lambda n=noise, k=keys: n(U, **k), u=U.numpy(), **keys, **BETAS)
    choices = {"gamma": 3.0, "k": 2.0, "bias": 1.5}
    c_out, snr_rate, step = SIGMA * 0.3 + 1, SIGMA * 0.7 + 2, SIGMA * 0.2
    for name, weighting in WEIGHTINGS.items():
        add(
            "Loss weightings", name,
            lambda w=weighting: w(SIGMA, sigma_data=SD, c_out=c_out, snr_rate=snr_rate, step=step, **choices),
            sigma=SIGMA.numpy(), sigma_data=SD, c_out=c_out.numpy(), snr_rate=snr_rate.numpy(), step=step.numpy(),
            **choices,
        )  # fmt: skip
    asked = {"x0": 0.5, "n": -1.5, "r": 0.7, "sigma": 2.0, "T": 0.8, "z": -2.5, "D": lambda z, sigma: z + 3 * sigma}
    for name, objective in OBJECTIVES.items():
        add("Objectives", name, lambda o=objective: target(o), **asked, z_2=-2.5 / 4 + 0.8 * 3 / 4, sigma_2=0.5)
    far = torch.tensor([0.3, -0.2, 0.5, 0.9], dtype=torch.float64)
    for name, distance in DISTANCES.items():
        code = lambda d=distance: 0.7**2 * d(far[None] / 0.7, torch.tensor([0.7], dtype=torch.float64))  # noqa: E731
        add("Distances", name, code, a=far.numpy(), d=4.0)
    for name, growth in LEVEL_GROWTHS.items():
        code = lambda g=growth: [g(k, 800, 3, 100) for k in range(800)]  # noqa: E731
        add("Growth of the number of noise levels", name, code, k=np.arange(800.0), K=800.0, a=3.0, b=100.0)
    ends = {name: added_variance(name) for name in ("beta_tilde", "beta")}
    for name in (*ends, "learned"):
        add("Variances of `ddpm`", name, lambda n=name: added_variance(n), sigma=2.0, sigma_next=1.5, v=0.3, **ends)
    for name, guide in GUIDES.items():
        combined = lambda g=guide: g.combined(*map(torch.tensor, (3.0, 2.0, 1.5)), 1.7)  # noqa: E731
        add("Guidance", name, combined, sigma=1.5, w=1.7, D=3.0, D_u=2.0, g=2.0)
    for name, variant in VARIANTS.items():
        add("Variants of `unipc`", name, lambda v=variant: v(0.7), h=0.7)
    thresholded = np.array([-3.0, 0.5, 1.0])
    for name in THRESHOLDS:
        function = thresholding(name, threshold_percentile=0.5)
        add("Thresholds", name, lambda f=function: f(2 * torch.tensor(thresholded)[None]), D=2 * thresholded, s=2.0)
    draw = generator("low-resolution image")
    s, n = 2 * torch.rand(1, generator=draw, dtype=torch.float64), torch.randn(1, generator=draw)
    add("Conditioning augmentation", "noise", noised, low=0.25, strength=s.numpy(), n=n.numpy())
    add("Conditioning augmentation", "blur", blur, x=np.arange(-3.0, 4.0), strength=1.0)
    first = lambda: FIRST_STEPS["analytic"](lambda z, sigma: z)(torch.tensor(80.0), torch.tensor(40.0))  # noqa: E731
    add("First steps", "analytic", first, z=80.0, sigma=40.0)
    add("Churn", "churn", raised_sigmas, sigma=np.array([2.0, 1.0, 0.5]), S_churn=0.9, N=3.0)
    add("Averages of the weights", "half-life", lambda: HalfLife(500, None).decay(9, 64), h=500.0, B=64.0)
    add("Averages of the weights", "power function", lambda: Power(0.1).decay(8, 64), k=9.0, gamma=exponent(0.1))
    trained = Model(images=6400, batch=64, learning_rate_reference_images=1000)
    for name, decay in DECAYS.items():
        add(
            "Learning-rate decays", name, lambda d=decay: [d(trained, step) for step in range(100)],
            k=np.arange(100.0), K=100.0, B=64.0, t_ref=1000.0,
        )  # fmt: skip
    return found


def target(objective: Objective) -> Tensor:
    """The target at x0 = 0.5, n = -1.5 and sigma = 2, of a teacher that answers 0.8 and a network of z + 3 sigma."""
    x0, n = (torch.full((1, 1), value, dtype=torch.float64) for value in (0.5, -1.5))
    lower = (1.0, 0.5) if objective is OBJECTIVES["progressive"] else (0.7,)
    levels = tuple(torch.tensor([sigma], dtype=torch.float64) for sigma in (2.0, *lower))
    question = Question(x0, n, levels, lambda z, sigma: torch.full_like(z, 0.8), lambda z, sigma: z + 3 * sigma)
    return objective.target_of(question, {"teacher_step": "euler"})


def added_variance(name: str) -> float:
    """The variance of the noise that DDPM's step from sigma 2 to 1.5 adds to 0; if it is learned, v is 0.3."""
    solver, zeros = Sampler(solver="ddpm", variance=name).build_solver(), torch.zeros(1, 1, dtype=torch.float64)
    answer = torch.tensor([[0.0, 0.3][: 2 if name == "learned" else 1]], dtype=torch.float64)
    ode = Ode(lambda z, sigma: answer, SCHEDULES["linear"](0.002, 80), SCALINGS["none"])
    return float(solver.step(ode, zeros, 2.0, 1.5, torch.ones_like)) ** 2  # type: ignore[attr-defined]


def noised() -> Tensor:
    """An image of 0.25, averaged down to one pixel, with noise of at most strength 2."""
    row, draw = Upsampler(**{"from": 1, "strength": 2}), generator("low-resolution image")
    return _low(row, torch.full((1, 1, 2, 2), 0.25), 1, slice(None), draw).images[0, 0, 0]


def blur() -> Tensor:
    """A blur of width 1 of an impulse, relative to its middle."""
    impulse = torch.zeros(1, 1, 15, 15, dtype=torch.float64)
    impulse[0, 0, 7, 7] = 1
    row = blurred(impulse, torch.ones(1), 1.0)[0, 0, 7, 4:11]
    return row / row[3]


def raised_sigmas() -> list[float]:
    """The noise levels that steps start from after a churn of 0.9, on the grid 2, 1, 0.5, 0."""

    class Probe(SingleStep):
        def step(self, ode: Ode, z: Tensor, sigma: float, sigma_next: float, randn_like: RandnLike) -> Tensor:
            raised.append(sigma)
            return z

    raised: list[float] = []
    ode = Ode(lambda z, sigma: z, SCHEDULES["linear"](0.002, 80), SCALINGS["none"])
    list(Churned(Probe(), 0.9, 0.0, None, 1.0).run(ode, torch.zeros(1), [2.0, 1.0, 0.5, 0.0], torch.zeros_like))
    return raised


CHECKS = checks()


def test_every_formula_is_held_against_the_code() -> None:
    """Solvers are held against theirs by the tests of their orders and of their agreement with other libraries,
    measurements and posterior samplers by those of plain lines and closed forms in tests/sampling."""
    elsewhere = ("Solvers", "Parametrizations", "Measurements", "Posterior samplers")
    formulas = {
        (axis.title, name)
        for axis in AXES
        for name, choice in axis.choices.items()
        if choice.formula and axis.title not in elsewhere
    }
    formulas |= {
        ("Parametrizations", f"{name} {key}")
        for name in PARAMETRIZATIONS
        for key, text in coefficients(name).items()
        if "nearest" not in text
    }
    assert formulas == set(CHECKS)


@pytest.mark.parametrize("place", CHECKS, ids=" ".join)
def test_a_formula_is_the_codes(place: tuple[str, str]) -> None:
    formula, code = CHECKS[place]()
    code = torch.as_tensor(code, dtype=torch.float64).numpy()
    np.testing.assert_allclose(np.broadcast_to(formula, code.shape), code, rtol=1e-7, atol=1e-12)


def test_a_formula_that_is_another_is_found() -> None:
    assert evaluate("a sigma^2, a = 1 / (1 + t)", sigma=3.0, t=1.0) == 4.5
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(evaluate("1 / (1 + sigma)", sigma=SIGMA.numpy()), SCALINGS["vp"].s(SIGMA), rtol=1e-7)


@pytest.mark.parametrize("name", SOLVERS)
def test_what_a_solver_costs_is_what_it_counts(name: str) -> None:
    text, solver = evaluations(name), Sampler(solver=name, nfe=(100,)).build_solver()
    if solver.adaptive:
        assert text == f"{solver.evaluations(2)} or more"
    else:
        assert [evaluate(text, N=steps) for steps in (2, 5, 18)] == [solver.evaluations(steps) for steps in (2, 5, 18)]
