"""Rows written out in full: bases, defaults, the axis of each row, and the rows that a row needs."""

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from pipeline.data.row import Data
from pipeline.diffusion.networks.registry import NETWORKS
from pipeline.diffusion.schedule import SCALING_OF_SCHEDULE, SCHEDULES
from pipeline.evaluation.curve import Curve
from pipeline.metrics.extractors.row import Features
from pipeline.params.explain import FILLED_IN
from pipeline.sampling.row import Sampler
from pipeline.sampling.solvers import SOLVERS
from pipeline.training.row import Model
from pipeline.training.weighting import WEIGHTINGS
from tests.params.minimal import FLOW, REFLOW, curve, curves, models, refusal, resolved


def filed(tmp_path: Path, section: str, **sections: Any) -> dict[str, Any]:
    return resolved(tmp_path, **sections)["report"][section]["x"]


def test_resolved_rows_build_what_the_stages_need(tmp_path: Path) -> None:
    rows = resolved(tmp_path, data={"limit": 300}, features={"epochs": 1})
    assert Data(**rows["data"]) == Data(limit=300)
    assert Features(**rows["features"]) == Features(epochs=1)
    assert Model(**rows["models/edm"]) == Model()
    sampler = Sampler(**{key: rows["curves/edm"][key] for key in Sampler.model_fields})
    assert sampler == Sampler().filled() == sampler.filled()
    assert rows["curves/edm"]["seeds"] == [[0, 0], [1, 1], [2, 2]]


def test_a_row_overrides_its_bases_and_they_override_the_defaults(tmp_path: Path) -> None:
    rows = resolved(
        tmp_path,
        defaults={"models": {"images": 1000, "channels": 8, "P_mean": -2}, "curves": {"samples": 50}},
        **models(
            x={"base": "parent", "images": 4000},
            grandparent={"images": 2000, "P_mean": 1, "noise": "flow_uniform"},
            parent={"base": "grandparent", "images": 3000, "batch": 64},
        ),
    )
    assert rows["models/x"] == Model(images=4000, batch=64, P_mean=1, noise="flow_uniform", channels=8).model_dump(
        mode="json"
    )
    assert rows["models/edm"] == Model(images=1000, channels=8, P_mean=-2).model_dump(mode="json")
    assert rows["curves/edm"]["samples"] == 50
    report = rows["report"]["models"]["x"]
    assert (report["base"], report["differences"]) == ("parent", {"images": 4000})


def test_a_row_without_base_is_compared_with_the_first_row(tmp_path: Path) -> None:
    for row in (None, {}, {"base": None}):
        report = filed(tmp_path, "models", **models(x=row))
        assert (report["base"], report["axis"], report["differences"]) == ("edm", "", {})
    report = filed(tmp_path, "curves", **curve(base=None))
    assert (report["base"], report["axis"], report["differences"]) == ("edm", "", {})


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_scaling_and_the_range_are_filled_in(tmp_path: Path, schedule: str) -> None:
    rows = resolved(tmp_path, **curve(schedule=schedule))
    row = rows["curves/x"]
    assert (row["scaling"], row["sigma_min"], row["sigma_max"]) == (SCALING_OF_SCHEDULE[schedule], 0.002, 80)
    assert rows["report"]["curves"]["x"]["axis"] == ("" if schedule == "linear" else "schedule")


@pytest.mark.parametrize(
    ("keys", "axis"),
    [
        ({}, ""),
        ({"schedule": "vp"}, "schedule"),
        ({"discretization": "vp"}, "discretization"),
        ({"sigma_min": 0.01}, "noise range"),
        ({"sigma_min": 0.01, "sigma_max": 50}, "noise range"),
        ({"schedule": "vp", "scaling": "none"}, "combinations"),
        ({"rho": 3, "alpha": 0.5}, "combinations"),
        ({"nfe": [5]}, ""),
        ({"samples": 1024, "batch": 16, "sample_seeds": [7], "method": "a name"}, ""),
        ({"rho": 7, "solver": "heun"}, ""),
        ({"model": "weighted"}, "loss weighting"),
        ({"model": "noisy"}, "noise distribution"),
        ({"model": "renoised"}, "noise distribution"),
        ({"model": "seeded"}, ""),
        ({"model": "both"}, "combinations"),
        ({"model": "weighted", "rho": 3}, "combinations"),
        ({"base": "rho_3", "rho": 3, "schedule": "vp"}, "schedule"),
        ({"base": "rho_3"}, ""),
        ({"base": "on_weighted", "model": "both"}, "noise distribution"),
    ],
    ids=str,
)
def test_the_axis_of_a_curve_is_the_title_of_its_differences(tmp_path: Path, keys: dict[str, Any], axis: str) -> None:
    ablated = models(
        weighted={"weighting": "snr"},
        noisy={"noise": "flow_uniform"},
        renoised={"P_mean": 0, "P_std": 1},
        seeded={"train_seeds": [5]},
        both={"base": "weighted", "noise": "vp_uniform"},
    )
    rows = curves(rho_3={"model": "edm", "rho": 3}, on_weighted={"model": "weighted"}, x={"model": "edm"} | keys)
    report = filed(tmp_path, "curves", **ablated, **rows)
    assert report["axis"] == axis
    assert report["base"] == keys.get("base", "edm")


