"""A proposal of P_mean and P_std for a data set, from the noise levels at which a brief training learns."""

from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.common import processes
from pipeline.common.devices import default_device, exact_device, to_device
from pipeline.common.errors import NotFinite, say_once
from pipeline.common.scalars import in_a_line
from pipeline.common.threads import in_turns, side_by_side
from pipeline.data.dataset import to_coordinates
from pipeline.diffusion.denoiser import Denoiser
from pipeline.diffusion.spec import Spec
from pipeline.evaluation.losses import error_at, evenly_spread, noise_levels
from pipeline.training.loop import train
from pipeline.training.row import Model

BRIEF_IMAGES = (10_000, 20_000)  # the lengths of the two trainings that are compared
SEED = 0
WIDE = {"noise": "lognormal", "P_mean": -1.0, "P_std": 1.9}  # the brief trainings see all noise levels
OBJECTIVE = (
    *("weighting", "gamma", "k", "bias", "learned_variance"),
    *("draws", "pairs", "augment", "flip", "labels", "teacher"),
)
BESIDE = ("compile", "ema_halflives_images", "ema_sigma_rels", "snapshots", "classifier_images")
PLAIN = (*OBJECTIVE, *BESIDE)  # the brief trainings have the defaults of these keys
IMAGES = 1024  # errors are measured on so many images
STEP = 0.05  # proposals are rounded to it, about their accuracy


@dataclass(frozen=True)
class Normal:
    """ln sigma ~ N(P_mean, P_std^2)."""

    P_mean: float
    P_std: float


def fit(sigmas: Tensor, short: Tensor, long: Tensor, sigma_data: float) -> Normal | None:
    """The normal distribution of ln sigma with the moments of the gain of longer training, by sigma (S,).

    short, long: the mean squared error of D after a shorter and a longer training, (S,), at evenly spaced ln sigma.
    The gain is measured in the final sample. In dz / d ln sigma = z - D an error of D has the same weight at every
    ln sigma, and a change of z at sigma changes the sample by sigma_data / sqrt(sigma^2 + sigma_data^2) of it, as for
    Gaussian data. Returns None if nothing was gained.
    """
    gained = (short - long).clamp(min=0) * sigma_data**2 / (sigmas**2 + sigma_data**2)
    if not float(gained.sum()) > 0:
        return None
    shares = gained / gained.sum()
    mean = float((shares * sigmas.log()).sum())
    std = float((shares * (sigmas.log() - mean) ** 2).sum().sqrt())
    return Normal(round(round(mean / STEP) * STEP, 2), round(max(round(std / STEP), 1) * STEP, 2))


def errors(denoiser: Denoiser, images: Tensor) -> Tensor:
    """The mean squared error of D at each of noise_levels(), (S,)."""
    device = exact_device(default_device())
    x0 = to_device(to_coordinates(evenly_spread(images, IMAGES)), device)
    denoiser.to(device)
    with torch.no_grad():
        return torch.stack([error_at(denoiser, x0, sigma) for sigma in noise_levels()]).double()


def propose(row: Model, spec: Spec, images: Tensor, workers: int | None = None) -> Normal | None:
    """Train a row's network briefly on all noise levels, and fit P_mean and P_std to the levels at which it learns.

    Returns None if it learns nothing, or if it diverges, which a line on stderr says. spec: of the row's denoiser.
    images: (N, C, H, W), uint8 or in the coordinates of the row's space.
    """
    wide = Model(**row.model_dump(exclude={*PLAIN}) | WIDE)
    rows = [wide.model_copy(update={"images": count}) for count in BRIEF_IMAGES]
    workers = processes.workers_on(default_device()) if workers is None else workers
    try:
        trained = in_turns([train(brief, spec, images, SEED) for brief in rows], workers)
    except NotFinite as error:
        say_once(f"no noise is proposed, because a brief training diverges: {error}")
        return None
    short, long = side_by_side([partial(errors, brief.denoiser, images) for brief in trained], workers)
    return fit(noise_levels(), short.cpu(), long.cpu(), spec.sigma_data)


def summary(name: str, row: Model, found: Normal | None) -> dict[str, Any]:
    """The proposal for the row `name`, as JSON for the report; its `row` can be pasted into params.yaml."""
    published = Model()
    keys = [field.name for field in fields(Normal)]
    return {
        "model": name,
        "images": list(BRIEF_IMAGES),
        **{key: found and getattr(found, key) for key in keys},
        "published": {key: getattr(published, key) for key in keys},
        "row": found and row_text(name, row, found),
    }


def row_text(name: str, row: Model, found: Normal) -> str:
    """The proposal as a line of params.yaml."""
    noise = {} if row.noise == "lognormal" else {"noise": "lognormal"}
    written = {"base": name} | noise | asdict(found)
    return f"{name[:50]}_proposed: {in_a_line(written, sort_keys=False)}"


def file_text(name: str, row: Model, found: Normal | None) -> str:
    """The proposal as a file: a row of params.yaml to copy."""
    if not found:
        return f"# Brief trainings of {name} on this data learned nothing, so nothing is proposed.\nmodels: {{}}\n"
    comment = "# Where a brief training on this data learns. To adopt it, copy the row."
    return f"{comment}\nmodels:\n  {row_text(name, row, found)}\n"
