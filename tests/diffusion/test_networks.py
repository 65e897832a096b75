"""Networks: inputs and outputs, initial weights, dropout, and cost."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.common.errors import StudyError
from pipeline.diffusion.denoiser import new_denoiser
from pipeline.diffusion.networks import ddpmpp, dit
from pipeline.diffusion.networks.embedding import (
    FOURIER_SCALE,
    Common,
    Conditioning,
    Fourier,
    Told,
    positional_embedding,
)
from pipeline.diffusion.networks.layers import Dropout, divisor, dropout
from pipeline.diffusion.networks.registry import KEYS, NETWORKS, build, cost
from pipeline.training.row import Model
from tests.diffusion.test_denoiser import SPEC as PLAIN

SPEC = replace(PLAIN, augmentation=9, classes=(3, 3, 4))
CIFAR10 = replace(  # EDM's network (app. F.2)
    SPEC,
    network="ddpmpp",
    shape=(3, 32, 32),
    channels=128,
    multipliers=(2, 2, 2),
    blocks=4,
    attention=(16,),
    classes=(),
)
SHAPES = [(1, 8, 8), (3, 16, 16), (3, 8, 16)]
CASES: dict[str, dict[str, Any]] = {
    f"{name} {'x'.join(map(str, shape))}": {"network": name, "shape": shape}
    for name in ("unet", "ddpmpp", "dit")
    for shape in SHAPES
} | {
    "mlp 2": {"network": "mlp", "shape": (2,)},
    "mlp 5": {"network": "mlp", "shape": (5,)},
    "unet deep": {"network": "unet", "multipliers": (2, 1, 1), "blocks": 2},
    "unet flat": {"network": "unet", "multipliers": (1,)},
    "unet fourier": {"network": "unet", "embedding": "fourier"},
    "ddpmpp attention": {"network": "ddpmpp", "shape": (3, 8, 16), "attention": (8, 4), "multipliers": (2, 1)},
    "ddpmpp deep": {"network": "ddpmpp", "multipliers": (1, 2, 2), "blocks": 2, "channels": 8},
    "dit heads": {"network": "dit", "channels": 136, "patch": 4},
    "dit deep": {"network": "dit", "blocks": 3, "embedding": "fourier"},
    "mlp deep": {"network": "mlp", "shape": (2,), "blocks": 3, "embedding": "fourier"},
}
ONE_OF_EACH = {name: CASES[f"{name} deep"] for name in NETWORKS}

all_cases = pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
each_network = pytest.mark.parametrize("changes", ONE_OF_EACH.values(), ids=ONE_OF_EACH)


def network_of(changes: dict[str, Any]) -> nn.Module:
    """A network with random weights, including those that start at 0; the same on every call."""
    network = build(replace(SPEC, **changes))
    generator = torch.Generator().manual_seed(0)
    for value in network.state_dict().values():
        value.normal_(0, 0.2, generator=generator)
    return network.eval()


def inputs(changes: dict[str, Any], count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs of a network: x, c_noise, labels of all classes and none, augmentation."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, *replace(SPEC, **changes).shape, generator=generator)
    labels = torch.arange(count) % (len(SPEC.classes) + 1) - 1
    return x, torch.randn(count, generator=generator), labels, torch.randn(count, 9, generator=generator)


@all_cases
def test_a_network_starts_at_zero_and_uses_all_its_inputs(changes: dict[str, Any]) -> None:
    x, c_noise, labels, augmentation = inputs(changes, 5)
    assert torch.equal(build(replace(SPEC, **changes))(x, c_noise, labels, augmentation), torch.zeros_like(x))
    network = network_of(changes)
    out = network(x, c_noise, labels, augmentation)
    assert out.shape == x.shape and out.dtype == x.dtype
    for other in (
        network(x + 0.1, c_noise, labels, augmentation),
        network(x, c_noise + 1, labels, augmentation),
        network(x, c_noise, (labels + 2) % 3, augmentation),
        network(x, c_noise, labels, augmentation + 1),
    ):
        assert not any(torch.equal(a, b) for a, b in zip(out, other, strict=True))
    out.square().sum().backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


@all_cases
def test_a_missing_input_equals_zero(changes: dict[str, Any]) -> None:
    network, (x, c_noise, labels, _) = network_of(changes), inputs(changes, 5)
    nothing = network(x, c_noise)
    assert torch.equal(nothing, network(x, c_noise, torch.full((5,), -1), torch.zeros(5, 9)))
    told = network(x, c_noise, labels)
    assert [torch.equal(a, b) for a, b in zip(told, nothing, strict=True)] == (labels == -1).tolist()


@all_cases
@pytest.mark.parametrize("network", [{}, {"channels": 24}], ids=str)
def test_an_image_depends_on_no_other_of_its_batch(changes: dict[str, Any], network: dict[str, Any]) -> None:
    """Bitwise, for batches of any size and content, without augmentation as in sampling."""
    (x, c_noise, labels, _), own = inputs(changes, 50), network_of(changes | network)
    with torch.no_grad():
        together = own(x, c_noise, labels)
        assert torch.equal(own(x.flip(0), c_noise.flip(0), labels.flip(0)), together.flip(0))
        for size in (17, 31, 33):
            assert torch.equal(own(x[:size], c_noise[:size], labels[:size]), together[:size]), size


@all_cases
def test_memory_formats_agree(changes: dict[str, Any]) -> None:
    network, told = network_of(changes), inputs(changes, 4)
    contiguous = network(*told)
    again = network.to(memory_format=torch.channels_last)(*told)
    torch.testing.assert_close(again, contiguous, rtol=1e-4, atol=1e-4 * float(contiguous.detach().abs().max()))


def test_layers_for_labels_and_augmentation_exist_only_if_needed() -> None:
    names = set(build(SPEC).state_dict())
    assert names - set(build(replace(SPEC, classes=())).state_dict()) == {"told.label.weight"}
    assert names - set(build(replace(SPEC, augmentation=0)).state_dict()) == {"told.augmentation.weight"}


def test_the_default_network_has_known_weights_and_outputs() -> None:
    """Known sums over the initial weights, and over outputs with other weights."""
    sums = {0.0: (175_553, 346.7048231396992, 628.5817912779012), 0.2: (175_697, 348.8742353554052, 633.5824035959598)}
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(6, 1, 8, 8, generator=generator, dtype=torch.float64)
    for augment, expected in sums.items():
        denoiser = new_denoiser(Model(augment=augment).spec(0.6, (1, 8, 8)), 0).requires_grad_(False)
        weights = [parameter.double() for parameter in denoiser.parameters()]
        found = (sum(w.numel() for w in weights), *(sum(float((w**k).sum()) for w in weights) for k in (1, 2)))
        assert found == pytest.approx(expected, rel=1e-9)
        for parameter in denoiser.parameters():
            parameter.data += 0.05 * torch.arange(parameter.numel()).cos().reshape(parameter.shape)
        answer = denoiser(z, torch.logspace(-1, 1, 6).double())
        assert float(answer.sum()) == pytest.approx(-19.89052874405627, rel=1e-4)
        assert float(answer.square().sum()) == pytest.approx(106.52854660963385, rel=1e-5)


def test_positional_embedding_is_its_formula() -> None:
    c_noise = torch.tensor([0.0, 0.3, -2.0])
    found = positional_embedding(c_noise, 8)
    for i in range(4):
        frequency = 10.0 ** (-4 * i / 3)
        torch.testing.assert_close(found[:, i], (c_noise * frequency).cos())
        torch.testing.assert_close(found[:, 4 + i], (c_noise * frequency).sin())


@pytest.mark.parametrize("width", [4, 8, 32, 128])
def test_frequencies_of_the_positional_embedding_reach_from_1_to_1e_4(width: int) -> None:
    """At a small c_noise the sines are c_noise times the frequencies."""
    frequencies = positional_embedding(torch.tensor([1e-3]), width)[0, width // 2 :] * 1e3
    assert frequencies[[0, -1]].tolist() == pytest.approx([1, 1e-4], rel=1e-5)
    ratios = frequencies[1:] / frequencies[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand(len(ratios)), rtol=1e-4, atol=0)


def test_fourier_embedding_is_its_formula() -> None:
    fourier = Fourier(6)
    fourier.frequencies.copy_(torch.tensor([1.0, 2.0, -1.0]))
    expected = torch.tensor([[1.0, 1, 1, 0, 0, 0], [0, -1, 0, 1, 0, -1]])
    torch.testing.assert_close(fourier(torch.tensor([0.0, 0.25])), expected, rtol=0, atol=1e-6)


def test_fourier_frequencies_are_part_of_the_initial_weights() -> None:
    spec = Model(embedding="fourier", channels=64).spec(0.6, (1, 8, 8))
    first, again, other = (
        new_denoiser(spec, seed).state_dict()["network.embed.noise.frequencies"] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    many = Fourier(20_000).frequencies
    assert abs(float(many.mean())) < 5 * FOURIER_SCALE / 100
    assert float(many.std()) == pytest.approx(FOURIER_SCALE, rel=5 / math.sqrt(2 * 10_000))


def test_the_scale_of_labels_does_not_depend_on_the_number_of_classes() -> None:
    """The embedding of label i is sqrt(classes) times column i of the layer's weights."""
    told = Told(Common("positional", 0.0, classes=5, augmentation=0, outputs=1), 3)
    assert told.label is not None
    found = told(torch.tensor([4, -1, 0]), None)
    weight = told.label.weight
    torch.testing.assert_close(found, math.sqrt(5) * torch.stack([weight[:, 4], 0 * weight[:, 0], weight[:, 0]]))
    for labels in (torch.tensor([5]), torch.tensor([0, 7])):
        with pytest.raises(RuntimeError, match="num_classes"):
            told(labels, None)


