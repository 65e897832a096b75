"""Large sets of features in parts and tiles, so that float64 copies of them stay small."""

from collections.abc import Iterator

from torch import Tensor

TILE = 1024  # rows and columns of a kernel or distance matrix that are in memory at once


def parts(features: Tensor) -> tuple[Tensor, ...]:
    """Features (n, d) in parts of at most TILE rows."""
    return features.split(TILE)


def tiles(x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """The inner products of features (n, d) and (m, d), a tile at a time: its rows, its columns, the products."""
    for top in range(0, len(x), TILE):
        rows = x[top : top + TILE].double()
        for left in range(0, len(y), TILE):
            columns = y[left : left + TILE].double()
            yield slice(top, top + len(rows)), slice(left, left + len(columns)), rows @ columns.T
