"""Losses and gradients by noise level, of a denoiser with known errors and of a trained one."""

import math
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.common.randomness import generator
from pipeline.common.threads import in_turns
from pipeline.data.dataset import to_range, to_uint8
from pipeline.diffusion.denoiser import Denoiser, load_denoiser, new_denoiser, per_sample
from pipeline.diffusion.exact import Gaussian
from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.diffusion.schedule import VP_PUBLISHED, ddpm_sigmas
from pipeline.diffusion.weights import failure_file, main_file, save_failure
from pipeline.evaluation import losses
from pipeline.evaluation.bound import variational_bound
from pipeline.evaluation.losses import (
    COLUMNS,
    ModelLosses,
    by_sigma,
    error_at,
    evenly_spread,
    measure_model,
    noise_levels,
    straightness,
)
from pipeline.training.loop import train
from pipeline.training.noise import NOISES, Levels
from pipeline.training.pairs import REFLOW_START
from pipeline.training.row import Model
from pipeline.training.trained import Trained, save_models
from pipeline.training.weighting import WEIGHTINGS

SHAPE = (1, 4, 4)
MEAN, STD = 0.15, 0.25
SMALL = {"channels": 8, "multipliers": (1,), "blocks": 1, "batch": 8, "warmup_images": 16, "ema_halflife_images": 40}
SIGMA_OF_C_NOISE: dict[str, Callable[[Tensor], Tensor]] = {
    "edm": lambda c_noise: (4 * c_noise).exp(),
    "ve": lambda c_noise: 2 * c_noise.exp(),
    "vp": lambda c_noise: VP_PUBLISHED.sigma(c_noise / 999),
    "vp_v": lambda c_noise: VP_PUBLISHED.sigma(c_noise / 999),
    "flow": lambda c_noise: c_noise / (999 - c_noise),
    "flow_eps": lambda c_noise: c_noise / (999 - c_noise),
    "flow_x0": lambda c_noise: c_noise / (999 - c_noise),
    "flow_t": lambda c_noise: c_noise / (1 - c_noise),
}
PUBLISHED_P_MEAN, PUBLISHED_P_STD = -1.2, 1.2  # of EDM


class Exact(nn.Module):
    """The network of a Gaussian's exact denoiser, times one parameter plus another."""

    def __init__(self, parametrization: str, scale: float, offset: float) -> None:
        super().__init__()
        self.parametrization, self.gaussian = parametrization, Gaussian(MEAN, STD)
        self.scale, self.offset = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (scale, offset))

    def exact(self, z: Tensor, sigma: Tensor) -> Tensor:
        """(D - c_skip z) / c_out."""
        c_skip, c_out, *_ = (per_sample(c, z) for c in PARAMETRIZATIONS[self.parametrization](sigma, STD))
        return (self.gaussian(z, sigma) - c_skip * z) / c_out

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Tensor:
        sigma = SIGMA_OF_C_NOISE[self.parametrization](c_noise.double())
        c_in = PARAMETRIZATIONS[self.parametrization](sigma, STD).c_in
        return self.scale * self.exact(x.double() / per_sample(c_in, x.double()), sigma) + self.offset


def exact(parametrization: str = "edm", scale: float = 1.0, offset: float = 0.0) -> Denoiser:
    denoiser = Denoiser(Model(**SMALL, parametrization=parametrization).spec(STD, SHAPE))
    denoiser.network = Exact(parametrization, scale, offset)
    return denoiser


def pictures(count: int) -> Tensor:
    """Images of that Gaussian, uint8."""
    noise = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))
    return to_uint8(MEAN + STD * noise)


def test_noise_levels_are_evenly_spaced_in_their_logarithm() -> None:
    logs = noise_levels().log()
    assert noise_levels().dtype == torch.float64 and logs.shape == (losses.SIGMAS,)
    torch.testing.assert_close(logs.diff(), logs.diff()[:1].expand(len(logs) - 1))
    assert noise_levels()[[0, -1]].tolist() == pytest.approx([losses.SIGMA_LOW, losses.SIGMA_HIGH])


