"""Augmentation: flips, rotations, shifts and scales with known results, distributions of draws, and conditioning."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor

from pipeline.common.randomness import generator
from pipeline.training.augmentation import LABELS, conditioning, draw, mirror, transform

SHAPES = [(5, 1, 8, 8), (8, 3, 8, 8), (5, 3, 6, 10), (6, 1, 10, 6)]
SWITCHED = [[0], [1], [2], [3], [4, 5], [6, 7]]  # the columns of a that each transformation has
P = 0.12


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=generator("images", 0)) * 2 - 1


def parameters(count: int, **values: float) -> Tensor:
    """The same a for every image; values that are not given are 0."""
    return torch.tensor([[values.get(f"a{i}", 0.0) for i in range(8)]] * count, dtype=torch.float64)


def drawn(probability: float, count: int = 20_000) -> Tensor:
    return draw(count, probability, generator("augmentation", 1))


def augment(x0: Tensor, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    a = draw(len(x0), probability, generator)
    return transform(x0, a), conditioning(a)


def forward(a: Tensor, height: int, width: int) -> np.ndarray:
    """Table 6 as a product of 3x3 matrices on (x to the right, y up, 1) with the origin at the image's centre."""

    def rotate(angle: float) -> np.ndarray:
        return np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])

    a0, a1, a2, a3, a4, a5, a6, a7 = a.tolist()
    shift = np.array([[1, 0, a6 * width / 8], [0, 1, -a7 * height / 8], [0, 0, 1]])
    stretch = rotate(a4) @ np.diag([2 ** (0.2 * a5), 2 ** (-0.2 * a5), 1]) @ rotate(-a4)
    scale = np.diag([2 ** (0.2 * a2), 2 ** (0.2 * a2), 1])
    return shift @ stretch @ rotate(a3) @ scale @ np.diag([1 - 2 * a0, 1 - 2 * a1, 1])