def test_differences_have_the_key_and_the_value_of_each_choice(tmp_path: Path) -> None:
    report = filed(tmp_path, "curves", **models(y={"weighting": "snr"}), **curve(model="y", schedule="vp", rho=3))
    assert report["differences"] == {"weighting": "snr", "schedule": "vp", "rho": 3}


def literals(annotation: Any) -> list[str]:
    return [v for part in get_args(annotation) for v in ([part] if isinstance(part, str) else literals(part))]


CONSISTENCY_KEYS = ("grid", "level_growth", "first_levels", "last_levels", "target_decay")
NEEDED: dict[str, dict[str, Any]] = {  # what a key goes with
    "guide_images": {"guide": "snapshot"},
    "guidance_min": {"guidance": 2.0},
    "guidance_max": {"guidance": 2.0},
    "learned_variance": {"parametrization": "ddpm", "noise": "ddpm_uniform"},
    "finest_steps": {"nfe": [3]},
    "first_steps": {"objective": "progressive"},
    "teacher_step": {"objective": "consistency_distillation"},
    "stages": {"objective": "easy_consistency"},
    **{key: {"objective": "consistency_training"} for key in CONSISTENCY_KEYS},
}
VALUES = {
    "guide_images": [128],
    "fitted_model": ["edm"],
    "fitted_nfe": [4],
    "upsampler": [{"from": 4}],
}  # the first of ABLE's snapshots
CASCADED = ("after", "strength", "truncated", "share")  # keys of a curve that need a stage before
ABLE = {  # a model that gives a curve whatever it asks for
    "train_seeds": [0, 1, 2, 3],
    "labels": "classes",
    "snapshots": 2,
    "images": 256,
    "classifier_images": 1,
    "ema_halflives_images": [1],
    "ema_sigma_rels": [0.05, 0.1],
}


def variation(schema: type[Model] | type[Curve], key: str) -> tuple[dict[str, Any], Any]:
    """A row in which `key` has its default, and another value that it may take there."""
    plain = {"model": "edm"} if schema is Curve else {}
    choices = literals(schema.model_fields[key].annotation)
    parts: dict[str, Any] = {"solver": SOLVERS} if schema is Curve else {"weighting": WEIGHTINGS, "network": NETWORKS}
    others = [{part: name} for part, names in parts.items() for name in names if key != part]
    for context in [NEEDED.get(key, {}), *others]:
        for value in (*VALUES.get(key, ()), *choices, 0.5, 1, 48, [1, 3], "text", 0.1, [0.1]):
            try:
                before, after = schema(**plain, **context), schema(**plain, **context, **{key: value})
            except ValidationError:
                continue
            if getattr(before, key) != getattr(after, key):
                return plain | context, value
    raise AssertionError(f"no other value of {key} is valid")


@pytest.mark.parametrize("key", [key for key in Model.model_fields if key not in (*FILLED_IN, "import_", "sha256")])
def test_every_key_of_a_model_can_be_set_and_has_its_axis(tmp_path: Path, key: str) -> None:
    row, value = variation(Model, key)
    student = Model(**row).needs_teacher
    first = {"teacher": {}, "edm": row | {"base": "teacher"}} if student else {"edm": row}
    of = {"edm": {"model": "teacher" if student else "edm"}}
    asked = {"autoencoders": {value: {}}} if key == "space" else {}
    rows = resolved(tmp_path, models=first | {"x": {"base": "edm", key: value}}, curves=of, **asked)
    if key == "objective":  # it comes with a teacher, and with what it was published with
        assert rows["models/x"]["teacher"] == rows["models/edm"] and rows["models/x"][key] == value
    else:
        assert (rows["models/x"]["autoencoder"] is not None) == (key == "space")
        changed = rows["models/x"] | {"like": None, "autoencoder": None}
        assert changed == rows["models/edm"] | {key: rows["models/x"][key]} and Model(**changed) != Model(**row)
    assert rows["report"]["models"]["x"]["axis"] == (Model.model_fields[key].title or "")


