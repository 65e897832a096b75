"""CIFAR-10's archive: what is read from it, where it comes from, and one clear line for what is not that file."""

import hashlib
import io
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.common.errors import StudyError
from pipeline.data import cifar10
from pipeline.data.cifar10 import ARCHIVE, BATCHES, CLASSES, Archive
from pipeline.data.dataset import Dataset, load_prepared, save
from pipeline.data.row import Data
from pipeline.data.sources import glance, load
from stages import Arguments, prepare

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDS = 12  # of a batch in these archives
COUNT = RECORDS * len(BATCHES)
NAME = "cifar-10-binary.tar.gz"
DOWNLOADED = Path(".cache/downloads") / NAME


def batch(index: int) -> bytes:
    """Records whose labels and pixels tell where they belong: image i has label (3 i + index) % 10."""
    values = np.random.default_rng(index).integers(0, 256, (RECORDS, 3073), dtype=np.uint8)
    values[:, 0] = (3 * np.arange(RECORDS) + index) % 10
    return values.tobytes()


def members() -> dict[str, bytes]:
    """What is in the published archive, in an order that is not the batches' own."""
    others = {"cifar-10-batches-bin/batches.meta.txt": b"airplane\n", "cifar-10-batches-bin/test_batch.bin": batch(9)}
    return others | {BATCHES[i]: batch(i) for i in (3, 0, 4, 1, 2)}


def packed(files: dict[str, bytes]) -> bytes:
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w:gz") as archive:
        for name, content in files.items():
            (member := tarfile.TarInfo(name)).size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def publish(monkeypatch: pytest.MonkeyPatch, content: bytes, url: str = ARCHIVE.url) -> None:
    """Make `content` the published archive."""
    found = Archive(url, hashlib.sha256(content).hexdigest(), len(content))
    monkeypatch.setattr(cifar10, "ARCHIVE", found)


