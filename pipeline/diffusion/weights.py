"""Which weights of a model's folder a curve samples with, and the files that they lie in."""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.files import content_hash, write_bytes
from pipeline.diffusion.averages import LARGEST_ERROR, Averages, HalfLife, Power, Profile, synthesis
from pipeline.diffusion.denoiser import Denoiser, load_denoiser


def main_file(folder: Path, seed: int) -> Path:
    """The main average at the end of a training."""
    return folder / f"seed_{seed}.safetensors"


def average_file(folder: Path, seed: int, profile: Profile) -> Path:
    """Another average at the end of a training: a file of the same kind."""
    return folder / f"seed_{seed}_{profile.name}.safetensors"


def snapshot_file(folder: Path, seed: int, images: int) -> Path:
    """All averages after so many images."""
    return folder / f"seed_{seed}_snapshot_{images}.safetensors"


def classifier_file(folder: Path, seed: int) -> Path:
    """The classifier that was trained beside the model."""
    return folder / f"seed_{seed}_classifier.safetensors"


def main_files(folder: Path) -> list[Path]:
    """The main averages of all trainings, without what lies beside them."""
    return [path for path in sorted(folder.glob("seed_*.safetensors")) if re.fullmatch(r"seed_\d+", path.stem)]


@torch.no_grad()
def with_weights(denoiser: Denoiser, weights: Mapping[str, Tensor]) -> Denoiser:
    """A copy of a denoiser with other weights, by its parameters' names, in eval mode. Its buffers stay."""
    other = copy.deepcopy(denoiser).eval().requires_grad_(False)
    for name, parameter in other.named_parameters():
        parameter.copy_(weights[name])
    return other


@dataclass(frozen=True)
class Snapshot:
    """The averages after `step` steps of `batch` images, main one first, whose tensors stay in their file."""

    path: Path
    step: int
    batch: int
    profiles: tuple[Profile, ...]

    @property
    def images(self) -> int:
        return self.step * self.batch


def save_snapshot(averages: Averages, step: int, batch: int, path: Path) -> None:
    """Write all averages as they stand after `step` steps, as `<average>.<parameter>`."""
    tensors = {name: value.contiguous() for name, value in averages.tensors().items()}
    about = {"step": step, "batch": batch, "profiles": [asdict(profile) for profile in averages.profiles]}
    write_bytes(path, save(tensors, {"snapshot": json.dumps(about, sort_keys=True)}))


def load_snapshot(path: Path) -> Snapshot:
    """What a snapshot holds. Raises StudyError where the file is missing, cut or foreign."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["snapshot"])
        profiles = [Power(**found) if "sigma_rel" in found else HalfLife(**found) for found in about["profiles"]]
        return Snapshot(path, about["step"], about["batch"], tuple(profiles))
    except FileNotFoundError:
        raise StudyError(f"{path}: missing; `dvc repro` trains it") from None
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{path}: not a snapshot of this study ({error})") from None


def load_snapshots(folder: Path, seed: int) -> list[Snapshot]:
    """All snapshots of a training, the earliest first."""
    found = map(load_snapshot, folder.glob(f"seed_{seed}_snapshot_*.safetensors"))
    return sorted(found, key=lambda snapshot: snapshot.step)


@dataclass(frozen=True)
class Weights:
    """What a curve samples with; guide: the earlier snapshot that guides it, where one does."""

    denoiser: Denoiser
    guide: Denoiser | None


@dataclass(frozen=True)
class _Source:
    """A denoiser's file, or, with snapshots, one whose weights are the average `wanted` after the last of them."""

    file: Path
    snapshots: tuple[Snapshot, ...] = ()
    wanted: Profile | None = None

    @property
    def parts(self) -> list[object]:
        """What tells it from all others, for `content_hash`."""
        made = [self.wanted.name] if self.wanted else []
        return [self.file, *made, *(snapshot.path for snapshot in self.snapshots)]

    def load(self) -> Denoiser:
        denoiser = load_denoiser(self.file)
        if self.wanted:
            _fill(denoiser, _terms(self.snapshots, self.wanted))
        return denoiser


Term = tuple[Snapshot, Profile, float]


def _terms(snapshots: Sequence[Snapshot], wanted: Profile) -> list[Term]:
    """The averages whose sum, times their coefficients, is `wanted` after the last snapshot."""
    last = snapshots[-1]
    if wanted in last.profiles:
        return [(last, wanted, 1.0)]
    held = [(snapshot, profile) for snapshot in snapshots for profile in snapshot.profiles]
    made = synthesis([(snapshot.step, profile) for snapshot, profile in held], wanted, last.step, last.batch)
    if made.error > LARGEST_ERROR:
        key, value = _key(wanted)
        raise StudyError(
            f"{last.path.parent}: what the snapshots give for {wanted.name} is {made.error:.0%} off, and more than "
            f"{LARGEST_ERROR:.0%} is too much; add {value} to {key} of the model's row, or take more snapshots"
        )
    return [(*one, coefficient) for one, coefficient in zip(held, made.coefficients.tolist(), strict=True)]


