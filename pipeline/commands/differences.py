"""The first difference between two files or folders, in words."""

from pathlib import Path

from safetensors.torch import load_file

WIDTH = 60  # characters of a line that are printed


def first_difference(before: Path, now: Path) -> str | None:
    """The first file that differs, and the place in it; None if all bytes are equal."""
    if not before.is_dir():
        return _in_file(before, now, before.name)
    names = [{str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()} for root in (before, now)]
    for name in sorted(names[0] | names[1]):
        if found := _in_file(before / name, now / name, f"{before.name}/{name}"):
            return found
    return None


def _in_file(before: Path, now: Path, name: str) -> str | None:
    for file, word in ((before, "before"), (now, "now")):
        if not file.exists():
            return f"{name} does not exist {word}"
    old, new = before.read_bytes(), now.read_bytes()
    if old == new:
        return None
    if before.suffix == ".safetensors":
        return f"{name}: {_in_tensors(before, now)}"
    try:
        lines = old.decode().splitlines(), new.decode().splitlines()
    except UnicodeDecodeError:
        return f"{name}: the bytes differ"
    for number, (one, two) in enumerate(zip(*lines, strict=False), 1):
        if one != two:
            start = max(next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), 0) - WIDTH // 2, 0)
            return f"{name}, line {number}: {one[start:][:WIDTH]!r} before, {two[start:][:WIDTH]!r} now"
    return f"{name}: {len(lines[0])} lines before, {len(lines[1])} now"


def _in_tensors(before: Path, now: Path) -> str:
    old, new = load_file(before), load_file(now)
    if old.keys() != new.keys():
        return f"the tensor {min(old.keys() ^ new.keys())} is in one of the two"
    for name, one in old.items():
        two = new[name]
        if one.shape != two.shape or one.dtype != two.dtype:
            return f"the tensor {name} is {two.dtype} {list(two.shape)}, and {one.dtype} {list(one.shape)} before"
        if not one.equal(two):
            place = int((one != two).flatten().nonzero()[0])
            return f"{name}[{place}] is {two.flatten()[place]:.9g}, and {one.flatten()[place]:.9g} before"
    return "the metadata differ"
