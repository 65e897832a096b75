"""Files of folders and zips: which are read, under which names, and what is refused before it is read."""

import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.data import files
from pipeline.data.listing import passed_over
from pipeline.data.watch import watched
from tests.data.small import folder_of, listing, loaded, one_line, png, zip_of

IMAGES = {"a/0.png": png(0), "a/1.png": png(1), "b/2.png": png(2)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return folder_of(Path("set"), IMAGES)


LINKS = {  # a link below the set, where it leads, the folder that it makes again
    "to itself": ("a/self", ".", "set/a"),
    "up": ("a/up", "..", "set"),
    "around the set": ("a/up", "../..", ""),
    "to everything": ("a/root", "/", "/"),
    "to another class": ("b/a", "../a", "set/a"),
}


@pytest.mark.parametrize("case", LINKS)
def test_a_folder_is_read_once(folder: Path, tmp_path: Path, case: str) -> None:
    link, target, again = LINKS[case]
    (folder / link).symlink_to(target)
    message = f"{tmp_path / 'set' / link}: a link makes this the folder {tmp_path / again} again; remove the link"
    assert one_line(lambda: loaded(folder.absolute())) == one_line(lambda: watched("set")) == message


def test_links_that_multiply_are_refused(folder: Path) -> None:
    """Each folder leads to the next one twice: 2 to the power of 40 folders."""
    for i in range(40):
        (folder / f"c{i}").mkdir()
        for name in "xy":
            (folder / f"c{i}" / name).symlink_to(f"../c{i + 1}")
    assert "a link makes this the folder" in one_line(lambda: loaded(folder))


def test_links_to_files_and_to_folders_elsewhere_are_followed(folder: Path) -> None:
    (folder / "c").symlink_to(folder_of(Path("elsewhere"), {"0.png": png(3)}).absolute())
    (folder / "a/3.png").symlink_to("../b/2.png")
    (folder / "a/loop").symlink_to("loop")
    Path("link").symlink_to("set")
    dataset = loaded(Path("link"))
    assert dataset.labels is not None and dataset.labels.tolist() == [0, 0, 0, 1, 2] and dataset.classes[2] == "c"


@pytest.mark.parametrize("name", ["a/3.png", "dataset.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
def test_what_is_not_a_regular_file_of_a_fair_size_is_not_opened(folder: Path, name: str, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "device":
        (folder / name).symlink_to("/dev/zero")
    else:
        (folder / name).touch()
        os.truncate(folder / name, 10**10)
    cause = "10,000,000,000 bytes; a file may have 268,435,456" if kind == "large" else "neither a file nor a folder"
    assert one_line(lambda: loaded(folder)).startswith(f"set/{name}: {cause}")


NAMES = {  # names in a zip: classes
    "windows": (["cat\\0.png", "dog\\1.png"], ("cat", "dog")),
    "windows, in a folder": (["pets\\cat\\0.png", "pets\\dog\\1.png"], ("cat", "dog")),
    "dots": (["./cat/0.png", ".//dog/./1.png"], ("cat", "dog")),
    "absolute": (["/pets/cat/0.png", "/pets/dog/1.PNG"], ("cat", "dog")),
    "a drive": (["C:\\cat\\0.png", "C:\\dog\\1.png"], ("cat", "dog")),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_in_zips_are_read_as_their_packers_meant_them(tmp_path: Path, case: str) -> None:
    names, classes = NAMES[case]
    packed = {name: png(seed) for seed, name in enumerate(names)} | {"cat/": b"", "dog\\": b""}
    dataset = loaded(zip_of(tmp_path / "set.zip", packed))
    assert dataset.classes == classes and len(dataset.images) == 2


def test_a_list_of_labels_may_begin_with_a_dot(tmp_path: Path) -> None:
    packed = {"./0.png": png(0), "./1.png": png(1), "./dataset.json": listing([["0.png", 1], ["1.png", 0]])}
    dataset = loaded(zip_of(tmp_path / "set.zip", packed))
    assert dataset.labels is not None and dataset.labels.tolist() == [1, 0]


@pytest.mark.parametrize("name", ["../0.png", "a/../../0.png", "..\\0.png"])
def test_a_name_that_leads_out_of_a_zip_is_refused(tmp_path: Path, name: str) -> None:
    path = zip_of(tmp_path / "set.zip", IMAGES | {name: png(3)})
    assert "leads out of the zip" in one_line(lambda: loaded(path))


@pytest.mark.parametrize("name", ["a/0.png", "a\\0.png", "./a/0.png"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    path = zip_of(tmp_path / "set.zip", IMAGES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, png(3))
    assert one_line(lambda: loaded(path)).startswith(f"{path}/a/0.png: two files have this name")


def encrypt(member: zipfile.ZipInfo) -> None:
    member.flag_bits |= files.ENCRYPTED


def link(member: zipfile.ZipInfo) -> None:
    member.external_attr = (stat.S_IFLNK | 0o777) << 16


def pack_otherwise(member: zipfile.ZipInfo) -> None:
    member.compress_type = zipfile.ZIP_BZIP2


def enlarge(member: zipfile.ZipInfo) -> None:
    member.file_size = 10**10


def shrink(member: zipfile.ZipInfo) -> None:
    member.file_size = 50


MEMBERS: dict[str, tuple[Callable[[zipfile.ZipInfo], None], str]] = {
    "encrypted": (encrypt, "encrypted; pack the zip without a password"),
    "link": (link, "neither a file nor a folder"),
    "method": (pack_otherwise, "neither stored nor deflated"),
    "size": (enlarge, "10,000,000,000 bytes; a file may have 268,435,456"),
    "a size that is too small": (shrink, "cannot be read as an image; mend or remove it (BadZipFile: Bad CRC-32"),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_what_a_zip_should_not_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """The zip's directory says what it says of a/1.png; the file itself is fine."""
    change, cause = MEMBERS[case]
    path, directory = zip_of(tmp_path / "set.zip", IMAGES), zipfile.ZipFile.infolist

    def changed(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
        change(archive.getinfo("a/1.png"))
        return directory(archive)

    monkeypatch.setattr(zipfile.ZipFile, "infolist", changed)
    assert one_line(lambda: loaded(path)).startswith(f"{path}/a/1.png: {cause}")


def test_a_name_cannot_write_to_the_terminal(pack: Callable) -> None:
    message = one_line(lambda: loaded(pack(IMAGES | {"a/\x1b[2J\n9.png": b"x"})))
    assert "/a/\\x1b[2J 9.png: cannot be read" in message and " at 0x" not in message


def test_files_that_are_passed_over_are_counted(pack: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    others = ("a/3.heic", "a/4.HEIC", "b/5.avif", "b/6", "notes.txt", "x.csv", "y.md", "a/.hidden", "a/7.png.part")
    path = pack(IMAGES | dict.fromkeys(others, b""))
    assert len(loaded(path).images) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"note: {path}: not read as images: 2 .heic, 1 ") and said.endswith(", 3 others\n")
    assert passed_over([*IMAGES, "dataset.json"]) == ""


def test_without_images_the_error_says_what_there_is(pack: Callable) -> None:
    assert "no images in it" in (message := one_line(lambda: loaded(pack({"0.heic": b"", "1.avif": b""}))))
    assert message.endswith("; not read as images: 1 .heic, 1 .avif")
