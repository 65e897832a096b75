"""Thresholds against numpy's quantiles, and where a sampler applies them: to the guided D, before every solver."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.common.errors import NotFinite
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.diffusion.exact import Gaussian, LabelledMixture, empirical
from pipeline.sampling.guidance import GUIDES, Guidance, guided
from pipeline.sampling.loop import sample
from pipeline.sampling.row import Sampler
from pipeline.sampling.solvers import SOLVERS
from pipeline.sampling.thresholding import THRESHOLDS, dynamic, quantile, static

F64 = torch.float64
WIDE = Gaussian(0.3, 1.5)  # whose D leaves [-1, 1]
SHAPE = (3, 2, 4, 5)
ROWS: list[dict[str, Any]] = [
    *({"solver": name} for name in SOLVERS),
    {"S_churn": 3},
    {"solver": "ddim", "eta": 1},
    {"solver": "ddpm", "variance": "beta"},
    {"solver": "euler_maruyama", "corrector_steps": 1},
    {"schedule": "flow", "discretization": "flow"},
]
CUTTING: list[dict[str, Any]] = [
    {"threshold": "static"},
    {"threshold": "dynamic"},
    {"threshold": "dynamic", "threshold_percentile": 0.6},
]

all_rows = pytest.mark.parametrize("row", ROWS, ids=str)
all_cutting = pytest.mark.parametrize("keys", CUTTING, ids=str)


def values(*shape: int, scale: float = 2.0, dtype: torch.dtype = F64) -> Tensor:
    return scale * torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(len(shape)))


def noises() -> Any:
    """The same draws in every call."""
    generator = torch.Generator().manual_seed(1)
    return lambda z: torch.randn(z.shape, dtype=z.dtype, generator=generator)


def ends(denoiser: DenoiserFunction, **row: Any) -> tuple[Tensor, int]:
    made = sample(denoiser, values(*SHAPE, scale=1), Sampler(**row, nfe=(99,)).as_started(6), 6, noises())
    return made.x0, made.nfe


@pytest.mark.parametrize("share", [1e-3, 0.25, 0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (3, 2), (5, 64), (64, 64), (2, 3072)])
def test_quantiles_are_those_of_numpy(shape: tuple[int, ...], share: float) -> None:
    found = quantile(values(*shape), share)
    np.testing.assert_allclose(found.numpy(), np.quantile(values(*shape).numpy(), share, axis=1), rtol=1e-12)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (4, 3, 4, 4), (6, 1, 8, 6), (3, 7)])
def test_thresholds_are_their_formulas(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """One sample after the other, in numpy."""
    denoised = values(*shape, dtype=dtype)
    for share in (0.5, 0.995):
        found, clipped = dynamic(denoised, share), static(denoised)
        assert found.dtype == clipped.dtype == dtype and float(found.abs().max()) <= 1
        for given, one, other in zip(denoised.numpy(), found.numpy(), clipped.numpy(), strict=True):
            s = max(1.0, np.quantile(np.abs(given), share))
            np.testing.assert_allclose(one, np.clip(given, -s, s) / s, rtol=1e-6)
            np.testing.assert_array_equal(other, np.clip(given, -1, 1))


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_values_in_the_range_of_pixels_stay_as_they_are(threshold: str) -> None:
    inside = values(*SHAPE).clamp(-1, 1)
    assert torch.equal(Sampler(threshold=threshold).build_threshold()(inside), inside)


@all_cutting
def test_a_sample_does_not_depend_on_the_others(keys: dict[str, Any]) -> None:
    cut, together = Sampler(**keys).build_threshold(), values(16, 3, 8, 8)
    parts = [cut(part) for size in (1, 3, 12) for part in together[16 - size :].split(size)]
    assert all(torch.equal(part, cut(together)[16 - len(part) :]) for part in parts)


@all_rows
@all_cutting
def test_a_solver_sees_the_thresholded_denoiser(row: dict[str, Any], keys: dict[str, Any]) -> None:
    """To the last bit, at the same cost, and with another result than without."""
    cut = Sampler(**keys).build_threshold()
    found, nfe = ends(WIDE, **row, **keys)
    expected, cost = ends(lambda z, sigma: cut(WIDE(z, sigma)), **row)
    plain, paid = ends(WIDE, **row)
    assert torch.equal(found, expected) and nfe == cost
    assert not torch.allclose(found, plain, atol=0.01) and (nfe == paid or row.get("solver") == "rk45")
    assert float(found.abs().max()) < 1 + 1e-9 or row.get("solver") == "lms"  # whose last step is not Euler's
    assert float(plain.abs().max()) > 1.5


@all_rows
@all_cutting
def test_a_denoiser_of_images_is_not_changed(row: dict[str, Any], keys: dict[str, Any]) -> None:
    """The exact one answers with means of images, and so within their range."""
    exact = empirical(values(7, *SHAPE[1:]).clamp(-0.9, 0.9))
    assert torch.equal(ends(exact, **row, **keys)[0], ends(exact, **row)[0])


@pytest.mark.parametrize("guide", GUIDES)
@all_cutting
def test_a_threshold_acts_on_the_guided_answer(guide: str, keys: dict[str, Any]) -> None:
    means = values(2, 2, scale=0.7)
    exact, blurred = (LabelledMixture(means, torch.tensor([0.4, 0.6], dtype=F64), std) for std in (0.2, 0.4))
    labels, noise = torch.tensor([0, 1, 1]), values(3, 2, scale=1)
    denoiser = guided(Guidance(3.0, guide), exact, labels, blurred, exact)
    seen: list[Tensor] = []

    def watched(z: Tensor, sigma: Tensor) -> Tensor:
        seen.append(Sampler(**keys).build_threshold()(denoiser(z, sigma)))
        return seen[-1]

    found = sample(denoiser, noise, Sampler(guidance=3.0, guide=guide, **keys), 5)
    assert torch.equal(found.x0, sample(watched, noise, Sampler(), 5).x0)
    assert max(float(answer.abs().max()) for answer in seen) <= 1
    assert found.nfe == 2 * len(seen)


@all_cutting
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_answer_that_is_not_finite_is_not_clipped_away(keys: dict[str, Any], value: float) -> None:
    with pytest.raises(NotFinite, match="step 1 of 4, sigma 80: the denoiser's answer is not finite"):
        sample(lambda z, sigma: torch.full_like(z, value), values(*SHAPE), Sampler(**keys, nfe=(9,)), 4)
