"""A study of somebody's own images: studies/<name>/ from the template, with choices by their size and number.

The rule, in words and with its sources, is in docs/your-images.md.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.common.errors import StudyError, nearest
from pipeline.common.files import Paths, whole_folder, write_text
from pipeline.common.rows import NAME
from pipeline.data.dataset import Dataset, is_points
from pipeline.data.row import Data
from pipeline.data.sources import load
from pipeline.diffusion.networks.registry import cost
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.losses import IMAGES, SIGMAS
from pipeline.evaluation.proposal import BRIEF_IMAGES
from pipeline.metrics.estimate import JACKKNIFE_BLOCKS
from pipeline.metrics.extractors.classifier import HELD_OUT, FeatureNetwork
from pipeline.params.places import STUDIES, flow, names_taken
from pipeline.params.resolve import resolve
from pipeline.params.resolved import as_dicts
from pipeline.params.study import Study, read_study
from pipeline.training.row import Model

TEMPLATE = STUDIES / "template"
SCALES = ("cpu", "published")
LABELS = ("none", "classes")
KEEP_COMMENT = ("data:", "features:")  # lines of the template that begin so
FEWEST_IMAGES = 4 * JACKKNIFE_BLOCKS  # that a reference can be made of
FEWEST_PER_CLASS = 20  # with fewer on average, folders are no classes to learn from
COARSEST = 8  # pixels: networks halve images until they are no larger, as EDM's do
HALVINGS = 2  # at the least, where the size allows it
CLASSIFIER_IMAGES = 100_000  # that the feature extractor sees in training, about, where that makes 1 to EPOCHS epochs
EPOCHS = 30
CORE_FLOPS = 20e9  # a second, on these networks: an AMD EPYC's core does 22e9 to 29e9
TRAIN_PASSES = 3  # a step of training costs about three evaluations: forward once, backward twice


@dataclass(frozen=True)
class Images:
    """What a study's choices go by. shape: (C, H, W); classes: images of each, () where none are learned from."""

    count: int
    shape: tuple[int, ...]
    sigma_data: float = 0.5
    classes: tuple[int, ...] = ()

    @property
    def square(self) -> bool:
        return self.shape[1] == self.shape[2]


def halvings(height: int, width: int) -> int:
    """How often a network halves images: until neither side is above COARSEST, twice at least, while both are even."""
    count = 0
    while height % 2 == width % 2 == 0 and (count < HALVINGS or max(height, width) > COARSEST):
        height, width, count = height // 2, width // 2, count + 1
    return count


def model_choices(shape: Sequence[int], count: int, scale: str) -> dict[str, Any]:
    """The defaults of model rows for images of a shape (C, H, W).

    published: EDM's for CIFAR-10 up to 32 pixels, for FFHQ above (Karras et al. 2022, arXiv 2206.00364, Table 7).
    cpu: the same numbers of levels, with a network and a training that two cores get done.
    """
    _, height, width = shape
    times = halvings(height, width)
    if scale == "cpu":
        return {
            "network": "unet",
            "channels": 16,
            "multipliers": [1, 2, *[4] * (times - 1)][: times + 1],
            "batch": 128 if count >= 128 else 64,
            "learning_rate": 4e-3,
            "images": 50_000,
            "train_seeds": [0, 1, 2],
        }
    small = max(height, width) <= 32
    heights = [height >> i for i in range(times + 1)]
    return {
        "network": "ddpmpp",
        "channels": 128,
        "multipliers": [2] * (times + 1) if small else [1, *[2] * times],
        "blocks": 4,
        "attention": [min(heights, key=lambda level: abs(level - 16))],
        "dropout": 0.13 if small else 0.05,
        "augment": 0.12 if small else 0.15,
        "batch": min(512 if small else 256, max(64, 2 ** (count.bit_length() - 1))),
        "learning_rate": 1e-3 if small else 2e-4,
        "warmup_images": 10_000_000,
        "learning_rate_decay": "none",
        "ema_halflife_images": 500_000,
        "images": 200_000_000,
        "train_seeds": [0, 1, 2],
    }


def curve_choices(scale: str) -> dict[str, Any]:
    """The defaults of curve rows; 50,000 samples as everywhere in the literature, where the scale is a paper's."""
    own = {"cpu": {"samples": 512}, "published": {"samples": 50_000}}[scale]
    return own | {"sample_seeds": [0, 1, 2], "nfe": [7, 15, 35]}


