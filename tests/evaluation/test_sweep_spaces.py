"""Curves in latents and over cascades: what fails fails alone, every call counts, and each choice has its own cells."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from pipeline.common.errors import StudyError
from pipeline.common.threads import in_turns, side_by_side
from pipeline.data.row import Data
from pipeline.data.sources import load
from pipeline.diffusion.space import Space
from pipeline.diffusion.weights import failure_file, main_file, save_failure
from pipeline.evaluation import sweep
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.fits import Fits
from pipeline.evaluation.sweep import measure_curve
from pipeline.params.resolve import resolve
from pipeline.params.study import Study
from pipeline.sampling.cascade import Conditioned
from pipeline.training.autoencoder_row import AutoencoderRow
from pipeline.training.loop import train
from pipeline.training.row import Model
from pipeline.training.spaces import encoded, space_of, train_autoencoders
from pipeline.training.trained import save_models
from tests.evaluation.small import SAMPLES, Trained, broken, curve, same

SHAPE = (1, 8, 8)
HALF = AutoencoderRow(kind="pca", factor=2, channels=2)
SMALL: dict[str, Any] = {"channels": 8, "multipliers": (1,), "images": 20 * 16, "batch": 16, "warmup_images": 32}
MODELS: dict[str, dict[str, Any]] = {
    "latents": {"space": "half", "autoencoder": HALF},
    "small": {"resolution": 4},
    "up": {"upsampler": {"from": 4}},
    "blurred": {"upsampler": {"from": 4, "augmentation": "blur", "strength": 2}},
}

pytestmark = pytest.mark.usefixtures("empty_cache")


class Made(NamedTuple):
    """The folders of MODELS lie side by side in `models`; spaces: of latents and of the small images."""

    models: Path
    spaces: dict[str, Space]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Models of two seeds, trained briefly on one thread."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        [found] = side_by_side([partial(make, folder)])
    return found


def make(folder: Path) -> Made:
    dataset = load(Data(limit=200))
    images, sigma_data = dataset.images, dataset.summary()["sigma_data"]
    half = train_autoencoders({"half": HALF}, images, lambda seen: None)["half"].autoencoder
    spaces = {
        "latents": replace(space_of(images, sigma_data, autoencoder=half), content="half"),
        "small": space_of(images, sigma_data, resolution=4),
    }
    for name, keys in MODELS.items():
        row, space = Model(**SMALL, **keys), spaces.get(name, space_of(images, sigma_data))
        spec, x0 = row.spec(space.sigma_data, SHAPE), encoded(space, images)
        save_models(in_turns([train(row, spec, x0, seed) for seed in (0, 1)]), folder / name)
    return Made(folder, spaces)


def cascade(first: dict[str, Any] | None = None, **keys: Any) -> Curve:
    """A resolved curve row of `up` after `small`, as a stage reads it."""
    shared = {"samples": SAMPLES, "batch": 16, "sample_seeds": [0, 1]}
    rows = {
        "low": shared | {"model": "small"} | (first or {}),
        "both": shared | {"model": "up", "after": "low", "nfe": [6, 18]} | keys,
    }
    models: dict[str, Any] = {
        name: keys | {"train_seeds": [0, 1]} for name, keys in MODELS.items() if name != "latents"
    }
    study = Study(study={"name": "t"}, models={"edm": {"train_seeds": [0, 1]}} | models, curves=rows)
    return Curve(**json.loads(json.dumps(resolve(study).files()["curves/both"])))


@pytest.fixture
def of_cascade(trained: Trained, made: Made) -> Trained:
    return trained._replace(model=made.models / "up", fits=Fits())


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of every set of samples that is generated from here on."""
    calls: list[int] = []
    generate = sweep.generate

    def counted(*arguments: Any) -> Iterator[tuple[Tensor, int]]:
        calls.append(arguments[3])
        return generate(*arguments)

    monkeypatch.setattr(sweep, "generate", counted)
    return calls


def copied(made: Made, folder: Path) -> Path:
    """Copies of the folders of all models."""
    for path in made.models.glob("*/seed_*.safetensors"):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / path.parent.name / path.name).write_bytes(path.read_bytes())
    return folder


# Latents.


def in_latents(space: Space, decoder: nn.Module, content: str) -> Space:
    """The space with another decoder."""
    other = space.on(torch.device("cpu"))
    assert other.autoencoder
    changed = type(other.autoencoder)(other.autoencoder.spec, (other.autoencoder.encoder, decoder))
    changed.shift.copy_(other.autoencoder.shift)
    changed.scale.copy_(other.autoencoder.scale)
    return replace(other, autoencoder=changed.eval(), content=content)


