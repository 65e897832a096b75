"""What a denoiser is built from."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Spec:
    """Everything that rebuilds a denoiser, except its weights. It is the metadata of a file of weights.

    Most fields are keys of a model row; of those from `channels` to `dropout`, KEYS lists the ones that a network uses.
    sigma_data is the standard deviation of the data. shape is (C, H, W) of images or (2,) of points. augmentation is
    the count of numbers that describe an augmentation, 0 for a network that takes none. classes is the number of images
    in each class, () for a network that takes no labels.
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

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`. Raises TypeError or ValueError if the text is not a spec."""
        values = dict[str, Any](json.loads(text))
        lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return cls(**values | lists)
