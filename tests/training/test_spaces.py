"""The training data in the space of a model: bytes, standard deviation, and the training of autoencoders."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import Dataset, to_range
from pipeline.diffusion.autoencoder import Autoencoder
from pipeline.diffusion.space import Space, save_space
from pipeline.training import spaces
from pipeline.training.autoencoder_row import AutoencoderRow
from pipeline.training.spaces import CHUNK, encoded, in_space, space_of, summary, train_autoencoders
from tests.training.test_autoencoder import ROWS, SMALL, waves

IMAGES = waves(CHUNK + 30)
SHAPE = (3, 8, 12)
PCA = AutoencoderRow(kind="pca", factor=4, channels=5)
ALL = {**ROWS, "pca": PCA}


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Autoencoder]:
    """One autoencoder of each kind, trained briefly on IMAGES."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("autoencoders"))
        trained = train_autoencoders(ALL, IMAGES, lambda images: None)
    return {name: one.autoencoder for name, one in trained.items()}


def space(kind: str, autoencoders: dict[str, Autoencoder]) -> Space:
    if kind in autoencoders:
        return space_of(IMAGES, 0.5, autoencoder=autoencoders[kind])
    return space_of(IMAGES, 0.5, resolution=2)


def std(values: Tensor) -> float:
    return float(np.std(values.numpy(), dtype=np.float64))


@pytest.mark.parametrize("kind", [*ALL, "a resolution"])
def test_bytes_do_not_depend_on_how_many_images_there_are(kind: str, autoencoders: dict[str, Autoencoder]) -> None:
    here = space(kind, autoencoders)
    whole = encoded(here, IMAGES)
    assert whole.dtype == torch.float32 and len(whole) == len(IMAGES) and whole.is_contiguous()
    for count in (1, 3, 30, CHUNK, CHUNK + 1):
        assert torch.equal(whole[:count], encoded(here, IMAGES[:count])), count
    assert torch.equal(whole[-7:], encoded(here, IMAGES[-7:]))


def test_data_in_their_own_space_stay_as_they_are() -> None:
    points = torch.zeros(3, 2)
    assert encoded(space_of(IMAGES, 0.5), IMAGES) is IMAGES and encoded(space_of(points, 0.5), points) is points
    assert space_of(IMAGES, 0.5) == Space(SHAPE, 0.5)


def test_images_of_another_shape_are_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"images of \(3, 8, 8\), but the space is of \(3, 8, 12\)"):
        encoded(space_of(IMAGES, 0.5, resolution=4), IMAGES[..., :8])


def test_a_resolution_has_the_standard_deviation_of_averaged_images() -> None:
    averaged = to_range(IMAGES).reshape(-1, 3, 2, 4, 3, 4).mean((3, 5))
    here = space_of(IMAGES, 0.5, resolution=2)
    torch.testing.assert_close(encoded(here, IMAGES), averaged)
    assert here.sigma_data == pytest.approx(std(averaged), rel=1e-6)
    assert here.sigma_data < std(to_range(IMAGES))


@pytest.mark.parametrize("kind", ALL)
def test_latents_have_mean_0_and_unit_standard_deviation(kind: str, autoencoders: dict[str, Autoencoder]) -> None:
    here = space(kind, autoencoders)
    z = encoded(here, IMAGES)
    assert z.shape[1:] == autoencoders[kind].latent_shape and here.sigma_data == 1
    assert std(z) == pytest.approx(1, abs=1e-5)
    assert z.double().mean((0, 2, 3)).abs().max() < 1e-5


def test_a_training_gets_the_data_of_its_space(tmp_path: Path, autoencoders: dict[str, Autoencoder]) -> None:
    data, about = Dataset(IMAGES, None, ()), {"sigma_data": 0.5, "count": len(IMAGES)}
    for kind in ("kl", "a resolution"):
        here = space(kind, autoencoders)
        save_space(here, tmp_path / kind)
        images, changed = in_space(tmp_path / kind, data, about)
        assert torch.equal(images, encoded(here, IMAGES))
        assert changed == about | {"sigma_data": here.sigma_data}


def test_an_autoencoder_of_other_data_is_refused_in_a_line(autoencoders: dict[str, Autoencoder]) -> None:
    with pytest.raises(StudyError) as caught:
        space_of(IMAGES[..., :8], 0.5, autoencoder=autoencoders["kl"])
    assert str(caught.value) == "the autoencoder is for images of 3 x 8 x 12, not images of 3 x 8 x 8"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (AutoencoderRow(factor=8), "autoencoders.bad: factor: 8 does not divide images of 8 x 12"),
        (AutoencoderRow(**SMALL | {"learning_rate": 1e12}), "autoencoders.bad: .*not finite"),
    ],
    ids=["a factor", "a training that diverges"],
)
@pytest.mark.usefixtures("empty")
def test_an_error_names_the_row(row: AutoencoderRow, said: str) -> None:
    with pytest.raises(StudyError, match=said) as caught:
        train_autoencoders({"good": PCA, "bad": row}, IMAGES, lambda images: None)
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("empty")
def test_a_second_call_trains_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    first, again = list[int](), list[int]()
    trained = train_autoencoders(ROWS, IMAGES, first.append)
    assert len(list(Path(".cache/training").iterdir())) == len(ROWS)
    assert sorted(first) == [SMALL["batch"]] * (2 * SMALL["images"] // SMALL["batch"])
    second = train_autoencoders(ROWS, IMAGES, again.append)
    assert again == [SMALL["images"]] * len(ROWS)
    for name, one in trained.items():
        assert (second[name].curve, second[name].facts) == (one.curve, one.facts)
        weights = one.autoencoder.state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in second[name].autoencoder.state_dict().items())
    other = list[int]()
    train_autoencoders({"kl": ROWS["kl"].model_copy(update={"seed": 1})}, IMAGES, other.append)
    assert len(other) == SMALL["images"] // SMALL["batch"]


@pytest.mark.usefixtures("empty")
def test_results_do_not_depend_on_the_number_of_workers(
    autoencoders: dict[str, Autoencoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spaces, "side_by_side", lambda tasks, workers: side_by_side(tasks, 1))
    for name, one in train_autoencoders(ALL, IMAGES, lambda images: None).items():
        weights = autoencoders[name].state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in one.autoencoder.state_dict().items())


@pytest.mark.usefixtures("empty")
def test_a_summary_has_the_sizes_of_both_networks() -> None:
    [trained] = train_autoencoders({"pca": PCA}, IMAGES, lambda images: None).values()
    found = summary(trained)
    assert found["encoder_flops"] == found["decoder_flops"] == 2 * 2 * 3 * 5 * 48  # 2 x 3 patches
    assert found["values"] == 5 * 2 * 3 / (3 * 8 * 12) and found["curve"] == []
    assert found["parameters"] == 2 * (5 * 48 + 48)  # both have the mean patch


def test_images_are_encoded_where_they_are(autoencoders: dict[str, Autoencoder]) -> None:
    """The autoencoder follows the images to their device, as on a GPU."""
    moved = []

    class Watched(Space):
        def on(self, device: torch.device) -> Space:
            moved.append(device)
            return super().on(device)

    device = torch.device("cpu")
    encoded(Watched(SHAPE, 1.0, autoencoder=autoencoders["pca"]), IMAGES, device)
    assert moved == [device]
