"""The user's environment reaches neither the libraries of a process nor its figures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.common.environment import launched
from pipeline.common.errors import StudyError
from pipeline.report.figures.drawing import new_figure, save
from tests.imports import ROOT


def python(code: str, *options: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True)


@pytest.mark.parametrize("script", ["import stages", "from pipeline.common.environment import settle; settle()"])
def test_packages_of_pythonpath_do_not_replace_the_pinned_ones(tmp_path: Path, script: str) -> None:
    for package in ("yaml", "extra"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("mine = True\n")
    path = os.pathsep.join(["", str(tmp_path), "/nowhere"])
    done = python(f"{script}; import yaml, extra; print(yaml.__file__)", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.decode().startswith(str(tmp_path))


DRAW = """
import stages
from pathlib import Path
from tests.common.test_environment import draw
draw(Path("there.png"))
"""


def draw(path: Path) -> None:
    figure, axes = new_figure((3, 2))
    axes[0, 0].plot([1, 2, 3], [3, 1, 2], label="méthode")
    axes[0, 0].legend(title="a legend")
    axes[0, 0].set_title("a title")
    save(figure, path)


def test_figures_do_not_depend_on_the_users_settings(tmp_path: Path) -> None:
    draw(tmp_path / "here.png")
    settings = "legend.frameon: False\nfont.size: 33\nbackend: module://nowhere\nfont.sans-serif: Arial\n"
    (tmp_path / "matplotlibrc").write_text(settings)  # matplotlib looks into the working folder, too
    (tmp_path / "broken").write_text("x: [")
    own = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "MATPLOTLIBRC": str(tmp_path / "broken")}
    done = python(DRAW, cwd=tmp_path, PYTHONPATH=str(ROOT), **own)
    assert (done.returncode, done.stderr) == (0, b"")
    for kind in (".png", ".svg"):
        assert (tmp_path / f"here{kind}").read_bytes() == (tmp_path / f"there{kind}").read_bytes()


@pytest.mark.parametrize("options", [("-O",), ("-OO",)])
@pytest.mark.parametrize(
    "start",
    [
        "from stages import outcome; code = outcome(print, '')",
        "from pipeline.commands.cli import main; code = main(['check'])",
    ],
)
def test_python_without_assertions_is_refused_in_one_line(options: tuple[str, ...], start: str) -> None:
    done = python(f"import sys; sys.argv = ['train']; {start}; sys.exit(code)", *options)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: PYTHONOPTIMIZE: ") and len(done.stderr.splitlines()) == 1


def test_a_letter_that_the_terminal_lacks_is_printed_as_its_number() -> None:
    done = python(r"import stages; print('Gr\xf6\xdfe \u03b2')", PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
    assert (done.returncode, done.stdout) == (0, "Größe \\u03b2\n".encode("latin-1"))


def test_what_torchrun_tells_is_a_number_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, value in {"": 1, "1": 1, "4": 4}.items():
        monkeypatch.setenv("WORLD_SIZE", text)
        assert launched("WORLD_SIZE", 1) == value
    monkeypatch.delenv("WORLD_SIZE")
    assert launched("WORLD_SIZE", 7) == 7
    for text in ("two", "-1", "1.0", " 1", "²"):
        monkeypatch.setenv("WORLD_SIZE", text)
        with pytest.raises(StudyError, match=r"WORLD_SIZE='.*': torchrun sets it to a whole number; unset it"):
            launched("WORLD_SIZE", 1)
