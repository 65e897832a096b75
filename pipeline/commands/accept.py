"""`python -m pipeline accept`: take new code for committed results, after a sample of the work came out the same.

For changes that are meant to leave every result as it is. For each stage that DVC calls stale, the new code does a
sample of the work from nothing in a scratch folder: of each training the steps up to the first point of its training
curve, for all seeds, and one training of the study to its end; of each curve one cell; all other stages as a whole.
Only if every byte agrees does dvc.lock take the new code. The report is not sampled: `make repro` makes it again in
seconds.
"""

import csv
import json
import os
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from functools import partial
from pathlib import Path
from statistics import median_low
from typing import Any

from dvc.output import Output
from dvc.repo import Repo, lock_repo
from dvc.stage import Stage
from torch import Tensor

from pipeline.commands.differences import first_difference
from pipeline.commands.remake import run_stage, scratch_folder
from pipeline.commands.restore import dvc_errors, restore
from pipeline.common.devices import default_device, exact_device, to_device
from pipeline.common.errors import StudyError
from pipeline.common.files import SHORT_HASH, Paths, content_hash, read_json, whole_folder, write_json
from pipeline.common.fingerprint import ROOT, code_hash, with_code
from pipeline.common.machine import machine
from pipeline.common.processes import workers_on
from pipeline.common.sealed import load_json
from pipeline.common.tensors import load_tensors
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import load_prepared, load_summary
from pipeline.diffusion.denoiser import Denoiser, load_denoiser
from pipeline.diffusion.space import load_space
from pipeline.diffusion.weights import failure, main_file
from pipeline.evaluation.cell import Cell
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.fits import load_fits
from pipeline.evaluation.sweep import measure_cell
from pipeline.metrics.extractors.registry import load_extractor
from pipeline.metrics.reference import load_reference
from pipeline.params.places import STUDIES
from pipeline.params.resolve import resolve_with_data
from pipeline.params.study import read_study
from pipeline.training.batches import Examples
from pipeline.training.checks import spec_of
from pipeline.training.loop import advance, pairs_from, train_seeds
from pipeline.training.row import Model
from pipeline.training.run import Run
from pipeline.training.spaces import in_space
from pipeline.training.trained import save_models

NOT_SAMPLED = ("resolve", "report")  # the first always runs, the last is made again


def accept(name: str) -> None:
    """Accept the present code for one study, a folder of studies/ or "" for the root study, or for "all" that have run.

    Raises StudyError that names the first difference; then nothing of that study is accepted.
    """
    files = {"": Path("params.yaml")} | {path.parent.name: path for path in sorted(STUDIES.glob("*/params.yaml"))}
    if name != "all" and name not in files:
        raise StudyError(f"study {name!r}: no such study; valid: all, {', '.join(filter(None, files))}")
    for path in files.values() if name == "all" else [files[name]]:
        if path.with_name("dvc.lock").exists():
            accept_study(path)
        elif name != "all":
            raise StudyError(f"{path.with_name('dvc.lock')}: missing; there are no results to accept: run `make repro`")


def accept_study(params: Path) -> None:
    """Accept the present code for the study of a params.yaml."""
    study = read_study(params)
    name, paths = study.study.name, Paths(study.study.name)
    rows, _ = resolve_with_data(study)
    with whole_folder(paths.rows) as folder:
        for file, content in with_code(rows.files()).items():
            write_json(folder / f"{file}.json", content)
    with dvc_errors(), Repo(_wait_for_lock=True) as repo, lock_repo(repo):
        graph = repo.stage.collect(str(params.with_name("dvc.yaml")))
        stages = {stage.addressing.rpartition(":")[2]: stage for stage in graph}
        sampled = {key: stage for key, stage in stages.items() if _kind(key) not in NOT_SAMPLED}
        stale = {key: stage for key, stage in sampled.items() if _stale(stage)}
        if stale:
            print(f"{name}: {len(stale)} of {len(stages)} stages are stale", flush=True)
            restore(repo, params.with_name("dvc.yaml"))
            _check_outputs(sampled)
            compared = Sample(paths, stale).compare()
            for key in ("resolve", *stale):
                repo.commit(stages[key].addressing, force=True)
    if not stale:
        print(f"{name}: no stage is stale; there is nothing to accept")
        return
    code = {kind: code_hash(f"stages.{kind}") for kind in dict.fromkeys(map(_kind, stale))}
    write_json(paths.reports / "accepted.json", {"machine": machine(default_device()), "code": code, **compared})
    print(f"{name}: every byte agrees; dvc.lock has the new code ({paths.reports / 'accepted.json'})")


def _kind(stage: str) -> str:
    return stage.partition("@")[0]


def _stale(stage: Stage) -> bool:
    return bool(stage.changed_stage() or stage.changed_deps())


