"""`new`: write a study of somebody's own images to studies/<name>/, with choices that depend on their size and number.

docs/your-images.md explains the rule and its sources.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

import torch

from pipeline.commands.cost import PASSES, Estimate, Speed, model_size
from pipeline.common.errors import StudyError, nearest
from pipeline.common.files import Paths, whole_folder, write_text
from pipeline.common.rows import NAME
from pipeline.common.text import one_line
from pipeline.data.dataset import Dataset, is_points
from pipeline.data.row import Data
from pipeline.data.sources import load, load_parts
from pipeline.metrics.estimate import JACKKNIFE_BLOCKS
from pipeline.metrics.extractors.classifier import HELD_OUT
from pipeline.params.places import STUDIES, copy_graph, flow, names_taken
from pipeline.params.resolve import resolve
from pipeline.params.study import Study, read_study

TEMPLATE = Path(__file__).with_name("study.yaml")
SCALES = ("cpu", "published")
LABELS = ("none", "classes")
FEWEST_IMAGES = 4 * JACKKNIFE_BLOCKS  # a reference needs so many
HELDOUT = 0.2  # share of the images that is held out, if there are enough
FEWEST_PER_CLASS = 20  # with fewer on average, class folders are ignored
COARSEST = 8  # pixels: networks halve images until no side is larger, as EDM's do
HALVINGS = 2  # at least, if the size allows it
CLASSIFIER_IMAGES = 100_000  # that the feature extractor sees in training, about, if that makes 1 to EPOCHS epochs
EPOCHS = 30
CORE_FLOPS = 20e9  # a second, on these networks: an AMD EPYC's core does 22e9 to 29e9
ONE_CORE = Speed(1, 0.0, PASSES / CORE_FLOPS, 0.0, 1 / CORE_FLOPS, 0.0, 0.0)
PARTS = {"train": "training", "sweep": "sampling"}  # of the cost; all other stages are "the rest"


@dataclass(frozen=True)
class Images:
    """The facts about images that a study's choices depend on, without the held-out ones."""

    count: int
    shape: tuple[int, ...]
    """(C, H, W)."""
    sigma_data: float = 0.5
    classes: tuple[int, ...] = ()
    """The number of images of each class; () if the study does not learn classes."""
    heldout: int = 0
    """The number of images that are not trained on."""

    @property
    def square(self) -> bool:
        return self.shape[1] == self.shape[2]

    @property
    def summary(self) -> dict[str, Any]:
        """The facts as in a data set's summary."""
        names = [str(index) for index in range(len(self.classes))]
        sizes = dict(zip(("channels", "height", "width"), self.shape, strict=True))
        counts = dict(zip(names, self.classes, strict=True))
        return {"count": self.count, **sizes, "sigma_data": self.sigma_data, "classes": names, "class_counts": counts}


def halvings(height: int, width: int) -> int:
    """How often a network halves images: until no side is above COARSEST, at least twice, while both sides are even."""
    count = 0
    while height % 2 == width % 2 == 0 and (count < HALVINGS or max(height, width) > COARSEST):
        height, width, count = height // 2, width // 2, count + 1
    return count


def model_choices(shape: Sequence[int], count: int, scale: str) -> dict[str, Any]:
    """The defaults of model rows for images of a shape (C, H, W).

    published: EDM's for CIFAR-10 up to 32 pixels, for FFHQ above (Karras et al. 2022, arXiv 2206.00364, Table 7).
    cpu: the same numbers of levels, with a network and a training that two cores can do.
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
        "flip": 0.5,
        "batch": min(512 if small else 256, max(64, 2 ** (count.bit_length() - 1))),
        "learning_rate": 1e-3 if small else 2e-4,
        "warmup_images": 10_000_000,
        "learning_rate_decay": "none",
        "ema_halflife_images": 500_000,
        "images": 200_000_000,
        "train_seeds": [0, 1, 2],
    }


def curve_choices(scale: str) -> dict[str, Any]:
    """The defaults of curve rows; at the published scale 50,000 samples, as usual in the literature."""
    own = {"cpu": {"samples": 512}, "published": {"samples": 50_000}}[scale]
    return own | {"sample_seeds": [0, 1, 2], "nfe": [7, 15, 35]}


def feature_choices(images: Images, scale: str) -> dict[str, Any]:
    """The features section: a classifier that sees about CLASSIFIER_IMAGES in its training, or Inception's network."""
    if scale == "published" or not (images.classes or images.square):
        return {"extractor": "inception"}
    own: dict[str, Any] = {"extractor": "classifier"}
    epochs = min(max(round(CLASSIFIER_IMAGES / _seen_an_epoch(images)), 1), EPOCHS)
    return own if epochs == EPOCHS else own | {"epochs": epochs}


