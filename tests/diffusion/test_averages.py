"""Averages of weights: responses of the recursion, their widths, and synthesis from snapshots."""

import copy
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.diffusion.averages import (
    LARGEST_ERROR,
    Averages,
    HalfLife,
    Power,
    Profile,
    exponent,
    profiles,
    response,
    snapshot_steps,
    synthesis,
    synthesis_of,
    width,
)
from pipeline.training.row import Model

BATCH = 16
PROFILES: list[Profile] = [HalfLife(400, 0.05), HalfLife(400, None), Power(0.05), Power(0.1), Power(0.28)]
TRACKED: list[Profile] = [HalfLife(10_000, 0.05), Power(0.05), Power(0.10)]


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_are_those_of_the_paper(sigma_rel: float, gamma: float) -> None:
    assert exponent(sigma_rel) == pytest.approx(gamma, abs=0.005)  # EDM2, sec. 3.2


@pytest.mark.parametrize("sigma_rel", [1e-4, 0.01, 0.075, 0.2, 0.2886])
def test_an_exponent_is_the_largest_root_of_the_cubic(sigma_rel: float) -> None:
    gamma, square = exponent(sigma_rel), sigma_rel**-2
    assert width(gamma) == pytest.approx(sigma_rel, rel=1e-12)
    roots = np.roots([1, 7, 16 - square, 12 - square])  # (gamma + 2)^2 (gamma + 3) = (gamma + 1) / sigma_rel^2
    assert gamma == pytest.approx(max(roots.real), rel=1e-6)


@pytest.mark.parametrize("sigma_rel", [-0.1, 0.0, 12**-0.5, 0.3, math.nan])
def test_widths_of_averages_of_early_steps_are_refused(sigma_rel: float) -> None:
    with pytest.raises(ValueError, match=r"above 0 and below 0\.2887"):
        exponent(sigma_rel)


def tracked(walk: Tensor, wanted: Sequence[Profile], marks: Sequence[int] = ()) -> tuple[Averages, list[list[Tensor]]]:
    """The averages of a tensor with values `walk` (steps + 1, ...), and copies of them after `marks` steps."""
    weight = walk[0].clone()
    averages, copies = Averages({"w": weight}, wanted), []
    for step, value in enumerate(walk[1:]):
        weight.copy_(value)
        averages.update(step, BATCH)
        if step + 1 in marks:
            copies.append([averages.of(profile)["w"].clone() for profile in wanted])
    return averages, copies


@pytest.mark.parametrize("steps", [0, 1, 2, 150])
def test_a_response_equals_the_recursion_on_one_hot_weights(steps: int) -> None:
    averages, _ = tracked(torch.eye(steps + 1, dtype=torch.float64), PROFILES)
    for profile in PROFILES:
        expected = response(profile, steps, BATCH)
        assert expected.shape == (steps + 1,) and expected.dtype == torch.float64
        torch.testing.assert_close(averages.of(profile)["w"], expected, rtol=1e-12, atol=1e-15)
        assert float(expected.sum()) == pytest.approx(1, abs=1e-12) and bool((expected >= 0).all())


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.28])
@pytest.mark.parametrize("batch", [1, 64])
def test_a_power_function_has_the_given_width_at_any_length(sigma_rel: float, batch: int) -> None:
    for steps in (10_000, 20_000):
        weight = response(Power(sigma_rel), steps, batch)
        time = torch.arange(steps + 1) / steps
        mean = (weight * time).sum()
        gamma = exponent(sigma_rel)
        assert float((weight * (time - mean) ** 2).sum().sqrt()) == pytest.approx(sigma_rel, rel=1e-3)
        assert float(mean) == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-3)


def test_the_memory_of_an_average_halves_every_half_life() -> None:
    weight = response(HalfLife(100 * BATCH, None), 1000, BATCH)
    torch.testing.assert_close(weight[2:-100], weight[102:] / 2, rtol=1e-11, atol=0)
    assert float(weight[-100:].sum()) == pytest.approx(0.5)


def test_a_half_life_in_its_ramp_up_is_a_power_function() -> None:
    """2^(-1 / (r t)) is (1 - 1/t)^(ln 2 / r) up to 1 / t^2."""
    steps, ramp_up = 20_000, 0.05
    ramp, power = (
        response(HalfLife(10**12, ramp_up), steps, 1),
        response(Power(width(math.log(2) / ramp_up - 1)), steps, 1),
    )
    assert float((ramp - power).norm() / power.norm()) < 1e-3


