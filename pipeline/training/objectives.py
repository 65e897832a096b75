"""Objectives: towards what a network is trained.

Each objective trains D(z; sigma) at z = x0 + sigma n towards a target that it computes without gradients; the loss is
lambda(sigma) d(D - target), with d of distances.py. An objective is two functions. One gives the noise levels of a
batch: of u, (N,) in (0, 1), float64, and of keys of a model row, `distribution` (of its noise), `step` and `steps` (of
the training). It returns falling levels, (N,) each, the first of which is sigma. The other gives the target.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pipeline.diffusion.denoiser import DenoiserFunction, per_sample
from pipeline.diffusion.grids import DISCRETIZATIONS, EDM_RHO
from pipeline.training.noise import Distribution

Falling = tuple[Tensor, ...]

GRIDS = ("edm", "exponential", "vp", "ve", "log_snr", "iddpm", "flow")  # those of a number of steps alone
CONSISTENCY_GRIDS = ("edm", "exponential")  # those that end at BOUNDARY
SMALLEST = 1e-9  # noise level at which a network is asked instead of 0, where its coefficients are not finite
RATIO, WIDEST, FALL = 2.0, 8.0, 1.0  # q, k and b of Geng et al. 2024, sec. 3.2


@dataclass(frozen=True)
class Question:
    """What a target is computed from: images x0 and noise n, (P, ...) each, and levels, (P,) each, on the CPU.

    teacher, student: D(z, sigma) without gradients, with sigma (P,) on the CPU. student is the network in training, or
    the average of it that the row keeps.
    """

    x0: Tensor
    n: Tensor
    levels: Falling
    teacher: DenoiserFunction
    student: DenoiserFunction

    def noised(self, level: int) -> Tensor:
        """z = x0 + sigma n at one of the levels."""
        return self.x0 + per_sample(self.levels[level], self.n) * self.n


def drawn(u: Tensor, distribution: Distribution) -> Falling:
    """One level, from the noise distribution."""
    return (distribution.sigma(u),)


def halves(u: Tensor, grid: str, first_steps: int, round_steps: int | None) -> Falling:
    """Both ends and the middle of a step, each of the student's steps being equally likely."""
    fine, steps = _grid(grid, 2 * first_steps), round_steps or first_steps
    half = first_steps // steps  # of a step of the student, in steps of the fine grid
    first = 2 * half * (steps - 1 - (u * steps).long().clamp(max=steps - 1))
    return fine[first], fine[first + half], fine[first + 2 * half]


def neighbours(
    u: Tensor,
    distribution: Distribution,
    grid: str,
    level_growth: str,
    first_levels: int,
    last_levels: int,
    step: int,
    steps: int,
) -> Falling:
    """The ends of the interval of a grid into which the noise distribution, cut off at the grid's ends, falls."""
    levels = _grid(grid, LEVEL_GROWTHS[level_growth](step, steps, first_levels, last_levels) + 1)[:-1].flip(0)
    low, high = _shares(distribution, float(levels[0]), float(levels[-1]))
    sigma = distribution.sigma(low + u * (high - low))
    lower = (torch.searchsorted(levels, sigma, right=True) - 1).clamp(0, len(levels) - 2)
    return levels[lower + 1], levels[lower]


