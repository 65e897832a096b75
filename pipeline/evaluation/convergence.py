"""What each solver does where the denoiser is exact: its order, its error by NFE, what it samples. No network.

Orders are measured on a part of the way, sigma from BEGIN to END in equal steps of t, where a formula shows what it is;
errors and distances are those of whole samplers, from pure noise to 0.
"""

import math
from collections.abc import Iterator
from functools import cache, partial
from itertools import islice
from statistics import linear_regression, mean, stdev
from typing import Any

import torch
from torch import Tensor

from pipeline.common.randomness import generator
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import is_points, to_range
from pipeline.diffusion.exact import Gaussian, Mixture, empirical, flow
from pipeline.sampling.loop import sample
from pipeline.sampling.multistep import Evaluation, Multistep
from pipeline.sampling.ode import Ode, Solver
from pipeline.sampling.row import Sampler
from pipeline.sampling.solvers import SOLVERS

BEGIN, END = 1.5, 0.6
STEPS = (16, 32, 64, 128, 256, 512)  # of which the finest REGRESSED count whose error is not yet rounding's
REGRESSED = 3
BEYOND = 5  # levels behind END, so that no solver lowers its order before it
ROUNDING = 1e-11
TRAJECTORIES, ENDS = 64, 128  # for the orders, for the errors
SAME = 1e-7  # an error below which an end is the exact one: on the data, the same image
BUDGETS = (4, 7, 11, 19, 35, 63, 127)
TOLERANCES = (0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-5, 1e-6)
SAMPLES, SEEDS, DIRECTIONS = 4096, 5, 16
COMPARED = ("euler", "heun", "dpmpp_2m")  # deterministic ones, beside the stochastic ones' distances
IMAGES = 256  # of the study's, in the data-set oracle
NEARLY_0 = 1e-4


def entries() -> dict[str, Sampler]:
    """Every solver as it is by default, and what else of them the report compares: by the name that it calls them."""
    more: dict[str, dict[str, Any]] = {
        "unipc, order 2": {"solver": "unipc", "order": 2},
        "heun, S_churn 2": {"solver": "heun", "S_churn": 2},
        "ddim, eta 1": {"solver": "ddim", "eta": 1},
        "ddpm, beta": {"solver": "ddpm", "variance": "beta"},
        "rk45, schedule flow": {"solver": "rk45", "schedule": "flow"},
        "euler_maruyama, 1 Langevin step": {"solver": "euler_maruyama", "corrector_steps": 1},
    }
    rows = {name: {"solver": name} for name in SOLVERS} | more
    return {name: Sampler(**row, nfe=BUDGETS) for name, row in rows.items()}


def mixture() -> Mixture:
    """Five Gaussians of standard deviation 0.2 in the plane, unlike in place and weight."""
    means = torch.tensor([[0.9, 0.3], [-0.2, 0.8], [-0.8, -0.1], [0.1, -0.9], [0.3, 0.1]], dtype=torch.float64)
    return Mixture(means, torch.tensor([0.3, 0.1, 0.25, 0.15, 0.2], dtype=torch.float64), 0.2)


def in_span(oracle: Mixture) -> Mixture:
    """The mixture in orthonormal coordinates of its means' span, where these are fewer than its dimensions.

    For a mixture of single points (std 0) that loses nothing: denoised values lie in the span, white noise is white in
    it, and what is beyond it shrinks with sigma alone, to nothing at 0. An adaptive solver's error is then a mean over
    these coordinates.
    """
    flat = oracle.means.flatten(1)
    if len(flat) >= flat.shape[1]:
        return oracle
    basis, _ = torch.linalg.qr(flat.T)
    return Mixture(flat @ basis, oracle.weights, oracle.std)


def regressed(errors: dict[int, float]) -> float:
    """The order that errors by number of steps show: the slope of log error over log steps at their finest end."""
    clear = sorted((n, e) for n, e in errors.items() if e > ROUNDING)[-REGRESSED:]
    return -linear_regression([math.log(n) for n, _ in clear], [math.log(e) for _, e in clear]).slope


def _levels(ode: Ode, steps: int, beyond: int) -> list[float]:
    """Noise levels from BEGIN to END in equal steps of t, `beyond` of them further, so that no end is near."""
    first, last = ode.t(BEGIN), ode.t(END)
    return [ode.sigma(first + i * (last - first) / steps) for i in range(steps + beyond + 1)]


@cache
def _start(oracle: Mixture) -> tuple[Tensor, Tensor]:
    """Points of the noisy mixture at BEGIN, (TRAJECTORIES, d), and where the exact flow has taken them by END."""
    draws = generator("convergence", 0)
    noise = torch.randn(TRAJECTORIES, oracle.means.shape[1], dtype=torch.float64, generator=draws)
    z = oracle.sample(TRAJECTORIES, draws) + BEGIN * noise
    return z, flow(oracle, z, BEGIN, END)