def test_decays_have_known_values() -> None:
    profile = HalfLife(10_000, 0.05)
    assert [profile.decay(step, 128) for step in (0, 1, 10, 1562, 1563)] == [
        0.0,
        0.5 ** (128 / (0.05 * 1 * 128)),
        0.5 ** (128 / (0.05 * 10 * 128)),
        0.5 ** (128 / (0.05 * 1562 * 128)),
        0.5 ** (128 / 10_000),
    ]


def test_the_averages_of_a_network_equal_the_recursion_bitwise() -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    draw = torch.Generator().manual_seed(0)
    by_hand = [p.detach().clone() for p in network.parameters()]
    averages = Averages(dict(network.named_parameters()), PROFILES)
    for step in range(30):
        for parameter in network.parameters():
            parameter.detach().add_(torch.randn(parameter.shape, generator=draw))
        averages.update(step, BATCH)
        decay = 0.5 ** (BATCH / min(400, 0.05 * step * BATCH)) if step else 0.0
        for average, parameter in zip(by_hand, network.parameters(), strict=True):
            average.lerp_(parameter.detach(), 1 - decay)
    found = averages.of(PROFILES[0])
    assert list(found) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert all(map(torch.equal, found.values(), by_hand))
    assert found["0.weight"].is_contiguous(memory_format=torch.channels_last)
    assert not any(value.requires_grad for value in averages.tensors().values())


def test_averages_continue_from_their_tensors() -> None:
    walk = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    whole, _ = tracked(walk, PROFILES)
    half, _ = tracked(walk[:21], PROFILES)
    weight = walk[20].clone()
    again = Averages({"w": weight}, PROFILES)
    again.load(copy.deepcopy(half.tensors()))
    for step in range(20, 39):
        weight.copy_(walk[step + 1])
        again.update(step, BATCH)
    assert again.tensors().keys() == whole.tensors().keys() and "sigma_rel_0.05.w" in whole.tensors()
    assert all(torch.equal(again.tensors()[name], value) for name, value in whole.tensors().items())
    with pytest.raises(KeyError, match="halflife_400"):
        again.load({})


def test_a_row_tracks_its_main_average_first_and_none_twice() -> None:
    row = Model(ema_halflives_images=(500, 10_000), ema_sigma_rels=(0.1, 0.05))
    expected: list[Profile] = [HalfLife(10_000, 0.05), HalfLife(500, 0.05), Power(0.1), Power(0.05)]
    assert profiles(row) == expected
    assert [profile.name for profile in expected] == [
        "halflife_10000",
        "halflife_500",
        "sigma_rel_0.1",
        "sigma_rel_0.05",
    ]
    assert profiles(Model(ema_ramp_up=None)) == [HalfLife(10_000, None)]


@pytest.mark.parametrize(("steps", "count"), [(20, 0), (20, 1), (20, 7), (20, 20)])
def test_snapshots_are_evenly_spaced_and_the_last_is_at_the_end(steps: int, count: int) -> None:
    found = snapshot_steps(Model(images=steps * 8, batch=8, snapshots=count))
    assert len(set(found)) == count and found == sorted(found)
    assert not found or found[-1] == steps
    gaps = [after - before for before, after in pairwise([0, *found])]
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)


def held(marks: Sequence[int]) -> list[tuple[int, Profile]]:
    return [(step, profile) for step in marks for profile in TRACKED]


