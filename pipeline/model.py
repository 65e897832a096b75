"""A model row: how one network is trained."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from pipeline.noise import NOISES
from pipeline.parametrization import PARAMETRIZATIONS
from pipeline.rows import Row, Seeds, axis
from pipeline.weighting import WEIGHTINGS


class Model(Row):
    """One training. `sigma_data` None means: as measured on the data set."""

    parametrization: Literal[tuple(PARAMETRIZATIONS)] = axis("edm", "parametrization")  # type: ignore[valid-type]
    noise: Literal[tuple(NOISES)] = axis("lognormal", "noise distribution")  # type: ignore[valid-type]
    P_mean: float = axis(-1.2, "noise distribution")
    P_std: PositiveFloat = axis(1.2, "noise distribution")
    weighting: Literal[tuple(WEIGHTINGS)] = axis("unit", "loss weighting")  # type: ignore[valid-type]
    sigma_data: PositiveFloat | None = axis(None, "sigma_data")
    channels: Annotated[int, Field(multiple_of=8, ge=8)] = axis(16, "network")
    multipliers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = axis((1, 2, 4), "network")
    blocks: PositiveInt = axis(1, "network")
    images: PositiveInt = axis(140_000, "training length")
    batch: PositiveInt = axis(128, "batch size")
    learning_rate: PositiveFloat = axis(8e-3, "learning rate")
    warmup_images: PositiveInt = axis(10_000, "learning rate")
    ema_halflife_images: PositiveInt = axis(10_000, "EMA length")
    train_seeds: Seeds = (0, 1, 2)

    @property
    def steps(self) -> int:
        """Steps of `batch` images that make up `images`, at least one."""
        return max(self.images // self.batch, 1)

    def spec(self, measured_sigma_data: float, shape: tuple[int, ...]) -> dict[str, Any]:
        """What builds this row's denoiser for images of `shape` (C, H, W) with this sigma_data."""
        return {
            "parametrization": self.parametrization,
            "sigma_data": self.sigma_data or measured_sigma_data,
            "shape": list(shape),
            "channels": self.channels,
            "multipliers": list(self.multipliers),
            "blocks": self.blocks,
        }
