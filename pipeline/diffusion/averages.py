"""Averages of a network's weights over its training: tracked along the way, or made afterwards from snapshots."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.common.threads import side_by_side

LARGEST_SIGMA_REL = 12**-0.5  # of the average that weighs all steps alike
LARGEST_ERROR = 0.1  # of an average that is made of others and goes by the name of the one wanted


@dataclass(frozen=True)
class HalfLife:
    """An exponential moving average, whose memory of the past halves every h images.

    h is `images`, and at most `ramp_up` of the images seen so far. ramp_up None is no limit.

    Formula: 2^(-B / h)
    Source: Karras et al. 2022, arXiv 2206.00364, app. F.2
    """

    images: int
    ramp_up: float | None

    @property
    def name(self) -> str:
        return f"halflife_{self.images}"

    def decay(self, step: int, batch: int) -> float:
        """How much of the average stays in step `step`, counted from 0. The first step replaces it."""
        halflife = min(self.images, (self.ramp_up or math.inf) * step * batch if step else 0)
        return 0.5 ** (batch / halflife) if halflife else 0.0


@dataclass(frozen=True)
class Power:
    """An average in which step k weighs as k^gamma, so that it widens as the training goes on.

    sigma_rel is its standard deviation in time as a share of the training so far: above 0 and below 12^-1/2, which is
    that of equal weights. It determines gamma.

    Formula: (1 - 1 / k)^(gamma + 1)
    Source: Karras et al. 2024, arXiv 2312.02696, sec. 3.1
    """

    sigma_rel: float

    @property
    def name(self) -> str:
        return f"sigma_rel_{self.sigma_rel}"

    def decay(self, step: int, batch: int) -> float:
        """How much of the average stays in step `step`, counted from 0: beta_gamma(t) = (1 - 1/t)^(gamma + 1)."""
        return math.pow(1 - 1 / (step + 1), exponent(self.sigma_rel) + 1)


Profile = HalfLife | Power


def width(gamma: float) -> float:
    """sigma_rel of the average with exponent gamma (EDM2, sec. 3.1)."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


@cache
def exponent(sigma_rel: float) -> float:
    """The gamma > 0 with this sigma_rel. Raises ValueError outside of 0 < sigma_rel < 12^-1/2.

    Wider averages, up to width(5^1/2 / 2 - 3/2) = 0.3, would weigh early steps most: gamma < 0, and two for each width.
    """
    if not 0 < sigma_rel < LARGEST_SIGMA_REL:
        raise ValueError(f"sigma_rel is above 0 and below {LARGEST_SIGMA_REL:.4f}, not {sigma_rel}")
    from scipy.optimize import brentq  # only here: few trainings need it, and it takes long to load

    # From 0 on, width falls, and it is below 1 / (gamma + 1).
    return float(brentq(lambda gamma: width(gamma) - sigma_rel, 0, 1 / sigma_rel, xtol=1e-13, rtol=1e-14))


class Tracking(Protocol):
    """What a model's row says of averages; other stages than its training go by it, and must not depend on the rest."""

    batch: int
    ema_halflife_images: int
    ema_ramp_up: float | None
    ema_halflives_images: tuple[int, ...]
    ema_sigma_rels: tuple[float, ...]
    snapshots: int

    @property
    def steps(self) -> int: ...


def profiles(row: Tracking) -> list[Profile]:
    """The averages that a model's training tracks, its main one first, none of them twice."""
    halflives = [HalfLife(images, row.ema_ramp_up) for images in (row.ema_halflife_images, *row.ema_halflives_images)]
    return list(dict.fromkeys([*halflives, *map(Power, row.ema_sigma_rels)]))


