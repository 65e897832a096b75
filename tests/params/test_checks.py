"""Rows that do not go together, or not with the data, are refused in one line."""

from pathlib import Path
from typing import Any

import pytest

from tests.params.minimal import CLASSES, FLOW, REFLOW, curves, models, refusal, resolved

CHAIN = {"parametrization": "ddpm", "noise": "ddpm_uniform", "learned_variance": "hybrid"}
PROGRESSIVE = {"objective": "progressive"}
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
    "augmented student": (
        {"x": {"base": "edm", "objective": "progressive", "augment": 0.1}},
        "models.x.augment: ",
        "from the weights of base edm, which has 0.0; use the same here",
    ),
    "augmented teacher": (
        {"m": {"augment": 0.1}, "x": {"base": "m", "objective": "easy_consistency", "augment": 0}},
        "models.x.augment: ",
        "from the weights of base m, which has 0.1; use the same here",
    ),
    "reflow without base": ({"flow": FLOW, "x": {**FLOW, "pairs": "reflow"}}, "models.x.pairs: ", "as base"),
    "reflow on a base that is no flow": (
        {"x": {"base": "edm", **FLOW, "pairs": "reflow"}}, "models.x.pairs: ", "but base edm has parametrization edm"
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
    "reflow of a student": (
        {"flow": FLOW, "y": {"base": "flow", **PROGRESSIVE}, "x": {**REFLOW, "base": "y", "objective": "denoising"}},
        "models.x.pairs: ",
        "reflow learns from a denoiser, but base y has objective progressive",
    ),
    "a total budget for the teacher alone": (
        {"flow": FLOW, "x": {**REFLOW, "budget": "total"}},
        "models.x.images: ",
        "140000 in all, of which the teacher takes 140000; use at least 140128, or budget: own",
    ),
    "a total budget for two teachers": (
        {"flow": FLOW, "y": REFLOW, "x": {"base": "y", "pairs": "reflow", "budget": "total", "images": 200_000}},
        "models.x.images: ",
        "200000 in all, of which the teacher takes 280000; use at least 280128, or budget: own",
    ),
    "a total budget that leaves less than the rounds take": (
        {"x": {"base": "edm", **PROGRESSIVE, "budget": "total", "images": 140_511}},
        "models.x.images: ",
        "140511 in all, of which the teacher takes 140000; use at least 140512, or budget: own",
    ),
    "a total budget that leaves fewer steps than snapshots": (
        {"flow": FLOW, "x": {**REFLOW, "budget": "total", "images": 141_000, "snapshots": 10}},
        "models.x.images: ",
        "use at least 141280, or budget: own",
    ),
    "mode_scale too low": ({"x": {"mode_scale": -1.01}}, "models.x.mode_scale: ", "greater than or equal to -1"),
    "mode_scale too high": ({"x": {"noise": "mode", "mode_scale": 1.8}}, "models.x.mode_scale: ", "equal to 1.75"),
    "a variance without a chain": (
        {"x": {"learned_variance": "hybrid"}},
        "models.x: ",
        "needs parametrization ddpm with noise ddpm_uniform or parametrization iddpm with noise iddpm_uniform, not edm",
    ),
    "a variance on another chain's noise": (
        {"x": {**CHAIN, "noise": "vp_uniform"}}, "models.x: ", "not ddpm with vp_uniform; use none"
    ),
    "a variance of dependent pairs": (
        {"x": {**CHAIN, "pairs": "optimal_transport"}}, "models.x: ", "for pairs independent, not optimal_transport"
    ),
    "a variance of points": ({"x": {**CHAIN, "network": "mlp"}}, "models.x: ", "mlp is for points; use none"),
    "an unknown way to learn it": (
        {"x": {**CHAIN, "learned_variance": "hybird"}}, "models.x.learned_variance: ", "did you mean 'hybrid'?"
    ),
    "augment always": ({"x": {"augment": 1}}, "models.x.augment: ", "less than 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_a_mistake_in_a_training_is_one_line(tmp_path: Path, case: str) -> None:
    rows, place, cause = BAD_TRAINING[case]
    message = refusal(tmp_path, **models(**rows))
    assert message.startswith(place) and cause in message


def test_a_teacher_in_the_defaults_is_one_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, **{"defaults": {"models": {"teacher": {}}}})
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
def test_values_at_their_limits_are_valid(tmp_path: Path, row: dict[str, Any]) -> None:
    written = resolved(tmp_path, **models(x=row))["models/x"]
    assert {key: written[key] for key in row} == row


@pytest.mark.parametrize("row", [{"labels": "classes"}, {"classifier_images": 1}], ids=str)
def test_classes_are_refused_without_labels(tmp_path: Path, row: dict[str, Any]) -> None:
    message = refusal(tmp_path, data={"labels": False}, **models(x=row))
    assert message.startswith(f"models.x.{next(iter(row))}: needs classes, but data.labels is false")


@pytest.mark.parametrize("threshold", ["static", "dynamic"])
def test_thresholding_of_points_is_refused(tmp_path: Path, threshold: str) -> None:
    points = {"data": {"source": "checkerboard"}, "features": {"extractor": "coordinates"}}
    rows = {
        "models": {"m": {"network": "mlp"}},
        "curves": {"m": {"model": "m"}, "x": {"model": "m", "threshold": threshold}},
    }
    message = refusal(tmp_path, **points, **rows)
    assert message == "curves.x.threshold: only images can be thresholded, and checkerboard are points; use none"


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
    "a variance that is not learned": (
        CHAIN | {"learned_variance": "none"}, {"solver": "ddpm", "variance": "learned"},
        "curves.x.variance", "model m does not learn it; set learned_variance in its row, or use beta",
    ),
    "a learned variance of another solver": (CHAIN, {"variance": "learned"}, "curves.x", "variance is for ddpm"),
    "a row to be like": ({"like": {}}, {}, "models.m.like", "`resolve` fills"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CHOICES)
def test_a_curve_that_its_model_does_not_allow_is_one_line(tmp_path: Path, case: str) -> None:
    model, row, place, cause = BAD_CHOICES[case]
    rows = {"edm": {}, "f": FLOW, "m": model}
    message = refusal(tmp_path, models=rows, **curves(x={"model": "m", **row}))
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
        (CHAIN, {"solver": "ddpm", "variance": "learned"}),
        (CHAIN | {"parametrization": "iddpm", "noise": "iddpm_uniform"}, {"solver": "ddpm", "variance": "learned"}),
        (CHAIN | CLASSES, {"solver": "ddpm", "variance": "learned", "guidance": 2}),
    ],
    ids=str,
)
def test_a_curve_that_its_model_allows_is_valid(tmp_path: Path, model: dict[str, Any], row: dict[str, Any]) -> None:
    study = {"models": {"edm": {}, "m": model}} | curves(x={"model": "m", **row})
    written = resolved(tmp_path, **study)["curves/x"]
    assert {key: written[key] for key in row} == row


