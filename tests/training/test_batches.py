"""Batches: every image once per epoch, labels and flips at their rates, and independent draws."""

import math
from typing import Any

import pytest
import torch

from pipeline.common.randomness import generator
from pipeline.data.dataset import to_range
from pipeline.training import batches
from pipeline.training.batches import Examples, batch_indices, draw_batch
from pipeline.training.draws import Independent
from pipeline.training.row import Model
from tests.training.small import IMAGES, LABELS, SMALL


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (10, 10), (10, 25), (7, 1)])
def test_every_image_is_used_once_per_epoch_in_a_new_order(count: int, batch: int) -> None:
    seen = torch.cat([batch_indices(3, step, batch, count) for step in range(5 * count // batch + 1)])
    epochs = [epoch.tolist() for epoch in seen[: len(seen) // count * count].split(count)]
    assert len(epochs) >= 5
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    later = batch_indices(3, 8, 4, 10)
    batches._epoch_order.cache_clear()
    assert batch_indices(3, 8, 4, 10).equal(later)
    assert not batch_indices(4, 8, 4, 10).equal(later)


def test_labels_are_dropped_at_their_rate_and_belong_to_their_images() -> None:
    row = Model(**SMALL, labels="classes", label_dropout=0.25)
    examples = Examples(torch.arange(256, dtype=torch.uint8)[:, None, None, None], torch.arange(256))
    indices = torch.arange(256).repeat(40)
    batch = draw_batch(row, examples, indices, Independent(), generator("step", 0, 0))
    assert batch.labels is not None
    dropped = batch.labels == -1
    assert torch.equal(batch.labels[~dropped], indices[~dropped])
    assert abs(float(dropped.float().mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(indices))
    assert torch.equal(batch.x0.flatten(), to_range(indices.to(torch.uint8)))


@pytest.mark.parametrize("choices", [{"labels": "classes"}, {"flip": 0.5}, {"labels": "classes", "flip": 0.3}], ids=str)
def test_labels_and_flips_do_not_change_the_other_draws(choices: dict[str, Any]) -> None:
    plain, other = Model(**SMALL, augment=0.5), Model(**SMALL, augment=0.5, **choices)
    examples, indices = Examples(IMAGES, LABELS), torch.arange(30)
    one, two = (draw_batch(row, examples, indices, Independent(), generator("step", 0, 0)) for row in (plain, other))
    assert torch.equal(one.n, two.n) and torch.equal(one.u, two.u)
    assert one.augmentation is not None and two.augmentation is not None
    assert torch.equal(one.augmentation[:, 1:], two.augmentation[:, 1:])  # column 0 is the flip in x
    assert torch.equal(one.augmentation, two.augmentation) == ("flip" not in choices)


def test_an_augmented_network_is_told_about_every_flip() -> None:
    """EDM's setting: half of all images are mirrored, and the network knows which."""
    row, count = Model(**SMALL, augment=1e-9, flip=0.5), 2000
    indices = torch.arange(count) % len(IMAGES)
    batch = draw_batch(row, Examples(IMAGES), indices, Independent(), generator("step", 0, 0))
    x0 = to_range(IMAGES[indices])
    assert batch.augmentation is not None and not batch.augmentation[:, 1:].any()
    mirrored = batch.augmentation[:, 0] == 1
    assert torch.equal(batch.x0, torch.where(mirrored[:, None, None, None], x0.flip(3), x0))
    assert abs(float(mirrored.double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(count)


def test_flips_mirror_their_share_of_images_and_nothing_else() -> None:
    row, count = Model(**SMALL, flip=0.3), 3000
    indices = torch.arange(count) % len(IMAGES)
    batch = draw_batch(row, Examples(IMAGES), indices, Independent(), generator("step", 0, 0))
    x0 = to_range(IMAGES[indices])
    mirrored, kept = ((batch.x0 == like).flatten(1).all(1) for like in (x0.flip(3), x0))
    assert (mirrored ^ kept).all() and batch.augmentation is None
    assert abs(float(mirrored.float().mean()) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / count)
