"""ODE likelihoods against closed forms, autograd's Jacobian, and torchdiffeq on the same right-hand side."""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal
from torchdiffeq import odeint

from pipeline.common.errors import NotFinite, StudyError
from pipeline.diffusion.denoiser import DenoiserFunction, new_denoiser
from pipeline.diffusion.exact import Gaussian, Mixture
from pipeline.evaluation.likelihood import (
    Prior,
    check_solver,
    exact_trace,
    hutchinson_trace,
    log_likelihood,
    travel,
)
from pipeline.params import Sampler
from pipeline.sampling.counting import Counted
from pipeline.sampling.guidance import Guidance
from pipeline.sampling.multistep import Multistep
from pipeline.sampling.solvers import SOLVERS
from pipeline.training.row import Model

F64 = torch.float64
LN2 = math.log(2)
GAUSSIAN = Gaussian(0.1, 0.4)
OF_GAUSSIAN = Prior(0.1, 0.4**2)


def usable(name: str) -> bool:
    solver = Sampler(solver=name).build_solver()
    return not (solver.stochastic or solver.adaptive) and solver.order is not None


USABLE = [name for name in SOLVERS if usable(name)]


def mixture(d: int) -> Mixture:
    draw = torch.Generator().manual_seed(d)
    means = torch.randn(3, d, dtype=F64, generator=draw) / 2
    return Mixture(means, torch.tensor([0.2, 0.5, 0.3], dtype=F64), 0.2)


def density(data: Mixture, z: Tensor, sigma: float) -> Tensor:
    """ln p(z; sigma) of a mixture, (N,)."""
    variance = (data.std**2 + sigma**2) * torch.eye(z.shape[1], dtype=F64)
    parts = [MultivariateNormal(mean, variance).log_prob(z) for mean in data.means]
    return (torch.stack(parts, dim=1) + data.weights.log()).logsumexp(1)


class OfMixture(Prior):
    """The exact density at sigma_max."""

    def __init__(self, data: Mixture) -> None:
        super().__init__()
        self.__dict__["data"] = data

    def log_density(self, z: Tensor, sigma: float) -> Tensor:
        return density(self.__dict__["data"], z, sigma)


def normal(x: Tensor, sigma: float) -> Tensor:
    """ln p(x; sigma) of GAUSSIAN."""
    mean, std = torch.tensor([GAUSSIAN.mean, math.hypot(GAUSSIAN.std, sigma)], dtype=F64)
    return Normal(mean, std).log_prob(x).flatten(1).sum(1)


def off(found: Tensor, true: Tensor, dimensions: int) -> float:
    """The mean error in bits per dimension."""
    return float((found - true).abs().mean()) / dimensions / LN2


@pytest.mark.parametrize("d", [2, 8])
def test_the_best_solver_is_within_a_thousandth_of_a_bit_of_the_closed_form_at_63_evaluations(d: int) -> None:
    sampler, draw = Sampler(solver="unipc", nfe=(63,)), torch.Generator().manual_seed(0)
    data, x = mixture(d), 0.1 + 0.4 * torch.randn(64, d, dtype=F64, generator=draw)
    found = log_likelihood(GAUSSIAN, x, sampler, sampler.steps(63), prior=OF_GAUSSIAN)
    assert found.nfe == 63 and off(found.nats, normal(x, 0.002), d) < 1e-3
    x = data.sample(64, draw)
    found = log_likelihood(data, x, sampler, sampler.steps(63), prior=OfMixture(data))
    assert found.nfe == 63 and off(found.nats, density(data, x, 0.002), d) < 1e-3


