"""Losses of projections and samplers against runs in the space of images, closed forms, and drawn samples."""

import math
from dataclasses import asdict

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.common.errors import StudyError
from pipeline.diffusion.gaussian import CorrelatedGaussian
from pipeline.evaluation.latent_oracle import (
    LatentLosses,
    Projection,
    image_gaussian,
    latent_losses,
    latent_oracle,
    patch_components,
    sampled_law,
)
from pipeline.metrics.estimate import moments
from pipeline.metrics.frechet import frechet_distance
from pipeline.sampling.loop import sample
from pipeline.sampling.row import Sampler

F64 = torch.float64
SHAPE = (2, 4, 4)
HEUN = Sampler(solver="heun", nfe=(99,))
DETERMINISTIC = ["euler", "heun", "rk4", "dpmpp_2m", "unipc", "deis", "lms"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def photographs(count: int = 400, size: int = 4, colours: int = 2) -> Tensor:
    """Correlated uint8 images."""
    draws = torch.Generator().manual_seed(0)
    coarse = interpolate(torch.randn(count, colours, 2, 2, generator=draws), size, mode="bilinear")
    pixels = 128 + 20 * torch.randn(count, 1, 1, 1, generator=draws) + 40 * coarse
    return (pixels + 6 * torch.randn(count, colours, size, size, generator=draws)).clamp(0, 255).to(torch.uint8)


def data() -> CorrelatedGaussian:
    return image_gaussian(photographs())


def encode(projection: Projection, x: Tensor) -> Tensor:
    return projection.scale * (x - projection.offset) @ projection.matrix.T


def decode(projection: Projection, z: Tensor) -> Tensor:
    return z / projection.scale @ projection.matrix + projection.offset


def pushed(images: CorrelatedGaussian, projection: Projection, sampler: Sampler, steps: int) -> CorrelatedGaussian:
    """The law of decoded samples, from one run of the sampler on zero and on all unit vectors."""
    latents, k = projection.encoded(images), len(projection.matrix)
    noise = torch.cat([torch.zeros(1, k, dtype=F64), torch.eye(k, dtype=F64)])
    centre, *columns = decode(projection, sample(latents, noise, sampler, steps).x0)
    offsets = torch.stack(columns) - centre
    return CorrelatedGaussian(centre, offsets.T @ offsets)


def test_the_gaussian_of_images_has_their_moments_in_the_range_of_networks() -> None:
    images = photographs()
    x = images.double().flatten(1) / 127.5 - 1
    torch.testing.assert_close(data().mean, x.mean(0), rtol=0, atol=1e-7)
    torch.testing.assert_close(data().covariance, x.T.cov(), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("factor", "channels"), [(2, 3), (4, 7), (1, 1)])
def test_patch_components_are_those_of_all_patches_of_all_images(factor: int, channels: int) -> None:
    """Places are rows of latents after channels, as in an image (channels, H / factor, W / factor)."""
    images = photographs()
    found = patch_components(data(), SHAPE, factor, channels)
    x = images.double() / 127.5 - 1
    patches = x.unfold(2, factor, factor).unfold(3, factor, factor)  # (N, C, h, w, factor, factor)
    flat = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    components = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:channels]
    inside = (flat - flat.mean(0)) @ components.T @ components + flat.mean(0)
    h = 4 // factor
    expected = inside.reshape(len(x), h, h, 2, factor, factor).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)
    latents = encode(found, x.flatten(1))
    torch.testing.assert_close(decode(found, latents).reshape(x.shape), expected, rtol=0, atol=2e-5)
    maps = latents.reshape(len(x), channels, h, h)
    coordinates = ((flat - flat.mean(0)) @ components.T).reshape(len(x), h, h, channels).permute(0, 3, 1, 2)
    torch.testing.assert_close(maps.abs(), float(found.scale) * coordinates.abs(), rtol=0, atol=1e-4)
    assert float(maps.square().mean().sqrt()) == pytest.approx(1, rel=2e-3)  # the covariance divides by N - 1


