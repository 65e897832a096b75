"""Features, a rotation of them, and their moments by block, which the tests of metrics share."""

import torch
from torch import Tensor

from pipeline.metrics.estimate import JACKKNIFE_BLOCKS, BlockMoments


def features(n: int, d: int, seed: int) -> Tensor:
    """Correlated, shifted, float64 (n, d)."""
    generator = torch.Generator().manual_seed(seed)
    mix, shift = torch.randn(d, d, generator=generator), torch.randn(d, generator=generator)
    return (torch.randn(n, d, generator=generator) @ mix / d**0.5 + 0.3 * shift).double()


def rotation(d: int) -> Tensor:
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(9))).Q


def blocks_of(x: Tensor, centre: Tensor | None = None, blocks: int = JACKKNIFE_BLOCKS) -> BlockMoments:
    found = BlockMoments(len(x), torch.zeros(x.shape[1]) if centre is None else centre, blocks)
    found.add(x)
    return found