def even(count: int, steps: int) -> list[int]:
    return [steps * i // count for i in range(1, count + 1)]


@pytest.mark.parametrize("wanted", [Power(0.03), Power(0.2), HalfLife(3_000, 0.05), HalfLife(3_000, None)])
@pytest.mark.parametrize("count", [1, 4])
def test_a_synthesis_is_the_least_squares_of_the_whole_responses(wanted: Profile, count: int) -> None:
    steps, some = 300, held(even(count, 300))
    responses = np.zeros((steps + 1, len(some)))
    for index, (step, profile) in enumerate(some):
        responses[: step + 1, index] = response(profile, step, 128)
    target, ones = response(wanted, steps, 128).numpy(), np.ones((len(some), 1))
    bordered = np.block([[responses.T @ responses, ones], [ones.T, np.zeros((1, 1))]])  # Lagrange's conditions
    expected = np.linalg.solve(bordered, np.append(responses.T @ target, 1))[:-1]
    found = synthesis(some, wanted, steps, 128)
    residual = np.linalg.norm(responses @ expected - target) / np.linalg.norm(target)
    np.testing.assert_allclose(responses @ found.coefficients.numpy(), responses @ expected, atol=1e-8)
    assert found.error == pytest.approx(residual, rel=1e-6) and float(found.coefficients.sum()) == pytest.approx(1)


def test_the_synthesis_of_a_tracked_average_is_itself() -> None:
    for profile in TRACKED:
        found = synthesis(held(even(4, 300)), profile, 300, 128)
        expected = torch.zeros(12, dtype=torch.float64)
        expected[9 + TRACKED.index(profile)] = 1
        torch.testing.assert_close(found.coefficients, expected, rtol=0, atol=1e-9)
        assert found.error < 1e-12
    alone = synthesis([(300, Power(0.1))], Power(0.1), 300, 128)
    assert alone.coefficients.tolist() == [1] and alone.error == 0


def test_equal_averages_share_the_coefficient() -> None:
    found = synthesis([(50, Power(0.1)), (50, Power(0.1)), (50, Power(0.05))], Power(0.08), 50, 1)
    once = synthesis([(50, Power(0.1)), (50, Power(0.05))], Power(0.08), 50, 1)
    assert found.error == pytest.approx(once.error)
    assert float(found.coefficients[:2].sum()) == pytest.approx(float(once.coefficients[0]))


@pytest.mark.parametrize("wanted", [Power(0.02), Power(0.15), Power(0.25), HalfLife(5_000, 0.05)])
def test_more_snapshots_reduce_the_error_of_a_synthesis(wanted: Profile) -> None:
    errors = [synthesis(held(even(count, 1024)), wanted, 1024, 128).error for count in (2, 4, 8, 16, 32)]
    assert all(after < before for before, after in pairwise(errors)) and errors[-1] < LARGEST_ERROR


def test_the_synthesis_of_a_long_training_needs_little_memory() -> None:
    wanted, count = Power(0.15), 32
    short = synthesis(held(even(count, 3_200)), wanted, 3_200, 10**6)
    long = synthesis(held(even(count, 64_000)), wanted, 64_000, 10**6)
    assert long.error == pytest.approx(short.error, rel=0.3) and long.error < 0.01


def test_a_synthesis_is_the_same_bits_on_any_number_of_threads() -> None:
    threads, found = torch.get_num_threads(), []
    for count in (1, 4):
        torch.set_num_threads(count)
        found.append(synthesis(held(even(16, 1000)), Power(0.02), 1000, 128).coefficients)
    torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("wanted", "close"), [(Power(0.075), 3e-4), (Power(0.15), 3e-3), (HalfLife(10_000, 0.02), 1e-2)], ids=str
)
def test_synthesised_averages_equal_tracked_ones(wanted: Profile, close: float) -> None:
    """On a random walk, relative to the distance of the average from the last weights."""
    steps, tracking = 800, [Power(0.05), Power(0.10)]
    draw = torch.Generator().manual_seed(0)
    walk = torch.randn(steps + 1, 500, generator=draw).cumsum(0) + 30
    differences = []
    for count in (8, 32):
        marks = even(count, steps)
        averages, copies = tracked(walk, [*tracking, wanted], marks)
        some = [(step, profile) for step in marks for profile in tracking]
        coefficients = synthesis(some, wanted, steps, BATCH).coefficients
        values = torch.stack([value for copies_then in copies for value in copies_then[:-1]]).double()
        made, expected = coefficients @ values, averages.of(wanted)["w"].double()
        differences.append(float((made - expected).norm() / (expected - walk[-1]).norm()))
    assert differences[1] < differences[0] and differences[1] < close


def test_the_synthesis_of_a_row_uses_all_its_snapshots() -> None:
    row = Model(images=100_000, ema_sigma_rels=(0.05, 0.1), snapshots=8)
    expected = synthesis(held(snapshot_steps(row)), Power(0.15), row.steps, row.batch)
    found = synthesis_of(row, Power(0.15))
    assert found.error == expected.error < 0.01 and torch.equal(found.coefficients, expected.coefficients)
    assert synthesis_of(Model(images=100_000, snapshots=8), Power(0.15)).error > LARGEST_ERROR
