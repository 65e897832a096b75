"""A curve row: one sampler on one model, measured at several budgets of network evaluations."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from pipeline.common.rows import Label, Name, Seeds, axis
from pipeline.diffusion.averages import LARGEST_SIGMA_REL
from pipeline.sampling.row import Sampler


class Curve(Sampler):
    """A sampler row on one model, measured over NFE budgets. `method` names it in the headline figure.

    `labels`: of classes as frequent as in the data set, or none. `guide_images`: the snapshot that guides, by the
    images it had seen; None: the earliest. `ema_halflife_images`, `ema_sigma_rel`: the average of the weights; None:
    the model's own. `batch` auto: as many as fit into a GPU's memory; `precision` and `compile` are those of the
    network's calls. `repetitions`: training and sampling seeds side by side, or each with each.
    """

    model: Name
    method: Label | None = None
    labels: Literal["data", "none"] = axis("data", "labels")
    guide_images: PositiveInt | None = axis(None, "guidance")
    ema_halflife_images: PositiveInt | None = axis(None, "EMA length")
    ema_sigma_rel: Annotated[float, Field(gt=0, lt=LARGEST_SIGMA_REL)] | None = axis(None, "EMA length")
    samples: Annotated[int, Field(ge=40)] = 1024
    batch: PositiveInt | Literal["auto"] = 512
    precision: Literal["float32", "bfloat16"] = axis("float32", "sampling precision")
    compile: Literal["none", "default"] = axis("none", "sampling compilation")
    sample_seeds: Seeds = (0, 1, 2)
    repetitions: Literal["paired", "crossed"] = "paired"
    seeds: tuple[tuple[int, int], ...] = ()  # (train seed, sample seed) of each repetition; `resolve` fills them in


def seed_pairs(
    train_seeds: tuple[int, ...], sample_seeds: tuple[int, ...], repetitions: str = "paired"
) -> list[tuple[int, int]]:
    """(train seed, sample seed) of each repetition: both lists side by side, the shorter one going round again.

    Crossed, every training seed with every sampling seed, which tells what either adds to the spread.
    """
    if repetitions == "crossed":
        return [(train, sample) for train in train_seeds for sample in sample_seeds]
    count = max(len(train_seeds), len(sample_seeds))
    return [(train_seeds[i % len(train_seeds)], sample_seeds[i % len(sample_seeds)]) for i in range(count)]
