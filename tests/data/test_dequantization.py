"""Dequantization noise: its range, its density by numbers, and how far the bound is from the level's probability."""

import math

import pytest
import torch

from pipeline.data.dataset import to_range
from pipeline.data.dequantization import DEQUANTIZATIONS, WIDTH, bits_per_dimension

F64 = torch.float64
INTEGERS = [name for name in DEQUANTIZATIONS if name != "none"]
noises = pytest.mark.parametrize("name", INTEGERS)
sigmas = pytest.mark.parametrize("sigma", [0.0005, 0.002, 0.01, 1.0])


@noises
@sigmas
def test_noise_stays_within_a_level_and_its_entropy_is_that_of_its_histogram(name: str, sigma: float) -> None:
    u = (torch.arange(400_000, dtype=F64) + 0.5) / 400_000
    noise = DEQUANTIZATIONS[name].noise(u, sigma)
    assert noise.diff().min() > 0, "a quantile function"
    assert float(noise.abs().max()) < WIDTH / 2
    assert float(noise.mean()) == pytest.approx(0, abs=1e-9)
    density = 1 / (noise.diff() / u.diff())
    assert -float(density.log().mean()) == pytest.approx(DEQUANTIZATIONS[name].entropy(sigma), abs=1e-3)


def test_much_noise_that_is_cut_off_is_uniform() -> None:
    normal, uniform = DEQUANTIZATIONS["truncated_normal"], DEQUANTIZATIONS["uniform"]
    assert normal.entropy(1.0) == pytest.approx(uniform.entropy(1.0), abs=1e-5)


def test_little_noise_is_normal() -> None:
    entropy = math.log(math.sqrt(2 * math.pi * math.e) * 1e-4)
    assert DEQUANTIZATIONS["truncated_normal"].entropy(1e-4) == pytest.approx(entropy, abs=1e-9)


def test_a_level_is_as_wide_as_the_distance_to_the_next() -> None:
    levels = to_range(torch.arange(256, dtype=torch.uint8)).double()
    assert torch.allclose(levels.diff(), torch.tensor(WIDTH, dtype=F64), atol=1e-6)


@noises
def test_a_uniform_density_over_all_levels_has_8_bits(name: str) -> None:
    """With uniform noise exactly; with another the bound is as much higher as its density is from uniform."""
    nats = torch.full((3,), -math.log(256 * WIDTH) * 12, dtype=F64)
    entropy = DEQUANTIZATIONS[name].entropy(0.002)
    loss = (DEQUANTIZATIONS["uniform"].entropy(0.002) - entropy) / math.log(2)
    found = bits_per_dimension(nats, 12, entropy)
    assert torch.allclose(found, torch.full((3,), 8 + loss, dtype=F64)) and loss >= 0


def test_continuous_data_get_the_noise_of_the_lowest_level() -> None:
    none = DEQUANTIZATIONS["none"]
    noise = none.noise((torch.arange(100_000, dtype=F64) + 0.5) / 100_000, 0.002)
    assert float(noise.std()) == pytest.approx(0.002, rel=1e-3) and none.entropy(0.002) == 0
    assert bits_per_dimension(torch.tensor([-2 * math.log(2)]), 2, 0.0).item() == pytest.approx(1)