def approaching(u: Tensor, distribution: Distribution, stages: int, step: int, steps: int) -> Falling:
    """A level sigma from the noise distribution and a lower one r, nearer from stage to stage a = 1, 2, ...

    Formula: r = sigma max(1 - (1 + 8 / (1 + exp(sigma))) / 2^a, 0)
    Source: Geng et al. 2024, arXiv 2406.14548, sec. 3.2
    """
    sigma, stage = distribution.sigma(u), min(step * stages // steps + 1, stages)
    return sigma, sigma * (1 - (1 + WIDEST * torch.sigmoid(-FALL * sigma)) / RATIO**stage).clamp(min=0)


def doubling(step: int, steps: int, first: int, last: int) -> int:
    """The number of intervals doubles, after equally many steps each time.

    Formula: min(a 2^floor(k / floor(K / (floor(log2(b / a)) + 1))), b)
    Source: Song and Dhariwal 2024, arXiv 2310.14189, sec. 3.4
    """
    stretch = max(steps // (int(math.log2(last // first)) + 1), 1)
    return int(min(first * 2 ** min(step // stretch, 64), last))


def square_root(step: int, steps: int, first: int, last: int) -> int:
    """The number of intervals grows as the root of the steps so far.

    Formula: max(ceil(sqrt(k / K ((b + 1)^2 - a^2) + a^2) - 1), 1)
    Source: Song et al. 2023, arXiv 2303.01469, app. C
    """
    return max(math.ceil(math.sqrt(step / steps * ((last + 1) ** 2 - first**2) + first**2) - 1), 1)


LEVEL_GROWTHS = {"doubling": doubling, "square_root": square_root}


@lru_cache(maxsize=64)
def _grid(name: str, steps: int) -> Tensor:
    """The noise levels of a grid of `steps` steps in its published range, falling, and then 0: (steps + 1,)."""
    grid = DISCRETIZATIONS[name]
    return grid(steps, grid.sigma_min, grid.sigma_max, rho=EDM_RHO, shift=1.0)


@lru_cache(maxsize=64)
def _shares(distribution: Distribution, low: float, high: float) -> tuple[float, float]:
    """The probabilities of noise levels up to low, and up to high."""
    ends = distribution.u(torch.tensor([low, high], dtype=torch.float64)).tolist()
    return ends[0], ends[1]


def denoising(question: Question) -> Tensor:
    """The image itself: D becomes the mean of x0 given z.

    Formula: x0
    Source: Karras et al. 2022, arXiv 2206.00364, eq. 2
    """
    return question.x0


def progressive(question: Question) -> Tensor:
    """The D whose one DDIM step ends where two of the teacher's end. Each round halves the number of steps.

    The teacher of the first round takes twice `first_steps` steps; the student of a round is the teacher of the next
    one. The teacher's two steps end in z_2 at sigma_2.

    Formula: (z_2 - c z) / (1 - c), c = sigma_2 / sigma
    Source: Salimans and Ho 2022, arXiv 2202.00512, Algorithm 2
    """
    begin = end = question.noised(0)
    for sigma, sigma_next in pairwise(question.levels):
        end = torch.lerp(question.teacher(end, sigma), end, per_sample(sigma_next / sigma, end))
    return progressive_target(begin, end, question.levels[0], question.levels[-1])


def progressive_target(z: Tensor, z_next_next: Tensor, sigma: Tensor, sigma_next_next: Tensor) -> Tensor:
    """The D for which one DDIM step from z at sigma to sigma_next_next ends at z_next_next: (N, ...).

    z, z_next_next: (N, ...). sigma, sigma_next_next: scalars or (N,). The formula is in `progressive`.
    """
    ratio = per_sample((sigma_next_next / sigma).expand(len(z)), z)
    return (z_next_next - ratio * z) / (1 - ratio)


def consistency_distillation(question: Question, teacher_step: str) -> Tensor:
    """The network's own answer one level lower, to which one step of the teacher, Euler's or Heun's, leads from z.

    Formula: D(z + (r - sigma) (z - T) / sigma, r)
    Source: Song et al. 2023, arXiv 2303.01469, Algorithm 2
    """
    sigma, lower = question.levels
    z = question.noised(0)
    slope = (z - question.teacher(z, sigma)) / per_sample(sigma, z)
    end = z + per_sample(lower - sigma, z) * slope
    if teacher_step == "heun":
        at_end = (end - question.teacher(end, lower)) / per_sample(lower, z)
        end = z + per_sample(lower - sigma, z) * (slope + at_end) / 2
    return question.student(end, lower)


def consistency_training(question: Question) -> Tensor:
    """The network's own answer one level lower, at the same image and noise.

    Formula: D(x0 + r n, r)
    Source: Song et al. 2023, arXiv 2303.01469, Algorithm 3;
        Song and Dhariwal 2024, arXiv 2310.14189
    """
    return question.student(question.noised(1), question.levels[1])


def easy_consistency(question: Question) -> Tensor:
    """As consistency_training, from the teacher's weights, with two levels that approach each other in `stages`.

    The lower level is sigma max(1 - (1 + 8 / (1 + exp(sigma))) / 2^a, 0) in stage a = 1, 2, ... At 0 the target is x0.

    Formula: D(x0 + r n, r)
    Source: Geng et al. 2024, arXiv 2406.14548, sec. 3
    """
    lower = question.levels[1]
    answer = question.student(question.noised(1), lower.clamp(min=SMALLEST))
    return torch.where(per_sample(lower, answer) == 0, question.x0, answer)


@dataclass(frozen=True)
class Objective:
    """An objective: its target and its noise levels.

    teacher: whether it needs a trained network, and starts from its weights. maps: whether its target is the network's
    own answer, so that it learns a consistency map. published: the values of keys that it was published with, where
    they differ from the defaults of a row. further: keys that matter to it, besides the arguments of both functions.
    """

    target: Callable[..., Tensor]
    levels: Callable[..., Falling]
    teacher: bool = False
    maps: bool = False
    published: Mapping[str, Any] = field(default_factory=dict)
    further: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of a model row that this objective uses, and plain denoising does not."""
        arguments = {*_arguments(self.levels), *_arguments(self.target)}
        return (*sorted(arguments - GIVEN), *self.further)

    def levels_of(
        self, u: Tensor, distribution: Distribution, step: int, steps: int, choices: Mapping[str, Any]
    ) -> Falling:
        """The noise levels at u (N,) in a step; choices may hold other keys, too."""
        given = {**choices, "u": u, "distribution": distribution, "step": step, "steps": steps}
        return self.levels(**{key: given[key] for key in _arguments(self.levels)})

    def target_of(self, question: Question, choices: Mapping[str, Any]) -> Tensor:
        """The target (P, ...); choices may hold other keys, too."""
        given = {**choices, "question": question}
        return self.target(**{key: given[key] for key in _arguments(self.target)})


@cache
def _arguments(function: Callable[..., object]) -> tuple[str, ...]:
    return tuple(signature(function).parameters)


def target_share(step: int, steps: int, choices: Mapping[str, Any]) -> float:
    """The share mu that the target's average of the weights keeps in a step; choices: keys of a model row.

    Formula: exp(first_levels ln(target_decay) / N), N being the number of levels
    Source: Song et al. 2023, arXiv 2303.01469, app. C
    """
    first, last = choices["first_levels"], choices["last_levels"]
    levels = LEVEL_GROWTHS[choices["level_growth"]](step, steps, first, last) + 1
    return float(choices["target_decay"] ** (first / levels))


GIVEN = {"u", "question", "distribution", "step", "steps", "round_steps"}  # arguments that are no keys of a row
CONSISTENCY = {"distance": "pseudo_huber", "weighting": "inverse_step", "P_mean": -1.1, "P_std": 2.0}
MAP: dict[str, Any] = {  # what consistency distillation and training share
    "levels": neighbours,
    "maps": True,
    "published": {"parametrization": "consistency", **CONSISTENCY},
    "further": ("target_decay",),
}
OBJECTIVES = {
    "denoising": Objective(denoising, drawn),
    "progressive": Objective(progressive, halves, teacher=True, published={"weighting": "truncated_snr"}),
    "consistency_distillation": Objective(consistency_distillation, teacher=True, **MAP),
    "consistency_training": Objective(consistency_training, **MAP),
    "easy_consistency": Objective(easy_consistency, approaching, teacher=True, maps=True, published=CONSISTENCY),
}
