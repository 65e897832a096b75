"""Which weights in a model's folder a curve samples with, and the files that hold them."""

import copy
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import safetensors
import torch
from torch import Tensor

from pipeline.common.errors import NotFinite, StudyError
from pipeline.common.files import content_hash
from pipeline.common.sealed import load_json, reading, save_json
from pipeline.common.tensors import load_tensors, read_sealed, save_tensors
from pipeline.diffusion.averages import LARGEST_ERROR, Averages, HalfLife, Power, Profile, synthesis
from pipeline.diffusion.classifier import NoisyClassifier, load_classifier
from pipeline.diffusion.denoiser import Denoiser, load_denoiser


def main_file(folder: Path, seed: int) -> Path:
    """The file of the main average at the end of a training."""
    return folder / f"seed_{seed}.safetensors"


def student_file(folder: Path, seed: int, steps: int) -> Path:
    """The file of the student that progressive distillation made for so many steps."""
    return folder / f"seed_{seed}_steps_{steps}.safetensors"


def average_file(folder: Path, seed: int, profile: Profile) -> Path:
    """The file of another average at the end of a training."""
    return folder / f"seed_{seed}_{profile.name}.safetensors"


def snapshot_file(folder: Path, seed: int, images: int) -> Path:
    """The file of all averages after `images` training images."""
    return folder / f"seed_{seed}_snapshot_{images}.safetensors"


def classifier_file(folder: Path, seed: int) -> Path:
    """The file of the classifier that was trained with the model."""
    return folder / f"seed_{seed}_classifier.safetensors"


def failure_file(folder: Path, seed: int) -> Path:
    """The file in place of the weights of a training that failed."""
    return folder / f"seed_{seed}_failed.json"


def save_failure(reason: str, path: Path) -> None:
    """Write why a training failed, in one line."""
    save_json(path, {"failed": reason})


def failure(folder: Path, seed: int) -> str:
    """Why a training failed, in one line; empty if it did not. Raises StudyError if the file that says so is broken."""
    file = failure_file(folder, seed)
    if not file.exists():
        return ""
    with reading(file):
        return str(load_json(file)["failed"])


def main_files(folder: Path) -> list[Path]:
    """The files of the main averages of all trainings."""
    return [path for path in sorted(folder.glob("seed_*.safetensors")) if re.fullmatch(r"seed_\d+", path.stem)]


@torch.no_grad()
def with_weights(denoiser: Denoiser, weights: Mapping[str, Tensor]) -> Denoiser:
    """A copy of a denoiser with other weights, by parameter name, in eval mode. It keeps its buffers."""
    other = copy.deepcopy(denoiser).eval().requires_grad_(False)
    for name, parameter in other.named_parameters():
        parameter.copy_(weights[name])
    return other


@dataclass(frozen=True)
class Snapshot:
    """The averages after `step` steps of `batch` images, the main one first. The tensors stay in the file."""

    path: Path
    step: int
    batch: int
    profiles: tuple[Profile, ...]

    @property
    def images(self) -> int:
        return self.step * self.batch


def save_snapshot(averages: Averages, step: int, batch: int, path: Path) -> None:
    """Write the values of all averages after `step` steps, as tensors `<average>.<parameter>`."""
    about = {"batch": batch, "profiles": [asdict(profile) for profile in averages.profiles], "step": step}
    save_tensors(path, averages.tensors(), "snapshot", about)


def load_snapshot(path: Path) -> Snapshot:
    """The description of a snapshot file. Raises StudyError if the file is missing, broken or of another kind."""
    with reading(path):
        _, about = load_tensors(path, "snapshot")
        profiles = [Power(**entry) if "sigma_rel" in entry else HalfLife(**entry) for entry in about["profiles"]]
        return Snapshot(path, about["step"], about["batch"], tuple(profiles))


def load_snapshots(folder: Path, seed: int) -> list[Snapshot]:
    """All snapshots of a training, the earliest first."""
    snapshots = map(load_snapshot, folder.glob(f"seed_{seed}_snapshot_*.safetensors"))
    return sorted(snapshots, key=lambda snapshot: snapshot.step)


@dataclass(frozen=True)
class Selection:
    """The weights that a curve samples with: an average and a guide.

    average: None is the main average; a half-life gets the ramp-up of its training. guide: an earlier snapshot or the
    classifier; None: no guide with separate weights. guide_images: the snapshot nearest to this number of images
    guides; None: the earliest. steps: the number of steps whose student samples; None: the main average.
    """

    average: Profile | None = None
    guide: Literal["snapshot", "classifier"] | None = None
    guide_images: int | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Weights:
    """Loaded weights: the denoiser and, if the selection has one, its guide."""

    denoiser: Denoiser
    snapshot: Denoiser | None = None
    classifier: NoisyClassifier | None = None


@dataclass(frozen=True)
class _Origin:
    """The files that a denoiser is loaded from.

    Without snapshots it is `file`. With snapshots its weights are the average `wanted` after the last snapshot, made
    from all of them; `file` then only gives the network.
    """

    file: Path
    snapshots: tuple[Snapshot, ...] = ()
    wanted: Profile | None = None

    @property
    def parts(self) -> list[object]:
        """Everything that determines the weights, for `content_hash`."""
        names = [self.wanted.name] if self.wanted else []
        return [partial(read_sealed, self.file), *names, *(partial(read_sealed, each.path) for each in self.snapshots)]

    def load(self) -> Denoiser:
        denoiser = load_denoiser(self.file)
        if self.wanted:
            _fill(denoiser, _terms(self.snapshots, self.wanted))
        return denoiser


