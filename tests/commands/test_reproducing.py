"""Each command of docs/reproducing.md is run as it stands there, in order, in a tiny study with a remote."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from tests.commands.test_makefile import OF_MAKE
from tests.imports import ROOT
from tests.workspace import Workspace

PAGE = (ROOT / "docs/reproducing.md").read_text()
BLOCKS = [block.strip().splitlines() for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.M | re.S)]
STUDY = """
study: {name: digits, root: ., params: params.yaml}  # a comment
data: {source: digits, limit: 300}
features: {epochs: 1, width: 16}
defaults:
  models: {images: 256, batch: 64, train_seeds: [0], channels: 8, blocks: 1, multipliers: [1]}
  curves: {samples: 40, sample_seeds: [0, 1], nfe: [7]}
models:
  edm: {}
curves:
  edm: {model: edm, method: EDM}
  rho_3: {model: edm, rho: 3}
sets: {}
"""
OTHERS = ("points", "cifar10", "template")  # other studies: one with results, two that were never run
ONLY_RESOLVE = ["resolve:", "always", "changed"]  # what `dvc status` prints of a study that is up to date
QUEUED_SECONDS = 1200  # of a busy machine
SECONDS = 1200


class Walk(Workspace):
    """The tiny study, and what each command printed."""

    def __init__(self, folder: Path, study: str = STUDY, quick: Iterable[str] = ()) -> None:
        super().__init__(folder, study, quick)
        self.printed: dict[str, str] = {}
        for name in ("Makefile", ".gitignore", "requirements.txt", "requirements-uv.txt"):
            shutil.copy(ROOT / name, self.root)
        shutil.copytree(ROOT / ".dvc/plots", self.root / ".dvc/plots", dirs_exist_ok=True)
        for name in OTHERS:  # of which DVC reads the graphs and the committed results
            for folder in (f"studies/{name}", f"reports/{name}"):
                if (ROOT / folder).exists():
                    shutil.copytree(ROOT / folder, self.root / folder)
        programs = self.root / ".venv/bin"
        programs.mkdir(parents=True)
        for entry in Path(sys.prefix, "bin").iterdir():
            (programs / entry.name).symlink_to(shutil.which(entry.name, path=self.environment["PATH"]) or entry)
        (self.root / ".venv/installed").touch()
        self.environment |= {
            f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        self.environment["COLUMNS"] = "200"
        for name in OF_MAKE:
            self.environment.pop(name, None)
        self.type("git add --all", self.root)
        self.type("git commit --quiet --message study", self.root)

    def type(self, command: str, folder: Path) -> str:
        """Run a line of shell; what it printed, on both streams. A workers' process must not hold the pipe."""
        log = self.root.parent / "log"
        with open(log, "w") as output:
            arguments = ["sh", "-c", command]
            code = subprocess.run(
                arguments, cwd=folder, env=self.environment, stdout=output, stderr=output, timeout=SECONDS
            ).returncode
        assert code == 0, f"{command}\n{log.read_text()}"
        return log.read_text()

    def before(self, command: str) -> None:
        """What the page asks to do by hand, or to wait for, before a command."""
        if command == "make prune DRY=1":
            study = yaml.safe_load((self.root / "params.yaml").read_text())
            del study["curves"]["rho_3"]
            self.write_params(study)
        if command == "make accept":  # a refactoring: another name for a variable
            file = self.root / "stages/agreement.py"
            file.write_text(file.read_text().replace("worst", "largest"))
        if command == "dvc queue logs rho_4":
            deadline = time.monotonic() + QUEUED_SECONDS
            while re.search("Queued|Running", status := self.type("dvc queue status", self.root)):
                assert time.monotonic() < deadline, status
                time.sleep(5)
            assert status.count("Success") == 2, status

    def walk(self) -> None:
        """The whole page. A block begins in the root, and may leave it by cd."""
        for block in BLOCKS:
            folder = self.root
            for command in block:
                self.before(command)
                if command.startswith("cd "):
                    folder = folder / command.removeprefix("cd ")
                else:
                    self.printed[f"{folder.resolve().name}: {command}"] = self.type(command, folder)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    walk = Walk(tmp_path_factory.mktemp("walk"))
    walk.walk()
    return walk


