"""A scratch repository with a tiny study, in which DVC runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.imports import ROOT

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


class Workspace:
    """A repository with the tiny study."""

    def __init__(self, folder: Path) -> None:
        self.root, home = folder / "repository", folder / "home"
        for name in ("pipeline", "stages"):
            shutil.copytree(ROOT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("dvc.yaml", "requirements.txt", ".dvcignore"):
            shutil.copy(ROOT / name, self.root)
        (self.root / "stages/oracle.py").write_text(ORACLE)
        self.study = yaml.safe_load(TINY)
        own = {"HOME": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home, "MPLCONFIGDIR": home}
        dvc = {f"DVC_{name}": home / name for name in ("SITE_CACHE_DIR", "GLOBAL_CONFIG_DIR", "SYSTEM_CONFIG_DIR")}
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "GIT_", "PYTHON"))} | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            **{key: str(value) for key, value in (own | dvc).items()},
        }
        self.run("git", "init", "--quiet")
        self.dvc("init", "--quiet")
        self.dvc("config", "core.check_update", "false")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True)

    def dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "dvc", *arguments)

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
            str(f): f.read_bytes()
            for f in files
            if f.is_file() and f.parent.name != "timings" and f.name != ".gitignore"
        }

    def cells(self) -> set[Path]:
        return set((self.root / ".cache/cells").iterdir())