def waves(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A smooth function without symmetry."""
    return 0.5 * np.sin(0.16 * x + 0.1 * y + 0.4) + 0.3 * np.cos(0.2 * y - 0.06 * x + 1) + 0.1 * np.sin(0.25 * x)


def test_probability_zero_is_the_identity() -> None:
    for shape in SHAPES:
        x0 = images(*shape)
        augmented, told = augment(x0, 0.0, generator("augmentation", 0))
        assert torch.equal(augmented, x0)
        assert told.shape == (shape[0], LABELS) and not told.any()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_result_has_shape_dtype_and_range_of_the_argument_which_is_unchanged(shape: tuple[int, ...]) -> None:
    x0 = images(*shape).sign()  # cubic interpolation overshoots at every edge of these
    before = x0.clone()
    augmented, told = augment(x0, 1.0, generator("augmentation", 0))
    assert augmented.shape == shape and augmented.dtype == told.dtype == torch.float32
    assert told.shape == (shape[0], LABELS)
    assert augmented.abs().max() == 1 and augmented.isfinite().all()
    assert torch.equal(x0, before)


@pytest.mark.parametrize("shape", SHAPES)
def test_flips_are_exact(shape: tuple[int, ...]) -> None:
    x0 = images(*shape)
    assert torch.equal(transform(x0, parameters(shape[0], a0=1)), x0.flip(3))
    assert torch.equal(transform(x0, parameters(shape[0], a1=1)), x0.flip(2))
    assert torch.equal(transform(x0, parameters(shape[0], a0=1, a1=1)), x0.flip(2, 3))


@pytest.mark.parametrize("quarters", [-1, 1, 2, 3])
def test_rotations_are_counterclockwise(quarters: int) -> None:
    x0 = images(8, 3, 8, 8)
    turned = transform(x0, parameters(8, a3=quarters * math.pi / 2))
    torch.testing.assert_close(turned, torch.rot90(x0, quarters, (2, 3)), rtol=0, atol=1e-5)


def test_rotations_of_an_image_that_is_not_square() -> None:
    """The middle square rotates; the rest comes from outside, by reflection at the outermost pixels."""
    x0 = images(5, 3, 4, 8)
    half = transform(x0, parameters(5, a3=math.pi))
    torch.testing.assert_close(half, x0.flip(2, 3), rtol=0, atol=1e-5)
    quarter = transform(x0, parameters(5, a3=math.pi / 2))
    torch.testing.assert_close(quarter[..., 2:6], torch.rot90(x0[..., 2:6], 1, (2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(quarter[..., :2], quarter[..., 3:5].flip(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, 1), (-2, 3), (4, -1)])
def test_shifts_by_whole_pixels(shape: tuple[int, ...], right: int, down: int) -> None:
    count, _, height, width = shape
    x0 = images(*shape)
    shifted = transform(x0, parameters(count, a6=8 * right / width, a7=8 * down / height))
    padded = np.pad(x0.numpy(), ((0, 0), (0, 0), (5, 5), (5, 5)), "reflect")
    expected = padded[:, :, 5 - down : 5 - down + height, 5 - right : 5 - right + width]
    torch.testing.assert_close(shifted, torch.from_numpy(expected), rtol=0, atol=1e-5)
    inside = x0[:, :, max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
    there = shifted[:, :, max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]
    torch.testing.assert_close(there, inside, rtol=0, atol=1e-5)


ANALYTIC = {
    "twice the size": {"a2": 5.0},
    "half the size": {"a2": -5.0},
    "stretched in x": {"a5": 5.0},
    "stretched in y": {"a4": math.pi / 2, "a5": 5.0},
    "stretched aslant": {"a4": 0.6, "a5": 2.5},
    "turned": {"a3": 0.7},
    "shifted": {"a6": 0.53, "a7": -0.31},
    "turned, then stretched": {"a3": 1.1, "a4": 0.4, "a5": 2.0},
    "turned, then shifted": {"a3": -2.0, "a6": 0.7, "a7": 0.9},
    "flipped, then all": {"a0": 1, "a2": 0.8, "a3": 0.5, "a4": -0.9, "a5": 1.3, "a6": -0.4, "a7": 0.6},
    "flipped twice, then all": {"a0": 1, "a1": 1, "a2": -1.0, "a3": 2.5, "a4": 2.2, "a5": -1.5, "a6": 0.5, "a7": 0.2},
}


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (40, 24)])
@pytest.mark.parametrize("name", ANALYTIC)
def test_transformed_pixels_are_the_function_at_their_preimages(name: str, size: tuple[int, int]) -> None:
    """For a smooth image and each pixel whose preimage is inside."""
    height, width = size
    x, y = np.meshgrid(np.arange(width) - (width - 1) / 2, (height - 1) / 2 - np.arange(height))
    a = parameters(1, **ANALYTIC[name])
    x0 = torch.from_numpy(waves(x, y)).float()[None, None]
    source = np.linalg.inv(forward(a[0], height, width)) @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    inside = (abs(source[0]) < width / 2 - 2) & (abs(source[1]) < height / 2 - 2)
    assert inside.mean() > 0.15
    error = transform(x0, a).numpy().ravel()[inside] - waves(source[0], source[1])[inside]
    assert abs(error).max() < 0.015


def test_moving_the_digits_there_and_back_has_little_over_a_third_of_bilinears_squared_error() -> None:
    x0 = torch.from_numpy(load_digits().images).float()[:200, None] / 8 - 1
    there, back = (parameters(200, a6=sign * 0.4, a7=sign * 0.3) for sign in (1, -1))
    returned = transform(transform(x0, there), back)
    bilinear = x0
    for sign in (1, -1):
        theta = torch.tensor([[1, 0, -sign * 0.8 / 7], [0, 1, -sign * 0.6 / 7]]).expand(200, -1, -1)
        grid = F.affine_grid(theta, list(x0.shape), align_corners=True)
        bilinear = F.grid_sample(bilinear, grid, padding_mode="reflection", align_corners=True)
    assert (returned - x0).square().mean() < 0.37 * (bilinear - x0).square().mean()


def test_each_image_has_its_own_transformation() -> None:
    x0, a = images(40, 3, 8, 8), drawn(0.3, 40)
    together = transform(x0, a)
    for i in range(40):
        torch.testing.assert_close(together[i : i + 1], transform(x0[i : i + 1], a[i : i + 1]), rtol=0, atol=1e-6)


def test_channels_have_the_same_transformation() -> None:
    grey = images(20, 1, 8, 8)
    colour, _ = augment(grey.expand(-1, 3, -1, -1), 0.5, generator("augmentation", 2))
    expected, _ = augment(grey, 0.5, generator("augmentation", 2))
    torch.testing.assert_close(colour, expected.expand(-1, 3, -1, -1), rtol=0, atol=1e-6)


def test_conditioning_values() -> None:
    a = torch.tensor([[1, 0, -0.7, 2.0, 0.3, 1.5, 0.2, -0.9]], dtype=torch.float64)
    told = [1, 0, -0.7, math.cos(2) - 1, math.sin(2), 1.5 * math.cos(0.3), 1.5 * math.sin(0.3), 0.2, -0.9]
    assert conditioning(a)[0].tolist() == pytest.approx(told, rel=1e-6)
    assert conditioning(parameters(2)).tolist() == [[0] * LABELS] * 2
    x0 = images(50, 1, 8, 8)
    _, told_of = augment(x0, 0.5, generator("augmentation", 3))
    assert torch.equal(told_of, conditioning(draw(50, 0.5, generator("augmentation", 3))))


def test_the_conditioning_describes_the_transformation() -> None:
    """Without conditioning an image is unchanged; with flips only it is an exact mirror image; else it differs."""
    x0 = images(2000, 1, 4, 4)
    augmented, told = augment(x0, P, generator("augmentation", 4))
    same = (augmented == x0).flatten(1).all(1)
    assert torch.equal(same, (told == 0).all(1))
    flips_only = ~same & (told[:, 2:] == 0).all(1)
    assert flips_only.sum() > 50
    for i in flips_only.nonzero().flatten().tolist():
        axes = [axis for axis, flipped in ((2, told[i, 0]), (1, told[i, 1])) if flipped]
        assert torch.equal(augmented[i], x0[i].flip(axes))


@pytest.mark.parametrize("probability", [0.05, P, 0.5, 1.0])
def test_shares(probability: float) -> None:
    """Half of the images whose flip is on are mirrored, and no transformation depends on another."""
    on = torch.stack([drawn(probability)[:, columns].any(1) for columns in SWITCHED], 1).double()
    expected = np.array([probability / 2] * 2 + [probability] * 4)
    bound = 4.5 * np.sqrt(expected * (1 - expected) / len(on))
    assert (abs(on.mean(0).numpy() - expected) <= bound).all()
    both, product = (on.T @ on / len(on)).numpy(), np.outer(expected, expected)
    apart = ~np.eye(len(SWITCHED), dtype=bool)
    assert (abs(both - product)[apart] <= 4.5 * np.sqrt(product * (1 - product) / len(on))[apart]).all()
    share, untouched = float(on.any(1).double().mean()), (1 - probability / 2) ** 2 * (1 - probability) ** 4
    assert abs(share - (1 - untouched)) <= 4.5 * math.sqrt(untouched * (1 - untouched) / len(on))


def test_a_transformation_is_on_or_off_as_a_whole() -> None:
    on = drawn(0.3) != 0
    assert not (on[:, 4] & ~on[:, 5]).any() and torch.equal(on[:, 6], on[:, 7])


@pytest.mark.parametrize("probability", [P, 1.0])
def test_half_of_all_anisotropic_images_are_stretched_along_an_axis(probability: float) -> None:
    """The other half in any direction, by as much."""
    a = drawn(probability)
    a = a[a[:, 5] != 0]
    turned = a[:, 4] != 0
    assert abs(float(turned.double().mean()) - 0.5) <= 4.5 * 0.5 / math.sqrt(len(a))
    assert stats.ks_2samp(a[turned, 5].numpy(), a[~turned, 5].numpy()).pvalue > 1e-3


def test_an_image_of_one_row_stays_one() -> None:
    """There is nothing to reflect, so only the columns move."""
    x0 = images(3, 1, 1, 8)
    shifted = transform(x0, parameters(3, a6=1.0, a7=0.5))
    torch.testing.assert_close(shifted[..., 1:], x0[..., :-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(shifted[..., 0], x0[..., 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_distributions(probability: float) -> None:
    """Values that are on have the distributions of Table 6, whatever the probability."""
    a = drawn(probability)
    for column in (2, 5, 6, 7):
        values = a[:, column][a[:, column] != 0].numpy()
        assert stats.kstest(values, "norm").pvalue > 1e-3
    for column in (3, 4):
        values = a[:, column][a[:, column] != 0].numpy()
        assert stats.kstest(values, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3
    assert set(a[:, :2].unique().tolist()) == {0, 1}


def test_draws_are_independent() -> None:
    """Neither the eight values nor their absolute values correlate, within an image or between neighbours."""
    a = drawn(1.0)
    for values in (a, (a - a.mean(0)).abs()[:, 2:]):
        columns = torch.cat([values[:-1], values[1:]], 1).numpy()
        correlation = np.corrcoef(columns, rowvar=False) - np.eye(columns.shape[1])
        assert abs(correlation).max() < 4.5 / math.sqrt(len(columns))


def test_conditioning_has_the_moments_of_its_distributions() -> None:
    told = conditioning(drawn(1.0)).double()
    assert told.mean(0).tolist() == pytest.approx([0.5, 0.5, 0, -1, 0, 0, 0, 0, 0], abs=0.035)
    assert told.var(0).tolist() == pytest.approx([0.25, 0.25, 1, 0.5, 0.5, 0.75, 0.25, 1, 1], abs=0.05)


def test_the_draws_depend_on_the_generator_alone() -> None:
    x0 = images(30, 3, 8, 8)
    one, other, again = (augment(x0, 0.5, generator("augmentation", seed)) for seed in (5, 6, 5))
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1])
    assert not torch.equal(one[1], other[1])
    shared = generator("augmentation", 5)
    torch.rand(7)  # the global stream is not part of it
    assert torch.equal(augment(x0, 0.5, shared)[1], one[1])
    assert not torch.equal(augment(x0, 0.5, shared)[1], one[1])


def test_an_image_draws_the_same_in_every_batch_and_at_every_probability() -> None:
    few, many = (draw(count, 0.5, generator("augmentation", 7)) for count in (5, 33))
    assert torch.equal(few, many[:5])
    rare, always = (draw(200, probability, generator("augmentation", 7)) for probability in (P, 1.0))
    assert torch.equal(rare, always.where(rare != 0, 0))


def test_every_call_takes_the_same_count_of_random_numbers() -> None:
    after = set()
    for probability in (0.0, P, 1.0):
        own = generator("augmentation", 8)
        augment(images(9, 1, 4, 4), probability, own)
        after.add(float(torch.rand(1, generator=own)))
    assert len(after) == 1


def test_a_mirrored_image_is_augmented_as_its_mirror_image() -> None:
    a = draw(200, 0.8, generator("a", 0))
    x0 = torch.rand(200, 2, 6, 8, generator=generator("x0", 0)) * 2 - 1
    torch.testing.assert_close(transform(x0, mirror(a, 1.0, generator("m", 0))), transform(x0.flip(3), a))
