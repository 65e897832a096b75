"""A curve row: one sampler on one model, measured at several budgets of network evaluations."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.common.files import SHORT_HASH, content_hash
from pipeline.common.rows import MOST, Label, Name, PositiveInt, Seed, Seeds, axis
from pipeline.diffusion.averages import LARGEST_SIGMA_REL, HalfLife, Power, Profile
from pipeline.diffusion.weights import Selection
from pipeline.sampling.row import Sampler

ROUNDING = 1e-9  # of shares of a budget


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
    samples: Annotated[int, Field(ge=40, le=MOST)] = 1024
    """Images per measurement; the same for all curves."""
    batch: PositiveInt | Literal["auto"] = 512
    """Images per call of the network; auto: as many as a GPU's memory holds."""
    precision: Literal["float32", "bfloat16"] = axis("float32", "sampling precision")
    """Precision of the network's calls."""
    compile: Literal["none", "default"] = axis("none", "sampling compilation")
    """Whether torch.compile compiles the network (default, on a GPU with CUDA graphs) or not (none)."""
    after: Name | None = axis(None, "cascade")
    """The curve that makes the low-resolution images, for a model with `upsampler`: the stage before in a cascade."""
    strength: Annotated[float, Field(ge=0, le=100)] = axis(0.0, "conditioning augmentation")
    """Strength of the augmentation of low-resolution images, which the network is told; at most that in training."""
    truncated: bool = axis(False, "truncated sampling")
    """Stop the stage before at noise level `strength`, instead of adding this noise to its samples."""
    share: Annotated[float, Field(gt=0, lt=1)] = axis(0.5, "budget of stages")
    """Share of a budget that is for all stages before this one."""
    fitted_model: Name | None = axis(None, "transfer of fits")
    """The model to whose networks the solver is fitted; null: the curve's own. For solver fitted."""
    fitted_seed: Seed | None = axis(None, "transfer of fits")
    """The training seed of the network that the solver is fitted to; null: the one sampled from. For solver fitted."""
    fitted_nfe: Annotated[int, Field(ge=1, le=10_000)] | None = axis(None, "transfer of fits")
    """The budget that the solver is fitted for, and interpolated from; null: each one's own. For solver fitted."""
    train_seeds: Seeds | None = None
    """Training seeds of the model that it samples from; null: all of them."""
    sample_seeds: Seeds = (0, 1, 2)
    """Seeds of sampling."""
    repetitions: Literal["paired", "crossed"] = "paired"
    """Whether training and sampling seeds are paired one to one or fully crossed."""
    seeds: tuple[tuple[Seed, Seed], ...] = ()
    """(training seed, sampling seed) of each repetition; `resolve` fills it in."""
    earlier: "Curve | None" = None
    """The row that `after` names; `resolve` fills it in."""

    def weights(self, student: int | None = None) -> Selection:
        """The weights that it samples with. Guidance without effect needs no guide. student: as of `student_of`."""
        average: Profile | None = None
        if self.ema_sigma_rel is not None:
            average = Power(self.ema_sigma_rel)
        elif self.ema_halflife_images is not None:
            average = HalfLife(self.ema_halflife_images, None)
        separate = self.guide != "unconditional" and not self.build_guidance().idle
        return Selection(average, self.guide if separate else None, self.guide_images, student)

    @property
    def sampling(self) -> dict[str, Any]:
        """The choices, for JSON, that determine samples, given the weights, without the budgets."""
        own = self.model_dump(mode="json", include=set(SAMPLING_KEYS))
        if self.earlier is None:
            return own
        keys = self.model_dump(mode="json", include={"strength", "truncated", "share"})
        return own | keys | {"earlier": self.earlier.sampling | self.earlier.choice_of_weights}

    @property
    def choice_of_weights(self) -> dict[str, Any]:
        return self.model_dump(mode="json", include={"guide_images", "ema_halflife_images", "ema_sigma_rel"})

    @property
    def sampler_hash(self) -> str:
        """The first digits of a hash of the choices that determine the samples of a model, without the budgets."""
        return content_hash(self.sampling | self.choice_of_weights)[:SHORT_HASH]

    @model_validator(mode="after")
    def _transferred(self) -> Self:
        for key in TRANSFER:
            if self.solver != "fitted" and getattr(self, key) is not None:
                raise ValueError(f"{key}: nothing is fitted for solver {self.solver}; it is for fitted")
        return self

    @property
    def fitting_hash(self) -> str:
        """The first digits of a hash of the choices that determine what is fitted, given the weights."""
        transfer = {key: getattr(self, key) for key in TRANSFER}
        return content_hash(self.sampling | self.choice_of_weights | transfer)[:SHORT_HASH]

    def fitted_to(self, train_seed: int, steps: int) -> tuple[str, int, int]:
        """The model, its training seed and the number of steps to which the solver is fitted."""
        seed = train_seed if self.fitted_seed is None else self.fitted_seed
        return self.fitted_model or self.model, seed, self.steps(self.fitted_nfe) if self.fitted_nfe else steps

    @property
    def earlier_end(self) -> float:
        """The noise level at which the stage before ends."""
        return self.strength if self.truncated else 0.0

    def steps(self, budget: int, end: float = 0.0) -> int:
        """The steps of the last stage, to the noise level `end`, that its share of a budget pays for."""
        if self.earlier is None:
            return super().steps(budget, end)
        own = math.floor(budget * (1 - self.share) + ROUNDING)
        try:
            steps = super().steps(own, end)
            self.earlier_steps(steps, end)
        except ValueError as error:
            raise ValueError(f"{error} (of {budget}, share {self.share:g} is for the stages before)") from None
        return steps

    def earlier_steps(self, steps: int, end: float = 0.0) -> int:
        """The steps of the stage before, if this one takes `steps`: as many as the share of the stages before pays for.

        Raises ValueError if it pays for none.
        """
        assert self.earlier is not None
        budget = math.floor(super().evaluations(steps, end) * self.share / (1 - self.share) + ROUNDING)
        return self.earlier.steps(budget, self.earlier_end)

    def evaluations(self, steps: int, end: float = 0.0) -> int:
        """The network calls of `steps` steps, guidance included, and of all stages before."""
        return sum(count for _, count in self.stage_evaluations(steps, end))

    def depth(self, steps: int, end: float = 0.0) -> int:
        """The evaluations of all stages that wait for each other, if the last one takes `steps` steps."""
        own = super().depth(steps, end)
        if self.earlier is None:
            return own
        return own + self.earlier.depth(self.earlier_steps(steps, end), self.earlier_end)

    @property
    def side_by_side(self) -> bool:
        """Whether any stage has evaluations of two networks."""
        return self.build_guidance().evaluations > 1 or (self.earlier is not None and self.earlier.side_by_side)

    def stage_evaluations(self, steps: int, end: float = 0.0) -> list[tuple[str, int]]:
        """The model and the network calls of each stage, the first one first, if the last one takes `steps` steps."""
        own = (self.model, super().evaluations(steps, end))
        if self.earlier is None:
            return [own]
        return [*self.earlier.stage_evaluations(self.earlier_steps(steps, end), self.earlier_end), own]

    @property
    def stages(self) -> list[str]:
        """The models of all stages, the first one first."""
        return [*(self.earlier.stages if self.earlier else ()), self.model]

    def cells(self) -> list[tuple[int, tuple[int, int]]]:
        """(steps, (training seed, sampling seed)) of every cell. Budgets that pay for equal steps share a cell."""
        return [(steps, seeds) for steps in self.step_counts for seeds in self.seeds]


TRANSFER = ("fitted_model", "fitted_seed", "fitted_nfe")
SAMPLING_KEYS = frozenset({*Sampler.model_fields, "labels", "precision", "compile"} - {"nfe"})  # of one stage


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
