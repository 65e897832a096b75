"""Training of autoencoders, and the latents of images."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.common import processes
from pipeline.common.devices import CPU, to_device
from pipeline.common.errors import say_once
from pipeline.common.fingerprint import code_hash
from pipeline.common.machine import machine
from pipeline.common.randomness import generator
from pipeline.common.sealed import kept
from pipeline.common.tensors import load_tensors, save_tensors
from pipeline.data.dataset import to_hash, to_range
from pipeline.diffusion.autoencoder import Autoencoder, AutoencoderSpec, chunk_of, new_autoencoder
from pipeline.diffusion.networks.coders import Decoder, Encoder, FromComponents, QuantizingDecoder, ToComponents
from pipeline.diffusion.released import read_released
from pipeline.training.autoencoder_row import AutoencoderRow
from pipeline.training.batches import batch_indices
from pipeline.training.checkpoint import optimizer_state, restore_optimizer, under
from pipeline.training.optimizer import adam
from pipeline.training.run import CURVE_POINTS, Diverged

CHECKPOINTS = 10  # checkpoints of a training
CHUNK = 2048  # images whose latents are summed at a time
BEGIN_LOG_VARIANCE = -6.0  # of the posterior before training
LOG_VARIANCES = (-30.0, 20.0)  # limits of the posterior's log variance, as in latent diffusion


@dataclass(frozen=True)
class TrainedAutoencoder:
    """An autoencoder on the CPU, in eval mode and without gradients, and its training curve, [{images, loss}].

    facts, over all training images: `mse`, the mean squared error of a value in [-1, 1]; for kl `kl`, the posterior's
    KL divergence in nats per image; for vq `perplexity`, the exponential of the entropy of the codes' frequencies.
    """

    autoencoder: Autoencoder
    curve: list[dict[str, float]] = field(default_factory=list)
    facts: dict[str, float | None] = field(default_factory=dict)


def autoencoder_setting(row: AutoencoderRow, images: Tensor, device: torch.device = CPU) -> dict[str, Any]:
    """Everything that the result depends on, for JSON: row, data, code and machine."""
    code = code_hash("pipeline.training.autoencoder")
    return {**row.model_dump(mode="json"), "data": to_hash(images), "code": code, **machine(device)}


def train_autoencoder(
    row: AutoencoderRow,
    images: Tensor,
    checkpoint: Path | None = None,
    progress: Callable[[int], object] = lambda images: None,
    device: torch.device = CPU,
) -> TrainedAutoencoder:
    """The autoencoder of a row, for images (N, C, H, W), uint8.

    Kinds kl and vq are trained on the squared error, without a perceptual or an adversarial loss, so that their images
    are smoother than those of Rombach et al. 2022 (arXiv 2112.10752). pca is computed, and released is read.

    The result depends on row, images and the kind of device alone: seed and step name the generator of each draw. So a
    training that was killed continues from `checkpoint` to the same bytes; a checkpoint of another setting is not used.
    `progress` is called with the number of images trained on since its last call. Safe to call in several threads.

    Raises StudyError if the row does not fit the images, and Diverged if a loss, a weight or a latent is not finite.
    """
    spec = row.spec(tuple(images.shape[1:]))
    curve: list[dict[str, float]] = []
    if row.kind == "pca":
        autoencoder = _principal_components(spec, images)
    elif row.folder is not None:
        autoencoder = Autoencoder(spec, read_released(Path(row.folder).expanduser()))
    else:
        run = _Run(row, spec, images, device)
        setting = autoencoder_setting(row, images, device) if checkpoint else {}
        if checkpoint and run.load(checkpoint, setting):
            progress(run.step * row.batch)
        on_device, interval = to_device(images, device), max(row.steps // CHECKPOINTS, 1)
        while run.step < row.steps:
            run.advance(on_device)
            progress(row.batch)
            if run.step % interval == 0 or run.step == row.steps:
                run.check()
                if checkpoint and processes.first():
                    save_tensors(checkpoint, run.state(), "setting", setting)
        autoencoder, curve = run.autoencoder, run.curve()
    autoencoder.to(device).eval().requires_grad_(False)
    _standardize(autoencoder, images, partial(Diverged, curve=curve))
    facts = _facts(autoencoder, images)
    return TrainedAutoencoder(autoencoder.to(CPU), curve, facts)


@torch.no_grad()
def encode_images(autoencoder: Autoencoder, images: Tensor, device: torch.device = CPU) -> Tensor:
    """The latents of images (N, C, H, W), uint8: (N, c, h, w), float32, on the CPU."""
    on_device = copy.deepcopy(autoencoder).to(device)
    return torch.cat([on_device.encode(x).to(CPU) for x in _chunks(images, device)]).contiguous()


def losses_kl(autoencoder: Autoencoder, x: Tensor, noise: Tensor, kl_weight: float) -> Tensor:
    """The loss of each image of x (N, C, H, W), (N,), with a latent drawn by standard normal noise (N, c, h, w).

    Squared error and KL divergence are sums over an image, as in latent diffusion (arXiv 2112.10752, app. G), and are
    divided by the number of its values, so that the loss is a mean squared error.

    Formula: (||x - D(mu + s n)||^2 + w KL(N(mu, s^2) || N(0, 1))) / (C H W)
    Source: Kingma and Welling 2014, arXiv 1312.6114, eq. 10
    """
    mean, log_variance = posterior(autoencoder, x)
    z = mean + (log_variance / 2).exp() * noise
    divergence = kl_divergence(mean, log_variance)
    return (autoencoder.decoder(z) - x).square().flatten(1).mean(1) + kl_weight * divergence / x[0].numel()


def posterior(autoencoder: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the posterior of kind kl, before shift and scale: (N, c, h, w) each."""
    mean, log_variance = autoencoder.encoder(x).chunk(2, dim=1)
    return mean, log_variance.clamp(*LOG_VARIANCES)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) of each image in nats: (N, c, h, w) to (N,)."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1) / 2


