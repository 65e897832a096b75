"""Models trained briefly, an exact model of classes, rows of curves, and whether their cells are equal."""

import json
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from pipeline.common.threads import in_turns
from pipeline.data.dataset import to_range
from pipeline.data.row import Data
from pipeline.data.sources import load
from pipeline.diffusion.denoiser import load_denoiser, save_denoiser
from pipeline.diffusion.exact import LabelledMixture
from pipeline.evaluation.cell import Cell
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.fits import Fits, fit_model
from pipeline.metrics.extractors.extractor import Extractor
from pipeline.metrics.extractors.registry import load_extractor, make_extractor, save_extractor
from pipeline.metrics.extractors.row import Features
from pipeline.metrics.reference import Reference, load_reference, make_reference, save_reference
from pipeline.params.resolve import resolve
from pipeline.params.study import Study
from pipeline.sampling import fitted_grids
from pipeline.training.loop import train
from pipeline.training.row import Model
from pipeline.training.trained import save_models

SAMPLES = 40


class Trained(NamedTuple):
    model: Path
    fits: Fits
    extractor: Extractor
    reference: Reference


def make(folder: Path) -> Trained:
    dataset = load(Data(limit=200))
    row = Model(channels=8, multipliers=(1,), blocks=1, images=10 * 16, batch=16, warmup_images=32)
    spec = row.spec(dataset.summary()["sigma_data"], tuple(dataset.images.shape[1:]))
    save_models(in_turns([train(row, spec, dataset.images, seed) for seed in (0, 1)]), folder / "model")
    save_extractor(make_extractor(Features(epochs=1, width=16), dataset)[0], folder)
    extractor = load_extractor(folder)
    save_reference(make_reference(extractor(dataset.images), extractor.hash)[0], folder)
    with mock.patch.object(fitted_grids, "TRAJECTORIES", 16):
        fits = fit_model(folder / "model", [(0.002, 80.0)], [])
    return Trained(folder / "model", fits, extractor, load_reference(folder))


def curve(**keys: Any) -> Curve:
    """A resolved curve row, as a stage reads it. `seeds` replaces those of the study."""
    seeds = {key: keys.pop(key) for key in ("seeds",) if key in keys}
    row = {"model": "edm", "nfe": [3, 5], "samples": SAMPLES, "batch": 16, "sample_seeds": [0, 1]} | keys
    study = Study(study={"name": "t"}, models={"edm": {"train_seeds": [0, 1]}}, curves={"x": row})
    return Curve(**json.loads(json.dumps(resolve(study).files()["curves/x"])) | seeds)


def same(a: list[Cell], b: list[Cell]) -> bool:
    """Whether cells are equal to the last bit."""
    pairs = list(zip(a, b, strict=True))
    return all(x.record() == y.record() and x.images.equal(y.images) and x.features.equal(y.features) for x, y in pairs)


def broken(trained: Trained, folder: Path, *seeds: int) -> Trained:
    """The models; those of the given seeds answer NaN."""
    for seed in (0, 1):
        denoiser = load_denoiser(trained.model / f"seed_{seed}.safetensors")
        if seed in seeds:
            next(denoiser.network.head.parameters()).fill_(torch.nan)
        save_denoiser(denoiser, folder / f"seed_{seed}.safetensors")
    return trained._replace(model=folder)


CLASSES = (20, 30, 50)
MEANS = torch.stack([to_range(load(Data()).images[i]).double() for i in (0, 1, 4)])  # a nought, a one and a four


class Conditional:
    """An exact model of three images with a little noise, one per class, in place of a network."""

    shape = (1, 8, 8)

    def __init__(self, classes: tuple[int, ...], std: float) -> None:
        self.classes = list(classes)
        self.exact = LabelledMixture(MEANS, torch.tensor(CLASSES, dtype=torch.float64) / sum(CLASSES), std)

    def __call__(self, z: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.exact(z, sigma, labels)

    def run_on(self, *_: object) -> "Conditional":
        return self
