"""An extractor: batches, channels, and one line for outputs that are not features."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.metrics.extractors.extractor import Extractor, probe
from tests.metrics.extractors.small import Function, colours, extractor_of, one_line


def test_images_come_in_batches_of_three_channels_where_they_must() -> None:
    seen = []

    def means(images: Tensor) -> Tensor:
        seen.append(tuple(images.shape))
        return images.double().mean((2, 3))

    grey = colours(7, channels=1)
    found = extractor_of(means, batch=3, rgb=True)(grey)
    assert seen == [(3, 3, 5, 4), (3, 3, 5, 4), (1, 3, 5, 4)]
    assert found.features.dtype == torch.float32 and found.logits is None
    torch.testing.assert_close(found.features, grey.float().mean((2, 3)).repeat(1, 3))
    assert extractor_of(means, batch=3)(grey).features.shape == (7, 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 1])
def test_features_or_logits_that_are_not_finite_are_counted(bad: float, where: int) -> None:
    def features(images: Tensor) -> tuple[Tensor, Tensor]:
        both = [images.float().mean((2, 3)), images.float().mean((2, 3))]
        both[where][images[:, 0, 0, 0] == 0, 0] = bad
        return both[0], both[1]

    images = colours(9).clamp(min=1)
    assert extractor_of(features, batch=4)(images).features.shape == (9, 3)
    images[[2, 7], 0, 0, 0] = 0
    one_line(lambda: extractor_of(features, batch=4)(images), "own: features of 2 of 9 images are not finite")


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda x: x.float(), "[(6, 3, 5, 4)]"),
        (lambda x: x.float().mean(), "[()]"),
        (lambda x: x.float().mean((0, 2)), "[(3, 4)]"),
        (lambda x: (x.float().mean((2, 3)),) * 3, "[(6, 3), (6, 3), (6, 3)]"),
        (lambda x: (x.float().mean((2, 3)), None), "[(6, 3), NoneType]"),
        (lambda x: {"features": x}, "[dict]"),
        (lambda x: (), "[]"),
    ],
)
def test_outputs_of_another_shape_are_refused(function: Callable[[Tensor], Any], found: str) -> None:
    one_line(lambda: extractor_of(function)(colours(6)), f"own: 6 images give {found}; expected (N, d)")


def test_a_network_with_any_part_in_training_mode_is_refused() -> None:
    network = nn.Sequential(Function(lambda x: x.float().mean((2, 3))), nn.Dropout()).eval()
    extractor = Extractor("own", "", "", network)
    assert extractor(colours(3)).features.shape == (3, 3)
    network[1].train()
    one_line(lambda: extractor(colours(3)), "own: the network is in training mode")


def test_the_probe_sees_company_alone() -> None:
    """An image's features that lean on the others by more than a thousandth are refused, and by less are not."""

    def leaning(share: float) -> Extractor:
        return extractor_of(lambda x: x.double().mean((2, 3)) + share * x.double().mean((0, 2, 3)))

    assert probe(leaning(1e-5), (3, 8, 8)) == 3
    one_line(lambda: probe(leaning(0.1), (3, 8, 8)), "own: gives different features")
