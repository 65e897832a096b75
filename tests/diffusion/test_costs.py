"""What a network costs: parameters, operations, and networks of equal cost."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from pipeline.common.errors import StudyError
from pipeline.diffusion.networks import ddpmpp
from pipeline.diffusion.networks.registry import Cost, build, cost, equal_channels, size
from tests.diffusion.test_networks import CIFAR10, SPEC


def test_edms_network_has_as_many_parameters_as_published() -> None:
    """55.7 million. The encoder has attention after every block at 16 x 16, the decoder once."""
    assert cost(CIFAR10).parameters == pytest.approx(55.73e6, abs=0.05e6)
    with torch.device("meta"):
        network = build(CIFAR10)
    assert isinstance(network, ddpmpp.DDPMpp)
    parts = {"encoder": network.encoder, "middle": network.middle, "decoder": network.decoder}
    found = {name: sum(isinstance(m, ddpmpp.Attention) for m in part.modules()) for name, part in parts.items()}
    assert found == {"encoder": 4, "middle": 1, "decoder": 1}


@pytest.mark.parametrize("changes", [{}, {"network": "ddpmpp"}, {"shape": (1, 8, 16), "channels": 24}], ids=str)
def test_more_image_channels_add_cost_in_the_first_and_the_last_layer_only(changes: dict[str, Any]) -> None:
    """Each is a 3 x 3 convolution with C image channels on one side: 9 C c weights, used at each of H W pixels."""
    spec = replace(SPEC, **changes)
    grey, colour = spec, replace(spec, shape=(3, *spec.shape[1:]))
    weights = 2 * 9 * 2 * spec.channels
    found = [b - a for a, b in zip(cost(grey), cost(colour), strict=True)]
    assert found == [weights + 2, 2 * weights * math.prod(spec.shape[1:])]


def test_the_cost_of_dit_equals_a_count_by_hand() -> None:
    """c channels, T patches of p numbers: per block 12 c^2 weights for each patch, T^2 products, and 6 c e once.

    e is the width of the embedding, a multiple of 32.
    """
    spec = replace(SPEC, network="dit", channels=48, blocks=3, augmentation=0, classes=())
    c, e, tokens, p, blocks = 48, 64, 16, 4, 3
    by_patch, once = c * p + blocks * 12 * c**2 + p * c, c * e + e**2 + blocks * 6 * c * e + 2 * c * e
    biases = 2 * e + c + blocks * (6 + 3 + 1 + 4 + 1) * c + 2 * c + p
    assert cost(spec) == Cost(by_patch + once + biases, 2 * (by_patch * tokens + once + blocks * 2 * tokens**2 * c))


def test_the_cost_of_mlp_equals_a_count_by_hand() -> None:
    spec = replace(SPEC, network="mlp", shape=(2,), channels=32, blocks=2, augmentation=0, classes=(9, 9))
    c, blocks = 32, 2
    weights = 2 * c + 2 * c**2 + blocks * (3 + 4 + 4) * c**2 + 2 * c**2 + 2 * c + 2 * c
    biases = 3 * c + blocks * (3 + 4 + 1) * c + 2 * c + 2
    assert cost(spec) == Cost(weights + biases, 2 * weights)


def test_costs_are_cached_and_draw_no_random_numbers() -> None:
    before = torch.get_rng_state()
    assert size(SPEC) is size(replace(SPEC))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("network", ["unet", "ddpmpp", "dit"])
@pytest.mark.parametrize("what", ["parameters", "flops"])
def test_equal_channels_are_the_nearest(network: str, what: str) -> None:
    like = replace(SPEC, channels=32)
    spec = replace(SPEC, network=network, blocks=4 if network == "dit" else 1)
    target = getattr(cost(like), what)
    channels = equal_channels(spec, like, what)  # type: ignore[arg-type]
    gaps = {
        c: abs(getattr(cost(replace(spec, channels=c)), what) - target) for c in (channels - 8, channels, channels + 8)
    }
    assert channels % 8 == 0 and min(gaps, key=lambda c: gaps[c]) == channels and gaps[channels] <= 0.25 * target
    assert network != "unet" or channels == 32


def test_equal_channels_without_a_near_cost_are_refused() -> None:
    like = replace(SPEC, network="unet", channels=8, multipliers=(1,))
    spec = replace(SPEC, network="dit", channels=8, blocks=16)
    with pytest.raises(StudyError, match=r"^equal: .*the nearest, 8 channels, gives \d+; use more or fewer blocks$"):
        equal_channels(spec, like, "flops")