@torch.no_grad()
def _fill(denoiser: Denoiser, terms: Sequence[Term]) -> None:
    """Put sums of averages, added up in float64, in the place of a denoiser's weights, one tensor at a time."""
    with ExitStack() as stack:
        files = {term[0].path: stack.enter_context(safetensors.safe_open(term[0].path, "pt")) for term in terms}
        for name, parameter in denoiser.named_parameters():
            total = torch.zeros(parameter.shape, dtype=torch.float64)
            for snapshot, profile, coefficient in terms:
                try:
                    value = files[snapshot.path].get_tensor(f"{profile.name}.{name}")
                except safetensors.SafetensorError as error:
                    raise StudyError(f"{snapshot.path}: not a snapshot of this model ({error})") from None
                if value.shape != total.shape:
                    shapes = f"{tuple(value.shape)}, not {tuple(total.shape)}"
                    raise StudyError(f"{snapshot.path}: not a snapshot of this model ({name} is {shapes})")
                total.add_(value, alpha=coefficient)
            parameter.copy_(total)


def _key(profile: Profile) -> tuple[str, float]:
    """The key of a model's row that has a training track an average, and what to add to it."""
    if isinstance(profile, Power):
        return "ema_sigma_rels", profile.sigma_rel
    return "ema_halflives_images", profile.images


def _average(folder: Path, seed: int, curve: Mapping[str, Any]) -> _Source:
    """The average that a curve asks for: the main one, one with a file of its own, or else one made from snapshots."""
    main, images, sigma_rel = main_file(folder, seed), curve["ema_halflife_images"], curve["ema_sigma_rel"]
    if not main.exists():
        raise StudyError(f"{main}: missing; `dvc repro` trains it")
    if images is None and sigma_rel is None:
        return _Source(main)
    snapshots = load_snapshots(folder, seed)
    held = snapshots[-1].profiles if snapshots else ()
    ramp_up = next((profile.ramp_up for profile in held if isinstance(profile, HalfLife)), None)
    wanted = HalfLife(images, ramp_up) if sigma_rel is None else Power(sigma_rel)
    if (own := average_file(folder, seed, wanted)).exists():
        return _Source(own)
    if wanted in held[:1]:
        return _Source(main)
    if not snapshots:
        key, value = _key(wanted)
        raise StudyError(
            f"{main}: there is no {wanted.name} beside it, nor snapshots to make it from; add {value} to {key} of the "
            "model's row, or give it two ema_sigma_rels and snapshots"
        )
    return _Source(main, tuple(snapshots), wanted)


def _guide(folder: Path, seed: int, curve: Mapping[str, Any]) -> _Source | None:
    """The main average in the snapshot nearest to guide_images, or in the earliest, where a snapshot guides a curve."""
    if curve["guide"] != "snapshot" or curve["guidance"] == 1:
        return None
    main, images, snapshots = main_file(folder, seed), curve["guide_images"], load_snapshots(folder, seed)
    if not snapshots:
        raise StudyError(f"{main}: there are no snapshots to guide it; say snapshots in the model's row, 2 or more")
    nearest = snapshots[0] if images is None else min(snapshots, key=lambda one: abs(one.images - images))
    spacing = snapshots[-1].images / len(snapshots)
    if images is not None and abs(nearest.images - images) > spacing / 2:
        there = ", ".join(str(snapshot.images) for snapshot in snapshots)
        raise StudyError(f"guide_images: {main.stem} has no snapshot near {images} images; there are {there}")
    return _Source(main, (nearest,), nearest.profiles[0])


def weights_for(folder: Path, seed: int, curve: Mapping[str, Any]) -> Weights:
    """The weights that a resolved curve row samples with, from its model's folder.

    Raises StudyError where the folder has no such average or guide, and says what the model's row would need.
    """
    average, guide = _average(folder, seed, curve), _guide(folder, seed, curve)
    return Weights(average.load(), guide.load() if guide else None)


def content_key(folder: Path, seed: int, curve: Mapping[str, Any], classifier: Path | None = None) -> str:
    """A hash over all weights that a resolved curve row samples with: of the main average's file, where it is all.

    classifier: the file of the one that guides the curve, where one does.
    """
    parts = _average(folder, seed, curve).parts
    if guide := _guide(folder, seed, curve):
        parts += ["guide", *guide.parts]
    if classifier:
        parts += ["guide", classifier]
    return content_hash(*parts)
