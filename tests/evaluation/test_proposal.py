"""Proposed noise: the moments of the gain of training, as a row for a study file."""

import math
from functools import cache
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from pipeline.data.dataset import to_uint8
from pipeline.diffusion.denoiser import Denoiser
from pipeline.evaluation import proposal as module
from pipeline.evaluation.losses import noise_levels
from pipeline.evaluation.proposal import Normal, file_text, fit, propose, row_text, summary
from pipeline.params.resolve import resolve
from pipeline.params.study import Study
from pipeline.training.row import Model

SMALL = {"channels": 8, "multipliers": (1,), "blocks": 1, "batch": 8, "warmup_images": 16, "ema_halflife_images": 40}
SHAPE = (1, 4, 4)
SD = 0.5
IMAGES = to_uint8(SD * torch.randn(30, 1, 1, 1, generator=torch.Generator().manual_seed(0)).expand(30, *SHAPE))  # grey


def gain(mean: float, std: float, sigma_data: float = SD) -> Tensor:
    """A gain at each noise level whose effect on the sample is normal over ln sigma."""
    sigmas = noise_levels()
    effect = (-(((sigmas.log() - mean) / std) ** 2) / 2).exp()
    return 0.01 * effect * (1 + (sigmas / sigma_data) ** 2)


def fitted(gained: Tensor, sigma_data: float = SD) -> Normal | None:
    long = 0.1 + 0.3 * torch.rand(len(gained), generator=torch.Generator().manual_seed(0)).double()
    return fit(noise_levels(), long + gained, long, sigma_data)


@pytest.mark.parametrize("sigma_data", [0.2, 0.5, 1.3])
@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (-2.05, 0.65), (0.0, 0.9), (0.55, 0.8)])
def test_the_mean_and_spread_of_what_is_gained_are_found(mean: float, std: float, sigma_data: float) -> None:
    assert fitted(gain(mean, std, sigma_data), sigma_data) == Normal(mean, std)


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [(-1.22, 1.0, (-1.2, 1.0)), (-1.23, 1.0, (-1.25, 1.0)), (-1.0, 0.88, (-1.0, 0.9)), (0.01, 0.87, (0.0, 0.85))],
)
def test_proposals_are_rounded(mean: float, std: float, expected: tuple[float, float]) -> None:
    found = fitted(gain(mean, std))
    assert (found.P_mean, found.P_std) == expected
    assert math.copysign(1, found.P_mean) == (1 if mean > 0 else -1)


def test_nothing_is_proposed_if_a_brief_training_diverges(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "BRIEF_IMAGES", (16, 80))
    row = Model(**SMALL | {"warmup_images": 10_000}, learning_rate=1e12)
    assert propose(row, row.spec(SD, SHAPE), IMAGES, 1) is None
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("no noise is proposed, because a brief training diverges: seed 0: the ")


def test_what_is_lost_counts_for_nothing() -> None:
    gained = gain(-1.2, 0.6)
    lost = torch.where((noise_levels().log() + 1.2).abs() > 4 * 0.6, -1.0, gained)
    assert int((lost < 0).sum()) >= 5
    assert fitted(lost) == fitted(gained) == Normal(-1.2, 0.6)


@pytest.mark.parametrize("gained", [0.0, -0.01, math.nan])
def test_where_nothing_is_gained_nothing_is_proposed(gained: float) -> None:
    nothing = fitted(torch.full_like(noise_levels(), gained))
    assert nothing is None
    assert yaml.safe_load(file_text("edm", Model(), nothing)) == {"models": {}}
    found = summary("edm", Model(), nothing)
    assert found["P_mean"] is found["P_std"] is found["row"] is None and found["published"]["P_std"] == 1.2


def test_a_proposal_is_a_row_even_where_one_level_alone_gained() -> None:
    gained = torch.zeros_like(noise_levels())
    gained[7] = 1.0
    found = fitted(gained)
    assert found and Model(P_mean=found.P_mean, P_std=found.P_std)


@pytest.mark.parametrize("name", ["1", "on", "null", "edm"])
def test_a_name_that_yaml_would_read_otherwise_is_quoted(name: str) -> None:
    [(own, row)] = yaml.safe_load(row_text(name, Model(), Normal(-1.0, 0.5))).items()
    assert own == f"{name}_proposed" and row["base"] == name


BASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "other moments": {"P_mean": 0.3, "P_std": 0.7, "weighting": "snr"},
    "uniform": {"noise": "flow_uniform", "parametrization": "flow", "shift": 2.0},
    "table": {"noise": "ddpm_uniform", "parametrization": "ddpm"},
}