@pytest.mark.parametrize("solver", USABLE)
def test_errors_of_the_likelihood_and_of_the_way_back_fall_at_the_order_of_the_solver(solver: str) -> None:
    """The spline's order is 4, and multistep solvers begin with a step of order 1."""
    sampler = Sampler(solver=solver, sigma_min=0.1, sigma_max=10)
    x = 0.1 + 0.4 * torch.randn(16, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    ode = sampler.build_solver()
    assert ode.order is not None
    order = min(ode.order, 2 if isinstance(ode, Multistep) else 4)
    errors, returns = [], []
    for steps in (97, 193):
        up = log_likelihood(GAUSSIAN, x, sampler, steps, prior=OF_GAUSSIAN)
        errors.append(off(up.nats, normal(x, 0.1), 3))
        *_, back = travel(GAUSSIAN, up.z, sampler, sampler.grid(steps)[:-1].tolist())
        returns.append(float((back - x).abs().mean()))
    assert errors[1] < 1e-9 or math.log2(errors[0] / errors[1]) > order - 0.5
    assert returns[1] < 1e-9 or math.log2(returns[0] / returns[1]) > order - 0.5


@pytest.mark.parametrize(
    "choices", [{"schedule": "vp"}, {"discretization": "exponential"}, {"schedule": "flow"}], ids=str
)
def test_every_grid_and_schedule_leads_to_the_same_density(choices: dict[str, str]) -> None:
    sampler = Sampler(**{"solver": "rk4", "nfe": (200,), "sigma_max": 80} | choices)
    x = torch.randn(8, 2, dtype=F64, generator=torch.Generator().manual_seed(1)) / 3
    found = log_likelihood(GAUSSIAN, x, sampler, 160, prior=OF_GAUSSIAN)
    assert off(found.nats, normal(x, sampler.sigma_range[0]), 2) < 1e-3


def wiggly(z: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser of images whose Jacobian is not symmetric."""
    return torch.tanh(z.roll(1, -1) * z + 0.3 * z.roll(1, -2)) + 0.1 * z**2


def test_the_exact_trace_is_that_of_autograds_jacobian() -> None:
    z = torch.randn(4, 2, 3, 4, dtype=F64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    found = exact_trace(wiggly(z, torch.tensor(1.0)), z)
    for sample, trace in zip(z.detach(), found, strict=True):
        jacobian = torch.func.jacrev(lambda x: wiggly(x[None], torch.tensor(1.0))[0])(sample)
        assert float(jacobian.reshape(24, 24).trace()) == pytest.approx(float(trace), abs=1e-10)


def test_hutchinsons_estimate_has_the_trace_as_its_mean() -> None:
    z = torch.randn(3, 1, 1, 4, dtype=F64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    denoised = wiggly(z, torch.tensor(1.0))
    exact = exact_trace(denoised, z)
    every = (
        torch.tensor(list(product((-1.0, 1.0), repeat=4)), dtype=F64).reshape(16, 1, 1, 1, 4).expand(-1, 3, -1, -1, -1)
    )
    assert torch.allclose(hutchinson_trace(denoised, z, every), exact, atol=1e-12)
    drawn = torch.randint(2, (400, 3, 1, 1, 4), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    each = torch.stack([hutchinson_trace(denoised, z, v[None]).sum() for v in drawn])
    assert (each.mean() - exact.sum()).abs() < 2 * each.std() / math.sqrt(400)


def by_torchdiffeq(denoiser: DenoiserFunction, x: Tensor, low: float, high: float) -> Tensor:
    """ln p(x) by dopri5 on z and the trace of the full Jacobian, over ln sigma."""

    def rates(log: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z, sigma = state[0], log.exp()
        one = lambda sample: denoiser(sample[None], sigma)[0]  # noqa: E731
        jacobians = [torch.autograd.functional.jacobian(one, sample) for sample in z]
        size = z[0].numel()
        traces = torch.stack([size - each.reshape(size, size).trace() for each in jacobians])
        return z - denoiser(z, sigma), traces

    times = torch.tensor([math.log(low), math.log(high)], dtype=F64)
    start = (x, torch.zeros(len(x), dtype=F64))
    z, grown = odeint(rates, start, times, rtol=1e-6, atol=1e-6, method="dopri5")
    return Prior().log_density(z[-1], high) + grown[-1]


def test_torchdiffeq_finds_the_same_on_a_network() -> None:
    row = Model(channels=8, multipliers=(1,), blocks=1)
    network = new_denoiser(row.spec(0.5, (1, 4, 4)), 0).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # else its last layer is 0
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    x = torch.randn(2, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(5)) / 2
    sampler = Sampler(solver="exp_adams", nfe=(200,), sigma_min=0.05, sigma_max=10)
    found = log_likelihood(network, x, sampler, 150)
    with torch.no_grad():
        expected = by_torchdiffeq(network, x, 0.05, 10)
    assert off(found.nats, expected, 16) < 1e-4


@pytest.mark.parametrize("solver", USABLE)
def test_calls_and_products_are_counted_where_they_happen(solver: str) -> None:
    sampler, x = Sampler(solver=solver), torch.zeros(2, 1, 2, 2, dtype=F64)
    made = Counted(lambda z, sigma: z / 2)
    found = log_likelihood(made, x, sampler, 9)
    stages = sampler.build_solver().stages
    assert found.nfe == made.nfe == 8 * stages + 1, "the trace at a level shares the call of the step from there"
    assert found.products == 9 * 4
    assert log_likelihood(made, x, sampler, 9, "hutchinson", torch.ones(3, *x.shape)).products == 9 * 3


def test_guidance_counts_both_networks() -> None:
    guided = Guidance(2.0, "unconditional")(lambda z, sigma: z / 2, lambda z, sigma: z / 3)
    assert log_likelihood(guided, torch.zeros(2, 2, dtype=F64), Sampler(), 5).nfe == 2 * 9


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    data, sampler = mixture(3), Sampler(solver="heun")
    x = data.sample(6, torch.Generator().manual_seed(6))
    together, alone = (log_likelihood(data, each, sampler, 12) for each in (x, x[2:3]))
    assert float(together.nats[2]) == pytest.approx(float(alone.nats[0]), abs=1e-10)
    assert together.z[2].allclose(alone.z[0])


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "noise": ({"solver": "ddpm"}, "solver: ddpm adds noise"),
    "noise by eta": ({"solver": "ddim", "eta": 0.5}, "solver: ddim adds noise"),
    "churn": ({"S_churn": 3}, "S_churn: 3.0 adds noise"),
    "a threshold": ({"threshold": "static"}, "threshold: static gives many z one D"),
    "its own steps": ({"solver": "rk45"}, "solver: rk45 chooses its own levels"),
    "no equation": ({"solver": "consistency"}, "solver: consistency adds noise"),
    "a fitted solver": (
        {"solver": "fitted"},
        "solver: fitted has no order, and a likelihood needs a solution of the ODE",
    ),
}


@pytest.mark.parametrize(("choices", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_likelihood_is_one_line(choices: dict[str, object], message: str) -> None:
    sampler = Sampler(**choices)
    for attempt in (check_solver, lambda row: log_likelihood(GAUSSIAN, torch.zeros(1, 2), row, 4)):
        with pytest.raises(StudyError, match=message):
            attempt(sampler)


def test_wrong_arguments_are_refused() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(StudyError, match="nfe: 1 step has one noise level above 0"):
        log_likelihood(GAUSSIAN, x, Sampler(solver="euler"), 1)
    for trace, probes in (("hutchinson", None), ("exact", torch.ones(1, 1, 2))):
        with pytest.raises(ValueError, match="probes are for trace hutchinson"):
            log_likelihood(GAUSSIAN, x, Sampler(), 4, trace, probes)


@pytest.mark.parametrize(
    "answer", [lambda z, sigma: z * math.nan, lambda z, sigma: z**2 / sigma**200], ids=["nan", "huge"]
)
def test_an_answer_that_is_not_finite_is_named(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(NotFinite, match="not finite"):
        log_likelihood(answer, torch.ones(1, 2, dtype=F64), Sampler(), 4)