@pytest.mark.parametrize(
    "key",
    [key for key in Curve.model_fields if key not in ("model", "method", "samples", "sigmas", *CASCADED, *FILLED_IN)],
)
def test_every_key_of_a_curve_can_be_set_and_has_its_axis(tmp_path: Path, key: str) -> None:
    row, value = variation(Curve, key)
    rows = resolved(tmp_path, models={"edm": ABLE}, curves={"edm": row, "x": row | {"base": "edm", key: value}})
    assert rows["curves/x"][key] == value
    assert rows["report"]["curves"]["x"]["axis"] == (Curve.model_fields[key].title or "")


def test_a_list_of_noise_levels_is_a_discretization(tmp_path: Path) -> None:
    rows = resolved(tmp_path, **curve(discretization="explicit", sigmas=[50, 2, 0.1], nfe=[5]))
    assert rows["curves/x"]["sigmas"] == [50, 2, 0.1]
    assert (rows["curves/x"]["sigma_min"], rows["curves/x"]["sigma_max"]) == (0.1, 50)
    assert rows["report"]["curves"]["x"]["axis"] == "discretization"


def test_grids_are_fitted_for_the_models_and_ranges_of_curves(tmp_path: Path) -> None:
    fitted = {"discretization": "optimised"}
    rows = resolved(
        tmp_path,
        **models(other={}, third={}),
        curves={
            "a": {"model": "edm", **fitted},
            "b": {"model": "edm", "solver": "euler", **fitted},
            "c": {"model": "edm", "sigma_max": 50, **fitted},
            "d": {"model": "third", **fitted},
            "e": {"model": "other"},
        },
    )
    ranges = {name: asked["ranges"] for name, asked in rows["grids"].items()}
    assert ranges == {"edm": [[0.002, 80], [0.002, 50]], "other": [], "third": [[0.002, 80]]}


def test_a_method_is_not_inherited(tmp_path: Path) -> None:
    rows = resolved(
        tmp_path, curves={"a": {"model": "edm", "method": "A", "rho": 5}, "b": {"base": "a", "model": "edm"}}
    )
    assert rows["report"]["curves"]["b"]["row"]["method"] is None and rows["curves/b"]["rho"] == 5


def test_only_the_report_sees_a_method(tmp_path: Path) -> None:
    rows = resolved(tmp_path, **curve(method="EDM (Heun)"))
    assert rows["curves/x"] == rows["curves/edm"]
    assert rows["report"]["curves"]["x"]["row"]["method"] == "EDM (Heun)"


def test_crossed_repetitions_are_each_training_seed_with_each_sampling_seed(tmp_path: Path) -> None:
    rows = resolved(
        tmp_path,
        models={"edm": {"train_seeds": [4, 5]}},
        curves={"edm": {"model": "edm", "sample_seeds": [0, 1, 2], "repetitions": "crossed"}},
    )
    assert rows["curves/edm"]["seeds"] == [[4, 0], [4, 1], [4, 2], [5, 0], [5, 1], [5, 2]]


def test_a_curve_samples_from_the_trainings_that_it_names_or_from_all(tmp_path: Path) -> None:
    few = {"model": "edm", "train_seeds": [6, 4], "sample_seeds": [0, 1]}
    rows = resolved(
        tmp_path,
        models={"edm": {"train_seeds": [4, 5, 6]}},
        curves={"edm": {"model": "edm"}, "few": few, "crossed": few | {"repetitions": "crossed"}},
    )
    assert rows["curves/edm"]["train_seeds"] == [4, 5, 6]
    assert rows["curves/few"]["seeds"] == [[6, 0], [4, 1]]
    assert rows["curves/crossed"]["seeds"] == [[6, 0], [6, 1], [4, 0], [4, 1]]


def test_a_curve_cannot_name_a_training_that_its_model_lacks(tmp_path: Path) -> None:
    message = refusal(tmp_path, models={"edm": {"train_seeds": [4, 5]}}, **curve(train_seeds=[9, 5, 7]))
    assert message == "curves.x.train_seeds: model edm has no seed 7; use some of 4, 5"