def trajectory_error(solver: Solver, ode: Ode, oracle: Mixture, steps: int) -> float:
    """The root mean square error of z at END after `steps` steps from BEGIN, of a deterministic solver.

    A multistep one gets the evaluations that came before from the exact flow, so that its full order is seen.
    """
    z, expected = _start(oracle)
    sigmas = _levels(ode, steps, BEYOND)
    if isinstance(solver, Multistep):
        known, behind, sigma = [], z, BEGIN
        for earlier in islice(_before(ode, steps), solver.points - 1):
            behind, sigma = flow(oracle, behind, sigma, earlier), earlier
            known.append(Evaluation(sigma, solver.evaluate(ode, behind, sigma)))
        states = solver.run(ode, z, sigmas, _silent, known)
    else:
        states = solver.run(ode, z, sigmas, _silent)
    end = next(islice(states, steps - 1, None))
    return float((end - expected).square().mean().sqrt())


def _before(ode: Ode, steps: int) -> Iterator[float]:
    """The noise levels before BEGIN at the same steps of t."""
    first, last = ode.t(BEGIN), ode.t(END)
    return (ode.sigma(first - i * (last - first) / steps) for i in range(1, steps))


def _silent(z: Tensor) -> Tensor:
    raise AssertionError("a deterministic solver asked for noise")


