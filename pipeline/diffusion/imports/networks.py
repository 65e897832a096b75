"""The networks in the pickles of EDM (arXiv 2206.00364) and EDM2 (arXiv 2312.02696): settings and tensors.

A module in such a file has the name of its class, the arguments that it was made with, its tensors, and the source of
its class, which is ignored. The class and its arguments give the `Spec`. Tensors keep their names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.common.errors import StudyError, nearest
from pipeline.common.sealed import FOREIGN
from pipeline.common.text import shortened
from pipeline.diffusion.imports.unpickle import CONTAINERS, PERSISTENT, Record, read_pickle, reason, tensor_of, wholes
from pipeline.diffusion.spec import Spec

MOST_ENTRIES, DEEPEST, LONGEST_NAME = 50_000, 20, 1_000  # of all modules; within each other; letters of a tensor's
LONGEST_LIST = 16  # that a message shows
LARGEST_SIDE, MOST_LABELS, MOST_CHANNELS, LARGEST_MULTIPLIER, MOST_BLOCKS = 65_536, 10**6, 16_384, 256, 256


@dataclass(frozen=True)
class Preconditioning:
    """A class around a network. constants: published values that its parametrization here has, by attribute."""

    parametrization: str
    network: str
    constants: Mapping[str, float]


PRECONDITIONINGS = {  # Table 1 of EDM
    "VPPrecond": Preconditioning("vp", "model", {"beta_d": 19.9, "beta_min": 0.1, "M": 1000}),
    "VEPrecond": Preconditioning("ve", "model", {}),
    "iDDPMPrecond": Preconditioning("iddpm", "model", {"C_1": 1e-3, "C_2": 8e-3, "M": 1000}),
    "EDMPrecond": Preconditioning("edm", "model", {}),
    "Precond": Preconditioning("edm", "unet", {}),  # EDM2's
}
_EMBEDDING, _BOX = {"channel_mult_emb": 4}, {"resample_filter": [1, 1]}
_DDPMPP = {**_EMBEDDING, **_BOX, "channel_mult_noise": 1, "encoder_type": "standard", "decoder_type": "standard"}
_EDM2 = {
    "channel_mult_noise": None,
    "channel_mult_emb": None,
    "label_balance": 0.5,
    "concat_balance": 0.5,
    "res_balance": 0.3,
    "attn_balance": 0.3,
    "clip_act": 256,
    "channels_per_head": 64,
    **_BOX,
}
FIXED: dict[str, dict[str, Any]] = {  # by network of ours: the values that these arguments must have
    "edm_ddpmpp": _DDPMPP,
    "edm_ncsnpp": _DDPMPP | {"channel_mult_noise": 2, "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]},
    "edm_adm": _EMBEDDING,
    "edm2": _EDM2,
}


def _sizes(channels: int, multipliers: list[int], blocks: int, attention: list[int]) -> dict[str, Any]:
    return {
        "model_channels": channels,
        "channel_mult": multipliers,
        "num_blocks": blocks,
        "attn_resolutions": attention,
        "augment_dim": 0,
    }


CLASSES: dict[str, dict[str, Any]] = {  # the networks, with the defaults of their arguments
    "SongUNet": _sizes(128, [1, 2, 2, 2], 4, [16]) | _DDPMPP | {"embedding_type": "positional"},
    "DhariwalUNet": _sizes(192, [1, 2, 3, 4], 3, [32, 16, 8]) | _EMBEDDING,
    "UNet": _sizes(192, [1, 2, 3, 4], 3, [16, 8]) | _EDM2,
}
OF_SONG = {"positional": "edm_ddpmpp", "fourier": "edm_ncsnpp"}
IGNORED = (  # arguments that matter to training alone, or that the class around the network has as well
    "dropout",
    "label_dropout",
    "img_resolution",
    "in_channels",
    "out_channels",
    "img_channels",
    "label_dim",
)


def read_edm(path: Path) -> tuple[Spec, dict[str, Tensor]]:
    """The spec and the tensors of the network under `ema` in a released pickle.

    Raises StudyError, one line that names the file, if it is not such a file, or if a setting has no counterpart here.
    """
    content = read_pickle(path)
    try:
        if not isinstance(content, dict) or "ema" not in content:
            raise StudyError("no network under `ema`")
        kind, state = _module(content["ema"], "ema")
        if kind not in PRECONDITIONINGS:
            raise StudyError(f"unknown class {shortened(kind)}; {nearest(kind, PRECONDITIONINGS)}")
        inner = PRECONDITIONINGS[kind].network
        class_name, network = _module(_part(state, "_modules")[inner], inner)
        if class_name not in CLASSES:
            raise StudyError(f"unknown class {shortened(class_name)}; {nearest(class_name, CLASSES)}")
        return _spec(kind, state, class_name, network), _Tensors(path.stat().st_size).of(network)
    except FOREIGN as error:
        raise StudyError(f"{path}: {reason(error)}") from None


def _module(value: Any, place: str) -> tuple[str, dict[str, Any]]:
    """The name of a module's class, and its state."""
    if isinstance(value, Record) and value.name == PERSISTENT:
        [meta] = value.arguments
        name, state = meta["class_name"], meta["state"]
    elif isinstance(value, Record) and value.name in CONTAINERS:
        name, state = value.name.rpartition(".")[2], value.state
    else:
        raise StudyError(f"{shortened(place)} is no network")
    if not isinstance(name, str) or not isinstance(state, dict):
        raise StudyError(f"{shortened(place)} has no class or no state")
    return name, state


