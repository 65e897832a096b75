"""A cascade of exact denoisers samples the exact law of Gaussian images, and only if each stage is told the truth.

With deterministic solvers, the samples of a cascade are linear in its noise. So one run on zero and on all unit vectors
gives their mean and covariance without sampling error.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch
from torch import Tensor

from pipeline.common.randomness import SampleNoise
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.diffusion.gaussian import CorrelatedGaussian
from pipeline.diffusion.upsampling import Low
from pipeline.sampling import cascade as cascades
from pipeline.sampling.batches import generate
from pipeline.sampling.cascade import Stage, Upsampling
from pipeline.sampling.loop import sample
from pipeline.sampling.measurement import downsample
from pipeline.sampling.row import Sampler

F64 = torch.float64
HIGH, LOW = (1, 4, 4), (1, 2, 2)
SAMPLER = Sampler(solver="rk4", sigma_min=1e-5, sigma_max=1e5, nfe=(999,))
STEPS = 200
TOLERANCE = 2e-5  # of STEPS steps in SAMPLER's range of noise levels, for data of variance 1

Later = Callable[[Low], DenoiserFunction]
Noise = tuple[Tensor, Tensor, Tensor]
"""Standard normal: the earlier stage's (N, *LOW), the conditioning's (N, *LOW), the later stage's (N, *HIGH)."""


class Given:
    """In place of the streams of samples: their noise by depth, and what is drawn after it."""

    noise: Noise

    def __init__(self, seed: int, indices: Sequence[int], depth: int = 0) -> None:
        self.first = self.noise[0] if depth else self.noise[2]

    def randn(self, shape: Sequence[int]) -> Tensor:
        return self.first

    def randn_like(self, x: Tensor) -> Tensor:
        return self.noise[1]


def cascade(
    earlier: DenoiserFunction, later: Later, noise: Noise, strength: float, steps: int = STEPS, end: float = 0.0
) -> Tensor:
    """Samples (N, *HIGH) of two stages with noise of a strength between them."""
    first = Stage(earlier, LOW, SAMPLER, steps, end, depth=1)
    second = Stage(Upsampling(first, later, strength, "noise"), HIGH, SAMPLER, steps)
    with mock.patch.object(cascades, "SampleNoise", type("Bound", (Given,), {"noise": noise})):
        return second.samples(0, range(len(noise[0])))[0].x0


def data() -> CorrelatedGaussian:
    """Images of mean 0 to 0.5 whose pixels have the variance 1 and are correlated with their neighbours."""
    place = torch.cartesian_prod(*[torch.arange(4, dtype=F64)] * 2)
    return CorrelatedGaussian(torch.linspace(0, 0.5, 16, dtype=F64), (-torch.cdist(place, place) / 2).exp())


def pooling() -> Tensor:
    """The matrix, (4, 16), that averages squares of 2 x 2 pixels."""
    return downsample(HIGH, 0.0, factor=2).matrix


def earlier() -> CorrelatedGaussian:
    return data().under(pooling())


def later(low: Low) -> CorrelatedGaussian:
    return data().given(pooling(), low.images.double().flatten(1), float(low.strength[0]))


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
    found = law(
        partial(
            cascade,
            earlier(),
            lambda low: later(replace(low, strength=torch.full_like(low.strength, told))),
            strength=strength,
        )
    )
    _, error = errors(found)
    assert error > 100 * TOLERANCE
    assert (found.covariance.trace() > data().covariance.trace()) == (told < strength)  # noise is taken for detail


def test_a_later_stage_that_ignores_its_condition_gives_the_same_law_but_other_images() -> None:
    """The law of the samples alone doesn't show whether the stages fit together; their low resolutions do."""
    noise = unit_noise()
    low = sample(earlier(), noise[0], SAMPLER, STEPS).x0
    made = cascade(earlier(), later, noise, 0.0), cascade(earlier(), lambda low: data(), noise, 0.0)
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


@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_truncated_sampling_ends_with_the_noise_that_would_be_added(strength: float) -> None:
    """The earlier stage stops at the noise level `strength`: its samples are images with this noise."""
    found = law(partial(cascade, earlier(), later, strength=strength, end=strength))
    assert max(errors(found)) < TOLERANCE
    early = law(lambda noise: sample(earlier(), noise[0], SAMPLER, STEPS, end=strength).x0)
    torch.testing.assert_close(early.covariance, earlier().covariance + strength**2 * torch.eye(4), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "row", [Sampler(nfe=(9,)), Sampler(solver="euler", nfe=(9,)), Sampler(solver="unipc", nfe=(9,))]
)
def test_a_truncated_sampler_costs_what_it_says(row: Sampler) -> None:
    steps = row.steps(9, end=0.3)
    done = sample(earlier(), torch.randn(3, *LOW, generator=torch.Generator()), row, steps, end=0.3)
    assert done.nfe == row.evaluations(steps, end=0.3) <= 9 < row.evaluations(steps + 1, end=0.3)


def test_each_sample_of_a_cascade_is_its_own_whatever_the_batch() -> None:
    """And its earlier stage has other noise than it has; calls of both stages count."""
    row = Sampler(nfe=(9,), S_churn=2)
    stage = Stage(earlier(), LOW, row, 3, depth=1)
    of = Upsampling(stage, later, 0.3, "noise")

    def made(count: int, batch: int) -> tuple[Tensor, set[int]]:
        parts, nfe = zip(*generate(of, HIGH, row, 2, 7, count, batch), strict=True)
        return torch.cat(parts), set(nfe)

    whole, nfe = made(40, 40)
    assert nfe == {5 + 3}
    for count, batch in ((40, 16), (17, 17), (33, 20)):
        assert made(count, batch)[0].equal(whole[:count])
    own, others = (SampleNoise(7, [3], depth).randn((20,)) for depth in (0, 1))
    assert not own.equal(others)


def test_three_stages_pass_their_images_on() -> None:
    """Each stage gets what the one before made, and the calls add up."""
    asked = []

    def constant(value: float) -> Callable[[Low], DenoiserFunction]:
        def of_low(low: Low) -> DenoiserFunction:
            asked.append((low.images.shape[2], float(low.images.mean())))
            return lambda z, sigma: torch.full_like(z, value)

        return of_low

    row = Sampler(solver="euler", nfe=(4,))
    first = Stage(lambda z, sigma: torch.full_like(z, 0.1), (1, 2, 2), row, 3, depth=2)
    second = Stage(Upsampling(first, constant(0.2), 0.0, "blur"), (1, 4, 4), row, 2, depth=1)
    done, _ = Stage(Upsampling(second, constant(0.3), 0.0, "noise"), (1, 8, 8), row, 4).samples(0, range(16))
    assert asked == [(2, pytest.approx(0.1)), (4, pytest.approx(0.2))] and done.nfe == 9
    torch.testing.assert_close(done.x0, torch.full_like(done.x0, 0.3))