def feature_choices(images: Images, scale: str) -> dict[str, Any]:
    """The extractor: a classifier that sees about CLASSIFIER_IMAGES in its training, or Inception's network."""
    if scale == "published" or not (images.classes or images.square):
        return {"extractor": "inception"}
    own: dict[str, Any] = {"extractor": "classifier"}
    epochs = min(max(round(CLASSIFIER_IMAGES / _seen_an_epoch(images)), 1), EPOCHS)
    return own if epochs == EPOCHS else own | {"epochs": epochs}


def _seen_an_epoch(images: Images) -> float:
    """Images that the classifier trains on in an epoch: without classes each stands in it four times, turned."""
    return images.count * (1 - 1 / HELD_OUT) * (1 if images.classes else 4)


def study_text(template: str, title: str, name: str, data: dict[str, Any], images: Images, scale: str) -> str:
    """The template's text for other images. Raises StudyError where it has lost one of the lines that this fills in."""
    info = {"name": name, "root": "../..", "params": f"studies/{name}/params.yaml"}
    kind = "colour" if images.shape[0] == 3 else "grey"
    where = {"cpu": "a CPU", "published": "GPUs, after EDM's Table 7"}[scale]
    size = " x ".join(map(str, images.shape[1:]))
    lines = {
        "# A small study of your own images": f"# A small study of {images.count} {kind} images of {size}, written by "
        f"`make new`. Run it with `make study NAME={name}`.",
        "# or let": "# What the choices go by, and what comes next: docs/your-images.md",
        "title:": f"title: {flow(title)}",
        "study:": f"study: {flow(info)}",
        "data:": f"data: {flow(data)}",
        "features:": f"features: {flow(feature_choices(images, scale))}",
        "defaults:": f"defaults:  # what every row begins with, here for {size} on {where}",
        "  models: {": f"  models: {flow(model_choices(images.shape, images.count, scale))}",
        "  curves: {": f"  curves: {flow(curve_choices(scale))}",
        "  # after a first run:": "  # after a first run: the row edm_proposed from "
        f"reports/{name}/proposed.yaml, P_mean and P_std for your images",
    }
    text = template
    for start, line in lines.items():
        found = re.findall(rf"^{re.escape(start)}.*$", text, re.M)
        if len(found) != 1:
            raise StudyError(f"{TEMPLATE / 'params.yaml'}: has no one line that begins with {start!r}; take git's copy")
        comment = re.search("  #.*", found[0]) if start in KEEP_COMMENT else None
        text = text.replace(found[0], line + (comment[0] if comment else ""))
    return text


def check_name(name: str) -> None:
    """Refuse what is no name, or another study's. Raises StudyError."""
    if not re.fullmatch(NAME, name):
        raise StudyError(f"NAME: {name[:100]!r}: a name has 1 to 60 letters, digits and underscores; write NAME=pets")
    folders = [path.name for path in STUDIES.iterdir()] if STUDIES.is_dir() else []
    taken = {path.lower(): STUDIES / path for path in folders}
    for file, other in names_taken():
        taken.setdefault(other, file)
    if place := taken.get(name.lower()):
        raise StudyError(f"NAME: {name}: {place} has this name; take another, or edit that study")
    if Paths(name).reports.exists():
        raise StudyError(f"NAME: {name}: {Paths(name).reports} is there already; take another name")


def look(source: str, place: str = "IMAGES") -> tuple[dict[str, Any], Images, str]:
    """The `data` section for a folder or zip, what a study's choices go by, and a line on what was found.

    Raises StudyError for what can't be read, sizes that differ, points, and fewer than FEWEST_IMAGES.
    """
    dataset = load(Data(source=source), place)
    if is_points(dataset.images):
        raise StudyError(f"{place}: {source} are points; copy studies/points")
    count = len(dataset.images)
    if count < FEWEST_IMAGES:
        raise StudyError(
            f"{place}: {source} has {count} images; {FEWEST_IMAGES} are needed to measure distances, more to learn from"
        )
    data: dict[str, Any] = {"source": source}
    counts, said = _classes(dataset)
    if dataset.classes and not counts:
        data["labels"] = False
    shape = tuple(dataset.images.shape[1:])
    images = Images(count, shape, dataset.summary()["sigma_data"], counts)
    colours = "colour" if shape[0] == 3 else "grey"
    found = f"{count} {colours} images of {shape[1]} x {shape[2]}, {said}"
    if not halvings(*shape[1:]):
        found += "; an odd side can't be halved, so the network has one level: resizing them helps"
    if not (counts or images.square):
        found += "; neither classes nor square, so distances are measured with Inception's features"
    return data, images, found


