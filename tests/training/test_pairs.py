"""Pairs of image and noise: matching against an independent solver, and reflow with a known flow."""

import math
from dataclasses import dataclass

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pipeline.data.dataset import to_range
from pipeline.data.row import Data
from pipeline.data.sources import load
from pipeline.diffusion.exact import Gaussian, Mixture, flow
from pipeline.training import pairs
from pipeline.training.pairs import REFLOW_START, REFLOW_STEPS, flow_to, matched, reflow_pairs

SHAPES = [(1, 4, 4), (3, 2, 5), (2,)]
MEAN, STD = 0.2, 0.4


@dataclass(frozen=True)
class Teacher(Gaussian):
    """The exact denoiser of Gaussian images; like a network, it takes float32."""

    shape: tuple[int, ...] = (1, 4, 4)

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        assert z.dtype == torch.float32 and sigma.dtype == torch.float64 and sigma.ndim == 0
        return super().__call__(z, sigma)

    def end(self, n: Tensor) -> Tensor:
        """The end of the flow that starts at REFLOW_START with noise n (N, ...)."""
        level, clean = torch.tensor([REFLOW_START, 0], dtype=torch.float64)
        return self.flow(n.double() * REFLOW_START, level, clean)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 4, 5, 37])  # 4 and 5 are the images' widths
def test_pairs_have_the_least_sum_of_squared_distances(shape: tuple[int, ...], count: int) -> None:
    for seed in range(3):
        x0, n = 0.5 * draw(seed, count, *shape), draw(100 + seed, count, *shape)
        distances = (x0.double()[:, None] - n.double()[None]).square().flatten(2).sum(2)
        rows, columns = linear_sum_assignment(distances.numpy())
        assert rows.tolist() == list(range(count))
        assert torch.equal(matched(x0, n), n[torch.from_numpy(columns)])


def test_a_batch_that_needs_more_iterations_than_pots_default_is_matched_exactly() -> None:
    x0 = to_range(load(Data()).images)  # 1797 digits
    n = draw(1, *x0.shape)
    distances = torch.cdist(x0.flatten(1).double(), n.flatten(1).double()).square()
    _, columns = linear_sum_assignment(distances.numpy())
    assert torch.equal(matched(x0, n), n[torch.from_numpy(columns)])


@pytest.mark.parametrize("count", [1, 2, 4, 37])
def test_the_matching_is_a_permutation_even_if_images_are_equal(count: int) -> None:
    n = draw(0, count, 1, 4, 4)
    for x0 in (draw(1, count, 1, 4, 4), draw(1, 1, 1, 4, 4).expand_as(n), torch.zeros_like(n)):
        found = matched(x0, n)
        assert sorted(found.flatten(1).tolist()) == sorted(n.flatten(1).tolist())


@pytest.mark.parametrize("count", [4, 20])
def test_the_matching_finds_the_nearest_noise_in_any_order(count: int) -> None:
    x0 = draw(0, count, 1, 4, 4)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    n = x0 + 0.01 * draw(2, count, 1, 4, 4)
    assert torch.equal(matched(x0, n[order]), n)
    assert torch.equal(matched(x0[order], n), n[order])


@pytest.mark.parametrize("count", [1, 4, 7])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (MEAN, STD), (-0.6, 1.5)])
def test_the_flow_of_a_gaussian_has_the_known_end(mean: float, std: float, count: int) -> None:
    teacher, n = Teacher(mean, std), draw(0, count, 1, 4, 4)
    x0, straightness = flow_to(teacher, n, 256)
    assert x0.shape == n.shape and straightness.shape == (count,) and x0.dtype == straightness.dtype == torch.float64
    torch.testing.assert_close(x0, teacher.end(n), rtol=0, atol=1e-4)
    torch.testing.assert_close(x0, mean + std * n.double(), rtol=0, atol=1e-2)  # REFLOW_START is no infinity


def test_the_flow_is_of_second_order_in_its_steps() -> None:
    """On a mixture, because the errors of this order cancel on one Gaussian."""
    means = torch.tensor([[0.7, -0.2], [-0.4, 0.5]], dtype=torch.float64)
    mixture = Mixture(means, torch.tensor([0.3, 0.7], dtype=torch.float64), 0.4)
    n, steps = draw(0, 16, 2), torch.tensor([16, 32, 64, 128])
    end = flow(mixture, n.double() * REFLOW_START, REFLOW_START, 1e-6)
    ends = [flow_to(lambda z, sigma: mixture(z.double(), sigma), n, int(k))[0] for k in steps]
    errors = torch.stack([(x0 - end).square().mean().sqrt() for x0 in ends])
    slopes = errors.log().diff() / steps.double().log().diff()
    torch.testing.assert_close(slopes, torch.full((3,), -2.0, dtype=torch.float64), rtol=0, atol=0.15)


