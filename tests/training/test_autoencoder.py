"""Training of autoencoders: they learn, continue to the same bytes, and are exact if they are linear."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import to_range
from pipeline.diffusion.autoencoder import Autoencoder
from pipeline.training import autoencoder as training
from pipeline.training.autoencoder import (
    TrainedAutoencoder,
    encode_images,
    kl_divergence,
    principal_components,
    train_autoencoder,
)
from pipeline.training.autoencoder_row import AutoencoderRow
from pipeline.training.run import Diverged
from tests.diffusion.released import write_released
from tests.training.small import Killed

SMALL: dict[str, Any] = {"factor": 4, "channels": 2, "width": 8, "batch": 8, "warmup_images": 16, "images": 20 * 8}
ROWS = {"kl": AutoencoderRow(**SMALL), "vq": AutoencoderRow(**SMALL, kind="vq", codebook=16)}


def waves(count: int, height: int = 8, width: int = 12) -> Tensor:
    """Smooth random images (count, 3, height, width), uint8."""
    draw = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    phase, frequency, color = (torch.rand(count, n, 1, 1, generator=draw) for n in (1, 2, 3))
    wave = torch.sin(frequency[:, :1] * x + frequency[:, 1:] * y + 6 * phase)
    return ((0.5 + 0.4 * wave * color) * 255).round().to(torch.uint8)


IMAGES = waves(60)


def mse(autoencoder: Autoencoder, images: Tensor) -> float:
    x = to_range(images)
    return float((autoencoder.decode(autoencoder.encode(x)) - x).square().mean())


def same(a: TrainedAutoencoder, b: TrainedAutoencoder) -> bool:
    one, two = a.autoencoder.state_dict(), b.autoencoder.state_dict()
    equal = one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    return equal and a.curve == b.curve and a.facts == b.facts


@pytest.fixture(scope="module")
def whole() -> dict[str, TrainedAutoencoder]:
    """Trainings without interruption."""
    return {kind: train_autoencoder(row, IMAGES) for kind, row in ROWS.items()}


@pytest.mark.parametrize("kind", ROWS)
def test_training_reduces_the_error(kind: str) -> None:
    row = ROWS[kind].model_copy(update={"images": 500 * 8})
    images = waves(200)
    before = train_autoencoder(row.model_copy(update={"images": 8, "learning_rate": 1e-9}), images).facts["mse"]
    trained = train_autoencoder(row, images)
    x = to_range(images)
    assert trained.facts["mse"] < 0.7 * before
    assert trained.facts["mse"] < 0.3 * float((x - x.mean(0)).square().mean())
    assert math.isclose(trained.facts["mse"], mse(trained.autoencoder, images), rel_tol=1e-5)
    assert len(trained.curve) == 50 and trained.curve[-1]["images"] == 500 * 8
    assert trained.curve[-1]["loss"] < trained.curve[0]["loss"]


def test_training_without_its_linear_start_reduces_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_begin_linear", lambda *arguments: None)
    row, x = ROWS["kl"].model_copy(update={"images": 300 * 8}), to_range(IMAGES)
    assert train_autoencoder(row, IMAGES).facts["mse"] < 0.8 * float((x - x.mean(0)).square().mean())


@pytest.mark.parametrize("row", [*ROWS.values(), AutoencoderRow(kind="pca", channels=3)], ids=lambda row: row.kind)
def test_latents_have_mean_0_and_unit_standard_deviation(row: AutoencoderRow) -> None:
    z = encode_images(train_autoencoder(row, IMAGES).autoencoder, IMAGES).double()
    assert z.shape == (60, row.channels, 2, 3)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(row.channels).double(), atol=1e-6, rtol=0)
    assert math.isclose(float(z.square().mean()), 1, rel_tol=1e-5)


def test_facts_of_each_kind(whole: dict[str, TrainedAutoencoder]) -> None:
    assert whole["kl"].facts.keys() == {"mse", "kl"} and whole["kl"].facts["kl"] > 0
    assert whole["vq"].facts.keys() == {"mse", "perplexity"} and 1 < whole["vq"].facts["perplexity"] <= 16


def test_the_kl_divergence_is_that_of_torch() -> None:
    mean, log_variance = torch.randn(2, 5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected)


def test_the_gradient_goes_straight_through_the_quantisation() -> None:
    autoencoder = training.new_autoencoder(ROWS["vq"].spec((3, 8, 12)), 0)
    training.losses_vq(autoencoder, to_range(IMAGES[:5]), 0.0).mean().backward()
    assert all(
        float(p.grad.abs().max()) > 0 for p in (autoencoder.encoder.linear.weight, autoencoder.decoder.codebook.weight)
    )


def deadly(step: int) -> Callable[[int], None]:
    """A progress callback that raises Killed after `step` steps."""
    done = 0

    def progress(images: int) -> None:
        nonlocal done
        done += images // 8
        if done >= step:
            raise Killed

    return progress


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("deaths", [(1,), (2,), (3,), (20,), (3, 3, 8, 13)], ids=str)
def test_a_killed_training_continues_to_the_same_bytes(
    kind: str, deaths: tuple[int, ...], whole: dict[str, TrainedAutoencoder], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    for step in deaths:
        with pytest.raises(Killed):
            train_autoencoder(ROWS[kind], IMAGES, checkpoint, deadly(step))
    reported: list[int] = []
    assert same(train_autoencoder(ROWS[kind], IMAGES, checkpoint, reported.append), whole[kind])
    kept = (deaths[-1] - 1) // 2 * 2
    assert reported == ([kept * 8] if kept else []) + [8] * (20 - kept)


@pytest.mark.parametrize("case", ["row", "data", "broken"])
def test_a_checkpoint_of_another_training_is_not_used(
    case: str, whole: dict[str, TrainedAutoencoder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, other = tmp_path / "checkpoint", ROWS["kl"].model_copy(update={"seed": 1})
    row, images = (other, IMAGES) if case == "row" else (ROWS["kl"], IMAGES.flip(0) if case == "data" else IMAGES)
    train_autoencoder(row, images, checkpoint)
    if case == "broken":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    assert same(train_autoencoder(ROWS["kl"], IMAGES, checkpoint), whole["kl"])
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{checkpoint}: ")


def test_rows_train_side_by_side_to_the_same_bytes(whole: dict[str, TrainedAutoencoder]) -> None:
    rows = [*ROWS.values()] * 2
    results = side_by_side([lambda row=row: train_autoencoder(row, IMAGES) for row in rows], 4)  # type: ignore[misc]
    assert all(same(result, whole[row.kind]) for row, result in zip(rows, results, strict=True))


def test_a_training_that_diverges_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = ROWS["kl"].model_copy(update={"learning_rate": 1e30, "warmup_images": 1})
    with pytest.raises(Diverged, match=r"^seed 0: the \w+ (is|are) not finite at step \d+; lower learning_rate\?$"):
        train_autoencoder(row, IMAGES, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_images_that_are_all_equal_are_refused() -> None:
    with pytest.raises(StudyError, match="all images have the same latents"):
        train_autoencoder(AutoencoderRow(kind="pca", factor=8), torch.full((5, 3, 8, 8), 7, dtype=torch.uint8))


def test_bytes_of_latents_do_not_depend_on_the_images_beside_them(whole: dict[str, TrainedAutoencoder]) -> None:
    for trained in whole.values():
        together = encode_images(trained.autoencoder, IMAGES)
        parts = [encode_images(trained.autoencoder, part) for part in IMAGES.split(7)]
        assert torch.equal(torch.cat(parts), together)


def plain(images: Tensor, factor: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patches (M, d) in [-1, 1], and the eigenvalues and eigenvectors of their covariance, by numpy alone."""
    n, c, h, w = images.shape
    x = images.numpy().astype(np.float64) / 127.5 - 1
    grid = x.reshape(n, c, h // factor, factor, w // factor, factor)
    patches = grid.transpose(0, 2, 4, 1, 3, 5).reshape(-1, c * factor * factor)
    values, vectors = np.linalg.eigh(np.cov(patches.T, bias=True))
    return patches, values[::-1], vectors.T[::-1]


@pytest.mark.parametrize("images", [IMAGES, waves(40, 8, 8)[:, :1]], ids=["wide", "grey"])
def test_principal_components_are_those_of_numpy(images: Tensor) -> None:
    factor, channels = 4, 3
    patches, values, vectors = plain(images, factor)
    mean, found, components = principal_components(images, factor)
    np.testing.assert_allclose(mean, patches.mean(0), atol=1e-12)
    np.testing.assert_allclose(found, values, atol=1e-12)
    np.testing.assert_allclose((components[:channels].numpy() * vectors[:channels]).sum(1) ** 2, 1, atol=1e-9)
    np.testing.assert_allclose(components @ components.T, np.eye(len(components)), atol=1e-12)
    assert bool((components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all())
    trained = train_autoencoder(AutoencoderRow(kind="pca", factor=factor, channels=channels), images)
    assert math.isclose(trained.facts["mse"] * len(values), values[channels:].sum(), rel_tol=1e-4)
    z = (patches - patches.mean(0)) @ components[:channels].numpy().T / values[:channels].mean() ** 0.5
    expected = z.reshape(len(images), images.shape[2] // factor, -1, channels).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(encode_images(trained.autoencoder, images), expected, atol=1e-5)


@pytest.mark.parametrize(("factor", "channels"), [(1, 3), (2, 12)])
def test_all_components_are_the_identity(factor: int, channels: int) -> None:
    row = AutoencoderRow(kind="pca", factor=factor, channels=channels)
    trained = train_autoencoder(row, IMAGES).autoencoder
    x = to_range(IMAGES)
    torch.testing.assert_close(trained.decode(trained.encode(x)), x, atol=2e-6, rtol=0)


def test_a_released_autoencoder_is_read_and_standardised(tmp_path: Path) -> None:
    write_released(tmp_path)
    trained = train_autoencoder(AutoencoderRow(kind="released", folder=str(tmp_path)), IMAGES)
    assert not trained.curve and trained.facts.keys() == {"mse"}
    assert math.isclose(float(encode_images(trained.autoencoder, IMAGES).std(correction=0)), 1, rel_tol=1e-4)