def test_conditioning_adds_the_embeddings() -> None:
    conditioning, c_noise, told = Conditioning("positional", 8, 12), torch.tensor([0.3, 0.7]), torch.randn(2, 8)
    expected = conditioning.layers(positional_embedding(c_noise, 8) + told)
    assert expected.shape == (2, 12) and torch.equal(conditioning(c_noise, told), expected)


def test_attention_of_dit_equals_pytorchs() -> None:
    """torch.nn.MultiheadAttention with the same weights."""
    ours, peer = dit.Attention(136), nn.MultiheadAttention(136, 2, batch_first=True)
    assert ours.heads == 2 and dit.Attention(200).heads == 2 and dit.Attention(384).heads == 6
    peer.in_proj_weight.data, peer.in_proj_bias.data = ours.qkv.weight.data, ours.qkv.bias.data
    peer.out_proj.load_state_dict(ours.project.state_dict())
    x = torch.randn(3, 7, 136, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), peer(x, x, x, need_weights=False)[0])


def test_attention_of_ddpmpp_equals_its_formula() -> None:
    """The softmax of q . k / sqrt(C) over all pixels, projected, and added to x at the same variance."""
    attention, x = ddpmpp.Attention(8), torch.randn(2, 8, 3, 5, generator=torch.Generator().manual_seed(0))
    q, k, v = attention.qkv(attention.norm(x)).chunk(3, dim=1)
    weights = torch.einsum("nchw,ncij->nhwij", q, k).div(math.sqrt(8)).flatten(3).softmax(3).reshape(2, 3, 5, 3, 5)
    expected = (x + attention.project(torch.einsum("nhwij,ncij->nchw", weights, v))) / math.sqrt(2)
    torch.testing.assert_close(attention(x), expected)


