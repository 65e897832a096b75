"""Autoencoders: shapes, files, sizes, results that do not depend on the batch, and released ones."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.diffusion.autoencoder import (
    Autoencoder,
    AutoencoderSpec,
    decoder_size,
    encoder_size,
    load_autoencoder,
    new_autoencoder,
    save_autoencoder,
)
from pipeline.diffusion.denoiser import new_denoiser, save_denoiser
from pipeline.diffusion.networks.coders import QuantizingDecoder, widths
from pipeline.diffusion.released import read_released, released_config
from pipeline.training.autoencoder_row import AutoencoderRow
from tests.diffusion.released import CONFIG, write_released
from tests.training.small import SPEC

NETWORK: dict[str, Any] = {"width": 16, "blocks": 1}
SPECS = [
    AutoencoderSpec("kl", (3, 16, 16), 4, 4, **NETWORK),
    AutoencoderSpec("kl", (1, 8, 24), 8, 3, **NETWORK),
    AutoencoderSpec("vq", (3, 12, 16), 4, 2, **NETWORK, codebook=32),
    AutoencoderSpec("pca", (3, 9, 15), 3, 5),
    AutoencoderSpec("pca", (1, 4, 4), 1, 1),
]


def random_one(spec: AutoencoderSpec) -> Autoencoder:
    """An autoencoder all of whose weights, shift and scale are random."""
    autoencoder, draw = new_autoencoder(spec, 0), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for values in [*autoencoder.parameters(), autoencoder.shift]:
            values.copy_(torch.randn(values.shape, generator=draw) / max(values[0].numel(), 4) ** 0.5)
        autoencoder.scale.fill_(1.7)
    return autoencoder.eval().requires_grad_(False)


def normal(count: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_shapes_for_any_number_of_images(spec: AutoencoderSpec) -> None:
    autoencoder = random_one(spec)
    for count in (1, 7, 16, spec.shape[1]):
        z = autoencoder.encode(normal(count, spec.shape).double())
        assert z.shape == (count, *autoencoder.latent_shape) and z.dtype == torch.float32
        x = autoencoder.decode(z.double())
        assert x.shape == (count, *spec.shape) and x.dtype == torch.float32


def test_the_latent_shape_divides_each_side() -> None:
    assert SPECS[1].latent_shape == (3, 1, 3)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_bytes_do_not_depend_on_the_batch(spec: AutoencoderSpec) -> None:
    autoencoder = random_one(spec)
    x, z = normal(600, spec.shape), normal(600, spec.latent_shape)
    for function, batch in ((autoencoder.encode, x), (autoencoder.decode, z)):
        whole = function(batch)
        for size in (1, 5, 16, 100, 516):
            assert torch.equal(torch.cat([function(part) for part in batch[:1040].split(size)][:8]), whole[: 8 * size])


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_shift_and_scale_cancel_between_encoder_and_decoder(spec: AutoencoderSpec) -> None:
    autoencoder, x = random_one(spec), normal(16, spec.shape)
    z = autoencoder.encoder(x)[:, : spec.channels]
    torch.testing.assert_close(autoencoder.encode(x) * 1.7 + autoencoder.shift[:, None, None], z, atol=1e-5, rtol=1e-5)
    if spec.kind != "vq":  # which rounds to the nearest vector
        torch.testing.assert_close(
            autoencoder.decode(autoencoder.encode(x)), autoencoder.decoder(z), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_file_gives_the_same_autoencoder_and_the_same_bytes(spec: AutoencoderSpec, tmp_path: Path) -> None:
    autoencoder, x = random_one(spec), normal(16, spec.shape)
    save_autoencoder(autoencoder, tmp_path / "one.safetensors")
    loaded = load_autoencoder(tmp_path / "one.safetensors")
    assert loaded.spec == spec and not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded.decode(loaded.encode(x)), autoencoder.decode(autoencoder.encode(x)))
    save_autoencoder(loaded, tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_files_that_are_no_autoencoders_are_refused_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    with pytest.raises(StudyError, match=r"one\.safetensors: missing"):
        load_autoencoder(path)
    save_denoiser(new_denoiser(SPEC, 0), path)
    with pytest.raises(StudyError, match=r"one\.safetensors: not as this study wrote it"):
        load_autoencoder(path)
    save_autoencoder(random_one(SPECS[0]), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StudyError, match=r"one\.safetensors: not as this study wrote it"):
        load_autoencoder(path)


def test_seeds_differ_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    weights = [new_autoencoder(SPECS[0], seed).encoder.linear.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_each_vector_becomes_the_nearest_one_of_the_codebook() -> None:
    decoder, z = random_one(SPECS[2]).decoder, normal(5, SPECS[2].latent_shape)
    assert isinstance(decoder, QuantizingDecoder)
    nearest = torch.cdist(z.movedim(1, -1).flatten(0, 2), decoder.codebook.weight).argmin(1)
    assert torch.equal(decoder.codes(z).flatten(), nearest)
    assert torch.equal(decoder.quantized(z)[1, :, 2, 3], decoder.codebook.weight[decoder.codes(z)[1, 2, 3]])


def test_finer_levels_are_narrower() -> None:
    assert widths(40, 8) == [40, 16, 8, 8] and widths(32, 2) == [32, 16]


def test_sizes_count_one_image() -> None:
    pca = AutoencoderSpec("pca", (3, 8, 8), 4, 5)
    assert encoder_size(pca).flops == decoder_size(pca).flops == 2 * 4 * 5 * 48
    assert encoder_size(pca).parameters == 5 * 48 + 48
    small, wide = (decoder_size(AutoencoderSpec("kl", (3, 16, 16), 4, 4, width, 1)) for width in (16, 64))
    assert 0 < small.flops < wide.flops / 4


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    write_released(folder)
    return folder


def test_a_released_autoencoder_gives_what_diffusers_gives(released: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    row = AutoencoderRow(kind="released", folder=str(released))
    autoencoder = Autoencoder(row.spec((3, 16, 24)), read_released(released)).eval().requires_grad_(False)
    assert autoencoder.latent_shape == (2, 8, 12)
    peer = AutoencoderKL.from_pretrained(released, local_files_only=True, low_cpu_mem_usage=False).eval()
    save_autoencoder(autoencoder, tmp_path / "saved.safetensors")
    x = normal(16, (3, 16, 24))
    with torch.no_grad():
        z = peer.encode(x).latent_dist.mean
        decoded = peer.decode(z).sample
    for one in (autoencoder, load_autoencoder(tmp_path / "saved.safetensors")):
        torch.testing.assert_close(one.encode(x), z, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(one.decode(z), decoded, atol=1e-6, rtol=1e-6)
    assert decoder_size(autoencoder.spec).parameters > 100


def test_a_file_of_a_released_autoencoder_does_not_know_its_folder(released: Path) -> None:
    assert not [key for key in released_config(released) if key.startswith("_")]


def pickled(folder: Path) -> None:
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")


def configured(folder: Path, changes: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps({**json.loads((folder / "config.json").read_text()), **changes}))


def cut(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-20])


WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (pickled, rf"no {WEIGHTS}, and pickles \(.bin\) are not read; use what"),
        (
            lambda folder: (folder / "config.json").unlink(),
            "no config.json; use what diffusers' save_pretrained writes",
        ),
        (partial(cut, name="config.json"), "config.json: not the configuration of an AutoencoderKL"),
        (
            partial(configured, changes={"_class_name": "VQModel"}),
            r"not the configuration of an AutoencoderKL \(VQModel",
        ),
        (partial(configured, changes={"block_out_channels": 3}), "not the configuration of an AutoencoderKL"),
        (partial(configured, changes={"block_out_channels": []}), "not the configuration of an AutoencoderKL"),
        (partial(cut, name=WEIGHTS), f"{WEIGHTS}: not the weights of its config.json"),
        (partial(configured, changes={"layers_per_block": 2}), f"{WEIGHTS}: not the weights of its config.json"),
        (partial(configured, changes={"latent_channels": 3}), f"{WEIGHTS}: not the weights of its config.json"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_in_a_line(
    harm: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    write_released(tmp_path)
    harm(tmp_path)
    with pytest.raises(StudyError, match=said) as caught:
        read_released(tmp_path)
    assert str(caught.value).startswith(str(tmp_path)) and len(str(caught.value)) < 300


def test_a_released_autoencoder_of_other_channels_is_refused(released: Path) -> None:
    row = AutoencoderRow(kind="released", folder=str(released))
    assert CONFIG["in_channels"] == 3
    with pytest.raises(StudyError, match="is for images with 3 channels, not 1"):
        row.spec((1, 16, 16))
    with pytest.raises(StudyError, match="factor: 2 does not divide images of 15 x 16"):
        row.spec((3, 15, 16))
