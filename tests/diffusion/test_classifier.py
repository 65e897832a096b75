"""The noise-aware classifier: close to the exact posterior of a mixture, reproducible, and restored from its file."""

import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.tensors import load_tensors, save_tensors
from pipeline.common.threads import side_by_side
from pipeline.diffusion.classifier import NoisyClassifier, load_classifier, save_classifier
from pipeline.diffusion.exact import LabelledMixture
from pipeline.training.classifier import ACCURACY_SIGMAS, accuracy_by_sigma, train_classifier

F64 = torch.float64
SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
MIXTURE = LabelledMixture(torch.tensor([[1.0, 0.0], [-0.6, 0.8], [-0.4, -0.9]], dtype=F64), SHARES, 0.3)
IMAGE = (1, 9, 6)  # neither square nor even


def points(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points of the mixture, each with its class: (N, 2), float64, and (N,)."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(SHARES, count, replacement=True, generator=draw)
    return MIXTURE.means[labels] + MIXTURE.std * torch.randn(count, 2, dtype=F64, generator=draw), labels


def images(count: int) -> tuple[Tensor, Tensor]:
    """Dark and bright images: (N, 1, 9, 6), uint8, and (N,)."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3 // 2  # of two classes, two thirds and one
    bright = 60 + 120 * labels[:, None, None, None] + torch.randint(0, 60, (count, *IMAGE), generator=draw)
    return bright.to(torch.uint8), labels


@cache
def of_points() -> NoisyClassifier:
    x, labels = points(4000, 0)
    return train_classifier(x.float(), labels, torch.bincount(labels).tolist(), float(x.std()), 0, 45_000)


@cache
def of_images(seed: int = 0) -> NoisyClassifier:
    x, labels = images(60)
    return train_classifier(x, labels, [40, 20], 0.5, seed, 20 * 128)


def noisy(sigma: float, count: int = 2000) -> tuple[Tensor, Tensor, Tensor]:
    """z (N, 2) of the mixture at a noise level, that level, and the classes (N,)."""
    x, labels = points(count, 1)
    n = torch.randn(x.shape, dtype=F64, generator=torch.Generator().manual_seed(2))
    return x + sigma * n, torch.tensor(sigma, dtype=F64), labels


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0, 3.0, 20.0])
def test_it_learns_the_posterior_of_a_mixture(sigma: float) -> None:
    """In total variation, and closer than the shares of the classes, unless these are already close."""
    z, level, _ = noisy(sigma)
    exact = MIXTURE.log_posterior(z, level).exp()
    apart = lambda p: float((p - exact).abs().sum(1).mean() / 2)  # noqa: E731
    assert apart(of_points()(z, level).double().exp()) < min(0.08, max(0.02, apart(SHARES) / 3))


@pytest.mark.parametrize(("sigma", "tolerance"), [(0.3, 0.5), (1.0, 0.5), (3.0, 0.4), (20.0, 0.85)])
def test_its_gradient_is_near_that_of_the_posterior(sigma: float, tolerance: float) -> None:
    z, level, labels = noisy(sigma)
    exact = MIXTURE.log_gradient(z, level, labels)
    error = of_points().log_gradient(z, level, labels) - exact
    assert float(error.norm() / exact.norm()) < tolerance


def test_at_high_noise_it_returns_the_shares_and_its_gradient_vanishes() -> None:
    labels = points(4000, 0)[1]  # of the data that it learned from
    z, level, own = noisy(1e5, 100)
    shares = torch.bincount(labels) / len(labels)
    torch.testing.assert_close(of_points()(z, level).exp(), shares.expand(100, 3), rtol=0, atol=1e-3)
    assert float(of_points().log_gradient(z, level, own).abs().max()) < 1e-8


@pytest.mark.parametrize("make", [of_points, of_images])
def test_probabilities_sum_to_one(make: Callable[[], NoisyClassifier]) -> None:
    z = torch.randn(5, *make().shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(make()(z, torch.tensor(0.7, dtype=F64)).exp().sum(1), torch.ones(5))


@pytest.mark.parametrize("make", [of_points, of_images])
def test_the_gradient_equals_finite_differences(make: Callable[[], NoisyClassifier]) -> None:
    """Of the log-probability of the given class, in a random direction, also under torch.no_grad."""
    draw, classifier = torch.Generator().manual_seed(0), make()
    z, direction = torch.randn(2, 6, *classifier.shape, dtype=F64, generator=draw)
    sigma, labels, h = torch.tensor(0.5, dtype=F64), torch.arange(6) % 2, 1e-2
    with torch.no_grad():
        gradient = classifier.log_gradient(z, sigma, labels)
        ahead, behind = (classifier(z + step * direction, sigma).double() for step in (h, -h))
    assert gradient.dtype == F64 and gradient.shape == z.shape and not gradient.requires_grad
    slopes = (ahead - behind).gather(1, labels[:, None])[:, 0] / (2 * h)
    torch.testing.assert_close((gradient * direction).flatten(1).sum(1), slopes, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("make", [of_points, of_images])
def test_a_sample_depends_on_its_own_noise_level_and_on_no_other_sample(make: Callable[[], NoisyClassifier]) -> None:
    classifier = make()
    z = torch.randn(9, *classifier.shape, dtype=F64, generator=torch.Generator().manual_seed(0))  # as wide as the image
    sigma, labels = torch.logspace(-1, 1, 9, dtype=F64), torch.arange(9) % 2
    together = classifier(z, sigma), classifier.log_gradient(z, sigma, labels)
    for i in range(9):
        alone = z[i : i + 1], sigma[i]
        torch.testing.assert_close(classifier(*alone)[0], together[0][i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            classifier.log_gradient(*alone, labels[i : i + 1])[0], together[1][i], rtol=1e-3, atol=1e-5
        )


def test_accuracy_falls_with_noise() -> None:
    x, labels = images(60)
    found = accuracy_by_sigma(of_images(), x, labels, 0)
    assert list(found) == [f"{sigma:g}" for sigma in ACCURACY_SIGMAS]
    assert found["0.01"] == found["0.1"] == 1 and found["80"] < 0.9
    assert found == accuracy_by_sigma(of_images(), x, labels, 0)


def same(one: NoisyClassifier, two: NoisyClassifier) -> bool:
    return all(a.equal(b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_training_depends_on_its_arguments_alone() -> None:
    """It neither depends on other threads nor uses the generator that they share."""
    x, labels = images(60)
    train = partial(train_classifier, x, labels, [40, 20], 0.5, count_images=3 * 128)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = side_by_side([partial(train, seed=0)] * 4 + [partial(train, seed=1)], workers=4)
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(2)
    [again] = side_by_side([partial(train, seed=0)])
    assert all(same(each, again) for each in one[:4]) and not same(one[4], again)


def test_an_untrained_classifier_returns_the_shares() -> None:
    """One training step changes it little."""
    x, labels = images(60)
    answer = train_classifier(x, labels, [40, 20], 0.5, 0, 1)(torch.zeros(1, *IMAGE), torch.tensor(1.0))
    torch.testing.assert_close(answer, torch.tensor([[2 / 3, 1 / 3]]).log(), rtol=0, atol=0.1)


@pytest.mark.parametrize("make", [of_points, of_images])
def test_a_classifier_is_restored_from_its_file(make: Callable[[], NoisyClassifier], tmp_path: Path) -> None:
    save_classifier(make(), tmp_path / "a")
    again = load_classifier(tmp_path / "a")
    assert (again.sigma_data, again.shape, again.classes) == (make().sigma_data, make().shape, make().classes)
    assert same(again, make()) and not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    save_classifier(again, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        lambda path: save_tensors(path, of_images().state_dict(), "spec", {}),
        lambda path: save_tensors(path, of_images().state_dict(), "classifier", []),
        lambda path: save_tensors(path, {"x": torch.zeros(1)}, "classifier", load_tensors(path, "classifier")[1]),
    ],
)
def test_a_broken_or_foreign_file_is_an_error_of_one_line(harm: Callable[[Path], object], tmp_path: Path) -> None:
    save_classifier(of_images(), tmp_path / "a")
    harm(tmp_path / "a")
    with pytest.raises(StudyError, match="not as this study wrote it") as caught:
        load_classifier(tmp_path / "a")
    assert len(str(caught.value).splitlines()) == 1


def test_the_scale_of_its_output_falls_with_the_signal() -> None:
    sigma = torch.tensor([0.0, 0.5, 5e4], dtype=F64)
    assert of_images().scale(sigma).tolist() == pytest.approx([1, math.sqrt(0.5), 1e-5])
