"""Curves with a fitted solver: what is asked to be fitted, and what is refused in one line."""

from pathlib import Path
from typing import Any

import pytest

from tests.params.minimal import CLASSES, refusal, resolved

MODELS = {
    "edm": {"train_seeds": [0, 1]},
    "other": {"train_seeds": [0, 2]},
    "labelled": CLASSES | {"label_dropout": 0.1},
    "sure": CLASSES | {"label_dropout": 0},
    "seen": {"train_seeds": [0, 1], "snapshots": 2, "images": 50000, "ema_halflives_images": [700]},
    "half": {"resolution": 4, "train_seeds": [0, 1]},
    "up": {"upsampler": {"from": 4}},
    "student": {"base": "edm", "objective": "progressive"},
    "latent": {"space": "coded", "train_seeds": [0, 1]},
}


def sections(**curves: Any) -> dict[str, Any]:
    return {
        "autoencoders": {"coded": {}},
        "models": MODELS,
        "curves": {"edm": {"model": "edm"}} | {name: {"model": "edm"} | row for name, row in curves.items()},
    }


def row(**keys: Any) -> dict[str, Any]:
    return sections(x={"solver": "fitted", "nfe": [4]} | keys)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an adaptive solver's key": (row(atol=0.1), "curves.x: atol: solver fitted does not use it; atol is for rk45"),
    "noise": (row(eta=1), "curves.x: eta: solver fitted does not use it; eta is for ddim"),
    "a fit of an adaptive solver": (
        sections(x={"solver": "rk45", "fit": "times", "nfe": [19]}),
        "curves.x: fit: solver rk45 does not use it; fit is for fitted",
    ),
    "a level told to another solver": (
        sections(x={"solver": "ddpm", "told": "fitted"}),
        "curves.x: told: solver ddpm does not use it; told is for fitted",
    ),
    "churn": (row(S_churn=1), "curves.x: S_churn: solver fitted does not use it; churn is for deterministic single"),
    "a fitted grid": (
        row(discretization="optimised"),
        "curves.x: discretization: solver fitted begins with a grid that depends on no model; use another",
    ),
    "an interval": (
        row(guidance=2, guidance_max=5),
        "curves.x: guidance_min, guidance_max: solver fitted moves its noise levels across their limits; use guidance",
    ),
    "a classifier": (
        row(guide="classifier", guidance=2),
        "curves.x: guide: solver fitted cannot differentiate a classifier's gradient; use another guide",
    ),
    "an unknown fit": (
        row(fit="everything"),
        "curves.x.fit: unknown value 'everything'; valid: both, coefficients, times",
    ),
    "a misspelt fit": (row(fit="coeficients"), "did you mean 'coefficients'?"),
    "a misspelt start": (row(start="ipmdm"), "did you mean 'ipndm'?"),
    "numbers by hand": (
        row(numbers={"sigmas": [80, 0], "told": [80], "weights": [[1, 0, 0, 0]]}),
        "curves.x.numbers: `resolve` fills this key in; leave it out",
    ),
    "a cascade": (
        sections(
            x={"solver": "fitted", "model": "half", "nfe": [4]}, y={"model": "up", "after": "x", "train_seeds": [0]}
        ),
        "curves.y.after: curve x.solver: fitted is not for stages of a cascade; use another",
    ),
    "the last stage of a cascade": (
        sections(
            x={"model": "half"}, y={"model": "up", "after": "x", "train_seeds": [0], "solver": "fitted", "nfe": [8]}
        ),
        "curves.y.solver: fitted is not for stages of a cascade; use another",
    ),
    "students": (
        row(model="student", discretization="edm", finest_steps=None),
        "curves.x.solver: model student has a student for each number of steps; use another solver",
    ),
    "a transfer from students": (
        row(fitted_model="student"),
        "curves.x.solver: model student has a student for each number of steps; use another solver",
    ),
    "a transfer from a cascade": (
        row(fitted_model="up", fitted_seed=0),
        "curves.x.solver: fitted is not for stages of a cascade; use another",
    ),
    **{
        f"{key} of another solver": (
            sections(x={"solver": "dpmpp_2m", key: value}),
            f"curves.x: {key}: nothing is fitted for solver dpmpp_2m; it is for fitted",
        )
        for key, value in {"fitted_model": "other", "fitted_seed": 0, "fitted_nfe": 4}.items()
    },
    "an unknown model": (row(fitted_model="othr"), "curves.x.fitted_model: no model 'othr'; did you mean 'other'?"),
    "a missing seed": (
        row(fitted_seed=2),
        "curves.x.fitted_seed: model edm has no training with seed 2; valid: 0, 1",
    ),
    "a seed that the other model misses": (
        row(fitted_model="other"),
        "curves.x.fitted_model: model other has no training with seed 1; valid: 0, 2",
    ),
    "other labels": (
        row(fitted_model="labelled"),
        "curves.x.fitted_model: labelled differs in labels from edm; name a model with labels: none",
    ),
    "another space": (
        row(fitted_model="latent"),
        "curves.x.fitted_model: latent differs in space from edm; name a model with space: null",
    ),
    "another resolution": (
        row(fitted_model="half"),
        "curves.x.fitted_model: half differs in resolution from edm; name a model with resolution: null",
    ),
    "a guide that the other model misses": (
        row(model="seen", fitted_model="edm", guide="snapshot", guidance=2),
        "curves.x.guide: ",
    ),
    "an average that the other model misses": (
        row(model="seen", fitted_model="edm", ema_halflife_images=700),
        "curves.x.ema_halflife_images: model edm does not track",
    ),
    "guidance that the other model cannot have": (
        row(model="labelled", fitted_model="sure", guidance=2),
        "curves.x.guidance: ",
    ),
    "a budget that pays for nothing": (
        row(model="labelled", guidance=2, fitted_nfe=1),
        "curves.x.fitted_nfe: 1 evaluations are too few; solver fitted needs 2 with guidance for one step",
    ),
    "a budget beyond the levels": (
        row(discretization="iddpm", fitted_nfe=2000),
        "curves.x.fitted_nfe: discretization iddpm: 2000 steps, but only 992 noise levels",
    ),
    "a budget of one step": (
        row(fitted_nfe=1),
        "curves.x.fitted_nfe: pays for one step, from which no other is interpolated; use more",
    ),
    "a likelihood": (
        sections() | {"likelihood": {"models": ["edm"], "solver": "fitted"}},
        "likelihood.solver: fitted has no order, and a likelihood needs a solution of the ODE; use a solver such as",
    ),
    "a posterior sampler": (
        {
            "measurements": {"noisy": {"operator": "identity", "std": 0.5}},
            "posteriors": {"dps": {"solver": "fitted"}},
        },
        "posteriors.dps.solver: fitted to sampling without a measurement; use another",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    asked, message = BAD[case]
    line = refusal(tmp_path, **asked)
    assert message in line and (message.startswith("did you mean") or line.startswith(message)), line


def test_fits_are_asked_for_the_models_of_fitted_curves(tmp_path: Path) -> None:
    asked = sections(
        gs={"solver": "fitted", "told": "fitted", "nfe": [4, 6], "method": "GS"},
        moved={"model": "other", "solver": "fitted", "fitted_model": "edm", "fitted_seed": 1, "nfe": [4]},
    )
    files = resolved(tmp_path, **asked)
    assert {name: list(part["solvers"]) for name, part in files["grids"].items() if part["solvers"]} == {
        "edm": ["gs"],
        "other": ["moved"],
    }
    assert files["grids"]["edm"]["solvers"]["gs"] == files["curves/gs"]
    assert (files["curves/gs"]["numbers"], files["curves/gs"]["fit"]) == (None, "both")
    axes = {name: files["report"]["curves"][name]["axis"] for name in ("gs", "moved")}
    assert axes == {"gs": "combinations", "moved": "combinations"}
