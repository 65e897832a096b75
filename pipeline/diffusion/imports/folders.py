"""Folders of diffusers' UNet2DModel with their scheduler: settings and tensors. diffusers itself builds the network."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from pipeline.common.errors import StudyError, nearest
from pipeline.common.sealed import FOREIGN
from pipeline.common.text import shortened
from pipeline.diffusion.imports.unpickle import reason
from pipeline.diffusion.released import CONFIG, WEIGHTS
from pipeline.diffusion.schedule import DDPM_BETAS, VP_STEPS
from pipeline.diffusion.spec import Spec

CLASS, SCHEDULER = "UNet2DModel", "scheduler_config.json"
PATHS = {"linear": "ddpm", "squaredcos_cap_v2": "iddpm"}  # the parametrization of F = n with each scheduler's betas
LONGEST_LIST, LARGEST, MOST_LAYERS = 16, 65_536, 64  # of a configuration
TARGETS = {"epsilon": "", "sample": "_x0", "v_prediction": "_v"}  # its ending, by what the network predicts


def files_of(folder: Path) -> list[Path]:
    """The three files that are read: the network's configuration, its weights and its scheduler's configuration.

    folder: a pipeline's, with unet/ and scheduler/, or a network's with scheduler/ within it. Raises StudyError if one
    is missing, or the weights are a pickle.
    """
    network = folder / "unet" if (folder / "unet").is_dir() else folder
    schedulers = [folder / "scheduler" / SCHEDULER, network / SCHEDULER]
    files = [network / CONFIG, network / WEIGHTS, next(filter(Path.is_file, schedulers), schedulers[0])]
    for file in files:
        if not file.is_file():
            pickles = ", and pickles (.bin) are not read" if [*network.glob("*.bin")] else ""
            raise StudyError(f"{file}: missing{pickles}; use what diffusers' save_pretrained writes")
    return files


def read_folder(folder: Path) -> tuple[Spec, dict[str, Tensor]]:
    """The spec and the tensors of a folder's network.

    Raises StudyError, one line that names the file, if one is missing or broken, or has a setting without counterpart.
    """
    config_file, weights, scheduler_file = files_of(folder)
    config, scheduler = (_read(file) for file in (config_file, scheduler_file))
    try:
        spec = _spec({key: value for key, value in config.items() if key != "_name_or_path"}, _path(scheduler))
        return spec, {f"unet.{name}": tensor for name, tensor in load_file(weights).items()}
    except FOREIGN as error:
        raise StudyError(f"{folder}: {reason(error)}") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{file}: no JSON ({shortened(str(error))})") from None
    if not isinstance(content, dict):
        raise StudyError(f"{file}: no configuration of diffusers")
    return content


def _path(scheduler: Mapping[str, Any]) -> str:
    """The parametrization of a network that was trained with a scheduler."""
    betas, target = str(scheduler.get("beta_schedule")), str(scheduler.get("prediction_type", "epsilon"))
    fixed: dict[str, Any] = {"num_train_timesteps": VP_STEPS, "trained_betas": None, "rescale_betas_zero_snr": False}
    if betas == "linear":
        fixed |= dict(zip(("beta_start", "beta_end"), DDPM_BETAS, strict=True))
    for key, value in fixed.items():
        if scheduler.get(key, value) != value:
            raise StudyError(f"scheduler: {key} {shortened(str(scheduler[key]))}; only {value} is supported")
    for key, value, table in (("beta_schedule", betas, PATHS), ("prediction_type", target, TARGETS)):
        if value not in table:
            raise StudyError(f"scheduler: {key} {shortened(value)}; {nearest(value, table)}")
    return PATHS[betas] + TARGETS[target]


def _check_sizes(config: Mapping[str, Any]) -> None:
    """Refuse a network that would take long to build. Raises StudyError."""
    for key, value in config.items():
        values = value if isinstance(value, list) else [value]
        most = MOST_LAYERS if key == "layers_per_block" else LARGEST
        if len(values) > LONGEST_LIST or any(isinstance(each, int) and abs(each) > most for each in values):
            raise StudyError(
                f"{CONFIG}: {shortened(key)} takes at most {LONGEST_LIST} values, and whole numbers up to {most}"
            )


def _spec(config: Mapping[str, Any], parametrization: str) -> Spec:
    if (kind := str(config.get("_class_name"))) != CLASS:
        raise StudyError(f"{CONFIG}: a network of class {shortened(kind)}; only {CLASS} is supported")
    if config.get("num_class_embeds") or config.get("class_embed_type"):
        raise StudyError(f"{CONFIG}: a network with labels, of which it does not know the number of each; use another")
    _check_sizes(config)
    inputs, outputs, sides = config["in_channels"], config["out_channels"], config["sample_size"]
    if outputs not in (inputs, 2 * inputs):
        raise StudyError(f"{CONFIG}: {inputs} channels in and {outputs} out; only as many, or twice as many, work")
    height, width = sides if isinstance(sides, list) else (sides, sides)
    return Spec(
        parametrization=parametrization,
        sigma_data=0.5,
        shape=(int(inputs), int(height), int(width)),
        network="unet2d",
        channels=0,
        multipliers=(),
        blocks=0,
        attention=(),
        patch=0,
        embedding="positional",
        dropout=0.0,
        memory_format="contiguous",
        augmentation=0,
        classes=(),
        learned_variance=outputs == 2 * inputs,
        config=json.dumps({key: value for key, value in config.items() if not key.startswith("_")}, sort_keys=True),
    )
