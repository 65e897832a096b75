"""What a denoiser is built from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Spec:
    """Everything that rebuilds a denoiser, except its weights. It is the metadata of a file of weights.

    Most fields are keys of a model row; of those from `channels` to `dropout`, KEYS lists the ones that a network uses.
    sigma_data is the standard deviation of the data. shape is (C, H, W) of images or (2,) of points. augmentation is
    the count of numbers that describe an augmentation, 0 for a network that takes none. classes is the number of images
    in each class, () for a network that takes no labels. learned_variance: whether the network also answers the
    variance of a step. low is the shape (C, h, w) of the low-resolution images that an upsampler gets, () for other
    networks; low_augmentation, of AUGMENTATIONS, and low_strength, the largest in training, say how they are augmented.
    config is the JSON of a diffusers' network, "" for others. The file of another network leaves these four out.
    """

    parametrization: str
    sigma_data: float
    shape: tuple[int, ...]
    network: str
    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    patch: int
    embedding: str
    dropout: float
    memory_format: str
    augmentation: int
    classes: tuple[int, ...]
    learned_variance: bool = False
    low: tuple[int, ...] = ()
    low_augmentation: str = ""
    low_strength: float = 0.0
    config: str = ""

    def record(self) -> dict[str, Any]:
        """The fields in alphabetical order, for JSON, without those that only other networks have."""
        absent = (() if self.low else ("low", "low_augmentation", "low_strength")) + (
            () if self.config else ("config",)
        )
        return dict(sorted((key, value) for key, value in asdict(self).items() if key not in absent))

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Inverse of `record`. Raises TypeError or ValueError if it is not that of a spec."""
        values = dict[str, Any](record)
        lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return cls(**values | lists)
