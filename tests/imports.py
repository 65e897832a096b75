"""Which of the project's own files a script imports, directly or through others."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent


def module_file(name: str) -> Path | None:
    """The file of a module of `pipeline` or `stages`, or None for any other name."""
    base = ROOT / name.replace(".", "/")
    found = [f for f in (base.with_suffix(".py"), base / "__init__.py") if f.exists()]
    return found[0] if name.split(".")[0] in ("pipeline", "stages") and found else None


def imported_names(file: Path) -> set[str]:
    """Every module name that a file imports, and the packages around it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {".".join(name.split(".")[:k]) for name in names for k in range(1, name.count(".") + 2)}


def has_code(file: Path) -> bool:
    """Whether a file holds more than a docstring."""
    return any(not isinstance(node, ast.Expr) for node in ast.parse(file.read_text()).body)


def project_files(script: Path) -> set[str]:
    """The script and all project files that it imports, relative to the root; those with no code left out."""
    found, todo = set(), [script]
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo += [f for name in imported_names(file) if (f := module_file(name))]
    return {str(f.relative_to(ROOT)) for f in found if has_code(f)}
