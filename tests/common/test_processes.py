"""Several processes of one job: their result is that of one process, and losing one costs one line and no work."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.common.processes import LOST
from pipeline.common.tensors import load_tensors, save_tensors
from pipeline.evaluation.fits import Fits, save_fits
from tests.imports import ROOT
from tests.preloaded import programs

pytestmark = pytest.mark.torchrun

STUDY = """
study: {name: tiny, root: ., params: params.yaml}
data: {source: digits, limit: 300}
features: {epochs: 1, width: 16}
defaults:
  models: {images: 640, batch: 16, train_seeds: [0], channels: 8, blocks: 1, multipliers: [1]}
  curves: {samples: 42, batch: 10, sample_seeds: [0, 1], nfe: [4]}
models:
  edm: {}
  hard: {dropout: 0.2, labels: classes, weighting: uncertainty, draws: adaptive, augment: 0.2, micro_batch: 3}
  matched: {parametrization: flow, noise: flow_uniform, pairs: optimal_transport, flip: 0.5, clip_norm: 1}
  odd: {batch: 15}
  wild: {learning_rate: 1.0e+12, train_seeds: [0, 1]}
curves:
  edm: {model: edm}
  churn: {model: edm, S_churn: 8}
  rk45: {model: edm, solver: rk45, nfe: [15]}
  guided: {model: hard, guidance: 2, nfe: [8]}
sets: {}
"""
ALONE = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
ENVIRONMENT = ALONE | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def launcher(processes: int) -> list[str]:
    """The arguments with which Python starts several processes of a module."""
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]


def stage(folder: Path, name: str, row: str = "", processes: int = 1) -> subprocess.CompletedProcess[str]:
    module = ["-m", f"stages.{name}", "--name", "tiny", "--row", row]
    command = [str(programs(0) / "python"), *(launcher(processes) if processes > 1 else []), *module]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


APART = """
import os, runpy, sys
_, module, *folders = sys.argv
os.chdir(folders[int(os.environ["RANK"])])
sys.argv = [module.rpartition(".")[2], "--name", "tiny", "--row", "edm"]  # a stage reads its name from argv
runpy.run_module(module, run_name="__main__")
"""


def stage_apart(name: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    """Run a stage for the row edm with one process in each folder."""
    (folders[0] / "apart.py").write_text(APART)
    apart = ["-m", "apart", f"stages.{name}", *map(str, folders)]
    command = [str(programs(0) / "python"), *launcher(len(folders)), *apart]
    return subprocess.run(command, cwd=folders[0], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def succeed(folder: Path, name: str, row: str = "", processes: int = 1) -> str:
    done = stage(folder, name, row, processes)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study, run up to its reference."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "params.yaml").write_text(STUDY)
    shutil.copy(ROOT / "dvc.yaml", folder)
    for name in ("resolve", "prepare", "features", "reference", "autoencode"):
        succeed(folder, name)
    write_no_grids(folder)
    return folder


def write_no_grids(folder: Path) -> None:
    (folder / "build/tiny/grids").mkdir()
    for model in ("edm", "hard"):
        save_fits(Fits(), folder / f"build/tiny/grids/{model}.json", {})


def copy(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with two models, trained by one process."""
    folder = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("trained") / "copy"))
    for row in ("edm", "hard"):
        succeed(folder, "train", row)
    return folder


@pytest.mark.parametrize("row", ["edm", "hard", "matched"])
def test_two_processes_train_the_same_weights_as_one(row: str, prepared: Path, tmp_path: Path) -> None:
    """Up to rounding, because the halves of a batch are summed in another order."""
    found = {}
    for processes in (1, 2):
        folder = Path(shutil.copytree(prepared, tmp_path / str(processes)))
        said = succeed(folder, "train", row, processes)
        assert said.count("parameters") == 1, "only one process prints"
        found[processes] = load_file(folder / f"build/tiny/models/{row}/seed_0.safetensors")
        assert len(list((folder / ".cache/training").glob("*.safetensors"))) == 1
    for name, one in found[1].items():
        torch.testing.assert_close(found[2][name], one, rtol=2e-3, atol=2e-4, msg=lambda text, name=name: name + text)


def test_a_training_that_diverges_fails_in_all_processes(prepared: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(prepared, tmp_path / "copy"))
    done = stage(folder, "train", "wild", 2)
    assert done.returncode == 0 and done.stdout.count("all trainings failed") == 1, done.stderr
    assert [f"failed: wild, seed {seed}: " in done.stderr for seed in (0, 1)] == [True, True]
    assert done.stderr.count("failed: wild") == 2, "only one process prints"
    files = sorted(path.name for path in (folder / "build/tiny/models/wild").iterdir())
    assert files == ["seed_0_failed.json", "seed_1_failed.json"]