Term = tuple[Snapshot, Profile, float]


def _terms(snapshots: Sequence[Snapshot], wanted: Profile) -> list[Term]:
    """The tracked averages and their coefficients, whose weighted sum is `wanted` after the last snapshot."""
    last = snapshots[-1]
    if wanted in last.profiles:
        return [(last, wanted, 1.0)]
    tracked = [(snapshot, profile) for snapshot in snapshots for profile in snapshot.profiles]
    fit = synthesis([(snapshot.step, profile) for snapshot, profile in tracked], wanted, last.step, last.batch)
    if fit.error > LARGEST_ERROR:
        key, value = _key(wanted)
        raise StudyError(
            f"{last.path.parent}: the snapshots give {wanted.name} with an error of {fit.error:.0%}, and more than "
            f"{LARGEST_ERROR:.0%} is too much; add {value} to {key} of the model's row, or take more snapshots"
        )
    return [(*pair, coefficient) for pair, coefficient in zip(tracked, fit.coefficients.tolist(), strict=True)]


@torch.no_grad()
def _fill(denoiser: Denoiser, terms: Sequence[Term]) -> None:
    """Replace a denoiser's weights by a weighted sum of averages, computed in float64, one tensor at a time."""
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
    """The key of a model's row that makes a training track an average, and the value to add to it."""
    if isinstance(profile, Power):
        return "ema_sigma_rels", profile.sigma_rel
    return "ema_halflives_images", profile.images


def _average(folder: Path, seed: int, selection: Selection) -> _Origin:
    """The selected average: the main one, a tracked one from its own file, or else one made from the snapshots."""
    main, wanted = main_file(folder, seed), selection.average
    if reason := failure(folder, seed):
        raise NotFinite(f"training failed: {reason}")
    if not main.exists():
        raise StudyError(f"{main}: missing; `dvc repro` trains it")
    if selection.steps:
        students = _students(folder, seed)
        if selection.steps not in students:
            listed = ", ".join(map(str, sorted(students)))
            raise StudyError(f"{main}: no student was made for {selection.steps} steps; there are those for {listed}")
        return _Origin(students[selection.steps])
    if wanted is None:
        return _Origin(main)
    snapshots = load_snapshots(folder, seed)
    tracked = snapshots[-1].profiles if snapshots else ()
    if isinstance(wanted, HalfLife):
        ramp_up = next((profile.ramp_up for profile in tracked if isinstance(profile, HalfLife)), None)
        wanted = replace(wanted, ramp_up=ramp_up)
    if (file := average_file(folder, seed, wanted)).exists():
        return _Origin(file)
    if wanted in tracked[:1]:
        return _Origin(main)
    if not snapshots:
        key, value = _key(wanted)
        raise StudyError(
            f"{main}: neither {wanted.name} nor snapshots to make it from were kept; add {value} to {key} of "
            "the model's row, or give it two ema_sigma_rels and snapshots"
        )
    return _Origin(main, tuple(snapshots), wanted)


def _students(folder: Path, seed: int) -> dict[int, Path]:
    """The students of progressive distillation by their number of steps; none for other trainings."""
    found = folder.glob(f"seed_{seed}_steps_*.safetensors")
    return {int(path.stem.rpartition("_")[2]): path for path in found}


def student_of(folder: Path, seed: int, steps: int) -> int | None:
    """`steps`, if each number of steps has a student of its own, as progressive distillation makes them; else None."""
    return steps if _students(folder, seed) else None


def _snapshot(folder: Path, seed: int, selection: Selection) -> _Origin | None:
    """The main average in the snapshot that guides; None if no snapshot guides."""
    if selection.guide != "snapshot":
        return None
    main, images, snapshots = main_file(folder, seed), selection.guide_images, load_snapshots(folder, seed)
    if not snapshots:
        raise StudyError(f"{main}: no snapshots were kept to guide it; set snapshots in the model's row to 2 or more")
    nearest = snapshots[0] if images is None else min(snapshots, key=lambda one: abs(one.images - images))
    spacing = snapshots[-1].images / len(snapshots)
    if images is not None and abs(nearest.images - images) > spacing / 2:
        valid = ", ".join(str(snapshot.images) for snapshot in snapshots)
        raise StudyError(f"guide_images: {main.stem} has no snapshot near {images} images; valid: {valid}")
    return _Origin(main, (nearest,), nearest.profiles[0])


def _classifier(folder: Path, seed: int) -> Path:
    """The file of the classifier that guides."""
    if not (path := classifier_file(folder, seed)).exists():
        raise StudyError(f"{path}: missing; set classifier_images in the model's row")
    return path


def weights_for(folder: Path, seed: int, selection: Selection) -> Weights:
    """Load the selected weights from a model's folder.

    Raises NotFinite with the reason if the training failed, and StudyError if it kept no such average or guide; the
    message names the keys to set.
    """
    average, snapshot = _average(folder, seed, selection), _snapshot(folder, seed, selection)
    classifier = load_classifier(_classifier(folder, seed)) if selection.guide == "classifier" else None
    return Weights(average.load(), snapshot.load() if snapshot else None, classifier)


def content_key(folder: Path, seed: int, selection: Selection) -> str:
    """A hash of all selected weights; for the main average without a guide, the hash of its file.

    Raises NotFinite with the reason if the training failed, and StudyError if some are missing.
    """
    parts = _average(folder, seed, selection).parts
    if snapshot := _snapshot(folder, seed, selection):
        parts += ["guide", *snapshot.parts]
    if selection.guide == "classifier":
        parts += ["guide", partial(read_sealed, _classifier(folder, seed))]
    return content_hash(*parts)
