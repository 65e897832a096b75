"""Fit the numbers of a solver to a network, through the unrolled solver, to the end points of a fine solution.

The teacher solves the ODE from the same noise with many steps of Heun's method. L-BFGS lowers the mean squared distance
to its end points, first over the levels alone and then over all free numbers. It begins with the levels of the start,
or with higher ones if these score better. The best numbers seen are kept, so that a fit never scores worse on its
objective than its start.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipeline.common.devices import state_type
from pipeline.common.errors import NotFinite
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.sampling.fitted import STARTS, Numbers
from pipeline.sampling.loop import sample
from pipeline.sampling.protocols import FIRST_STEPS
from pipeline.sampling.row import Sampler

CHUNK, VALUES = 256, 2**17  # samples per call of the network, at most, and about how many values
TEACHER_STEPS = 32
ITERATIONS = 20, 80  # of L-BFGS at most: over the levels alone, and over all free numbers
STEPS = 480  # iterations times steps, at most, in the second round: more steps begin nearer
HISTORY = 20
SHRUNK = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # factors on steps of ln sigma to begin with: no gradient moves low levels
LEAST_GAIN = 1e-7  # of the objective at the start: the change and the gradient below which a round ends
REFUSED = 1e6  # times the start's objective, for one that is not finite: a line search then takes a smaller step
BACKWARD = 2  # a gradient costs as much as two evaluations (Griewank and Walther 2008, sec. 4.4: at most three)

DenoiserOf = Callable[[range], DenoiserFunction]


@dataclass(frozen=True)
class Fit:
    """Fitted numbers, and root-mean-square distances from the teacher's end points.

    start and error: on the noise that the numbers were fitted to; heldout_start and heldout: on other noise.
    calls: network calls for the fit, of one sample each, where a gradient counts as two.
    """

    numbers: Numbers
    start: float
    error: float
    heldout_start: float
    heldout: float
    calls: int


class _Free:
    """The free numbers of a sampler at a number of steps, as tensors that need gradients."""

    def __init__(self, sampler: Sampler, steps: int) -> None:
        self.start, self.sigmas, self.first_step = STARTS[sampler.start], sampler.grid(steps), sampler.first_step
        self.threshold = sampler.build_threshold()
        falls = -self.sigmas[self.sigmas > 0].log().diff()
        self.log_falls, self.told = falls.log(), torch.zeros(steps, dtype=torch.float64)
        self.change = torch.zeros_like(self.start.weights(self.sigmas))
        self.is_told = torch.ones(steps, dtype=torch.float64)  # an analytic step asks no network
        self.is_told[: int(self.first_step == "analytic")] = 0
        self.used = torch.ones_like(self.change).tril()  # a step has no more evaluations than were made
        levels = [self.log_falls] if sampler.fit != "coefficients" else []
        told = [self.told] if sampler.told == "fitted" else []
        weights = [self.change] if sampler.fit != "times" else []
        rounds = [levels if told or weights else [], levels + told + weights]
        self.rounds = [[each for each in one if each.numel()] for one in rounds]
        for each in self.rounds[-1]:
            each.requires_grad_()

    def numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Levels (N + 1,), levels told (N,) and weights (N, POINTS)."""
        falls = self.log_falls.exp()
        if self.sigmas[-1] > 0:  # both ends are fixed
            falls = falls * ((self.sigmas[0] / self.sigmas[-1]).log() / falls.sum())
        inner = self.sigmas[0] * (-falls.cumsum(0)).exp()
        ends = self.sigmas[:1], self.sigmas[-1:]
        sigmas = torch.cat([ends[0], inner[: len(self.sigmas) - 2], ends[1]])
        return (
            sigmas,
            sigmas[:-1] * (self.told * self.is_told).exp(),
            self.start.weights(sigmas) + self.change * self.used,
        )

    def solved(self, denoise: DenoiserFunction, z: Tensor) -> Tensor:
        """The solution from z (N, ...)."""
        answers = FIRST_STEPS[self.first_step](denoise)

        def thresholded(z: Tensor, sigma: Tensor) -> Tensor:
            return self.threshold(answers(z, sigma))

        sigmas, told, weights = self.numbers()
        rows = [row.unbind() for row in weights.unbind()]
        *_, z = self.start.steps(thresholded, z, sigmas.unbind(), told.unbind(), rows)
        return z