@pytest.fixture
def content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The bytes of a small archive, which is taken for the published one; the working directory is an empty one."""
    (tmp_path / "root").mkdir()
    monkeypatch.chdir(tmp_path / "root")
    monkeypatch.setattr(cifar10, "RECORDS", RECORDS)
    publish(monkeypatch, made := packed(members()))
    return made


def local(content: bytes, name: str = NAME) -> str:
    Path("some/where").mkdir(parents=True, exist_ok=True)
    (path := Path("some/where") / name).write_bytes(content)
    return str(path)


def one_line(call: Callable[[], object], *causes: str) -> None:
    with pytest.raises(StudyError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and all(cause in message for cause in causes), message


def files() -> list[str]:
    return sorted(path.as_posix() for path in Path().rglob("*") if path.is_file())


def test_images_and_labels_are_those_of_the_batches_in_order(content: bytes) -> None:
    dataset = load(Data(source=local(content)))
    assert dataset.images.shape == (COUNT, 3, 32, 32) and dataset.images.dtype == torch.uint8
    assert dataset.images.is_contiguous() and dataset.labels is not None and dataset.labels.dtype == torch.int64
    assert dataset.classes == CLASSES and CLASSES[3] == "cat" and "lossy" not in dataset.summary()
    place = 0
    for index in range(5):
        raw = batch(index)
        for i in range(RECORDS):
            record = raw[3073 * i : 3073 * (i + 1)]
            assert dataset.labels[place] == record[0] == (3 * i + index) % 10
            for channel, row, column in ((0, 0, 0), (0, 0, 31), (1, 0, 0), (1, 5, 7), (2, 31, 30)):
                value = record[1 + 1024 * channel + 32 * row + column]
                assert dataset.images[place, channel, row, column] == value
            place += 1
    assert place == COUNT and files() == [f"some/where/{NAME}"]


def test_limit_and_labels_are_honoured(content: bytes, tmp_path: Path) -> None:
    source = local(content, "Copy.TAR.GZ")
    whole, part, bare = (load(Data(source=source, **row)) for row in ({}, {"limit": 20}, {"labels": False}))
    assert torch.equal(part.images, whole.images[:20]) and part.labels is not None and whole.labels is not None
    assert torch.equal(part.labels, whole.labels[:20]) and part.classes == CLASSES
    assert torch.equal(bare.images, whole.images) and bare.labels is None and bare.classes == ()
    save(part, tmp_path / "prepared")
    assert torch.equal(load_prepared(tmp_path / "prepared").images, part.images)


def test_a_folder_may_be_called_like_an_archive(content: bytes) -> None:
    Path("set.tar.gz").mkdir()
    one_line(lambda: load(Data(source="set.tar.gz")), "set.tar.gz: no images in it")


def test_a_glance_knows_it_without_the_images(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Data(source=local(content), **row) for row in ({}, {"limit": 50}, {"labels": False}, {"limit": 10**6})]
    summaries = [load(row).summary() for row in rows]
    monkeypatch.setattr(cifar10, "read", None)
    for row, summary in zip(rows, summaries, strict=True):
        found = glance(row)
        assert found.keys() < summary.keys()
        approximate = {"sigma_data", "class_counts"}
        assert {key: summary[key] for key in found.keys() - approximate} == {
            key: found[key] for key in found.keys() - approximate
        }
        assert found["class_counts"].keys() == summary["class_counts"].keys()
        by_name = glance(row.model_copy(update={"source": "cifar10"}))  # needs neither an archive nor a network
        assert by_name == found


def test_the_published_set_has_fifty_thousand_images() -> None:
    found = glance(Data(source="cifar10"))
    assert (found["count"], found["channels"], found["height"], found["width"]) == (50_000, 3, 32, 32)
    assert set(found["class_counts"].values()) == {5_000}


def test_a_copy_that_is_missing_is_refused_at_a_glance(content: bytes) -> None:
    one_line(lambda: glance(Data(source="some/where.tar.gz")), "data.source: 'some/where.tar.gz' is no folder")


BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "another": (lambda content: b"hello", "5 bytes"),
    "empty": (lambda content: b"", "0 bytes"),
    "cut short": (
        lambda content: content[:-100],
        "bytes, and CIFAR-10's binary archive, the only .tar.gz that is taken",
    ),
    "one byte": (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "its sha256 is "),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("kept", [False, True])
def test_another_file_is_refused_and_stays(content: bytes, case: str, kept: bool) -> None:
    harm, cause = BAD[case]
    path = Path(local(harmed := harm(content)))
    if kept:
        DOWNLOADED.parent.mkdir(parents=True)
        path = path.rename(DOWNLOADED)
    cure = "delete it; the next run downloads it again" if kept else f"download it again from {ARCHIVE.url}"
    found, wanted = (f"{hashlib.sha256(each).hexdigest()[:12]}..." for each in (harmed, content))
    if len(harmed) != len(content):
        found, wanted = f"{len(harmed):,} bytes", f"{len(content):,}"
    row, causes = Data(source="cifar10" if kept else str(path)), (f"{path}: ", cause, found, f"has {wanted}; {cure}")
    one_line(lambda: load(row), *causes)
    one_line(lambda: glance(row), *causes)
    assert files() == [path.as_posix()]


def test_a_file_that_may_not_be_read_is_one_line(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    source = local(content)
    monkeypatch.setattr(cifar10, "open", refuse, raising=False)
    one_line(lambda: load(Data(source=source)), "cannot be read (PermissionError: ", "download it again from ")
    one_line(lambda: glance(Data(source=source)), "cannot be read (PermissionError: ", "download it again from ")


# The download


@pytest.fixture
def served() -> Iterator[Callable[[bytes, int], str]]:
    """Serves a content, said to be of so many bytes, and gives its URL."""
    servers = []

    def serve(content: bytes, length: int) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *values: object) -> None:
                pass

        servers.append(server := HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/{NAME}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def test_it_is_downloaded_once_and_checked_again(
    content: bytes, served: Callable[[bytes, int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, content, served(content, len(content)))
    first = load(Data(source="cifar10"))
    assert files() == [DOWNLOADED.as_posix()] and DOWNLOADED.read_bytes() == content
    publish(monkeypatch, content, f"http://127.0.0.1:1/{NAME}")  # where nobody answers
    again, copy = load(Data(source="cifar10")), load(Data(source=str(DOWNLOADED)))
    for other in (again, copy):
        assert torch.equal(first.images, other.images) and first.summary() == other.summary()
    assert first.summary()["count"] == COUNT == glance(Data(source="cifar10"))["count"]
    DOWNLOADED.write_bytes(content[:-1])
    one_line(lambda: load(Data(source="cifar10")), f"{DOWNLOADED}: ", "delete it; the next run downloads it again")


@pytest.mark.parametrize("harm", ["cut short", "one byte", "a page"])
def test_a_download_of_anything_else_leaves_nothing(
    content: bytes, served: Callable[[bytes, int], str], monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    sent = b"<html>sign in" if harm == "a page" else BAD[harm][0](content)
    length = len(content) if harm == "cut short" else len(sent)
    publish(monkeypatch, content, url := served(sent, length))
    one_line(
        lambda: load(Data(source="cifar10")),
        f"{url}: the download was cut short, or it is another file",
        "data.source",
    )
    assert files() == []


def nobody() -> str:
    """The address of a port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/{NAME}"


@pytest.mark.parametrize("url", [nobody, lambda: (Path.cwd() / "absent" / NAME).as_uri()])
def test_without_a_network_a_copy_is_asked_for(
    content: bytes, monkeypatch: pytest.MonkeyPatch, url: Callable[[], str]
) -> None:
    publish(monkeypatch, content, address := url())
    causes = (f"{address}: cannot be downloaded to {DOWNLOADED} (", "`data.source` also takes the path of a copy")
    one_line(lambda: load(Data(source="cifar10")), *causes)
    assert files() == []


def test_a_folder_that_cannot_be_written_is_one_line(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".cache").write_text("a file")
    publish(monkeypatch, content, nobody())
    one_line(lambda: load(Data(source="cifar10")), "cannot be downloaded to ", "NotADirectoryError")


def test_a_download_that_is_broken_off_leaves_nothing(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(NAME).write_bytes(content)
    publish(monkeypatch, content, Path(NAME).resolve().as_uri())

    def interrupt(*_: object) -> None:
        assert len(files()) == 2  # the one that is being written is there
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.hub.shutil, "move", interrupt)
        load(Data(source="cifar10"))
    assert files() == [NAME]
    assert len(load(Data(source="cifar10")).images) == COUNT


def test_the_stage_prepares_it(
    content: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(monkeypatch, content, Path(local(content)).resolve().as_uri())
    row = Path("build/small/rows/data.json")
    row.parent.mkdir(parents=True)
    row.write_text(Data(source="cifar10", limit=30).model_dump_json())
    prepare.main(Arguments("small", ""))
    assert capsys.readouterr().out.startswith("cifar10: 30 images of 3 x 32 x 32, 10 classes, sigma_data 0.")
    made: Dataset = load_prepared(Path("build/small/data"))
    assert torch.equal(made.images, load(Data(source="cifar10", limit=30)).images)
