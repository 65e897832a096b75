"""Solvers on exact denoisers: their orders, their errors by NFE, and the distances of their samples. No network.

Orders are measured from sigma = BEGIN to END in equal steps of t. Errors and distances are those of whole samplers,
from pure noise to 0.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, islice
from statistics import linear_regression, mean, stdev
from typing import Any, Literal

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
STEPS = (16, 32, 64, 128, 256, 512)  # the order is fitted to the finest REGRESSED with an error above ROUNDING
REGRESSED = 3
BEYOND = 5  # levels after END, so that no solver lowers its order before END
ROUNDING = 1e-11
TRAJECTORIES, ENDS = 64, 128  # samples for the orders and for the errors
SAME = 1e-7  # a smaller error counts as 0: on the data, it is the same image
BUDGETS = (4, 7, 11, 19, 35, 63, 127)
TOLERANCES = (0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-5, 1e-6)
SAMPLES, SEEDS, DIRECTIONS = 4096, 5, 16
COMPARED = ("euler", "heun", "dpmpp_2m")  # deterministic solvers whose distances are measured, too
IMAGES = 256  # images of the study in the exact denoiser of its data
NEARLY_0 = 1e-4


@dataclass(frozen=True)
class Order:
    """A solver's order by theory and as measured, None if it has none, and its evaluations per step."""

    row: str
    kind: Literal["ode", "sde"]
    stochastic: bool
    order: int | None
    measured: float | None
    evaluations_per_step: int
    convention: str


@dataclass(frozen=True)
class EndError:
    """The root mean square error of x0 after a number of steps, on the exact denoiser `oracle`."""

    oracle: str
    row: str
    steps: int
    nfe: int
    error: float


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds of the distance between samples and a mixture."""

    distance: float
    sd: float


@dataclass(frozen=True)
class SampleDistance:
    """The distance of a solver's samples from a mixture after a number of steps: mean and deviation over seeds."""

    row: str
    stochastic: bool
    steps: int
    nfe: int
    distance: float
    sd: float


@dataclass(frozen=True)
class Settings:
    """The settings of all measurements, in words."""

    mixture: str
    data: str
    distance: str
    seeds: int
    samples: int


@dataclass(frozen=True)
class Tables:
    """All measurements of solvers on exact denoisers. floor: the distance of the mixture's own samples."""

    settings: Settings
    orders: list[Order]
    errors: list[EndError]
    distances: list[SampleDistance]
    floor: Spread

    @property
    def largest_difference(self) -> float:
        """The largest difference between a measured order and the order by theory."""
        return max(abs(o.measured - o.order) for o in self.orders if o.measured is not None and o.order is not None)


def entries() -> dict[str, Sampler]:
    """Every solver of the ODE or SDE with its defaults, and further variants that the report compares, by name."""
    more: dict[str, dict[str, Any]] = {
        "unipc, order 2": {"solver": "unipc", "order": 2},
        "unipc, bh1": {"solver": "unipc", "variant": "bh1"},
        "heun, S_churn 2": {"solver": "heun", "S_churn": 2},
        "ddim, eta 1": {"solver": "ddim", "eta": 1},
        "ddpm, beta": {"solver": "ddpm", "variance": "beta"},
        "rk45, schedule flow": {"solver": "rk45", "schedule": "flow"},
        "euler_maruyama, 1 Langevin step": {"solver": "euler_maruyama", "corrector_steps": 1},
    }
    rows = {name: {"solver": name} for name in SOLVERS} | more
    found = {name: Sampler(**row, nfe=BUDGETS) for name, row in rows.items()}
    return {name: row for name, row in found.items() if row.build_solver().order or row.build_solver().adaptive}


def mixture() -> Mixture:
    """Five Gaussians of standard deviation 0.2 in the plane, with different means and weights."""
    means = torch.tensor([[0.9, 0.3], [-0.2, 0.8], [-0.8, -0.1], [0.1, -0.9], [0.3, 0.1]], dtype=torch.float64)
    return Mixture(means, torch.tensor([0.3, 0.1, 0.25, 0.15, 0.2], dtype=torch.float64), 0.2)


def in_span(oracle: Mixture) -> Mixture:
    """The mixture in orthonormal coordinates of its means' span, if it has fewer means than dimensions.

    For a mixture of single points (std 0) nothing is lost: denoised values lie in the span, white noise is white in it,
    and components outside of it shrink in proportion to sigma, to 0. An adaptive solver's error is then a mean over
    these coordinates.
    """
    flat = oracle.means.flatten(1)
    if len(flat) >= flat.shape[1]:
        return oracle
    basis, _ = torch.linalg.qr(flat.T)
    return Mixture(flat @ basis, oracle.weights, oracle.std)


