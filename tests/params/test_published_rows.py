"""The CIFAR-10 study's published values: each is beside a curve with its sampler, on a model with its training."""

import re
from typing import Any

import pytest

from pipeline.params.study import Published, read_study
from tests.params.test_presets import CIFAR10, EVERY, of_cifar10

DDPM = {"parametrization": "vp", "noise": "vp_uniform", "weighting": "unit"}
OURS = {"flip": 0.5, "clip_norm": None, "batch": 512, "learning_rate": 1e-3, "warmup_images": 10_000_000}
OURS |= {"ema_halflife_images": 500_000, "ema_ramp_up": 0.05, "dropout": 0.13, "images": 200_000_000}
BASELINE = {"flip": 0.5, "clip_norm": 1, "batch": 128, "learning_rate": 2e-4, "warmup_images": 5000 * 128}
BASELINE |= {"ema_halflife_images": 887_000, "ema_ramp_up": None, "dropout": 0.1, "images": 200_000_000}
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {  # EDM's app. F and table 7: the model, and its choices
    "A": ("config_a", BASELINE | DDPM | {"multipliers": (1, 2, 2, 2), "augment": 0}),
    "B": ("config_b", OURS | DDPM | {"multipliers": (1, 2, 2, 2), "augment": 0}),
    "C": ("ddpm", OURS | DDPM | {"multipliers": (2, 2, 2), "augment": 0}),
    "E": ("edm", OURS | {"parametrization": "edm", "noise": "lognormal", "multipliers": (2, 2, 2), "augment": 0}),
    "F": (
        "edm_augmented",
        OURS | {"parametrization": "edm", "noise": "lognormal", "multipliers": (2, 2, 2), "augment": 0.12},
    ),
}
QUADRATIC = {"discretization": "ddpm", "spacing": "quadratic"}
TOLERANCE = {"solver": "rk45", "rtol": 1e-5, "atol": 1e-5, "precision": "float32"}
HEUN = {"solver": "heun", "alpha": 1, "discretization": "edm", "rho": 7, "S_churn": 0}
TO_SIGMA_MIN = {"end": "sigma_min", "first_step": "network"}
LOG_UNIFORM = {"discretization": "exponential", "sigma_min": 0.002, "sigma_max": 80, "threshold": "dynamic"}
TAB3 = {
    "solver": "deis",
    "order": None,
    "discretization": "time_quadratic",
    "schedule": "vp",
} | TO_SIGMA_MIN  # its default order is tAB3
SAMPLERS: dict[str, dict[str, Any]] = {  # words of a published row, and what they mean for its curve
    r"^(EDM|VP training|VP network of Song et al\.), ": HEUN,
    r"^Heun on": HEUN | TO_SIGMA_MIN,
    r"^Euler on": HEUN | {"solver": "euler"} | TO_SIGMA_MIN,
    r"^DPM-Solver-2 on EDM's": {"solver": "dpm_solver_2", "discretization": "edm", "rho": 7} | TO_SIGMA_MIN,
    r"^iPNDM-4 on": {"solver": "ipndm", "order": None, "discretization": "edm", "rho": 7} | TO_SIGMA_MIN,
    r"^DPM-Solver\+\+ \(3M\) on": {"solver": "dpmpp_3m"} | LOG_UNIFORM | TO_SIGMA_MIN,
    r"^UniPC-3 on": {"solver": "unipc", "order": None} | LOG_UNIFORM | TO_SIGMA_MIN,
    r"^DEIS \(tAB3\) on": TAB3 | {"sigma_min": 0.002, "sigma_max": 80},
    r"^DEIS on a VP network": TAB3,
    r"^DPM-Solver-2 \(.*\) on a VP network": {"solver": "dpm_solver_2", "discretization": "log_snr"} | TO_SIGMA_MIN,
    r"^DDIM \(eta 0\)": {"solver": "ddim", "eta": 0} | QUADRATIC,
    r"^ancestral \(eta 1\)": {"solver": "ddim", "eta": 1} | QUADRATIC,
    r"ancestral with the larger variance": {"solver": "ddpm", "variance": "beta"} | QUADRATIC,
    r"^VP probability flow, RK45 at 1e-5": TOLERANCE | {"discretization": "vp", "schedule": "vp"},
    r"^1-rectified flow, RK45 at 1e-5": TOLERANCE | {"discretization": "flow", "schedule": "flow"},
    r"^progressive distillation": {"solver": "ddim", "eta": 0, "discretization": "edm", "rho": 7, "finest_steps": 8192},
    r"\(iCT\)": {"solver": "consistency", "boundary": 0.002},
    r"\(ECT\)": {"solver": "consistency", "boundary": 0},
}
DECAYS = {"cd": 0.9999, "ct": 0.99993, "ect": 0.9999}  # of the average of the weights, by step
FLOAT32 = {"precision": "float32"}  # Adam with a warm-up of 2,000 steps stands for RAdam
STUDENTS: dict[str, dict[str, Any]] = {  # settings of the authors' code (pd, ect) and of the papers
    "pd": FLOAT32
    | {"objective": "progressive", "batch": 512, "learning_rate": 5e-5, "learning_rate_decay": "linear", "dropout": 0}
    | {"clip_norm": 1, "first_steps": 4096, "weighting": "truncated_snr", "distance": "squared", "warmup_images": 512},
    "cd": FLOAT32
    | {
        "objective": "consistency_distillation",
        "batch": 512,
        "learning_rate": 4e-4,
        "dropout": 0,
        "teacher_step": "heun",
    }
    | {"warmup_images": 10_000_000, "images": 800_000 * 512},
    "ct": FLOAT32
    | {"objective": "consistency_training", "batch": 1024, "learning_rate": 1e-4, "dropout": 0.3, "first_levels": 10}
    | {"last_levels": 1280, "distance": "pseudo_huber", "images": 400_000 * 1024, "warmup_images": 2000 * 1024},
    "ect": FLOAT32
    | {"objective": "easy_consistency", "batch": 128, "learning_rate": 1e-4, "dropout": 0.2, "flip": 0, "P_mean": -1.1}
    | {"P_std": 2, "images": 400_000 * 128, "warmup_images": 2000 * 128, "learning_rate_decay": "none"},
}
PUBLISHED = read_study(CIFAR10).published


