"""A tiny AutoencoderKL with random weights, as diffusers writes it."""

from pathlib import Path
from typing import Any

import torch

CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "latent_channels": 2,
    "norm_num_groups": 4,
}


def write_released(folder: Path) -> None:
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoencoderKL(**CONFIG).save_pretrained(folder)