def losses_vq(autoencoder: Autoencoder, x: Tensor, commitment: float) -> Tensor:
    """The loss of each image of x (N, C, H, W), (N,), whose gradient goes straight through the quantisation.

    Formula: mean (x - D(e))^2 + mean (sg(z) - e)^2 + beta mean (z - sg(e))^2
    Source: van den Oord et al. 2017, arXiv 1711.00937, eq. 3
    """
    decoder = autoencoder.decoder
    assert isinstance(decoder, QuantizingDecoder)
    z = autoencoder.encoder(x)
    e = decoder.quantized(z)
    errors = (decoder.decoder(z + (e - z).detach()) - x, z.detach() - e, math.sqrt(commitment) * (z - e.detach()))
    return torch.stack([error.square().flatten(1).mean(1) for error in errors]).sum(0)


class _Run:
    """The state of one training, all of which a checkpoint holds."""

    def __init__(self, row: AutoencoderRow, spec: AutoencoderSpec, images: Tensor, device: torch.device) -> None:
        self.row, self.count, self.device = row, len(images), device
        self.autoencoder = new_autoencoder(spec, row.seed)
        _begin_linear(self.autoencoder, images, row.seed)
        self.autoencoder.to(device)
        self.optimizer = adam(self.autoencoder.parameters(), row.learning_rate)
        self.step = 0
        self.losses = torch.zeros(row.steps, device=device)

    def advance(self, images: Tensor) -> None:
        """Train one step on images (N, C, H, W), uint8, on the device."""
        row = self.row
        x = to_range(images[to_device(batch_indices(row.seed, self.step, row.batch, self.count), self.device)])
        if row.kind == "kl":
            draw = generator("autoencoder step", row.seed, self.step)
            noise = torch.randn(len(x), *self.autoencoder.latent_shape, generator=draw)
            losses = losses_kl(self.autoencoder, x, to_device(noise, self.device), row.kl_weight)
        else:
            losses = losses_vq(self.autoencoder, x, row.commitment)
        self.optimizer.param_groups[0]["lr"] = _learning_rate(row, self.step)
        self.optimizer.zero_grad()
        loss = losses.mean()
        loss.backward()
        self.optimizer.step()
        self.losses[self.step] = loss.detach()
        self.step += 1

    def check(self) -> None:
        """Raises Diverged if a loss so far, or a weight now, is not finite."""
        losses = self.losses[: self.step].cpu()
        weights = [parameter.detach() for parameter in self.autoencoder.parameters()]
        if not losses.isfinite().all():
            step, what = int(losses.isfinite().int().argmin()), "the loss is"
        elif not all(bool(weight.isfinite().all()) for weight in weights):
            step, what = self.step, "the weights are"
        else:
            return
        raise Diverged(f"seed {self.row.seed}: {what} not finite at step {step}; lower learning_rate?", self.curve())

    def state(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": value for name, value in self.autoencoder.state_dict().items()}
        return tensors | optimizer_state(self.optimizer) | {"step": torch.tensor(self.step), "losses": self.losses}

    def load(self, checkpoint: Path, setting: dict[str, Any]) -> bool:
        """Restore a checkpoint; False if the file is missing, broken or of another setting."""
        if not (found := kept(partial(load_tensors, kind="setting"), checkpoint)):
            return False
        tensors, saved = found
        if saved != json.loads(json.dumps(setting)):
            say_once(f"{checkpoint}: checkpoint of another training; training from the start")
            return False
        self.autoencoder.load_state_dict(under(tensors, "model."))
        restore_optimizer(self.optimizer, tensors)
        self.losses.copy_(tensors["losses"])
        self.step = int(tensors["step"])
        return True

    def curve(self) -> list[dict[str, float]]:
        """The mean loss over each stretch of steps, up to one that is not over or not finite."""
        losses = self.losses.cpu()
        points = (
            {"images": (int(s[-1]) + 1) * self.row.batch, "loss": round(float(losses[s].mean()), 6)}
            for s in torch.arange(self.row.steps).tensor_split(min(CURVE_POINTS, self.row.steps))
            if int(s[-1]) < self.step
        )
        return list(takewhile(lambda point: math.isfinite(point["loss"]), points))


@torch.no_grad()
def _begin_linear(autoencoder: Autoencoder, images: Tensor, seed: int) -> None:
    """Set the linear maps to principal components, the posterior's variance to a small one, and the codebook to
    latents of images drawn at random. Training then starts with about the error of kind pca.
    """
    spec, encoder, decoder = autoencoder.spec, autoencoder.encoder, autoencoder.decoder
    codebook = decoder.codebook.weight if isinstance(decoder, QuantizingDecoder) else None
    decoder = decoder.decoder if isinstance(decoder, QuantizingDecoder) else decoder
    assert isinstance(encoder, Encoder) and isinstance(decoder, Decoder)
    mean, _, components = principal_components(images, spec.factor)
    chosen = components[: spec.channels].reshape(-1, *decoder.linear.weight.shape[1:]).float()
    channel_means = mean.reshape(spec.shape[0], -1).mean(1).float()
    bias = torch.full((len(encoder.linear.weight),), BEGIN_LOG_VARIANCE)
    bias[: spec.channels] = 0
    bias[: len(chosen)] = -chosen.sum((2, 3)) @ channel_means
    for linear, its_bias in ((encoder.linear, bias), (decoder.linear, channel_means)):
        weight = torch.zeros_like(linear.weight)
        weight[: len(chosen)] = chosen
        linear.load_state_dict({"weight": weight, "bias": its_bias})
    if codebook is not None:
        draw = generator("codebook", seed)
        some = images[torch.randperm(len(images), generator=draw)[: len(codebook)]]
        vectors = encode_images(autoencoder, some).movedim(1, -1).flatten(0, 2)
        codebook.copy_(vectors[torch.randint(len(vectors), (len(codebook),), generator=draw)])


def _learning_rate(row: AutoencoderRow, step: int) -> float:
    """A linear warm-up times half a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5)."""
    warm = min((step + 1) * row.batch / row.warmup_images, 1.0)
    return row.learning_rate * warm * (1 + math.cos(math.pi * step / row.steps)) / 2


def _chunks(images: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Images (N, C, H, W), uint8, as floats in [-1, 1] on the device, in parts of fixed sizes."""
    return (to_range(to_device(part, device)) for part in images.split(chunk_of(images.shape[1:])))


def principal_components(images: Tensor, factor: int) -> tuple[Tensor, Tensor, Tensor]:
    """The mean patch (d,) of images (N, C, H, W), uint8, in [-1, 1], and the components of patches, all float64.

    Returns mean (d,), eigenvalues (d,) of the covariance in falling order, and components (d, d), one a row, whose
    largest entry is positive; d = C factor^2. Sums are exact, because pixels are integers.
    """
    size = factor**2 * images.shape[1]
    total, products, count = torch.zeros(size).double(), torch.zeros(size, size).double(), 0
    for part in images.split(chunk_of(images.shape[1:])):
        patches = F.unfold(part.double(), factor, stride=factor).movedim(1, -1).flatten(0, 1)
        total, products, count = total + patches.sum(0), products + patches.T @ patches, count + len(patches)
    mean = total / count
    values, vectors = torch.linalg.eigh((products / count - torch.outer(mean, mean)) / 127.5**2)
    components = vectors.T.flip(0)
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    return mean / 127.5 - 1, values.flip(0), components * largest.sign()


def _principal_components(spec: AutoencoderSpec, images: Tensor) -> Autoencoder:
    mean, _, components = principal_components(images, spec.factor)
    autoencoder = Autoencoder(spec)
    for coder in (autoencoder.encoder, autoencoder.decoder):
        assert isinstance(coder, ToComponents | FromComponents)
        coder.mean.copy_(mean.reshape(coder.mean.shape))
        coder.components.copy_(components[: spec.channels].reshape(coder.components.shape))
    return autoencoder


def _standardize(autoencoder: Autoencoder, images: Tensor, error: Callable[[str], Diverged]) -> None:
    """Set shift and scale: the mean of each channel, and one standard deviation of all latents of the images.

    `error` makes the exception for latents that are constant or not finite.
    """
    latents = encode_images(autoencoder, images, autoencoder.shift.device).flatten(2)
    if not latents.isfinite().all():
        raise error("latents are not finite; lower learning_rate?")
    parts = latents.split(CHUNK)
    shift = _mean(torch.cat([part.double().mean(2) for part in parts]))
    scale = _mean(torch.cat([(part - shift[:, None]).square().mean((1, 2))[:, None] for part in parts])).sqrt()
    if not scale > 0:
        raise error("all images have the same latents; use other images")
    autoencoder.shift.copy_(shift)
    autoencoder.scale.copy_(scale[0])


def _mean(values: Tensor) -> Tensor:
    """The mean (K,) of values (N, K), float64, from exact sums."""
    return torch.tensor([math.fsum(column) / len(values) for column in values.T.tolist()], dtype=torch.float64)


@torch.no_grad()
def _facts(autoencoder: Autoencoder, images: Tensor) -> dict[str, float | None]:
    """The facts of `TrainedAutoencoder`; None for those that are not finite."""
    errors, divergences, counts = (
        list[float](),
        list[float](),
        torch.zeros(autoencoder.spec.codebook, dtype=torch.int64),
    )
    for x in _chunks(images, autoencoder.shift.device):
        errors += (autoencoder.decode(autoencoder.encode(x)) - x).square().flatten(1).mean(1).tolist()
        if autoencoder.spec.kind == "kl":
            divergences += kl_divergence(*posterior(autoencoder, x)).tolist()
        if isinstance(decoder := autoencoder.decoder, QuantizingDecoder):
            counts += torch.bincount(decoder.codes(autoencoder.encoder(x)).flatten(), minlength=len(counts)).to(CPU)
    facts = {"mse": math.fsum(errors) / len(errors)}
    if divergences:
        facts["kl"] = math.fsum(divergences) / len(divergences)
    if len(counts):
        shares = counts.double() / counts.sum()
        facts["perplexity"] = float(torch.special.entr(shares).sum().exp())
    return {key: value if math.isfinite(value) else None for key, value in facts.items()}
