"""The denoiser of a network: formula, dtypes, shapes, labels, and its file."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.tensors import save_tensors
from pipeline.diffusion.denoiser import MEMORY_FORMATS, Denoiser, load_denoiser, per_sample, save_denoiser
from pipeline.diffusion.networks.registry import build, cost
from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.diffusion.spec import Spec

SPEC = Spec(
    parametrization="edm",
    sigma_data=0.6,
    shape=(1, 8, 8),
    network="unet",
    channels=16,
    multipliers=(1, 2),
    blocks=1,
    attention=(),
    patch=2,
    dropout=0.0,
    embedding="positional",
    memory_format="channels_last",
    augmentation=0,
    classes=(),
)
NETWORKS_OF: dict[str, dict[str, Any]] = {  # one of each, with all that it may have
    "unet": {"embedding": "fourier", "classes": (5, 7)},
    "ddpmpp": {"network": "ddpmpp", "shape": (3, 8, 16), "attention": (4,), "memory_format": "contiguous"},
    "dit": {"network": "dit", "shape": (3, 8, 16), "classes": (5, 7), "augmentation": 9, "embedding": "fourier"},
    "mlp": {"network": "mlp", "shape": (2,), "classes": (5, 7)},
    "variance": {"parametrization": "ddpm", "shape": (3, 8, 8), "learned_variance": True},
}

all_parametrizations = pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)


def denoiser_of(**changes: Any) -> Denoiser:
    """A denoiser with random weights, including those that start at 0."""
    denoiser = Denoiser(replace(SPEC, **changes))
    generator = torch.Generator().manual_seed(0)
    for parameter in denoiser.parameters():
        parameter.data.normal_(0, 0.05, generator=generator)
    return denoiser.eval().requires_grad_(False)


def images(count: int, shape: tuple[int, ...] = (1, 8, 8)) -> Tensor:
    return torch.randn(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@all_parametrizations
@pytest.mark.parametrize("count", [8, 5, 1])
def test_the_denoiser_equals_its_formula(parametrization: str, count: int) -> None:
    """For each sample, also if the batch size equals the image width."""
    denoiser = denoiser_of(parametrization=parametrization)
    z, sigma = images(count), torch.logspace(-1, 1, count).double()
    together, common = denoiser(z, sigma), denoiser(z, sigma[0])
    for i in range(count):
        for levels, actual in ((sigma[i], together), (sigma[0], common)):
            c_skip, c_out, c_in, c_noise = (float(c) for c in PARAMETRIZATIONS[parametrization](levels, 0.6))
            f = denoiser.network((c_in * z[i : i + 1]).float(), torch.tensor([c_noise]))
            torch.testing.assert_close(actual[i], c_skip * z[i] + c_out * f[0].double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", ["unet", "dit", "mlp"])
def test_each_image_has_its_own_label(network: str) -> None:
    """-1 is no label, and a network without classes ignores labels."""
    changes = NETWORKS_OF[network]
    denoiser, sigma = denoiser_of(**changes), torch.tensor(0.5, dtype=torch.float64)
    z, labels = images(4, denoiser.shape), torch.tensor([0, -1, 1, 0])
    assert denoiser.classes == (5, 7)
    untold, told = denoiser(z, sigma), denoiser(z, sigma, labels)
    assert torch.equal(denoiser(z, sigma, torch.full((4,), -1)), untold)
    assert torch.equal(told[1], untold[1])
    assert not any(torch.equal(told[i], untold[i]) for i in (0, 2, 3))
    without = denoiser_of(**changes | {"classes": ()})
    assert torch.equal(without(z, sigma, labels), without(z, sigma))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma_dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype, sigma_dtype: torch.dtype) -> None:
    z = images(3).to(dtype)
    for sigma in (torch.tensor(0.5, dtype=sigma_dtype), torch.full((3,), 0.5, dtype=sigma_dtype)):
        denoised = denoiser_of()(z, sigma)
        assert denoised.dtype == dtype and denoised.shape == z.shape


def test_the_skip_connection_keeps_float64() -> None:
    """A new network returns 0, so D is c_skip z up to float64 rounding."""
    z, sigma = images(4), torch.tensor(0.5, dtype=torch.float64)
    torch.testing.assert_close(Denoiser(SPEC)(z, sigma), z * 0.6**2 / (0.5**2 + 0.6**2), rtol=1e-14, atol=0)


@all_parametrizations
def test_evaluation_gives_no_warning(parametrization: str, recwarn: pytest.WarningsRecorder) -> None:
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        denoiser_of(parametrization=parametrization)(images(3), torch.tensor(0.5, dtype=torch.float64))
    finally:
        torch.set_warn_always(always)
    assert [str(warning.message) for warning in recwarn] == []


def test_per_sample_expands_over_the_batch_axis() -> None:
    like = torch.zeros(8, 1, 8, 8)
    assert per_sample(torch.arange(8).double(), like).shape == (8, 1, 1, 1)
    assert per_sample(torch.arange(8).double(), like).dtype == torch.float32


@pytest.mark.parametrize(("shape", "levels"), [((1, 8, 8), 5), ((1, 28, 28), 4), ((3, 8, 6), 3), ((1, 9, 8), 2)])
def test_levels_that_do_not_divide_the_size_are_refused(shape: tuple[int, ...], levels: int) -> None:
    with pytest.raises(StudyError, match="use fewer levels") as caught:
        Denoiser(replace(SPEC, shape=shape, multipliers=levels * (1,)))
    assert len(str(caught.value).splitlines()) == 1
    assert Denoiser(replace(SPEC, shape=shape, multipliers=(1,)))(images(1, shape), torch.tensor(1.0)).isfinite().all()


def test_a_spec_is_json_with_sorted_keys() -> None:
    text = (
        '{"attention": [], "augmentation": 0, "blocks": 1, "channels": 16, "classes": [], "dropout": 0.0, '
        '"embedding": "positional", "learned_variance": false, "memory_format": "channels_last", '
        '"multipliers": [1, 2], "network": "unet", "parametrization": "edm", "patch": 2, '
        '"shape": [1, 8, 8], "sigma_data": 0.6}'
    )
    assert json.dumps(SPEC.record()) == text and Spec.of(json.loads(text)) == SPEC


def test_a_file_from_before_variances_were_learned_is_read(tmp_path: Path) -> None:
    denoiser = denoiser_of()
    record = {key: value for key, value in SPEC.record().items() if key != "learned_variance"}
    save_tensors(tmp_path / "old.safetensors", denoiser.state_dict(), "spec", record)
    z, sigma = images(4), torch.tensor(0.5, dtype=torch.float64)
    assert torch.equal(load_denoiser(tmp_path / "old.safetensors")(z, sigma), denoiser(z, sigma))


@pytest.mark.parametrize("network", ["unet", "ddpmpp", "dit"])
@pytest.mark.parametrize("count", [8, 5])
def test_a_learned_variance_follows_the_denoised_images(network: str, count: int) -> None:
    """D is as without it; v is 1/2 where the network answers 0, 0 at -1 and 1 at 1."""
    denoiser = denoiser_of(network=network, shape=(3, 8, 8), parametrization="ddpm", learned_variance=True)
    z, sigma = images(count, (3, 8, 8)), torch.logspace(-1, 1, count).double()
    both, denoised = denoiser.with_variance(z, sigma), denoiser(z, sigma)
    assert both.dtype == z.dtype and both.shape == (count, 6, 8, 8) and torch.equal(both[:, :3], denoised)
    c_in, c_noise = (getattr(denoiser.coefficients(sigma, 0.6), key) for key in ("c_in", "c_noise"))
    output = denoiser.network((per_sample(c_in, z) * z).float(), c_noise.float())
    assert torch.equal(both[:, 3:], (output[:, 3:].double() + 1) / 2)
    assert bool((output[:, 3:] != 0).all())


@pytest.mark.parametrize("network", ["unet", "ddpmpp", "dit"])
def test_a_learned_variance_doubles_the_channels_of_the_last_layer_only(network: str) -> None:
    spec = replace(SPEC, network=network, shape=(3, 8, 8))
    plain, learned = build(spec).state_dict(), build(replace(spec, learned_variance=True)).state_dict()
    assert list(plain) == list(learned)
    longer = {
        name: (len(learned[name]), len(plain[name])) for name in plain if learned[name].shape != plain[name].shape
    }
    assert len(longer) == 2 and all(name.startswith("head.") and a == 2 * b for name, (a, b) in longer.items())
    more = [b - a for a, b in zip(cost(spec), cost(replace(spec, learned_variance=True)), strict=True)]
    assert more[0] == sum(plain[name].numel() for name in longer) and more[1] > 0


def test_a_network_that_learns_no_variance_is_not_asked_for_it() -> None:
    with pytest.raises(StudyError, match="set learned_variance in the model's row"):
        denoiser_of().with_variance(images(2), torch.tensor(0.5))


@pytest.mark.parametrize(
    "changes",
    [{}, {"parametrization": "flow", "shape": (3, 8, 16), "multipliers": (1, 1, 2)}, *NETWORKS_OF.values()],
)
def test_save_and_load_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
    denoiser = denoiser_of(**changes)
    save_denoiser(denoiser, tmp_path / "a.safetensors")
    again = load_denoiser(tmp_path / "a.safetensors")
    assert again.spec == denoiser.spec and not again.training
    for name, value in denoiser.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    strides = [parameter.stride() for parameter in denoiser.parameters()]
    assert [parameter.stride() for parameter in again.parameters()] == strides, "another memory format"
    z, sigma = images(4, denoiser.shape), torch.logspace(-1, 1, 4).double()
    assert torch.equal(again(z, sigma), denoiser(z, sigma))
    save_denoiser(again, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_memory_format_follows_the_spec() -> None:
    for name, memory_format in MEMORY_FORMATS.items():
        found = denoiser_of(memory_format=name, shape=[3, 8, 8]).network.state_dict()["stem.weight"]
        assert found.is_contiguous(memory_format=memory_format), name
        assert sum(found.is_contiguous(memory_format=other) for other in MEMORY_FORMATS.values()) == 1


@pytest.mark.parametrize("network", NETWORKS_OF)
def test_loading_does_not_use_the_global_generator(tmp_path: Path, network: str) -> None:
    save_denoiser(denoiser_of(**NETWORKS_OF[network]), tmp_path / "a.safetensors")
    before = torch.get_rng_state()
    load_denoiser(tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


FOREIGN = "not as this study wrote it"


def other_tensors(path: Path) -> None:
    save_tensors(path, {"x": torch.zeros(3)}, "spec", SPEC.record())


def other_shapes(path: Path) -> None:
    save_tensors(path, denoiser_of().state_dict(), "spec", replace(SPEC, channels=8).record())


def spec_of(value: Any) -> Callable[[Path], None]:
    return lambda path: save_tensors(path, {"x": torch.zeros(3)}, "spec", value)


@pytest.mark.parametrize(
    ("harm", "cause"),
    [
        (Path.unlink, "missing"),
        (lambda path: path.write_bytes(b""), FOREIGN),
        (
            lambda path: path.write_bytes(b"not a model at all, but long enough for a header"),
            FOREIGN,
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), FOREIGN),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), FOREIGN),
        (
            lambda path: save_tensors(path, denoiser_of().state_dict(), "snapshot", SPEC.record()),
            FOREIGN,
        ),
        (spec_of({}), FOREIGN),
        (spec_of([]), FOREIGN),
        (spec_of(asdict(SPEC) | {"parametrization": "other"}), FOREIGN),
        (spec_of(asdict(SPEC) | {"shape": None}), FOREIGN),
        (spec_of(asdict(SPEC) | {"shape": (1, 9, 9)}), "use fewer levels"),
        (spec_of(asdict(SPEC) | {"network": "other"}), FOREIGN),
        (spec_of(asdict(SPEC) | {"network": "dit", "patch": 0}), FOREIGN),
        (
            spec_of({key: value for key, value in asdict(SPEC).items() if key != "classes"}),
            FOREIGN,
        ),
        (other_tensors, FOREIGN),
        (other_shapes, FOREIGN),
    ],
)
def test_files_that_are_not_models_are_refused_in_one_line(
    tmp_path: Path, harm: Callable[[Path], object], cause: str
) -> None:
    path = tmp_path / "model.safetensors"
    save_denoiser(denoiser_of(), path)
    harm(path)
    with pytest.raises(StudyError) as caught:
        load_denoiser(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and cause in message
    assert len(message.splitlines()) == 1