def _classes(dataset: Dataset) -> tuple[tuple[int, ...], str]:
    """Images of each class, () where they are none to learn from, and that in words."""
    if dataset.labels is None:
        return (), "no classes"
    number = len(dataset.classes)
    counts = tuple(torch.bincount(dataset.labels, minlength=number).tolist())
    if number == 1:
        return (), f"one class ({dataset.classes[0]}), left aside"
    if len(dataset.images) < FEWEST_PER_CLASS * number:
        return (), f"{number} classes of fewer than {FEWEST_PER_CLASS} images on average, left aside"
    return counts, f"{number} classes"


def study_flops(study: Study, images: Images) -> dict[str, float]:
    """About how many floating-point operations a study takes: for "training", "sampling", and "the rest", which is the
    classifier's training, the losses by noise level and the proposed noise."""
    rows = as_dicts(resolve(study))
    models = {name: Model(**rows[f"models/{name}"]) for name in study.models}
    each = {n: cost(row.spec(images.sigma_data, images.shape, images.classes)).flops for n, row in models.items()}
    training = sum(TRAIN_PASSES * each[n] * row.images * len(row.train_seeds) for n, row in models.items())
    sampling = 0
    for name in study.curves:
        curve = Curve(**rows[f"curves/{name}"])
        evaluations = sum(curve.evaluations(curve.steps(budget)) for budget in curve.nfe)
        sampling += each[curve.model] * evaluations * curve.samples * len(curve.seeds)
    rest: float = TRAIN_PASSES * sum(BRIEF_IMAGES) * each[next(iter(models))]
    rest += sum(TRAIN_PASSES * SIGMAS * IMAGES * each[n] * len(row.train_seeds) for n, row in models.items())
    if study.features.extractor == "classifier":
        seen = study.features.epochs * _seen_an_epoch(images)
        rest += TRAIN_PASSES * _extractor_flops(study, images) * seen
    return {"training": training, "sampling": sampling, "the rest": rest}


def _extractor_flops(study: Study, images: Images) -> int:
    channels, *size = images.shape
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = FeatureNetwork(channels, min(size), study.features.width, max(len(images.classes), 4))
        network(torch.empty(1, *images.shape, dtype=torch.uint8))
    return int(counter.get_total_flops())


def new_study(name: str, source: str, scale: str = "cpu", labels: str = "none") -> str:
    """Write studies/<name>/ for a folder or zip of images, whole or not at all; what was found and what comes next.

    scale: one of SCALES; labels: what networks learn, one of LABELS. Raises StudyError, one line saying where and what.
    """
    check_name(name)
    for key, value, valid in (("SCALE", scale, SCALES), ("LABELS", labels, LABELS)):
        if value not in valid:
            raise StudyError(f"{key}: unknown value {value!r}; {nearest(value, valid)}")
    if not source:
        raise StudyError("IMAGES: missing; write IMAGES=path/to/folder, or a .zip")
    data, images, found = look(source)
    if labels == "classes" and not images.classes:
        raise StudyError(f"LABELS: {source}: {found}; leave LABELS out")
    title = f"What a design choice buys: {name}, {images.shape[1]} x {images.shape[2]}"
    text = study_text((TEMPLATE / "params.yaml").read_text(), title, name, data, images, scale)
    if labels == "classes":
        text = text.replace("  models: {", "  models: {labels: classes, ", 1)
    with whole_folder(STUDIES / name) as folder:
        write_text(folder / "params.yaml", text)
        write_text(folder / "dvc.yaml", Path("dvc.yaml").read_text())
        study = read_study(folder / "params.yaml")
        flops = study_flops(study, images)
    return _said(name, found, flops)


def _rounded(value: float, digits: int) -> str:
    """A number to so many digits, without an exponent where it is large."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if rounded >= 10 ** (digits - 1) else f"{rounded:g}"


def _said(name: str, found: str, flops: dict[str, float]) -> str:
    parts = ", ".join(f"{part} {_rounded(value / 1e12, 3)}" for part, value in flops.items())
    total = sum(flops.values())
    tflop, speed = _rounded(total / 1e12, 3), f"{CORE_FLOPS / 1e9:.0f} GFLOP/s"
    hours = _rounded(total / CORE_FLOPS / 3600, 2)
    lines = [
        found,
        f"wrote studies/{name}/params.yaml: its choices are a start, and yours to edit",
        f"cost: about {tflop} TFLOP ({parts}): {hours} h of a core at {speed}",
        f"next: make check NAME={name} for the minutes on this machine, then make study NAME={name}",
        f"read: reports/{name}/report.html",
        f"then: copy the row in reports/{name}/proposed.yaml (P_mean, P_std for your images) under models; run again",
    ]
    return "\n".join(lines)
