"""A model row: how one network is trained."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.rows import (
    MOST_STEPS,
    Name,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    RealFloat,
    Row,
    Seeds,
    axis,
)
from pipeline.diffusion.autoencoder import decoder_size
from pipeline.diffusion.averages import LARGEST_SIGMA_REL
from pipeline.diffusion.networks.embedding import EMBEDDINGS
from pipeline.diffusion.networks.registry import KEYS, NETWORKS, equal_channels
from pipeline.diffusion.parametrization import BOUNDARY, PARAMETRIZATIONS
from pipeline.diffusion.spec import Spec
from pipeline.diffusion.upsampling import AUGMENTATIONS, low_shape
from pipeline.training.augmentation import LABELS
from pipeline.training.autoencoder_row import AutoencoderRow
from pipeline.training.distances import DISTANCES
from pipeline.training.draws import DRAWS
from pipeline.training.hybrid import CHAINS, LEARNED_VARIANCES
from pipeline.training.noise import NOISES, Distribution, distribution
from pipeline.training.objectives import CONSISTENCY_GRIDS, GRIDS, LEVEL_GROWTHS, OBJECTIVES, Falling
from pipeline.training.pairs import PAIRS
from pipeline.training.weighting import WEIGHTINGS

OBJECTIVE_KEYS = sorted(set().union(*(objective.keys for objective in OBJECTIVES.values())))
Intervals = Annotated[int, Field(gt=0, le=100_000)]
WEIGHTING_KEYS = sorted(set().union(*(weighting.optional for weighting in WEIGHTINGS.values())))
ABOVE, BELOW = 1e-3, 0.05  # shares of draws that may lie above and below the path of the parametrization
SLACK = 1.1  # factor by which all draws may exceed that path
NETWORK_KEYS = frozenset(key for keys in KEYS.values() for key in keys)
TRIED = 65_536  # evenly spaced draws at which the weights are compared
TRIED_SIGMA_DATA = 0.5
EQUAL_EVALUATIONS = 35  # of a sample whose whole cost `equal: flops` matches: EDM's 18 steps of Heun
LEAST_EFFECTIVE = 4e-3  # smallest effective share of draws: half a draw in a batch of 128


class Upsampler(Row):
    """`upsampler` of a model row: the low-resolution images that the network is conditioned on."""

    model_config = ConfigDict(serialize_by_alias=True)
    height: Annotated[int, Field(gt=0, le=65_536, alias="from")]
    """Height, in pixels, of the low-resolution images."""
    augmentation: Literal[AUGMENTATIONS] = "noise"  # type: ignore[valid-type]
    """How they are augmented in training, with a strength that is uniform from 0 to `strength`."""
    strength: Annotated[float, Field(ge=0, le=100)] = 0.5
    """Largest strength in training: of noise in units of the data in [-1, 1], of a blur in pixels of the output."""


def _is_none(value: object) -> bool:
    return value is None


class Model(Row):
    """A model row: the network and how it is trained, or the released network that is imported."""

    model_config = ConfigDict(serialize_by_alias=True)
    import_: Annotated[str, Field(min_length=1)] | None = Field(default=None, alias="import", exclude_if=_is_none)
    """A released network to use as it is: a pickle of EDM or EDM2, a folder of diffusers, or our own file."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, title="released network", exclude_if=_is_none
    )
    """The sha256 that the imported file of weights must have; null: any. `resolve` writes the one that it has."""
    released: str | None = Field(default=None, exclude_if=_is_none)
    """The spec of the imported network, as JSON; `resolve` fills it in."""

    space: Name | None = axis(None, "space")
    """The row of `autoencoders` in whose latents the model is trained; null: pixels."""
    resolution: Annotated[int, Field(gt=0, le=65_536)] | None = axis(None, "resolution")
    """Height, in pixels, to which images are averaged down, for the first stage of a cascade; null: the data's."""
    upsampler: Upsampler | None = axis(None, "cascade")
    """Condition the network on low-resolution images, for a later stage of a cascade: `{from: 8}`; null: not."""

    parametrization: Literal[tuple(PARAMETRIZATIONS)] = axis("edm", "parametrization")  # type: ignore[valid-type]
    """The target that the network predicts, and the path on which it is told the noise level."""
    noise: Literal[tuple(NOISES)] = axis("lognormal", "noise distribution")  # type: ignore[valid-type]
    """The distribution of training noise levels sigma."""
    P_mean: RealFloat = axis(-1.2, "noise distribution")
    """Mean of ln sigma. For noise lognormal; `reports/<study>/proposed.yaml` suggests a value for your data."""
    P_std: PositiveFloat = axis(1.2, "noise distribution")
    """Standard deviation of ln sigma. For noise lognormal; `reports/<study>/proposed.yaml` suggests one."""
    shift: PositiveFloat = axis(1.0, "noise distribution")
    """Factor on sigma. For noise flow_uniform, logit_normal, mode and cosmap."""
    logit_mean: RealFloat = axis(0.0, "noise distribution")
    """Mean of logit t, t being the flow's time. For noise logit_normal."""
    logit_std: PositiveFloat = axis(1.0, "noise distribution")
    """Standard deviation of logit t, t being the flow's time. For noise logit_normal."""
    mode_scale: Annotated[float, Field(ge=-1, le=1.75)] = axis(1.29, "noise distribution")
    """Above 0, the middle of the flow's time is more likely; below 0, its ends. For noise mode."""
    draws: Literal[tuple(DRAWS)] = axis("independent", "noise draws")  # type: ignore[valid-type]
    """How the noise levels of a batch are drawn."""
    weighting: Literal[tuple(WEIGHTINGS)] = axis("unit", "loss weighting")  # type: ignore[valid-type]
    """The weight lambda(sigma) on the squared error of D."""
    gamma: PositiveFloat | None = axis(None, "loss weighting")
    """Parameter of weightings min_snr and p2; null: the published value."""
    k: PositiveFloat | None = axis(None, "loss weighting")
    """Parameter of weighting p2; null: the published value."""
    bias: Annotated[float, Field(ge=-50, le=50)] | None = axis(None, "loss weighting")
    """Parameter of weighting sigmoid; null: the published value."""
    objective: Literal[tuple(OBJECTIVES)] = axis("denoising", "objective")  # type: ignore[valid-type]
    """Towards what the network is trained; all but denoising make networks that need few evaluations."""
    distance: Literal[tuple(DISTANCES)] = axis("squared", "distance")  # type: ignore[valid-type]
    """The distance between D and the objective's target."""
    grid: Literal[GRIDS] = axis("edm", "training grid")  # type: ignore[valid-type]
    """The grid of noise levels of the objective, in its published range."""
    first_steps: PositiveInt = axis(8, "distillation rounds")
    """Steps of the first student, a power of two; each further one has half as many, down to 1. For progressive."""
    teacher_step: Literal["euler", "heun"] = axis("heun", "teacher's step")
    """How the teacher steps to the next noise level. For consistency_distillation."""
    level_growth: Literal[tuple(LEVEL_GROWTHS)] = axis("doubling", "consistency levels")  # type: ignore[valid-type]
    """How the number of intervals of the grid grows. For consistency_distillation and consistency_training."""
    first_levels: Intervals = axis(10, "consistency levels")
    """Intervals of the grid at the start, one less for level_growth square_root. For the same objectives."""
    last_levels: Intervals = axis(1280, "consistency levels")
    """Intervals of the grid at the end. For consistency_distillation and consistency_training."""
    target_decay: Annotated[float, Field(ge=0, lt=1)] = axis(0.0, "target average")
    """Share that the target's average of the weights keeps in a step at first; 0: the target is the network itself."""
    stages: Annotated[int, Field(gt=0, le=50)] = axis(8, "consistency stages")
    """Stages in which the two noise levels approach each other. For easy_consistency."""
    learned_variance: Literal[LEARNED_VARIANCES] = axis("none", "learned variance")  # type: ignore[valid-type]
    """Whether the network also learns the variance of a step, for `variance: learned` in curves."""
    pairs: Literal[PAIRS] = axis("independent", "pairs")  # type: ignore[valid-type]
    """Which noise is paired with which image."""
    reflow_pairs: PositiveInt = axis(8192, "pairs")
    """Number of pairs that the flow in `base` makes. For pairs reflow."""
    augment: Annotated[float, Field(ge=0, lt=1)] = axis(0.0, "augmentation")
    """Probability of each of EDM's augmentations (arXiv 2206.00364, app. F.2), which the network is told."""
    flip: Annotated[float, Field(ge=0, le=1)] = axis(0.0, "augmentation")
    """Probability of mirroring an image in x. The network is told if `augment` is above 0, as in EDM, else not."""
    sigma_data: PositiveFloat | None = axis(None, "sigma_data")
    """Standard deviation of the data; null: measured on the data set."""
    labels: Literal["none", "classes"] = axis("none", "labels")
    """Whether the network is told class labels."""
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = axis(0.1, "labels")
    """Share of labels hidden in training, so that the network also learns to predict without one."""
    network: Literal[tuple(NETWORKS)] = axis("unet", "network")  # type: ignore[valid-type]
    """The network: unet, ddpmpp or dit for images, mlp for points."""
    channels: Annotated[int, Field(multiple_of=8, ge=8, le=16_384)] = axis(16, "network")
    """Width of the network; for unet and ddpmpp, channels of the first level."""
    multipliers: Annotated[tuple[Annotated[int, Field(gt=0, le=256)], ...], Field(min_length=1, max_length=16)] = axis(
        (1, 2, 4), "network"
    )
    """Channels of each level as multiples of `channels`; a level halves the image. For unet and ddpmpp."""
    blocks: Annotated[int, Field(gt=0, le=256)] = axis(1, "network")
    """Blocks per level for unet and ddpmpp, blocks in all for dit and mlp."""
    attention: tuple[Annotated[int, Field(gt=0, le=65_536)], ...] = axis((), "network")
    """Heights, in pixels, of the levels with attention. For ddpmpp."""
    patch: Annotated[int, Field(gt=0, le=65_536)] = axis(2, "network")
    """Side of a patch in pixels. For dit."""
    embedding: Literal["positional", "fourier"] = axis("positional", "noise embedding")
    """How the network embeds c_noise."""
    equal: Literal["parameters", "flops"] | None = axis(None, "network")
    """Choose `channels` so that the network costs as much as that of `base`; FLOPs include decoders, over 35 calls."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = axis(0.0, "dropout")
    """Probability that dropout zeroes a feature."""
    images: PositiveInt = axis(140_000, "training length")
    """Length of the training, in images; with rounds, of all of them."""
    budget: Literal["own", "total"] = axis("own", "training length")
    """Whether `images` is the length of this training alone, or together with that of its teacher."""
    batch: PositiveInt = axis(128, "batch size")
    """Images per step."""
    micro_batch: PositiveInt | None = axis(None, "micro-batches")
    """Images per pass through the network, if a whole batch exceeds the memory; null: the whole batch."""
    learning_rate: PositiveFloat = axis(8e-3, "learning rate")
    """Peak learning rate of Adam."""
    warmup_images: PositiveInt = axis(10_000, "learning rate")
    """Images over which the learning rate rises linearly from 0."""
    learning_rate_decay: Literal["cosine", "linear", "inverse_sqrt", "none"] = axis("cosine", "learning rate")
    """How the learning rate falls over the training."""
    learning_rate_reference_images: PositiveInt = axis(35_000, "learning rate")
    """Images after which the learning rate falls. For learning_rate_decay inverse_sqrt."""
    clip_norm: PositiveFloat | None = axis(None, "gradient clipping")
    """Largest norm of the gradient; null: no clipping."""
    precision: Literal["float32", "bfloat16"] = axis("float32", "precision")
    """Precision of the network; bfloat16 is autocast, with weights and loss in float32."""
    compile: Literal["none", "default"] = axis("none", "compilation")
    """Whether torch.compile compiles the network (default) or not (none)."""
    memory_format: Literal["channels_last", "contiguous"] = axis("channels_last", "memory format")
    """Memory layout of images and weights."""
    ema_halflife_images: PositiveInt = axis(10_000, "EMA length")
    """Half-life of the main average of the weights (EMA), in images."""
    ema_ramp_up: PositiveFloat | None = axis(0.05, "EMA length")
    """Largest half-life as a share of the images seen so far; null: no limit."""
    ema_halflives_images: tuple[PositiveInt, ...] = ()
    """Half-lives of further averages, which curves select by `ema_halflife_images`."""
    ema_sigma_rels: tuple[Annotated[float, Field(gt=0, lt=LARGEST_SIGMA_REL)], ...] = ()
    """Relative widths of further power-function averages, which curves select by `ema_sigma_rel`."""
    snapshots: Annotated[int, Field(ge=0, le=1000)] = 0
    """Number of snapshots of all averages, for autoguidance and for averages of other lengths."""
    classifier_images: NonNegativeInt = 0
    """Images on which a noise-aware classifier is trained for guidance; 0: no classifier."""
    train_seeds: Seeds = (0, 1, 2)
    """Seeds of training; each is one training."""
    teacher: "Model | None" = None
    """The row of the trained network that `pairs: reflow` or the objective needs; `resolve` fills it in."""
    round_steps: PositiveInt | None = None
    """The steps of the student of one round of objective progressive; training fills it in."""
    like: "Model | None" = None
    """The row whose cost `equal` matches; `resolve` fills it in."""
    autoencoder: AutoencoderRow | None = None
    """The row that `space` names; `resolve` fills it in."""

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, keys: Any) -> Any:
        """Fill in the keys with which the objective was published."""
        name = keys.get("objective") if isinstance(keys, dict) else None
        return {**OBJECTIVES[name].published, **keys} if isinstance(name, str) and name in OBJECTIVES else keys

    @model_validator(mode="before")
    @classmethod
    def _imported_once(cls, keys: Any) -> Any:
        """An imported network has one seed."""
        return {"train_seeds": (0,)} | keys if isinstance(keys, dict) and keys.get("import") is not None else keys

    def _check_import(self) -> None:
        """Refuse keys of a training beside `import`, unless `resolve` has filled them in."""
        if self.train_seeds != (0,):
            raise ValueError("train_seeds: an imported network has one, 0; leave it out")
        own = self.model_fields_set - {"import_", "sha256", "train_seeds"}
        if own and not self.released:
            listed = ", ".join(key for key in type(self).model_fields if key in own)
            raise ValueError(f"import: the network is trained already, and {listed} would train it; leave them out")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.import_ is not None:
            self._check_import()
            return self
        if self.sha256 or self.released:
            raise ValueError("sha256: is that of an imported network; add import, or leave it out")
        weighting = WEIGHTINGS[self.weighting]
        for key in WEIGHTING_KEYS:
            if getattr(self, key) is not None and key not in weighting.keys:
                those = ", ".join(name for name, other in WEIGHTINGS.items() if key in other.keys)
                raise ValueError(f"{key}: weighting {self.weighting} does not use it; {key} is for {those}")
        for key in sorted(NETWORK_KEYS - set(KEYS[self.network])):
            if getattr(self, key) != type(self).model_fields[key].default:
                those = ", ".join(name for name, keys in KEYS.items() if key in keys)
                raise ValueError(f"{key}: network {self.network} does not use it; {key} is for {those}")
        self._check_objective()
        if self.draws == "stratified" and self.batch == 1:
            raise ValueError("draws: stratified needs a batch of at least 2; use independent")
        if self.pairs == "reflow":
            if not PARAMETRIZATIONS[self.parametrization].flow:
                flows = ", ".join(name for name, other in PARAMETRIZATIONS.items() if other.flow)
                raise ValueError(f"pairs: reflow needs a flow ({flows}) as parametrization, not {self.parametrization}")
            for key in ("augment", "flip"):
                if getattr(self, key):
                    raise ValueError(f"{key}: pairs reflow must not change images, which belong to their noise; use 0")
            if self.labels != "none":
                raise ValueError("labels: the images of pairs reflow have no classes; use none")
        if self.pairs == "optimal_transport" and self.batch == 1:
            raise ValueError("pairs: optimal_transport needs a batch of at least 2; use independent")
        if self.steps > MOST_STEPS:
            raise ValueError(f"images: {self.images} are {self.steps} steps; the most is {MOST_STEPS}")
        if self.snapshots > self.steps:
            raise ValueError(f"snapshots: {self.snapshots}, but the training has {self.steps} steps; use fewer")
        self._check_space()
        self._check_variance()
        self._check_range()
        self._check_weights()
        self._check_embedding()
        return self

    def _check_objective(self) -> None:
        """Refuse keys of other objectives, and choices that leave an objective without a meaning."""
        name, objective = self.objective, OBJECTIVES[self.objective]
        for key in OBJECTIVE_KEYS:
            if key not in objective.keys and getattr(self, key) != type(self).model_fields[key].default:
                those = ", ".join(other for other in OBJECTIVES if key in OBJECTIVES[other].keys)
                raise ValueError(f"{key}: objective {name} does not use it; {key} is for {those}")
        if self.first_steps & (self.first_steps - 1):
            lower = 1 << self.first_steps.bit_length() - 1
            raise ValueError(f"first_steps: {self.first_steps} is no power of two; use {lower} or {2 * lower}")
        if self.first_levels > self.last_levels:
            raise ValueError(f"first_levels ({self.first_levels}) must not be above last_levels ({self.last_levels})")
        if self.parametrization == "consistency" and not objective.maps:
            raise ValueError(f"parametrization: consistency is for consistency objectives, not {name}; use edm")
        if "grid" in objective.keys and objective.maps and self.grid not in CONSISTENCY_GRIDS:
            listed = " or ".join(CONSISTENCY_GRIDS)
            raise ValueError(
                f"grid: a consistency map ends at sigma {BOUNDARY:g}, where {self.grid} does not; use {listed}"
            )
        if name == "denoising" and "step" in WEIGHTINGS[self.weighting].keys:
            raise ValueError(
                f"weighting: {self.weighting} is for consistency objectives, which compare two noise levels"
            )
        if name == "denoising":
            return
        if self.pairs == "reflow":
            raise ValueError(f"objective: {name} draws its own noise, and pairs reflow bring theirs; use independent")
        for key in ("snapshots", "ema_halflives_images", "ema_sigma_rels"):
            if name == "progressive" and getattr(self, key):
                raise ValueError(
                    f"{key}: objective progressive keeps the main average of each student alone; leave it out"
                )
        if self.learned_variance != "none":
            raise ValueError(f"learned_variance: objective {name} does not train it; use none")
        if "snr_rate" in WEIGHTINGS[self.weighting].keys:
            raise ValueError(f"weighting: {self.weighting} is the bound of objective denoising; use another for {name}")
        if self.steps < len(self.rounds):
            raise ValueError(f"images: {self.images} are {self.steps} steps for {len(self.rounds)} rounds; use more")

    def _check_space(self) -> None:
        """Refuse choices that do not go with latents, or with an upsampler."""
        if self.space and self.resolution:
            raise ValueError("resolution: an autoencoder takes images of full size; leave out this or space")
        if self.space and self.upsampler:
            raise ValueError(
                "upsampler: averages pixels, and this row has a space of latents; leave one of the two out"
            )
        for key in ("augment", "flip"):
            if self.space and getattr(self, key):
                raise ValueError(f"{key}: changes pixels, and this row is trained on latents; use 0")
        if self.upsampler and self.pairs != "independent":
            raise ValueError(
                f"pairs: {self.pairs} would make the noise depend on the low-resolution image, which it does not in "
                "sampling; use independent"
            )

    def _check_variance(self) -> None:
        """Refuse to learn variances if a batch has no steps of a chain, or no levels of pixels."""
        if self.learned_variance == "none":
            return
        if CHAINS.get(self.parametrization) != self.noise:
            chains = " or ".join(f"parametrization {one} with noise {other}" for one, other in CHAINS.items())
            raise ValueError(
                f"learned_variance: {self.learned_variance} needs {chains}, not {self.parametrization} with "
                f"{self.noise}; use none"
            )
        if self.network == "mlp":
            raise ValueError("learned_variance: its decoder is for pixels, and network mlp is for points; use none")
        if key := next((key for key in ("space", "resolution") if getattr(self, key)), None):
            raise ValueError(f"learned_variance: its decoder is for pixels of 256 levels; use none, or no {key}")
        if self.pairs != "independent":
            raise ValueError(f"learned_variance: its bound is for pairs independent, not {self.pairs}; use none")

    def _check_range(self) -> None:
        """Refuse noise levels that are not positive and finite, or outside the parametrization's path."""
        path = PARAMETRIZATIONS[self.parametrization]
        low, high = self.levels(torch.tensor([BELOW, 1 - ABOVE], dtype=torch.float64))[0].tolist()
        if not 0 < low <= high < math.inf:
            raise ValueError(f"noise: sigma must be positive and finite; {self.noise} gives {low:.4g} to {high:.4g}")
        if high > SLACK * path.largest:
            raise ValueError(
                f"noise: {ABOVE:.1%} of the draws of {self.noise} exceed sigma {high:.4g}, but parametrization "
                f"{self.parametrization} ends at {path.largest:.4g}; change one of the two"
            )
        if low < path.smallest / SLACK:
            raise ValueError(
                f"noise: {BELOW:.0%} of the draws of {self.noise} are below sigma {low:.4g}, but parametrization "
                f"{self.parametrization} begins at {path.smallest:.4g}; change one of the two"
            )

    def _check_weights(self) -> None:
        """Refuse a loss in which a few draws outweigh all others, because lambda grows faster than c_out^2 shrinks."""
        if self.distance != "squared":
            return
        u = (torch.arange(TRIED, dtype=torch.float64) + 0.5) / TRIED
        levels = self.levels(u)
        sigma = levels[0]
        c_out = PARAMETRIZATIONS[self.parametrization](sigma, TRIED_SIGMA_DATA).c_out
        weight = self.weight(u, levels, TRIED_SIGMA_DATA, c_out) * c_out**2
        effective = float(weight.sum() ** 2 / weight.square().sum()) / TRIED
        if not effective > LEAST_EFFECTIVE:
            raise ValueError(
                f"weighting: {self.weighting} does not work with parametrization {self.parametrization} and noise "
                f"{self.noise}: the draws near sigma {float(sigma[weight.argmax()]):.2g} outweigh all others; use "
                "another weighting, or noise that avoids this level"
            )

    def _check_embedding(self) -> None:
        """Refuse an embedding whose frequencies are too high for the values of c_noise that the network is told."""
        ends = self.levels(torch.tensor([ABOVE, 1 - ABOVE], dtype=torch.float64))[0]
        low, high = PARAMETRIZATIONS[self.parametrization](ends, TRIED_SIGMA_DATA).c_noise.tolist()
        widest = EMBEDDINGS[self.embedding].widest
        if high - low > widest:
            raise ValueError(
                f"embedding: {self.embedding} suits c_noise in a range of at most {widest:g}, but parametrization "
                f"{self.parametrization} tells the network {low:.3g} to {high:.3g}; use positional"
            )

    @property
    def longest_average_images(self) -> float:
        """The half-life of the main average at the end of the training, its largest value."""
        return min(self.ema_halflife_images, self.ema_ramp_up * self.own_images if self.ema_ramp_up else math.inf)

    @property
    def distribution(self) -> Distribution:
        """The distribution of training noise levels."""
        return distribution(self.noise, vars(self))

    def levels(self, u: Tensor, step: int = 0) -> Falling:
        """The noise levels of the objective at u (N,) in a step of the training, (N,) each; the first one is sigma."""
        return OBJECTIVES[self.objective].levels_of(u, self.distribution, step, self.steps, vars(self))

    def weight(self, u: Tensor, levels: Falling, sigma_data: float, c_out: Tensor) -> Tensor:
        """lambda(sigma) at the noise levels of u; u, levels, c_out and the result have one shape."""
        weighting, choices = WEIGHTINGS[self.weighting], {key: getattr(self, key) for key in WEIGHTING_KEYS}
        rate = self.distribution.snr_rate(u) if "snr_rate" in weighting.keys else None
        step = levels[0] - levels[-1]
        return weighting(levels[0], sigma_data=sigma_data, c_out=c_out, snr_rate=rate, step=step, **choices)

    @property
    def steps(self) -> int:
        """The number of training steps, at least one."""
        return max(self.own_images // self.batch, 1)

    @property
    def own_images(self) -> int:
        """The length of this training alone, 0 for an import; it may be 0 or less if the teacher uses up the budget."""
        if self.import_ is not None:
            return 0
        return self.images - (self.teacher.total_images if self.teacher and self.budget == "total" else 0)

    @property
    def total_images(self) -> int:
        """The length of this training together with that of its teacher."""
        return self.own_images + (self.teacher.total_images if self.teacher else 0)

    @property
    def seen_images(self) -> int:
        """The images of all steps of this training: own_images in whole batches, of each round."""
        return sum(part.steps * part.batch for part in self.rounds)

    @property
    def needs_teacher(self) -> bool:
        return self.pairs == "reflow" or OBJECTIVES[self.objective].teacher

    @property
    def rounds(self) -> tuple["Model", ...]:
        """The trainings that follow each other: none, one, or one for each student of objective progressive."""
        if self.import_ is not None:
            return ()
        if self.objective != "progressive" or self.round_steps:
            return (self,)
        counts = [self.first_steps >> i for i in range(self.first_steps.bit_length())]
        own = {"images": self.own_images // len(counts), "budget": "own"}
        return tuple(self.model_copy(update=own | {"round_steps": count}) for count in counts)

    @property
    def lives_in_data(self) -> bool:
        """Whether it is a model of the data themselves, and neither of latents nor a stage of a cascade."""
        return not (self.space or self.resolution or self.upsampler)

    def shape_in(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of this row's data in its space: of latents, of averaged images, or of the data themselves.

        shape: (C, H, W) of images or (2,) of points. Raises StudyError if the two do not go together.
        """
        if self.autoencoder:
            try:
                return self.autoencoder.latent_shape(shape)
            except StudyError as error:
                raise StudyError(f"space: {self.space}: {error}") from None
        return low_shape(shape, self.resolution, "resolution") if self.resolution else tuple(shape)

    def spec(self, measured_sigma_data: float, shape: tuple[int, ...], classes: Sequence[int] = ()) -> Spec:
        """The spec of this row's denoiser for data of `shape`, (C, H, W) of images or (2,) of points.

        measured_sigma_data: in this row's space. classes: the number of images in each class. Raises StudyError if the
        network cannot have that shape, or if no number of channels makes it cost as much as that of `like`.
        """
        own, upsampler = self.shape_in(shape), self.upsampler
        if self.released:
            return self._released_spec(self.released, own, classes)
        if self.teacher and self.teacher.released and OBJECTIVES[self.objective].teacher:
            taught = self.teacher.spec(measured_sigma_data, shape, classes)  # the training starts from its weights
            return replace(taught, parametrization=self.parametrization, memory_format=self.memory_format)
        spec = Spec(
            parametrization=self.parametrization,
            sigma_data=self.sigma_data or measured_sigma_data,
            shape=own,
            network=self.network,
            channels=self.channels,
            multipliers=self.multipliers,
            blocks=self.blocks,
            attention=self.attention,
            patch=self.patch,
            embedding=self.embedding,
            dropout=self.dropout,
            memory_format=self.memory_format,
            augmentation=LABELS if self.augment else 0,
            classes=tuple(classes) if self.labels == "classes" else (),
            learned_variance=self.learned_variance != "none",
            low=low_shape(own, upsampler.height, "upsampler.from") if upsampler else (),
            low_augmentation=upsampler.augmentation if upsampler else "",
            low_strength=upsampler.strength if upsampler else 0.0,
        )
        if self.equal and self.like:
            like, flops = self.like.spec(measured_sigma_data, shape, classes), self.equal == "flops"
            beside = (self._decoding(shape), self.like._decoding(shape)) if flops else (0, 0)
            spec = replace(spec, channels=equal_channels(spec, like, self.equal, beside))
        return spec

    def with_released(self, sha256: str, spec: Spec) -> Self:
        """A row that imports a network, with what its file says."""
        known = {"parametrization": spec.parametrization, "sigma_data": spec.sigma_data, "label_dropout": 0.0}
        known |= {"labels": "classes" if spec.classes else "none"}
        known |= {"learned_variance": "hybrid" if spec.learned_variance else "none"}
        return self.model_copy(update=known | {"sha256": sha256, "released": json.dumps(spec.record())})

    def _released_spec(self, record: str, shape: tuple[int, ...], classes: Sequence[int]) -> Spec:
        spec = Spec.of(json.loads(record))
        if spec.shape != shape:
            theirs, ours = (" x ".join(map(str, sides)) for sides in (spec.shape, shape))
            raise StudyError(f"import: the network is for data of {theirs}, and these are {ours}; import another one")
        if spec.classes and classes and len(classes) != len(spec.classes):
            raise StudyError(
                f"import: the network has {len(spec.classes)} classes, and the data have {len(classes)}; import another"
            )
        return replace(spec, classes=tuple(classes) or spec.classes) if spec.classes else spec

    def _decoding(self, shape: tuple[int, ...]) -> int:
        """The FLOPs of the decoder for one image, spread over EQUAL_EVALUATIONS evaluations; 0 in pixels."""
        return decoder_size(self.autoencoder.spec(shape)).flops // EQUAL_EVALUATIONS if self.autoencoder else 0