def regressed(errors: dict[int, float]) -> float:
    """The order that errors by number of steps show: minus the slope of log error over log steps, at fine steps."""
    clear = sorted((n, e) for n, e in errors.items() if e > ROUNDING)[-REGRESSED:]
    return -linear_regression([math.log(n) for n, _ in clear], [math.log(e) for _, e in clear]).slope


def _levels(ode: Ode, steps: int, beyond: int) -> list[float]:
    """Noise levels from BEGIN to END in equal steps of t, and `beyond` further ones, so that the end is not near."""
    first, last = ode.t(BEGIN), ode.t(END)
    return [ode.sigma(first + i * (last - first) / steps) for i in range(steps + beyond + 1)]


@cache
def _start(oracle: Mixture) -> tuple[Tensor, Tensor]:
    """Points of the noisy mixture at BEGIN, (TRAJECTORIES, d), and the points at END to which the exact flow leads."""
    draws = generator("convergence", 0)
    noise = torch.randn(TRAJECTORIES, oracle.means.shape[1], dtype=torch.float64, generator=draws)
    z = oracle.sample(TRAJECTORIES, draws) + BEGIN * noise
    return z, flow(oracle, z, BEGIN, END)


def trajectory_error(solver: Solver, ode: Ode, oracle: Mixture, steps: int) -> float:
    """The root mean square error of z at END after `steps` steps of a deterministic solver from BEGIN.

    A multistep solver gets earlier evaluations from the exact flow, so that it has its full order from the first step.
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
    """The noise levels before BEGIN, in the same steps of t."""
    first, last = ode.t(BEGIN), ode.t(END)
    return (ode.sigma(first - i * (last - first) / steps) for i in range(1, steps))


def _silent(z: Tensor) -> Tensor:
    raise AssertionError("a deterministic solver asked for noise")


def variance_error(solver: Solver, ode: Ode, gaussian: Gaussian, steps: int) -> float:
    """The error of the variance of z at END after `steps` steps from noisy Gaussian data of mean 0 at BEGIN.

    No sampling is needed: on such data a step is linear in z and in its noise. So the variance is the sum of squares of
    the ends of z = std without noise and of each noise alone.
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
    """The order of a sampler's solver in its schedule and scaling: of trajectories, or of the variance if it adds
    noise."""
    solver = sampler.build_solver()
    if solver.stochastic:
        gaussian = Gaussian(0.0, 0.5)
        ode = Ode(gaussian, sampler.build_schedule(), sampler.build_scaling())
        return regressed({n: variance_error(solver, ode, gaussian, n) for n in STEPS})
    ode = Ode(oracle, sampler.build_schedule(), sampler.build_scaling())
    return regressed({n: trajectory_error(solver, ode, oracle, n) for n in STEPS})


def exact_ends(oracle: Mixture, noise: Tensor, sigma_max: float) -> Tensor:
    """The points to which the exact flow takes sigma_max * noise at sigma = 0: denoised at a sigma close to 0."""
    z = flow(oracle, noise.double() * sigma_max, sigma_max, NEARLY_0)
    return oracle(z, torch.tensor(NEARLY_0, dtype=torch.float64))


def runs(sampler: Sampler) -> Iterator[tuple[Sampler, int]]:
    """A sampler with each number of steps that BUDGETS pay for; an adaptive sampler with each of TOLERANCES."""
    if sampler.build_solver().adaptive:
        yield from ((sampler.model_copy(update={"rtol": tol, "atol": tol}), 2) for tol in TOLERANCES)
    else:
        yield from ((sampler, steps) for steps in sampler.model_copy(update={"nfe": BUDGETS}).step_counts)


def trajectory_errors(
    place: str, name: str, sampler: Sampler, oracle: Mixture, noise: Tensor, ends: Tensor, size: int
) -> list[EndError]:
    """The root mean square error of x0 against the exact flow's `ends`, by number of steps and counted NFE.

    place: the name of the oracle. size: the number of values of an image or a point, over which the mean is taken.
    """
    errors = []
    for row, steps in runs(sampler):
        samples = sample(oracle, noise, row, steps, _silent)
        error = float((samples.x0 - ends).norm()) / math.sqrt(len(ends) * size)
        errors.append(EndError(place, name, steps, samples.nfe, error if error > SAME else 0.0))
    return errors


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
    """The distance of samples (SAMPLES, 2) from a mixture in the plane: the mean over DIRECTIONS of the Wasserstein
    distance of order 1 between their projections and the mixture's, whose quantiles are exact."""

    def __init__(self, oracle: Mixture) -> None:
        angles = torch.arange(DIRECTIONS, dtype=torch.float64) * math.pi / DIRECTIONS
        self.directions = torch.stack([angles.cos(), angles.sin()])  # (2, DIRECTIONS)
        self.quantiles = torch.stack([quantiles(oracle, u, SAMPLES) for u in self.directions.T], dim=1)

    def __call__(self, x0: Tensor) -> float:
        return float(((x0 @ self.directions).sort(dim=0).values - self.quantiles).abs().mean())