class Limited(nn.Module):
    """A decoder that answers NaN if a latent is farther out than `largest`, as one whose values overflow."""

    def __init__(self, decoder: nn.Module, largest: float) -> None:
        super().__init__()
        self.decoder, self.largest, self.seen = decoder, largest, list[float]()

    def forward(self, z: Tensor) -> Tensor:
        self.seen.append(float(z.abs().max()))
        x: Tensor = self.decoder(z)
        return x * (torch.nan if self.seen[-1] > self.largest else 1.0)


def test_samples_of_latents_are_decoded_and_measured_as_images(trained: Trained, made: Made) -> None:
    latents = trained._replace(model=made.models / "latents", fits=Fits())
    cells = measure_curve(curve(), *latents, workers=1, space=made.spaces["latents"])
    again = measure_curve(curve(batch=64), *latents, workers=2, space=made.spaces["latents"])
    assert [(c.steps, c.nfe, c.failed) for c in cells] == [(2, 3, "")] * 2 + [(3, 5, "")] * 2
    for cell, other in zip(cells, again, strict=True):
        assert cell.images.shape[1:] == SHAPE and cell.images.dtype == torch.uint8
        assert torch.equal(cell.images, other.images)  # whatever the batch


def test_samples_of_a_resolution_are_enlarged(trained: Trained, made: Made) -> None:
    small = trained._replace(model=made.models / "small", fits=Fits())
    [cell, _] = measure_curve(curve(nfe=[3]), *small, workers=1, space=made.spaces["small"])
    assert not cell.failed and cell.images.shape[1:] == SHAPE


def test_a_decoder_that_answers_nan_fails_its_own_cells_alone(trained: Trained, made: Made) -> None:
    latents, space, row = (
        trained._replace(model=made.models / "latents", fits=Fits()),
        made.spaces["latents"],
        curve(batch=64),
    )
    assert space.autoencoder
    good = Limited(space.autoencoder.decoder, float("inf"))
    cells = measure_curve(row, *latents, workers=1, space=in_latents(space, good, "good"))
    assert len(good.seen) == len(cells) == 4 and not any(cell.failed for cell in cells)
    order = [2, 3, 0, 1]  # the longest first
    *_, second, most = sorted(good.seen)
    bad = in_latents(space, Limited(space.autoencoder.decoder, (second + most) / 2), "bad")
    found = measure_curve(row, *latents, workers=1, space=bad)
    [failed] = [cell for cell in found if cell.failed]
    assert failed is found[order[good.seen.index(most)]]
    assert failed.failed == "the decoder's answer is not finite"
    assert (failed.nfe, failed.metrics, len(failed.images)) == (row.evaluations(failed.steps), [], 0)
    assert all(torch.equal(a.images, b.images) for a, b in zip(cells, found, strict=True) if not b.failed)
    assert len(list(Path(".cache/cells").iterdir())) == 7


def test_another_decoder_has_cells_of_its_own(trained: Trained, made: Made, generated: list[int]) -> None:
    latents, space = trained._replace(model=made.models / "latents", fits=Fits()), made.spaces["latents"]
    row = curve(nfe=[3])
    first = measure_curve(row, *latents, workers=1, space=space)
    assert same(measure_curve(row, *latents, workers=1, space=space), first) and len(generated) == 2
    other = measure_curve(row, *latents, workers=1, space=replace(space, content="other"))
    assert len(generated) == 4
    assert {cell.checkpoint for cell in first}.isdisjoint(cell.checkpoint for cell in other)


# Cascades.

CHOICES: list[dict[str, Any]] = [
    {},
    {"strength": 0.3},
    {"strength": 0.3, "truncated": True},
    {"share": 0.25},
    {"solver": "euler", "first": {"solver": "dpmpp_2m"}},
    {"model": "blurred", "strength": 1.5},
]


@pytest.mark.parametrize("keys", CHOICES, ids=str)
def test_the_calls_of_all_stages_count_and_samples_do_not_depend_on_the_batch(
    of_cascade: Trained, made: Made, keys: dict[str, Any]
) -> None:
    models = of_cascade._replace(model=made.models / str(keys.get("model", "up")))
    row = cascade(**keys)
    cells = measure_curve(row, *models, workers=1)
    for cell in cells:
        stages = row.stage_evaluations(cell.steps)
        assert not cell.failed and cell.images.shape[1:] == SHAPE
        assert [model for model, _ in stages] == ["small", row.model] and min(count for _, count in stages) > 0
        assert cell.nfe == row.evaluations(cell.steps) == sum(count for _, count in stages)
    assert max(cell.nfe for cell in cells) <= 18
    others = measure_curve(cascade(**keys, batch=64), *models, workers=2)
    assert all(torch.equal(a.images, b.images) for a, b in zip(cells, others, strict=True))


