"""Patches of the two photographs that scikit-learn ships: small colour images with classes, without a download.

The held-out patches are those within a vertical band of each photograph, so they share no pixel with the others.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.randomness import generator
from pipeline.data.dataset import Dataset
from pipeline.data.heldout import FEWEST, check_classes
from pipeline.data.row import Data

PHOTOGRAPHS = ("china", "flower")
THIRDS = ("top", "middle", "bottom")
CLASSES = tuple(f"{photograph}, {third}" for photograph in PHOTOGRAPHS for third in THIRDS)


def whole(row: Data) -> Dataset:
    """All patches of a row in a fixed random order, or the first `limit` of these. Its `heldout` is ignored.

    The class is the photograph and the third of its height that has the patch's centre. Raises StudyError if a patch
    is larger than the photographs.
    """
    photographs = _photographs()
    return _cut(photographs, _places(photographs, row)[: row.limit], row)


def parts(row: Data) -> tuple[Dataset, Dataset]:
    """The patches outside of a vertical band of each photograph, to train on, and the held-out ones within it.

    The band has the share `heldout` of the width, at a uniformly random place that depends on `heldout_seed` and the
    photograph. Patches that cross its edge are left out. Both parts have the order of `whole`. The share `heldout` of
    `limit` is held out; a part with fewer patches keeps all. Raises StudyError as `whole` does, or if a part has fewer
    than FEWEST patches or none of a class.
    """
    photographs = _photographs()
    places = _places(photographs, row)
    width = photographs.shape[-1]
    band = round(width * row.heldout)
    starts = torch.randint(width - band + 1, (len(PHOTOGRAPHS),), generator=generator("band", row.heldout_seed))
    left, start = places[:, 2], starts[places[:, 0]]
    right, end = left + row.size, start + band
    outside, inside = places[(right <= start) | (left >= end)], places[(left >= start) & (right <= end)]
    if row.limit:
        held = round(row.limit * row.heldout)
        outside, inside = outside[: row.limit - held], inside[:held]
    if min(len(outside), len(inside)) < FEWEST:
        limited = f" and limit {row.limit}" if row.limit else ""
        raise StudyError(
            f"data.heldout: a band of {band} of {width} pixels{limited} holds {len(inside)} patches of {row.size} x "
            f"{row.size} out and leaves {len(outside)} to train on, but both need at least {FEWEST}; change heldout, "
            "size, stride or limit, or write heldout: 0"
        )
    training, heldout = _cut(photographs, outside, row), _cut(photographs, inside, row)
    check_classes(training, heldout, row.heldout)
    return training, heldout


def _photographs() -> Tensor:
    """The photographs: uint8 (2, 3, 427, 640)."""
    from sklearn.datasets import load_sample_image  # slow to import, and only one stage needs it

    photographs = np.stack([load_sample_image(f"{name}.jpg") for name in PHOTOGRAPHS])
    return torch.from_numpy(photographs).permute(0, 3, 1, 2).contiguous()


def _places(photographs: Tensor, row: Data) -> Tensor:
    """The places (N, 3) of all patches in their random order: photograph, top and left edge."""
    height, width = photographs.shape[2:]
    if row.size > min(height, width):
        raise StudyError(
            f"data.size: {row.size} pixels, but the photographs have {height} x {width}; use at most "
            f"{min(height, width)}"
        )
    tops, lefts = (torch.arange(0, side - row.size + 1, row.stride) for side in (height, width))
    places = torch.cartesian_prod(torch.arange(len(photographs)), tops, lefts)
    return places[torch.randperm(len(places), generator=generator("order of patches"))]


def _cut(photographs: Tensor, places: Tensor, row: Data) -> Dataset:
    photograph, top, left = places.T
    images = photographs.unfold(2, row.size, 1).unfold(3, row.size, 1)[photograph, :, top, left]
    if not row.labels:
        return Dataset(images, None, lossy="JPEG")
    third = len(THIRDS) * (2 * top + row.size) // (2 * photographs.shape[2])
    return Dataset(images, len(THIRDS) * photograph + third, CLASSES, "JPEG")
