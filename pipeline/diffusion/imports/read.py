"""Reads a released network, in whichever form it is, as a denoiser."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.sealed import FOREIGN
from pipeline.common.text import shortened
from pipeline.diffusion.denoiser import Denoiser, load_denoiser
from pipeline.diffusion.imports.folders import files_of, read_folder
from pipeline.diffusion.imports.networks import read_edm
from pipeline.diffusion.imports.unpickle import reason
from pipeline.diffusion.spec import Spec


def weights_file(path: Path) -> Path:
    """The file of weights: the path itself, or within a folder of diffusers. Raises StudyError if there is none."""
    if path.is_dir():
        return files_of(path)[1]
    if not path.is_file():
        raise StudyError(f"{path}: no such file or folder")
    return path


def check_sha256(path: Path, expected: str, found: str) -> None:
    """Refuse a file with another sha256 than expected. Raises StudyError, which has room for both."""
    if found != expected.lower():
        raise StudyError(f"{shortened(path.name)}: its sha256 is {found}, not {expected.lower()}; fetch the file again")


def sha256_of(path: Path) -> str:
    """The sha256 of the file of weights."""
    with open(weights_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_network(path: Path) -> Denoiser:
    """The denoiser in a pickle of EDM or EDM2, a folder of diffusers, or a file of our own, in eval mode.

    Raises StudyError, one line that names the file, if it is broken, asks for more than released networks need, or has
    a setting without a counterpart here.
    """
    file = weights_file(path)
    if file.suffix == ".safetensors" and not path.is_dir():
        return load_denoiser(file)
    spec, tensors = read_folder(path) if path.is_dir() else read_edm(path)
    try:
        return _filled(spec, tensors)
    except FOREIGN as error:
        raise StudyError(f"{path}: {reason(error)}") from None


def _filled(spec: Spec, tensors: dict[str, Tensor]) -> Denoiser:
    """A spec's denoiser with these tensors, in float32. Nothing is allocated before all names and shapes agree."""
    with torch.device("meta"):
        denoiser = Denoiser(spec)
    network = denoiser.network
    wanted = network.state_dict()
    for what, names in (
        ("lacks the tensor", wanted.keys() - tensors),
        ("has the surplus tensor", tensors.keys() - wanted),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise StudyError(f"it {what} {shortened(min(names))}{more}, so it is not the network that it describes")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise StudyError(f"{name} has the shape {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}")
        if not (tensor.is_floating_point() and bool(tensor.isfinite().all())):
            raise StudyError(f"{name} has values that are not finite numbers")
    denoiser.to_empty(device="cpu")
    network.load_state_dict(tensors)
    return denoiser.eval().requires_grad_(False)