@pytest.mark.parametrize("row", ["edm", "churn", "rk45", "guided"])
def test_two_processes_sample_and_measure_the_same_bytes_as_one(row: str, trained: Path, tmp_path: Path) -> None:
    files = {}
    for processes in (1, 2):
        folder = Path(shutil.copytree(trained, tmp_path / str(processes)))
        said = succeed(folder, "sweep", row, processes)
        assert said.count(f"{row}:") == 1
        out = folder / "build/tiny/curves" / row
        files[processes] = {path.name: path.read_bytes() for path in sorted(out.iterdir())}
        cells = sorted((folder / ".cache/cells").iterdir())
        files[processes] |= {path.name: path.read_bytes() for path in cells}
    assert len(files[1]) > 3
    assert files[1] == files[2]


def test_a_failure_in_one_process_fails_the_cell_in_all(trained: Path, tmp_path: Path) -> None:
    found = {}
    for processes in (1, 2):
        folder = Path(shutil.copytree(trained, tmp_path / str(processes)))
        file = folder / "build/tiny/models/edm/seed_0.safetensors"
        weights, spec = load_tensors(file, "spec")
        save_tensors(file, {name: torch.full_like(value, torch.nan) for name, value in weights.items()}, "spec", spec)
        succeed(folder, "sweep", "edm", processes)
        found[processes] = (folder / "build/tiny/curves/edm/results.json").read_text()
    assert found[1] == found[2] and "not finite" in found[1]


def test_one_process_finds_the_cells_of_several_in_the_cache(trained: Path, tmp_path: Path) -> None:
    folder = copy(trained, tmp_path)
    succeed(folder, "sweep", "edm", 2)
    kept = {path: path.stat().st_mtime_ns for path in (folder / ".cache/cells").iterdir()}
    shutil.rmtree(folder / "build/tiny/curves")
    succeed(folder, "sweep", "edm")
    assert {path: path.stat().st_mtime_ns for path in (folder / ".cache/cells").iterdir()} == kept


def test_a_cell_in_the_cache_of_one_process_only_is_computed_by_all(trained: Path, tmp_path: Path) -> None:
    first, second = (Path(shutil.copytree(trained, tmp_path / str(i))) for i in range(2))
    succeed(second, "sweep", "edm")
    [missing, *others] = sorted((second / ".cache/cells").iterdir())
    assert others
    (first / ".cache/cells").mkdir()
    shutil.copy(missing, first / ".cache/cells")
    missing.unlink()
    done = stage_apart("sweep", first, second)
    assert done.returncode == 0, done.stderr
    results = Path("build/tiny/curves/edm/results.json")
    assert (first / results).read_bytes() == (second / results).read_bytes()


def test_processes_with_different_checkpoints_end_with_one_line(prepared: Path, tmp_path: Path) -> None:
    first, second = (Path(shutil.copytree(prepared, tmp_path / str(i))) for i in range(2))
    succeed(second, "train", "edm")
    done = stage_apart("train", first, second)
    assert done.returncode != 0
    assert "not the same for all processes; they need one file system" in done.stderr


def test_a_batch_that_the_processes_cannot_share_is_refused_in_one_line(prepared: Path, tmp_path: Path) -> None:
    folder = copy(prepared, tmp_path)
    done = stage(folder, "train", "odd", 2)
    told = {line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error: ")}
    why = "batch: 2 processes cannot share 15 images equally; use as many processes as divide it"
    assert done.returncode != 0 and told - {LOST} == {why}  # LOST: the launcher stopped one before it checked
    assert not (folder / "build/tiny/models").exists()


def test_other_stages_refuse_several_processes(prepared: Path, tmp_path: Path) -> None:
    done = stage(copy(prepared, tmp_path), "reference", processes=2)
    assert done.returncode != 0
    assert "error: one process runs this stage; torchrun is for stages.train and stages.sweep" in done.stderr


def test_a_job_that_loses_a_process_ends_with_one_line_and_can_be_continued(prepared: Path, tmp_path: Path) -> None:
    folder = copy(prepared, tmp_path)
    whole = Path(shutil.copytree(prepared, tmp_path / "whole"))
    succeed(whole, "train", "edm", 2)
    command = [sys.executable, *launcher(2), "-m", "stages.train", "--name", "tiny", "--row", "edm"]
    job = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while not list((folder / ".cache/training").glob("*.safetensors")):
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.01)
    workers = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    said = job.communicate(timeout=120)[1]
    assert job.returncode != 0
    assert not (folder / "build/tiny/models").exists()
    told = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and "another process of this job has ended" in told[0] and "to continue" in told[0]
    succeed(folder, "train", "edm", 2)
    weights = "build/tiny/models/edm/seed_0.safetensors"
    assert (folder / weights).read_bytes() == (whole / weights).read_bytes()
