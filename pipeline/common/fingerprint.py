"""One fingerprint of the code: the modules that a stage, or an entry of `.cache`, depends on.

A module enters with a hash of its syntax tree without comments, docstrings and layout, so that prose never makes a
result stale. Templates beside a module enter with their bytes, libraries with their pinned versions. This module
imports the standard library alone: it must give the same hashes on every supported Python.
"""

import ast
import hashlib
import re
import threading
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipeline", "stages")
PINS = ROOT / "requirements.txt"
SKIPPED = {"kind", "type_comment", "type_ignores"}  # fields of a syntax tree that no result depends on
BYSTANDERS = {"tqdm", "pydantic", "pyyaml", "dvc"}  # libraries that no result depends on
_PARSING = threading.Lock()  # Python 3.11's parser fails now and then if several threads use it
PROJECT_OF_IMPORT = {"PIL": "pillow", "sklearn": "scikit-learn", "ot": "pot", "yaml": "pyyaml"}


def syntax_hash(source: str) -> str:
    """A hash of Python source that ignores comments, docstrings and layout.

    `ast.dump` differs between Python versions in how it prints empty fields, so they are left out here.
    """
    return _tree_hash(ast.parse(source))


def _tree_hash(tree: ast.Module) -> str:
    return hashlib.sha256("".join(_tokens(tree)).encode()).hexdigest()


def _tokens(node: Any) -> Iterator[str]:
    if isinstance(node, ast.Constant):
        yield f"{type(node.value).__name__} {node.value!r}"
    elif isinstance(node, ast.AST):
        yield f"{type(node).__name__}("
        for name, value in ast.iter_fields(node):
            if name not in SKIPPED and value is not None and value != []:
                yield f"{name}="
                yield from _tokens(value)
        yield ")"
    elif isinstance(node, list):
        yield "["
        for each in node:
            if not _is_docstring(each):
                yield from _tokens(each)
                yield ","
        yield "]"
    else:
        yield repr(node)


def _is_docstring(node: Any) -> bool:
    """Whether a statement is a text alone: the docstring of a module, class or function, or of the field above it."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _file_of(module: str) -> Path | None:
    """The file of one of the project's modules or packages; None for any other name."""
    base = ROOT.joinpath(*module.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


@cache
def _read(file: Path, changed_ns: int) -> tuple[str, frozenset[str]]:
    """A module's syntax hash, and every name that it imports, with the packages around them."""
    with _PARSING:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    around = {name.rsplit(".", count)[0] for name in names for count in range(1, name.count(".") + 1)}
    return _tree_hash(tree), frozenset(names | around)


def _modules(module: str) -> dict[Path, tuple[str, frozenset[str]]]:
    """The files of a module, the packages around it, and all of the project's modules that it imports, in any way."""
    names = [module.rsplit(".", count)[0] for count in range(module.count(".") + 1)]
    todo = [file for name in names if (file := _file_of(name))]
    found: dict[Path, tuple[str, frozenset[str]]] = {}
    while todo:
        file = todo.pop()
        if file not in found:
            found[file] = _read(file, file.stat().st_mtime_ns)
            todo += [f for name in found[file][1] if name.split(".")[0] in PACKAGES and (f := _file_of(name))]
    return found


def _pins() -> dict[str, str]:
    """The pinned version of each library, by its name in the lock of requirements; several where platforms differ."""
    found: dict[str, list[str]] = {}
    for name, pinned in re.findall(r"^([\w.-]+)==([^\s;\\]+)", PINS.read_text(encoding="utf-8"), re.M):
        found.setdefault(name.lower(), []).append(pinned)
    return {name: " ".join(sorted(set(versions))) for name, versions in found.items()}


def fingerprint(module: str) -> dict[str, dict[str, str]]:
    """What a module's results depend on, as JSON: `files`, a hash for each, by path below the repository's root, and
    `libraries`, the pinned version of each library that these files import.

    module: a dotted name, such as "stages.train".
    """
    modules = _modules(module)
    files = {file: syntax for file, (syntax, _) in modules.items()}
    for folder in {file.parent for file in modules}:
        for file in folder.iterdir():
            if file.is_file() and file.suffix not in (".py", ".pyc") and not file.name.startswith("."):
                files[file] = hashlib.sha256(file.read_bytes()).hexdigest()
    imported = {name.split(".")[0] for _, names in modules.values() for name in names}
    projects = {PROJECT_OF_IMPORT.get(name, name.lower().replace("_", "-")) for name in imported} - BYSTANDERS
    pins = _pins()
    return {
        "files": {str(file.relative_to(ROOT)): files[file] for file in sorted(files)},
        "libraries": {name: pins[name] for name in sorted(projects & pins.keys())},
    }


@cache
def code_hash(module: str) -> str:
    """One hash of `fingerprint`, for keys of `.cache`, computed once in a process."""
    parts = fingerprint(module)
    return hashlib.sha256(
        repr((sorted(parts["files"].items()), sorted(parts["libraries"].items()))).encode()
    ).hexdigest()


def stage_fingerprints() -> dict[str, dict[str, dict[str, str]]]:
    """The fingerprint of every stage, by name."""
    names = sorted(file.stem for file in (ROOT / "stages").glob("[!_]*.py"))
    return {name: fingerprint(f"stages.{name}") for name in names}


def with_code(rows: Mapping[str, Any]) -> dict[str, Any]:
    """What `resolve` writes below build/<study>/rows: the name of a file, without .json -> its content.

    rows: `Resolved.files()`.
    """
    return {**rows, **{f"code/{stage}": code for stage, code in stage_fingerprints().items()}}