def _seen_an_epoch(images: Images) -> float:
    """Images that the classifier trains on in an epoch; without classes it sees each one in four rotations."""
    return images.count * (1 - 1 / HELD_OUT) * (1 if images.classes else 4)


def study_text(
    title: str, name: str, data: dict[str, Any], images: Images, scale: str = "cpu", labels: str = "none"
) -> str:
    """The study file for some images."""
    size = " x ".join(map(str, images.shape[1:]))
    models = model_choices(images.shape, images.count, scale)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        found=f"{images.count + images.heldout} {_colours(images.shape)} images of {size}",
        name=name,
        quoted_name=flow(name),
        title=flow(title),
        data=flow(data),
        features=flow(feature_choices(images, scale)),
        size=size,
        where={"cpu": "a CPU", "published": "GPUs, after EDM's Table 7"}[scale],
        models=flow(({"labels": "classes"} if labels == "classes" else {}) | models),
        curves=flow(curve_choices(scale)),
    )


def _colours(shape: Sequence[int]) -> str:
    return "colour" if shape[0] == 3 else "grey"


def check_name(name: str) -> None:
    """Raise StudyError if a study cannot have this name, or another study has it."""
    if not re.fullmatch(NAME, name):
        raise StudyError(f"NAME: {name[:100]!r}: a name has 1 to 60 letters, digits and underscores; write NAME=pets")
    folders = [path.name for path in STUDIES.iterdir()] if STUDIES.is_dir() else []
    taken = {path.lower(): STUDIES / path for path in folders}
    for file, other in names_taken():
        taken.setdefault(other, file)
    if place := taken.get(name.lower()):
        raise StudyError(f"NAME: {name}: {place} has this name; choose another, or edit that study")
    if Paths(name).reports.exists():
        raise StudyError(f"NAME: {name}: {Paths(name).reports} exists already; choose another name")


def look(source: str, place: str = "IMAGES") -> tuple[dict[str, Any], Images, str, str]:
    """The `data` section for a folder or zip, the facts about its images, a line that describes them, and one that says
    how many are held out.

    Raises StudyError if the images cannot be read, differ in size, are points, or are fewer than FEWEST_IMAGES.
    """
    dataset = load(Data(source=source), place)
    if is_points(dataset.images):
        raise StudyError(f"{place}: {source} are points; copy studies/points instead")
    count = len(dataset.images)
    if count < FEWEST_IMAGES:
        raise StudyError(
            f"{place}: {source} has {count} images; distances need at least {FEWEST_IMAGES}, training more; add some"
        )
    data: dict[str, Any] = {"source": source}
    counts, said = _classes(dataset)
    if dataset.classes and not counts:
        data["labels"] = False
    shape = tuple(dataset.images.shape[1:])
    training, held = _held_out(dataset if counts else replace(dataset, labels=None, classes=()), data)
    summary = training.summary()
    counts = tuple(summary["class_counts"].values())
    images = Images(len(training.images), shape, summary["sigma_data"], counts, count - len(training.images))
    found = f"{count} {_colours(shape)} images of {shape[1]} x {shape[2]}, {said}"
    if not halvings(*shape[1:]):
        found += "; an odd side cannot be halved, so the network has one level; resize them for more"
    if not (counts or images.square):
        found += "; without classes and not square, so distances use Inception's features"
    return data, images, found, held


