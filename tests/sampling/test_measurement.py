"""Measurements against their matrices: adjoints, singular values, pseudo-inverses, and wrong choices."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.sampling.measurement import MEASUREMENTS, Linear, Measurement, blur, clip, downsample, mask, random

F64 = torch.float64
IMAGE, POINT = (2, 4, 6), (5,)
BOOLEAN = torch.arange(24).reshape(4, 6) % 3 == 0


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def singular() -> Tensor:
    """A matrix of rank 2."""
    return values(4, 2) @ values(2, 5, seed=1)


LINEAR: dict[str, Callable[[], Linear]] = {
    "identity of points": lambda: MEASUREMENTS["identity"](POINT, 0.1),
    "identity": lambda: MEASUREMENTS["identity"](IMAGE, 0.1),
    "box": lambda: mask(IMAGE, 0.1, box=(1, 2, 2, 3)),
    "share": lambda: mask(IMAGE, 0.1, share=0.4, seed=3),
    "share of points": lambda: mask(POINT, 0.1, share=0.4),
    "list": lambda: mask(IMAGE, 0.1, kept=[0, 5, 7]),
    "list of points": lambda: mask(POINT, 0.1, kept=[3, 1]),
    "boolean": lambda: mask(IMAGE, 0.1, kept=BOOLEAN),
    "boolean by channel": lambda: mask(IMAGE, 0.1, kept=torch.stack([BOOLEAN, ~BOOLEAN])),
    "downsample": lambda: downsample(IMAGE, 0.1, factor=2),
    "blur": lambda: blur(IMAGE, 0.1, width=0.7),
    "wide blur": lambda: blur(IMAGE, 0.1, width=4.0),
    "random": lambda: random(IMAGE, 0.1, projections=7),
    "random of points": lambda: random(POINT, 0.1, projections=5),
    "matrix": lambda: Linear(values(3, 5), 0.1),
    "tall matrix": lambda: Linear(values(7, 5), 0.1),
    "matrix of images": lambda: Linear(values(3, 48), 0.1, IMAGE),
    "singular matrix": lambda: Linear(singular(), 0.1),
}
all_linear = pytest.mark.parametrize("name", LINEAR)


@all_linear
def test_the_adjoint_is_that_of_inner_products(name: str) -> None:
    measurement = LINEAR[name]()
    x, y = values(3, *measurement.shape), values(3, measurement.size, seed=1)
    assert measurement.apply(x).shape == y.shape and measurement.adjoint(y).shape == x.shape
    ours = (x * measurement.adjoint(y)).flatten(1).sum(1)
    torch.testing.assert_close((measurement.apply(x) * y).sum(1), ours, rtol=1e-12, atol=1e-12)
    pulled = Measurement.adjoint_at(measurement, x, y)  # by autograd
    torch.testing.assert_close(measurement.adjoint_at(x, y), pulled, rtol=1e-12, atol=1e-12)


@all_linear
def test_the_matrix_is_the_operators(name: str) -> None:
    measurement = LINEAR[name]()
    x = values(3, *measurement.shape)
    assert measurement.matrix.shape == (measurement.size, math.prod(measurement.shape))
    torch.testing.assert_close(x.flatten(1) @ measurement.matrix.T, measurement.apply(x), rtol=1e-12, atol=1e-12)


@all_linear
def test_penroses_conditions(name: str) -> None:
    measurement = LINEAR[name]()
    a = measurement.matrix
    plus = measurement.pseudo_inverse(torch.eye(measurement.size, dtype=F64)).flatten(1).T
    tolerance = 1e-12 * float(1 / measurement.svd.values.min() + 1) ** 2
    for left, right in [(a @ plus @ a, a), (plus @ a @ plus, plus), (a @ plus, (a @ plus).T), (plus @ a, (plus @ a).T)]:
        torch.testing.assert_close(left, right, rtol=0, atol=tolerance)


@all_linear
def test_singular_values_and_vectors_are_those_of_the_matrix(name: str) -> None:
    measurement = LINEAR[name]()
    svd, true = measurement.svd, torch.linalg.svdvals(measurement.matrix)
    rank = len(svd.values)
    torch.testing.assert_close(svd.values.sort(descending=True).values, true[:rank], rtol=1e-9, atol=1e-14)
    assert (true[rank:] < 1e-12).all()
    v = svd.v(torch.eye(rank, dtype=F64)).flatten(1)
    torch.testing.assert_close(v @ v.T, torch.eye(rank, dtype=F64), rtol=0, atol=1e-12)
    x, y, c = values(3, *measurement.shape), values(3, measurement.size), values(3, rank)
    torch.testing.assert_close(svd.v_t(x), x.flatten(1) @ v.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((svd.u_t(y) * c).sum(1), (y * svd.u(c)).sum(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(svd.u(svd.values * svd.v_t(x)), measurement.apply(x), rtol=1e-12, atol=1e-12)


def test_each_operator_is_what_it_says() -> None:
    x = values(2, *IMAGE)
    assert LINEAR["identity"]().apply(x).equal(x.flatten(1))
    box = torch.ones(4, 6, dtype=torch.bool)
    box[1:3, 2:5] = False
    assert LINEAR["box"]().apply(x).equal(x[:, :, box].flatten(1))
    assert LINEAR["list"]().apply(x).equal(x.flatten(2)[:, :, [0, 5, 7]].flatten(1))
    assert LINEAR["boolean"]().apply(x).equal(x[:, :, BOOLEAN].flatten(1))
    by_channel = torch.cat([x[:, 0, BOOLEAN], x[:, 1, ~BOOLEAN]], dim=1)
    assert LINEAR["boolean by channel"]().apply(x).equal(by_channel)
    blocks = x.reshape(2, 2, 2, 2, 3, 2).mean((3, 5))
    torch.testing.assert_close(LINEAR["downsample"]().apply(x), blocks.flatten(1), rtol=1e-12, atol=1e-12)
    for width in (0.7, 4.0):
        blurred = gaussian_filter(x.numpy(), (0, 0, width, width), mode="wrap", truncate=12)
        found = blur(IMAGE, 0.1, width=width).apply(x).reshape(x.shape)
        np.testing.assert_allclose(found.numpy(), blurred, rtol=1e-9, atol=1e-9)
    assert clip(IMAGE, 0.1, limit=0.3).apply(x).equal(x.flatten(1).clip(-0.3, 0.3))


def test_the_blurs_singular_values_are_the_fourier_transform_of_its_kernel() -> None:
    point = torch.zeros(1, 1, 4, 6, dtype=F64)
    point[..., 0, 0] = 1
    measurement = blur((1, 4, 6), 0.0, width=0.7)
    transform = torch.fft.fft2(measurement.apply(point).reshape(4, 6))
    assert transform.imag.abs().max() < 1e-15 and measurement.svd.values.sum() > 0
    torch.testing.assert_close(measurement.svd.values.sort().values, transform.real.flatten().sort().values)


def test_draws_of_places_and_projections_depend_on_the_seed() -> None:
    for make in (
        lambda seed: mask((1, 8, 8), 0.0, share=0.25, seed=seed),
        lambda seed: random((9,), 0.0, projections=4, seed=seed),
    ):
        assert make(1).matrix.equal(make(1).matrix) and not make(1).matrix.equal(make(2).matrix)
    assert mask((1, 8, 8), 0.0, share=0.25).size == 16
    assert mask(POINT, 0.0, share=0.01).size == 1


def test_noise_has_the_std_of_the_measurement() -> None:
    x = values(4000, *POINT)
    measurement = Linear(values(3, 5), 0.3)
    noise = measurement.draw(x, torch.Generator().manual_seed(0)) - measurement.apply(x)
    assert float(noise.std()) == pytest.approx(0.3, rel=0.02) and float(noise.mean().abs()) < 0.01


def test_y_is_bound_to_a_copy() -> None:
    measurement = Linear(values(3, 5), 0.3)
    y = values(3)
    assert measurement.observed(y).y.equal(y[None]) and measurement.y is None
    assert measurement.observed(values(4, 3)).y.shape == (4, 3)


def test_clips_gradient_is_zero_where_it_saturates() -> None:
    x, v = torch.tensor([[0.2, 0.9, -0.4, -2.0]], dtype=F64), torch.ones(1, 4, dtype=F64)
    assert clip((4,), 0.1, limit=0.5).adjoint_at(x, v).tolist() == [[1, 0, 1, 0]]


REFUSED: dict[str, tuple[str, tuple[int, ...], dict[str, Any], str]] = {
    "mask size": (
        "mask",
        IMAGE,
        {"kept": torch.ones(3, 3, dtype=torch.bool)},
        r"mask: kept has the shape \(3, 3\), but",
    ),
    "nothing": ("mask", IMAGE, {"kept": torch.zeros(4, 6, dtype=torch.bool)}, "mask: nothing is measured"),
    "all of it in the box": ("mask", IMAGE, {"box": (0, 0, 4, 6)}, "mask: nothing is measured"),
    "box": ("mask", IMAGE, {"box": (1, 2, 2, 9)}, "is not inside of an image of 4 x 6"),
    "box of points": ("mask", POINT, {"box": (0, 0, 1, 1)}, "mask: box: measures images"),
    "no choice": ("mask", IMAGE, {}, "needs exactly one of box, share and kept"),
    "two choices": ("mask", IMAGE, {"share": 0.5, "kept": [1]}, "needs exactly one of box, share and kept"),
    "share": ("mask", IMAGE, {"share": 1.5}, "share 1.5 is not above 0 and at most 1"),
    "index": ("mask", POINT, {"kept": [5]}, "different numbers from 0 to 4"),
    "index twice": ("mask", POINT, {"kept": [1, 1]}, "different numbers from 0 to 4"),
    "no index": ("mask", POINT, {"kept": []}, "different numbers from 0 to 4"),
    "downsample of points": ("downsample", POINT, {}, "downsample: measures images"),
    "factor": ("downsample", IMAGE, {"factor": 4}, "factor 4 does not divide an image of 4 x 6"),
    "blur of points": ("blur", POINT, {}, "blur: measures images"),
    "width": ("blur", IMAGE, {"width": 0.0}, "width 0 is not positive"),
    "projections": ("random", POINT, {"projections": 6}, "6 projections of 5 dimensions; write 1 to 5"),
    "limit": ("clip", POINT, {"limit": -1.0}, "limit -1 is not positive"),
}


@pytest.mark.parametrize(("name", "shape", "keys", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_choices_are_one_line(name: str, shape: tuple[int, ...], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        MEASUREMENTS[name](shape, 0.1, **keys)
    assert len(str(caught.value).splitlines()) == 1


def test_wrong_numbers_are_one_line() -> None:
    for std in (-1.0, math.nan, math.inf):
        with pytest.raises(StudyError, match="is no standard deviation"):
            Linear(values(3, 5), std)
    with pytest.raises(StudyError, match="matrix: has 5 columns, but x of shape"):
        Linear(values(3, 5), 0.1, IMAGE)
    for y in (values(5), values(2, 5), values(2, 3, 3)):
        with pytest.raises(StudyError, match="y: has the shape"):
            Linear(values(3, 5), 0.1).observed(y)
