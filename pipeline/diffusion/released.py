"""Released autoencoders: folders of diffusers' AutoencoderKL, with `config.json` and safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.common.errors import StudyError
from pipeline.common.sealed import FOREIGN
from pipeline.diffusion.networks.layers import seeded

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
CLASS = "AutoencoderKL"


class ReleasedEncoder(nn.Module):
    """Images (N, C, H, W) to the posterior's mean and log variance, (N, 2 c, H / factor, W / factor)."""

    def __init__(self, encoder: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.encoder, self.last = encoder, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.encoder(x))


class ReleasedDecoder(nn.Module):
    """Latents (N, c, h, w) to images (N, C, factor h, factor w)."""

    def __init__(self, first: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.first, self.decoder = first, decoder

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(self.first(z))


def released_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's config.json, without notes such as its version. Nothing else is read.

    Raises StudyError if a file is missing or broken, if the weights are a pickle, or if it is another kind of network.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            pickles = ", and pickles (.bin) are not read" if [*folder.glob("*.bin")] else ""
            raise StudyError(f"{folder}: no {name}{pickles}; use what diffusers' save_pretrained writes")
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, sizes = config["_class_name"], [factor_of(config), channels_of(config)]
        sizes += [int(config[key]) for key in ("in_channels", "out_channels")]
    except (*FOREIGN, OSError) as error:
        raise StudyError(f"{folder / CONFIG}: not the configuration of an {CLASS} ({error!r})") from None
    if kind != CLASS or min(sizes) < 1:
        raise StudyError(f"{folder / CONFIG}: not the configuration of an {CLASS} ({kind}); use another folder")
    return {key: value for key, value in config.items() if not key.startswith("_")}


def factor_of(config: Mapping[str, Any]) -> int:
    """The side by which latents are smaller than images: each level but the last halves the resolution."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


def channels_of(config: Mapping[str, Any]) -> int:
    """The channels of latents."""
    return int(config["latent_channels"])


def read_released(folder: Path) -> tuple[ReleasedEncoder, ReleasedDecoder]:
    """The encoder and the decoder in a folder, with their weights, from this machine alone.

    Raises StudyError as `released_config` does, and if weights are missing, broken or of another shape.
    """
    released_config(folder)
    from diffusers import AutoencoderKL  # slow to import, and only needed for these

    def read() -> Any:
        return AutoencoderKL.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )

    try:
        model, found = seeded(read, "released autoencoder", 0)
    except (*FOREIGN, OSError) as error:
        raise StudyError(f"{folder / WEIGHTS}: not the weights of its {CONFIG} ({error})") from None
    if lacking := [*found["missing_keys"], *found["unexpected_keys"]]:
        raise StudyError(f"{folder / WEIGHTS}: not the weights of its {CONFIG} ({lacking[0]} is in one of them only)")
    return _parts(model)


def build_released(config: Mapping[str, Any]) -> tuple[ReleasedEncoder, ReleasedDecoder]:
    """The encoder and the decoder of a configuration, with weights from PyTorch's global generator.

    Raises StudyError if there is no such network.
    """
    from diffusers import AutoencoderKL

    try:
        return _parts(AutoencoderKL.from_config(dict(config)))
    except FOREIGN as error:
        raise StudyError(f"{CONFIG}: not the configuration of an {CLASS} ({error!r})") from None


def _parts(model: Any) -> tuple[ReleasedEncoder, ReleasedDecoder]:
    first, last = (layer or nn.Identity() for layer in (model.post_quant_conv, model.quant_conv))
    return ReleasedEncoder(model.encoder, last), ReleasedDecoder(first, model.decoder)
