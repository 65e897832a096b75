"""The exact denoisers of sets of points, and how far networks are from them and from their consistency maps."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.common.devices import to_device
from pipeline.common.randomness import generator
from pipeline.common.threads import side_by_side
from pipeline.data import points
from pipeline.data.points import POINTS
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.diffusion.exact import Cubes, Mixture, solution
from pipeline.diffusion.grids import EDM_RANGE

NODES = {"two_moons": 96, "spiral": 512}  # along each curve; twice as many move no D by more than 1e-9
DRAWS = 1024
TOLERANCE = 1e-8  # of the ODE's solution, per step


def true_denoiser(name: str) -> DenoiserFunction | None:
    """The exact denoiser of the distribution that a set of points is drawn from, for z (N, 2), float64.

    name: a source of data. None if its distribution is unknown, as that of images is.
    """
    return TRUE_DENOISERS[name]() if name in TRUE_DENOISERS else None


def _moons(nodes: int) -> Mixture:
    place, weight = _quadrature(nodes)
    return _along(lambda which: points.moon(which, math.pi * place), weight, points.MOONS_STD)


def _spiral(nodes: int) -> Mixture:
    """The share of the angle is the root of a uniform number, so its density is 2 share."""
    place, weight = _quadrature(nodes)
    return _along(lambda which: points.arm(which, place), 2 * place * weight, points.SPIRAL_STD)


def _checkerboard() -> Cubes:
    row, pair = torch.cartesian_prod(torch.arange(points.SQUARES), torch.arange(points.SQUARES // 2)).T
    centres = points.board(row, pair, torch.full((len(row), 2), 0.5, dtype=torch.float64))
    return Cubes(centres, 2 / points.SQUARES)


def _ring() -> Mixture:
    means = points.ring(torch.arange(points.COMPONENTS))
    return Mixture(means, torch.full((len(means),), 1 / len(means), dtype=torch.float64), points.RING_STD)


def _quadrature(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the Gauss-Legendre rule on [0, 1]."""
    place, weight = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(nodes))
    return (1 + place) / 2, weight / 2


def _along(curve: Callable[[Tensor], Tensor], weight: Tensor, std: float) -> Mixture:
    """Gaussians at the nodes of two curves of equal probability: a quadrature of the noisy curves' density."""
    means = [curve(torch.full((len(weight),), which)) for which in (0, 1)]
    return Mixture(torch.cat(means), torch.cat([weight, weight]) / 2, std)


TRUE_DENOISERS: dict[str, Callable[[], DenoiserFunction]] = {
    "two_moons": partial(_moons, NODES["two_moons"]),
    "spiral": partial(_spiral, NODES["spiral"]),
    "checkerboard": _checkerboard,
    "mixture": _ring,
}


@dataclass(frozen=True)
class Truth:
    """The exact answers at K noise levels, float64: z and D(z; sigma), (K, N, 2), and x, (N, 2).

    z[k] are draws of the data plus sigmas[k] times noise. All z[:, i] lie on one solution of the probability-flow ODE,
    which passes x[i] at sigma = `end`: x is the exact consistency map f of each.
    """

    sigmas: Tensor
    end: float
    z: Tensor
    denoised: Tensor
    x: Tensor

    def summary(self) -> dict[str, Any]:
        """For JSON: the number of draws, `end`, and the exact denoiser's map error at each noise level."""
        errors = [_rms(denoised - self.x) for denoised in self.denoised]
        return {"draws": len(self.x), "end": self.end, "denoiser_map_errors": errors}


@dataclass(frozen=True)
class Distance:
    """Root mean squares over draws and dimensions at one noise level, of D minus the exact D and of D minus f."""

    denoising_error: float
    map_error: float


def known_truth(name: str, sigmas: Tensor, end: float = EDM_RANGE[0]) -> Truth | None:
    """The exact answers for a source of data at noise levels (K,), ascending and above `end`; None if unknown.

    The solutions start at `end`, from DRAWS fresh draws of the set with that much noise. The ODE preserves the
    distribution at every noise level (Song et al. 2021, arXiv 2011.13456, sec. 4.3). So one solution gives z for all
    of them, and its start is f of each z.
    """
    denoiser = true_denoiser(name)
    if denoiser is None:
        return None
    draws = generator("truth", 0)
    x0 = POINTS[name](DRAWS, draws).x
    x = x0 + end * torch.randn(x0.shape, dtype=torch.float64, generator=draws)

    def solve() -> tuple[Tensor, Tensor]:
        z = solution(denoiser, x, [end, *sigmas.tolist()], TOLERANCE)[1:]
        return z, torch.stack([denoiser(*at) for at in zip(z, sigmas, strict=True)])

    [(z, denoised)] = side_by_side([solve])  # on one thread, so that all machines add in one order
    return Truth(sigmas, end, z, denoised, x)


@torch.no_grad()
def distances(denoiser: DenoiserFunction, truth: Truth, device: torch.device) -> list[Distance]:
    """The distances of a denoiser on a device from the exact answers, at each noise level."""
    found = []
    for sigma, z, denoised in zip(truth.sigmas, truth.z, truth.denoised, strict=True):
        answer = denoiser(to_device(z, device), sigma).double().cpu()
        found.append(Distance(_rms(answer - denoised), _rms(answer - truth.x)))
    return found


def _rms(differences: Tensor) -> float:
    return float(differences.square().mean().sqrt())