def snapshot_steps(row: Tracking) -> list[int]:
    """After how many steps snapshots are taken, evenly spaced, the last at the end of the training."""
    return [row.steps * count // row.snapshots for count in range(1, row.snapshots + 1)]


class Averages:
    """Averages of weights that change: `of(profile)` holds one tensor for each of them, by the same names.

    weights: name -> a tensor that is trained in place (`dict(module.named_parameters())`). Each average begins as the
    initial weights.
    """

    def __init__(self, weights: Mapping[str, Tensor], profiles: Sequence[Profile]) -> None:
        self.names = list(weights)
        self.weights = [value.detach() for value in weights.values()]
        self.profiles = list(profiles)
        self.averages = {profile: [value.clone() for value in self.weights] for profile in profiles}

    @torch.no_grad()
    def update(self, step: int, batch: int) -> None:
        """Take in the weights after step `step`, counted from 0, of `batch` images."""
        for profile, averages in self.averages.items():
            torch._foreach_lerp_(averages, self.weights, 1 - profile.decay(step, batch))

    def of(self, profile: Profile) -> dict[str, Tensor]:
        """One average, which goes on changing with `update`."""
        return dict(zip(self.names, self.averages[profile], strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """All averages, as `<average>.<weight>`: the whole state."""
        return {
            f"{profile.name}.{name}": value for profile in self.profiles for name, value in self.of(profile).items()
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave. Raises KeyError where one is missing, RuntimeError where a shape differs."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])


def _weights(decays: Tensor) -> Tensor:
    """What an average's beginning and each of n steps weigh in it after them, from their decays: (n, P) to (n + 1, P).

    A step's share in its own update, times what all later steps leave of it.
    """
    left = torch.cat([decays, decays.new_ones(1, decays.shape[1])]).flip(0).cumprod(0).flip(0)
    return torch.cat([left[:1], (1 - decays) * left[1:]])


def _decays(profiles: Sequence[Profile], steps: range, batch: int) -> Tensor:
    decays = [[profile.decay(step, batch) for profile in profiles] for step in steps]
    return torch.tensor(decays, dtype=torch.float64).reshape(len(steps), len(profiles))


def response(profile: Profile, steps: int, batch: int) -> Tensor:
    """What the weights after each step weigh in the average after `steps` steps: (steps + 1,), float64, of sum 1.

    Index 0 stands for the initial weights. Just what the recursion gives, not its limit of short steps.
    """
    return _weights(_decays([profile], range(steps), batch))[:, 0]


@dataclass(frozen=True)
class Synthesis:
    """An average as a sum of others: coefficients (n,), float64, of sum 1; error: ||made - wanted|| / ||wanted|| of the
    responses."""

    coefficients: Tensor
    error: float


def synthesis(snapshots: Sequence[tuple[int, Profile]], wanted: Profile, steps: int, batch: int) -> Synthesis:
    """The sum of tracked averages at snapshots that is nearest to the average `wanted` after all `steps` steps.

    Least squares as in algorithm 3, but over the discrete responses and with coefficients of sum 1, so weights that no
    longer change are kept.

    Source: Karras et al. 2024, arXiv 2312.02696, sec. 3.2
    """
    [found] = side_by_side([partial(_synthesis, snapshots, wanted, steps, batch)])  # one thread: always the same bits
    return found


def _synthesis(snapshots: Sequence[tuple[int, Profile]], wanted: Profile, steps: int, batch: int) -> Synthesis:
    tracked = list(dict.fromkeys([*(profile for _, profile in snapshots), wanted]))
    ends = sorted({steps, *(step for step, _ in snapshots)})
    after = dict(zip(ends, _coordinates(tracked, ends, batch), strict=True))
    target = after[steps][:, tracked.index(wanted)]
    *others, last = (after[step][:, tracked.index(profile)] for step, profile in snapshots)
    free = target.new_zeros(0)
    if others:
        differences = torch.stack(others, 1) - last[:, None]
        free = torch.linalg.lstsq(differences, (target - last)[:, None], driver="gelsd").solution[:, 0]
    coefficients = torch.cat([free, 1 - free.sum()[None]])
    made = torch.stack([*others, last], 1) @ coefficients
    return Synthesis(coefficients, float((made - target).norm() / target.norm()))


def _coordinates(profiles: Sequence[Profile], ends: Sequence[int], batch: int) -> list[Tensor]:
    """The responses of all P profiles after each number of steps in `ends` (rising), as columns: (n, P) each.

    As responses they would have one row a step. But over the stretch from one end to the next a profile's response has
    the same course ever after, times what later steps leave of it. So all of them lie in P dimensions there, and the
    stretch's QR decomposition gives coordinates in these, in which all lengths and angles are exact.
    """
    coordinates, found = torch.ones(1, len(profiles), dtype=torch.float64), []  # at first of the initial weights alone
    for start, end in pairwise([0, *ends]):
        weights = _weights(_decays(profiles, range(start, end), batch))
        coordinates = torch.cat([weights[:1] * coordinates, torch.linalg.qr(weights[1:], mode="r").R])
        found.append(coordinates)
    return [pad(one, (0, 0, 0, len(coordinates) - len(one))) for one in found]


def synthesis_of(row: Tracking, wanted: Profile) -> Synthesis:
    """How `wanted` is made of all averages in all snapshots of a model's training: by step, then by profile."""
    return synthesis(
        [(s, profile) for s in snapshot_steps(row) for profile in profiles(row)], wanted, row.steps, row.batch
    )
