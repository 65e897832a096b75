"""Checkpoints: the file of a training's state, and the setting that it belongs to."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.common import processes
from pipeline.common.errors import StudyError
from pipeline.common.files import content_hash
from pipeline.common.fingerprint import code_hash
from pipeline.common.machine import machine
from pipeline.common.sealed import kept
from pipeline.common.tensors import load_tensors, save_tensors
from pipeline.data.dataset import to_hash
from pipeline.diffusion.spec import Spec
from pipeline.training.row import Model
from pipeline.training.run import Run


def beside(checkpoint: Path, name: str) -> Path:
    """Another file of the same training, next to its checkpoint."""
    return checkpoint.with_name(f"{checkpoint.stem}_{name}.safetensors")


def setting(
    row: Model, spec: Spec, images: Tensor, labels: Tensor | None, seed: int, device: torch.device
) -> dict[str, Any]:
    """Everything that a training's result depends on, for JSON: row, spec, seed, data, code and machine."""
    data = content_hash(to_hash(images), None if labels is None else labels.tolist())
    code = code_hash("pipeline.training.loop")
    return {**_plain(row), **asdict(spec), "seed": seed, "data": data, "code": code, **machine(device)}


def _plain(row: Model) -> dict[str, Any]:
    """The row and its teacher's row, without seeds and without rows that the data or the spec stand for."""
    values = row.model_dump(mode="json", exclude={"train_seeds", "teacher", "like", "space", "autoencoder", "import_"})
    return values | {"teacher": _plain(row.teacher) if row.teacher else None}


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str:
    """The keys in which a checkpoint's setting differs from the present one, with both values; empty for none."""
    different = []
    for key in dict.fromkeys([*new, *old]):
        one, two = (values.get(key, "nothing") for values in (old, new))
        if isinstance(one, dict) and isinstance(two, dict):
            different.append(differences(one, two, f"{prefix}{key}."))
        elif one != two:
            now = "in the row" if prefix or key in Model.model_fields else "now"
            different.append(f"{prefix}{key}: {str(one)[:40]} in the checkpoint, {str(two)[:40]} {now}")
    return "; ".join(filter(None, different))


def save_checkpoint(run: Run, path: Path, setting: dict[str, Any]) -> None:
    """Write the checkpoint of a training with this setting, whole or not at all. One process of a job writes."""
    if processes.first():
        save_tensors(path, state(run), "setting", setting)


def load_checkpoint(run: Run, path: Path, setting: dict[str, Any]) -> bool:
    """Restore a run from a checkpoint; False if the file is missing or broken.

    Raises StudyError if the file has another setting.
    """
    if not (found := kept(partial(load_tensors, kind="setting"), path)):
        return False
    tensors, saved = found
    if different := differences(saved, json.loads(json.dumps(setting))):
        raise StudyError(f"{path}: checkpoint of another training: {different}; delete it or undo the change")
    _restore(run, tensors)
    return True


def state(run: Run) -> dict[str, Tensor]:
    """All tensors of a run, by name."""
    tensors = {f"model.{k}": v for k, v in run.denoiser.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in run.averages.tensors().items()}
    if run.target:
        tensors |= {f"target.{k}": v for k, v in run.target.state_dict().items()}
    if run.uncertainty:
        tensors |= {f"uncertainty.{k}": v for k, v in run.uncertainty.state_dict().items()}
    tensors |= optimizer_state(run.optimizer)
    return tensors | {"step": torch.tensor(run.step), "losses": run.losses, "draws": run.draws.state}


def _restore(run: Run, tensors: dict[str, Tensor]) -> None:
    """Inverse of `state`."""
    run.denoiser.load_state_dict(under(tensors, "model."))
    run.averages.load(under(tensors, "average."))
    if run.target:
        run.target.load_state_dict(under(tensors, "target."))
    if run.uncertainty:
        run.uncertainty.load_state_dict(under(tensors, "uncertainty."))
    restore_optimizer(run.optimizer, tensors)
    run.draws.state.copy_(tensors["draws"])
    run.losses.copy_(tensors["losses"])
    run.step = int(tensors["step"])


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of an optimizer's state, by name."""
    states = optimizer.state_dict()["state"].items()
    return {f"optimizer.{index}.{key}": value for index, values in states for key, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_state`; `tensors` may hold others as well."""
    state, parameters = optimizer.state_dict(), optimizer.param_groups[0]["params"]
    for name, value in under(tensors, "optimizer.").items():
        index, key = name.split(".")
        like = parameters[int(index)].detach() if value.ndim else value  # fused Adam needs equal strides
        state["state"].setdefault(int(index), {})[key] = torch.empty_like(like).copy_(value)
    optimizer.load_state_dict(state)


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
