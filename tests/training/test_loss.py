"""The loss on the network's output equals the weighted error of the denoiser."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pipeline.diffusion.denoiser import Denoiser, per_sample
from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.training.loss import loss
from pipeline.training.weighting import WEIGHTINGS
from tests.training.small import SHAPE, SPEC


class Network(nn.Module):
    """An arbitrary function of x and c_noise, in their precision."""

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, told: Tensor | None = None) -> Tensor:
        return (3 * x.float()).sin() + per_sample(c_noise, x).cos()


@pytest.mark.parametrize("count", [4, 21])  # equal to the image's width, and not
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_the_loss_is_the_weighted_error_of_the_denoiser(parametrization: str, weighting: str, count: int) -> None:
    denoiser = Denoiser(replace(SPEC, parametrization=parametrization))
    denoiser.network = Network()
    random_numbers = torch.Generator().manual_seed(1)
    x0, n = torch.randn(2, count, *SHAPE, dtype=torch.float64, generator=random_numbers)
    sigma = torch.logspace(-3, 2, count, dtype=torch.float64)
    denoised = denoiser(x0 + sigma[:, None, None, None] * n, sigma)
    c_out = denoiser.coefficients(sigma, 0.5).c_out
    weight = WEIGHTINGS[weighting](sigma, sigma_data=0.5, c_out=c_out, snr_rate=sigma.sqrt(), step=sigma / 2)
    expected = weight * (denoised - x0).square().mean((1, 2, 3))
    torch.testing.assert_close(loss(denoiser, weight, x0, n, sigma), expected, rtol=1e-6, atol=0)
