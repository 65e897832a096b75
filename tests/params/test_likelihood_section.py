"""The `likelihood` section of a study file: what it fills in, and what it refuses in one line."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.likelihoods import Likelihood
from pipeline.params.resolve import resolve
from pipeline.params.study import parse_study
from tests.params.minimal import CLASSES, FLOW, MINIMAL, REFLOW, models, refusal, resolved

POINTS = {"data": {"source": "two_moons"}, "features": {"extractor": "coordinates"}}
OF_POINTS = POINTS | models() | {"models": {"edm": {"network": "mlp"}}}
DIRECT = {"edm": {}, "ct": {"objective": "consistency_training", "parametrization": "consistency"}}


def asked(**keys: Any) -> dict[str, Any]:
    return {"likelihood": {"models": ["edm"]} | keys}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no models": (asked(models=[]), "models: takes a list of at least 1"),
    "an unknown model": (asked(models=["emd"]), "models: no model 'emd'; did you mean 'edm'?"),
    "a model twice": (asked(models=["edm", "edm"]), "models: a model is listed twice"),
    "an unknown key": (asked(model="edm"), "model: unknown key; did you mean 'models'?"),
    "few images": (asked(images=19), "images: takes a whole number greater than or equal to 20"),
    "noise": (asked(solver="ddpm"), "solver: ddpm adds noise"),
    "an SDE": (asked(solver="euler_maruyama"), "solver: euler_maruyama adds noise"),
    "churn": (asked(solver="heun", S_churn=2), "S_churn: 2.0 adds noise"),
    "steps of its own": (asked(solver="rk45", nfe=[20]), "solver: rk45 chooses its own levels"),
    "a map": (asked(solver="consistency"), "solver: consistency"),
    "pixels without noise": (asked(dequantization="none"), "dequantization: pixels have 256 levels and no density"),
    "points with noise": (OF_POINTS | asked(dequantization="uniform"), "dequantization: two_moons are points"),
    "points with cut noise": (
        OF_POINTS | asked(dequantization="truncated_normal"),
        "dequantization: two_moons are points",
    ),
    "an end above 0": (asked(end="sigma_min"), "end: sigma_min is for sampling; a likelihood needs zero"),
    "an analytic step": (
        asked(first_step="analytic"),
        "first_step: analytic is for sampling; a likelihood needs network",
    ),
    "a threshold": (asked(threshold="static"), "threshold: static gives many z one D"),
    "a threshold of points": (OF_POINTS | asked(threshold="dynamic"), "threshold: dynamic gives many z one D"),
    "a fitted grid": (asked(discretization="optimised"), "discretization: optimised grids are fitted to sampling"),
    "a grid that moves": (
        asked(discretization="flow"),
        "discretization: the lowest of 19 levels of flow is 0.055",
    ),
    "levels that move": (
        asked(discretization="ddpm", spacing="trailing"),
        "discretization: the lowest of 19 levels of ddpm is",
    ),
    "one level": (asked(nfe=[1, 20]), "nfe: 1 pays for one noise level"),
    "a high sigma": (
        models(vp={"parametrization": "vp", "noise": "vp_uniform"}) | asked(models=["vp"], sigma_max=200),
        "sigma_max: 200, but model vp with parametrization vp has noise levels from 0 to 152.167",
    ),
    "a low sigma": (
        models(ddpm={"parametrization": "ddpm", "noise": "ddpm_uniform"})
        | asked(models=["edm", "ddpm"], sigma_min=1e-9),
        "sigma_min: 1e-09, but model ddpm with parametrization ddpm has noise levels from",
    ),
    "guidance without classes": (asked(guidance=2), "guidance: model edm is unconditional"),
    "a classifier": (
        models(edm={"classifier_images": 100}) | asked(guide="classifier", guidance=1),
        "guide: the trace of a classifier's gradient is not computed",
    ),
    "no snapshot": (asked(guide="snapshot", guidance=2), "guide: model edm has no earlier snapshot"),
    "no label dropout": (models(edm={**CLASSES, "label_dropout": 0}) | asked(labels="none"), "labels: needs model edm"),
    "a consistency model": ({"models": DIRECT} | asked(models=["ct"]), "models: ct has objective consistency_training"),
    "no probes": (asked(probes=0), "probes: takes a whole number"),
    "another trace": (asked(trace="exakt"), "trace: unknown value 'exakt'; did you mean 'exact'?"),
    "another prior": (asked(prior="moment"), "prior: unknown value 'moment'"),
}


@pytest.mark.parametrize(("sections", "message"), BAD.values(), ids=BAD)
def test_a_mistake_is_one_line(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    assert refusal(tmp_path, **sections).startswith(f"likelihood.{message}")


def test_a_study_that_does_not_ask_has_none(tmp_path: Path) -> None:
    files = resolved(tmp_path)
    assert files["likelihood"] is None and files["report"]["likelihood"] is None


def test_the_row_is_written_in_full(tmp_path: Path) -> None:
    row = resolved(tmp_path, **asked(nfe=[9]))["likelihood"]
    assert (row["solver"], row["nfe"], row["sigma_min"], row["sigma_max"]) == ("unipc", [9], 0.002, 80.0)
    assert Likelihood(**row) == Likelihood(models=("edm",), nfe=(9,)).filled()


def test_trace_and_dequantization_are_chosen_by_the_data() -> None:
    row = Likelihood(models=("edm",))
    small, large, points = (row.settled(shape) for shape in ((1, 8, 16), (3, 32, 32), (2,)))
    assert (small.trace, large.trace, points.trace) == ("exact", "hutchinson", "exact")
    assert (small.dequantization, points.dequantization) == ("uniform", "none")
    own = Likelihood(models=("edm",), trace="hutchinson", dequantization="truncated_normal").settled((1, 8, 8))
    assert (own.trace, own.dequantization) == ("hutchinson", "truncated_normal")


def test_guidance_and_labels_of_classes_are_allowed(tmp_path: Path) -> None:
    both = models(edm={**CLASSES, "label_dropout": 0.1})
    for keys in ({"guidance": 2}, {"labels": "none"}, {"labels": "data"}):
        assert resolved(tmp_path, **both, **asked(**keys))["likelihood"]


def test_a_model_of_dependent_pairs_is_a_warning() -> None:
    sections = models(flow=FLOW, reflow=REFLOW) | asked(models=["edm", "reflow"])
    found = resolve(parse_study(str(MINIMAL | sections), Path("params.yaml"))).warnings
    assert [line for line in found if line.startswith("likelihood.models: model reflow was trained on noise")]
    assert not [line for line in found if "model edm was" in line]