def test_image_sets_and_curves_share_the_number_of_samples(tmp_path: Path) -> None:
    rows = resolved(tmp_path, defaults={"curves": {"samples": 64}}, sets={"other": {"source": "x.zip", "nfe": 35}})
    assert rows["samples"] == 64
    expected = {"source": "x.zip", "nfe": 35, "method": None}
    assert rows["sets/other"] == expected | {"content": ""} and rows["report"]["sets"]["other"] == expected


def test_a_reflow_row_contains_the_row_of_its_teacher(tmp_path: Path) -> None:
    rows = resolved(
        tmp_path,
        **models(
            again={"base": "once", "pairs": "reflow", "images": 2000},  # whose base stands below it
            flow=FLOW | {"images": 5000, "train_seeds": [0, 1, 2, 3]},
            once={**REFLOW, "reflow_pairs": 64, "train_seeds": [1, 3]},
        ),
    )
    flow, once, again = (rows[f"models/{name}"] for name in ("flow", "once", "again"))
    assert flow["teacher"] is rows["models/edm"]["teacher"] is None
    assert once["teacher"] == flow and again["teacher"] == once
    assert again["teacher"]["teacher"] == flow
    keys = ("pairs", "reflow_pairs", "images", "train_seeds")
    assert [once[key] for key in keys] == ["reflow", 64, 5000, [1, 3]]
    assert [again[key] for key in keys] == ["reflow", 64, 2000, [1, 3]]
    assert Model(**again).model_dump(mode="json") == again
    report = rows["report"]["models"]
    assert report["once"]["differences"] == {"pairs": "reflow", "reflow_pairs": 64}
    assert report["once"]["axis"] == "pairs"
    assert report["again"]["differences"] == {"pairs": "reflow", "images": 2000}


def test_a_row_inherits_the_teacher_of_a_reflow_base(tmp_path: Path) -> None:
    rows = resolved(
        tmp_path,
        **models(flow=FLOW, once=REFLOW, x={"base": "once", "weighting": "snr"}, y={"base": "x", "reflow_pairs": 64}),
    )
    for name, base, differences, axis in (
        ("x", "once", {"weighting": "snr"}, "loss weighting"),
        ("y", "x", {"reflow_pairs": 64}, "pairs"),
    ):
        assert rows[f"models/{name}"]["teacher"] == rows["models/flow"]
        report = rows["report"]["models"][name]
        assert (report["base"], report["differences"], report["axis"]) == (base, differences, axis)


def test_a_row_with_independent_pairs_has_no_teacher(tmp_path: Path) -> None:
    rows = resolved(tmp_path, **models(flow=FLOW, once=REFLOW, x={"base": "once", "pairs": "independent"}))
    assert rows["models/x"] == rows["models/flow"]
    assert rows["report"]["models"]["x"]["differences"] == {"pairs": "independent"}


def test_a_reflow_row_may_be_the_first(tmp_path: Path) -> None:
    rows = resolved(tmp_path, models={"x": REFLOW, "flow": FLOW}, curves={"x": {"model": "x"}})
    assert rows["models/x"]["teacher"] == rows["models/flow"]
    assert rows["propose"] == {"model": "x", "row": rows["models/x"]}


def test_a_teacher_has_the_network_of_its_row(tmp_path: Path) -> None:
    flow = {**FLOW, "network": "dit", "equal": "flops"}
    rows = resolved(tmp_path, **models(flow=flow, again={"base": "flow", "pairs": "reflow"}))
    assert rows["models/again"]["teacher"] == rows["models/flow"] and rows["models/flow"]["like"]


def test_defaults_of_other_networks_are_left_out(tmp_path: Path) -> None:
    rows = resolved(tmp_path, defaults={"models": {"multipliers": [1, 2], "patch": 1}}, **models(x={"network": "dit"}))
    assert (rows["models/edm"]["multipliers"], rows["models/edm"]["patch"]) == ([1, 2], 2)
    assert (rows["models/x"]["multipliers"], rows["models/x"]["patch"]) == ([1, 2, 4], 1)


def test_a_row_with_equal_contains_the_row_of_its_base(tmp_path: Path) -> None:
    rows = resolved(
        tmp_path,
        **models(
            wide={"channels": 32},
            m={"base": "wide", "network": "dit", "equal": "flops"},
            n={"base": "m", "blocks": 2},
        ),
    )
    assert rows["models/m"]["like"] == rows["models/wide"]
    assert rows["models/n"]["like"] == rows["models/m"]
    assert rows["report"]["models"]["m"]["axis"] == "network"
    message = refusal(tmp_path, **{"models": {"edm": {"equal": "flops"}}})
    assert message.startswith("models.edm.equal: ") and "the first row has no base" in message
