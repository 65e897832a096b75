"""Small data, images and extractors that the tests of extractors share."""

import hashlib
import os
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from pipeline.common.errors import StudyError
from pipeline.data.dataset import Dataset
from pipeline.data.row import Data
from pipeline.data.sources import load
from pipeline.metrics.extractors.extractor import Extractor
from pipeline.metrics.extractors.registry import make_extractor
from pipeline.metrics.extractors.row import Features

ROW = Features(width=16, epochs=2)
QUICK = Features(width=8, epochs=1)


@cache
def digits(limit: int | None = 300) -> Dataset:
    return load(Data(limit=limit))


@cache
def made() -> tuple[dict[str, bytes], dict[str, Any]]:
    return make_extractor(ROW, digits())


def colours(count: int, height: int = 5, width: int = 4, channels: int = 3) -> Tensor:
    random = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, height, width), generator=random, dtype=torch.uint8)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def one_line(call: Callable[[], object], *parts: str) -> str:
    with pytest.raises(StudyError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and len(message) < 900, message
    for part in parts:
        assert part in message, message
    return message


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Any:
        return self.function(images)


def extractor_of(function: Callable[[Tensor], Any], **rest: Any) -> Extractor:
    return Extractor("own", "", "", Function(function).eval(), **rest)


def no_network(url: str, to: str, hash_prefix: str, progress: bool) -> None:
    assert (url, hash_prefix, socket.getdefaulttimeout()) == (URL_INCEPTION_V3, "6726825d", 30)
    raise URLError("no\nnetwork")


class Evil:
    """What runs code where it is unpickled: it makes the folder `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])
