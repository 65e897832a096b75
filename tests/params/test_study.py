"""Every mistake in a study file is one line that says where it is, what is wrong and what to write instead."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.params.minimal import curve, curves, error, models, refusal, resolved

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
    "smallest effect of nothing": ({"report": {"smallest_effect": 0}}, "report.smallest_effect", "greater than 0 and"),
    "smallest effect of all": ({"report": {"smallest_effect": 1}}, "report.smallest_effect", "less than 1, not 1"),
    "unknown report key": ({"report": {"smallest": 0.1}}, "report.smallest", "did you mean 'smallest_effect'?"),
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
    "rho too large": (curve(rho=1e13), "curves.x", "rho"),
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
    "patches of other data": ({"data": {"size": 32}}, "data", "size: only photo_patches is cut into patches, not"),
    "data limit": ({"data": {"limit": 1}}, "data.limit", "greater than or equal to 2"),
}  # fmt: skip
BAD |= {f"model named {name!r}": ({"models": {name: {}}}, "models." + name.split("\n")[0], NAME) for name in NAMES}
BAD |= {f"curve named {name!r}": (curves(**{name: {"model": "edm"}}), "curves.", NAME) for name in NAMES}
BAD |= {f"set named {name!r}": ({"sets": {name: {"source": "x"}}}, "sets.", NAME) for name in NAMES}
BAD |= {f"study named {name!r}": ({"study": {"name": name}}, "study.name", "") for name in NAMES}


def test_a_misspelt_data_set_is_reported_before_its_extractor(tmp_path: Path) -> None:
    sections = {"data": {"source": "two_moon"}, "features": {"extractor": "coordinates"}}
    message = refusal(tmp_path, **sections)
    assert message.startswith("data.source: 'two_moon' is no folder") and "did you mean 'two_moons'?" in message


def test_a_folder_may_have_almost_the_name_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digit").mkdir()
    assert resolved(tmp_path, data={"source": "digit"})["data"]["source"] == "digit"


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_that_says_where_and_what(tmp_path: Path, case: str) -> None:
    sections, place, cause = BAD[case]
    message = refusal(tmp_path, **sections)
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
        ("models: {[a]: {}}" + REST, "line 1: models: a key must be text"),
        ("models: {x: {3: 4}}" + REST, 'line 1: models.x.3: a key must be text; write "3" in quotes'),
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
def test_an_unreadable_file_is_one_line_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes | None, cause: str
) -> None:
    monkeypatch.chdir(tmp_path)
    message = error(tmp_path, text)
    assert message.startswith("params.yaml: ") and cause in message
    assert set(os.listdir(tmp_path)) <= {"params.yaml"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"ema_sigma_rels": 0.1},
            "ema_sigma_rels: takes a list of numbers greater than 0 and less than 0.2887, not 0.1; write [0.1]",
        ),
        ({"clip_norm": "none"}, "clip_norm: takes a number greater than 0 or null, not 'none'; write null"),
        ({"compile": True}, "compile: takes none, default, not true"),
        ({"images": "1e6"}, "images: takes a whole number greater than 0, not '1e6'; write 1000000"),
        (
            {"snapshots": -1},
            "snapshots: takes a whole number greater than or equal to 0 and less than or equal to 1000, not -1",
        ),
        ({"train_seeds": 3}, "train_seeds: takes a list of at least 1 whole numbers"),
        ({"base": "edm", "equal": "flops", "channels": 64}, "channels: equal: flops chooses the channels"),
    ],
    ids=str,
)
def test_the_line_for_a_wrong_type_has_a_right_value(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    found = refusal(tmp_path, **models(x=row))
    assert found.startswith(f"models.x.{message}")
