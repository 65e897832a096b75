"""Moments, of all features and by block: equal to numpy's, however features come."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.metrics.estimate import JACKKNIFE_BLOCKS, BlockMoments, Moments, moments
from tests.metrics.small import blocks_of, features


def test_moments_are_those_of_numpy() -> None:
    x = features(50, 6, 0)
    found = moments(x.float())
    assert found.mean.dtype == found.covariance.dtype == torch.float64
    np.testing.assert_allclose(found.mean, x.float().double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x.float().double().numpy(), rowvar=False), rtol=1e-10)
    np.testing.assert_allclose(found.root @ found.root, found.covariance, rtol=1e-9, atol=1e-12)


def same_moments(found: Moments, x: Tensor, atol: float = 1e-10) -> None:
    np.testing.assert_allclose(found.mean, x.numpy().mean(0), rtol=0, atol=atol)
    np.testing.assert_allclose(found.covariance, np.cov(x.numpy(), rowvar=False), rtol=0, atol=atol)


@pytest.mark.parametrize("n", [40, 47, 59, 1000])
def test_block_moments_are_those_of_numpy(n: int) -> None:
    """Blocks lie one behind the other, and differ by one feature at most."""
    x = features(n, 5, 0)
    found, parts = blocks_of(x), [list(part) for part in np.array_split(np.arange(n), JACKKNIFE_BLOCKS)]
    owner = torch.arange(n) * JACKKNIFE_BLOCKS // n
    same_moments(found.all(), x)
    assert sorted(found.counts.tolist()) == sorted(len(part) for part in parts)
    for block in (0, 7, JACKKNIFE_BLOCKS - 1):
        same_moments(found.without(block), x[owner != block])
    same_moments(found.group(4, 8), x[(owner >= 4) & (owner < 12)])
    same_moments(found.group(0, JACKKNIFE_BLOCKS), x)


@pytest.mark.parametrize("cut", [1, 7, 100, 333, 999])
def test_block_moments_do_not_depend_on_how_features_come(cut: int) -> None:
    x = features(1000, 6, 1).float()
    found, whole = BlockMoments(1000, torch.zeros(6)), blocks_of(x)
    for part in x.split(cut):
        found.add(part)
    for block in range(JACKKNIFE_BLOCKS):
        for a, b in zip(vars(found.without(block)).values(), vars(whole.without(block)).values(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


def test_a_centre_keeps_the_digits_of_features_far_from_zero() -> None:
    x = features(400, 4, 1) + 1e6
    same_moments(blocks_of(x, x.mean(0) + 0.1).all(), x, atol=1e-8)
    assert float((blocks_of(x).all().covariance - x.T.cov()).abs().max()) > 1e-5


def test_too_few_samples_for_the_jackknife_are_refused() -> None:
    assert blocks_of(features(40, 3, 0)).all().mean.shape == (3,)
    with pytest.raises(StudyError, match="39 samples are too few for a 20-block jackknife; at least 40"):
        BlockMoments(39, torch.zeros(3))


def test_block_moments_of_features_that_are_not_finite_are_refused() -> None:
    bad, found = features(40, 3, 0), BlockMoments(40, torch.zeros(3))
    found.add(bad[:30])
    bad[33, 1] = bad[35, 2] = math.nan
    with pytest.raises(StudyError, match="2 of 10 features are not finite"):
        found.add(bad[30:])
