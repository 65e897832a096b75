"""The study file: rows written out in full, the axis each belongs to, and one clear line for every mistake."""

import json
import os
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import ValidationError

from pipeline.common.errors import StudyError
from pipeline.data.row import Data
from pipeline.diffusion.networks.registry import NETWORKS
from pipeline.diffusion.schedule import SCALING_OF_SCHEDULE, SCHEDULES
from pipeline.evaluation.curve import Curve, seed_pairs
from pipeline.metrics.extractors.row import Features
from pipeline.params.explain import FILLED_IN
from pipeline.params.resolve import resolve
from pipeline.params.study import read_study
from pipeline.sampling.row import Sampler, keys_of
from pipeline.sampling.solvers import SOLVERS
from pipeline.training.row import Model
from pipeline.training.weighting import WEIGHTINGS
from tests.imports import ROOT

STUDIES = [ROOT / "params.yaml", *sorted(ROOT.glob("studies/*/params.yaml"))]
MINIMAL = {"study": {"name": "t"}, "models": {"edm": {}}, "curves": {"edm": {"model": "edm"}}, "sets": {}}


def resolved(tmp_path: Path, **sections: Any) -> dict[str, Any]:
    """The files that `resolve` writes for the minimal study with some sections replaced, as read from JSON."""
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | sections, sort_keys=False))
    return json.loads(json.dumps(resolve(read_study(path)).files(), allow_nan=False))


def models(**rows: Any) -> dict[str, Any]:
    return {"models": {"edm": {}, **rows}}


def curves(**rows: Any) -> dict[str, Any]:
    return {"curves": {"edm": {"model": "edm"}, **rows}}


def curve(**keys: Any) -> dict[str, Any]:
    return curves(x={"model": "edm", **keys})


def filed(tmp_path: Path, section: str, **sections: Any) -> dict[str, Any]:
    return resolved(tmp_path, **sections)["report"][section]["x"]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.name)
def test_the_studies_here_resolve_and_every_row_is_filed(path: Path) -> None:
    written = yaml.safe_load(path.read_text())
    rows = resolve(read_study(path))
    for section, entries in (("models", rows.models), ("curves", rows.curves)):
        assert list(entries) == list(written[section])
        assert [f"{section}/{name}" for name in entries] == [n for n in rows.files() if n.startswith(f"{section}/")]
        assert all(bool(entry.axis) == bool(entry.differences) for entry in entries.values())
    for name, entry in rows.curves.items():
        assert entry.row.model in written["models"], name


def test_resolved_rows_build_what_the_stages_need(tmp_path: Path) -> None:
    rows = resolved(tmp_path, data={"limit": 300}, features={"epochs": 1})
    assert Data(**rows["data"]) == Data(limit=300)
    assert Features(**rows["features"]) == Features(epochs=1)
    assert Model(**rows["models/edm"]) == Model()
    sampler = Sampler(**{key: rows["curves/edm"][key] for key in Sampler.model_fields})
    assert sampler == Sampler().filled() == sampler.filled()
    assert rows["curves/edm"]["seeds"] == [[0, 0], [1, 1], [2, 2]]


def test_a_row_adds_its_word_to_its_bases_and_they_to_the_defaults(tmp_path: Path) -> None:
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


def test_an_empty_row_and_an_empty_base_mean_the_first_row(tmp_path: Path) -> None:
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
def test_a_curve_is_filed_under_the_axis_of_its_differences(tmp_path: Path, keys: dict[str, Any], axis: str) -> None:
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


def test_differences_name_what_was_written_and_its_value(tmp_path: Path) -> None:
    report = filed(tmp_path, "curves", **models(y={"weighting": "snr"}), **curve(model="y", schedule="vp", rho=3))
    assert report["differences"] == {"weighting": "snr", "schedule": "vp", "rho": 3}


def literals(annotation: Any) -> list[str]:
    return [v for part in get_args(annotation) for v in ([part] if isinstance(part, str) else literals(part))]


