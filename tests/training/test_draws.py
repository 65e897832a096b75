"""Draws of u: unbiased with their weights, and of smaller variance than independent draws."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.training.draws import DRAWS, Adaptive, Independent


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def integrand(u: Tensor) -> Tensor:
    """A loss that is large only in the last tenth of the levels; its mean is 0.5 / 11 + 0.02."""
    return 0.5 * u**10 + 0.02


MEAN = 0.5 / 11 + 0.02


def drawn(name: str, rounds: int, count: int = 64) -> tuple[Independent, list[float]]:
    """Draws that have learned the integrand, and estimates of its mean from `rounds` further batches."""
    way = DRAWS[name]()
    for seed in range(100):
        u, _ = way.draw(count, gen(seed))
        way.learn(u, integrand(u))
    estimates = []
    for seed in range(rounds):
        u, weight = way.draw(count, gen(1000 + seed))
        estimates.append(float((weight * integrand(u)).mean()))
    return way, estimates


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("count", [2, 8, 64])
def test_draws_are_in_range_and_reproducible(name: str, count: int) -> None:
    u, weight = DRAWS[name]().draw(count, gen(0))
    assert u.shape == weight.shape == (count,) and u.dtype == weight.dtype == torch.float64
    assert ((u > 0) & (u < 1)).all() and (weight > 0).all()
    assert torch.equal(u, DRAWS[name]().draw(count, gen(0))[0])


@pytest.mark.parametrize("name", DRAWS)
def test_weighted_means_are_unbiased(name: str) -> None:
    _, estimates = drawn(name, 2000)
    values = torch.tensor(estimates)
    assert abs(float(values.mean()) - MEAN) < 4 * float(values.std()) / math.sqrt(len(values)) + 1e-6


def test_stratified_draws_spread_evenly() -> None:
    u, _ = DRAWS["stratified"]().draw(100, gen(0))
    assert torch.equal((u * 100).long(), torch.arange(100))
    many = torch.cat([DRAWS["stratified"]().draw(10, gen(seed))[0] for seed in range(2000)])
    shares = torch.histc(many, 40, 0, 1) / len(many)
    assert float((shares - 1 / 40).abs().max()) < 5 * math.sqrt(1 / 40 / len(many))


@pytest.mark.parametrize(("name", "share"), [("stratified", 0.01), ("adaptive", 0.5)])
def test_the_variance_is_smaller_than_of_independent_draws(name: str, share: float) -> None:
    spreads = {way: torch.tensor(drawn(way, 1000)[1]).var() for way in ("independent", name)}
    assert float(spreads[name]) < share * float(spreads["independent"])


def test_adaptive_is_uniform_until_every_interval_has_draws() -> None:
    way = Adaptive()
    u = torch.linspace(0.001, 0.9, 1000).double()
    way.learn(u, 100 * u)
    assert torch.equal(way.draw(50, gen(3))[0], Independent().draw(50, gen(3))[0])
    assert (way.draw(50, gen(3))[1] == 1).all()


def test_adaptive_draws_where_the_loss_is_large() -> None:
    way, _ = drawn("adaptive", 1)
    assert isinstance(way, Adaptive)
    shares = way.shares()
    assert float(shares.sum()) == pytest.approx(1) and float(shares.min()) >= 0.1 / 32
    middles = (torch.arange(32).double() + 0.5) / 32
    wanted = integrand(middles) / integrand(middles).sum()
    torch.testing.assert_close(shares, 0.9 * wanted + 0.1 / 32, rtol=0.15, atol=0.002)


def test_adaptive_follows_a_loss_that_changes() -> None:
    way, _ = drawn("adaptive", 1)
    for seed in range(300):
        u, _ = way.draw(64, gen(5000 + seed))
        way.learn(u, integrand(1 - u))
    assert float(way.shares()[0]) > 5 * float(way.shares()[-1])


def test_draws_continue_from_their_state() -> None:
    way, _ = drawn("adaptive", 1)
    other = Adaptive()
    other.state.copy_(way.state)
    assert torch.equal(way.draw(9, gen(1))[0], other.draw(9, gen(1))[0])
