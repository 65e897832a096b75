"""diffusers' UNet2DModel as one of our networks. diffusers itself builds it."""

import json

from torch import Tensor, nn


class UNet2D(nn.Module):
    """F(x, c_noise): x (N, C, H, W) and c_noise (N,) to (N, outputs, H, W). It has no labels and no augmentations."""

    def __init__(self, config: str) -> None:
        """config: the JSON of its configuration."""
        super().__init__()
        from diffusers import UNet2DModel  # slow to import, and only needed for these

        self.unet = UNet2DModel.from_config(json.loads(config))

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Tensor:
        return self.unet(x, c_noise).sample
