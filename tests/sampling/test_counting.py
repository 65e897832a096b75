"""Counting evaluations: every network call counts, and the first answer that is not finite is found."""

import pytest
import torch
from torch import Tensor

from pipeline.sampling.counting import Counted


def images(count: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_counted_counts_and_changes_nothing() -> None:
    counted, z = Counted(lambda z, sigma: z / sigma), images(2)
    assert counted.nfe == 0 and counted.not_finite() is None
    assert torch.equal(counted(z, torch.tensor(2.0)), z / 2) and counted.nfe == 1
    counted(z, torch.tensor(0.5))
    assert counted.nfe == 2 and [float(sigma) for sigma in counted.sigmas] == [2.0, 0.5]
    assert counted.not_finite() is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("calls", [(0,), (2,), (1, 3)])
def test_counted_finds_the_first_answer_that_is_not_finite(value: float, calls: tuple[int, ...]) -> None:
    counted = Counted(lambda z, sigma: torch.where(torch.arange(z.numel()).reshape(z.shape) == 5, sigma, z))
    for i in range(4):
        counted(images(2), torch.tensor(value if i in calls else 1.0))
    assert counted.not_finite() == calls[0] and counted.nfe == 4
