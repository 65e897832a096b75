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


def in_the_locale(call: ast.Call) -> bool:
    """Whether a call reads or writes text in the encoding of the user's locale."""
    keywords = {keyword.arg for keyword in call.keywords}
    if "encoding" in keywords or None in keywords:
        return False
    if isinstance(call.func, ast.Name):
        modes = [argument.value for argument in call.args[1:2] if isinstance(argument, ast.Constant)]
        return call.func.id == "open" and not any("b" in mode for mode in modes)
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    return name in ("read_text", "write_text") or (name in ("run", "Popen", "check_output") and "text" in keywords)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_text_is_utf8_whatever_the_locale(file: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.Call)]
    assert not [f"line {call.lineno}" for call in calls if in_the_locale(call)]


@pytest.mark.parametrize("code", ["open(x)", "open(x, 'a')", "x.read_text()", "x.write_text(y)", "run(x, text=True)"])
def test_a_call_in_the_locale_is_found(code: str) -> None:
    def found(code: str) -> bool:
        return in_the_locale(ast.parse(code, mode="eval").body)  # type: ignore[arg-type]

    code = code.replace("run", "subprocess.run")
    assert found(code) and not found(code.replace(")", ", encoding='utf-8')", 1).replace("(,", "("))
