"""Changed images are noticed, unchanged ones are not read again, and a broken listing does no harm."""

import builtins
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from pipeline.common.errors import StudyError
from pipeline.common.sealed import sealed_json
from pipeline.data import watch
from pipeline.data.listing import BUILT_IN
from pipeline.data.watch import watched

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = {"a/0.png": b"zero", "a/1.png": b"one", "b/2.jpg": b"two", "dataset.json": b'{"labels": null}'}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files in the working directory. Their times are trusted at once: most tests cannot wait."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(watch, "RACY_NS", -(10**12))
    for name, content in FILES.items():
        (path := Path("set") / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return Path("set")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that `watched` reads, in order."""
    names: list[str] = []

    def spy(path: str, mode: str) -> object:
        names.append(Path(path).name)
        return builtins.open(path, mode)

    monkeypatch.setattr(watch, "open", spy, raising=False)
    return names


def kept() -> list[Path]:
    return sorted(Path(".cache/watched").iterdir())


def later(path: Path) -> None:
    """Set a file's time to a later one, as a clock with a coarse resolution may not tell two writes apart."""
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9))


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_source_has_a_constant_digest(name: str) -> None:
    Path(name).mkdir()
    assert watched(name) == "" and not Path(".cache").exists()
    assert watched(f"./{name}") != ""


def test_unchanged_files_are_read_once(folder: Path, opened: list[str]) -> None:
    first = watched("set")
    assert opened == ["0.png", "1.png", "2.jpg", "dataset.json"]
    assert watched("set") == first == watched(str(folder.resolve())) and len(opened) == 4
    before = [path.stat().st_mtime_ns for path in kept()]
    assert watched("set") == first and [path.stat().st_mtime_ns for path in kept()] == before


def rewrite(folder: Path) -> None:
    (folder / "a/1.png").write_bytes(b"One")
    later(folder / "a/1.png")


def swap(folder: Path) -> None:
    """Exchange two files of equal size and time: only the time of the status change tells."""
    for name in ("a/1.png", "b/2.jpg"):
        os.utime(folder / name, ns=(0, 10**18))
    watched("set")
    (folder / "a/1.png").rename(folder / "x")
    (folder / "b/2.jpg").rename(folder / "a/1.png")
    (folder / "x").rename(folder / "b/2.jpg")


def elsewhere() -> Path:
    """A folder of images beside the set."""
    (other := Path("other").absolute()).mkdir()
    (other / "0.png").write_bytes(b"zero")
    return other


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": rewrite,
    "size": lambda folder: (folder / "a/1.png").write_bytes(b"a longer one"),
    "deleted": lambda folder: (folder / "a/1.png").unlink(),
    "added": lambda folder: (folder / "a/2.png").write_bytes(b"two"),
    "renamed": lambda folder: (folder / "a/1.png").rename(folder / "a/01.png"),
    "another class": lambda folder: (folder / "a/1.png").rename(folder / "b/1.png"),
    "swapped": swap,
    "labels": lambda folder: (folder / "dataset.json").write_bytes(b'{"labels": []}'),
    "labels elsewhere": lambda folder: (folder / "a/dataset.json").write_bytes(b"{}"),
    "a linked folder": lambda folder: (folder / "c").symlink_to(elsewhere()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(folder: Path, change: str) -> None:
    before = watched("set")
    CHANGES[change](folder)
    after = watched("set")
    assert after != before
    for path in kept():
        path.unlink()
    assert watched("set") == after


def test_only_changed_files_are_read_again(folder: Path, opened: list[str]) -> None:
    watched("set")
    del opened[:]
    rewrite(folder)
    (folder / "b/3.png").write_bytes(b"three")
    watched("set")
    assert opened == ["1.png", "3.png"]


@pytest.mark.parametrize(
    "name", [".hidden.png", ".git/x.png", "__MACOSX/a/._0.png", "a/.dataset.json", "notes.txt", "a/Thumbs.db"]
)
def test_files_that_are_not_loaded_do_not_count(folder: Path, name: str) -> None:
    before = watched("set")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")
    assert watched("set") == before


def test_a_touched_file_is_read_again_and_the_digest_stays(folder: Path, opened: list[str]) -> None:
    before = watched("set")
    del opened[:]
    later(folder / "a/0.png")
    assert watched("set") == before and opened == ["0.png"]


def test_the_digest_does_not_depend_on_the_place(folder: Path) -> None:
    before = watched("set")
    folder.rename("moved")
    assert watched("moved") == before and len(kept()) == 2


def test_a_file_has_the_digest_of_its_content(opened: list[str]) -> None:
    with zipfile.ZipFile("set.zip", "w") as archive:
        archive.writestr("0.png", b"zero")
    before = sha256(Path("set.zip").read_bytes()).hexdigest()
    assert watched("set.zip") == watched("./set.zip") == before and opened == ["set.zip"]
    with zipfile.ZipFile("set.zip", "a") as archive:
        archive.writestr("1.png", b"one")
    assert watched("set.zip") == sha256(Path("set.zip").read_bytes()).hexdigest() != before
    Path(".weights.pt").write_bytes(b"w")  # a hidden file counts if the study names it
    assert watched(".weights.pt") == sha256(b"w").hexdigest()


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert watched("~/set") == watched("set")


def test_a_recent_time_is_not_trusted(folder: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = max(path.stat().st_ctime_ns for path in folder.rglob("*.*"))
    monkeypatch.setattr(watch, "RACY_NS", 2 * 10**9)
    monkeypatch.setattr(watch.time, "time_ns", lambda: now + 10**9)
    for _ in range(2):
        watched("set")
    assert len(opened) == 8  # one second after the last change everything is read again
    monkeypatch.setattr(watch.time, "time_ns", lambda: now + 3 * 10**9)
    for _ in range(3):
        watched("set")
    assert len(opened) == 12
    os.utime(folder / "a/0.png", ns=(0, now + 10**15))  # in the future
    for _ in range(2):
        watched("set")
    assert opened[12:] == ["0.png", "0.png"]


BROKEN: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "cut short": lambda text: text[:-20],
    "no mapping": lambda text: "[]",
    "of another source": lambda text: sealed_json(json.loads(text) | {"source": "/other"}).decode(),
    "without a seal": lambda text: json.dumps(json.loads(text)),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_listing_is_made_again(folder: Path, opened: list[str], case: str) -> None:
    before, [path] = watched("set"), kept()
    good = path.read_text()
    path.write_text(BROKEN[case](good))
    assert watched("set") == before and len(opened) == 8 and path.read_text() == good


@pytest.mark.parametrize("source", ["nowhere", "nowhere.zip", "set/a/0.png/x", "~nobody/set"])
def test_a_missing_source_is_one_line(source: str) -> None:
    with pytest.raises(StudyError) as caught:
        watched(source)
    assert source in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_an_unreadable_file_is_one_line(folder: Path) -> None:
    (folder / "a/2.png").symlink_to("absent")
    with pytest.raises(StudyError, match=r"set/a/2\.png: No such file"):
        watched("set")
    (folder / "a/2.png").unlink()
    os.mkfifo(folder / "a/2.png")
    with pytest.raises(StudyError, match=r"set/a/2\.png: neither a file nor a folder"):
        watched("set")


def test_names_that_are_not_utf_8_are_kept(folder: Path, opened: list[str]) -> None:
    Path(os.fsdecode(b"set/\xff.png")).write_bytes(b"x")
    assert watched("set") == watched("set") and len(opened) == 5


def test_the_module_does_without_torch() -> None:
    code = "import sys, pipeline.data.watch; print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip() == "False"
