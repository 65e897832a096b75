"""Choices that cannot change a result are found, named with their reason, and nothing else is."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.params import null_axes
from pipeline.params.null_axes import remarks
from pipeline.params.resolve import resolve
from pipeline.params.study import read_study
from pipeline.sampling.row import Sampler
from tests.scripts import run_module

ABLE = {"labels": "classes", "snapshots": 2, "classifier_images": 1}  # to be guided in any way


def found(tmp_path: Path, curves: dict[str, Any] | None = None, models: dict[str, Any] | None = None) -> list[str]:
    """The warnings of a study of these rows."""
    path = tmp_path / "params.yaml"
    study = {"study": {"name": "t"}, "models": {"edm": ABLE, **(models or {})}, "sets": {}}
    study["curves"] = {"edm": {"model": "edm"}} | {
        name: {"model": "edm", **row} for name, row in (curves or {}).items()
    }
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return list(resolve(read_study(path)).warnings)


NULL: dict[str, tuple[dict[str, Any], str, str]] = {  # a row, the key, a part of the reason
    "schedule, Euler": (
        {"solver": "euler", "schedule": "flow"},
        "schedule",
        "in the schedules linear and flow",
    ),
    "rho, vp grid": ({"discretization": "vp", "rho": 3}, "rho", "discretization vp has no rho"),
    "shift, edm grid": ({"shift": 3}, "shift", "discretization edm has no shift"),
    "spacing, edm grid": ({"spacing": "trailing"}, "spacing", "discretization edm has no spacing"),
    "exponent, edm grid": ({"exponent": 2}, "exponent", "discretization edm has no exponent"),
    "S_noise, no churn": ({"S_noise": 1.01}, "S_noise", "without S_churn there is no churn"),
    "schedule, ddim": ({"solver": "ddim", "schedule": "vp"}, "schedule", "solver ddim steps in sigma"),
    "scaling, 2M": (
        {"solver": "dpmpp_2m", "scaling": "vp"},
        "scaling",
        "and so does not depend on the scaling",
    ),
    "rho, adaptive": ({"solver": "rk45", "nfe": [19], "rho": 3}, "rho", "chooses its own steps"),
    "order, said anyway": ({"solver": "ipndm", "order": 4, "nfe": [7]}, "order", "the default order of solver ipndm"),
    "sigma_min, flow grid": ({"discretization": "flow", "sigma_min": 0.01}, "sigma_min", "always goes down to 0"),
    "churn, above all noise": ({"S_churn": 10, "S_min": 90}, "S_churn", "gives the same points without it"),
    "guide, nothing guided": ({"guide": "snapshot"}, "guide", "guidance 1 does not guide"),
    "percentile, static threshold": (
        {"threshold": "static", "threshold_percentile": 0.9},
        "threshold_percentile",
        "threshold static has no percentile",
    ),
    "schedule, fitted": ({"solver": "fitted", "schedule": "vp"}, "schedule", "solver fitted steps in ln sigma"),
    "corrector_snr": (
        {"solver": "euler_maruyama", "corrector_snr": 0.1},
        "corrector_snr",
        "gives the same points without it",
    ),
}


@pytest.mark.parametrize("case", NULL)
def test_a_choice_that_changes_nothing_gets_a_warning_with_its_reason(tmp_path: Path, case: str) -> None:
    row, key, reason = NULL[case]
    lines = found(tmp_path, {"x": row})
    own = [line for line in lines if line.startswith(f"curves.x.{key}: ")]
    assert len(own) == 1 and "changes nothing: " in own[0] and reason in own[0], lines


NOT_NULL: list[dict[str, Any]] = [
    {"end": "sigma_min"},
    {"first_step": "analytic"},
    {"discretization": "time", "exponent": 2},
    {"guidance": 0},
    {"guidance": 2},
    {"guidance": 0.5, "guide": "snapshot"},
    {"guidance": 2, "guide": "classifier"},
    {"guidance": 2, "guidance_min": 0.1, "guidance_max": 2},
    {"schedule": "flow"},
    {"solver": "euler", "schedule": "vp"},
    {"solver": "euler", "schedule": "flow", "scaling": "none"},
    {"discretization": "flow", "shift": 2},
    {"discretization": "ddpm", "spacing": "leading"},
    {"discretization": "time", "schedule": "cosine"},
    {"solver": "dpmpp_2m", "discretization": "time", "schedule": "vp"},
    {"solver": "deis", "schedule": "vp"},
    {"S_churn": 10, "S_noise": 1.01},
    {"solver": "unipc", "order": 2},
    {"solver": "ddpm", "variance": "beta"},
    {"solver": "euler_maruyama", "diffusion": 0.5},
    {"solver": "euler_maruyama", "corrector_steps": 1, "corrector_snr": 0.1},
    {"solver": "rk45", "rtol": 0.01, "nfe": [19]},
    {"discretization": "optimised"},
    {"sigma_min": 0.01},
    {"solver": "unipc", "variant": "bh1"},
    {"threshold": "static"},
    {"threshold": "dynamic", "threshold_percentile": 0.9},
    {"solver": "fitted"},
    {"solver": "fitted", "told": "fitted", "start": "ipndm"},
    {"solver": "fitted", "nfe": [1]},
    {"solver": "fitted", "fitted_nfe": 4},
]


@pytest.mark.parametrize("row", NOT_NULL, ids=str)
def test_a_choice_that_changes_something_gets_no_warning(tmp_path: Path, row: dict[str, Any]) -> None:
    assert found(tmp_path, {"x": row}) == []


@pytest.mark.parametrize(
    "keys", [{"rtol": 1e-12, "atol": 1e-12}, {"schedule": "ve", "discretization": "ddpm", "sigma_max": 1e6}], ids=str
)
def test_the_trial_of_an_adaptive_solver_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    """Its samples are then not compared, whatever its budgets."""
    row, calls, exact = Sampler(solver="rk45", nfe=(35, 63, 99), **keys), [0], null_axes._denoiser

    def counting(row: Sampler) -> DenoiserFunction:
        def answer(z: Tensor, sigma: Tensor) -> Tensor:
            calls[0] += 1
            return exact(row)(z, sigma)

        return answer

    monkeypatch.setattr(null_axes, "_denoiser", counting)
    outcome = null_axes.sampled(row)
    assert not outcome.keys() & set(row.nfe) and calls == [null_axes.MOST_CALLS]
    assert not null_axes.same(outcome, outcome)
    assert found(tmp_path, {"x": {"solver": "rk45", "nfe": [35], **keys}}) == []


@pytest.mark.parametrize("method", [{}, {"method": "Song's"}], ids=str)
def test_an_adaptive_solver_without_a_small_enough_step_is_refused(tmp_path: Path, method: dict[str, str]) -> None:
    row = {"solver": "rk45", "nfe": [35], "schedule": "ve", "scaling": "vp", "discretization": "ddpm", "sigma_max": 1e6}
    with pytest.raises(StudyError, match=r"^curves\.x: solver rk45: underflow in dt .*; use another noise range"):
        found(tmp_path, {"x": row | method})


def test_a_learned_variance_is_neither_of_the_fixed_ones(tmp_path: Path) -> None:
    chain = {"parametrization": "ddpm", "noise": "ddpm_uniform", "learned_variance": "hybrid"}
    rows = {
        name: {"model": "m", "solver": "ddpm", "variance": name, "guidance": 2.0}
        for name in ("beta_tilde", "beta", "learned")
    }
    model = chain | {"labels": "classes"}
    assert found(tmp_path, rows, models={"m": model}) == []


def test_two_names_of_one_sampler_get_a_warning(tmp_path: Path) -> None:
    [line] = found(tmp_path, {"euler": {"solver": "euler"}, "ddim": {"solver": "ddim"}})
    assert line == "curves.ddim: the same sampler as curves.euler, written differently"


def test_a_fitted_solver_is_not_the_one_that_its_fit_begins_with(tmp_path: Path) -> None:
    """Nor is one with other free numbers, or one that is fitted to another network."""
    twice = {"discretization": "vp"}, {"discretization": "time", "schedule": "vp"}
    low, high = Sampler(discretization="vp").sigma_range
    rows: dict[str, dict[str, Any]] = {
        **{start: {"solver": start} for start in ("dpmpp_2m", "ipndm")},
        **{f"of_{start}": {"solver": "fitted", "start": start} for start in ("dpmpp_2m", "ipndm")},
        "told": {"solver": "fitted", "told": "fitted"},
        "times": {"solver": "fitted", "fit": "times"},
        "fewer": {"solver": "fitted", "fit_images": 64},
        "on_vp": {"solver": "fitted"} | twice[0],
        "of_seed": {"solver": "fitted", "fitted_seed": 0} | twice[1] | {"sigma_min": low, "sigma_max": high},
    }
    assert found(tmp_path, {name: row | {"nfe": [1, 4]} for name, row in rows.items()}) == []
    del rows["of_seed"]["fitted_seed"]
    assert found(tmp_path, {name: row | {"nfe": [1, 4]} for name, row in rows.items()}) == [
        "curves.of_seed: the same sampler as curves.on_vp, written differently"
    ]


def test_curves_without_common_budgets_are_not_compared(tmp_path: Path) -> None:
    rows = {"x": {"guidance": 2, "nfe": [10]}, "y": {"guidance": 3, "nfe": [20]}}
    assert found(tmp_path, rows) == []
    many = {"x": {"guidance": 2, "nfe": [320]}, "y": {"base": "x", "guidance": 3, "nfe": [320]}}
    assert found(tmp_path, many) == []


def test_other_seeds_or_budgets_get_no_warning(tmp_path: Path) -> None:
    assert found(tmp_path, {"more": {"nfe": [7], "sample_seeds": [5]}}) == []


def test_a_row_with_a_method_gets_no_warning(tmp_path: Path) -> None:
    row = {"solver": "euler", "schedule": "flow", "discretization": "flow"}
    assert found(tmp_path, {"x": row | {"method": "rectified flow"}}) == []
    assert len(found(tmp_path, {"x": row})) == 1


@pytest.mark.parametrize(
    ("row", "key", "reason"),
    [
        ({"noise": "vp_uniform", "P_mean": 0}, "P_mean", "noise vp_uniform has no P_mean"),
        ({"noise": "flow_uniform", "P_mean": 0}, "P_mean", "noise flow_uniform has no P_mean"),
        ({"noise": "cosmap", "mode_scale": 0}, "mode_scale", "noise cosmap has no mode_scale"),
        ({"shift": 3}, "shift", "noise lognormal has no shift"),
        ({"logit_std": 2}, "logit_std", "noise lognormal has no logit_std"),
        ({"weighting": "edm"}, "weighting", "for parametrization edm it equals the weighting of the base"),
        (
            {"weighting": "snr", "parametrization": "vp"},
            "weighting",
            "for parametrization vp it equals the",
        ),
        ({"reflow_pairs": 100}, "reflow_pairs", "pairs independent does not use it"),
        (
            {"pairs": "optimal_transport", "reflow_pairs": 100},
            "reflow_pairs",
            "optimal_transport does not use it",
        ),
        ({"label_dropout": 0.2}, "label_dropout", "without labels there is nothing to drop"),
        (
            {"learning_rate_reference_images": 9},
            "learning_rate_reference_images",
            "learning_rate_decay cosine does not use it",
        ),
        ({"micro_batch": 128}, "micro_batch", "a batch has 128 images"),
        ({"budget": "total"}, "budget", "the row has no teacher"),
        ({"weighting": "min_snr", "gamma": 5}, "gamma", "trained on the same targets without it"),
        ({"weighting": "p2", "k": 1}, "k", "trained on the same targets without it"),
    ],
)
def test_a_choice_of_training_that_changes_nothing_gets_a_warning(
    tmp_path: Path, row: dict[str, Any], key: str, reason: str
) -> None:
    [line] = found(tmp_path, models={"x": row})
    assert line.startswith(f"models.x.{key}: ") and reason in line


def test_the_default_of_a_weighting_gets_a_warning(tmp_path: Path) -> None:
    rows = {"m": {"weighting": "min_snr"}, "x": {"base": "m", "gamma": 5}, "y": {"base": "m", "gamma": 4}}
    [line] = found(tmp_path, models=rows)
    assert line.startswith("models.x.gamma: 5.0 changes nothing: ")


@pytest.mark.parametrize(
    "row",
    [
        {"weighting": "snr"},
        {"parametrization": "vp"},
        {"P_mean": 0},
        {"images": 5},
        {"draws": "stratified"},
        {"draws": "adaptive"},
        {"pairs": "optimal_transport"},
        {"augment": 0.1},
        {"weighting": "uncertainty"},
        {"learned_variance": "hybrid", "parametrization": "ddpm", "noise": "ddpm_uniform"},
        {"weighting": "vlb", "noise": "ve_loguniform"},
        {"noise": "flow_uniform", "shift": 2},
        {"noise": "mode", "mode_scale": 0},
        {"weighting": "min_snr", "gamma": 1},
        {"weighting": "sigmoid", "bias": 1},
        {"sigma_data": 0.7},
        {"labels": "classes", "label_dropout": 0.2},
        {"learning_rate_decay": "inverse_sqrt", "learning_rate_reference_images": 9},
        {"micro_batch": 64},
        {"embedding": "fourier"},
        {"network": "dit"},
    ],
    ids=str,
)
def test_a_choice_of_training_that_changes_something_gets_no_warning(tmp_path: Path, row: dict[str, Any]) -> None:
    assert found(tmp_path, models={"x": row}) == []


def test_reflow_and_its_number_of_pairs_get_no_warning(tmp_path: Path) -> None:
    flow = {"parametrization": "flow", "noise": "flow_uniform"}
    again = {"base": "flow", "pairs": "reflow"}
    rows = {"flow": flow, "x": again, "y": {"base": "x", "reflow_pairs": 100}, "z": again | {"reflow_pairs": 100}}
    rows |= {"total": again | {"budget": "total", "images": 280_000}, "longer": {"base": "total", "budget": "own"}}
    assert found(tmp_path, models=rows) == []


def test_the_warning_comes_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(tmp_path, {"x": NULL["rho, vp grid"][0]})
    monkeypatch.chdir(tmp_path)
    assert run_module("stages.resolve") == 0
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "warning: curves.x.rho: 3.0 changes nothing: discretization vp has no rho"
    assert [line.split()[1] for line in others] == ["models.edm.classifier_images:", "models.edm.snapshots:"]


def remarked(tmp_path: Path, models: dict[str, Any], curves: dict[str, Any]) -> list[str]:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({"study": {"name": "t"}, "models": models, "curves": curves, "sets": {}}))
    return remarks(resolve(read_study(path)))


TWO = {"m": {}, "x": {"P_mean": -1}}
REMARKS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {  # models, curves, how the line begins
    "equal models": ({"a": {}, "b": {"P_mean": -1.2}}, {"a": {"model": "a"}}, "models.b: the same row as models.a"),
    "equal curves": (TWO, {"a": {"model": "m"}, "b": {"model": "m", "rho": 7}}, "curves.b: the same row as curves.a"),
    "equal budgets": (
        TWO, {"a": {"model": "m", "nfe": [3, 4, 7]}},
        "curves.a.nfe: 3 and 4 are one measurement: solver heun takes 2 steps with each, 3 evaluations",
    ),
    "budgets of an adaptive solver": (
        TWO, {"a": {"model": "m", "solver": "rk45", "nfe": [35, 63]}},
        "curves.a.nfe: 35 and 63 are one measurement: solver rk45 chooses its steps",
    ),
    "a classifier": ({"m": {"classifier_images": 9}}, {"a": {"model": "m"}}, "models.m.classifier_images: trains a"),
    "snapshots": ({"m": {"snapshots": 9}}, {"a": {"model": "m"}}, "models.m.snapshots: no curve uses them; use 0"),
    "trainings": (
        {"m": {"train_seeds": [0, 3, 5]}}, {"a": {"model": "m", "train_seeds": [3]}},
        "models.m.train_seeds: no curve uses 0, 5; leave out",
    ),
    "the last snapshot": ({"m": {"snapshots": 1}}, {"a": {"model": "m"}}, "models.m.snapshots: no curve uses them"),
}  # fmt: skip


@pytest.mark.parametrize("case", REMARKS)
def test_everything_without_use_gets_one_line(tmp_path: Path, case: str) -> None:
    models, curves, line = REMARKS[case]
    [found] = remarked(tmp_path, models, curves)
    assert found.startswith(line)


USED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "other seeds, other budgets": ({}, {"b": {"nfe": [4]}, "c": {"repetitions": "crossed"}}),
    "trainings": ({"train_seeds": [0, 1, 2]}, {"a": {"model": "m", "train_seeds": [0]}, "b": {"train_seeds": [1, 2]}}),
    "a training that a solver is fitted to": (
        {"train_seeds": [0, 1]}, {"a": {"model": "m", "solver": "fitted", "train_seeds": [1], "fitted_seed": 0}}
    ),
    "a classifier": ({"classifier_images": 9}, {"b": {"guide": "classifier", "guidance": 2}}),
    "a snapshot": ({"snapshots": 4}, {"b": {"guide": "snapshot", "guidance": 2}}),
    "an average made of snapshots": (
        {"snapshots": 16, "ema_sigma_rels": [0.05, 0.1]}, {"b": {"ema_sigma_rel": 0.075}}
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", USED)
def test_everything_that_a_curve_uses_gets_no_line(tmp_path: Path, case: str) -> None:
    model, curves = USED[case]
    rows = {"a": {"model": "m"}} | {name: {"model": "m", **row} for name, row in curves.items()}
    assert remarked(tmp_path, {"m": model}, rows) == []


def test_a_training_of_another_model_that_a_solver_is_fitted_to_gets_no_line(tmp_path: Path) -> None:
    moved = {"model": "n", "solver": "fitted", "fitted_model": "m", "fitted_seed": 3}
    models = {"m": {"train_seeds": [0, 3]}, "n": {"batch": 128}}
    curves = {"a": {"model": "m", "train_seeds": [0]}}
    assert remarked(tmp_path, models, curves | {"b": moved}) == []
    assert len(remarked(tmp_path, models, curves | {"b": {"model": "n"}})) == 1


def test_curves_on_equal_models_are_equal(tmp_path: Path) -> None:
    found = remarked(tmp_path, {"a": {}, "b": {}}, {"a": {"model": "a"}, "b": {"model": "b"}})
    assert [line.split(":")[0] for line in found] == ["models.b", "curves.b"]


def test_trainings_that_only_a_student_uses_get_no_line(tmp_path: Path) -> None:
    flow = {"parametrization": "flow", "noise": "flow_uniform", "train_seeds": [0, 1, 2]}
    curves = {"flow": {"model": "flow", "train_seeds": [0]}, "again": {"model": "again"}}
    models = {"flow": flow, "again": {"base": "flow", "pairs": "reflow"}}
    assert remarked(tmp_path, models, curves) == []
    models["again"]["train_seeds"] = [0, 1]
    [line] = remarked(tmp_path, models, curves)
    assert line.startswith("models.flow.train_seeds: no curve uses 2;")
