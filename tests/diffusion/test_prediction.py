"""Kinds of prediction: each becomes each other and back, from sigma 0 to infinity."""

import itertools

import pytest
import torch
from torch import Tensor

from pipeline.diffusion.parametrization import PARAMETRIZATIONS, eps, score, v, velocity, x0
from pipeline.diffusion.prediction import KINDS, convert, cos_sin

SILENT = {"x0": 0.0, "score": 0.0, "eps": torch.inf}  # where a kind says nothing of the others
SIGMAS = [0.0, 1e-8, 0.002, 0.5, 1.0, 80.0, 1e8, torch.inf]


def truth(sigma: float) -> tuple[Tensor, dict[str, Tensor]]:
    """A noisy state, and what each kind of prediction would be if it knew x0 and n."""
    image, n = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cos, sin = (float(part) for part in cos_sin(torch.tensor(sigma, dtype=torch.float64)))
    kinds = {"x0": image, "eps": n, "v": cos * n - sin * image, "velocity": n - image}
    if sigma > 0:
        kinds["score"] = -n / sigma
    return cos * image + sin * n, kinds


def known(kind: str, sigma: float) -> bool:
    return sigma != SILENT.get(kind) and not (kind == "score" and sigma == torch.inf)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(KINDS, 2)))
def test_every_kind_becomes_every_other(source: str, target: str, sigma: float) -> None:
    x, kinds = truth(sigma)
    level = torch.tensor(sigma, dtype=torch.float64)
    if not known(source, sigma):
        value = kinds.get(source, x)
        with pytest.raises(ValueError, match=f"{source} says nothing of {target} at sigma"):
            convert(value, x, level, source, target)
        return
    found = convert(kinds[source], x, level, source, target)
    if target not in kinds:
        assert found.isinf().all()  # the score at sigma 0
        return
    size = max(sigma, 1 / sigma) if 0 < sigma < torch.inf else 1  # what is divided by, and so how rounding grows
    torch.testing.assert_close(found, kinds[target], rtol=1e-12 * size, atol=1e-14 * size)


@pytest.mark.parametrize("sigma", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(KINDS, 2)))
def test_there_and_back_whatever_was_predicted(source: str, target: str, sigma: float) -> None:
    value, x = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    level = torch.full((4, 1), sigma, dtype=torch.float64)
    there = convert(value, x, level, source, target)
    torch.testing.assert_close(convert(there, x, level, target, source), value, rtol=1e-9, atol=1e-9)


def test_limits() -> None:
    """At sigma 0 the state is x0, at infinity it is n, and v goes from n to -x0."""
    value, x = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    zero, infinity = torch.tensor([0.0, torch.inf], dtype=torch.float64)
    assert torch.equal(convert(value, x, zero, "v", "x0"), x)
    assert torch.equal(convert(value, x, zero, "v", "eps"), value)
    assert torch.equal(convert(value, x, infinity, "v", "x0"), -value)
    assert torch.equal(convert(value, x, infinity, "v", "eps"), x)
    assert not convert(value, x, infinity, "v", "score").any()
    torch.testing.assert_close(convert(value, x, infinity, "velocity", "x0"), x - value)


TARGETS = {"eps": eps, "x0": x0, "v": v, "velocity": velocity}


@pytest.mark.parametrize("kind", TARGETS)
def test_targets_of_parametrizations_are_these_kinds(kind: str) -> None:
    """c_skip z + c_out F is what F becomes as x0."""
    sigma = torch.logspace(-3, 3, 60).double()
    f, z = torch.randn(2, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    c_skip, c_out = TARGETS[kind](sigma, 0.5)
    expected = convert(f, z * (1 + sigma**2).rsqrt(), sigma, kind, "x0")
    torch.testing.assert_close(c_skip * z + c_out * f, expected, rtol=1e-9, atol=1e-9)


def test_the_target_of_ve_is_the_score_times_sigma() -> None:
    sigma = torch.logspace(-3, 3, 60).double()
    f, z = torch.randn(2, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    c_skip, c_out = score(sigma, 0.5)
    expected = convert(f / sigma, z * (1 + sigma**2).rsqrt(), sigma, "score", "x0")
    torch.testing.assert_close(c_skip * z + c_out * f, expected, rtol=1e-9, atol=1e-9)


def test_plain_predictions_share_their_path() -> None:
    sigma = torch.logspace(-3, 2, 30).double()
    for name, path in [("vp_x0", "vp"), ("vp_v", "vp"), ("flow_eps", "flow"), ("flow_x0", "flow")]:
        assert PARAMETRIZATIONS[name].flow == PARAMETRIZATIONS[path].flow
        for one, other in zip(
            PARAMETRIZATIONS[name](sigma, 0.5)[2:], PARAMETRIZATIONS[path](sigma, 0.5)[2:], strict=True
        ):
            assert torch.equal(one, other)