def of(walked: Walk, command: str, folder: str = "repository") -> str:
    return walked.printed[f"{folder}: {command}"]


def ran(printed: str) -> list[str]:
    """The stages that DVC ran."""
    return re.findall(r"Running stage '(.+)'", printed)


def test_the_page_has_the_commands() -> None:
    commands = [command for block in BLOCKS for command in block]
    said = ("make repro J=2", "dvc queue start", "dvc repro --pull --allow-missing", "make prune", "dvc gc", "dvc push")
    said += ("make accept",)
    assert all(any(command.startswith(each) for command in commands) for each in said)
    assert len(commands) == len({*commands}) + 2, "dvc status and dvc checkout stand twice, everything else once"


def test_a_second_run_has_nothing_to_do(walked: Walk) -> None:
    begun = re.findall(r"^\d+/\d+ (\S+) begins \(.*\)$", of(walked, "make repro J=2"), re.M)
    assert {"train@edm", "sweep@edm", "sweep@rho_3", "report"} <= set(begun)
    assert of(walked, "dvc status dvc.yaml").split() == ONLY_RESOLVE
    again = of(walked, "make repro")
    assert not re.search(r" begins |Running stage '(?!resolve')", again) and "params.yaml is up to date" in again


def test_metrics_are_few_and_differences_are_named(walked: Walk) -> None:
    header = of(walked, "dvc metrics show reports/digits/summary.json").splitlines()[0].split()
    assert "methods.edm" in header and "best.score" in header and len(header) < 12
    assert "methods.edm" in of(walked, "dvc metrics diff")
    changed = [line.split()[1] for line in of(walked, "dvc params diff").splitlines()[1:]]
    assert changed == ["curves.edm.rho"]
    shown = of(walked, 'dvc exp show --only-changed --drop "build/.*|.*yaml"')
    assert "rho_5" in shown and "curves.edm.rho" in shown and "build/" not in shown
    assert "methods.edm" in of(walked, "dvc metrics diff HEAD rho_4")


def test_plots_compare_the_revisions(walked: Walk) -> None:
    page = (walked.root / "dvc_plots/index.html").read_text()
    specifications = [json.loads(found) for found in re.findall(r"var spec = (\{.*\});?$", page, re.M)]
    own = [each for each in specifications if "digits: " in str(each.get("title"))]
    assert len(own) == 2
    for specification in own:
        assert {row["rev"] for row in specification["data"]["values"]} == {"HEAD", "workspace"}


def test_a_clean_clone_runs_nothing(walked: Walk) -> None:
    assert ran(of(walked, "dvc repro --pull --allow-missing", "clone")) == ["resolve"]
    assert of(walked, "dvc status dvc.yaml", "clone").split() == ONLY_RESOLVE
    weights = "build/digits/models/edm/seed_0.safetensors"
    assert (walked.root / weights).read_bytes() == (walked.root.parent / "clone" / weights).read_bytes()


def test_a_deleted_row_leaves_nothing(walked: Walk) -> None:
    would = of(walked, "make prune DRY=1")
    assert "would delete build/digits/curves/rho_3" in would and "would delete sweep@rho_3 in dvc.lock" in would
    assert of(walked, "make prune") == would.replace("would delete", "deleted")
    assert not [path for path in walked.root.glob("*/digits/**/*rho_3*") if path.is_file()]
    assert "rho_3" not in (walked.root / "dvc.lock").read_text()
    assert "sweep@edm" not in ran(of(walked, "dvc repro"))


def test_a_refactoring_is_accepted(walked: Walk) -> None:
    said = of(walked, "make accept")
    assert "1 of " in said and "every byte agrees" in said, said
    assert json.loads((walked.root / "reports/digits/accepted.json").read_text())["whole"] == ["agreement"]
