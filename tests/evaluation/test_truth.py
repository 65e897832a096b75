"""The exact denoisers of sets of points, and the distances of networks from them."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.common.devices import CPU
from pipeline.common.threads import in_turns
from pipeline.data.points import POINTS
from pipeline.diffusion.denoiser import DenoiserFunction, load_denoiser
from pipeline.diffusion.exact import consistency_map
from pipeline.evaluation import losses, truth
from pipeline.evaluation.losses import measure_model, noise_levels
from pipeline.evaluation.truth import NODES, distances, known_truth, true_denoiser
from pipeline.training.loop import train
from pipeline.training.row import Model
from pipeline.training.trained import save_models

F64 = torch.float64
names = pytest.mark.parametrize("name", POINTS)


def drawn(name: str, count: int, seed: int = 0) -> Tensor:
    return POINTS[name](count, torch.Generator().manual_seed(seed)).x


def noisy(name: str, count: int, sigma: float, seed: int = 7) -> Tensor:
    noise = torch.randn(count, 2, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return drawn(name, count, seed) + sigma * noise


def denoiser_of(name: str) -> DenoiserFunction:
    found = true_denoiser(name)
    assert found is not None
    return found


@names
@pytest.mark.parametrize("sigma", [0.1, 0.5, 5.0])
def test_a_true_denoiser_is_the_posterior_mean_of_draws(name: str, sigma: float) -> None:
    """Draws weighted by their likelihoods, within five standard errors of such a mean."""
    z, x0 = noisy(name, 40, sigma), drawn(name, 100_000)
    weights = (-torch.cdist(z, x0).square() / (2 * sigma**2)).softmax(1)
    means = weights @ x0
    errors = (weights.square() @ x0.square() - 2 * means * (weights.square() @ x0)).add(
        means.square() * weights.square().sum(1, keepdim=True)
    )
    found = denoiser_of(name)(z, torch.tensor(sigma, dtype=F64))
    assert float(((found - means) / errors.sqrt()).abs().max()) < 5


@names
def test_a_true_denoiser_at_extreme_levels(name: str) -> None:
    """z itself at the lowest levels for z from the data, and the mean of the data at the highest."""
    denoiser, x = denoiser_of(name), drawn(name, 200)
    torch.testing.assert_close(denoiser(x, torch.tensor(1e-6, dtype=F64)), x, rtol=0, atol=1e-5)
    far = denoiser(x, torch.tensor(1e4, dtype=F64))
    torch.testing.assert_close(far, drawn(name, 100_000, 1).mean(0).expand_as(x), rtol=0, atol=0.01)


@names
@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_the_error_of_a_true_denoiser_is_orthogonal_to_it(name: str, sigma: float) -> None:
    """The error of a posterior mean is orthogonal to it: E <x0 - D, D> = 0, within four standard errors."""
    x0 = drawn(name, 3000)
    n = torch.randn(x0.shape, dtype=F64, generator=torch.Generator().manual_seed(5))
    denoised = denoiser_of(name)(x0 + sigma * n, torch.tensor(sigma, dtype=F64))
    products = ((x0 - denoised) * denoised).sum(1)
    assert abs(float(products.mean())) < 4 * float(products.std()) / len(products) ** 0.5


@pytest.mark.parametrize("name", NODES)
def test_twice_as_many_nodes_change_nothing(name: str) -> None:
    """Also within the noise of the curve, three of its standard deviations away, and far outside."""
    few = denoiser_of(name)
    many = {"two_moons": truth._moons, "spiral": truth._spiral}[name](2 * NODES[name])
    for sigma in (0.002, 0.02, 0.2, 2.0):
        z = torch.cat([noisy(name, 40, sigma), drawn(name, 40) + 3 * sigma, 1.5 * drawn(name, 40)])
        level = torch.tensor(sigma, dtype=F64)
        torch.testing.assert_close(few(z, level), many(z, level), rtol=0, atol=1e-9)


def test_images_have_no_known_truth() -> None:
    assert true_denoiser("digits") is None and true_denoiser("./spiral") is None
    assert known_truth("cifar10", noise_levels()) is None


@names
def test_the_exact_answers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """z have the distribution of the noisy data, and the consistency map takes each of them to x."""
    monkeypatch.setattr(truth, "DRAWS", 150)
    sigmas, denoiser = torch.tensor([0.05, 0.5, 20.0], dtype=F64), denoiser_of(name)
    found = known_truth(name, sigmas, 0.01)
    assert found is not None and found.z.shape == (3, 150, 2) and found.x.shape == (150, 2)
    for sigma, z, denoised in zip(sigmas, found.z, found.denoised, strict=True):
        assert denoised.equal(denoiser(z, sigma))
        mapped = consistency_map(denoiser, z[:10], float(sigma), 0.01, 1e-9)
        torch.testing.assert_close(mapped, found.x[:10], rtol=0, atol=1e-5)
        expected = drawn(name, 100_000).var(0) + sigma**2
        assert (z.var(0) / expected).sub(1).abs().max() < 5 * (2 / 150) ** 0.5


def test_the_distances_of_denoisers_with_known_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "DRAWS", 200)
    found, denoiser = known_truth("mixture", noise_levels()), denoiser_of("mixture")
    assert found is not None
    own = found.summary()
    assert (own["draws"], own["end"]) == (200, 0.002)
    exact = distances(denoiser, found, CPU)
    assert [far.denoising_error for far in exact] == [0] * losses.SIGMAS
    assert [far.map_error for far in exact] == pytest.approx(own["denoiser_map_errors"])
    off = distances(lambda z, sigma: denoiser(z, sigma) + torch.tensor([0.3, -0.4]), found, CPU)
    assert [far.denoising_error for far in off] == pytest.approx([0.5 / 2**0.5] * losses.SIGMAS)
    mapped = distances(lambda z, sigma: found.x, found, CPU)
    assert [far.map_error for far in mapped] == [0] * losses.SIGMAS
    assert mapped[-1].denoising_error == pytest.approx(own["denoiser_map_errors"][-1])
    assert own["denoiser_map_errors"][0] < 0.001 and 0.5 < own["denoiser_map_errors"][-1] < 0.6


MLP = {"network": "mlp", "channels": 16, "blocks": 1, "batch": 64, "images": 64 * 300, "learning_rate": 5e-3}
MLP |= {"warmup_images": 640, "ema_halflife_images": 1280}


def test_a_model_is_compared_with_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training brings it nearer. A model that is told the class is not compared."""
    monkeypatch.setattr(truth, "DRAWS", 200)
    monkeypatch.setattr(losses, "SIGMAS", 4)
    points = POINTS["mixture"](2000, torch.Generator().manual_seed(0))
    known, x = known_truth("mixture", noise_levels()), points.x.float()
    assert known is not None
    for labels in ("none", "classes"):
        row = Model(**MLP | ({"images": 64} if labels == "classes" else {}), train_seeds=(0, 1), labels=labels)
        spec, own = row.spec(float(x.std()), (2,), [250] * 8), tmp_path / labels
        save_models(in_turns([train(row, spec, x, seed, labels=points.labels) for seed in row.train_seeds]), own)
        found = measure_model("name", row, own, x, 1, points.labels, known).lines
        values = [[float(v) for v in (e.denoising_error, e.map_error) if v] for e in found]
        if labels == "classes":
            assert values == [[]] * len(found) == [[]] * 16
            continue
        assert found == measure_model("name", row, own, x, 2, points.labels, known).lines
        plain = measure_model("name", row, own, x, 1, points.labels).lines
        blank = {"denoising_error": "", "map_error": ""}
        assert [asdict(line) for line in plain] == [asdict(line) | blank for line in found]
        for seed in row.train_seeds:
            initial, trained = (
                [v for v, e in zip(values, found, strict=True) if (e.train_seed, e.state) == (seed, s)]
                for s in ("initial", "trained")
            )
            expected = distances(load_denoiser(own / f"seed_{seed}.safetensors"), known, CPU)
            assert trained == [pytest.approx([e.denoising_error, e.map_error], rel=1e-5) for e in expected]
            assert trained[1][0] < initial[1][0] and trained[1][1] < initial[1][1]  # at sigma = 0.13
