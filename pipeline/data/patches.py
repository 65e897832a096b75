"""Patches of the two photographs that scikit-learn ships: small colour images with classes, without a download.

The held-out patches are those within vertical bands of each photograph, so they share no pixel with the others.
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
    """The patches outside of vertical bands of each photograph, to train on, and the held-out ones within them.

    Each of equally wide sections of the width has one band, at a uniformly random place that depends on `heldout_seed`,
    the photograph and the section. Together they have the share `heldout` of the width; several are each at least two
    patches wide. Patches that cross an edge are left out. Both parts have the order of `whole`. The share `heldout` of
    `limit` is held out; a part with fewer patches keeps all. Raises StudyError as `whole` does, or if a part has fewer
    than FEWEST patches or none of a class.
    """
    photographs = _photographs()
    places = _places(photographs, row)
    width = photographs.shape[-1]
    total = round(width * row.heldout)
    count = max(1, total // (2 * row.size))
    columns = _bands(width, total, count, row.heldout_seed).unfold(1, row.size, 1).sum(2)[places[:, 0], places[:, 2]]
    outside, inside = places[columns == 0], places[columns == row.size]
    if row.limit:
        held = round(row.limit * row.heldout)
        outside, inside = outside[: row.limit - held], inside[:held]
    if min(len(outside), len(inside)) < FEWEST:
        limited = f" and limit {row.limit}" if row.limit else ""
        raise StudyError(
            f"data.heldout: bands of {total // count} of {width} pixels{limited} hold {len(inside)} patches of "
            f"{row.size} x {row.size} out and leave {len(outside)} to train on, but both need at least {FEWEST}; "
            "change heldout, size, stride or limit, or write heldout: 0"
        )
    training, heldout = _cut(photographs, outside, row), _cut(photographs, inside, row)
    check_classes(training, heldout, row.heldout)
    return training, heldout


def _bands(width: int, total: int, count: int, seed: int) -> Tensor:
    """Whether a column of a photograph is held out: bool (2, width), `total` of them in `count` bands."""
    index, free = torch.arange(count + 1), width - total
    before = index * total // count  # held-out columns left of each section
    shifts = torch.randint(free // count + 1, (len(PHOTOGRAPHS), count), generator=generator("bands", seed))
    starts = (before + index * free // count)[:-1] + shifts
    distance = torch.arange(width) - starts[..., None]
    return ((distance >= 0) & (distance < before.diff()[:, None])).any(1)


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
