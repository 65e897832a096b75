"""The result of a training, and the files that hold it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.common.devices import default_device
from pipeline.common.files import write_bytes
from pipeline.common.machine import machine
from pipeline.diffusion.averages import Profile
from pipeline.diffusion.classifier import NoisyClassifier, save_classifier
from pipeline.diffusion.denoiser import Denoiser, save_denoiser
from pipeline.diffusion.networks.registry import cost
from pipeline.diffusion.spec import Spec
from pipeline.diffusion.weights import (
    average_file,
    classifier_file,
    failure_file,
    main_file,
    save_failure,
    snapshot_file,
    student_file,
)


@dataclass(frozen=True)
class Trained:
    """A trained model: the denoiser with the main average of the weights, and the training curve, () if it is imported.

    averages: denoisers with the other averages. snapshots: files with all averages, by the number of images seen.
    classifier: the noise-aware classifier trained beside the model, with its accuracy by noise level. students: the
    student of each round of objective progressive, by its number of steps.
    """

    denoiser: Denoiser
    curve: list[dict[str, float]]
    averages: dict[Profile, Denoiser] = field(default_factory=dict)
    snapshots: dict[int, Path] = field(default_factory=dict)
    classifier: NoisyClassifier | None = None
    classifier_accuracy: dict[str, float] = field(default_factory=dict)
    students: dict[int, Denoiser] = field(default_factory=dict)

    @property
    def spec(self) -> Spec:
        return self.denoiser.spec


@dataclass(frozen=True)
class Failed:
    """A training without a result, the reason in one line, and its training curve until then."""

    seed: int
    reason: str
    spec: Spec
    curve: list[dict[str, float]] = field(default_factory=list)


def joined(rounds: Sequence[Trained | Failed]) -> Trained | Failed:
    """One training that consists of several rounds: the last one, with the students and the curve of all.

    A round that failed ends it.
    """
    curve: list[dict[str, float]] = []
    students: dict[int, Denoiser] = {}
    for part in rounds:
        seen = curve[-1]["images"] if curve else 0
        curve += [point | {"images": seen + point["images"]} for point in part.curve]
        if isinstance(part, Failed):
            return replace(part, curve=curve)
        students |= part.students
        last = part
    return replace(last, curve=curve, students=students)


def save_models(trained: Sequence[Trained | Failed], folder: Path) -> dict[str, Any]:
    """Write each seed's weights, averages, snapshots and classifier, or why it failed.

    Returns the summary for metrics/train, with means over the trainings that did not fail; if some failed, `failed` has
    their reasons by seed.
    """
    done, failed = [], {}
    for run in trained:
        if isinstance(run, Failed):
            save_failure(run.reason, failure_file(folder, run.seed))
            failed[str(run.seed)] = run.reason
            continue
        done.append(run)
        seed = int(run.curve[0]["seed"]) if run.curve else 0
        save_denoiser(run.denoiser, main_file(folder, seed))
        for steps, student in run.students.items():
            save_denoiser(student, student_file(folder, seed, steps))
        for profile, denoiser in run.averages.items():
            save_denoiser(denoiser, average_file(folder, seed, profile))
        for images, path in run.snapshots.items():
            write_bytes(snapshot_file(folder, seed, images), path.read_bytes())
        if run.classifier:
            save_classifier(run.classifier, classifier_file(folder, seed))
    losses, spec = [run.curve[-1]["loss"] for run in done if run.curve], trained[0].spec
    accuracies = [run.classifier_accuracy for run in done] or [{}]
    return {
        "network": spec.network,
        "channels": spec.channels,
        **cost(spec)._asdict(),
        "images": max((point["images"] for run in trained for point in run.curve), default=0),
        "final_loss": sum(losses) / len(losses) if losses else None,
        "classifier_accuracy": {sigma: sum(a[sigma] for a in accuracies) / len(done) for sigma in accuracies[0]},
        "machine": machine(default_device()),
        **({"failed": failed} if failed else {}),
    }