def variance_error(solver: Solver, ode: Ode, gaussian: Gaussian, steps: int) -> float:
    """How far the variance of z at END is from right after `steps` steps from noisy Gaussian data of mean 0 at BEGIN.

    Without sampling: on such data a step is linear in z and in its noise, so the variance is what z = 1 without noise
    ends as, squared, and what each noise by itself ends as, squared.
    """
    calls = 0

    def one_at_a_time(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        noise = torch.zeros_like(z)
        noise[calls] = 1
        return noise

    z = torch.zeros(steps + 2, 1, dtype=torch.float64)
    z[0] = math.hypot(gaussian.std, BEGIN)
    end = next(islice(solver.run(ode, z, _levels(ode, steps, beyond=1), one_at_a_time), steps - 1, None))
    return abs(float(end.square().sum()) - gaussian.std**2 - END**2)


def measured_order(sampler: Sampler, oracle: Mixture) -> float:
    """The order of a sampler's solver in its schedule and scaling: of trajectories, or of the variance where it adds
    noise."""
    solver = sampler.build_solver()
    if solver.stochastic:
        gaussian = Gaussian(0.0, 0.5)
        ode = Ode(gaussian, sampler.build_schedule(), sampler.build_scaling())
        return regressed({n: variance_error(solver, ode, gaussian, n) for n in STEPS})
    ode = Ode(oracle, sampler.build_schedule(), sampler.build_scaling())
    return regressed({n: trajectory_error(solver, ode, oracle, n) for n in STEPS})


def exact_ends(oracle: Mixture, noise: Tensor, sigma_max: float) -> Tensor:
    """Where the exact flow takes sigma_max * noise by sigma = 0: to what is denoised at a sigma close to it."""
    z = flow(oracle, noise.double() * sigma_max, sigma_max, NEARLY_0)
    return oracle(z, torch.tensor(NEARLY_0, dtype=torch.float64))


def runs(sampler: Sampler) -> Iterator[tuple[Sampler, int]]:
    """A sampler with each number of steps that BUDGETS pay for; an adaptive one with each of TOLERANCES."""
    if sampler.build_solver().adaptive:
        yield from ((sampler.model_copy(update={"rtol": tol, "atol": tol}), 2) for tol in TOLERANCES)
    else:
        yield from ((sampler, steps) for steps in sorted({sampler.steps(budget) for budget in BUDGETS}))


def trajectory_errors(
    name: str, sampler: Sampler, oracle: Mixture, noise: Tensor, ends: Tensor, size: int
) -> list[dict[str, Any]]:
    """The root mean square error of x0 against the exact flow's `ends`, by number of steps and counted NFE; the mean is
    over the `size` values of an image or a point."""
    found = []
    for row, steps in runs(sampler):
        made = sample(oracle, noise, row, steps, _silent)
        error = float((made.x0 - ends).norm()) / math.sqrt(len(ends) * size)
        found.append({"row": name, "steps": steps, "nfe": made.nfe, "error": error if error > SAME else 0.0})
    return found


def quantiles(oracle: Mixture, direction: Tensor, count: int) -> Tensor:
    """The quantiles (i + 1/2) / count of the mixture's projection on a direction (d,), by bisection: (count,)."""
    means, wanted = oracle.means @ direction, (torch.arange(count, dtype=torch.float64) + 0.5) / count
    reach = 10 * oracle.std
    low, high = (torch.full_like(wanted, float(end)) for end in (means.min() - reach, means.max() + reach))
    for _ in range(60):
        middle = (low + high) / 2
        below = (torch.special.ndtr((middle[:, None] - means) / oracle.std) * oracle.weights).sum(1) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


class Distance:
    """How far samples (SAMPLES, 2) lie from a mixture in the plane: the mean over DIRECTIONS of Wasserstein's distance
    of order 1 between their projections and the mixture's, whose quantiles are exact."""

    def __init__(self, oracle: Mixture) -> None:
        angles = torch.arange(DIRECTIONS, dtype=torch.float64) * math.pi / DIRECTIONS
        self.directions = torch.stack([angles.cos(), angles.sin()])  # (2, DIRECTIONS)
        self.quantiles = torch.stack([quantiles(oracle, u, SAMPLES) for u in self.directions.T], dim=1)

    def __call__(self, x0: Tensor) -> float:
        return float(((x0 @ self.directions).sort(dim=0).values - self.quantiles).abs().mean())


def distances(name: str, sampler: Sampler, oracle: Mixture, distance: Distance) -> list[dict[str, Any]]:
    """The distance of what a sampler makes from pure noise, by number of steps: mean and deviation over SEEDS seeds."""
    found = []
    for row, steps in runs(sampler):
        values, nfe = [], 0
        for seed in range(SEEDS):
            draws = generator("convergence", 1, seed)
            randn = lambda z, draws=draws: torch.randn(z.shape, dtype=z.dtype, generator=draws)  # noqa: E731
            made = sample(oracle, randn(torch.empty(SAMPLES, 2, dtype=torch.float64)), row, steps, randn)
            nfe = made.nfe
            values.append(distance(made.x0))
        found.append(
            {"row": name, "stochastic": row.build_solver().stochastic, "steps": steps, "nfe": nfe} | _spread(values)
        )
    return found


def _spread(values: list[float]) -> dict[str, float]:
    return {"distance": mean(values), "sd": stdev(values)}


def measure_solvers(images: Tensor) -> dict[str, Any]:
    """Everything that the report shows of solvers on exact denoisers; images (n, C, H, W), uint8, or points (n, 2),
    are the study's."""
    plane, data = mixture(), empirical(to_range(images[:IMAGES]))
    sizes = {"mixture": plane.means[0].numel(), "data": data.means[0].numel()}
    oracles = {"mixture": plane, "data": in_span(data)}
    draws = generator("convergence", 2)
    noises = {n: torch.randn(ENDS, *o.means.shape[1:], generator=draws) for n, o in oracles.items()}
    sigma_max = Sampler().sigma_range[1]
    ends = {name: exact_ends(oracle, noises[name], sigma_max) for name, oracle in oracles.items()}
    distance = Distance(plane)

    def measure(name: str, sampler: Sampler) -> dict[str, list[dict[str, Any]]]:
        solver = sampler.build_solver()
        order = {
            "row": name,
            "kind": "sde" if solver.stochastic else "ode",
            "stochastic": solver.stochastic,
            "order": solver.order,
            "measured": measured_order(sampler, plane) if has_order(sampler) else None,
            "evaluations_per_step": solver.stages,
            "convention": f"steps in {solver.variable}",
        }
        errors: list[dict[str, Any]] = []
        for place, oracle in oracles.items() if not solver.stochastic else ():
            found = trajectory_errors(name, sampler, oracle, noises[place], ends[place], sizes[place])
            errors += [{"oracle": place} | error for error in found]
        sampled = distances(name, sampler, plane, distance) if solver.stochastic or name in COMPARED else []
        return {"orders": [order], "errors": errors, "distances": sampled}

    tables = side_by_side([partial(measure, name, sampler) for name, sampler in entries().items()])
    exact = [distance(plane.sample(SAMPLES, generator("convergence", 3, seed))) for seed in range(SEEDS)]
    things = "points" if is_points(images) else "images"
    settings = {
        "mixture": f"{len(plane.means)} Gaussians of standard deviation {plane.std} in the plane",
        "data": f"the optimal denoiser of the study's first {len(data.means)} {things}",
        "distance": f"the mean Wasserstein distance of order 1 between projections on {DIRECTIONS} directions",
        "seeds": SEEDS,
        "samples": SAMPLES,
    }
    joined = {key: [row for table in tables for row in table[key]] for key in ("orders", "errors", "distances")}
    return {"settings": settings, **joined, "floor": _spread(exact)}


def has_order(sampler: Sampler) -> bool:
    """Whether an order can be measured: steps of a solver's own choice have none, and Langevin's steps, whose length
    does not shrink with the grid's, keep a bias of their own."""
    return not sampler.build_solver().adaptive and not sampler.corrector_steps
