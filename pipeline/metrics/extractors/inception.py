"""Inception v3 features of FID (Heusel et al. 2017, arXiv 1706.08500), through torch-fidelity's network."""

import hashlib
import io
from pathlib import Path
from textwrap import shorten

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor

from pipeline.common.download import download
from pipeline.common.errors import StudyError
from pipeline.common.files import content_hash
from pipeline.data.dataset import Dataset
from pipeline.metrics.extractors.extractor import LARGE_BATCH, Extractor, Record, Unavailable
from pipeline.metrics.extractors.row import Features
from pipeline.metrics.extractors.weights import digests, path_of, read

PREPROCESSING = "uint8 RGB (grey repeated), bilinear as in TensorFlow 1 to 299 x 299, (x - 128) / 128"


def official_prefix() -> str:
    """The first digits of the sha256 of torch-fidelity's Inception weights, from their file's name."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return Path(URL_INCEPTION_V3).stem.rpartition("-")[2]


def obtain(row: Features, dataset: Dataset, left_out: Tensor | None) -> tuple[bytes, Record]:
    """The weights as safetensors, from the row's file, else the official ones."""
    path = path_of(row.weights) if row.weights else _official_file()
    content, file_hash = read(path, row.hash or official_prefix())
    return _as_safetensors(path, content), {"file": "extractor.safetensors", "file_hash": file_hash}


def build(content: bytes, record: Record) -> Extractor:
    """torch-fidelity's class unpickles its file without restrictions, so it gets bytes made here from plain tensors."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        state = load(content)
        torch.save(state, pickled := io.BytesIO())
        pickled.seek(0)
        with torch.random.fork_rng(devices=[]):
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], pickled)
    except (safetensors.SafetensorError, RuntimeError) as error:
        causes = "; ".join(shorten(line, 160) for line in str(error).splitlines()[:4])
        raise StudyError(f"not the weights of torch-fidelity's Inception v3: {causes}") from None
    file_hash = record["file_hash"]  # sha256 of the published file
    weights = content_hash(PREPROCESSING, digests(state), file_hash)
    official = file_hash.startswith(official_prefix())
    return Extractor("inception", weights, PREPROCESSING, network, LARGE_BATCH, rgb=True, official=official)


def lacking(row: Features) -> str | None:
    """One line if the row takes the official weights and they are not on this machine, else None. Downloads nothing."""
    if row.extractor != "inception" or row.weights or _begins_with(path := _official_path(), official_prefix()):
        return None
    return (
        f"features: Inception's weights are not at {path}; the stage downloads them there, and if that fails, the "
        "classifier replaces them and no score is FID; or name a file in features.weights"
    )


def _official_path() -> Path:
    """The place of torch-fidelity's Inception weights in torch hub's cache."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name


def _official_file() -> Path:
    """torch-fidelity's Inception weights in torch hub's cache, downloaded if missing. Raises Unavailable."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = _official_path()
    try:
        if not _begins_with(path, official_prefix()):
            download(URL_INCEPTION_V3, path, official_prefix())
        if not _begins_with(path, official_prefix()):
            raise ValueError(f"{path.name}: its sha256 does not begin with {official_prefix()}")
    except Exception as error:  # a network, a proxy or a full disk can raise anything
        raise Unavailable(f"{type(error).__name__}: {error}") from None
    return path


def _begins_with(path: Path, prefix: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest().startswith(prefix)


def _as_safetensors(path: Path, content: bytes) -> bytes:
    """A file of weights, .safetensors or PyTorch's, as safetensors. Unpickles nothing but tensors."""
    try:
        if path.suffix == ".safetensors":
            state = load(content)
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return save({name: tensor.contiguous().clone() for name, tensor in state.items()})
    except Exception as error:  # unpickling can raise anything
        cause = shorten(f"{type(error).__name__}: {error}", 200)
        raise StudyError(f"{path}: not a file of weights, a mapping of names to tensors ({cause})") from None