@pytest.mark.parametrize(("have", "want", "get"), [(3, 5, 3), (5, 5, 5), (6, 1, 1), (100, 7, 7)])
def test_images_are_taken_from_all_of_the_set(have: int, want: int, get: int) -> None:
    taken = evenly_spread(torch.arange(have), want).tolist()
    assert len(set(taken)) == len(taken) == get and taken == sorted(taken) and taken[0] == 0
    assert get == 1 or taken[-1] == have - 1
    gaps = {after - before for before, after in pairwise(taken)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("parametrization", SIGMA_OF_C_NOISE)
def test_errors_of_an_exact_denoiser_are_the_posterior_variance(parametrization: str) -> None:
    """sigma^2 sd^2 / (sigma^2 + sd^2), within the accuracy of 2048 images."""
    row = Model(parametrization=parametrization)
    points = list(by_sigma(exact(parametrization), row, pictures(2048)))
    assert [point.sigma for point in points] == noise_levels().tolist()
    for point in points:
        expected = point.sigma**2 * STD**2 / (point.sigma**2 + STD**2)
        assert point.error == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("count", [1, 4, 7])  # 4 is the images' width
@pytest.mark.parametrize("parametrization", SIGMA_OF_C_NOISE)
def test_errors_are_those_of_the_denoiser_with_the_same_noise_at_every_level(parametrization: str, count: int) -> None:
    denoiser, x0 = exact(parametrization, 0.7, 0.1), to_range(pictures(count)).double()
    n = torch.randn(count, *SHAPE, generator=generator("losses", 0)).double()
    for sigma in noise_levels():
        expected = (denoiser(x0 + sigma * n, sigma) - x0).square().mean().detach()
        found = error_at(denoiser, x0.float(), sigma).detach()
        assert float(found) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("parametrization", SIGMA_OF_C_NOISE)
def test_gradients_are_the_slopes_of_the_loss(parametrization: str) -> None:
    """Checked by finite differences over a parameter, which are exact for a quadratic error."""
    row, images, step = Model(parametrization=parametrization, weighting="snr"), pictures(5), 0.1
    x0, (scale, offset) = to_range(images), (0.6, 0.2)
    around = [
        (exact(parametrization, scale + step, offset), exact(parametrization, scale - step, offset)),
        (exact(parametrization, scale, offset + step), exact(parametrization, scale, offset - step)),
    ]
    for point, sigma in zip(by_sigma(exact(parametrization, scale, offset), row, images), noise_levels(), strict=True):
        slopes = [(error_at(one, x0, sigma) - error_at(other, x0, sigma)) / (2 * step) for one, other in around]
        expected = math.hypot(*torch.stack(slopes).tolist()) / float(sigma) ** 2
        assert point.gradient == pytest.approx(expected, rel=2e-3)


def test_the_gradient_of_a_network_is_the_norm_over_all_its_parameters() -> None:
    denoiser, images = new_denoiser(Model(**SMALL).spec(STD, SHAPE), 0), pictures(6)
    with torch.no_grad():  # a network begins with an output of zeros, which passes nothing on to its other parameters
        for parameter in denoiser.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    x0, n = to_range(images), torch.randn(6, *SHAPE, generator=generator("losses", 0))
    row = Model(**SMALL, weighting="uniform_v")
    for point in by_sigma(denoiser, row, images):
        if not 0.02 < point.sigma < 20:  # below and above float32 loses more
            continue
        sigma = torch.tensor(point.sigma, dtype=torch.float64)
        value = (1 + point.sigma**-2) * (denoiser(x0 + point.sigma * n, sigma) - x0).square().mean()
        denoiser.zero_grad()
        value.backward()
        squares = sum(float(p.grad.square().sum()) for p in denoiser.parameters() if p.grad is not None)
        assert point.loss == pytest.approx(value.item(), rel=1e-3)
        assert point.gradient == pytest.approx(math.sqrt(squares), rel=5e-3)


def by_density(sigma: float) -> float:
    """The variational bound's weight: -dSNR/du / 2 = 1 / (sigma^2 p(ln sigma)), p the normal density."""
    standard = (math.log(sigma) - PUBLISHED_P_MEAN) / PUBLISHED_P_STD
    return math.sqrt(2 * math.pi) * PUBLISHED_P_STD * math.exp(standard**2 / 2) / sigma**2


LAMBDA: dict[str, Callable[[float], float]] = {
    "edm": lambda sigma: (sigma**2 + STD**2) / (sigma * STD) ** 2,
    "unit": lambda sigma: (sigma**2 + STD**2) / (sigma * STD) ** 2,
    "uncertainty": lambda sigma: (sigma**2 + STD**2) / (sigma * STD) ** 2,
    "snr": lambda sigma: sigma**-2,
    "min_snr": lambda sigma: min(sigma**-2, 5),
    "uniform_x0": lambda sigma: 1,
    "vlb": by_density,
}


@pytest.mark.parametrize("weighting", LAMBDA)
def test_the_loss_is_the_error_times_its_weight(weighting: str) -> None:
    row = Model(**{"weighting": "edm"} | ({} if weighting == "vlb" else {"weighting": weighting}))
    if weighting == "vlb":  # which a row may not have with this noise, whose density falls towards its ends
        row = row.model_copy(update={"weighting": "vlb"})
    for point in by_sigma(exact(scale=0.5), row, pictures(4)):
        assert point.loss == pytest.approx(LAMBDA[weighting](point.sigma) * point.error, rel=1e-6)


@pytest.mark.parametrize("noise", [*({"noise": name} for name in NOISES), {"P_std": 0.2}], ids=str)
def test_weights_are_finite_at_every_level_also_outside_of_the_noise(
    noise: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "SIGMAS", 3)  # from the lowest to the highest
    off = exact(offset=0.1)
    for weighting in WEIGHTINGS.keys() - {"inverse_step"}:  # of objectives that compare two levels
        row = Model().model_copy(update=noise | {"weighting": weighting})
        points = list(by_sigma(off, row, pictures(2)))
        assert all(math.isfinite(v) and v > 0 for point in points for v in vars(point).values()), weighting


@pytest.mark.parametrize("parametrization", SIGMA_OF_C_NOISE)
def test_the_straightness_of_a_gaussian(parametrization: str) -> None:
    """std (2 - pi / 2), see test_pairs; no network is evaluated above the levels of its path."""
    denoiser, asked = exact(parametrization), []
    denoiser.register_forward_pre_hook(lambda _, inputs: asked.append(float(inputs[1])))
    n = torch.randn(losses.IMAGES, *SHAPE, generator=generator("straightness", 0))
    expected = STD * (2 - math.pi / 2) * float(n.square().mean())
    assert straightness(denoiser) == pytest.approx(expected, rel=0.02)
    assert len(asked) == 2 * losses.STRAIGHTNESS_STEPS
    assert max(asked) == pytest.approx(min(REFLOW_START, PARAMETRIZATIONS[parametrization].largest))


IMAGES = pictures(30)
WIDE = Model(**SMALL, images=20 * 8, train_seeds=(0, 3))
LADDER = Model(
    **SMALL, images=20 * 8, train_seeds=(2, 1), parametrization="ddpm", noise="ddpm_uniform", weighting="snr"
)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Measure with few images, draws and levels."""
    monkeypatch.setattr(losses, "IMAGES", 12)
    monkeypatch.setattr(losses, "BOUND_DRAWS", 64)
    monkeypatch.setattr(losses, "SIGMAS", 5)
    yield


@cache
def trained_on_images(row: Model) -> list[Trained]:
    spec = row.spec(STD, SHAPE)
    return in_turns([train(row, spec, IMAGES, seed) for seed in row.train_seeds], 1)


def measured(row: Model, folder: Path, workers: int | None = None) -> ModelLosses:
    """Train a row on IMAGES and measure it."""
    save_models(trained_on_images(row), folder)
    return measure_model("name", row, folder, IMAGES, workers)


@pytest.mark.parametrize("row", [WIDE, LADDER], ids=lambda row: row.noise)
def test_a_model_is_measured_before_and_after_training(tmp_path: Path, brief: None, row: Model) -> None:
    found = measured(row, tmp_path)
    lines, summary = [asdict(line) for line in found.lines], found.summary()
    assert all(list(line) == COLUMNS for line in lines)
    found = [(line["model"], line["train_seed"], line["state"], line["sigma"]) for line in lines]
    sigmas = [f"{sigma:.6g}" for sigma in noise_levels().tolist()]
    states = [(seed, state) for seed in row.train_seeds for state in ("initial", "trained")]
    assert found == [("name", *state, sigma) for state in states for sigma in sigmas]
    straight = []
    for seed in row.train_seeds:
        trained = load_denoiser(tmp_path / f"seed_{seed}.safetensors").requires_grad_(True)
        initial = new_denoiser(trained.spec, seed)
        for state, denoiser in (("initial", initial), ("trained", trained)):
            own = [line for line in lines if (line["train_seed"], line["state"]) == (seed, state)]
            for line, point in zip(own, by_sigma(denoiser, row, evenly_spread(IMAGES, 12)), strict=True):
                numbers = [float(line[key]) for key in ("sigma", "error", "loss", "gradient")]
                assert numbers == pytest.approx([point.sigma, point.error, point.loss, point.gradient], rel=1e-5)
        straight.append(straightness(trained))
    assert summary["straightness"] == {
        "mean": pytest.approx(statistics.mean(straight), rel=1e-6),
        "sd": pytest.approx(statistics.stdev(straight), rel=1e-4),
        "steps": losses.STRAIGHTNESS_STEPS,
    }


def test_the_bound_is_measured_for_a_table_of_noise_levels_alone(tmp_path: Path, brief: None) -> None:
    assert measured(WIDE, tmp_path / "wide").summary()["bound"] is None
    found = measured(LADDER, tmp_path / "ladder").summary()["bound"]
    assert isinstance(LADDER.distribution, Levels)
    levels = LADDER.distribution.levels
    first = load_denoiser(tmp_path / "ladder/seed_2.safetensors")
    bound = variational_bound(first, evenly_spread(IMAGES, 12), levels, 0, 64)
    assert found == {
        "L_0": pytest.approx(bound.L_0.value),
        "L_t": pytest.approx(bound.L_t.value),
        "L_T": pytest.approx(bound.L_T.value),
        "total": pytest.approx(found["L_0"] + found["L_t"] + found["L_T"]),
        "se": pytest.approx(bound.total.se),
        "levels": 1000,
    }


def test_the_bound_of_a_learned_variance_is_measured_with_it(tmp_path: Path, brief: None) -> None:
    row = LADDER.model_copy(update={"learned_variance": "hybrid", "train_seeds": (2,)})
    found = measured(row, tmp_path).summary()["bound"]
    denoiser, levels = load_denoiser(tmp_path / "seed_2.safetensors"), ddpm_sigmas()
    learned, fixed = (
        variational_bound(function, evenly_spread(IMAGES, 12), levels, 0, 64)
        for function in (denoiser.with_variance, denoiser)
    )
    assert found["L_t"] == pytest.approx(learned.L_t.value) != pytest.approx(fixed.L_t.value)
    assert found["L_0"] == pytest.approx(learned.L_0.value) != pytest.approx(fixed.L_0.value)


def test_one_seed_has_no_spread(tmp_path: Path, brief: None) -> None:
    assert measured(WIDE.model_copy(update={"train_seeds": (0,)}), tmp_path).straightness.sd is None


@pytest.mark.parametrize("row", [WIDE, LADDER], ids=lambda row: row.noise)
def test_measures_depend_on_the_row_and_the_weights_alone(tmp_path: Path, brief: None, row: Model) -> None:
    torch.manual_seed(1)
    whole = measured(row, tmp_path)
    torch.manual_seed(2)
    assert measure_model("name", row, tmp_path, IMAGES, 1) == whole
    first = row.model_copy(update={"train_seeds": row.train_seeds[:1]})
    of_first = [line for line in whole.lines if line.train_seed == row.train_seeds[0]]
    assert measure_model("name", first, tmp_path, IMAGES, 1).lines == of_first


def test_failed_trainings_are_left_out(tmp_path: Path, brief: None) -> None:
    whole = measured(LADDER, tmp_path)
    first, *others = LADDER.train_seeds
    main_file(tmp_path, first).unlink()
    save_failure("no number", failure_file(tmp_path, first))
    found = measure_model("name", LADDER, tmp_path, IMAGES, 1)
    assert found.lines == [line for line in whole.lines if line.train_seed != first] and found.lines
    rest = LADDER.model_copy(update={"train_seeds": tuple(others)})
    assert found == measure_model("name", rest, tmp_path, IMAGES, 1) and found.bound != whole.bound
    for seed in others:
        save_failure("no number", failure_file(tmp_path, seed))
    found = measure_model("name", LADDER, tmp_path, IMAGES, 1)
    assert found.lines == [] and found.bound is None and found.summary()["straightness"]["mean"] is None


def test_measures_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, brief: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if threads read weights while others draw new ones."""
    monkeypatch.setattr(losses, "SIGMAS", 1)
    monkeypatch.setattr(losses, "STRAIGHTNESS_STEPS", 1)
    row = Model(**SMALL | {"multipliers": (1, 2)}, images=8, train_seeds=tuple(range(8)))
    alone = measured(row, tmp_path, 1)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns often
    try:
        for _ in range(2):
            assert measure_model("name", row, tmp_path, IMAGES, 3) == alone
    finally:
        sys.setswitchinterval(interval)


def test_training_lowers_the_error_at_every_level(tmp_path: Path, brief: None) -> None:
    row = WIDE.model_copy(update={"images": 100 * 8, "train_seeds": (0,), "P_mean": -1.0, "P_std": 1.9})
    lines = measured(row, tmp_path).lines
    initial, trained = ([line for line in lines if line.state == state] for state in ("initial", "trained"))
    for before, after in zip(initial, trained, strict=True):
        assert float(after.error) < float(before.error) or float(before.sigma) < 0.01


def test_a_model_of_classes_is_told_them_where_its_losses_are_measured(tmp_path: Path, brief: None) -> None:
    row = Model(**SMALL, images=64, train_seeds=(0,), labels="classes", label_dropout=0.5)
    labels = torch.arange(len(IMAGES)) % 2
    spec = row.spec(STD, SHAPE, [len(IMAGES) // 2] * 2)
    save_models(in_turns([train(row, spec, IMAGES, 0, labels=labels)], 1), tmp_path)
    lines = measure_model("name", row, tmp_path, IMAGES, 1, labels).lines
    denoiser, few = load_denoiser(tmp_path / "seed_0.safetensors"), evenly_spread(IMAGES, 12)
    told = evenly_spread(labels, 12)
    trained = [line for line in lines if line.state == "trained"]
    for line, sigma in zip(trained, noise_levels(), strict=True):
        by_class, untold = (float(error_at(denoiser, to_range(few), sigma, y)) for y in (told, None))
        assert float(line.error) == pytest.approx(by_class, rel=1e-5) != pytest.approx(untold, rel=1e-5)