def chunk_size(values: int) -> int:
    """The samples per call of the network, from the number of values of one sample."""
    return min(CHUNK, max(16, VALUES // values))


def chunks(first: int, count: int, size: int) -> list[range]:
    """The indices of `count` samples from `first` on, `size` at a time."""
    return [range(i, min(i + size, first + count)) for i in range(first, first + count, size)]


class _Problem:
    """The objective: noise and the teacher's end points, a chunk of samples each."""

    def __init__(self, denoiser_of: DenoiserOf, noise: Tensor, sampler: Sampler, steps: int, first: int) -> None:
        teacher = teacher_of(sampler, steps)
        self.chunks: list[tuple[DenoiserFunction, Tensor, Tensor]] = []
        for indices in chunks(first, len(noise), chunk_size(noise[0].numel())):
            denoiser = denoiser_of(indices)
            own = noise[indices.start - first : indices.stop - first]
            target = sample(denoiser, own, teacher, TEACHER_STEPS).x0
            z = own.to(state_type(own.device)) * teacher.sigma_range[1]
            self.chunks.append((partial(_denoised, denoiser), z, target))
        self.numbers = noise.numel()

    def losses(self, free: _Free) -> Iterator[Tensor]:
        """The share of each chunk in the mean squared distance."""
        for denoise, z, target in self.chunks:
            yield (free.solved(denoise, z) - target).square().sum() / self.numbers

    @torch.no_grad()
    def error(self, free: _Free) -> float:
        return float(sum(map(float, self.losses(free)))) ** 0.5


def _denoised(denoiser: DenoiserFunction, z: Tensor, sigma: Tensor) -> Tensor:
    if z.is_cuda:  # its memory holds the activations of one call, not of all steps
        answer: Tensor = checkpoint(denoiser, z, sigma, use_reentrant=False)
        return answer.to(z.dtype)
    return denoiser(z, sigma).to(z.dtype)


def iterations(steps: int) -> tuple[int, int]:
    """The most iterations of the two rounds of a fit for so many steps."""
    first, second = ITERATIONS
    return first, min(second, -(-STEPS // steps))


def most_calls(sampler: Sampler, steps: int) -> int:
    """The network calls of a fit that uses all its iterations, with what it costs to know its held-out error."""
    teacher, own = teacher_of(sampler, steps).evaluations(TEACHER_STEPS), sampler.evaluations(steps)
    search = (1 + BACKWARD) * sum(iterations(steps)) * 5 // 4 + len(SHRUNK)
    return sampler.fit_images * (2 * (teacher + 2 * own) + own * search)


def teacher_of(sampler: Sampler, steps: int) -> Sampler:
    """The fine solution of a sampler's ODE: Heun's method on EDM's grid.

    It begins at the first of the sampler's levels. If the sampler ends above 0, so does it, at the same level.
    """
    levels = sampler.grid(steps)
    high = float(levels[0])
    low = float(levels[-1]) or min(sampler.sigma_range[0], high / 2)
    kept = {key: getattr(sampler, key) for key in ("guidance", "guide", "threshold", "threshold_percentile")}
    return Sampler(sigma_min=low, sigma_max=high, end=sampler.end, nfe=(2 * TEACHER_STEPS,), **kept)


def fit(denoiser_of: DenoiserOf, noise: Tensor, sampler: Sampler, steps: int) -> Fit:
    """Fit a sampler's free numbers at a number of steps.

    denoiser_of: the denoiser of the samples with these indices, guided and with their labels; it must pass gradients
    on to z and sigma. noise: standard normal, (2 fit_images, ...), on the denoiser's device; the second half is held
    out. Raises NotFinite if the solution of the teacher, of the start, or from held-out noise is not finite.
    """
    free = _Free(sampler, steps)
    images = sampler.fit_images
    problem = _Problem(denoiser_of, noise[:images], sampler, steps, 0)
    heldout = _Problem(denoiser_of, noise[images:], sampler, steps, images)
    start, heldout_start = problem.error(free), heldout.error(free)
    search = _Search(problem, free, start**2)
    search.shrink()
    for parameters, count in zip(free.rounds, iterations(steps), strict=True):
        search.run(parameters, count)
    search.restore()
    calls = images * (
        teacher_of(sampler, steps).evaluations(TEACHER_STEPS)
        + ((1 + BACKWARD) * search.gradients + search.trials) * sampler.evaluations(steps)
    )
    with torch.no_grad():
        numbers = Numbers.of(*free.numbers())
    found = Fit(numbers, start, problem.error(free), heldout_start, heldout.error(free), calls)
    if not (math.isfinite(found.heldout_start) and math.isfinite(found.heldout)):
        raise NotFinite("solver fitted: the solution from noise that is held out is not finite")
    return found


class _Search:
    """L-BFGS over the free numbers, which remembers the best ones."""

    def __init__(self, problem: _Problem, free: _Free, start: float) -> None:
        if not math.isfinite(start):
            raise NotFinite("solver fitted: the solution that fitting starts with is not finite")
        self.problem, self.free, self.start = problem, free, start
        self.gradients = self.trials = 0
        self.best, self.numbers = start, self._copy()

    def _copy(self) -> list[Tensor]:
        return [each.detach().clone() for each in self.free.rounds[-1]]

    @torch.no_grad()
    def shrink(self) -> None:
        """Try levels that end higher, if they are free and the last step leads to 0."""
        levels = self.free.log_falls
        if not levels.requires_grad or not levels.numel() or self.free.sigmas[-1] > 0:
            return
        first = levels.clone()
        for factor in SHRUNK:
            levels.copy_(first + math.log(factor))
            self.trials += 1
            if (total := self.problem.error(self.free) ** 2) < self.best:
                self.best, self.numbers = total, self._copy()

    def run(self, parameters: list[Tensor], iterations: int) -> None:
        """One round over some of the numbers, from the best ones so far."""
        self.restore()
        if not parameters:
            return
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=iterations,
            history_size=HISTORY,
            tolerance_grad=LEAST_GAIN * self.start,
            tolerance_change=LEAST_GAIN * self.start,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(partial(self._objective, parameters))

    def _objective(self, parameters: list[Tensor]) -> float:
        self.gradients += 1
        gradients = [torch.zeros_like(each) for each in parameters]
        total = 0.0
        for loss in self.problem.losses(self.free):
            for sum_, gradient in zip(gradients, torch.autograd.grad(loss, parameters), strict=True):
                sum_ += gradient
            total += float(loss.detach())
        if not math.isfinite(total) or not all(bool(each.isfinite().all()) for each in gradients):
            total = REFUSED * self.start
            gradients = [torch.zeros_like(each) for each in parameters]
        elif total < self.best:
            self.best, self.numbers = total, self._copy()
        for each, gradient in zip(parameters, gradients, strict=True):
            each.grad = gradient
        return total

    @torch.no_grad()
    def restore(self) -> None:
        """Set the free numbers to the best ones so far."""
        for each, best in zip(self.free.rounds[-1], self.numbers, strict=True):
            each.copy_(best)
