"""Sections `measurements`, `posteriors` and `given` of a study file: what is filled in, and what one line refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import StudyError
from pipeline.common.scalars import dump
from pipeline.common.text import LONGEST_LINE
from pipeline.evaluation.given_rows import MOST_OFTEN, Given, MeasurementRow, PosteriorRow
from pipeline.params.resolve import resolve_with_data
from pipeline.params.study import read_study
from pipeline.sampling.conditional import ALL, keys_of
from pipeline.sampling.measurement import MEASUREMENTS
from tests.params.minimal import CLASSES, MINIMAL, refusal, resolved

POINTS = {"data": {"source": "two_moons"}, "features": {"extractor": "coordinates"}}
POINTS |= {"models": {"edm": {"network": "mlp", "train_seeds": [3, 1]}}}
NOISY = {"operator": "identity", "std": 0.5}
CLIP = {"operator": "clip", "std": 0.5}


def sections(measurements: Any = None, given: Any = None, **posteriors: Any) -> dict[str, Any]:
    """Three sections of a study; by default one measurement, and one row."""
    found = {"measurements": {"noisy": NOISY} if measurements is None else measurements}
    return found | {"posteriors": posteriors or {"dps": {}}} | ({"given": given} if given else {})


def row(**keys: Any) -> dict[str, Any]:
    return sections(x=keys)


def measured(**keys: Any) -> dict[str, Any]:
    return sections({"m": {"std": 0.5} | keys})


def with_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any]) -> Any:
    monkeypatch.setattr("pipeline.params.resolve._warnings", lambda *of, **more: ())
    path = tmp_path / "params.yaml"
    path.write_text(dump(MINIMAL | content, sort_keys=False))
    return resolve_with_data(read_study(path))[0]


CT = {"objective": "consistency_training", "parametrization": "consistency"}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no measurements": (
        {"posteriors": {"dps": {}}},
        "measurements: missing; posterior samplers need at least one, such as noisy: {operator: identity, std: 0.5}",
    ),
    "no posteriors": (
        {"measurements": {"noisy": NOISY}},
        "posteriors: missing; measurements need at least one, such as dps: {posterior: dps}",
    ),
    "measurements of a list": (sections(["noisy"]), "measurements: takes a mapping, not ['noisy']"),
    "posteriors of a list": (sections() | {"posteriors": ["dps"]}, "posteriors: takes a mapping, not ['dps']"),
    "a measurement of nothing": (sections({"m": None}), "measurements.m: takes a mapping, not null"),
    "a name with a dash": (sections({"a-b": NOISY}), "measurements.a-b: 'a-b': a name has 1 to 60 letters"),
    "no operator": (sections({"m": {"std": 1}}), "measurements.m.operator: missing"),
    "an operator with a typo": (
        measured(operator="identty"),
        "measurements.m.operator: unknown value 'identty'; did you mean 'identity'? valid: blur, clip,",
    ),
    "no std": (sections({"m": {"operator": "identity"}}), "measurements.m.std: missing"),
    "std 0": (measured(operator="identity", std=0), "measurements.m.std: takes a number greater than 0, not 0"),
    "a negative std": (measured(operator="identity", std=-1), "measurements.m.std: takes a number greater than 0"),
    "std in words": (measured(operator="identity", std="big"), "measurements.m.std: takes a number greater than 0"),
    "an infinite std": (
        measured(operator="identity", std=float("inf")),
        "measurements.m.std: takes a finite number, not inf",
    ),
    "a truth value": (measured(operator="identity", std=True), "measurements.m.std: takes a number greater than 0"),
    "a measurement's typo": (
        measured(operator="blur", widht=2),
        "measurements.m.widht: unknown key; did you mean 'width'?",
    ),
    "another operator's key": (
        measured(operator="identity", factor=3),
        "measurements.m: factor: operator identity does not use it; factor is for downsample",
    ),
    "no projections": (
        measured(operator="random"),
        "measurements.m: projections: missing; operator random needs it",
    ),
    "0 projections": (measured(operator="random", projections=0), "measurements.m.projections: takes a whole number"),
    "a box of three": (
        measured(operator="mask", box=[0, 0, 8]),
        "measurements.m.box: takes [top, left, height, width], in pixels",
    ),
    "a box of text": (measured(operator="mask", box="half"), "measurements.m.box: takes [top, left, height, width]"),
    "an empty box": (measured(operator="mask", box=[0, 0, 0, 2]), "measurements.m.box.2: input should be greater"),
    "nothing kept": (measured(operator="mask", kept=[]), "measurements.m.kept: takes a list of at least 1 whole"),
    "a share above 1": (measured(operator="mask", share=1.5), "measurements.m.share: takes a number greater than 0"),
    "limit 0": (measured(operator="clip", limit=0), "measurements.m.limit: takes a number greater than 0"),
    "a method with a typo": (
        row(posterior="dsp"),
        "posteriors.x.posterior: unknown value 'dsp'; did you mean 'dps'? valid: daps, ddnm,",
    ),
    "a model with a typo": (row(model="emd"), "posteriors.x.model: no model 'emd'; did you mean 'edm'? valid: edm"),
    "a measurement with a typo": (
        row(given=["nosy"]),
        "posteriors.x.given: no measurement 'nosy'; did you mean 'noisy'? valid: noisy",
    ),
    "a measurement twice": (
        row(given=["noisy", "noisy"]),
        "posteriors.x.given: a measurement is listed twice; list each once",
    ),
    "given nothing": (row(given=[]), "posteriors.x.given: takes a list of at least 1"),
    "a base with a typo": (row(base="b"), "posteriors.x.base: no row 'b'; valid: x"),
    "a base that is its own": (row(base="x"), "posteriors.x.base: the bases x -> x form a circle"),
    "a key with a typo": (row(zeat=1), "posteriors.x.zeat: unknown key; did you mean 'zeta'?"),
    "a default with a typo": (
        sections() | {"defaults": {"posteriors": {"zeat": 1}}},
        "defaults.posteriors.zeat: unknown key; did you mean 'zeta'?",
    ),
    "an end above 0": (
        row(end="sigma_min"),
        "posteriors.x: end: sigma_min is for curves; posterior samplers need zero",
    ),
    "an analytic step": (
        row(first_step="analytic"),
        "posteriors.x: first_step: analytic is for curves; posterior samplers need network",
    ),
    "another method's key": (
        row(posterior="tmp", zeta=1),
        "posteriors.x: zeta: method tmp does not use it; zeta is for dps, dps_norm",
    ),
    "zeta 0": (row(zeta=0), "posteriors.x.zeta: takes a number greater than 0 or null, not 0"),
    "renoise above 1": (row(posterior="diffpir", renoise=2), "posteriors.x.renoise: takes a number greater than 0"),
    "countless steps": (
        row(posterior="daps", prior_steps=10**7),
        f"posteriors.x.prior_steps: takes a whole number greater than 0 and less than or equal to {MOST_OFTEN}",
    ),
    "an odd count": (row(posterior="mmps", iterations=1.5), "posteriors.x.iterations: takes a whole number"),
    "tuning of another method's key": (
        row(tune={"iterations": [1, 2]}),
        "posteriors.x: tune.iterations: method dps has no such number; valid: zeta",
    ),
    "tuning of names": (
        row(posterior="tmp", tune={"covariance": [1, 2]}),
        "posteriors.x: tune.covariance: method tmp has no such number; valid: none",
    ),
    "an inherited tuning of another method": (
        sections(a={"tune": {"zeta": [1, 2]}}, x={"base": "a", "posterior": "mmps"}),
        "posteriors.x: tune.zeta: method mmps has no such number; valid: iterations",
    ),
    "a reversed range": (row(tune={"zeta": [2, 1]}), "posteriors.x: tune.zeta: 2 must be below 1"),
    "a range of one value": (
        row(tune={"zeta": [2]}),
        "posteriors.x.tune: zeta takes the lowest and the highest value, such as [0.1, 10]",
    ),
    "a range without end": (row(tune={"zeta": 2}), "posteriors.x.tune: zeta takes the lowest and the highest value"),
    "a range from 0": (row(tune={"zeta": [0, 1]}), "posteriors.x.tune.zeta.0: input should be greater than 0, not 0"),
    "a range beyond 1": (
        row(posterior="diffpir", tune={"renoise": [0.1, 1.5]}),
        "posteriors.x: tune.renoise: 1.5 must be at most 1",
    ),
    "a range of countless steps": (
        row(posterior="daps", tune={"prior_steps": [1, 1e5]}),
        f"posteriors.x: tune.prior_steps: 100000 must be at most {MOST_OFTEN}",
    ),
    "adaptive steps": (
        row(solver="rk45", nfe=[200]),
        "posteriors.x.solver: rk45 chooses its number of steps; use one whose steps a budget can pay for",
    ),
    "a fitted grid": (
        row(discretization="optimised", nfe=[9]),
        "posteriors.x.discretization: optimised grids are fitted to sampling without a measurement; use another",
    ),
    "guidance": (
        row(guidance=2),
        "posteriors.x.guidance: a posterior sampler is guided by its measurement; leave guidance out",
    ),
    "a learned variance": (
        row(solver="ddpm", variance="learned"),
        "posteriors.x.variance: a learned variance is that of sampling without a measurement; use beta",
    ),
    "a threshold of points": (
        POINTS | row(threshold="static"),
        "posteriors.x.threshold: only images can be thresholded, and two_moons are points; use none",
    ),
    "a model with classes": (
        {"models": {"edm": CLASSES}} | row(model="edm"),
        "posteriors.x.model: model edm has classes, and measurements have none; use one with labels: none",
    ),
    "a model that is no denoiser": (
        {"models": {"edm": CT}} | row(model="edm"),
        "posteriors.x.model: model edm has objective consistency_training; use a denoiser, whose answers are means",
    ),
    "the name of the perfect sampler": (
        sections(exact={}),
        "posteriors.exact: this is the name of the perfect sampler in the report; rename the row",
    ),
    "the name of a file": (
        sections(problems={}),
        "posteriors.problems: this is the name of a file that the stage `given` writes; rename the row",
    ),
    "few problems": (sections(given={"problems": 1}), "given.problems: takes a whole number greater than or equal"),
    "one candidate": (sections(given={"candidates": 1}), "given.candidates: takes a whole number greater than"),
    "a seed twice": (sections(given={"sample_seeds": [1, 1]}), "given.sample_seeds: [1, 1] has a seed twice"),
    "an unknown key": (sections(given={"problem": 9}), "given.problem: unknown key; did you mean 'problems'?"),
    "a budget twice": (row(nfe=[9, 9]), "posteriors.x: nfe: a budget is listed twice"),
    "a reversed noise range": (row(sigma_min=5, sigma_max=1), "posteriors.x: sigma_min (5.0) must be below sigma_max"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_a_mistake_is_one_line(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    assert refusal(tmp_path, **content).startswith(message)


BAD_FOR_DATA: dict[str, tuple[dict[str, Any], str]] = {
    "a box outside": (
        measured(operator="mask", box=[4, 4, 8, 2]),
        "measurements.m: mask: the box (4, 4, 8, 2) is not inside of an image of 8 x 8",
    ),
    "a box over all": (measured(operator="mask", box=[0, 0, 8, 8]), "measurements.m: mask: nothing is measured"),
    "a box of points": (POINTS | measured(operator="mask", box=[0, 0, 1, 1]), "measurements.m: mask: box: measures"),
    "pixels that do not exist": (
        measured(operator="mask", kept=[0, 64]),
        "measurements.m: mask: kept must list different numbers from 0 to 63, at least one",
    ),
    "a coordinate twice": (POINTS | measured(operator="mask", kept=[1, 1]), "measurements.m: mask: kept must list"),
    "two choices of a mask": (
        measured(operator="mask", share=0.5, kept=[1]),
        "measurements.m: mask: needs exactly one of box, share and kept",
    ),
    "no choice of a mask": (
        measured(operator="mask"),
        "measurements.m: mask: needs exactly one of box, share and kept",
    ),
    "many projections": (
        POINTS | measured(operator="random", projections=3),
        "measurements.m: random: 3 projections of 2 dimensions; write 1 to 2",
    ),
    "a factor that does not divide": (
        measured(operator="downsample", factor=3),
        "measurements.m: downsample: factor 3 does not divide an image of 8 x 8",
    ),
    "a blur of points": (POINTS | measured(operator="blur"), "measurements.m: blur: measures images"),
    "blocks of points": (POINTS | measured(operator="downsample"), "measurements.m: downsample: measures images"),
    "a method that needs singular values": (
        POINTS | sections({"noisy": NOISY, "clip": CLIP}, x={"posterior": "tmp", "given": ["noisy", "clip"]}),
        "posteriors.x.posterior: tmp needs a linear measurement, with singular values and an adjoint; use dps or mpgd, "
        "given clip",
    ),
    "a method without a measurement": (
        POINTS | sections({"clip": CLIP}, dps={}, x={"posterior": "pnpdm"}),
        "posteriors.x.posterior: pnpdm needs a linear measurement",
    ),
    "inpainting without a mask": (
        POINTS | sections({"r": {"operator": "random", "std": 1, "projections": 1}}, x={"posterior": "repaint"}),
        "posteriors.x.posterior: repaint",
    ),
    "a budget below one step": (
        row(posterior="tmp", nfe=[200, 100]),
        "posteriors.x.nfe: a budget of 100 is below one step of tmp, which costs 129, given noisy",
    ),
    "a budget below the inner steps": (
        POINTS | row(posterior="daps", prior_steps=12, nfe=[11]),
        "posteriors.x.nfe: a budget of 11 is below one step of daps, which costs 12, given noisy",
    ),
    "a budget below a list of sigmas": (
        POINTS | row(solver="euler", discretization="explicit", sigmas=[80, 10, 1, 0.1], nfe=[11]),
        "posteriors.x.nfe: a budget of 11 is below the 4 sigmas of dps, which costs 12, given noisy",
    ),
    "steps that the grid lacks": (
        POINTS | row(solver="euler", finest_steps=20, nfe=[20]),
        "posteriors.x.finest_steps: 20 is no multiple of 6 steps, given noisy",
    ),
    "more problems than images": (
        {"data": {"limit": 150}} | sections(given={"problems": 120, "validation": 31}),
        "given.problems: 120 problems and 31 for validation take 151 different images, and the data have 150; lower",
    ),
}


@pytest.mark.parametrize(("content", "message"), BAD_FOR_DATA.values(), ids=BAD_FOR_DATA)
def test_a_mistake_that_the_data_show_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any], message: str
) -> None:
    with pytest.raises(StudyError) as caught:
        with_data(tmp_path, monkeypatch, content)
    found = str(caught.value)
    assert found.startswith(message) and found.isprintable() and len(found) <= LONGEST_LINE


@pytest.mark.parametrize("posterior", ALL)
def test_every_method_goes_with_a_noisy_mask_and_all_its_keys_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, posterior: str
) -> None:
    mask = {"mask": {"operator": "mask", "std": 0.1, "kept": [0]}}
    found = with_data(tmp_path, monkeypatch, POINTS | sections(mask, x={"posterior": posterior, "nfe": [27]}))
    assert found.posteriors["x"].row.keys == dict(keys_of(posterior))
    assert set(keys_of(posterior)) <= set(PosteriorRow.model_fields)


@pytest.mark.parametrize("operator", MEASUREMENTS)
def test_every_operator_goes_with_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operator: str) -> None:
    needed = {"mask": {"share": 0.3}, "random": {"projections": 5}}.get(operator, {})
    found = with_data(tmp_path, monkeypatch, measured(operator=operator, **needed))
    built = found.measurements["m"].build((1, 8, 8))
    assert built.shape == (1, 8, 8) and built.std == 0.5


def test_a_row_that_lists_none_skips_what_its_method_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = sections({"noisy": NOISY, "clip": CLIP}, tmp={"posterior": "tmp"}, dps={"given": ["clip"]})
    found = with_data(tmp_path, monkeypatch, POINTS | content)
    assert found.posteriors["tmp"].row.given is None and found.posteriors["dps"].row.given == ("clip",)


def test_rows_inherit_from_their_base_and_the_defaults(tmp_path: Path) -> None:
    rows = {
        "dps": None,
        "weak": {"zeta": 0.3, "solver": "euler", "tune": {"zeta": [0.1, 1]}},
        "weaker": {"base": "weak", "zeta": 0.2},
        "mmps": {"base": "weak", "posterior": "mmps", "zeta": None, "tune": {}, "rho": 3, "iterations": 2},
    }
    defaults = {"defaults": {"posteriors": {"nfe": [20], "model": "edm"}}}
    files = resolved(tmp_path, **POINTS, **sections(**rows), **defaults)
    found = {name: PosteriorRow(**row) for name, row in files["given"]["posteriors"].items()}
    assert [found[name].zeta for name in rows] == [None, 0.3, 0.2, None]
    assert [found[name].solver for name in rows] == ["heun", "euler", "euler", "euler"]
    assert all(row.nfe == (20,) and row.model == "edm" for row in found.values())
    assert found["weaker"].tune == {"zeta": (0.1, 1.0)} and found["mmps"].keys == {"iterations": 2}
    filed = files["report"]["posteriors"]
    assert [filed[name]["base"] for name in rows] == ["dps", "dps", "weak", "weak"]
    assert [filed[name]["explicit"] for name in rows] == [False, False, True, True]
    assert filed["weaker"]["differences"] == {"zeta": 0.2} and filed["weaker"]["axis"] == "posterior keys"
    assert filed["mmps"]["differences"].keys() >= {"posterior", "rho"} and filed["mmps"]["axis"] == "combinations"


def test_a_preset_scales_the_rows_by_their_defaults(tmp_path: Path) -> None:
    presets = {"preset": "small", "presets": {"small": {"defaults": {"posteriors": {"nfe": [12]}}}}}
    assert resolved(tmp_path, **sections(), **presets)["given"]["posteriors"]["dps"]["nfe"] == [12]


def test_the_stages_read_everything_that_they_need_in_one_file(tmp_path: Path) -> None:
    content = POINTS | sections(given={"problems": 5}, dps={}, net={"model": "edm"}, again={"model": "edm", "zeta": 2})
    found = resolved(tmp_path, **content)["given"]
    assert found.keys() == {"source", "given", "measurements", "posteriors", "trained"}
    assert found["source"] == "two_moons" and found["trained"] == {"edm": [3, 1]}
    assert Given(**found["given"]) == Given(problems=5)
    assert {name: MeasurementRow(**row) for name, row in found["measurements"].items()} == {
        "noisy": MeasurementRow(**NOISY)
    }
    exact = PosteriorRow(**found["posteriors"]["dps"])
    assert exact == PosteriorRow().filled() and (exact.sigma_min, exact.sigma_max) == (0.002, 80.0)
    assert found == json.loads(json.dumps(found, allow_nan=False))


def test_a_study_without_these_sections_has_none(tmp_path: Path) -> None:
    files = resolved(tmp_path)
    assert files["given"] is None and files["report"]["posteriors"] == files["report"]["measurements"] == {}


COUNT = 7


@pytest.mark.parametrize(
    ("posterior", "tune"),
    [
        ("dps", {"zeta": (0.03, 3.0)}),
        ("diffpir", {"fidelity": (0.1, 10.0), "renoise": (0.05, 1.0)}),
        ("daps", {"prior_steps": (1.0, 9.0), "spread": (0.3, 3.0)}),
        ("ddrm", {"eta_free": (0.2, 1.0), "eta_b": (0.2, 1.0)}),
    ],
)
def test_candidates_are_the_rows_own_keys_and_others_within_their_ranges(
    posterior: str, tune: dict[str, tuple[float, float]]
) -> None:
    row = PosteriorRow(posterior=posterior, tune=tune)
    own, *others = row.candidates(COUNT)
    assert own == row.keys == dict(keys_of(posterior)) and len(others) == COUNT - 1
    for keys in others:
        assert keys.keys() == own.keys()
        for key, (low, high) in tune.items():
            assert low <= keys[key] <= high and isinstance(keys[key], type(own[key]))
        PosteriorRow(posterior=posterior, **keys)
    assert len({json.dumps(keys) for keys in (own, *others)}) == COUNT
    for key, (low, high) in tune.items():  # both halves of a range, on the log scale, are tried
        halves = {keys[key] > (low * high) ** 0.5 for keys in others}
        assert halves == {True, False}, key


@pytest.mark.parametrize(("count", "others"), [(2, [1.73]), (3, [0.1, 30]), (6, [0.1, 0.416, 1.73, 7.21, 30])])
def test_one_key_is_tried_evenly_from_end_to_end(count: int, others: list[float]) -> None:
    found = [keys["zeta"] for keys in PosteriorRow(tune={"zeta": (0.1, 30.0)}).candidates(count)]
    assert found == [1.0, *others]


def test_the_rows_own_keys_are_tried_once() -> None:
    found = [keys["zeta"] for keys in PosteriorRow(tune={"zeta": (0.1, 10.0)}).candidates(6)]
    assert found == [1.0, 0.1, 0.316, 3.16, 10.0]


def test_few_whole_numbers_are_tried_once_each() -> None:
    found = [keys["iterations"] for keys in PosteriorRow(posterior="mmps", tune={"iterations": (1, 3)}).candidates(20)]
    assert sorted(found) == [1, 2, 3]


def test_nothing_to_tune_is_one_candidate() -> None:
    assert PosteriorRow(zeta=0.5).candidates(5) == [{"zeta": 0.5}]
    assert PosteriorRow(posterior="ddnm").candidates(5) == [{}]
