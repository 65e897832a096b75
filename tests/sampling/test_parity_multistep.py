"""Multistep solvers are those of diffusers, have the weights that scipy's quadrature finds, and are plain loops."""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import islice, pairwise
from statistics import linear_regression
from typing import Any

import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    IPNDMScheduler,
    LMSDiscreteScheduler,
    UniPCMultistepScheduler,
)
from scipy.integrate import quad
from torch import Tensor

from pipeline.diffusion.exact import flow
from pipeline.diffusion.schedule import SCALINGS, Schedule
from pipeline.sampling.multistep import VARIANTS, Evaluation, deis, dpmpp_3m, exp_adams
from pipeline.sampling.ode import Ode
from pipeline.sampling.row import Sampler
from pipeline.sampling.solvers import SOLVERS
from tests.sampling.peers import (
    BEGIN,
    BETAS,
    EDM,
    END,
    F64,
    MIXTURE,
    NOISE,
    STEPS,
    VE,
    VP,
    Peers,
    all_schedules,
    all_steps,
    assert_equal,
    derivative,
    drawn,
    edm_network,
    eps,
    follow,
    in_double,
    levels,
    made,
    ode_of,
    on_grid,
    ours,
    sigma_of_t,
    slope_in,
    states,
    times_between,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers


@all_steps
@pytest.mark.parametrize("rho", [3.0, 7.0])
def test_dpmpp_2m_is_that_of_diffusers(steps: int, rho: float) -> None:
    with in_double(EDMDPMSolverMultistepScheduler):
        theirs = follow(made(EDMDPMSolverMultistepScheduler, steps, solver_order=2, rho=rho), EDM)[-1]
    assert_equal(ours(Sampler(solver="dpmpp_2m", rho=rho), steps), theirs)
    with in_double(DPMSolverMultistepScheduler):
        scheduler = made(DPMSolverMultistepScheduler, steps, solver_order=2, use_karras_sigmas=True, **BETAS)
        sigmas, theirs = levels(scheduler), follow(scheduler, VP)[-1]
    assert_equal(ours(on_grid(sigmas, solver="dpmpp_2m"), steps), theirs)


@all_steps
def test_dpmpp_3m_is_that_of_diffusers(steps: int) -> None:
    """With 15 steps and more diffusers does not lower the order before its last step; ours always does."""
    with in_double(EDMDPMSolverMultistepScheduler):
        scheduler = made(EDMDPMSolverMultistepScheduler, steps, solver_order=3)
        sigmas, theirs = levels(scheduler), follow(scheduler, EDM)
    mine = states(Sampler(solver="dpmpp_3m"), sigmas)
    same = steps if steps < 15 else steps - 2
    for one, other in zip(mine[:same], theirs[:same], strict=True):
        assert_equal(one, other)
    if steps < 15:
        assert_equal(ours(Sampler(solver="dpmpp_3m"), steps), theirs[-1])


@all_steps
def test_dpmpp_of_order_1_is_ddim(steps: int) -> None:
    with in_double(EDMDPMSolverMultistepScheduler):
        theirs = follow(made(EDMDPMSolverMultistepScheduler, steps, solver_order=1), EDM)[-1]
    for row in ({"solver": "ddim"}, {"solver": "exp_adams", "order": 1}):
        assert_equal(ours(Sampler(**row), steps), theirs)


@all_steps
def test_exp_adams_of_order_2_is_dpmpp_2m_of_diffusers_in_its_form_heun(steps: int) -> None:
    """The form of 2M that does not simplify its second weight."""
    with in_double(EDMDPMSolverMultistepScheduler):
        config: dict[str, Any] = {"solver_order": 2, "solver_type": "heun"}
        theirs = follow(made(EDMDPMSolverMultistepScheduler, steps, **config), EDM)[-1]
    assert_equal(ours(Sampler(solver="exp_adams", order=2), steps), theirs)


@all_steps
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_unipc_is_that_of_diffusers(steps: int, order: int, variant: str) -> None:
    """Up to the last step for bh1, where theirs is not a number: B(h) is infinite, times 0."""
    sigmas = Sampler().grid(steps).tolist()
    with in_double(UniPCMultistepScheduler):
        config = {"solver_order": order, "solver_type": variant, "predict_x0": True, **BETAS}
        theirs = follow(made(UniPCMultistepScheduler, steps, sigmas, **config), VP)
        others = follow(scheduler := made(UniPCMultistepScheduler, steps, **config), VP)
    compared = steps if variant == "bh2" else steps - 1
    for grid, expected in ((sigmas, theirs), (levels(scheduler), others)):
        mine = states(Sampler(solver="unipc", order=order, variant=variant, nfe=(99,)), grid)
        for one, other in zip(mine[:compared], expected[:compared], strict=True):
            assert_equal(one, other)
        assert expected[-1].isfinite().all() == (variant == "bh2")
        assert mine[-1].isfinite().all()


@pytest.mark.parametrize("steps", STEPS[1:])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_in_log_rho_is_that_of_diffusers(steps: int, order: int) -> None:
    """Theirs interpolates in ln sigma, ours in the schedule's time: one whose time is ln sigma makes both the same.
    Theirs ends at the last level above 0."""
    log_time = Schedule(torch.exp, torch.exp, torch.log)
    with in_double(DEISMultistepScheduler):
        scheduler = made(DEISMultistepScheduler, steps, solver_order=order, lower_order_final=False, **BETAS)
        sigmas, theirs = levels(scheduler), follow(scheduler, VP)
    mine = deis(order).run(Ode(MIXTURE, log_time, SCALINGS["none"]), NOISE * sigmas[0], sigmas, drawn())
    for one, other in zip(mine, theirs, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("steps", STEPS[1:])
def test_ipndm_is_that_of_diffusers(steps: int) -> None:
    """Up to the last step, which theirs takes at full order. It has its noise levels from its betas, which are our
    sigma / sqrt(1 + sigma^2), and adds them to its network's answer to get eps."""
    sigmas = Sampler().grid(steps).tolist()
    with in_double(IPNDMScheduler):
        scheduler: Any = IPNDMScheduler(trained_betas=[sigma * VP.scale(sigma) for sigma in sigmas])
        scheduler.set_timesteps(steps)
        scheduler.set_begin_index(0)
        x, theirs = NOISE * sigmas[0] * VP.scale(sigmas[0]), []
        for i, t in enumerate(scheduler.timesteps[:-1]):
            z = x / VP.scale(sigmas[i])
            noise = eps(MIXTURE(z, torch.tensor(sigmas[i])), z, sigmas[i])
            x = scheduler.step((noise - x * scheduler.betas[i]) / scheduler.alphas[i], t, x).prev_sample
            theirs.append(x / VP.scale(sigmas[i + 1]))
    mine = states(Sampler(solver="ipndm"), sigmas)
    for one, other in zip(mine[:-1], theirs, strict=True):
        assert_equal(one, other)
    assert_equal(mine[-1], MIXTURE(theirs[-1], torch.tensor(sigmas[-2], dtype=F64)))


@all_steps
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_is_that_of_diffusers(steps: int, order: int) -> None:
    with in_double(LMSDiscreteScheduler):
        scheduler = made(LMSDiscreteScheduler, steps, **BETAS)
        sigmas, theirs = levels(scheduler), follow(scheduler, VE, order=iter([order] * steps))[-1]
    assert_equal(ours(on_grid(sigmas, solver="lms", order=order), steps), theirs)


def order_of(errors: dict[int, float]) -> float:
    return -linear_regression([math.log(n) for n in errors], [math.log(e) for e in errors.values()]).slope


@cache
def truth(steps: int) -> list[Tensor]:
    """The exact flow at the levels of `log_levels`."""
    z, found = MIXTURE.means[0] + NOISE * log_levels(steps)[0], []
    for sigma, sigma_next in pairwise([log_levels(steps)[0], *log_levels(steps)]):
        z = flow(MIXTURE, z, sigma, sigma_next) if sigma_next < sigma else z
        found.append(z)
    return found


def log_levels(steps: int) -> list[float]:
    """From BEGIN to END in equal steps of ln sigma, with two before."""
    return [BEGIN * (END / BEGIN) ** ((i - 2) / steps) for i in range(steps + 3)]


def test_3m_as_released_is_of_order_2() -> None:
    """It gives the second derivative half of its weight, 1 / 2 - phi_2 / h where the integral of exp(s) s^2 / 2 has
    twice that; exp_adams of order 3 has the whole. All from exact evaluations before the first step."""
    errors: dict[str, dict[int, float]] = {"theirs": {}, "ours": {}, "exp_adams": {}}
    for steps in (32, 64, 128):
        sigmas, exact = log_levels(steps), truth(steps)
        before = [MIXTURE(exact[i], torch.tensor(sigmas[i], dtype=F64)) for i in (0, 1)]
        with in_double(EDMDPMSolverMultistepScheduler):
            config = {"solver_order": 3, "lower_order_final": False, "final_sigmas_type": "sigma_min"}
            scheduler = made(EDMDPMSolverMultistepScheduler, steps + 2, sigmas, **config)
            scheduler.model_outputs, scheduler.lower_order_nums = [None, *before], 3
            scheduler.set_begin_index(2)
            z = exact[2]
            for t, sigma in zip(scheduler.timesteps[2:], sigmas[2:-1], strict=True):
                z = scheduler.step(edm_network(MIXTURE(z, torch.tensor(sigma)), z, sigma), t, z).prev_sample
        errors["theirs"][steps] = float((z - exact[-1]).square().mean().sqrt())
        known = [Evaluation(sigmas[i], before[i]) for i in (1, 0)]
        further = [*sigmas[2:], 0.9 * END, 0.8 * END]  # so that no order is lowered
        for name, solver in (("ours", dpmpp_3m()), ("exp_adams", exp_adams(3))):
            run = solver.run(ode_of("linear", "none"), exact[2], further, drawn(), known)
            end = next(islice(run, steps - 1, None))
            errors[name][steps] = float((end - exact[-1]).square().mean().sqrt())
            if name == "ours":
                assert_equal(end, z)
    assert order_of(errors["theirs"]) == pytest.approx(2, abs=0.15), errors
    assert order_of(errors["exp_adams"]) == pytest.approx(3, abs=0.15), errors


def weights_by_quad(rate: Callable[[float], float], times: Sequence[float], t_next: float) -> list[float]:
    """The integrals of rate times Lagrange's polynomials on `times`, from times[0] to t_next."""

    def integrand(tau: float, j: int) -> float:
        return rate(tau) * math.prod((tau - t) / (times[j] - t) for i, t in enumerate(times) if i != j)

    return [quad(integrand, times[0], t_next, args=(j,), epsrel=1e-12, epsabs=1e-14)[0] for j in range(len(times))]


def exp_minus(end: float, tau: float) -> float:
    return math.exp(tau - end)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_exp_adams_has_the_weights_of_its_integrals(steps: int, order: int) -> None:
    """z_next = (sigma_next / sigma) z + integral of exp(lambda - lambda_next) D, lambda = -ln sigma; fewer points at
    either end."""
    sigmas = Sampler(solver="exp_adams").grid(steps).tolist()
    z, past = NOISE * sigmas[0], list[tuple[float, Tensor]]()
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        past.insert(0, (-math.log(sigma), MIXTURE(z, torch.tensor(sigma, dtype=F64))))
        past = past[: min(order, steps - i)]
        if sigma_next == 0:
            z = past[0][1]
            break
        end = -math.log(sigma_next)
        weights = weights_by_quad(partial(exp_minus, end), [time for time, _ in past], end)
        z = sigma_next / sigma * z + sum(w * denoised for w, (_, denoised) in zip(weights, past, strict=True))
    row = Sampler(solver="exp_adams").model_copy(update={"order": order})
    assert_equal(ours(row, steps), z)


@all_schedules
@pytest.mark.parametrize("solver", ["deis", "lms"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_deis_and_lms_have_the_weights_of_their_integrals(schedule: str, solver: str, order: int) -> None:
    """tAB-DEIS: z_next = z + integral of sigma'(t) eps; linear multistep: x_next = x + integral of dx/dt."""
    times = times_between(schedule, 7).tolist()
    ode = ode_of(schedule, "vp")
    sigma_at, slope = sigma_of_t(schedule), slope_in(schedule, "vp")
    of_deis = solver == "deis"
    scale = (lambda sigma: 1.0) if of_deis else ode.s
    speed = cache(lambda tau: float(derivative(sigma_at, torch.tensor(tau, dtype=F64))) if of_deis else 1.0)
    x, past = scale(BEGIN) * BEGIN * NOISE, list[tuple[float, Tensor]]()
    for t, t_next in pairwise(times):
        tau = torch.tensor(t, dtype=F64)
        sigma = sigma_at(tau)
        past.insert(0, (t, eps(MIXTURE(x, sigma), x, float(sigma)) if of_deis else slope(tau, x)))
        past = past[:order]
        weights = weights_by_quad(speed, [time for time, _ in past], t_next)
        x = x + sum(w * value for w, (_, value) in zip(weights, past, strict=True))
    mine = SOLVERS[solver](order).run(ode, BEGIN * NOISE, sigma_at(torch.tensor(times, dtype=F64)).tolist(), drawn())
    *_, end = mine
    assert_equal(scale(END) * end, x)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_is_a_plain_loop(steps: int, order: int) -> None:
    sigmas = Sampler().grid(steps).tolist()
    z, history = NOISE * sigmas[0], list[Tensor]()
    for sigma, sigma_next in pairwise(sigmas):
        e = [eps(MIXTURE(z, torch.tensor(sigma, dtype=F64)), z, sigma), *history][:order]
        history = e
        match 1 if sigma_next == 0 else len(e):
            case 1:
                mean = e[0]
            case 2:
                mean = (3 * e[0] - e[1]) / 2
            case 3:
                mean = (23 * e[0] - 16 * e[1] + 5 * e[2]) / 12
            case _:
                mean = (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3]) / 24
        z = z + (sigma_next - sigma) * mean
    assert_equal(ours(Sampler(solver="ipndm").model_copy(update={"order": order}), steps), z)


PEERS: Peers = {
    "dpmpp_2m": (test_dpmpp_2m_is_that_of_diffusers,),
    "dpmpp_3m": (test_dpmpp_3m_is_that_of_diffusers, test_3m_as_released_is_of_order_2),
    "exp_adams": (
        test_dpmpp_of_order_1_is_ddim,
        test_exp_adams_of_order_2_is_dpmpp_2m_of_diffusers_in_its_form_heun,
        test_exp_adams_has_the_weights_of_its_integrals,
    ),
    "unipc": (test_unipc_is_that_of_diffusers,),
    "deis": (test_deis_in_log_rho_is_that_of_diffusers, test_deis_and_lms_have_the_weights_of_their_integrals),
    "ipndm": (test_ipndm_is_that_of_diffusers, test_ipndm_is_a_plain_loop),
    "lms": (test_lms_is_that_of_diffusers, test_deis_and_lms_have_the_weights_of_their_integrals),
    "ddim": (test_dpmpp_of_order_1_is_ddim,),
}
