"""Rooms and walls: imports go down only, and rooms of one floor do not know each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    ("common",),
    ("data", "diffusion"),
    ("training", "sampling", "metrics"),
    ("evaluation",),
    ("params",),
    ("report",),
    ("commands", "stages"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    """The room of a module's dotted name: `pipeline.data.points` is in `data`, `stages.train` in `stages`."""
    first, *rest = module.split(".")
    return first if first == "stages" else rest[0] if rest else "pipeline"


def imported(file: Path) -> set[str]:
    """The project's modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            module = node.module or ""
            names |= {f"pipeline.{alias.name}" for alias in node.names} if module == "pipeline" else {module}
    return {name for name in names if name.split(".")[0] in ("pipeline", "stages")}


FILES = [file for folder in ("pipeline", "stages") for file in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_down_only(file: Path) -> None:
    own = room_of(".".join(file.relative_to(ROOT).with_suffix("").parts))
    if own in ("pipeline", "__init__", "__main__"):
        return
    for name in imported(file):
        other = room_of(name)
        assert other == own or FLOOR[other] < FLOOR[own], f"{own} must not import {name}"
