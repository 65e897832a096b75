"""Cascades in a study file: what `resolve` fills in, and which stages do not fit together, each refused in one line."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.common.scalars import dump
from pipeline.evaluation.curve import Curve
from pipeline.params.resolve import resolve
from pipeline.params.study import parse_study
from tests.params.minimal import MINIMAL, refusal, resolved

MODELS: dict[str, Any] = {
    "edm": {},
    "small": {"resolution": 4},
    "up": {"upsampler": {"from": 4}},
    "blurred": {"upsampler": {"from": 4, "augmentation": "blur", "strength": 2}},
}
FIRST = {"model": "small", "nfe": [3, 9]}
LAST = {"model": "up", "after": "low", "nfe": [6, 18]}


def cascade(first: dict[str, Any] | None = None, models: dict[str, Any] | None = None, **last: Any) -> dict[str, Any]:
    rows = {"low": FIRST | (first or {}), "edm": {"model": "edm"}, "both": LAST | last}
    return {"models": MODELS | (models or {}), "curves": rows}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no earlier stage": (
        cascade(after=None),
        "after: missing; model up is an upsampler: name a curve that makes images 4",
    ),
    "an unknown curve": (cascade(after="lwo"), "after: no curve 'lwo'; did you mean 'low'?"),
    "itself": (cascade(after="both"), "after: the stages both after both form a circle"),
    "full images": (
        cascade(after="edm"),
        "after: curve edm makes images of full size, but model up takes images 4 pixels",
    ),
    "another size": (
        cascade(models={"small": {"resolution": 2}}),
        "after: curve low makes images 2 pixels high, but model up takes images 4 pixels high",
    ),
    "too strong": (cascade(strength=0.6), "strength: 0.6, but model up was trained for strengths up to 0.5"),
    "too much blur": (
        cascade(model="blurred", strength=2.1),
        "strength: 2.1, but model blurred was trained for strengths",
    ),
    "a negative strength": (cascade(strength=-1), "strength: takes a number greater than or equal to 0"),
    "a small budget": (cascade(nfe=[1]), "nfe: 0 evaluations are too few"),
    "a small share": (cascade(nfe=[18], share=0.01), "nfe: 0 evaluations are too few"),
    "all for the stages before": (cascade(share=1), "share: takes a number greater than 0 and less than 1"),
    "an adaptive stage": (cascade(solver="rk45", nfe=[40]), "solver: rk45 is not for stages of a cascade"),
    "an adaptive first stage": (
        cascade(first={"solver": "rk45", "nfe": [40]}),
        "after: curve low.solver: rk45 is not for stages of a cascade",
    ),
    "a fitted grid": (cascade(discretization="optimised"), "discretization: optimised is not for stages of a cascade"),
    "a fitted first grid": (
        cascade(first={"discretization": "optimised"}),
        "after: curve low.discretization: optimised is not for stages of a cascade",
    ),
    "truncated at 0": (cascade(truncated=True), "truncated: needs a strength above 0"),
    "a truncated blur": (
        cascade(model="blurred", strength=1, truncated=True),
        "truncated: leaves noise, but the model was trained with augmentation blur",
    ),
    "a grid without that level": (
        cascade(first={"discretization": "flow"}, strength=0.2, truncated=True),
        "truncated: the grid of curve low has no noise level 0.2 to end at",
    ),
    "other seeds": (
        cascade(models={"small": {"resolution": 4, "train_seeds": [0, 1]}}),
        "after: model small has no training with seed 2",
    ),
    "an order that few steps have": (
        cascade(solver="unipc", order=3, nfe=[8]),
        "order: 3 needs 5 steps, and nfe pays for at most 4",
    ),
    "levels that do not divide": (
        cascade(finest_steps=8, nfe=[8], solver="euler", share=0.25),
        "finest_steps: 8 is no multiple of 6 steps",
    ),
    "a first stage whose levels do not divide": (
        cascade(first={"solver": "euler", "finest_steps": 8, "nfe": [8]}, solver="euler", nfe=[12]),
        "nfe: asks curve low for 6 steps: finest_steps: 8 is no multiple of 6 steps",
    ),
    "steps without a student": (
        cascade(
            first={"solver": "ddim", "nfe": [4]},
            models={"edm": {"resolution": 4}, "small": {"base": "edm", "objective": "progressive", "images": 50_000}},
            solver="euler",
            nfe=[12],
        ),
        "nfe: asks curve low for 6 steps, but model small has students for 1, 2, 4, 8",
    ),
    "an upsampler of few steps, with a small budget": (
        cascade(models={"up": {"base": "teacher", "objective": "progressive"}, "teacher": MODELS["up"]}, nfe=[1]),
        "nfe: 0 evaluations are too few",
    ),
    "levels that do not fall to the strength": (
        cascade(first={"discretization": "vp"}, strength=0.2, truncated=True, nfe=[12]),
        "truncated: the noise levels of curve low do not fall to 0.2 in 2 steps",
    ),
    "seeds that the first of three stages lacks": (
        {
            "models": {
                "edm": {},
                "tiny": {"resolution": 2, "train_seeds": [0]},
                "mid": {"resolution": 4, "upsampler": {"from": 2}},
                "up": MODELS["up"],
            },
            "curves": {
                "tiny": {"model": "tiny", "nfe": [4]},
                "mid": {"model": "mid", "after": "tiny", "train_seeds": [0], "nfe": [8]},
                "both": {"model": "up", "after": "mid", "nfe": [16]},
            },
        },
        "after: model tiny has no training with seed 1",
    ),
    "no upsampler": (cascade(model="edm"), "after: model edm is no upsampler; leave it out"),
    "a strength without one": (
        {"models": {"edm": {}}, "curves": {"both": {"model": "edm", "strength": 0.1}}},
        "strength: model edm is no upsampler",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_stages_that_do_not_fit_together_are_refused(tmp_path: Path, case: str) -> None:
    sections, message = BAD[case]
    assert refusal(tmp_path, **sections).removeprefix("curves.both").strip(".: ").startswith(message)


BAD_MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "pairs": (
        {"upsampler": {"from": 4}, "pairs": "optimal_transport"},
        "pairs: optimal_transport would make the noise",
    ),
    "no height": ({"upsampler": {"augmentation": "blur"}}, "upsampler.from: missing"),
    "unknown augmentation": (
        {"upsampler": {"from": 4, "augmentation": "bulr"}},
        "upsampler.augmentation: unknown value",
    ),
    "a variance": (
        {"resolution": 4, "learned_variance": "hybrid", "parametrization": "ddpm", "noise": "ddpm_uniform"},
        "learned_variance: its decoder is for pixels of 256 levels; use none, or no resolution",
    ),
    "a number": ({"upsampler": 8}, "upsampler: takes a mapping or null, not 8"),
    "another name": ({"upsampler": {"height": 8}}, "upsampler.from: missing"),
    "filled in": ({"autoencoder": {}}, "autoencoder: `resolve` fills this key in"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_models_that_cannot_be_stages_are_refused(tmp_path: Path, case: str) -> None:
    row, message = BAD_MODELS[case]
    assert refusal(tmp_path, models={"edm": {}, "x": row}).removeprefix("models.x").strip(".: ").startswith(message)


@pytest.mark.parametrize("section", ["likelihood", "posteriors"])
@pytest.mark.parametrize("model", ["small", "up"])
def test_a_stage_has_neither_likelihood_nor_posterior(tmp_path: Path, section: str, model: str) -> None:
    asked: dict[str, Any] = {"likelihood": {"models": [model]}}
    if section == "posteriors":
        asked = {"posteriors": {"dps": {"model": model}}, "measurements": {"noisy": {"operator": "identity", "std": 1}}}
    message = refusal(tmp_path, **cascade(), **asked)
    assert message.endswith("measured in the space of the data; name a model without it")
    assert f"model {model} has {'resolution' if model == 'small' else 'upsampler'}" in message


def test_a_cascade_is_resolved_with_the_stage_before(tmp_path: Path) -> None:
    files = resolved(tmp_path, **cascade(strength=0.2))
    row = Curve(**files["curves/both"])
    assert row.earlier is not None and row.earlier.model == "small" and row.stages == ["small", "up"]
    assert [row.stage_evaluations(steps) for steps in row.step_counts] == [
        [("small", 3), ("up", 3)],
        [("small", 9), ("up", 9)],
    ]
    assert (
        files["grids"]["up"] == {"ranges": [], "solvers": {}, "earlier": ["small"]}
        and files["grids"]["small"]["earlier"] == []
    )
    assert files["spaces"] == {n: [None, 4 if n == "small" else None] for n in MODELS}


def test_the_first_model_of_full_images_gets_a_proposal(tmp_path: Path) -> None:
    models = {"up": MODELS["up"], "small": MODELS["small"], "edm": {}}
    curves = {"low": FIRST, "both": LAST}
    assert resolved(tmp_path, models=models, curves=curves)["propose"]["model"] == "edm"


@pytest.mark.parametrize(("share", "own", "before"), [(0.5, 9, 9), (0.25, 13, 3), (0.7, 5, 11)])
def test_a_budget_is_shared_between_stages(tmp_path: Path, share: float, own: int, before: int) -> None:
    row = Curve(**resolved(tmp_path, **cascade(share=share, nfe=[18]))["curves/both"])
    assert row.stage_evaluations(row.steps(18)) == [("small", before), ("up", own)]
    assert row.evaluations(row.steps(18)) == own + before <= 18


def test_three_stages_share_a_budget_and_each_names_the_one_before(tmp_path: Path) -> None:
    models = {
        "edm": {},
        "tiny": {"resolution": 2},
        "mid": {"resolution": 4, "upsampler": {"from": 2}},
        "up": MODELS["up"],
    }
    curves = {
        "tiny": {"model": "tiny", "solver": "euler", "nfe": [4]},
        "mid": {"model": "mid", "after": "tiny", "solver": "euler", "nfe": [8]},
        "up": {"model": "up", "after": "mid", "solver": "euler", "nfe": [16]},
    }
    row = Curve(**resolved(tmp_path, models=models, curves=curves)["curves/up"])
    assert row.stage_evaluations(row.steps(16)) == [("tiny", 4), ("mid", 4), ("up", 8)]


def test_the_hash_of_a_sampler_knows_the_stages_before(tmp_path: Path) -> None:
    def found(**keys: Any) -> str:
        return Curve(**resolved(tmp_path, **cascade(**keys))["curves/both"]).sampler_hash

    plain = found()
    different = [{"strength": 0.1}, {"share": 0.4}, {"first": {"rho": 3}}, {"strength": 0.1, "truncated": True}]
    assert len({plain, *(found(**keys) for keys in different)}) == 1 + len(different)
    assert found(first={"nfe": [5], "method": "first", "samples": 1024}) == plain


def test_a_strength_is_an_axis_of_its_own() -> None:
    text = dump(
        MINIMAL | cascade() | {"curves": cascade()["curves"] | {"s": {"base": "both", "model": "up", "strength": 0.3}}}
    )
    entry = resolve(parse_study(text, Path("params.yaml"))).curves["s"]
    assert entry.axis == "conditioning augmentation" and entry.differences == {"strength": 0.3}