def _held_out(dataset: Dataset, data: dict[str, Any]) -> tuple[Dataset, str]:
    """The images to train on, and a remark on the others. Sets `heldout` in the `data` section: HELDOUT, or 0 if there
    are too few images."""
    try:
        training, heldout = load_parts(Data(**data, heldout=HELDOUT), loaded=dataset)
    except StudyError as error:
        data["heldout"] = 0
        return dataset, f"none is held out, because {str(error).removeprefix('data.heldout: ').rpartition('; ')[0]}"
    data["heldout"] = HELDOUT
    return training, f"{len(heldout.images) if heldout else 0} of them are held out from all trainings"


def _classes(dataset: Dataset) -> tuple[tuple[int, ...], str]:
    """The number of images of each class, () if the study does not learn classes, and that in words."""
    if dataset.labels is None:
        return (), "no classes"
    number = len(dataset.classes)
    counts = tuple(torch.bincount(dataset.labels, minlength=number).tolist())
    if number == 1:
        return (), f"one class ({one_line(dataset.classes[0])}), ignored"
    if len(dataset.images) < FEWEST_PER_CLASS * number:
        return (), f"{number} classes of fewer than {FEWEST_PER_CLASS} images on average, ignored"
    return counts, f"{number} classes"


def study_flops(study: Study, images: Images) -> dict[str, float]:
    """About how many floating-point operations the networks of a study take: for "training", "sampling" and "the rest"
    (the classifier, losses by noise level, proposed noise, fitted grids)."""
    rows, about = resolve(study), images.summary
    estimate = Estimate(rows, about, {n: model_size(e.row, about) for n, e in rows.models.items()}, ONE_CORE)
    stages = [*(f"train@{name}" for name in rows.models), *(f"sweep@{name}" for name in rows.curves)]
    flops = {"training": 0.0, "sampling": 0.0, "the rest": 0.0}
    for stage in (*stages, "features", "losses", "propose", "grids"):
        flops[PARTS.get(stage.partition("@")[0], "the rest")] += estimate.of(stage).flops
    return flops


def new_study(name: str, source: str, scale: str = "cpu", labels: str = "none") -> str:
    """Write studies/<name>/ for a folder or zip of images, whole or not at all; a text on what was found and what comes
    next.

    scale: one of SCALES; labels: what networks are conditioned on, one of LABELS. Raises StudyError.
    """
    check_name(name)
    for key, value, valid in (("SCALE", scale, SCALES), ("LABELS", labels, LABELS)):
        if value not in valid:
            raise StudyError(f"{key}: unknown value {value!r}; {nearest(value, valid)}")
    if not source:
        raise StudyError("IMAGES: missing; write IMAGES=path/to/folder, or a .zip")
    data, images, found, held = look(source)
    if labels == "classes" and not images.classes:
        raise StudyError(f"LABELS: {source}: {found}; leave LABELS out")
    title = f"What a design choice buys: {name}, {images.shape[1]} x {images.shape[2]}"
    with whole_folder(STUDIES / name) as folder:
        write_text(folder / "params.yaml", study_text(title, name, data, images, scale, labels))
        copy_graph(folder)
        flops = study_flops(read_study(folder / "params.yaml"), images)
    return _said(name, [found, held], flops)


def _rounded(value: float, digits: int) -> str:
    """A number with so many digits, and without an exponent if it is large."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if rounded >= 10 ** (digits - 1) else f"{rounded:g}"


def _said(name: str, found: list[str], flops: dict[str, float]) -> str:
    parts = ", ".join(f"{part} {_rounded(value / 1e12, 3)}" for part, value in flops.items())
    total = sum(flops.values())
    tflop, speed = _rounded(total / 1e12, 3), f"{CORE_FLOPS / 1e9:.0f} GFLOP/s"
    hours = _rounded(total / CORE_FLOPS / 3600, 2)
    lines = [
        *found,
        f"wrote studies/{name}/params.yaml: edit its choices as you like",
        f"cost: about {tflop} TFLOP ({parts}): {hours} h of a core at {speed}",
        f"next: make check NAME={name} prints the minutes on this machine; make study NAME={name} runs it",
        f"read: reports/{name}/report.html",
        f"then: copy the row in reports/{name}/proposed.yaml (P_mean, P_std for your images) under models; run again",
    ]
    return "\n".join(lines)