@pytest.mark.parametrize("mean", [0.0, MEAN])
@pytest.mark.parametrize("std", [0.1, 0.5, 1.0, 2.0])
def test_straightness_of_a_gaussian(mean: float, std: float) -> None:
    """With r(t)^2 = (1 - t)^2 std^2 + t^2 a path is x = (1 - t) mean + r n, and n - x0 - v = (r(1) - r(0) - r') n.

    The mean over t of (r' - (r(1) - r(0)))^2 is that of r'^2, 1 + std^2 - pi std / 2, less (1 - std)^2: together
    std (2 - pi / 2).
    """
    n = draw(0, 4, 1, 4, 4)
    expected = std * (2 - math.pi / 2) * n.double().square().mean((1, 2, 3))
    torch.testing.assert_close(flow_to(Teacher(mean, std), n, 512)[1], expected, rtol=5e-3, atol=1e-3 * mean)


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("mean", [0.0, MEAN])
def test_the_flow_to_a_point_is_straight(mean: float, steps: int) -> None:
    x0, straightness = flow_to(Teacher(mean, 0.0), draw(0, 4, 1, 4, 4), steps)
    torch.testing.assert_close(x0, torch.full_like(x0, mean), rtol=0, atol=1e-6)
    torch.testing.assert_close(straightness.sqrt(), torch.full_like(straightness, mean / REFLOW_START))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [4, 5])  # equal to the images' widths, and not
def test_the_flow_of_a_sample_depends_on_no_other(shape: tuple[int, ...], count: int) -> None:
    teacher, n = Teacher(MEAN, STD, shape), draw(0, count, *shape)
    together = flow_to(teacher, n, 8)
    for i in range(count):
        alone = flow_to(teacher, n[i : i + 1], 8)
        for one, all_of_them in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], all_of_them[i], rtol=1e-12, atol=1e-12)


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch) -> int:
    """A small batch for `reflow_pairs`."""
    monkeypatch.setattr(pairs, "REFLOW_BATCH", 8)
    return 8


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 7, 8, 16, 21])
def test_reflow_pairs_are_noise_and_the_end_of_its_flow(batch: int, shape: tuple[int, ...], count: int) -> None:
    teacher = Teacher(MEAN, STD, shape)
    x0, n = reflow_pairs(teacher, count, 3)
    assert x0.shape == n.shape == (count, *shape) and x0.dtype == n.dtype == torch.float32
    torch.testing.assert_close(x0, flow_to(teacher, n, REFLOW_STEPS)[0].float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x0, teacher.end(n).float(), rtol=0, atol=0.01)
    assert all(map(torch.equal, reflow_pairs(teacher, count, 3), (x0, n)))


def test_more_reflow_pairs_begin_with_the_same(batch: int) -> None:
    teacher = Teacher(MEAN, STD)
    for fewer, more in zip(reflow_pairs(teacher, 21, 3), reflow_pairs(teacher, 30, 3), strict=True):
        assert torch.equal(fewer[: 21 // batch * batch], more[: 21 // batch * batch])


def test_the_noise_of_reflow_pairs_is_normal_and_each_seed_and_batch_has_its_own() -> None:
    teacher = Teacher(MEAN, STD)
    noises = torch.cat([part for seed in range(3) for part in reflow_pairs(teacher, 1024, seed)[1].split(512)])
    batches = noises.reshape(6, -1).double()  # two of each seed
    torch.testing.assert_close(batches.mean(1), torch.zeros(6).double(), rtol=0, atol=0.05)
    torch.testing.assert_close(batches.corrcoef(), torch.eye(6).double(), rtol=0, atol=0.05)
    torch.testing.assert_close(batches.square().mean(1), torch.ones(6).double(), rtol=0, atol=0.07)
    assert len(noises.flatten(1).unique(dim=0)) == len(noises)


def test_reflow_pairs_do_not_use_the_global_generator() -> None:
    before = torch.get_rng_state()
    x0, _ = reflow_pairs(Teacher(MEAN, STD), 3, 0)
    assert torch.equal(torch.get_rng_state(), before) and not x0.requires_grad
