"""The training loss: the weighted error of the denoiser, computed on the network's own output (EDM, eq. 8)."""

from collections.abc import Sequence
from typing import NamedTuple, Self

from torch import Tensor

from pipeline.common.devices import Network, to_device
from pipeline.diffusion.denoiser import Denoiser, Inputs, network_parts, per_sample
from pipeline.diffusion.parametrization import Coefficients
from pipeline.training.distances import Distance, squared


class Terms(NamedTuple):
    """The factors of the loss at N noise levels sigma, (N,) each. With z = x0 + sigma n, the error of F is

        difference = F(c_in z, c_noise) - (signal x0 - noise n) - (target - x0) / c_out,

    so that D(z; sigma) - target is c_out difference. The target is x0 itself, or what another objective puts in its
    place. With the squared distance, the loss of an image is weight difference^2, which equals lambda(sigma) (D(z;
    sigma) - target)^2 (Karras et al. 2022, arXiv 2206.00364, eq. 8). We compute it on F, because the factors of its
    target are exact at every sigma.
    """

    sigma: Tensor
    c_in: Tensor
    c_noise: Tensor
    signal: Tensor
    noise: Tensor
    c_out: Tensor
    weight: Tensor

    @classmethod
    def of(cls, coefficients: Coefficients, weight: Tensor, sigma: Tensor) -> Self:
        """The terms of a parametrization's coefficients and a weight lambda(sigma) on D, (N,) each."""
        c_skip, c_out, c_in, c_noise = coefficients
        return cls(sigma, c_in, c_noise, (1 - c_skip) / c_out, c_skip * sigma / c_out, c_out, weight * c_out**2)

    def part(self, images: slice) -> Self:
        """The terms of some of the images."""
        return type(self)(*(values[images] for values in self))


class Errors(NamedTuple):
    """The loss of each image, (N,); F minus its target, (N, ...); v of `network_parts`."""

    losses: Tensor
    difference: Tensor
    v: Tensor | None


def network_error(
    network: Network,
    terms: Terms,
    x0: Tensor,
    n: Tensor,
    conditions: Sequence[Tensor | None] = (),
    target: Tensor | None = None,
    distance: Distance = squared,
) -> Errors:
    """The errors of a network for images x0 and noise n, (N, ...) each.

    conditions: the network's further inputs, in order. target (N, ...): of D; None is x0.
    """
    z = x0 + per_sample(terms.sigma, n) * n
    of_f = per_sample(terms.signal, x0) * x0 - per_sample(terms.noise, n) * n
    if target is not None:
        of_f = of_f + (target - x0) / per_sample(terms.c_out, x0)
    output = network(per_sample(terms.c_in, z) * z, to_device(terms.c_noise.float(), z.device), *conditions)
    f, v = network_parts(output, z)
    difference = f - of_f
    weight, c_out = (to_device(factor.float(), z.device) for factor in (terms.weight, terms.c_out))
    return Errors(weight * distance(difference, c_out), difference, v)


def loss(
    denoiser: Denoiser,
    weight: Tensor,
    x0: Tensor,
    n: Tensor,
    sigma: Tensor,
    labels: Tensor | None = None,
    low: Inputs = (),
) -> Tensor:
    """weight (D(x0 + sigma n; sigma) - x0)^2, averaged over pixels: x0, n (N, ...), weight, sigma (N,) to (N,).

    labels (N,), int64: the images' classes, -1 for none. low: `Denoiser.low_inputs` of an upsampler.
    """
    terms = Terms.of(denoiser.coefficients(sigma, denoiser.sigma_data), weight, sigma)
    return network_error(denoiser.network, terms, x0, n, (labels, *((None, *low) if low else ()))).losses