def test_every_choice_has_cells_of_its_own_and_none_is_measured_twice(
    of_cascade: Trained, generated: list[int]
) -> None:
    found = {}
    for keys in CHOICES[:-1]:
        row = cascade(**keys, nfe=[18])
        first = measure_curve(row, *of_cascade, workers=1)
        count = len(generated)
        assert same(measure_curve(row, *of_cascade, workers=1), first) and len(generated) == count
        found[str(keys)] = first[0]
    assert len(generated) == 2 * len(found)
    assert len({cell.checkpoint for cell in found.values()}) == 1
    assert len({cell.images.numpy().tobytes() for cell in found.values()}) == len(found)


@pytest.mark.parametrize("stage", ["small", "up"])
def test_other_weights_of_a_stage_have_cells_of_their_own(
    of_cascade: Trained, made: Made, tmp_path: Path, generated: list[int], stage: str
) -> None:
    row = cascade(nfe=[18], train_seeds=[0])
    first = measure_curve(row, *of_cascade, workers=1)
    folder = copied(made, tmp_path / "models")
    main_file(folder / stage, 0).write_bytes(main_file(folder / stage, 1).read_bytes())
    other = measure_curve(row, *of_cascade._replace(model=folder / "up"), workers=1)
    assert len(generated) == 4
    for a, b in zip(first, other, strict=True):
        assert a.checkpoint != b.checkpoint and not torch.equal(a.images, b.images)


def test_a_failed_training_of_the_first_stage_fails_its_cells_with_its_reason(
    of_cascade: Trained, made: Made, tmp_path: Path
) -> None:
    folder, row = copied(made, tmp_path / "models"), cascade()
    good = measure_curve(row, *of_cascade, workers=1)
    main_file(folder / "small", 0).unlink()
    save_failure("seed 0: the loss is not finite at step 3", failure_file(folder / "small", 0))
    cells = measure_curve(row, *of_cascade._replace(model=folder / "up"), workers=1)
    failed = [cell for cell in cells if cell.train_seed == 0]
    assert {cell.failed for cell in failed} == {"training failed: seed 0: the loss is not finite at step 3"}
    assert [cell.nfe for cell in failed] == [row.evaluations(steps) for steps in row.step_counts]
    rest = [cell for cell in cells if cell.train_seed == 1]
    assert [cell.record() for cell in rest] == [cell.record() for cell in good if cell.train_seed == 1]
    assert [len(cell.features) for cell in rest] == [0, SAMPLES]  # for the comparison with other libraries


def test_a_first_stage_that_answers_nan_fails_its_cells_alone(of_cascade: Trained, made: Made, tmp_path: Path) -> None:
    folder = copied(made, tmp_path / "models")
    broken(of_cascade._replace(model=made.models / "small"), folder / "small", 1)
    cells = measure_curve(cascade(nfe=[18]), *of_cascade._replace(model=folder / "up"), workers=1)
    assert [cell.failed for cell in cells] == ["", "step 1 of 5, sigma 80: the denoiser's answer is not finite"]


def test_a_missing_stage_is_one_line(of_cascade: Trained, made: Made, tmp_path: Path) -> None:
    folder = copied(made, tmp_path / "models")
    main_file(folder / "small", 1).unlink()
    with pytest.raises(StudyError, match=r"small/seed_1\.safetensors: missing; `dvc repro` trains it") as caught:
        measure_curve(cascade(), *of_cascade._replace(model=folder / "up"), workers=1)
    assert len(str(caught.value).splitlines()) == 1


def test_stages_draw_noise_of_their_own_and_know_their_calls(of_cascade: Trained) -> None:
    row = cascade(nfe=[18])
    upsampling = sweep.load_model(row, of_cascade.model, 0).at(5)
    parts = [upsampling.for_samples(0, range(16)) for _ in range(2)]  # type: ignore[union-attr]
    z, sigma = torch.zeros(16, *SHAPE), torch.tensor(1.0, dtype=torch.float64)
    assert all(isinstance(part, Conditioned) and part.spent == 9 for part in parts)
    assert torch.equal(parts[0](z, sigma), parts[1](z, sigma))