def distances(name: str, sampler: Sampler, oracle: Mixture, distance: Distance) -> list[SampleDistance]:
    """The distance of a sampler's samples from the mixture, by number of steps: over SEEDS seeds."""
    found = []
    for row, steps in runs(sampler):
        values, nfe = [], 0
        for seed in range(SEEDS):
            draws = generator("convergence", 1, seed)
            randn = lambda z, draws=draws: torch.randn(z.shape, dtype=z.dtype, generator=draws)  # noqa: E731
            samples = sample(oracle, randn(torch.empty(SAMPLES, 2, dtype=torch.float64)), row, steps, randn)
            nfe = samples.nfe
            values.append(distance(samples.x0))
        found.append(SampleDistance(name, row.build_solver().stochastic, steps, nfe, mean(values), stdev(values)))
    return found


@dataclass(frozen=True)
class Problem:
    """What solvers are measured on: exact denoisers by name, noise and the ends to which the exact flow takes it, the
    number of values of an image or a point, and the distance from the mixture, with that of its own samples."""

    oracles: dict[str, Mixture]
    noises: dict[str, Tensor]
    ends: dict[str, Tensor]
    sizes: dict[str, int]
    distance: Distance
    floor: Spread


def problem(images: Tensor) -> Problem:
    """The mixture in the plane, and the data: the study's first IMAGES images (n, C, H, W), uint8, or points (n, 2)."""
    plane, data = mixture(), empirical(to_range(images[:IMAGES]))
    oracles = {"mixture": plane, "data": in_span(data)}
    draws = generator("convergence", 2)
    noises = {n: torch.randn(ENDS, *o.means.shape[1:], generator=draws) for n, o in oracles.items()}
    sigma_max = Sampler().sigma_range[1]
    distance = Distance(plane)
    exact = [distance(plane.sample(SAMPLES, generator("convergence", 3, seed))) for seed in range(SEEDS)]
    return Problem(
        oracles=oracles,
        noises=noises,
        ends={name: exact_ends(oracle, noises[name], sigma_max) for name, oracle in oracles.items()},
        sizes={"mixture": plane.means[0].numel(), "data": data.means[0].numel()},
        distance=distance,
        floor=Spread(mean(exact), stdev(exact)),
    )


def measure_solvers(images: Tensor) -> Tables:
    """Measure all solvers on exact denoisers. images: the study's, (n, C, H, W), uint8, or points (n, 2)."""
    [given] = side_by_side([partial(problem, images)])  # on one thread: last digits depend on how many share a sum
    plane = given.oracles["mixture"]

    def measure(name: str, sampler: Sampler) -> tuple[Order, list[EndError], list[SampleDistance]]:
        solver, errors = sampler.build_solver(), list[EndError]()
        order = Order(
            row=name,
            kind="sde" if solver.stochastic else "ode",
            stochastic=solver.stochastic,
            order=solver.order,
            measured=measured_order(sampler, plane) if has_order(sampler) else None,
            evaluations_per_step=solver.stages,
            convention=f"steps in {solver.variable}",
        )
        for place, oracle in given.oracles.items() if not solver.stochastic else ():
            noise, ends = given.noises[place], given.ends[place]
            errors += trajectory_errors(place, name, sampler, oracle, noise, ends, given.sizes[place])
        sampled = distances(name, sampler, plane, given.distance) if solver.stochastic or name in COMPARED else []
        return order, errors, sampled

    measured = side_by_side([partial(measure, name, sampler) for name, sampler in entries().items()])
    orders, errors, sampled = zip(*measured, strict=True)
    things = "points" if is_points(images) else "images"
    settings = Settings(
        mixture=f"{len(plane.means)} Gaussians of standard deviation {plane.std} in the plane",
        data=f"the optimal denoiser of the study's first {len(images[:IMAGES])} {things}",
        distance=f"the mean Wasserstein distance of order 1 between projections on {DIRECTIONS} directions",
        seeds=SEEDS,
        samples=SAMPLES,
    )
    return Tables(settings, list(orders), list(chain(*errors)), list(chain(*sampled)), given.floor)


def has_order(sampler: Sampler) -> bool:
    """Whether an order can be measured. An adaptive solver has none; Langevin steps, whose length does not shrink with
    the grid's steps, leave a bias."""
    return not sampler.build_solver().adaptive and not sampler.corrector_steps
