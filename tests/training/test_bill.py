"""The bill of a training: what networks really see, with and without gradients, and what a total budget leaves."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.diffusion.denoiser import new_denoiser
from pipeline.params.resolve import resolve
from pipeline.params.study import Study
from pipeline.training.batches import Examples
from pipeline.training.bill import Bill, bills, own_bill, teacher_bill
from pipeline.training.loop import advance, train_seeds
from pipeline.training.objectives import OBJECTIVES
from pipeline.training.pairs import REFLOW_BATCH, reflow_pairs
from pipeline.training.row import Model
from pipeline.training.run import Run
from tests.training.small import DATA, IMAGES, SHAPE, SMALL

BATCH = SMALL["batch"]
CHOICES: list[dict[str, Any]] = [
    *({"objective": name} for name in OBJECTIVES),
    *({"objective": "consistency_distillation", "teacher_step": step} for step in ("euler", "heun")),
    {"objective": "consistency_distillation", "target_decay": 0.9},
    {"objective": "consistency_training", "target_decay": 0.9},
    {"objective": "progressive", "first_steps": 2},
    {"objective": "progressive", "grid": "log_snr", "micro_batch": 3},
    {"weighting": "uncertainty", "micro_batch": 5},
]


def counting(network: nn.Module, seen: Counter[str]) -> None:
    """Let a network count the images that it is called with, those for a gradient by themselves."""

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen["with" if output.requires_grad else "without"] += len(inputs[0])

    network.register_forward_hook(count)


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_a_bill_is_what_the_networks_see(choices: dict[str, Any]) -> None:
    row = Model(**{**SMALL, "images": 2 * 4 * BATCH, **choices})
    spec, seen = row.spec(0.5, SHAPE), Counter[str]()
    teacher = new_denoiser(Model(**SMALL).spec(0.5, SHAPE), 1) if OBJECTIVES[row.objective].teacher else None
    for part in row.rounds:
        run = Run(spec, part, 0, teacher=teacher)
        for denoiser in filter(None, (run.denoiser, run.teacher, run.target)):
            counting(denoiser.network, seen)
        for _ in range(part.steps):
            advance(run, Examples(IMAGES))
    found = own_bill(row)
    assert (found.images, found.without_gradient) == (seen["with"], seen["without"])
    assert found.images == row.images  # which the batch and the rounds divide
    assert found.evaluations == seen.total() and found.passes == 3 * seen["with"] + seen["without"]


@pytest.mark.parametrize("count", [1, REFLOW_BATCH + 5])
def test_the_pairs_of_reflow_are_evaluations_of_its_teacher(count: int) -> None:
    flow = Model(**SMALL, parametrization="flow", images=10 * BATCH)
    row, seen = flow.model_copy(update={"pairs": "reflow", "reflow_pairs": count, "teacher": flow}), Counter[str]()
    teacher = new_denoiser(flow.spec(0.5, SHAPE), 0)
    counting(teacher.network, seen)
    reflow_pairs(teacher, count, 0)
    assert own_bill(row) == Bill(10 * BATCH, seen["without"]) and not seen["with"]
    assert bills(row) == {"own": own_bill(row), "teacher": own_bill(flow), "both": own_bill(row) + own_bill(flow)}


def rows(**models: dict[str, Any]) -> dict[str, Model]:
    """The model rows of a study with small networks, resolved."""
    defaults = {key: list(value) if isinstance(value, tuple) else value for key, value in SMALL.items()}
    study = Study(
        study={"name": "t"},
        defaults={"models": {**defaults, "images": 80, "train_seeds": [0, 1], "reflow_pairs": 40}},
        models=models,
        curves={"first": {"model": next(iter(models))}},
        sets={},
    )
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # choices without effect, whose search takes longest, are not the matter
        patch.setattr("pipeline.params.resolve._warnings", lambda *of, **more: ())
        return {name: entry.row for name, entry in resolve(study).models.items()}


FLOW = {"parametrization": "flow", "noise": "flow_uniform"}
REFLOW = {"base": "flow", "pairs": "reflow"}
CD = {"base": "edm", "objective": "consistency_distillation"}
TOTAL = {"budget": "total", "images": 160}
STUDENTS: dict[str, tuple[dict[str, dict[str, Any]], int]] = {  # the study's models, and what the last one trains on
    "own": ({"x": {"base": "edm", "objective": "easy_consistency", "images": 160}}, 160),
    "total": ({"x": {**CD, **TOTAL}}, 80),
    "rounds": ({"x": {"base": "edm", "objective": "progressive", "first_steps": 4, **TOTAL, "images": 176}}, 96),
    "rounds in parts of a batch": ({"x": {"base": "edm", "objective": "progressive", "first_steps": 4, **TOTAL}}, 72),
    "reflow": ({"flow": FLOW, "x": {**REFLOW, **TOTAL, "images": 120}}, 40),
    "reflow of a reflow": (
        {"flow": FLOW, "re": {**REFLOW, **TOTAL}, "x": {"base": "re", "pairs": "reflow", "images": 200}}, 40
    ),
    "reflow of a reflow of its own length": (
        {"flow": FLOW, "re": REFLOW, "x": {**REFLOW, "base": "re", **TOTAL, "images": 200}}, 40
    ),
    "an heir": ({"cd": {**CD, **TOTAL}, "x": {"base": "cd", "distance": "squared"}}, 80),
    "without a teacher": ({"x": {**TOTAL, "objective": "consistency_training"}}, 160),
}  # fmt: skip


@pytest.mark.parametrize("case", STUDENTS)
def test_a_total_budget_is_trained_without_the_teachers_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """The progress of both seeds, which the bar adds up to its total, and the training curve count the same images."""
    monkeypatch.chdir(tmp_path)
    models, images = STUDENTS[case]
    row = rows(edm={}, **models)["x"]
    progress: list[int] = []
    trained = train_seeds(row, DATA, IMAGES, progress.append, workers=1)
    assert sum(progress) == 2 * images == 2 * row.seen_images
    assert [run.curve[-1]["images"] for run in trained] == [images, images] == 2 * [own_bill(row).images]
    left = 80 * (case != "without a teacher") * (1 + ("of a reflow" in case))
    assert teacher_bill(row).images == (left if row.teacher else 0)
    if row.budget == "total" and "parts" not in case:
        assert own_bill(row).images + teacher_bill(row).images == row.images == row.total_images


def test_the_schedules_of_a_total_budget_end_with_the_training() -> None:
    """A row with a total budget trains as one whose own images are what the teacher leaves."""
    total, own = (rows(edm={}, x=CD | {"snapshots": 2} | more)["x"] for more in (TOTAL, {"images": 80}))
    assert total.steps == own.steps == 10 and total.longest_average_images == own.longest_average_images
    u = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    for step in range(total.steps):
        for one, other in zip(total.levels(u, step), own.levels(u, step), strict=True):
            assert torch.equal(one, other)
