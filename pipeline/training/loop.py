"""The training loop: draw a batch, compute the loss and its gradient, update the weights and their averages.

The loss is in loss.py, the batch in batches.py, the state in run.py, its file in checkpoint.py.
"""

import copy
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.common import processes
from pipeline.common.devices import CPU, default_device, to_device, to_device_together
from pipeline.common.errors import StudyError, say_once
from pipeline.common.files import CACHE, content_hash
from pipeline.common.randomness import generator
from pipeline.common.sealed import kept
from pipeline.common.threads import in_turns
from pipeline.diffusion.averages import snapshot_steps
from pipeline.diffusion.denoiser import Denoiser
from pipeline.diffusion.imports.read import check_sha256, read_network, sha256_of
from pipeline.diffusion.spec import Spec
from pipeline.diffusion.weights import load_snapshot, save_snapshot, with_weights
from pipeline.training.batches import Batch, Examples, Pairs, batch_indices, draw_batch
from pipeline.training.checkpoint import beside, load_checkpoint, save_checkpoint, setting
from pipeline.training.checks import check_examples, spec_of
from pipeline.training.classifier import accuracy_by_sigma, kept_classifier
from pipeline.training.distances import DISTANCES
from pipeline.training.hybrid import VLB_WEIGHT, Steps, bound_bits
from pipeline.training.loss import Terms, network_error
from pipeline.training.noise import Levels
from pipeline.training.objectives import OBJECTIVES, Falling, Question, denoising
from pipeline.training.optimizer import clip, learning_rate
from pipeline.training.pairs import reflow_pairs
from pipeline.training.row import Model
from pipeline.training.run import Diverged, Run
from pipeline.training.trained import Failed, Trained, joined

CHECKPOINTS = 10  # checkpoints of a training


def train_seeds(
    row: Model,
    data: dict[str, Any],
    images: Tensor,
    progress: Callable[[int], object],
    workers: int | None = None,
    labels: Tensor | None = None,
) -> list[Trained | Failed]:
    """Train all seeds of a row side by side, each from its checkpoint in .cache if there is one.

    data: the data set's summary, with sigma_data of the row's space; the other arguments are those of `train`. A row
    with a teacher trains that first; if it is already trained, this costs nothing. A seed that diverges, or whose
    teacher has, fails alone. An imported network is read, and is the same for all seeds.
    """
    spec, device = spec_of(row, data), default_device()
    if row.import_ is not None:
        return [Trained(_imported(row, spec), [])] * len(row.train_seeds)
    teachers: list[Trained | Failed | None] = [None] * len(row.train_seeds)
    if row.teacher:
        teacher = row.teacher.model_copy(update={"train_seeds": row.train_seeds})
        found = train_seeds(teacher, data, images, lambda images: None, workers, labels)
        teachers = [
            Failed(one.seed, f"the teacher failed: {one.reason}", spec) if isinstance(one, Failed) else one
            for one in found
        ]

    def task(part: Model, seed: int, of: Trained | Failed | None) -> Generator[None, None, Trained | Failed]:
        if isinstance(of, Failed):
            return of
        key = content_hash(setting(part, spec, images, labels, seed, device))
        checkpoint = CACHE / "training" / f"{key}.safetensors"
        teacher = of.denoiser if of else None
        try:
            return (yield from train(part, spec, images, seed, checkpoint, progress, teacher, labels, device))
        except Diverged as error:
            return Failed(seed, str(error), spec, error.curve)

    rounds: list[list[Trained | Failed]] = []
    for part in row.rounds:
        seeded = zip(row.train_seeds, rounds[-1] if rounds else teachers, strict=True)
        tasks = [task(part, seed, of) for seed, of in seeded]
        rounds.append(in_turns(tasks, processes.workers_on(device) if workers is None else workers))
    return [joined(of_seed) for of_seed in zip(*rounds, strict=True)]


def _imported(row: Model, spec: Spec) -> Denoiser:
    """The network that a row imports. Raises StudyError if its file is not the one that `resolve` has seen."""
    path = Path(row.import_ or "").expanduser()
    check_sha256(path, row.sha256 or "", sha256_of(path))
    denoiser = read_network(path)
    denoiser.spec, denoiser.classes = spec, spec.classes
    return denoiser


