"""A user's network from a file: an exported program (.pt2)."""

from textwrap import shorten

from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.files import content_hash
from pipeline.data.dataset import Dataset
from pipeline.metrics.extractors.exported import read_exported
from pipeline.metrics.extractors.extractor import LARGE_BATCH, Extractor, Record
from pipeline.metrics.extractors.row import Features
from pipeline.metrics.extractors.weights import path_of, read

PREPROCESSING = "uint8 RGB (grey repeated), all else by the module itself"
FILE = "extractor.pt2"


def obtain(row: Features, dataset: Dataset, left_out: Tensor | None) -> tuple[bytes, Record]:
    path = path_of(row.weights or "")
    return read(path, row.hash or "")[0], {"file": FILE, "stem": path.stem}


def build(content: bytes, record: Record) -> Extractor:
    name, weights = f"module {record['stem']}", content_hash(PREPROCESSING, content)
    try:
        network = read_exported(content)
    except StudyError:
        raise
    except Exception as error:  # the content can be anything
        cause = shorten(f"{type(error).__name__}: {error}", 300)
        raise StudyError(f"not an exported program ({cause}); write it with torch.export.save") from None
    return Extractor(name, weights, PREPROCESSING, network, LARGE_BATCH, rgb=True)
