"""Likelihoods of trained models: what is measured for each training, part and budget, and failures."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common.devices import CPU
from pipeline.data.dataset import Dataset
from pipeline.data.row import Data
from pipeline.data.sources import load
from pipeline.diffusion.exact import Gaussian
from pipeline.diffusion.weights import failure_file, save_failure
from pipeline.evaluation import likelihoods
from pipeline.evaluation.likelihood import Prior
from pipeline.evaluation.likelihoods import (
    COLUMNS,
    Likelihood,
    Line,
    measure_model,
    normality,
    parts,
    prior_of,
    return_trip,
    summary_of,
)
from pipeline.evaluation.loading import LoadedModel
from pipeline.params import Sampler
from pipeline.sampling.guidance import ByClass, guided
from pipeline.training.row import Model
from tests.evaluation.small import CLASSES, MEANS, Conditional, Trained, broken

DIGITS = load(Data(limit=260))
PARTS = [
    Dataset(DIGITS.images[:200], DIGITS.labels[:200] if DIGITS.labels is not None else None, DIGITS.classes),
    Dataset(DIGITS.images[200:], DIGITS.labels[200:] if DIGITS.labels is not None else None, DIGITS.classes),
]
MODEL = Model(train_seeds=(0, 1))


def row(**keys: Any) -> Likelihood:
    choices = {"models": ("edm",), "images": 20, "trace": "hutchinson", "nfe": (5, 9), "bound_draws": 64} | keys
    return Likelihood(**choices).settled((1, 8, 8))


def measured(
    trained: Trained, asked: Likelihood, heldout: bool = True, **keys: Any
) -> tuple[list[Line], dict[str, Any]]:
    both = parts(asked, PARTS[0], PARTS[1] if heldout else None)
    return measure_model("edm", asked, MODEL, trained.model, both, Prior(), **keys)


def test_each_training_part_and_budget_has_a_line(trained: Trained) -> None:
    lines, summary = measured(trained, row())
    assert [(line.train_seed, line.part, line.steps) for line in lines] == [
        (seed, part, steps) for seed in (0, 1) for part in ("train", "heldout") for steps in (5, 9)
    ]
    assert {(line.nfe, line.products, line.images) for line in lines} == {(5, 5, 20), (9, 9, 20)}
    assert all(float(line.bits) > 0 and float(line.se) > 0 and 0 < float(line.noise_p) <= 1 for line in lines)
    assert list(vars(lines[0])) == COLUMNS
    assert [gap["steps"] for gap in summary["gaps"]] == [5, 9]
    held, train = (
        sum(float(line.bits) for line in lines if (line.part, line.steps) == (part, 9)) / 2
        for part in ("heldout", "train")
    )
    assert summary["gaps"][1]["gap"] == pytest.approx(held - train, abs=1e-3)
    assert [(bound["train_seed"], bound["part"]) for bound in summary["bounds"]] == [(0, "heldout"), (1, "heldout")]


def test_without_held_out_images_there_is_no_gap(trained: Trained) -> None:
    lines, summary = measured(trained, row(), heldout=False)
    assert {line.part for line in lines} == {"train"} and summary["gaps"] == []
    assert [bound["part"] for bound in summary["bounds"]] == ["train", "train"]


def test_results_do_not_depend_on_workers_or_batches(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measured(trained, row(), workers=0)
    assert measured(trained, row(), workers=2) == first
    monkeypatch.setattr(likelihoods, "BATCH", 7)
    for one, other in zip(measured(trained, row())[0], first[0], strict=True):
        assert float(one.bits) == pytest.approx(float(other.bits), abs=1e-4)


def test_other_seeds_and_traces_give_about_the_same(trained: Trained) -> None:
    values = [float(measured(trained, row(**keys))[0][1].bits) for keys in ({}, {"seed": 1}, {"trace": "exact"})]
    assert len(set(values)) == 3 and max(values) - min(values) < 0.5
    exact = measured(trained, row(trace="exact"))[0][1]
    assert exact.products == 9 * 64


def test_a_training_that_answers_nan_fails_alone(trained: Trained, tmp_path: Path) -> None:
    lines, summary = measured(broken(trained, tmp_path, 1), row())
    failed = [line for line in lines if line.failed]
    assert {line.train_seed for line in failed} == {1} and len(failed) == 4
    assert all(line.bits == line.nfe == "" and "not finite" in line.failed for line in failed)
    assert summary["gaps"] == [] and [bound["train_seed"] for bound in summary["bounds"]] == [0]


def test_a_model_whose_trainings_all_failed_has_no_lines(tmp_path: Path) -> None:
    for seed in (0, 1):
        save_failure("it diverged", failure_file(tmp_path, seed))
    both = parts(row(), *PARTS)
    assert measure_model("edm", row(), MODEL, tmp_path, both, Prior()) == ([], {"gaps": [], "bounds": []})


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_images_are_told_with_their_own_classes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, guidance: float
) -> None:
    """Of three images with a little noise each, one per class, each is far more likely with its own class."""
    exact = Conditional(CLASSES, 0.05)
    asked = row(guidance=guidance, trace="exact", nfe=(19,), sigma_min=0.05)

    def of_labels(labels: Tensor | None) -> Any:
        return guided(asked.build_guidance(), exact, labels)

    loaded = LoadedModel(exact, lambda low: ByClass(CLASSES, of_labels), CPU, asked.curve("edm", "data"))  # type: ignore[arg-type]
    monkeypatch.setattr(likelihoods, "load_model", lambda *arguments, **keys: loaded)
    images = ((MEANS.repeat(8, 1, 1, 1) + 1) * 127.5).round().to(torch.uint8)
    right, wrong = torch.arange(24) % 3, (torch.arange(24) + 1) % 3
    found = []
    for labels in (right, wrong):
        both = parts(asked, Dataset(images, labels, ("a", "b", "c")), None)
        lines, summary = measure_model("edm", asked, Model(labels="classes", train_seeds=(0,)), tmp_path, both, Prior())
        found.append(float(lines[0].bits))
        assert lines[0].nfe == (19 if guidance == 1 else 18), "guidance calls the network twice"
        assert bool(summary["bounds"]) == (guidance == 1), "guided answers are no means, so they have no bound"
    assert found[1] > found[0] + 1


def test_the_way_back_ends_where_it_began() -> None:
    z = 80 * torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampler, gaussian = Sampler(solver="rk4"), Gaussian(0.0, 0.5)
    x = return_trip(gaussian, z, sampler, 120)
    exact = gaussian.flow(z, torch.tensor(80.0), torch.tensor(0.002))
    assert (x - exact).abs().max() < 1e-3


def test_the_test_of_normality_holds_its_level_and_has_power() -> None:
    draws = [torch.randn(60, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(60)]
    rejected = sum(normality(z, seed) < 0.05 for seed, z in enumerate(draws))
    assert rejected <= 8, "of 60 at 5%, more than 7 with a probability of 1%"
    assert normality(draws[0] * 1.5, 0) < 0.01
    assert normality(draws[0] + 0.5, 0) < 0.01


def test_priors_are_those_of_the_noise_or_of_the_data() -> None:
    summary = {"mean": 0.3, "sigma_data": 0.5}
    assert prior_of(row(), summary) == Prior()
    assert prior_of(row(prior="moments"), summary) == Prior(0.3, 0.25)


def test_conventions_are_kept_with_the_results() -> None:
    asked = row()
    about = summary_of(asked, parts(asked, *PARTS))
    assert about["offset_bits"] == pytest.approx(math.log2(127.5)) and about["dimensions"] == 64
    assert about["images"] == {"train": 20, "heldout": 20}
    assert Likelihood(**about["row"]) == asked
