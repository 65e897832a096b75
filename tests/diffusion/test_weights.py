"""Weights: a selection loads its average and guide, or the error names the keys that its model lacks."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.common.errors import NotFinite, StudyError
from pipeline.common.files import content_hash
from pipeline.common.tensors import read_sealed, save_tensors, write_sealed
from pipeline.diffusion.averages import Averages, HalfLife, Power, Profile, synthesis
from pipeline.diffusion.denoiser import Denoiser, load_denoiser, save_denoiser
from pipeline.diffusion.weights import (
    Selection,
    average_file,
    classifier_file,
    content_key,
    failure,
    failure_file,
    load_snapshot,
    load_snapshots,
    main_file,
    main_files,
    save_failure,
    save_snapshot,
    snapshot_file,
    weights_for,
    with_weights,
)
from pipeline.training.row import Model

BATCH, STEPS, SEED = 8, 40, 3
MAIN = HalfLife(80, 0.5)
BESIDE: list[Profile] = [HalfLife(40, 0.5), Power(0.05), Power(0.1)]
UNTRACKED: list[Profile] = [Power(0.15), HalfLife(160, 0.5)]  # but for comparison
MARKS = [5, 10, 15, 20, 25, 30, 35, 40]  # 40, 80, ... 320 images
SNAPSHOT: dict[str, Any] = {"guide": "snapshot"}


def trained(folder: Path, *, snapshots: bool = True, beside: bool = True) -> dict[str, dict[str, Tensor]]:
    """Write the files of a 'training', a random walk of the weights. Returns the final value of each average."""
    draw = torch.Generator().manual_seed(0)
    denoiser = Denoiser(Model(channels=8, multipliers=(1,)).spec(0.5, (1, 4, 4))).requires_grad_(False)
    for parameter in denoiser.parameters():
        parameter.normal_(generator=draw)
    averages = Averages(dict(denoiser.named_parameters()), [MAIN, *BESIDE])
    untracked = Averages(dict(denoiser.named_parameters()), UNTRACKED)
    for step in range(STEPS):
        for parameter in denoiser.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw))
        averages.update(step, BATCH)
        untracked.update(step, BATCH)
        if snapshots and step + 1 in MARKS:
            save_snapshot(averages, step + 1, BATCH, snapshot_file(folder, SEED, (step + 1) * BATCH))
    files = {MAIN: main_file(folder, SEED)}
    if beside:
        files |= {profile: average_file(folder, SEED, profile) for profile in BESIDE}
    for profile, path in files.items():
        save_denoiser(with_weights(denoiser, averages.of(profile)), path)
    return {profile.name: some.of(profile) for some in (averages, untracked) for profile in some.profiles}


@pytest.fixture
def ends(tmp_path: Path) -> dict[str, dict[str, Tensor]]:
    return trained(tmp_path)


def parameters(denoiser: Denoiser) -> dict[str, Tensor]:
    return dict(denoiser.named_parameters())


def same(denoiser: Denoiser | None, expected: dict[str, Tensor]) -> bool:
    assert denoiser
    return all(torch.equal(value, expected[name]) for name, value in parameters(denoiser).items())


def fails(folder: Path, **choice: Any) -> str:
    with pytest.raises(StudyError) as caught:
        weights_for(folder, SEED, Selection(**choice))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_curve_without_a_choice_has_the_main_average(tmp_path: Path, ends: dict[str, dict[str, Tensor]]) -> None:
    weights = weights_for(tmp_path, SEED, Selection())
    assert same(weights.denoiser, ends[MAIN.name]) and weights.snapshot is None
    assert not weights.denoiser.training and not any(p.requires_grad for p in weights.denoiser.parameters())
    assert content_key(tmp_path, SEED, Selection()) == content_hash(read_sealed(tmp_path / "seed_3.safetensors"))


def test_failed_weights_are_told_from_missing_ones(tmp_path: Path, ends: dict[str, dict[str, Tensor]]) -> None:
    with pytest.raises(StudyError, match=r"seed_4.safetensors: missing; `dvc repro` trains it") as caught:
        content_key(tmp_path, 4, Selection())
    assert not isinstance(caught.value, NotFinite) and failure(tmp_path, 4) == ""
    save_failure("seed 4: no number at step 7", failure_file(tmp_path, 4))
    assert failure(tmp_path, 4) == "seed 4: no number at step 7" and failure(tmp_path, SEED) == ""
    assert main_files(tmp_path) == [main_file(tmp_path, SEED)]
    for read in (weights_for, content_key):
        for selection in (Selection(), Selection(Power(0.05)), Selection(**SNAPSHOT), Selection(guide="classifier")):
            with pytest.raises(NotFinite, match=r"^training failed: seed 4: no number at step 7$"):
                read(tmp_path, 4, selection)
    file = failure_file(tmp_path, 4)
    file.write_bytes(file.read_bytes().replace(b"step 7", b"step 8"))
    with pytest.raises(StudyError, match=rf"^{re.escape(str(file))}: not as this study wrote it") as caught:
        content_key(tmp_path, 4, Selection())
    assert not isinstance(caught.value, NotFinite)


def test_the_main_average_may_be_asked_for_by_its_half_life(tmp_path: Path, ends: dict[str, dict[str, Tensor]]) -> None:
    named = Selection(HalfLife(80, None))
    assert same(weights_for(tmp_path, SEED, named).denoiser, ends[MAIN.name])
    assert content_key(tmp_path, SEED, named) == content_key(tmp_path, SEED, Selection())


@pytest.mark.parametrize("snapshots", [True, False])
@pytest.mark.parametrize("average", [HalfLife(40, None), Power(0.05), Power(0.1)])
def test_a_tracked_average_is_its_own_file(tmp_path: Path, average: Profile, snapshots: bool) -> None:
    ends = trained(tmp_path, snapshots=snapshots)
    selection = Selection(average)
    assert same(weights_for(tmp_path, SEED, selection).denoiser, ends[average.name])
    assert content_key(tmp_path, SEED, selection) == content_hash(
        read_sealed(tmp_path / f"seed_3_{average.name}.safetensors")
    )


def test_a_tracked_average_without_a_file_is_in_the_last_snapshot(tmp_path: Path) -> None:
    ends = trained(tmp_path, beside=False)
    assert same(weights_for(tmp_path, SEED, Selection(Power(0.1))).denoiser, ends["sigma_rel_0.1"])


@pytest.mark.parametrize(
    ("average", "wanted"),
    [(Power(0.15), UNTRACKED[0]), (HalfLife(160, None), UNTRACKED[1])],
    ids=["sigma_rel", "halflife"],
)
def test_any_other_average_is_made_of_the_snapshots(
    tmp_path: Path, ends: dict[str, dict[str, Tensor]], average: Profile, wanted: Profile
) -> None:
    made = parameters(weights_for(tmp_path, SEED, Selection(average)).denoiser)
    main, expected = parameters(load_denoiser(main_file(tmp_path, SEED))), ends[wanted.name]
    off = sum(float((made[name] - expected[name]).square().sum()) for name in made)
    away = sum(float((main[name] - expected[name]).square().sum()) for name in made)
    assert 0 < off < 1e-3 * away
    # By hand, tensor by tensor.
    held = [(step, profile) for step in MARKS for profile in [MAIN, *BESIDE]]
    coefficients = synthesis(held, wanted, STEPS, BATCH).coefficients.tolist()
    files = {step: load_file(snapshot_file(tmp_path, SEED, step * BATCH)) for step in MARKS}
    for name, value in made.items():
        terms = [
            coefficient * files[step][f"{profile.name}.{name}"].double()
            for coefficient, (step, profile) in zip(coefficients, held, strict=True)
        ]
        torch.testing.assert_close(value, torch.stack(terms).sum(0).float())


def test_without_snapshots_the_keys_that_would_help_are_named(tmp_path: Path) -> None:
    trained(tmp_path, snapshots=False)
    message = fails(tmp_path, average=Power(0.15))
    assert (
        "neither sigma_rel_0.15 nor snapshots" in message
        and "add 0.15 to ema_sigma_rels" in message
        and "snapshots" in message
    )
    assert "add 70 to ema_halflives_images" in fails(tmp_path, average=HalfLife(70, None))
    assert "set snapshots in the model's row to 2 or more" in fails(tmp_path, **SNAPSHOT)


def test_an_average_that_the_snapshots_do_not_give_is_refused(
    tmp_path: Path, ends: dict[str, dict[str, Tensor]]
) -> None:
    for step in MARKS[:-1]:
        snapshot_file(tmp_path, SEED, step * BATCH).unlink()
    message = fails(tmp_path, average=Power(0.01))
    assert "%, and more than 10% is too much; add 0.01 to ema_sigma_rels" in message


@pytest.mark.parametrize(
    ("images", "expected"),
    [(None, 40), (40, 40), (20, 40), (59, 40), (60, 40), (61, 80), (320, 320), (340, 320)],
)
def test_the_nearest_snapshot_guides(
    tmp_path: Path, ends: dict[str, dict[str, Tensor]], images: int | None, expected: int
) -> None:
    weights = weights_for(tmp_path, SEED, Selection(**SNAPSHOT, guide_images=images))
    assert same(weights.denoiser, ends[MAIN.name])
    file = load_file(tmp_path / f"seed_3_snapshot_{expected}.safetensors")
    prefix = f"{MAIN.name}."
    assert same(weights.snapshot, {k.removeprefix(prefix): v for k, v in file.items() if k.startswith(prefix)})


@pytest.mark.parametrize("images", [19, 341, 10_000])
def test_a_guide_that_was_not_kept_is_refused(tmp_path: Path, ends: dict[str, dict[str, Tensor]], images: int) -> None:
    message = fails(tmp_path, **SNAPSHOT, guide_images=images)
    assert f"near {images} images" in message and "40, 80, 120, 160, 200, 240, 280, 320" in message


def test_there_is_no_guide_where_none_is_asked(tmp_path: Path) -> None:
    trained(tmp_path, snapshots=False)
    weights = weights_for(tmp_path, SEED, Selection(guide_images=40))
    assert weights.snapshot is None and weights.classifier is None


KINDS: dict[str, tuple[dict[str, Any], set[str]]] = {  # what a curve chooses, and the files that it then uses
    "main": ({}, {"main"}),
    "tracked": ({"average": Power(0.1)}, {"own"}),
    "made": ({"average": Power(0.15)}, {"main", "first", "last"}),
    "snapshot": (SNAPSHOT, {"main", "first"}),
    "another snapshot": (SNAPSHOT | {"guide_images": 320}, {"main", "last"}),
    "tracked and snapshot": (SNAPSHOT | {"average": Power(0.1)}, {"own", "main", "first"}),
    "classifier": ({"guide": "classifier"}, {"main", "classifier"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_changes_with_what_is_used_and_only_then(
    tmp_path: Path, ends: dict[str, dict[str, Tensor]], kind: str
) -> None:
    files = {
        "main": main_file(tmp_path, SEED),
        "own": average_file(tmp_path, SEED, Power(0.1)),
        "another": average_file(tmp_path, SEED, Power(0.05)),
        "first": snapshot_file(tmp_path, SEED, 40),
        "last": snapshot_file(tmp_path, SEED, 320),
        "classifier": classifier_file(tmp_path, SEED),
        "another seed": main_file(tmp_path, SEED + 1),
    }
    for name in ("classifier", "another seed"):
        save_tensors(files[name], {"weight": torch.zeros(3)}, "classifier")
    choice, used = KINDS[kind]

    def key_of() -> str:
        return content_key(tmp_path, SEED, Selection(**choice))

    key = key_of()
    changed = set()
    for name, path in files.items():
        content, plain = path.read_bytes(), read_sealed(path)
        write_sealed(path, plain[:-1] + bytes([plain[-1] ^ 1]))
        if key_of() != key:
            changed.add(name)
        path.write_bytes(content)
    assert changed == used and key_of() == key


def test_different_choices_have_different_keys(tmp_path: Path, ends: dict[str, dict[str, Tensor]]) -> None:
    save_tensors(classifier_file(tmp_path, SEED), {"weight": torch.zeros(3)}, "classifier")
    choices: list[dict[str, Any]] = [
        {},
        {"average": Power(0.1)},
        {"average": Power(0.15)},
        {"average": Power(0.151)},
        {"average": HalfLife(70, None)},
        SNAPSHOT,
        SNAPSHOT | {"guide_images": 80},
        SNAPSHOT | {"average": Power(0.15)},
        {"guide": "classifier"},
    ]
    keys = {content_key(tmp_path, SEED, Selection(**choice)) for choice in choices}
    assert len(keys) == len(choices)


def test_a_snapshot_says_what_it_holds(tmp_path: Path, ends: dict[str, dict[str, Tensor]]) -> None:
    found = load_snapshot(snapshot_file(tmp_path, SEED, 80))
    assert (found.step, found.batch, found.images) == (10, BATCH, 80) and found.profiles == (MAIN, *BESIDE)
    assert [snapshot.images for snapshot in load_snapshots(tmp_path, SEED)] == [step * BATCH for step in MARKS]
    assert load_snapshots(tmp_path, SEED + 1) == []


def test_only_main_averages_are_models_of_their_own(tmp_path: Path, ends: dict[str, dict[str, Tensor]]) -> None:
    for seed in (10, 30):
        save_denoiser(load_denoiser(main_file(tmp_path, SEED)), main_file(tmp_path, seed))
    assert [path.name for path in main_files(tmp_path)] == [f"seed_{seed}.safetensors" for seed in (10, 3, 30)]


def test_other_weights_leave_a_denoiser_and_its_buffers_alone(
    tmp_path: Path, ends: dict[str, dict[str, Tensor]]
) -> None:
    denoiser = load_denoiser(main_file(tmp_path, SEED)).train()
    denoiser.register_buffer("frequencies", torch.arange(3.0))
    other = with_weights(denoiser, ends["sigma_rel_0.1"])
    assert same(denoiser, ends[MAIN.name]) and denoiser.training
    assert same(other, ends["sigma_rel_0.1"]) and not other.training
    assert torch.equal(other.get_buffer("frequencies"), torch.arange(3.0))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def foreign(path: Path) -> None:
    save_tensors(path, {"weight": torch.zeros(3)}, "spec")


def misshapen(path: Path) -> None:
    snapshot = load_snapshot(path)
    weights = {name: torch.zeros(1) for name in parameters(load_denoiser(main_file(path.parent, SEED)))}
    save_snapshot(Averages(weights, snapshot.profiles), snapshot.step, snapshot.batch, path)


def renamed(path: Path) -> None:
    snapshot = load_snapshot(path)
    save_snapshot(Averages({"weight": torch.zeros(1)}, snapshot.profiles), snapshot.step, snapshot.batch, path)


@pytest.mark.parametrize("harm", [cut, foreign, misshapen, renamed])
@pytest.mark.parametrize("choice", [SNAPSHOT, {"average": Power(0.15)}], ids=["guide", "average"])
def test_a_broken_snapshot_is_named(
    tmp_path: Path, ends: dict[str, dict[str, Tensor]], harm: Callable[[Path], None], choice: dict[str, Any]
) -> None:
    harm(snapshot_file(tmp_path, SEED, 40))
    assert re.search(r"seed_3_snapshot_40\.safetensors: not (a snapshot|as this study)", fails(tmp_path, **choice))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    for choice in ({}, SNAPSHOT, {"average": Power(0.1)}):
        assert "seed_3.safetensors: missing; `dvc repro` trains it" in fails(tmp_path, **choice)
    with pytest.raises(StudyError, match="missing"):
        content_key(tmp_path, SEED, Selection())
    with pytest.raises(StudyError, match="missing"):
        load_snapshot(tmp_path / "seed_3_snapshot_40.safetensors")
