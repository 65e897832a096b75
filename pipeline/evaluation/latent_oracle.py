"""What an autoencoder and a sampler lose, exactly: Gaussian data, principal components, and exact denoisers.

On a Gaussian, a deterministic solver multiplies each principal direction of the noise by one number. So the law of its
samples is known without drawing any. Losses are squared 2-Wasserstein distances, in the units of data in [-1, 1],
summed over all values of an image. A sample is not rounded to uint8.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import to_range
from pipeline.diffusion.gaussian import CorrelatedGaussian
from pipeline.metrics.estimate import moments
from pipeline.sampling.loop import sample
from pipeline.sampling.row import Sampler


@dataclass(frozen=True)
class Projection:
    """A linear autoencoder: z = scale matrix (x - offset), x = matrix^T z / scale + offset.

    matrix: (k, d), with orthonormal rows; offset: (d,); both float64. Raises StudyError if the rows are not orthonormal
    to 1e-9.
    """

    matrix: Tensor
    offset: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        if (self.matrix @ self.matrix.T - torch.eye(len(self.matrix), dtype=torch.float64)).abs().max() > 1e-9:
            raise StudyError("autoencoder: the encoder's rows are not orthonormal; only projections have exact losses")

    def encoded(self, data: CorrelatedGaussian) -> CorrelatedGaussian:
        """The law of the latents, (k,), of data, (d,)."""
        return data.under(self.scale * self.matrix, -self.scale * self.matrix @ self.offset)

    def decoded(self, latents: CorrelatedGaussian) -> CorrelatedGaussian:
        """The law of the decoded latents, (d,)."""
        return latents.under(self.matrix.T / self.scale, self.offset)

    def loss(self, data: CorrelatedGaussian) -> float:
        """The distance of data from their decoded latents: E |(I - P) (x - offset)|^2, P = matrix^T matrix.

        If the rows are principal components of the data, this is the sum of the discarded eigenvalues.
        """
        outside = torch.eye(len(self.offset), dtype=torch.float64) - self.matrix.T @ self.matrix
        return float((outside @ data.root).square().sum() + (outside @ (data.mean - self.offset)).square().sum())


@dataclass(frozen=True)
class LatentLosses:
    """The losses of one sampler at one number of steps.

    autoencoder: data against decoded exact latents. sampler: decoded exact latents against the decoded samples. both:
    data against the decoded samples, which is the sum of the two because the projection splits every squared distance
    (Pythagoras). pixels: data against the samples of the same sampler without an autoencoder.
    """

    steps: int
    nfe: int
    autoencoder: float
    sampler: float
    both: float
    pixels: float


@dataclass(frozen=True)
class SampledLaw:
    """The law of a sampler's samples, their distance from the exact law, and the network calls of each sample.

    directions: the eigenvectors (d, d) of the exact law, in whose coordinates samples have the mean `centre` and the
    standard deviation `factor`, (d,) each.
    """

    directions: Tensor
    centre: Tensor
    factor: Tensor
    loss: float
    nfe: int

    @property
    def law(self) -> CorrelatedGaussian:
        return CorrelatedGaussian(self.directions @ self.centre, (self.directions * self.factor**2) @ self.directions.T)


def sampled_law(exact: CorrelatedGaussian, sampler: Sampler, steps: int) -> SampledLaw:
    """The law of a deterministic sampler's samples on the exact denoiser of a Gaussian, (d,).

    In the eigenvectors' coordinates the denoiser acts on each value by itself. So samples from the noise 0 and from
    the noise 1 give each coordinate's mean and its factor on the noise. Raises StudyError if the samples are not linear
    in the noise, or guided.
    """
    solver = sampler.build_solver()
    guided = not sampler.build_guidance().idle
    if solver.stochastic or solver.adaptive or guided or sampler.threshold != "none":
        raise StudyError(
            f"solver {sampler.solver}: its samples are guided or not linear in the noise, so their law is unknown; "
            "use a deterministic solver with fixed steps, without guidance and threshold"
        )
    variances, directions = exact.variances, exact.directions
    mean = exact.mean @ directions

    def denoiser(z: Tensor, sigma: Tensor) -> Tensor:
        return mean + variances / (variances + sigma**2) * (z - mean)

    noise = torch.stack([torch.zeros_like(mean), torch.ones_like(mean)])
    samples = sample(denoiser, noise, sampler, steps)
    centre, end = samples.x0
    factor = end - centre
    loss = (centre - mean).square().sum() + (factor.abs() - variances.sqrt()).square().sum()
    return SampledLaw(directions, centre, factor, float(loss), samples.nfe)


def latent_losses(
    data: CorrelatedGaussian, projection: Projection, sampler: Sampler, steps: Sequence[int]
) -> list[LatentLosses]:
    """The losses of a sampler at each number of steps, on the exact denoisers of data (d,) and of their latents.

    Raises StudyError as `sampled_law` does.
    """
    latents, floor = projection.encoded(data), projection.loss(data)
    found = []
    for count in steps:
        made, pixels = sampled_law(latents, sampler, count), sampled_law(data, sampler, count)
        lost = made.loss / projection.scale**2
        found.append(LatentLosses(count, made.nfe, floor, lost, floor + lost, pixels.loss))
    return found


def image_gaussian(images: Tensor) -> CorrelatedGaussian:
    """The Gaussian with the mean and the unbiased covariance of images, uint8 (N, C, H, W), in [-1, 1]."""
    found = moments(to_range(images).flatten(1))
    return CorrelatedGaussian(found.mean, found.covariance)


def patch_components(data: CorrelatedGaussian, shape: tuple[int, int, int], factor: int, channels: int) -> Projection:
    """The principal components of all patches of factor x factor pixels, for data of images of a shape (C, H, W).

    One set of components and one mean patch serve all places. The latents, (channels, H / factor, W / factor), have
    the root mean square 1. A factor of H = W gives the components of whole images. Raises StudyError if the factor
    does not divide the image, or if a patch has fewer values than `channels`.
    """
    colours, height, width = shape
    if height % factor or width % factor:
        raise StudyError(f"factor: {factor} does not divide images of {height} x {width}; write a divisor of both")
    if channels > colours * factor**2:
        raise StudyError(
            f"channels: a patch has only {colours * factor**2} principal components, not {channels}; write fewer"
        )
    rows, columns = height // factor, width // factor
    pixels = torch.arange(math.prod(shape)).reshape(colours, rows, factor, columns, factor)
    patches = pixels.permute(1, 3, 0, 2, 4).reshape(rows * columns, -1)  # the indices of each patch's values
    means = data.mean[patches]
    within = torch.stack([data.covariance[patch][:, patch] for patch in patches]).mean(0)
    between = (means - means.mean(0)).T @ (means - means.mean(0)) / len(patches)
    components = torch.linalg.eigh(within + between)[1].flip(1)[:, :channels].T
    matrix = torch.zeros(channels, len(patches), len(data.mean), dtype=torch.float64)
    matrix[:, torch.arange(len(patches))[:, None], patches] = components[:, None]
    offset = torch.zeros_like(data.mean)
    offset[patches] = means.mean(0).expand_as(means)
    plain = Projection(matrix.flatten(0, 1), offset)
    latents = plain.encoded(data)
    square = (latents.covariance.trace() + latents.mean.square().sum()) / len(latents.mean)
    return Projection(plain.matrix, offset, float(square.rsqrt()))


def latent_oracle(
    images: Tensor, factor: int, channels: int, sampler: Sampler, steps: Sequence[int]
) -> list[LatentLosses]:
    """The losses for the Gaussian of images, uint8 (N, C, H, W), and the principal components of their patches.

    Raises StudyError for bad `factor`, `channels` or sampler.
    """

    def found() -> list[LatentLosses]:
        data = image_gaussian(images)
        colours, height, width = images.shape[1:]
        projection = patch_components(data, (colours, height, width), factor, channels)
        return latent_losses(data, projection, sampler, steps)

    [losses] = side_by_side([found])  # on one thread, so that all machines add in one order
    return losses
