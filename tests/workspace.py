"""A scratch repository with a tiny study, in which DVC runs."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tests.imports import ROOT
from tests.preloaded import programs

TINY = """
study: {name: tiny, root: ., params: params.yaml}
data: {source: digits, limit: 300}
features: {epochs: 1, width: 16}
defaults:
  models: {images: 512, batch: 64, train_seeds: [0], channels: 8, blocks: 1, multipliers: [1]}
  curves: {samples: 40, sample_seeds: [0, 1], nfe: [4]}
models:
  edm: {}
  flow: {parametrization: flow, noise: flow_uniform}
curves:
  edm: {model: edm}
  rho_3: {model: edm, rho: 3}
  flow: {model: flow}
sets: {}
"""


# Solvers on exact denoisers have tests of their own; in a workspace their stage takes a finished table.
ORACLE = f"""
import pathlib, re, sys
name = re.search(r"--name[= ](\\w+)", " ".join(sys.argv))
table = pathlib.Path("reports", name[1], "metrics/oracle/solvers.json")
table.parent.mkdir(parents=True, exist_ok=True)
table.write_text({(ROOT / "reports/digits/metrics/oracle/solvers.json").read_text()!r})
"""
# Figures have tests of their own, too.
DRAWING = """

def save(figure, path, drawn=None, photos=False):
    Image.new("RGB", (1, 1)).save(picture := io.BytesIO(), format="PNG")
    write_bytes(path, picture.getvalue())
    write_bytes(path.with_suffix(".svg"), b"<svg/>")
"""
QUICK = """
import os, pathlib, yaml
if __name__ == "__main__":
    stage = yaml.safe_load(pathlib.Path("dvc.yaml").read_text())["stages"][os.environ["DVC_STAGE"]]
    for out in stage["outs"]:
        path = pathlib.Path(next(iter(out)).replace("${study.name}", "NAME"))
        path = path if path.suffix else path / "file"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
"""


class Workspace:
    """A repository with a tiny study.

    quick: stages that only write "{}" to each of their outputs, where a test looks at what is before them.
    hash_seed: the order of Python's sets.
    """

    def __init__(self, folder: Path, study: str = TINY, quick: Iterable[str] = (), hash_seed: int = 0) -> None:
        self.root, home = folder / "repository", folder / "home"
        for name in ("pipeline", "stages"):
            shutil.copytree(ROOT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("dvc.yaml", "requirements.txt", ".dvcignore"):
            shutil.copy(ROOT / name, self.root)
        (self.root / "stages/oracle.py").write_text(ORACLE)
        with open(self.root / "pipeline/report/figures/drawing.py", "a") as file:
            file.write(DRAWING)
        self.study = yaml.safe_load(study)
        for stage in quick:
            script = self.root / f"stages/{stage}.py"
            imports = re.findall(r"^(?:from|import) .*\n", script.read_text(), re.M)  # its code stays what it was
            script.write_text("".join(imports) + QUICK.replace("NAME", self.study["study"]["name"]))
        own = {"HOME": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home, "MPLCONFIGDIR": home}
        dvc = {f"DVC_{name}": home / name for name in ("SITE_CACHE_DIR", "GLOBAL_CONFIG_DIR", "SYSTEM_CONFIG_DIR")}
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "GIT_", "PYTHON"))} | {
            "PATH": os.pathsep.join(map(str, (programs(hash_seed), Path(sys.executable).parent, os.environ["PATH"]))),
            "DVC_NO_ANALYTICS": "1",
            **{key: str(value) for key, value in (own | dvc).items()},
        }
        self.run("git", "init", "--quiet")
        self.dvc("init", "--quiet")
        self.dvc("config", "core.check_update", "false")
        (self.root / "params.yaml").write_text(study)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command; `python` is one that starts at once."""
        path = shutil.which(command[0], path=self.environment["PATH"]) or command[0]
        return subprocess.run([path, *command[1:]], cwd=self.root, env=self.environment, capture_output=True, text=True)

    def dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("python", "-m", "dvc", *arguments)

    def write_params(self, study: dict[str, Any]) -> None:
        (self.root / "params.yaml").write_text(yaml.safe_dump(study, sort_keys=False))

    def repro(self) -> set[str]:
        """Run the study; the names of the stages that ran, except `resolve`, which always runs."""
        self.write_params(self.study)
        done = self.dvc("repro")
        assert done.returncode == 0, done.stdout + done.stderr
        return set(re.findall(r"^Running stage '(.+)':$", done.stdout, re.M)) - {"resolve"}

    def refused(self, study: dict[str, Any], *arguments: str) -> str:
        """What DVC prints where it refuses to run a study."""
        self.write_params(study)
        done = self.dvc("repro", *arguments)
        assert done.returncode != 0
        return done.stdout + done.stderr

    def results(self) -> dict[str, bytes]:
        """Everything that the study made, without its timings, and without what DVC writes for Git."""
        files = [file for folder in ("build/tiny", "reports") for file in (self.root / folder).rglob("*")]
        return {
            str(f.relative_to(self.root)): f.read_bytes()
            for f in files
            if f.is_file() and f.parent.name != "timings" and f.name != ".gitignore"
        }

    def cells(self) -> set[Path]:
        return set((self.root / ".cache/cells").iterdir())