@pytest.mark.parametrize(
    ("row", "cause"),
    [({}, "network: unet is for images"), ({"network": "mlp", "flip": 0.5}, "flip: only images can be mirrored")],
)
def test_points_refuse_choices_for_images(tmp_path: Path, row: dict[str, Any], cause: str) -> None:
    points = {"data": {"source": "spiral"}, "features": {"extractor": "coordinates"}}
    message = refusal(tmp_path, models={"edm": row}, **points)
    assert message.startswith(f"models.edm.{cause}") and "spiral are points" in message


def test_a_teacher_needs_label_dropout(tmp_path: Path) -> None:
    flow = {**FLOW, **CLASSES, "label_dropout": 0}
    rows = models(flow=flow, x={"base": "flow", "pairs": "reflow", "labels": "none"})
    message = refusal(tmp_path, **rows)
    assert message.startswith("models.x.pairs: ") and "without labels" in message


def test_a_student_may_have_another_dropout_and_another_augmentation(tmp_path: Path) -> None:
    """Neither is part of the weights, as long as both networks are told about augmentations."""
    teacher, student = {"augment": 0.12, "dropout": 0.13}, {"augment": 0.05, "dropout": 0.2}
    rows = models(m=teacher, x={"base": "m", "objective": "easy_consistency", **student})
    row = resolved(tmp_path, **rows)["models/x"]
    assert (row["dropout"], row["teacher"]["dropout"], row["augment"]) == (0.2, 0.13, 0.05)