@pytest.mark.parametrize("name", ["edm", "1_of_2", "a" * 60, "b" * 50])
@pytest.mark.parametrize("base", BASES)
def test_the_proposal_is_a_row_that_a_study_can_take(base: str, name: str) -> None:
    row, found = Model(**BASES[base]), Normal(-1.35, 0.9)
    models = {name: BASES[base]}
    text = file_text(name, row, found)
    [(own, proposed)] = yaml.safe_load(text)["models"].items()
    assert yaml.safe_load(row_text(name, row, found)) == {own: proposed}
    assert row_text(name, row, found) in text and text.endswith("\n") and max(map(len, text.splitlines())) <= 200
    assert own != name and proposed["base"] == name
    study = Study(study={"name": "t"}, models=models | {own: proposed}, curves={"c": {"model": own}})
    expected = row.model_copy(update={"noise": "lognormal", "P_mean": -1.35, "P_std": 0.9})
    assert resolve(study).models[own].row == expected


@pytest.mark.parametrize("base", BASES)
def test_the_proposed_row_says_no_more_than_it_must(base: str) -> None:
    proposed = yaml.safe_load(row_text("x", Model(**BASES[base]), Normal(-1.35, 0.9)))["x_proposed"]
    noise = {} if Model(**BASES[base]).noise == "lognormal" else {"noise": "lognormal"}
    assert proposed == {"base": "x", **noise, "P_mean": -1.35, "P_std": 0.9}


def test_the_summary_has_the_published_moments_beside_the_proposed() -> None:
    found = summary("edm", Model(P_mean=0.5), Normal(-1.35, 0.9))
    assert (found["P_mean"], found["P_std"]) == (-1.35, 0.9)
    assert found["published"] == {"P_mean": -1.2, "P_std": 1.2}
    assert found["row"] == row_text("edm", Model(), Normal(-1.35, 0.9))


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train for a few steps."""
    monkeypatch.setattr(module, "BRIEF_IMAGES", (5 * 8, 25 * 8))


def proposal(workers: int | None = None, **keys: Any) -> Normal:
    row = Model(**SMALL, **keys)
    return propose(row, row.spec(SD, SHAPE), IMAGES, workers)


@cache
def plain() -> Normal | None:
    """The proposal for a row without further keys, within `brief`."""
    return proposal()


def test_proposals_repeat_whatever_the_number_of_workers(brief: None) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = proposal(1)
    low, high = (math.log(float(sigma)) for sigma in noise_levels()[[0, -1]])
    assert low < found.P_mean < high and 0 < found.P_std < (high - low) / 2
    torch.manual_seed(1)
    assert all(proposal(workers) == found for workers in (2, 3))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "keys",
    [
        {"noise": "vp_uniform"},
        {"P_mean": 2.0, "P_std": 0.3},
        {"weighting": "min_snr", "gamma": 3},
        {"draws": "stratified", "weighting": "p2", "k": 2},
        {"pairs": "optimal_transport"},
        {"images": 8, "train_seeds": (5,)},
    ],
    ids=str,
)
def test_the_rows_own_noise_weighting_and_pairs_do_not_matter(brief: None, keys: dict[str, Any]) -> None:
    assert proposal(**keys) == plain()


@pytest.mark.parametrize("keys", [{"parametrization": "vp"}, {"parametrization": "flow"}, {"augment": 0.1}], ids=str)
def test_other_networks_have_proposals_too(brief: None, keys: dict[str, Any]) -> None:
    found = proposal(**keys)
    assert math.isfinite(found.P_mean) and found.P_std > 0


def test_a_reflow_row_is_proposed_noise_from_the_data(brief: None) -> None:
    flow = Model(**SMALL, parametrization="flow", noise="flow_uniform")
    row = flow.model_copy(update={"pairs": "reflow", "teacher": flow})
    assert propose(row, row.spec(SD, SHAPE), IMAGES) == propose(flow, flow.spec(SD, SHAPE), IMAGES)


def test_training_that_gains_nothing_proposes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BRIEF_IMAGES", (8, 8))
    assert proposal() is None


def test_errors_are_measured_where_networks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, which refuses tensors of the CPU."""
    monkeypatch.setattr(module, "default_device", lambda: torch.device("meta"))
    row = Model(**SMALL)
    found = module.errors(Denoiser(row.spec(SD, SHAPE)).eval(), IMAGES)
    assert found.device.type == "meta" and found.shape == noise_levels().shape