def test_attention_of_ddpmpp_starts_with_weights_of_variance_a_tenth_over_the_channels() -> None:
    """Over 3 * 256^2 independent uniform numbers, whose square has a coefficient of variation of 0.9."""
    network = build(replace(CIFAR10, channels=128, blocks=1))
    weights = [module.qkv.weight for module in network.modules() if isinstance(module, ddpmpp.Attention)]
    assert weights
    for weight in weights:
        variance = float(weight.detach().square().mean())
        assert variance == pytest.approx(0.1 / 256, rel=5 * 0.9 / math.sqrt(weight.numel()))


def test_patches_return_to_their_place() -> None:
    """With its initial blocks, which are identities, the output of DiT for a patch depends on this patch alone."""
    network = build(replace(SPEC, network="dit", shape=(3, 4, 6)))
    assert isinstance(network, dit.DiT)
    nn.init.normal_(network.head.linear.weight, generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    for row in range(2):
        for column in range(3):
            patch = (..., slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
            other = x.clone()
            other[patch] += 1
            moved = network(other, torch.zeros(1)) - network(x, torch.zeros(1))
            assert moved[patch].all()
            moved[patch] = 0
            assert not moved.any()


def test_positions_encode_rows_and_columns() -> None:
    found = dit.positions(2, 3, 8).reshape(2, 3, 8)
    for row in range(2):
        for column in range(3):
            each = [positional_embedding(torch.tensor([float(place)]), 4)[0] for place in (row, column)]
            torch.testing.assert_close(found[row, column], torch.cat(each))


@pytest.mark.parametrize(
    ("channels", "groups"), [(8, 2), (12, 3), (16, 4), (100, 25), (128, 32), (136, 17), (256, 32), (384, 32)]
)
def test_group_norm_has_32_groups_or_fewer(channels: int, groups: int) -> None:
    assert ddpmpp.norm(channels).num_groups == groups


def test_divisor() -> None:
    assert [divisor(12, most) for most in (1, 2, 4, 5, 7, 12, 30)] == [1, 2, 4, 4, 6, 12, 12]
    assert divisor(37, 36) == 1


def set_generator(network: nn.Module, generator: torch.Generator) -> None:
    for module in network.modules():
        if isinstance(module, Dropout):
            module.generator = generator


def dropped(changes: dict[str, Any], seed: int) -> Tensor:
    network = network_of(changes | {"dropout": 0.3}).train()
    set_generator(network, torch.Generator().manual_seed(seed))
    answer: Tensor = network(*inputs(changes, 4))
    return answer.detach()


@each_network
def test_dropout_uses_its_generator_and_acts_in_training_only(changes: dict[str, Any]) -> None:
    network = network_of(changes | {"dropout": 0.3})
    evaluated = network(*inputs(changes, 4))
    assert torch.equal(evaluated, network_of(changes).train()(*inputs(changes, 4)))
    with pytest.raises(RuntimeError, match="needs a generator"):
        network.train()(*inputs(changes, 4))
    first = dropped(changes, 0)
    assert torch.equal(first, dropped(changes, 0))
    assert not torch.equal(first, dropped(changes, 1)) and not torch.equal(first, evaluated)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(dropped, 4 * [changes], [0, 1, 0, 1]))
    assert all(torch.equal(again, first) for again in together[::2])
    assert torch.equal(together[3], together[1]) and not torch.equal(together[1], first)


def test_dropout_keeps_the_mean() -> None:
    layer = dropout(0.25).train()
    set_generator(layer, torch.Generator().manual_seed(0))
    out = layer(torch.full((40_000,), 3.0))
    assert set(out.tolist()) == {0.0, 4.0}
    assert float(out.mean()) == pytest.approx(3, abs=5 * 4 * math.sqrt(0.25 * 0.75 / 40_000))
    assert not any(isinstance(module, Dropout) for module in dropout(0.0).modules())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multipliers": (1, 1, 1, 1, 1)}, "multipliers: 5 levels .* 16 does not divide both 8 and 8; use"),
        ({"network": "ddpmpp", "shape": (3, 8, 6), "multipliers": (1, 1, 1)}, "multipliers: 3 levels .* 8 and 6;"),
        ({"network": "ddpmpp", "attention": (4, 16)}, "attention: no level has a height of 16 .* 8, 4$"),
        ({"network": "dit", "patch": 3}, "patch: patches of 3 x 3 do not tile images of 8 x 8; use"),
        ({"network": "dit", "shape": (1, 8, 10), "patch": 4}, "patch: patches of 4 x 4 do not tile images of 8 x 10"),
        ({"network": "mlp"}, "network: mlp is for points.*unet, ddpmpp, dit"),
        *(
            ({"network": name, "shape": (2,)}, f"network: {name} is for images.*use mlp")
            for name in NETWORKS
            if name != "mlp"
        ),
    ],
)
def test_shapes_that_a_network_cannot_have_are_refused(changes: dict[str, Any], message: str) -> None:
    for refuse in (build, cost):
        with pytest.raises(StudyError, match=f"^{message}") as caught:
            refuse(replace(SPEC, **changes))
        assert len(str(caught.value).splitlines()) == 1


def test_the_keys_of_a_network_are_those_that_change_it() -> None:
    """A key changes a network if and only if KEYS lists it."""
    assert KEYS.keys() == NETWORKS.keys()
    others = {
        "channels": 32,
        "multipliers": (2, 2),
        "blocks": 3,
        "attention": (4,),
        "patch": 4,
        "embedding": "fourier",
        "dropout": 0.5,
    }
    for name, keys in KEYS.items():
        assert set(keys) <= others.keys() <= Model.model_fields.keys()
        spec = replace(SPEC, network=name, shape=(2,) if name == "mlp" else (1, 8, 8))
        for key, value in others.items():
            assert (str(build(spec)) != str(build(replace(spec, **{key: value})))) == (key in keys), f"{name}: {key}"
