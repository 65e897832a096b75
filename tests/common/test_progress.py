"""What a stage shows while it works: a bar and a line per finished cell on a terminal, nothing elsewhere."""

import fcntl
import io
import os
import re
import struct
import sys
import termios
import threading
from contextlib import redirect_stdout
from typing import Any, TextIO

import pytest

import stages.autoencode
import stages.features
import stages.grids
import stages.prepare
import stages.reference
import stages.resolve
import stages.sweep
import stages.train
from pipeline.common.progress import bar, tell
from stages import Arguments

STUDY = """
study: {name: tiny}
data: {source: digits, limit: 200}
features: {epochs: 1, width: 16}
defaults:
  models: {images: 2048, batch: 64, train_seeds: [0, 1], channels: 8, blocks: 1, multipliers: [1]}
  curves: {samples: 40, sample_seeds: [0, 1], nfe: [4, 7, 35]}
models: {edm: {}}
curves: {edm: {model: edm}}
sets: {}
"""
SHAPE = (40, 120)  # lines and columns of the terminal
RATE = r"\d+%\|.*\| *[\d.]+k?/{total} \[\d\d:\d\d<\d\d:\d\d, +[\d.]+k? ?image/s\]"


class Terminal:
    """A pseudo-terminal, and what was written to it."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", *SHAPE, 0, 0))
        self.written = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while part := os.read(self.master, 4096):
                self.written += part
        except OSError:  # the other end is closed
            return

    def text(self) -> str:
        """All that was written, once the other end is closed."""
        os.close(self.slave)
        self._reader.join(10)
        return self.written.decode()


def run(stage: Any, stream: TextIO) -> str:
    """Run a stage with this standard error; what it prints to standard output."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.setattr(sys, "stderr", stream)
        stage.main(Arguments("tiny", "edm"))
    return out.getvalue()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What training and sweeping write to a terminal; then they run again from nothing, with no terminal."""
    root, found = tmp_path_factory.mktemp("study"), {}
    (root / "params.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for stage in (stages.resolve, stages.prepare, stages.features, stages.reference, stages.autoencode):
            stage.main(Arguments("tiny", ""))
        for name, work in {"train": stages.train, "sweep": stages.sweep}.items():
            terminal = Terminal()
            with os.fdopen(os.dup(terminal.slave), "w") as stream:
                run(work, stream)
            found[name] = terminal.text()
            if name == "train":
                stages.grids.main(Arguments("tiny", ""))
        for file in (root / ".cache/cells").iterdir():
            file.unlink()
        silent = io.StringIO()
        found["last line"] = run(stages.sweep, silent)
        found["silent"] = silent.getvalue()
    return found


def states(text: str) -> list[str]:
    """What stood on a terminal's line, one after the other."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[\w", "", text))


def test_training_shows_images_per_second_and_the_time_left(shown: dict[str, str]) -> None:
    assert [s for s in states(shown["train"]) if re.fullmatch("train edm: +" + RATE.format(total="4.10k"), s.strip())]


def test_sweeping_shows_images_per_second_and_the_time_left(shown: dict[str, str]) -> None:
    assert [s for s in states(shown["sweep"]) if re.fullmatch("sweep edm: +" + RATE.format(total="240"), s.strip())]


def test_a_finished_cell_is_one_line_with_its_score(shown: dict[str, str]) -> None:
    line = r"edm, NFE (\d+), seeds (\d) and (\d): bias-corrected FD \(classifier\) -?\d[\d.e-]*"
    told = [found.groups() for state in states(shown["sweep"]) if (found := re.fullmatch(line, state.strip()))]
    assert sorted(told) == sorted((nfe, seed, seed) for nfe in ("3", "7", "35") for seed in "01")


def test_nothing_is_shown_where_there_is_no_terminal(shown: dict[str, str]) -> None:
    assert shown["silent"] == "" and re.fullmatch(r"edm: .* at 3, .* at 7, .* at 35\n", shown["last line"])


@pytest.mark.parametrize("terminal", [True, False])
def test_a_line_stands_above_the_bar(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    screen = Terminal()
    reading, writing = os.pipe()
    with os.fdopen(os.dup(screen.slave) if terminal else writing, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with bar("work", 4, "image") as progress:
            progress.update(2)
            tell(progress, "half of it")
            progress.refresh()
        monkeypatch.undo()
    if terminal:
        os.close(writing)
    written, piped = screen.text(), os.read(reading, 4096)
    os.close(reading)
    assert piped == b"" and ("half of it" in [s.strip() for s in states(written)]) == terminal
    assert bool(re.search(r"work: +50%.*2.00/4.00 .* ?image/s\]", written)) == terminal
