"""A curve row: its weights, its cells, the pairs of their seeds, and the hash of its sampler."""

from typing import Any

import pytest

from pipeline.common.files import SHORT_HASH, content_hash
from pipeline.diffusion.averages import HalfLife, Power
from pipeline.diffusion.weights import Selection
from pipeline.evaluation.curve import Curve, seed_pairs
from pipeline.sampling.row import Sampler

BESIDE = ("labels", "precision", "compile", "guide_images", "ema_halflife_images", "ema_sigma_rel")

SELECTIONS: list[tuple[dict[str, Any], Selection]] = [
    ({}, Selection()),
    ({"guidance": 2.0}, Selection()),
    ({"guide": "snapshot"}, Selection()),
    ({"guide": "snapshot", "guidance": 2.0}, Selection(guide="snapshot")),
    ({"guide": "snapshot", "guidance": 0.0, "guide_images": 40}, Selection(guide="snapshot", guide_images=40)),
    ({"guide": "classifier", "guidance": 0.0}, Selection()),
    ({"guide": "classifier", "guidance": 1.0}, Selection(guide="classifier")),
    ({"ema_halflife_images": 40}, Selection(HalfLife(40, None))),
    ({"ema_sigma_rel": 0.1}, Selection(Power(0.1))),
]


@pytest.mark.parametrize(("keys", "selection"), SELECTIONS, ids=str)
def test_a_curve_selects_an_average_and_a_guide_that_has_an_effect(keys: dict[str, Any], selection: Selection) -> None:
    assert Curve(model="edm", **keys).weights() == selection


CHANGES: list[dict[str, Any]] = [
    {"rho": 3},
    {"solver": "euler"},
    {"S_churn": 1},
    {"sigma_max": 50},
    {"guidance": 2},
    {"labels": "none"},
    {"precision": "bfloat16"},
    {"compile": "default"},
    {"guide_images": 40},
    {"ema_halflife_images": 40},
    {"ema_sigma_rel": 0.1},
]


def test_the_hash_of_a_sampler_changes_with_every_choice_of_samples_alone() -> None:
    hashes = [Curve(model="edm", **keys).sampler_hash for keys in [{}, *CHANGES]]
    assert len(set(hashes)) == len(hashes) and {len(text) for text in hashes} == {SHORT_HASH}
    others = {"nfe": (5,), "samples": 50, "batch": 64, "seeds": ((0, 7),), "method": "EDM"}
    others |= {"train_seeds": (3,), "sample_seeds": (7,)}
    for key, value in others.items():
        assert Curve(model="edm", **{key: value}).sampler_hash == hashes[0], key
    assert Curve(model="another").sampler_hash == hashes[0]


def test_the_hash_of_a_sampler_is_that_in_committed_timings() -> None:
    """timings.csv has hashes of these values of the resolved row; their order does not matter."""
    curve = Curve(model="edm", sigma_max=50, nfe=(3,)).filled()
    row = curve.model_dump(mode="json")
    keys = [key for key in (*Sampler.model_fields, *BESIDE) if key != "nfe"]
    assert curve.sampler_hash == content_hash({key: row[key] for key in keys})[:SHORT_HASH]


def test_budgets_of_equal_steps_share_a_cell() -> None:
    curve = Curve(model="edm", nfe=(5, 3, 4), seeds=((0, 0), (1, 1)))
    assert curve.step_counts == [2, 3]
    assert curve.cells() == [(2, (0, 0)), (2, (1, 1)), (3, (0, 0)), (3, (1, 1))]


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
def test_seeds_are_paired_one_to_one(train: tuple, sample: tuple, pairs: list) -> None:
    assert seed_pairs(train, sample) == pairs
