"""The fingerprint of the code: blind to prose and layout, and to nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.common import fingerprint as module
from pipeline.common.fingerprint import code_hash, fingerprint, stage_fingerprints, syntax_hash

SOURCE = '''
"""What the module is for."""

from collections.abc import Sequence

RATE = 0.5  # a constant


@decorated
def blend(values: Sequence[float], share: float = 0.25, *, base=None) -> float:
    """A weighted mean."""
    if not values:
        return base
    match values:
        case [one]:
            return one
    total = sum(value * share ** (index + 1) for index, value in enumerate(values))
    return total + RATE if (name := f"{total:.3f} {share!r}") else -RATE


class Row:
    key: int = 3
    """What the key is for."""
'''
SAME = {
    "a comment": ("# a constant", "# a rate, in nothing"),
    "a comment more": ("RATE = 0.5", "# above\nRATE = 0.5"),
    "the docstring of a module": ("What the module is for", "Another purpose"),
    "the docstring of a function": ("A weighted mean.", "The mean.\n\n    In two paragraphs."),
    "no docstring": ('    """A weighted mean."""\n', ""),
    "the docstring of a field": ("What the key is for", "Its purpose"),
    "a line break": ("values: Sequence[float], share", "values: Sequence[float],\n    share"),
    "an empty line": ("    total =", "\n    total ="),
    "parentheses": ("return one", "return (one)"),
    "quotes": ('f"{total:.3f} {share!r}"', "f'{total:.3f} {share!r}'"),
}
OTHER = {
    "a constant": ("RATE = 0.5", "RATE = 0.50000001"),
    "the type of a constant": ("key: int = 3", "key: int = 3.0"),
    "a sign": ("else -RATE", "else RATE"),
    "an operator": ("value * share", "value / share"),
    "a default": ("share: float = 0.25", "share: float = 0.26"),
    "no default": ("base=None", "base"),
    "a keyword-only argument": ("*, base", "base"),
    "an annotation": ("key: int", "key: float"),
    "a decorator": ("@decorated", "@other"),
    "no decorator": ("@decorated\n", ""),
    "a name": ("total + RATE", "share + RATE"),
    "a condition": ("if not values", "if values"),
    "a pattern": ("case [one]", "case [one, _]"),
    "a format": (":.3f}", ":.4f}"),
    "a conversion": ("!r}", "!s}"),
    "an import": ("import Sequence", "import Iterable"),
    "a text that is used": ("RATE = 0.5", 'RATE = "0.5"'),
    "a statement less": ("RATE = 0.5  # a constant\n", ""),
}


@pytest.mark.parametrize("change", SAME)
def test_prose_and_layout_do_not_count(change: str) -> None:
    old, new = SAME[change]
    assert SOURCE.count(old) == 1 and syntax_hash(SOURCE.replace(old, new)) == syntax_hash(SOURCE)


@pytest.mark.parametrize("change", OTHER)
def test_everything_else_counts(change: str) -> None:
    old, new = OTHER[change]
    assert SOURCE.count(old) == 1 and syntax_hash(SOURCE.replace(old, new)) != syntax_hash(SOURCE)


def test_the_hash_is_the_same_on_every_python() -> None:
    """A known answer: this test runs on all supported versions."""
    assert syntax_hash(SOURCE)[:16] == "93899d06d18457a4"


def test_a_stage_depends_on_what_it_imports_in_any_way() -> None:
    files = fingerprint("stages.train")["files"]
    assert {"stages/__init__.py", "stages/train.py", "pipeline/__init__.py"} <= files.keys()
    assert {"pipeline/training/loss.py", "pipeline/diffusion/networks/unet.py"} <= files.keys()
    assert not [
        name for name in files if name.startswith(("pipeline/report", "pipeline/sampling", "pipeline/commands"))
    ]
    assert "pipeline/report/template.md.j2" in fingerprint("stages.report")["files"]


def test_the_pinned_libraries_of_the_imports_are_in_it() -> None:
    libraries = fingerprint("stages.train")["libraries"]
    assert {"torch", "safetensors"} <= libraries.keys() and "seaborn" not in libraries
    assert f"torch=={libraries['torch']}" in module.PINS.read_text()


def test_every_stage_has_one() -> None:
    found = stage_fingerprints()
    assert found.keys() == {path.stem for path in (module.ROOT / "stages").glob("*.py")} - {"__init__"}
    assert found["sweep"] == fingerprint("stages.sweep")
    assert code_hash("stages.sweep") != code_hash("stages.train") == code_hash("stages.train")


def test_it_needs_the_standard_library_alone(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import pipeline.common.fingerprint; print('torch' in sys.modules)"
    )
    command = [sys.executable, "-I", "-c", code, str(module.ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "False\n", done.stderr