def pairs_from(teacher: Denoiser | None, row: Model, seed: int, device: torch.device) -> Pairs | None:
    """The pairs of noise and images that a row takes from its teacher; None for rows without such pairs."""
    if teacher is None or row.pairs != "reflow":
        return None
    return reflow_pairs(copy.deepcopy(teacher).to(device), row.reflow_pairs, seed, device)


def train(
    row: Model,
    spec: Spec,
    images: Tensor,
    seed: int,
    checkpoint: Path | None = None,
    progress: Callable[[int], object] = lambda images: None,
    teacher: Denoiser | None = None,
    labels: Tensor | None = None,
    device: torch.device | None = None,
) -> Generator[None, None, Trained]:
    """Train one seed of a row on images (N, C, H, W), uint8 or in the coordinates of its space, and their classes (N,),
    int64.

    teacher: the trained network that the row's objective learns from, or whose pairs of noise and images it takes.

    The result depends on these arguments and the kind of device alone: seed and step name the generator of each draw.
    So a training that was killed continues from `checkpoint` to the same bytes. Snapshots are written beside the
    checkpoint; without one there are none. `progress` is called with the number of images trained on since its last
    call, which is negative after a step back.

    A generator, for `in_turns`: it pauses after every step and returns the result. Raises StudyError if the row does
    not fit the data, if the checkpoint has another setting, or if memory does not suffice, and Diverged, naming the
    step, if a loss or a weight is not finite; the last good checkpoint stays.
    """
    check_examples(row, images, labels)
    device = device or default_device()
    own_setting = setting(row, spec, images, labels, seed, device) if checkpoint else {}
    snapshots = {}
    if checkpoint:
        snapshots = {step: beside(checkpoint, f"snapshot_{step * row.batch}") for step in snapshot_steps(row)}

    def begin(micro_batch: int | None) -> Run:
        run = Run(spec, row, seed, device, micro_batch, teacher)
        if checkpoint and load_checkpoint(run, checkpoint, own_setting):
            if lost := [path for step, path in snapshots.items() if step <= run.step and not kept(load_snapshot, path)]:
                say_once(f"{lost[0]}: missing or broken, so {checkpoint} cannot be used; training from the start")
                run = Run(spec, row, seed, device, micro_batch, teacher)
            progress(run.step * row.batch)
        return run

    run = begin(None)
    if len(set(processes.exchange(str(run.step).encode()))) > 1:
        raise StudyError(f"{checkpoint}: not the same for all processes; they need one file system")
    pairs = pairs_from(teacher, row, seed, device) if run.step < row.steps else None
    examples = Examples(to_device(images, device), labels if row.labels == "classes" else None, pairs)
    checkpoint_steps = max(row.steps // CHECKPOINTS, 1)
    halved = False
    while run.step < row.steps:
        if not _fits(run, examples):
            micro_batch, halved = _half(run, halved), True
            progress(-run.step * row.batch)
            del run  # frees its memory for the next one
            torch.cuda.empty_cache()
            run = begin(micro_batch)
            continue
        progress(row.batch)
        if run.step in snapshots:
            run.check()
            if processes.first():
                save_snapshot(run.averages, run.step, row.batch, snapshots[run.step])
        if run.step % checkpoint_steps == 0 or run.step == row.steps:
            run.check()
            if checkpoint:
                save_checkpoint(run, checkpoint, own_setting)
        yield

    classifier, accuracy = None, {}
    if row.classifier_images and labels is not None:
        path = beside(checkpoint, "classifier") if checkpoint else None
        classifier = kept_classifier(path, images, labels, spec.sigma_data, seed, row.classifier_images, device)
        accuracy = accuracy_by_sigma(classifier, images, labels, seed)
    averages = {
        profile: with_weights(run.denoiser, run.averages.of(profile)).to(CPU) for profile in run.averages.profiles
    }
    main = averages.pop(run.averages.profiles[0])
    return Trained(
        main,
        run.curve(),
        averages,
        {step * row.batch: path for step, path in snapshots.items()},
        classifier,
        accuracy,
        {row.round_steps: main} if row.round_steps else {},
    )


def advance(run: Run, examples: Examples) -> None:
    """Train one step.

    Nothing waits for a GPU, except `draws: adaptive`, which learns from the losses. The processes of a job share the
    batch and sum their gradients.
    """
    row, device, sigma_data = run.row, run.device, run.denoiser.sigma_data
    indices = batch_indices(run.seed, run.step, row.batch, len(examples))
    batch = draw_batch(row, examples, indices, run.draws, generator("step", run.seed, run.step), device)
    run.seed_dropout()

    levels = row.levels(batch.u, run.step)
    sigma = levels[0]
    coefficients = run.denoiser.coefficients(sigma, sigma_data)
    weight = row.weight(batch.u, levels, sigma_data, coefficients.c_out)
    terms = Terms.of(coefficients, weight, sigma)
    factors = to_device_together(terms._asdict() | {"importance": batch.importance}, device)
    importance, terms = factors.pop("importance"), Terms(**factors)
    ln_sigma = to_device(sigma.log().float(), device) if run.uncertainty else None
    steps = None
    if row.learned_variance != "none" and isinstance(row.distribution, Levels):
        steps = Steps.of(row.distribution.levels, sigma, coefficients.c_out, device)

    run.optimizer.param_groups[0]["lr"] = learning_rate(row, run.step)
    run.optimizer.zero_grad()
    losses = _backward(run, batch, levels, terms, importance, ln_sigma, steps)
    run.suspects[run.step] = terms.sigma.gather(0, losses.isfinite().logical_not().float().argmax(0, True))[0]
    run.draws.learn(batch.u, losses)
    if row.clip_norm:
        clip(run.parameters(), row.clip_norm)
    run.optimizer.step()
    run.update_target()
    run.averages.update(run.step, row.batch)
    run.step += 1


def _backward(
    run: Run,
    batch: Batch,
    levels: Falling,
    terms: Terms,
    importance: Tensor,
    ln_sigma: Tensor | None,
    steps: Steps | None,
) -> Tensor:
    """Add up the gradient over micro-batches and processes, and return the losses of the whole batch, (B,).

    levels: of the objective, (B,) each, on the CPU. importance (B,): the weights that keep the mean over the batch
    unbiased. ln_sigma (B,): for a learned weighting. steps: for a learned variance.
    """
    objective, distance = OBJECTIVES[run.row.objective], DISTANCES[run.row.distance]
    batch_losses, mean = torch.zeros(run.row.batch, device=run.device), torch.zeros(1, device=run.device)
    for first in range(run.part.start, run.part.stop, run.micro_batch):
        part = slice(first, min(first + run.micro_batch, run.part.stop))  # of the whole batch
        own = slice(part.start - run.part.start, part.stop - run.part.start)  # of this process's images
        x0, n, conditions = batch.x0[own], batch.n[own], run.conditions(batch, own)
        target = None
        if objective.target is not denoising:
            asked = Question(x0, n, tuple(level[part] for level in levels), *run.answers(conditions))
            target = objective.target_of(asked, vars(run.row))
        losses, difference, v = network_error(run.network, terms.part(part), x0, n, conditions, target, distance)
        if run.uncertainty and ln_sigma is not None:
            uncertainty = run.uncertainty(ln_sigma[part])
            losses = losses / uncertainty.exp() + uncertainty
        if steps and v is not None:
            losses = losses + VLB_WEIGHT * steps.length * bound_bits(steps.part(part), x0, difference, v)
        share = (importance[part] * losses).sum() / run.row.batch
        share.backward()
        mean += share.detach()
        batch_losses[part] = losses.detach()
    processes.add_up([batch_losses, mean, *(p.grad for p in run.parameters() if p.grad is not None)])
    run.losses[run.step] = mean[0]
    return batch_losses


def _fits(run: Run, examples: Examples) -> bool:
    """Train one step; False if the device's memory does not suffice.

    A function of its own, because the error holds on to the run's memory until its handler ends.
    """
    try:
        advance(run, examples)
    except torch.OutOfMemoryError:
        return False
    return True


def _half(run: Run, halved: bool) -> int:
    """Half the micro-batch, after the device's memory did not suffice; announced on stderr.

    Raises StudyError the second time, and for several processes, whose micro-batches must be equal.
    """
    size = run.micro_batch // 2
    if halved or not size or processes.count() > 1:
        raise StudyError(
            f"seed {run.seed}: out of memory on {run.device} with {run.micro_batch} images at a time; "
            f"set micro_batch: {max(size, 1)} in the model's row, or use a smaller network"
        )
    say_once(f"out of memory with {run.micro_batch} images at a time: continuing from the last checkpoint with {size}")
    return size
