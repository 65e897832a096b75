"""A cascade of exact denoisers samples the exact law of Gaussian images, and only if each stage is told the truth.

With deterministic solvers, the samples of a cascade are linear in its noise. So one run on zero and on all unit vectors
gives their mean and covariance without sampling error.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.diffusion.gaussian import CorrelatedGaussian
from pipeline.sampling.loop import sample
from pipeline.sampling.measurement import downsample
from pipeline.sampling.row import Sampler

F64 = torch.float64
HIGH, LOW = (1, 4, 4), (1, 2, 2)
SAMPLER = Sampler(solver="rk4", sigma_min=1e-5, sigma_max=1e5, nfe=(999,))
STEPS = 200
TOLERANCE = 2e-5  # of STEPS steps in SAMPLER's range of noise levels, for data of variance 1

Later = Callable[[Tensor, float], DenoiserFunction]
"""From low-resolution images (N, *LOW), with Gaussian noise of a strength in them, and this strength: a denoiser."""
Noise = tuple[Tensor, Tensor, Tensor]
"""Standard normal: the earlier stage's (N, *LOW), the conditioning's (N, *LOW), the later stage's (N, *HIGH)."""


def cascade(earlier: DenoiserFunction, later: Later, noise: Noise, strength: float, steps: int = STEPS) -> Tensor:
    """Samples (N, *HIGH) of two stages with noise of a strength between them (Ho et al. 2021, arXiv 2106.15282)."""
    first, between, second = noise
    low = sample(earlier, first, SAMPLER, steps).x0 + strength * between
    return sample(later(low, strength), second, SAMPLER, steps).x0


def data() -> CorrelatedGaussian:
    """Images of mean 0 to 0.5 whose pixels have the variance 1 and are correlated with their neighbours."""
    place = torch.cartesian_prod(*[torch.arange(4, dtype=F64)] * 2)
    return CorrelatedGaussian(torch.linspace(0, 0.5, 16, dtype=F64), (-torch.cdist(place, place) / 2).exp())


def pooling() -> Tensor:
    """The matrix, (4, 16), that averages squares of 2 x 2 pixels."""
    return downsample(HIGH, 0.0, factor=2).matrix


def earlier() -> CorrelatedGaussian:
    return data().under(pooling())


def later(low: Tensor, strength: float) -> CorrelatedGaussian:
    return data().given(pooling(), low.flatten(1), strength)


def unit_noise() -> Noise:
    """Zero, and after it each unit vector of all noise together."""
    values = torch.cat([torch.zeros(1, 24, dtype=F64), torch.eye(24, dtype=F64)])
    first, between, second = values.split([4, 4, 16], dim=1)
    return first.reshape(-1, *LOW), between.reshape(-1, *LOW), second.reshape(-1, *HIGH)


def law(run: Callable[[Noise], Tensor]) -> CorrelatedGaussian:
    """The law of a cascade's samples, as a function of its noise."""
    centre, *ends = run(unit_noise()).flatten(1)
    offsets = torch.stack(ends) - centre
    return CorrelatedGaussian(centre, offsets.T @ offsets)


def errors(found: CorrelatedGaussian) -> tuple[float, float]:
    """The largest error of the mean and of the covariance."""
    exact = data()
    return float((found.mean - exact.mean).abs().max()), float((found.covariance - exact.covariance).abs().max())


def test_pooling_averages_squares() -> None:
    x = torch.randn(3, *HIGH, dtype=F64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close((x.flatten(1) @ pooling().T).reshape(-1, *LOW), torch.nn.functional.avg_pool2d(x, 2))


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.5, 3.0])
def test_a_cascade_of_exact_denoisers_samples_the_exact_law(strength: float) -> None:
    """At any strength: the later denoiser knows it, so it removes what the noise hides from the law, and no more."""
    found = law(partial(cascade, earlier(), later, strength=strength))
    assert max(errors(found)) < TOLERANCE
    assert data().frechet(found) < 16 * TOLERANCE**2  # a sum over 16 pixels


def test_a_cascade_is_as_exact_as_its_samplers() -> None:
    few, many = (law(partial(cascade, earlier(), later, strength=0.0, steps=steps)) for steps in (20, 40))
    assert data().frechet(few) > 50 * data().frechet(many) > 1e4 * TOLERANCE**2


@pytest.mark.parametrize(("strength", "told"), [(0.5, 0.1), (0.1, 0.5), (0.5, 0.0), (0.0, 0.5)])
def test_a_wrong_strength_gives_another_law(strength: float, told: float) -> None:
    found = law(partial(cascade, earlier(), lambda low, _: later(low, told), strength=strength))
    _, error = errors(found)
    assert error > 100 * TOLERANCE
    assert (found.covariance.trace() > data().covariance.trace()) == (told < strength)  # noise is taken for detail


def test_a_later_stage_that_ignores_its_condition_gives_the_same_law_but_other_images() -> None:
    """The law of the samples alone doesn't show whether the stages fit together; their low resolutions do."""
    noise = unit_noise()
    low = sample(earlier(), noise[0], SAMPLER, STEPS).x0
    made = cascade(earlier(), later, noise, 0.0), cascade(earlier(), lambda low, _: data(), noise, 0.0)
    misfits = [float(((x.flatten(1) @ pooling().T).reshape(low.shape) - low).abs().max()) for x in made]
    assert misfits[0] < TOLERANCE and misfits[1] > 0.1


def test_a_wrong_earlier_stage_is_seen_in_the_low_resolution_alone() -> None:
    """At strength 0 the later stage keeps the law of the earlier one's images."""
    wrong = CorrelatedGaussian(earlier().mean + 0.2, 0.5 * earlier().covariance)
    found = law(partial(cascade, wrong, later, strength=0.0)).under(pooling())
    torch.testing.assert_close(found.mean, wrong.mean, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(found.covariance, wrong.covariance, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_drawn_samples_have_the_law(strength: float) -> None:
    """Two standard errors of a covariance's entry are below 0.02."""
    draws, count = torch.Generator().manual_seed(0), 20_000
    first, between, second = (torch.randn(count, *shape, dtype=F64, generator=draws) for shape in (LOW, LOW, HIGH))
    x = cascade(earlier(), later, (first, between, second), strength, steps=60).flatten(1)
    torch.testing.assert_close(x.mean(0), data().mean, rtol=0, atol=0.03)
    torch.testing.assert_close(x.T.cov(), data().covariance, rtol=0, atol=0.05)
