"""Spaces: files that give the same space again, and samples that come back to the data's shape."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.common.devices import CPU
from pipeline.common.errors import StudyError
from pipeline.diffusion.autoencoder import AutoencoderSpec, new_autoencoder
from pipeline.diffusion.space import AUTOENCODER, Space, load_space, save_space

SHAPE = (3, 8, 16)


def latents() -> Space:
    """A space of latents (4, 4, 8), with the initial weights of seed 0, a shift and a scale."""
    autoencoder = new_autoencoder(AutoencoderSpec("kl", SHAPE, 2, 4, width=8, blocks=1), 0).eval()
    autoencoder.requires_grad_(False).shift.copy_(torch.arange(4) / 8)
    autoencoder.scale.fill_(0.7)
    return Space(SHAPE, 1.0, autoencoder=autoencoder)


SPACES: dict[str, Callable[[], Space]] = {
    "pixels": lambda: Space(SHAPE, 0.4375),
    "points": lambda: Space((2,), 0.1),
    "a resolution": lambda: Space(SHAPE, 1 / 3, resolution=4),
    "latents": latents,
}


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SPACES)
def test_a_folder_gives_the_same_space_and_the_same_bytes(tmp_path: Path, name: str) -> None:
    space = SPACES[name]()
    save_space(space, tmp_path / "one")
    loaded = load_space(tmp_path / "one")
    assert replace(loaded, autoencoder=None, content="") == replace(space, autoencoder=None, content="")
    assert loaded.is_data == (name in ("pixels", "points"))
    x = normal(5, *space.shape)
    z = space.encode(x)
    assert torch.equal(loaded.encode(x), z) and torch.equal(loaded.decode(z), space.decode(z))
    save_space(loaded, tmp_path / "two")
    files = [sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in ("one", "two")]
    assert files[0] == files[1] == [AUTOENCODER] * (name == "latents") + ["space.json"]
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files[0])


def test_the_content_is_that_of_the_weights(tmp_path: Path) -> None:
    space = latents()
    found = []
    for scale in (0.7, 0.7, 0.8):
        assert space.autoencoder
        space.autoencoder.scale.fill_(scale)
        save_space(space, tmp_path)
        found.append(load_space(tmp_path).content)
    assert found[0] == found[1] != found[2] and all(found)
    save_space(SPACES["a resolution"](), tmp_path / "other")
    assert load_space(tmp_path / "other").content == ""


@pytest.mark.parametrize("place", [9, 90, 400, -9])
@pytest.mark.parametrize("name", ["space.json", AUTOENCODER])
def test_a_flipped_bit_is_one_line(tmp_path: Path, name: str, place: int) -> None:
    save_space(latents(), tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[place % len(content)] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StudyError, match=f"{name}: not as this study wrote it") as caught:
        load_space(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["space.json", AUTOENCODER])
def test_a_missing_file_is_one_line(tmp_path: Path, name: str) -> None:
    save_space(latents(), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(StudyError, match=f"{name}: missing; `dvc repro` makes it"):
        load_space(tmp_path)


@pytest.mark.parametrize("count", [1, 8, 17])
@pytest.mark.parametrize("name", SPACES)
def test_samples_come_back_to_the_shape_of_the_data(name: str, count: int) -> None:
    space = SPACES[name]()
    z = space.encode(normal(count, *space.shape))
    assert z.shape[1:] == {"a resolution": (3, 4, 8), "latents": (4, 4, 8)}.get(name, space.shape)
    assert space.decode(z).shape == (count, *space.shape)


def test_a_resolution_keeps_the_mean_of_constant_images() -> None:
    space, x = SPACES["a resolution"](), torch.full((2, *SHAPE), 0.25)
    assert torch.equal(space.encode(x), torch.full((2, 3, 4, 8), 0.25))
    assert torch.equal(space.decode(space.encode(x)), x)


def test_a_space_on_a_device_is_the_same_space() -> None:
    meta = torch.device("meta")
    space = latents().on(meta)
    assert space.autoencoder and {p.device for p in space.autoencoder.parameters()} == {meta}
    assert space.decode(torch.empty(3, 4, 4, 8, device=meta)).shape == (3, *SHAPE)
    for name in ("pixels", "points", "a resolution"):
        assert SPACES[name]().on(CPU) == SPACES[name]()
    z = normal(3, 4, 4, 8)
    assert torch.equal(latents().on(CPU).decode(z), latents().decode(z))