def where(row: Published) -> str:
    return f"{row.curve} at {row.nfe}"


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_each_configuration_is_trained_as_published(configuration: str) -> None:
    name, choices = CONFIGURATIONS[configuration]
    row = of_cifar10("paper").models[name].row
    assert {key: getattr(row, key) for key in choices} == choices


def test_only_rows_of_configuration_f_are_augmented_and_every_row_has_dropout() -> None:
    models = {name: entry.row for name, entry in of_cifar10("paper").models.items()}
    assert {name for name, row in models.items() if row.augment} == {"edm_augmented", "classes"}
    denoisers = [row for name, row in models.items() if name not in STUDENTS]
    assert {row.dropout for row in denoisers} == {0.1, 0.13}
    assert {row.flip for row in denoisers if row.space is None} == {0.5}


@pytest.mark.parametrize("name", STUDENTS)
def test_each_student_is_trained_as_published(name: str) -> None:
    rows = of_cifar10("paper")
    row = rows.models[name].row
    assert {key: getattr(row, key) for key in STUDENTS[name]} == STUDENTS[name]
    assert row.teacher == (None if name == "ct" else rows.models["edm"].row)
    if name in DECAYS:
        assert 0.5 ** (row.batch / row.longest_average_images) == pytest.approx(DECAYS[name], abs=1e-7)


def test_progressive_distillation_has_rounds_of_50_000_steps() -> None:
    rounds = of_cifar10("paper").models["pd"].row.rounds
    assert [part.round_steps for part in rounds] == [2**i for i in range(12, -1, -1)]
    assert {part.steps for part in rounds} == {50_000}


def test_consistency_models_are_sampled_at_the_published_noise_levels() -> None:
    for name in ("cd", "ct", "ect"):
        row = of_cifar10("paper").curves[name].row
        assert row.grid(1).tolist() == pytest.approx([80, 0]) and row.grid(2).tolist() == pytest.approx(
            [80, 0.821, 0], abs=1e-3
        )


@pytest.mark.parametrize("row", PUBLISHED, ids=where)
def test_a_published_value_is_beside_a_curve_with_its_sampler(row: Published) -> None:
    curve = of_cifar10("paper").curves[row.curve].row
    (choices,) = [choices for words, choices in SAMPLERS.items() if re.search(words, row.what)]
    assert {key: getattr(curve, key) for key in choices} == choices
    assert row.nfe in curve.nfe
    assert (row.end or "zero", row.first_step or "network") == (curve.end, curve.first_step)
    if row.end:
        assert curve.evaluations(curve.steps(row.nfe)) == row.nfe == (row.depth or curve.depth(curve.steps(row.nfe)))


@pytest.mark.parametrize("row", PUBLISHED, ids=where)
def test_a_published_value_is_beside_a_model_with_its_training(row: Published) -> None:
    rows = of_cifar10("paper")
    name = rows.curves[row.curve].row.model
    model = rows.models[name].row
    if name in STUDENTS:
        assert row.images in (None, model.images) and (name == "ect") == ("configuration F" in row.what)
    elif configuration := re.search(r"configuration ([A-F])", row.what):
        expected = CONFIGURATIONS[configuration[1]][0]
        assert name == ("classes" if "class-conditional" in row.what else expected)
        assert row.images in (None, model.images)
    else:
        assert model.augment == 0
        assert model.parametrization == ("flow" if "rectified flow" in row.what else "vp")


@pytest.mark.parametrize("preset", EVERY)
def test_every_sampler_with_a_published_value_is_there_at_every_scale(preset: str) -> None:
    rows = of_cifar10(preset)
    assert rows.published == PUBLISHED and {row.curve for row in rows.published} <= rows.curves.keys()


def test_every_pattern_has_a_value() -> None:
    assert [words for words in SAMPLERS if not any(re.search(words, row.what) for row in PUBLISHED)] == []