def _check_outputs(stages: dict[str, Stage]) -> None:
    """Raise StudyError unless all outputs are those in dvc.lock."""
    for name, stage in stages.items():
        for out in stage.outs:
            if status := out.status():
                reason = " ".join(status.values())
                raise StudyError(
                    f"{_place(out)}: {reason}, so it is not the output of {name} in dvc.lock; "
                    "get that by `dvc pull`, or run the study with the code as it was"
                )


def _place(out: Output) -> str:
    return os.path.relpath(out.fs_path, ROOT)


class Sample:
    """A sample of the work of stale stages, to be compared with their outputs."""

    def __init__(self, paths: Paths, stale: dict[str, Stage]) -> None:
        self.paths, self.stale = paths, stale
        accepted = paths.reports / "accepted.json"
        self.known = read_json(accepted) if accepted.exists() else {}

    def compare(self) -> dict[str, Any]:
        """Do the work and compare it. Returns what was compared, for JSON. Raises StudyError for a difference."""
        rows: dict[str, list[str]] = {"train": [], "sweep": []}
        whole = []
        for name in self.stale:
            kind, _, row = name.partition("@")
            if kind in rows:
                rows[kind].append(row)
                continue
            print(f"{self.paths.study}: {name}", flush=True)
            self._whole(name)
            whole.append(name)
        return {"whole": whole, "train": self._trainings(rows["train"]), "sweep": self._cells(rows["sweep"])}

    def _whole(self, name: str) -> None:
        """Run a stage in a scratch folder that has nothing but its dependencies, and compare its outputs."""
        stage = self.stale[name]
        with scratch_folder() as scratch:
            for dep in stage.deps:
                link = scratch / _place(dep)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(dep.fs_path)
            _absolute_source(scratch / self.paths.rows)
            run_stage(name, self.paths.study, scratch)
            for out in stage.outs:
                if found := first_difference(Path(out.fs_path), scratch / _place(out)):
                    raise StudyError(f"{name}: {found}")

    def _trainings(self, names: list[str]) -> dict[str, Any]:
        """Compare the first steps of every training that did not fail, one whole training, and all imports.

        Returns hashes of the former, with those of models that are not stale this time.
        """
        known = self.known.get("train", {}).get("first_steps", {})
        if not names:
            return {"first_steps": known}
        data, summary = load_prepared(self.paths.data), load_summary(self.paths.data)
        rows = {name: _absolute(read_json(self.paths.row("models", name))) for name in self._all_models()}
        models = {name: Model(**row) for name, row in rows.items()}
        trained = [name for name in names if models[name].import_ is None]
        whole = [*trained[:1], *(name for name in names if name not in trained)]
        print(
            f"{self.paths.study}: the first steps of {len(trained)} models, and all of {', '.join(whole)}", flush=True
        )
        seeds = [(n, s) for n in trained for s in models[n].train_seeds if not failure(self.paths.model(n), s)]
        spaces = {name: in_space(self.paths.space(name), data, summary) for name in names}
        tasks = [partial(self._first_steps, name, models, seed, data.labels, *spaces[name]) for name, seed in seeds]
        first: dict[str, Any] = {name: {"outputs": self._lock_hash(name), "seeds": {}} for name in trained}
        for (name, seed), now in zip(seeds, side_by_side(tasks, workers_on(default_device())), strict=True):
            first[name]["seeds"][str(seed)] = now
            before = known.get(name, {})
            if before.get("outputs") == first[name]["outputs"] and before["seeds"].get(str(seed), now) != now:
                raise StudyError(f"train@{name}: seed {seed}: the weights differ after the first steps")
        for name in whole:
            self._whole_training(name, models[name], data.labels, *spaces[name])
        listed = "; ".join(f"{name}, seed {models[name].train_seeds[0]}" for name in whole)
        return {"first_steps": known | first, "whole": listed}

    def _all_models(self) -> list[str]:
        names: list[str] = read_json(self.paths.rows / "models.json")
        return names

    def _lock_hash(self, model: str) -> str:
        """The hash in dvc.lock of a model's weights."""
        folder = self.paths.model(model)
        return next(str(out.hash_info.value) for out in self.stale[f"train@{model}"].outs if _place(out) == str(folder))

    def _first_steps(
        self,
        name: str,
        models: dict[str, Model],
        seed: int,
        labels: Tensor | None,
        images: Tensor,
        summary: dict[str, Any],
    ) -> str:
        """Train up to the first point of the training curve, compare that point, and return a hash of the weights."""
        row, device, teacher = models[name].rounds[0], default_device(), self._teacher(models, models[name], seed)
        run = Run(spec_of(row, summary), row, seed, device, teacher=teacher)
        labels = labels if row.labels == "classes" else None
        examples = Examples(to_device(images, device), labels, pairs_from(teacher, row, seed, device))
        for _ in run.stretches()[0]:
            advance(run, examples)
        now = {key: str(value) for key, value in run.curve()[0].items()}
        file = self.paths.training_curve(name)
        with open(file, newline="", encoding="utf-8") as lines:
            before = next((line for line in csv.DictReader(lines) if line["seed"] == str(seed)), None)
        if before != now:
            raise StudyError(f"train@{name}: {file}: the first point of seed {seed} is {now}, and {before} before")
        tensors = {key: value.cpu().numpy().tobytes() for key, value in sorted(run.denoiser.state_dict().items())}
        return content_hash(*tensors, *tensors.values())[:SHORT_HASH]

    def _teacher(self, models: dict[str, Model], row: Model, seed: int) -> Denoiser | None:
        """The teacher of a row, which is another row of the study that was trained before."""
        if row.teacher is None:
            return None
        seedless = {"train_seeds": ()}
        wanted = row.teacher.model_copy(update=seedless)
        teacher = next(name for name, other in models.items() if other.model_copy(update=seedless) == wanted)
        imported = row.teacher.import_ is not None  # which is the same for all seeds
        return load_denoiser(main_file(self.paths.model(teacher), 0 if imported else seed))

    def _whole_training(
        self, name: str, row: Model, labels: Tensor | None, images: Tensor, summary: dict[str, Any]
    ) -> None:
        """Train one seed to its end and compare all files of weights."""
        seed = row.train_seeds[0]
        before = self.paths.model(name).resolve()
        one = row.model_copy(update={"train_seeds": (seed,)})
        with _elsewhere() as folder:
            save_models(train_seeds(one, summary, images, lambda count: None, labels=labels), folder / name)
            for file in sorted((folder / name).iterdir()):
                if found := first_difference(before / file.name, file):
                    raise StudyError(f"train@{name}: {found}")

    def _cells(self, names: list[str]) -> dict[str, Any]:
        """Compare one cell of each curve: the median number of steps with the first seeds."""
        if not names:
            return {}
        print(f"{self.paths.study}: one cell of {len(names)} curves", flush=True)
        device = default_device()
        extractor = load_extractor(self.paths.features).on(device)
        reference = load_reference(self.paths.reference, extractor.hash).on(exact_device(device))
        curves = {name: Curve(**read_json(self.paths.row("curves", name))) for name in names}
        build = self.paths.build.resolve()

        def task(name: str) -> dict[str, Any]:
            curve = curves[name]
            before = load_json(build / "curves" / name / "results.json")["cells"]
            places = [(cell["steps"], (cell["train_seed"], cell["sample_seed"])) for cell in before]
            if places != curve.cells():
                raise StudyError(f"sweep@{name}: its row asks for other cells than it has; run `make repro`")
            steps, seeds = median_low(sorted({steps for steps, _ in places})), curve.seeds[0]
            fits = load_fits(build / "grids" / f"{curve.model}.json")
            model, space = build / "models" / curve.model, load_space(build / "spaces" / curve.model)
            cell = measure_cell(curve, model, fits, extractor, reference, seeds, steps, space=space)
            self._compare_cell(name, before[places.index((steps, seeds))], cell, build / "curves" / name)
            return {"steps": steps, "seeds": list(seeds)}

        with _elsewhere():
            return dict(
                zip(names, side_by_side([partial(task, name) for name in names], workers_on(device)), strict=True)
            )

    def _compare_cell(self, name: str, before: dict[str, Any], cell: Cell, folder: Path) -> None:
        place = f"sweep@{name}: {cell.steps} steps, seeds {cell.train_seed} and {cell.sample_seed}"
        now = json.loads(json.dumps(cell.record()))
        for key in before | now:
            if before.get(key) == now.get(key):
                continue
            for old, new in zip(before[key], now[key], strict=False) if key == "metrics" else ():
                if old != new:
                    raise StudyError(f"{place}: {old['metric']} is {new['value']!r}, and {old['value']!r} before")
            raise StudyError(f"{place}: {key} is {now.get(key)!r}, and {before.get(key)!r} before")
        shown, _ = load_tensors(folder / "images.safetensors", "images")
        key = f"{cell.steps}/{cell.train_seed}/{cell.sample_seed}"
        if not cell.failed and not shown[key].equal(cell.images):
            raise StudyError(f"{place}: the images differ")


def _absolute_source(rows: Path) -> None:
    """Let rows that name images or weights by a relative path name them by an absolute one."""
    named = [rows / f"{name}.json" for name in ("data", "features", "autoencoders")]
    for file in [*filter(Path.exists, named), *rows.glob("sets/*.json"), *rows.glob("models/*.json")]:
        row = read_json(file)
        if (absolute := _absolute(row)) != row:
            file.unlink()
            write_json(file, absolute)


def _absolute(row: Any) -> Any:
    """A row, and the rows in it, with absolute paths."""
    if not isinstance(row, dict):
        return row
    paths = {key: row[key] for key in ("source", "weights", "folder", "import") if isinstance(row.get(key), str)}
    found = {key: str(Path(path).resolve()) for key, path in paths.items() if path and Path(path).exists()}
    return {key: _absolute(value) for key, value in row.items()} | found


@contextmanager
def _elsewhere() -> Iterator[Path]:
    """An empty folder to work in, so that nothing is taken from .cache."""
    with scratch_folder() as folder, chdir(folder):
        yield folder
