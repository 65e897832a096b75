"""Averages of a network's weights over its training, tracked during the training or made from snapshots after it."""

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
        """The share of the average that step `step`, counted from 0, keeps; the first step keeps none."""
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
        """The share of the average that step `step`, counted from 0, keeps."""
        return math.pow(1 - 1 / (step + 1), exponent(self.sigma_rel) + 1)


Profile = HalfLife | Power


def width(gamma: float) -> float:
    """sigma_rel of the average with exponent gamma (EDM2, sec. 3.1)."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


@cache
def exponent(sigma_rel: float) -> float:
    """The gamma > 0 with this sigma_rel. Raises ValueError unless 0 < sigma_rel < 12^-1/2.

    Wider averages, up to width(5^1/2 / 2 - 3/2) = 0.3, have gamma < 0 and weigh early steps most. Each of their widths
    belongs to two values of gamma.
    """
    if not 0 < sigma_rel < LARGEST_SIGMA_REL:
        raise ValueError(f"sigma_rel is above 0 and below {LARGEST_SIGMA_REL:.4f}, not {sigma_rel}")
    from scipy.optimize import brentq  # only here: few trainings need it, and it takes long to load

    # From 0 on, width falls, and it is below 1 / (gamma + 1).
    return float(brentq(lambda gamma: width(gamma) - sigma_rel, 0, 1 / sigma_rel, xtol=1e-13, rtol=1e-14))


class Tracking(Protocol):
    """The keys of a model row that determine its averages."""

    batch: int
    ema_halflife_images: int
    ema_ramp_up: float | None
    ema_halflives_images: tuple[int, ...]
    ema_sigma_rels: tuple[float, ...]
    snapshots: int

    @property
    def steps(self) -> int: ...


def profiles(row: Tracking) -> list[Profile]:
    """The averages that a model's training tracks, without duplicates; the main one is first."""
    halflives = [HalfLife(images, row.ema_ramp_up) for images in (row.ema_halflife_images, *row.ema_halflives_images)]
    return list(dict.fromkeys([*halflives, *map(Power, row.ema_sigma_rels)]))


def snapshot_steps(row: Tracking) -> list[int]:
    """The numbers of steps after which snapshots are taken, evenly spaced up to the end of the training."""
    return [row.steps * count // row.snapshots for count in range(1, row.snapshots + 1)]


class Averages:
    """Averages of weights under training. `of(profile)` holds a tensor for each weight, by its name.

    weights: name -> a tensor that is trained in place (`dict(module.named_parameters())`). Each average starts as the
    initial weights.
    """

    def __init__(self, weights: Mapping[str, Tensor], profiles: Sequence[Profile]) -> None:
        self.names = list(weights)
        self.weights = [value.detach() for value in weights.values()]
        self.profiles = list(profiles)
        self.averages = {profile: [value.clone() for value in self.weights] for profile in profiles}

    @torch.no_grad()
    def update(self, step: int, batch: int) -> None:
        """Add the weights after step `step`, counted from 0, of `batch` images."""
        for profile, averages in self.averages.items():
            torch._foreach_lerp_(averages, self.weights, 1 - profile.decay(step, batch))

    def of(self, profile: Profile) -> dict[str, Tensor]:
        """One average. `update` changes it in place."""
        return dict(zip(self.names, self.averages[profile], strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """The whole state: all averages, as `<average>.<weight>`."""
        return {
            f"{profile.name}.{name}": value for profile in self.profiles for name, value in self.of(profile).items()
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `tensors` returned. Raises KeyError if one is missing, RuntimeError if a shape differs."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])


def _weights(decays: Tensor) -> Tensor:
    """The weights of the initial value and of each of n steps in averages after them: decays (n, P) to (n + 1, P).

    A step's weight is its share in its update times what all later steps keep.
    """
    left = torch.cat([decays, decays.new_ones(1, decays.shape[1])]).flip(0).cumprod(0).flip(0)
    return torch.cat([left[:1], (1 - decays) * left[1:]])


def _decays(profiles: Sequence[Profile], steps: range, batch: int) -> Tensor:
    decays = [[profile.decay(step, batch) for profile in profiles] for step in steps]
    return torch.tensor(decays, dtype=torch.float64).reshape(len(steps), len(profiles))


def response(profile: Profile, steps: int, batch: int) -> Tensor:
    """The weight of each step's weights in the average after `steps` steps: (steps + 1,), float64, of sum 1.

    Index 0 is that of the initial weights. This is the exact result of the recursion, not its limit of short steps.
    """
    return _weights(_decays([profile], range(steps), batch))[:, 0]


@dataclass(frozen=True)
class Synthesis:
    """An average as a sum of others. coefficients (n,), float64, have sum 1.

    error is ||made - wanted|| / ||wanted|| of the responses.
    """

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

    A response has one number per step. But between two ends, a profile's response has the same course at all later
    ends, times what later steps keep. So all responses lie in P dimensions there. The QR decomposition of each stretch
    gives coordinates in which all lengths and angles are exact.
    """
    coordinates, found = torch.ones(1, len(profiles), dtype=torch.float64), []  # at first of the initial weights alone
    for start, end in pairwise([0, *ends]):
        weights = _weights(_decays(profiles, range(start, end), batch))
        coordinates = torch.cat([weights[:1] * coordinates, torch.linalg.qr(weights[1:], mode="r").R])
        found.append(coordinates)
    return [pad(one, (0, 0, 0, len(coordinates) - len(one))) for one in found]


def synthesis_of(row: Tracking, wanted: Profile) -> Synthesis:
    """How `wanted` is made of all averages in all snapshots of a model's training, by step, then by profile."""
    return synthesis(
        [(s, profile) for s in snapshot_steps(row) for profile in profiles(row)], wanted, row.steps, row.batch
    )
