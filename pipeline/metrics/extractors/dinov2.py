"""DINOv2 features (Oquab et al. 2023), as Stein et al. 2023, arXiv 2306.04675, recommend for diffusion models."""

import torch

from pipeline.common.download import timeout
from pipeline.common.files import content_hash
from pipeline.data.dataset import Dataset
from pipeline.metrics.extractors.extractor import LARGE_BATCH, Extractor, Record, Unavailable
from pipeline.metrics.extractors.row import Features
from pipeline.metrics.extractors.weights import digests

NAME = "dinov2-vit-l-14"
PREPROCESSING = "uint8 RGB (grey repeated), bilinear as in TensorFlow 1 to 224 x 224, mean and deviation of ImageNet"


def obtain(row: Features, dataset: Dataset) -> tuple[bytes, Record]:
    return b"", {"file": None}  # code and weights stay in torch hub's cache


def build(content: bytes, record: Record) -> Extractor:
    """torch hub runs the code that the authors publish. Raises Unavailable if this fails."""
    try:
        from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

        with timeout(), torch.random.fork_rng(devices=[]):
            network = FeatureExtractorDinoV2(NAME, ["dinov2"])
    except Exception as error:  # torch hub runs code from elsewhere
        raise Unavailable(f"{type(error).__name__}: {error}") from None
    weights = content_hash(PREPROCESSING, digests(network.model.state_dict()))
    return Extractor(NAME, weights, PREPROCESSING, network, LARGE_BATCH, rgb=True)