def _part(state: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = state[key]
    if not isinstance(value, dict):
        raise StudyError(f"{key} is no mapping")
    return value


class _Tensors:
    """Collects tensors of modules; in all no more bytes than the file has, and no more entries than `MOST_ENTRIES`."""

    def __init__(self, most_bytes: int) -> None:
        self.left, self.entries = most_bytes, 0
        self.storages: dict[int, Tensor] = {}
        self.found: dict[str, Tensor] = {}

    def of(self, state: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
        """The tensors of a module and of all within it, by name."""
        parts = [_part(state, key) for key in ("_parameters", "_buffers", "_modules")]
        self.entries += sum(map(len, parts))
        if self.entries > MOST_ENTRIES or prefix.count(".") > DEEPEST:
            raise StudyError(f"more than {MOST_ENTRIES:,} tensors and modules, or {DEEPEST} modules within each other")
        for part in parts:
            for name, value in part.items():
                full = f"{prefix}{name}"
                if len(full) > LONGEST_NAME:
                    raise StudyError(f"{shortened(full)}: a name of more than {LONGEST_NAME:,} letters")
                if value is not None and part is parts[-1]:
                    self.of(_module(value, full)[1], f"{full}.")
                elif value is not None:
                    self._add(full, value)
        return self.found

    def _add(self, name: str, value: Any) -> None:
        try:
            tensor = tensor_of(value, self.storages)
        except FOREIGN as error:
            raise StudyError(f"{shortened(name)}: {reason(error)}") from None
        self.left -= tensor.nbytes
        if self.left < 0:
            raise StudyError("its tensors take more bytes than the file has")
        self.found[name] = tensor


def _shown(value: Any) -> str:
    """A value in a message. A list of unknown content may be too long for one."""
    plain = value if isinstance(value, list | tuple) and len(value) < LONGEST_LIST else [value]
    if all(each is None or isinstance(each, str | int | float) for each in plain):
        return shortened(str(value))
    return "another value"


def _number(values: Mapping[str, Any], key: str, least: int, most: int) -> int:
    return _numbers({key: [values[key]]}, key, least, most)[0]


def _numbers(values: Mapping[str, Any], key: str, least: int, most: int) -> tuple[int, ...]:
    try:
        return wholes(values[key], least, most)
    except StudyError as error:
        raise StudyError(f"{key}: {error}") from None


def _network(class_name: str, given: dict[str, Any]) -> str:
    """Our name of a network that was made with these arguments. Refuses what has no counterpart here."""
    arguments = CLASSES[class_name] | given
    embedding = arguments.get("embedding_type")
    of_song = OF_SONG.get(embedding) if isinstance(embedding, str) else None
    ours = {"DhariwalUNet": "edm_adm", "UNet": "edm2"}.get(class_name) or of_song
    if ours is None:
        embedding = _shown(embedding)
        raise StudyError(f"{class_name} has embedding_type {embedding}; {nearest(embedding, OF_SONG)}")
    for key, value in FIXED[ours].items():
        found = arguments[key]
        if (list(found) if isinstance(found, tuple) else found) != value:
            raise StudyError(f"{class_name} has {key} {_shown(found)}; only {value} is supported")
    if unknown := [key for key in given if key not in CLASSES[class_name] and key not in IGNORED]:
        raise StudyError(f"{class_name} has the unknown argument {_shown(unknown[0])}")
    return ours


def _spec(kind: str, state: Mapping[str, Any], class_name: str, network: Mapping[str, Any]) -> Spec:
    """The spec of a preconditioning and its network."""
    about = PRECONDITIONINGS[kind]
    for key, value in about.constants.items():
        if state[key] != value:
            raise StudyError(f"{kind} has {key} {_shown(state[key])}; only the published {value:g} is supported")
    if network["_init_args"] or (class_name == "UNet") != (kind == "Precond"):
        raise StudyError(f"{kind} around a {class_name} with arguments without names, or of another paper")
    ours = _network(class_name, _part(network, "_init_kwargs"))
    arguments = CLASSES[class_name] | network["_init_kwargs"]
    side = _number(state, "img_resolution", 1, LARGEST_SIDE)
    multipliers = _numbers(arguments, "channel_mult", 1, LARGEST_MULTIPLIER)
    sides = [side >> level for level in range(len(multipliers))]
    sigma_data = state.get("sigma_data", 0.5)
    if not isinstance(sigma_data, float | int) or not 0 < sigma_data < LARGEST_SIDE:
        raise StudyError("sigma_data: takes a positive number")
    return Spec(
        parametrization=about.parametrization,
        sigma_data=float(sigma_data),
        shape=(_number(state, "img_channels", 1, MOST_CHANNELS), side, side),
        network=ours,
        channels=_number(arguments, "model_channels", 1, MOST_CHANNELS),
        multipliers=multipliers,
        blocks=_number(arguments, "num_blocks", 0, MOST_BLOCKS),
        attention=tuple(s for s in _numbers(arguments, "attn_resolutions", 1, LARGEST_SIDE) if s in sides),
        patch=2,
        embedding="fourier" if ours == "edm_ncsnpp" else "positional",
        dropout=0.0,
        memory_format="channels_last",
        augmentation=_number(arguments, "augment_dim", 0, MOST_CHANNELS),
        classes=(1,) * _number(state, "label_dim", 0, MOST_LABELS),
        learned_variance=kind == "iDDPMPrecond",
    )