def test_components_of_whole_images_lose_the_discarded_eigenvalues() -> None:
    values = data().variances.flip(0)
    for channels in (1, 5, 31, 32):
        projection = patch_components(data(), SHAPE, 4, channels)
        lost = projection.loss(data())
        assert lost == pytest.approx(float(values[channels:].sum()), rel=1e-9, abs=1e-13)
        exact = projection.decoded(projection.encoded(data()))
        assert lost == pytest.approx(data().frechet(exact), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("factor", [2, 4])
def test_data_of_few_dimensions_lose_nothing(factor: int) -> None:
    """Each patch of factor x factor pixels has one value per channel."""
    small = photographs(size=4 // factor)
    images = small.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    for losses in latent_oracle(images, factor, 2, HEUN, [5]):
        assert losses.autoencoder < 1e-13 and losses.sampler > 1e-6 and losses.both == pytest.approx(losses.sampler)
    [lossy] = latent_oracle(images, factor, 1, HEUN, [5])
    assert lossy.autoencoder > 0.01


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_losses_are_the_distances_of_laws_of_whole_images(solver: str, factor: int) -> None:
    """All three distances in the space of images, where patch components and the data share no eigenvectors."""
    images, sampler = data(), Sampler(solver=solver, nfe=(99,))
    projection = patch_components(images, SHAPE, factor, 3)
    exact = projection.decoded(projection.encoded(images))
    identity = Projection(torch.eye(32, dtype=F64), torch.zeros(32, dtype=F64))
    for losses in latent_losses(images, projection, sampler, [6, 18]):
        made = pushed(images, projection, sampler, losses.steps)
        assert losses.autoencoder == pytest.approx(images.frechet(exact), rel=1e-8)
        assert losses.sampler == pytest.approx(exact.frechet(made), rel=1e-7, abs=1e-12)
        assert losses.both == pytest.approx(images.frechet(made), rel=1e-8)
        whole = pushed(images, identity, sampler, losses.steps)
        assert losses.pixels == pytest.approx(images.frechet(whole), rel=1e-7, abs=1e-12)
        assert losses.nfe == sampler.evaluations(losses.steps)
        law = projection.decoded(sampled_law(projection.encoded(images), sampler, losses.steps).law)
        torch.testing.assert_close(law.mean, made.mean, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(law.covariance, made.covariance, rtol=1e-9, atol=1e-11)


def test_losses_are_those_of_drawn_samples() -> None:
    images, sampler, count = data(), Sampler(solver="euler", nfe=(99,)), 100_000
    projection = patch_components(images, SHAPE, 2, 3)
    latents = projection.encoded(images)
    [losses] = latent_losses(images, projection, sampler, [8])
    samples = decode(projection, sample(latents, normal(count, 12), sampler, 8).x0)
    drawn = images.sample(count, torch.Generator().manual_seed(1))
    kept = decode(projection, encode(projection, drawn))
    assert frechet_distance(drawn, samples) == pytest.approx(losses.both, rel=0.02)
    assert frechet_distance(kept, samples) == pytest.approx(losses.sampler, rel=0.02)
    assert frechet_distance(moments(drawn), moments(kept)) == pytest.approx(losses.autoencoder, rel=0.02)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2), ("rk4", 4)])
def test_the_sampler_loses_less_with_steps_at_its_order(solver: str, order: int) -> None:
    """The loss is a squared distance, so it falls at twice the order, until the range of noise levels limits it."""
    images, sampler = data(), Sampler(solver=solver, nfe=(9999,), sigma_min=1e-6, sigma_max=1e6)
    projection = patch_components(images, SHAPE, 2, 3)
    few, many = latent_losses(images, projection, sampler, [200, 400])
    for before, after in ((few.sampler, many.sampler), (few.pixels, many.pixels)):
        assert math.log2(before / after) / 2 == pytest.approx(order, abs=0.1)
    assert many.both - many.autoencoder == pytest.approx(many.sampler, abs=1e-12)


def test_an_offset_beside_the_data_is_lost_only_outside_of_the_latents() -> None:
    images, away = data(), normal(32, seed=4)
    projection = patch_components(images, SHAPE, 4, 3)
    moved = Projection(projection.matrix, projection.offset + away, 2.0)
    outside = away - projection.matrix.T @ (projection.matrix @ away)
    assert moved.loss(images) == pytest.approx(projection.loss(images) + float(outside.square().sum()))
    exact = moved.decoded(moved.encoded(images))
    assert moved.loss(images) == pytest.approx(images.frechet(exact), rel=1e-9)


def test_losses_do_not_depend_on_the_signs_and_the_order_of_components() -> None:
    images, sampler = data(), HEUN
    projection = patch_components(images, SHAPE, 2, 3)
    rotation = torch.linalg.qr(normal(12, 12)).Q
    turned = Projection(rotation @ projection.matrix, projection.offset, projection.scale)
    [one], [other] = (latent_losses(images, p, sampler, [9]) for p in (projection, turned))
    assert asdict(other) == pytest.approx(asdict(one), rel=1e-9)


def test_losses_go_into_a_record_as_plain_numbers() -> None:
    found = latent_oracle(photographs(), 2, 3, HEUN, [2, 5])
    assert [type(value) for value in asdict(found[0]).values()] == [int, int, float, float, float, float]
    assert [losses.steps for losses in found] == [2, 5] and [losses.nfe for losses in found] == [3, 9]
    assert LatentLosses(**asdict(found[1])) == found[1]


@pytest.mark.parametrize(
    "keys",
    [
        {"solver": "ddpm"},
        {"solver": "rk45"},
        {"solver": "heun", "S_churn": 5},
        {"threshold": "static"},
        {"guidance": 2},
    ],
    ids=str,
)
def test_a_sampler_that_is_not_linear_is_one_line(keys: dict[str, object]) -> None:
    with pytest.raises(StudyError, match="use a deterministic solver with fixed steps, without guidance and threshold"):
        sampled_law(data(), Sampler(nfe=(99,), **keys), 5)


def test_bad_autoencoders_are_one_line() -> None:
    with pytest.raises(StudyError, match="factor: 3 does not divide images of 4 x 4; write a divisor of both"):
        patch_components(data(), SHAPE, 3, 1)
    with pytest.raises(StudyError, match="channels: a patch has only 8 principal components, not 9; write fewer"):
        patch_components(data(), SHAPE, 2, 9)
    with pytest.raises(StudyError, match="the encoder's rows are not orthonormal"):
        Projection(2 * torch.eye(3, dtype=F64), torch.zeros(3, dtype=F64))