NEEDED: dict[str, dict[str, Any]] = {  # what a key goes with
    "guide_images": {"guide": "snapshot"},
    "guidance_min": {"guidance": 2.0},
    "guidance_max": {"guidance": 2.0},
}
VALUES = {"guide_images": [128]}  # the first of ABLE's snapshots
ABLE = {  # a model that gives a curve whatever it asks for
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


@pytest.mark.parametrize("key", [key for key in Model.model_fields if key not in FILLED_IN])
def test_every_key_of_a_model_can_be_set_and_has_its_axis(tmp_path: Path, key: str) -> None:
    row, value = variation(Model, key)
    rows = resolved(tmp_path, models={"edm": row, "x": {"base": "edm", key: value}})
    assert rows["models/x"] | {"like": None} == rows["models/edm"] | {key: value}
    assert rows["report"]["models"]["x"]["axis"] == (Model.model_fields[key].title or "")


@pytest.mark.parametrize(
    "key", [key for key in Curve.model_fields if key not in ("model", "method", "samples", "sigmas", *FILLED_IN)]
)
def test_every_key_of_a_curve_can_be_set_and_has_its_axis(tmp_path: Path, key: str) -> None:
    row, value = variation(Curve, key)
    rows = resolved(tmp_path, models={"edm": ABLE}, curves={"edm": row, "x": row | {"base": "edm", key: value}})
    assert rows["curves/x"][key] == value
    assert rows["report"]["curves"]["x"]["axis"] == (Curve.model_fields[key].title or "")


def test_a_list_of_noise_levels_is_a_discretization_of_its_own(tmp_path: Path) -> None:
    rows = resolved(tmp_path, **curve(discretization="explicit", sigmas=[50, 2, 0.1], nfe=[5]))
    assert rows["curves/x"]["sigmas"] == [50, 2, 0.1]
    assert (rows["curves/x"]["sigma_min"], rows["curves/x"]["sigma_max"]) == (0.1, 50)
    assert rows["report"]["curves"]["x"]["axis"] == "discretization"


def test_grids_are_to_be_fitted_for_the_models_and_ranges_that_curves_ask_for(tmp_path: Path) -> None:
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
    assert rows["grids"] == {"edm": [[0.002, 80], [0.002, 50]], "other": [], "third": [[0.002, 80]]}


def test_a_method_is_not_inherited(tmp_path: Path) -> None:
    rows = resolved(
        tmp_path, curves={"a": {"model": "edm", "method": "A", "rho": 5}, "b": {"base": "a", "model": "edm"}}
    )
    assert rows["report"]["curves"]["b"]["row"]["method"] is None and rows["curves/b"]["rho"] == 5


def test_a_method_is_a_name_for_the_report_alone(tmp_path: Path) -> None:
    rows = resolved(tmp_path, **curve(method="EDM (Heun)"))
    assert rows["curves/x"] == rows["curves/edm"]
    assert rows["report"]["curves"]["x"]["row"]["method"] == "EDM (Heun)"


@pytest.mark.parametrize(
    ("train", "sample", "pairs"),
    [
        ((0,), (3,), [(0, 3)]),
        ((0, 1), (5, 6), [(0, 5), (1, 6)]),
        ((4,), (0, 1, 2), [(4, 0), (4, 1), (4, 2)]),
        ((0, 1, 2), (9,), [(0, 9), (1, 9), (2, 9)]),
        ((0, 1), (0, 1, 2), [(0, 0), (1, 1), (0, 2)]),
    ],
)
def test_seeds_are_paired_side_by_side(train: tuple, sample: tuple, pairs: list) -> None:
    assert seed_pairs(train, sample) == pairs


def test_crossed_repetitions_are_each_training_seed_with_each_sampling_seed(tmp_path: Path) -> None:
    rows = resolved(
        tmp_path,
        models={"edm": {"train_seeds": [4, 5]}},
        curves={"edm": {"model": "edm", "sample_seeds": [0, 1, 2], "repetitions": "crossed"}},
    )
    assert rows["curves/edm"]["seeds"] == [[4, 0], [4, 1], [4, 2], [5, 0], [5, 1], [5, 2]]


def test_an_image_set_is_measured_with_as_many_samples_as_the_curves(tmp_path: Path) -> None:
    rows = resolved(tmp_path, defaults={"curves": {"samples": 64}}, sets={"other": {"source": "x.zip", "nfe": 35}})
    assert rows["samples"] == 64
    expected = {"source": "x.zip", "nfe": 35, "method": None}
    assert rows["sets/other"] == expected | {"content": ""} and rows["report"]["sets"]["other"] == expected


NAME = "a name has 1 to 60 letters, digits and underscores"
NAMES = ["a.b", "a@b", "a-b", "$(touch x)", "`x`", "a'b", 'a"b', "../x", "/x", "a b", "a\nb", "a\n", "é", "", "a" * 61]

BAD: dict[str, tuple[dict[str, Any], str, str]] = {  # sections, the place, the cause
    "unknown section": ({"modles": {}}, "modles", "unknown key; did you mean 'models'?"),
    "unknown study key": ({"study": {"name": "t", "rot": "."}}, "study.rot", "unknown key; did you mean 'root'?"),
    "unknown data key": ({"data": {"sauce": "digits"}}, "data.sauce", "unknown key; did you mean 'source'?"),
    "unknown features key": ({"features": {"epoch": 1}}, "features.epoch", "unknown key; did you mean 'epochs'?"),
    "unknown model key": (models(x={"weigthing": "snr"}), "models.x.weigthing", "did you mean 'weighting'?"),
    "unknown curve key": (curve(roh=3), "curves.x.roh", "unknown key; did you mean 'rho'?"),
    "key with newline": (curve(**{"r\no": 3}), "curves.x.r", "unknown key"),
    "section with newline": ({"a\nb": 3}, "a", "unknown key"),
    "key not a string": (models(x={3: 4}), "models.x.3", "a key must be text"),
    "unknown value": (curve(solver="huen"), "curves.x.solver", "unknown value 'huen'; did you mean 'heun'?"),
    "unknown grid": (curve(discretization="edn"), "curves.x.discretization", "did you mean 'edm'?"),
    "unknown weighting": (models(x={"weighting": "minsnr"}), "models.x.weighting", "did you mean 'min_snr'?"),
    "value of a wrong type": (curve(solver=["heun"]), "curves.x.solver", "unknown value ['heun']"),
    "text for a number": (curve(rho="three"), "curves.x.rho", "number"),
    "fraction of an image": (models(x={"images": 1.5}), "models.x.images", "a whole number greater than 0, not 1.5"),
    "number for a list": (curve(nfe=4), "curves.x.nfe", "not 4"),
    "nested list": (curve(nfe=[[4]]), "curves.x.nfe.0", "a whole number"),
    "list for a row": (curves(x=["edm"]), "curves.x", "mapping"),
    "text for a section": ({"models": "edm"}, "models", "mapping"),
    "null models": ({"models": None}, "models", "mapping"),
    "null curves": ({"curves": None}, "curves", "mapping"),
    "null data": ({"data": None}, "data", "not null"),
    "null study": ({"study": None}, "study", "not null"),
    "empty models": ({"models": {}}, "models", "at least 1"),
    "empty curves": ({"curves": {}}, "curves", "at least 1"),
    "study without name": ({"study": {}}, "study.name", "missing"),
    "curve without model": (curves(x={"rho": 3}), "curves.x.model", "missing"),
    "curve that inherits its model": (curves(x={"base": "edm", "rho": 3}), "curves.x.model", "missing"),
    "curves with a default model": (
        {"defaults": {"curves": {"model": "edm"}}} | curves(x={"rho": 3}), "curves.x.model", "missing"
    ),
    "missing model": (curve(model="edn"), "curves.x.model", "no model 'edn'; did you mean 'edm'?"),
    "model is no name": (curve(model=3), "curves.x.model", "takes text"),
    "missing base": (models(x={"base": "emd"}), "models.x.base", "no row 'emd'; did you mean 'edm'?"),
    "missing curve base": (curve(base="em"), "curves.x.base", "no row 'em'; did you mean 'edm'?"),
    "base is a number": (models(x={"base": 3}), "models.x.base", "no row 3"),
    "base is a list": (models(x={"base": ["edm"]}), "models.x.base", "no row ['edm']"),
    "own base": (models(x={"base": "x"}), "models.x.base", "the bases x -> x form a circle"),
    "circle": (models(x={"base": "y"}, y={"base": "x"}), "models.y.base", "the bases x -> y -> x form a circle"),
    "sigma range crossed": (curve(sigma_min=80), "curves.x", "sigma_min (80.0) must be below sigma_max (80.0)"),
    "sigma_max too low": (curve(sigma_max=0.001), "curves.x", "sigma_min (0.002) must be below sigma_max (0.001)"),
    "sigma_min 0": (curve(sigma_min=0), "curves.x.sigma_min", "greater than 0"),
    "rho 0": (curve(rho=0), "curves.x.rho", "greater than 0"),
    "rho negative": (curve(rho=-7), "curves.x.rho", "greater than 0"),
    "rho inf": (curve(rho=float("inf")), "curves.x.rho", "finite"),
    "rho nan": (curve(rho=float("nan")), "curves.x.rho", ""),
    "rho too small": (curve(rho=0.001), "curves.x", "rho"),
    "rho too large": (curve(rho=1e300), "curves.x", "rho"),
    "sigma_max too large": (curve(sigma_max=1e200, schedule="vp"), "curves.x", "sigma_max"),
    "eta with euler": (curve(solver="euler", eta=1), "curves.x", "eta: solver euler does not use it; eta is for ddim"),
    "eta above 1": (curve(solver="ddim", eta=1.5), "curves.x.eta", "less than or equal to 1"),
    "alpha with euler": (curve(solver="euler", alpha=0.5), "curves.x", "alpha: solver euler does not use it"),
    "alpha 0": (curve(alpha=0), "curves.x.alpha", "greater than 0"),
    "budget 0": (curve(nfe=[4, 0]), "curves.x.nfe.1", "greater than or equal to 1"),
    "budget twice": (curve(nfe=[4, 4]), "curves.x", "nfe: a budget is listed twice"),
    "huge budget": (curve(nfe=[10**9]), "curves.x.nfe.0", "less than or equal to"),
    "no budget": (curve(nfe=[]), "curves.x.nfe", "at least 1"),
    "iddpm levels": (curve(discretization="iddpm", nfe=[4000]), "curves.x", "2000 steps, but only"),
    "negative seed": (models(x={"train_seeds": [-1]}), "models.x.train_seeds.0", "greater than or equal to 0"),
    "huge seed": (curve(sample_seeds=[2**31]), "curves.x.sample_seeds.0", "less than"),
    "seed twice": (curve(sample_seeds=[0, 1, 0]), "curves.x.sample_seeds", "[0, 1, 0] has a seed twice"),
    "no seed": (models(x={"train_seeds": []}), "models.x.train_seeds", "at least 1"),
    "few samples": (curve(samples=39), "curves.x.samples", "greater than or equal to 40"),
    "channels": (models(x={"channels": 12}), "models.x.channels", "multiple of 8"),
    "images 0": (models(x={"images": 0}), "models.x.images", "greater than 0"),
    "method of two lines": (curve(method="a\nb"), "curves.x.method", "takes text in one line"),
    "unknown defaults section": ({"defaults": {"model": {}}}, "defaults.model", "did you mean 'models'?"),
    "unknown default": ({"defaults": {"curves": {"sample": 9}}}, "defaults.curves.sample", "did you mean 'samples'?"),
    "base as default": ({"defaults": {"models": {"base": "edm"}}}, "defaults.models.base", "unknown key"),
    "null defaults": ({"defaults": {"models": None}}, "defaults.models", "mapping"),
    "features epochs": ({"features": {"epochs": 0}}, "features.epochs", "greater than 0"),
    "unknown extractor": ({"features": {"extractor": "inceptoin"}}, "features.extractor", "did you mean 'inception'?"),
    "classifier with weights": ({"features": {"weights": "x.pth"}}, "features", "takes no file"),
    "samples that differ": (curve(samples=64), "curves.x.samples", "64, but curves.edm has 1024"),
    "unknown repetitions": (curve(repetitions="cross"), "curves.x.repetitions", "did you mean 'crossed'?"),
    "unknown set key": ({"sets": {"a": {"source": "x", "sauce": "x"}}}, "sets.a.sauce", "did you mean 'source'?"),
    "set without source": ({"sets": {"a": {"nfe": 3}}}, "sets.a.source", "missing"),
    "set at no cost": ({"sets": {"a": {"source": "x", "nfe": 0}}}, "sets.a.nfe", "greater than 0"),
    "set named as a curve": ({"sets": {"edm": {"source": "x"}}}, "sets.edm", "a curve already has this name"),
    "set labelled as a curve": (
        curve(method="EDM") | {"sets": {"a": {"source": "x", "method": "EDM"}}}, "sets.a.method", "already called 'EDM'"
    ),
    "sets labelled alike": (
        {"sets": {name: {"source": "x", "method": "y"} for name in "ab"}}, "sets.a.method", "already called 'y'"
    ),
    "curves labelled alike": (
        curves(x={"model": "edm", "method": "M"}, y={"model": "edm", "method": "M"}), "curves.x.method", "another curve"
    ),
    "null sets": ({"sets": None}, "sets", "mapping"),
    "data limit": ({"data": {"limit": 1}}, "data.limit", "greater than or equal to 2"),
}  # fmt: skip
BAD |= {f"model named {name!r}": ({"models": {name: {}}}, "models." + name.split("\n")[0], NAME) for name in NAMES}
BAD |= {f"curve named {name!r}": (curves(**{name: {"model": "edm"}}), "curves.", NAME) for name in NAMES}
BAD |= {f"set named {name!r}": ({"sets": {name: {"source": "x"}}}, "sets.", NAME) for name in NAMES}
BAD |= {f"study named {name!r}": ({"study": {"name": name}}, "study.name", "") for name in NAMES}


def error(tmp_path: Path, text: str | bytes | None) -> str:
    """The one line that a study file of this text is refused with."""
    path = tmp_path / "params.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StudyError) as caught:
        resolve(read_study(path))
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message.replace(f"{tmp_path}/", "")


def test_a_typo_of_a_data_set_is_told_before_its_extractor_is_blamed(tmp_path: Path) -> None:
    sections = {"data": {"source": "two_moon"}, "features": {"extractor": "coordinates"}}
    message = error(tmp_path, yaml.safe_dump(MINIMAL | sections, sort_keys=False))
    assert message.startswith("data.source: 'two_moon' is no folder") and "did you mean 'two_moons'?" in message


def test_a_folder_with_nearly_a_data_sets_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digit").mkdir()
    assert resolved(tmp_path, data={"source": "digit"})["data"]["source"] == "digit"


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_that_says_where_and_what(tmp_path: Path, case: str) -> None:
    sections, place, cause = BAD[case]
    message = error(tmp_path, yaml.safe_dump(MINIMAL | sections, sort_keys=False, allow_unicode=True))
    assert message.startswith(place) and cause in message


REST = "\nstudy: {name: t}\ncurves: {edm: {model: edm}}\nsets: {}\n"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (None, "no such study file"),
        ("", "a study file must be a mapping"),
        ("[1, 2]", "a study file must be a mapping"),
        ("models", "a study file must be a mapping"),
        ("models: {edm: {}", "not valid YAML"),
        ("models:\n\tedm: {}", "not valid YAML"),
        ("models: {edm: {rho: *nowhere}}", "not valid YAML"),
        (b"models: \xff", "not valid YAML"),
        ("models: \0", "not valid YAML"),
        ("models: {[a]: {}}" + REST, "not valid YAML"),
        ("models: {edm: {images: 2001-13-45}}" + REST, "not valid YAML"),
        ("models: " + "[" * 5000, "not valid YAML"),
        ("models: {edm: {}, edm: {}}" + REST, "the key 'edm' appears twice"),
        ("models: {edm: {images: 5, batch: 1, images: 6}}" + REST, "the key 'images' appears twice"),
        ("models: {edm: {}}\nmodels: {flow: {}}" + REST, "the key 'models' appears twice"),
        ("models: {edm: !!python/object/apply:os.system ['touch pwned']}" + REST, "not valid YAML"),
        ("models: {edm: !!python/name:os.system }" + REST, "not valid YAML"),
        ("models: !!python/object/new:pathlib.Path [x]" + REST, "not valid YAML"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_file_that_cannot_be_read_is_one_line_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes | None, cause: str
) -> None:
    monkeypatch.chdir(tmp_path)
    message = error(tmp_path, text)
    assert message.startswith("params.yaml: ") and cause in message
    assert set(os.listdir(tmp_path)) <= {"params.yaml"}


def test_yaml_merge_keys_are_no_repetition(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(
        "models: {edm: &edm {images: 500, batch: 5}, x: {<<: *edm, images: 600}}" + REST
    )
    row = resolve(read_study(tmp_path / "params.yaml")).models["x"].row
    assert (row.images, row.batch) == (600, 5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_sampler_takes_as_many_steps_as_its_budget_pays(solver: str) -> None:
    sampler = Sampler(solver=solver)
    cost = sampler.build_solver().evaluations
    for budget in (1, 2, 3, 4, 7, 36):
        if sampler.build_solver().adaptive:
            assert sampler.steps(budget) == 2  # its own, and the last
            continue
        assert cost(sampler.steps(budget)) <= budget < cost(sampler.steps(budget) + 1)
    assert ("eta" in keys_of(solver)) == _accepts(solver=solver, eta=0.5)


def _accepts(**keys: Any) -> bool:
    try:
        return bool(Sampler(**keys))
    except ValidationError:
        return False


FLOW = {"parametrization": "flow", "noise": "flow_uniform"}
REFLOW = {"base": "flow", "pairs": "reflow"}

BAD_TRAINING: dict[str, tuple[dict[str, dict[str, Any]], str, str]] = {  # model rows, the place, the cause
    "shift 0": ({"x": {"shift": 0}}, "models.x.shift: ", "greater than 0"),
    "negative shift": ({"x": {"noise": "flow_uniform", "shift": -2}}, "models.x.shift: ", "greater than 0"),
    "k with unit": ({"x": {"k": 1}}, "models.x: ", "k: weighting unit does not use it; k is for p2"),
    "k with min_snr": ({"x": {"weighting": "min_snr", "k": 1}}, "models.x: ", "k: weighting min_snr does not use it"),
    "gamma with snr": (
        {"x": {"weighting": "snr", "gamma": 2}}, "models.x: ", "does not use it; gamma is for min_snr, p2"
    ),
    "inherited gamma": (
        {"m": {"weighting": "min_snr", "gamma": 2}, "x": {"base": "m", "weighting": "snr"}},
        "models.x: ",
        "gamma: weighting snr does not use it",
    ),
    "bias with p2": ({"x": {"weighting": "p2", "bias": 0}}, "models.x: ", "p2 does not use it; bias is for sigmoid"),
    "gamma 0": ({"x": {"weighting": "p2", "gamma": 0}}, "models.x.gamma: ", "greater than 0"),
    "score weights on x0": (
        {"x": {"weighting": "uniform_score", "parametrization": "vp_x0"}},
        "models.x: ",
        "uniform_score does not work with parametrization vp_x0 and noise lognormal",
    ),
    "flow noise with vp": (
        {"x": {"noise": "flow_uniform", "parametrization": "vp"}}, "models.x: ", "parametrization vp ends at 152"
    ),
    "flow noise with ddpm": (
        {"x": {"noise": "flow_uniform", "parametrization": "ddpm"}}, "models.x: ", "ddpm ends at 157"
    ),
    "stratified alone": (
        {"x": {"draws": "stratified", "batch": 1}}, "models.x: ", "draws: stratified needs a batch of at least 2"
    ),
    "matched alone": (
        {"x": {"pairs": "optimal_transport", "batch": 1}}, "models.x: ", "optimal_transport needs a batch of at least"
    ),
    "bias far off": ({"x": {"weighting": "sigmoid", "bias": -1e4}}, "models.x.bias: ", "equal to -50"),
    "noise without end": ({"x": {"P_mean": 1e5}}, "models.x: ", "positive and finite; lognormal gives inf to inf"),
    "unknown draws": ({"x": {"draws": "stratifed"}}, "models.x.draws: ", "did you mean 'stratified'?"),
    "unknown pairs": ({"x": {"pairs": "reflo"}}, "models.x.pairs: ", "did you mean 'reflow'?"),
    "reflow without base": ({"flow": FLOW, "x": {**FLOW, "pairs": "reflow"}}, "models.x.pairs: ", "as base"),
    "reflow on a base that is no flow": (
        {"x": {"base": "edm", **FLOW, "pairs": "reflow"}}, "models.x.pairs: ", "the base edm has parametrization edm"
    ),
    "reflow that is no flow": (
        {"flow": FLOW, "x": {**REFLOW, "parametrization": "edm"}}, "models.x: ", "reflow needs a flow (flow"
    ),
    "reflow with a seed of its own": (
        {"flow": FLOW, "x": {**REFLOW, "train_seeds": [0, 7, 5]}}, "models.x.train_seeds: ", "base flow has no seed 5"
    ),
    "reflow of a reflow with a seed of its own": (
        {"flow": FLOW, "y": {**REFLOW, "train_seeds": [0]}, "x": {"base": "y", "pairs": "reflow", "train_seeds": [1]}},
        "models.x.train_seeds: ",
        "base y has no seed 1",
    ),
    "augmented reflow": ({"flow": FLOW, "x": {**REFLOW, "augment": 0.1}}, "models.x: ", "augment: pairs reflow must"),
    "reflow of an augmented flow": ({"flow": {**FLOW, "augment": 0.1}, "x": REFLOW}, "models.x: ", "use 0"),
    "no pairs": ({"flow": FLOW, "x": {**REFLOW, "reflow_pairs": 0}}, "models.x.reflow_pairs: ", "greater than 0"),
    "teacher": ({"flow": FLOW, "x": {**REFLOW, "teacher": FLOW}}, "models.x.teacher: ", "`resolve` fills"),
    "teacher without reflow": ({"x": {"teacher": {}}}, "models.x.teacher: ", "`resolve` fills"),
    "teacher of a base": ({"m": {"teacher": {}}, "x": {"base": "m"}}, "models.m.teacher: ", "`resolve` fills"),
    "teacher by name": ({"flow": FLOW, "x": {**REFLOW, "teacher": "flow"}}, "models.x.teacher: ", "`resolve` fills"),
    "mode_scale too low": ({"x": {"mode_scale": -1.01}}, "models.x.mode_scale: ", "greater than or equal to -1"),
    "mode_scale too high": ({"x": {"noise": "mode", "mode_scale": 1.8}}, "models.x.mode_scale: ", "equal to 1.75"),
    "augment always": ({"x": {"augment": 1}}, "models.x.augment: ", "less than 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_a_mistake_about_training_is_one_line_that_says_where_and_what(tmp_path: Path, case: str) -> None:
    rows, place, cause = BAD_TRAINING[case]
    message = error(tmp_path, yaml.safe_dump(MINIMAL | models(**rows), sort_keys=False))
    assert message.startswith(place) and cause in message


def test_a_default_teacher_is_one_line_too(tmp_path: Path) -> None:
    message = error(tmp_path, yaml.safe_dump(MINIMAL | {"defaults": {"models": {"teacher": {}}}}, sort_keys=False))
    assert message.startswith("defaults.models.teacher: unknown key")


@pytest.mark.parametrize(
    "row",
    [
        {"noise": "ve_loguniform", "parametrization": "vp"},
        {"noise": "flow_uniform", "parametrization": "iddpm"},
        {"weighting": "uniform_score", "P_std": 0.6},
        {"noise": "mode", "mode_scale": 1.75},
        {"noise": "mode", "mode_scale": -1},
        {"draws": "stratified", "batch": 2},
        {"teacher": None},
    ],
    ids=str,
)
def test_what_is_at_the_edge_is_no_mistake(tmp_path: Path, row: dict[str, Any]) -> None:
    written = resolved(tmp_path, **models(x=row))["models/x"]
    assert {key: written[key] for key in row} == row


def test_a_reflow_row_carries_the_row_of_its_teacher(tmp_path: Path) -> None:
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


def test_an_heir_of_a_reflow_row_has_its_teacher_and_differs_in_its_own_word_alone(tmp_path: Path) -> None:
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


def test_a_row_that_is_independent_again_has_no_teacher(tmp_path: Path) -> None:
    rows = resolved(tmp_path, **models(flow=FLOW, once=REFLOW, x={"base": "once", "pairs": "independent"}))
    assert rows["models/x"] == rows["models/flow"]
    assert rows["report"]["models"]["x"]["differences"] == {"pairs": "independent"}


def test_a_reflow_row_may_be_the_first(tmp_path: Path) -> None:
    rows = resolved(tmp_path, models={"x": REFLOW, "flow": FLOW}, curves={"x": {"model": "x"}})
    assert rows["models/x"]["teacher"] == rows["models/flow"]
    assert rows["propose"] == {"model": "x", "row": rows["models/x"]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"ema_sigma_rels": 0.1},
            "ema_sigma_rels: takes a list of numbers greater than 0 and less than 0.2887, not 0.1; write [0.1]",
        ),
        ({"clip_norm": "none"}, "clip_norm: takes a number greater than 0 or null, not 'none'; write null"),
        ({"compile": True}, "compile: takes none, default, not true (or yes, on)"),
        ({"images": "1e6"}, "images: takes a whole number greater than 0, not '1e6'; write 1000000"),
        ({"snapshots": -1}, "snapshots: takes a whole number greater than or equal to 0, not -1"),
        ({"train_seeds": 3}, "train_seeds: takes a list of at least 1 whole numbers"),
        ({"base": "edm", "equal": "flops", "channels": 64}, "channels: equal: flops chooses the channels"),
    ],
    ids=str,
)
def test_a_value_of_a_wrong_kind_is_told_what_would_be_right(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    found = error(tmp_path, yaml.safe_dump(MINIMAL | models(x=row), sort_keys=False))
    assert found.startswith(f"models.x.{message}")


@pytest.mark.parametrize("row", [{"labels": "classes"}, {"classifier_images": 1}], ids=str)
def test_classes_that_the_data_are_without_are_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    study = MINIMAL | {"data": {"labels": False}} | models(x=row)
    message = error(tmp_path, yaml.safe_dump(study, sort_keys=False))
    assert message.startswith(f"models.x.{next(iter(row))}: needs classes, but data.labels is false")


CLASSES = {"labels": "classes"}
BAD_CHOICES: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {  # model, curve, the place, the cause
    "guidance on an unconditional model": ({}, {"guidance": 2}, "curves.x.guidance", "model m is unconditional"),
    "guidance without dropped labels": (
        CLASSES | {"label_dropout": 0}, {"guidance": 2}, "curves.x.guidance", "label_dropout above"
    ),
    "guidance to nothing": (CLASSES, {"guidance": 2, "labels": "none"}, "curves.x.labels", "no class to guide to"),
    "no classifier": ({}, {"guide": "classifier"}, "curves.x.guide", "set classifier_images in its row"),
    "a snapshot that is not there": (
        {"images": 12_800, "snapshots": 4}, {"guide": "snapshot", "guidance": 2, "guide_images": 40_000},
        "curves.x.guide_images", "use 3200, 6400, 9600",
    ),
    "the last snapshot": (
        {"images": 12_800, "snapshots": 4}, {"guide": "snapshot", "guidance": 2, "guide_images": 12_800},
        "curves.x.guide_images", "no snapshot near 12800 images",
    ),
    "no label, never learned": (
        CLASSES | {"label_dropout": 0}, {"labels": "none"}, "curves.x.labels", "label_dropout above"
    ),
    "a grid of no label, never learned": (
        CLASSES | {"label_dropout": 0}, {"discretization": "optimised"},
        "curves.x.discretization", "label_dropout above 0",
    ),
    "a classifier's base, never learned": (
        CLASSES | {"label_dropout": 0, "classifier_images": 1}, {"guide": "classifier"},
        "curves.x.guide", "label_dropout above 0",
    ),
    "noise tied to classes": (CLASSES | {"pairs": "optimal_transport"}, {}, "models.m.pairs", "depend on the class"),
    "an mlp on images": ({"network": "mlp"}, {}, "models.m.network", "mlp is for points, and the data are images"),
    "no earlier snapshot": (
        {"snapshots": 1}, {"guide": "snapshot", "guidance": 2}, "curves.x.guide", "to 2 or more"
    ),
    "snapshot without its guide": ({"snapshots": 4}, {"guide_images": 100}, "curves.x.guide_images", "guide: snapshot"),
    "no labels to leave out": ({}, {"labels": "none"}, "curves.x.labels", "model m is unconditional anyway"),
    "two averages": (
        {"ema_sigma_rels": [0.1]}, {"ema_sigma_rel": 0.1, "ema_halflife_images": 10_000}, "curves.x.ema_sigma_rel",
        "a curve has one average",
    ),
    "an average that is not tracked": (
        {"ema_sigma_rels": [0.1]}, {"ema_sigma_rel": 0.2}, "curves.x.ema_sigma_rel", "add it to its ema_sigma_rels"
    ),
    "the model's own average": ({}, {"ema_halflife_images": 10_000}, "curves.x.ema_halflife_images", "leave it out"),
    "the model's own average by another name": (
        {"images": 20_000}, {"ema_halflife_images": 1001}, "curves.x.ema_halflife_images", "over 20000 images"
    ),
    "an average that snapshots are too few for": (
        {"ema_sigma_rels": [0.05, 0.1], "snapshots": 2}, {"ema_sigma_rel": 0.01},
        "curves.x.ema_sigma_rel", "with an error of ",
    ),
    "a half-life that is not tracked": (
        {}, {"ema_halflife_images": 3}, "curves.x.ema_halflife_images", "add it to its ema_halflives_images"
    ),
    "sigma_rel out of range": ({}, {"ema_sigma_rel": 0.3}, "curves.x.ema_sigma_rel", "less than 0.28"),
    "labels in reflow": ({"base": "f", "pairs": "reflow", **CLASSES}, {}, "models.m", "labels: the images of pairs"),
    "flips in reflow": ({"base": "f", "pairs": "reflow", "flip": 0.5}, {}, "models.m", "flip: pairs reflow must not"),
    "more snapshots than steps": ({"images": 256, "snapshots": 3}, {}, "models.m", "the training has 2 steps"),
    "a key of another network": ({"patch": 4}, {}, "models.m", "patch: network unet does not use it"),
    "a row to be like": ({"like": {}}, {}, "models.m.like", "`resolve` fills"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CHOICES)
def test_a_choice_that_a_model_cannot_have_is_one_line(tmp_path: Path, case: str) -> None:
    model, row, place, cause = BAD_CHOICES[case]
    rows = {"edm": {}, "f": FLOW, "m": model}
    study = MINIMAL | {"models": rows} | curves(x={"model": "m", **row})
    message = error(tmp_path, yaml.safe_dump(study, sort_keys=False))
    assert message.startswith(f"{place}: ") and cause in message


@pytest.mark.parametrize(
    ("model", "row"),
    [
        (CLASSES, {"guidance": 2}),
        (CLASSES | {"label_dropout": 0}, {"guidance": 1}),
        ({"classifier_images": 100}, {"guide": "classifier", "guidance": 3}),
        ({"snapshots": 2}, {"guide": "snapshot", "guidance": 2, "guide_images": 70_000}),
        ({"ema_sigma_rels": [0.1]}, {"ema_sigma_rel": 0.1}),
        ({"ema_sigma_rels": [0.05, 0.1], "snapshots": 8}, {"ema_sigma_rel": 0.15}),
        ({"ema_sigma_rels": [0.05, 0.1], "snapshots": 8}, {"ema_halflife_images": 6000}),
        ({"ema_halflives_images": [3]}, {"ema_halflife_images": 3}),
    ],
    ids=str,
)
def test_what_a_model_can_give_is_no_mistake(tmp_path: Path, model: dict[str, Any], row: dict[str, Any]) -> None:
    study = {"models": {"edm": {}, "m": model}} | curves(x={"model": "m", **row})
    written = resolved(tmp_path, **study)["curves/x"]
    assert {key: written[key] for key in row} == row


@pytest.mark.parametrize(
    ("row", "cause"),
    [({}, "network: unet is for images"), ({"network": "mlp", "flip": 0.5}, "flip: only images can be mirrored")],
)
def test_points_are_refused_what_images_have(tmp_path: Path, row: dict[str, Any], cause: str) -> None:
    study = MINIMAL | {"data": {"source": "spiral"}, "features": {"extractor": "coordinates"}, "models": {"edm": row}}
    message = error(tmp_path, yaml.safe_dump(study, sort_keys=False))
    assert message.startswith(f"models.edm.{cause}") and "spiral are points" in message


def test_a_teacher_has_the_network_that_its_own_row_has(tmp_path: Path) -> None:
    flow = {**FLOW, "network": "dit", "equal": "flops"}
    rows = resolved(tmp_path, **models(flow=flow, again={"base": "flow", "pairs": "reflow"}))
    assert rows["models/again"]["teacher"] == rows["models/flow"] and rows["models/flow"]["like"]


def test_a_teacher_has_learned_to_do_without_labels(tmp_path: Path) -> None:
    flow = {**FLOW, **CLASSES, "label_dropout": 0}
    rows = models(flow=flow, x={"base": "flow", "pairs": "reflow", "labels": "none"})
    message = error(tmp_path, yaml.safe_dump(MINIMAL | rows, sort_keys=False))
    assert message.startswith("models.x.pairs: ") and "without labels" in message


def test_defaults_of_other_networks_are_left_out(tmp_path: Path) -> None:
    rows = resolved(tmp_path, defaults={"models": {"multipliers": [1, 2], "patch": 1}}, **models(x={"network": "dit"}))
    assert (rows["models/edm"]["multipliers"], rows["models/edm"]["patch"]) == ([1, 2], 2)
    assert (rows["models/x"]["multipliers"], rows["models/x"]["patch"]) == ([1, 2, 4], 1)


def test_a_row_that_is_to_cost_as_much_carries_its_bases_row(tmp_path: Path) -> None:
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
    message = error(tmp_path, yaml.safe_dump(MINIMAL | {"models": {"edm": {"equal": "flops"}}}, sort_keys=False))
    assert message.startswith("models.edm.equal: ") and "the first row has no base" in message
