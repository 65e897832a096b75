"""A curve row: one sampler on one model, measured at several budgets of network evaluations."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.common.files import SHORT_HASH, content_hash
from pipeline.common.rows import MOST, Label, Name, PositiveInt, Seed, Seeds, axis
from pipeline.diffusion.averages import LARGEST_SIGMA_REL, HalfLife, Power, Profile
from pipeline.diffusion.weights import Selection
from pipeline.sampling.row import Sampler


class Curve(Sampler):
    """A sampler row on one model, measured at several budgets of network evaluations (NFE)."""

    model: Name
    """The row of models to sample from; a curve does not inherit it."""
    method: Label | None = None
    """Name of the method in the headline figure; null: not shown there."""
    labels: Literal["data", "none"] = axis("data", "labels")
    """Class labels of samples, for a model with labels: classes as frequent as in the data, or none."""
    guide_images: PositiveInt | None = axis(None, "guidance")
    """The snapshot nearest to so many images guides; null: the earliest. For guide snapshot."""
    ema_halflife_images: PositiveInt | None = axis(None, "EMA length")
    """Sample from another average of the weights, with this half-life; null: the model's own."""
    ema_sigma_rel: Annotated[float, Field(gt=0, lt=LARGEST_SIGMA_REL)] | None = axis(None, "EMA length")
    """Sample from another average of the weights, with this relative width; null: the model's own."""
    after: Name | None = axis(None, "cascade")
    """The curve that makes the low-resolution images; null: none."""
    strength: Annotated[float, Field(ge=0)] = axis(0.0, "conditioning augmentation")
    """Strength of the augmentation of the low-resolution images in sampling."""
    truncated: bool = axis(False, "truncated sampling")
    """Whether the curve in `after` stops early, at the noise of this curve's strength."""
    share: Annotated[float, Field(gt=0, lt=1)] = axis(0.5, "budget of stages")
    """Share of the budget for the earlier stages."""
    earlier: "Curve | None" = None
    """The row of the curve in `after`; `resolve` fills it in."""
    samples: Annotated[int, Field(ge=40, le=MOST)] = 1024
    """Images per measurement; the same for all curves."""
    batch: PositiveInt | Literal["auto"] = 512
    """Images per call of the network; auto: as many as a GPU's memory holds."""
    precision: Literal["float32", "bfloat16"] = axis("float32", "sampling precision")
    """Precision of the network's calls."""
    compile: Literal["none", "default"] = axis("none", "sampling compilation")
    """Whether torch.compile compiles the network (default, on a GPU with CUDA graphs) or not (none)."""
    train_seeds: Seeds | None = None
    """Training seeds of the model that it samples from; null: all of them."""
    sample_seeds: Seeds = (0, 1, 2)
    """Seeds of sampling."""
    repetitions: Literal["paired", "crossed"] = "paired"
    """Whether training and sampling seeds are paired one to one or fully crossed."""
    seeds: tuple[tuple[Seed, Seed], ...] = ()
    """(training seed, sampling seed) of each repetition; `resolve` fills it in."""

    def weights(self, student: int | None = None) -> Selection:
        """The weights that it samples with. Guidance without effect needs no guide. student: as of `student_of`."""
        average: Profile | None = None
        if self.ema_sigma_rel is not None:
            average = Power(self.ema_sigma_rel)
        elif self.ema_halflife_images is not None:
            average = HalfLife(self.ema_halflife_images, None)
        separate = self.guide != "unconditional" and not self.build_guidance().idle
        return Selection(average, self.guide if separate else None, self.guide_images, student)

    def stage_evaluations(self, steps: int) -> list[tuple[str, int]]:
        """(model, evaluations) of each stage, the first one first."""
        return [(self.model, self.evaluations(steps))]

    @property
    def sampler_hash(self) -> str:
        """The first digits of a hash of the choices that determine the samples of a model, without the budgets."""
        return content_hash(self.model_dump(mode="json", include={*SAMPLING_KEYS, *WEIGHTS_KEYS}))[:SHORT_HASH]

    def cells(self) -> list[tuple[int, tuple[int, int]]]:
        """(steps, (training seed, sampling seed)) of every cell. Budgets that pay for equal steps share a cell."""
        return [(steps, seeds) for steps in self.step_counts for seeds in self.seeds]


SAMPLING_KEYS = frozenset(
    {*Sampler.model_fields, "labels", "precision", "compile", "after", "strength", "truncated", "share"} - {"nfe"}
)  # given the weights
WEIGHTS_KEYS = frozenset({"guide_images", "ema_halflife_images", "ema_sigma_rel"})


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
