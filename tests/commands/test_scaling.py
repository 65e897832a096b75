"""docs/devices.md: two working copies share rows as the page says; docs/slurm.sh launches every row once."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.commands.test_reproducing import Walk, ran
from tests.imports import ROOT

PAGE = (ROOT / "docs/devices.md").read_text()
BLOCKS = [
    (place, block.strip().splitlines())
    for place, block in re.findall(r"^```sh\n# (\w+) machine\n(.*?)^```$", PAGE, re.M | re.S)
]
STUDY = """
study: {name: digits, root: ., params: params.yaml}
data: {source: digits, limit: 300}
features: {epochs: 1, width: 16}
defaults:
  models: {images: 256, batch: 64, train_seeds: [0], channels: 8, blocks: 1, multipliers: [1]}
  curves: {samples: 40, sample_seeds: [0, 1], nfe: [7]}
models:
  edm: {}
  flow: {parametrization: flow, noise: flow_uniform}
curves:
  edm: {model: edm}
  rho_3: {model: edm, rho: 3}
sets: {}
"""
# What only looks at trained networks and measured curves is no matter here: its stages only write "{}".
QUICK = ("oracle", "losses", "propose", "agreement", "report")


class Machines:
    """Two working copies, a Git repository and a folder as the remote of both; what each command printed."""

    def __init__(self, folder: Path) -> None:
        first = Walk(folder / "first", STUDY, QUICK)
        origin, second = folder / "origin", folder / "second/repository"
        for command in (
            "dvc remote add --default storage ../../storage",
            "git add --all",
            "git commit --quiet --message study",
            f"git clone --quiet --bare . {origin}",
            f"git remote add origin {origin}",
            "git fetch --quiet",
            "git branch --quiet --set-upstream-to origin/$(git branch --show-current)",
            f"git clone --quiet {origin} {second}",
        ):
            first.type(command, first.root)
        shutil.copytree(first.root / ".venv", second / ".venv", symlinks=True)
        (second / ".venv/installed").touch()  # newer than the requirements
        self.folders = {"first": first.root, "second": second}
        self.printed: list[tuple[str, str, str]] = []
        for place, block in BLOCKS:
            for command in block:
                self.printed.append((place, command, first.type(command, self.folders[place])))

    def of(self, place: str, command: str) -> list[str]:
        return [printed for where, typed, printed in self.printed if (where, typed) == (place, command)]

    def trainings(self, place: str) -> int:
        """How many networks a machine has trained."""
        return len(list((self.folders[place] / ".cache/training").glob("*")))


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Machines:
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    return Machines(tmp_path_factory.mktemp("machines"))


def test_each_row_is_trained_on_one_machine_alone(machines: Machines) -> None:
    assert (machines.trainings("first"), machines.trainings("second")) == (1, 1)
    [trained] = machines.of("second", "dvc repro --single-item train@flow")
    assert ran(trained) == ["train@flow"]


def test_who_comes_second_runs_its_own_rows_again_and_what_is_left(machines: Machines) -> None:
    [printed] = machines.of("second", "make repro J=2")
    begun = set(re.findall(r"^\d+/\d+ (\S+) begins", printed, re.M))
    assert {"train@flow", "grids", "sweep@edm", "sweep@rho_3", "report"} <= set(begun)
    assert not {"resolve", "prepare", "features", "reference", "train@edm"} & begun


def test_in_the_end_both_have_everything_and_nothing_to_do(machines: Machines) -> None:
    assert ran(machines.of("first", "dvc repro")[0]) == ["resolve"]
    for pattern in ("dvc.lock", "build/digits/models/*/*", "build/digits/curves/*/*"):
        one, two = ({p.relative_to(r): p.read_bytes() for p in r.glob(pattern)} for r in machines.folders.values())
        assert one == two and len(one) >= 1, pattern
    assert machines.trainings("first") == 1


def test_the_page_has_a_block_for_each_step() -> None:
    assert [place for place, _ in BLOCKS] == ["first", "second", "first", "second", "first"]
    assert len(BLOCKS) == PAGE.count("```sh")


SRUN = """#!/bin/bash
echo srun "$@" >> log
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
NOTE = """#!/bin/bash
echo {name} "$@" >> log
{more}
"""
ROWS = "mkdir -p build/pets/rows/{models,curves}; touch build/pets/rows/{models/{edm,flow},curves/rho_3}.json"


class Cluster:
    """A repository with the study `pets` on a cluster whose programs note what they are given, one call a line."""

    def __init__(self, root: Path) -> None:
        self.root, self.programs = root, root / ".venv/bin"
        self.programs.mkdir(parents=True)
        (root / "studies/pets").mkdir(parents=True)
        (root / "studies/pets/dvc.yaml").touch()
        self.write("srun", SRUN)
        for name, more in {"python": "", "make": "", "scontrol": "", "torchrun": "", "dvc": ROWS}.items():
            self.write(name, NOTE.format(name=name, more=more))
        self.write("hostname", "#!/bin/sh\necho localhost\n")
        slurm = {"SLURM_JOB_ID": "70123", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4"}
        mine = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "PER_NODE"))}
        self.environment = mine | slurm | {"SLURM_CPUS_PER_TASK": "32"}

    def write(self, name: str, text: str) -> None:
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def begin(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(ROOT / "docs/slurm.sh"), *arguments],
            cwd=self.root, env=self.environment | environment, text=True, stderr=subprocess.PIPE,
        )  # fmt: skip

    def submit(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """The job's exit code and what it says on stderr."""
        with self.begin(*arguments, **environment) as job:
            _, said = job.communicate(timeout=300)
        return job.returncode, said

    @property
    def calls(self) -> list[str]:
        log = self.root / "log"
        return log.read_text().splitlines() if log.exists() else []

    def ran(self) -> list[str]:
        return [call for call in self.calls if not call.startswith("srun")]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_the_script_launches_every_row_on_all_nodes_and_the_rest_on_one(cluster: Cluster) -> None:
    assert cluster.submit("pets") == (0, "")
    launch = (
        "torchrun --nnodes=2 --nproc-per-node=gpu --rdzv-backend=c10d --rdzv-endpoint=localhost:20123 --rdzv-id=70123"
    )
    of_all, of_one = (
        f"srun --ntasks-per-node=1 --cpus-per-task=32 --kill-on-bad-exit=1 --nodes={n} --ntasks={n}" for n in (2, 1)
    )
    expected = {
        "dvc repro studies/pets/dvc.yaml:reference studies/pets/dvc.yaml:autoencode": of_one,
        f"{launch} -m stages.train --name pets --row edm": of_all,
        f"{launch} -m stages.train --name pets --row flow": of_all,
        "python -m stages.grids --name pets": of_one,
        f"{launch} -m stages.sweep --name pets --row rho_3": of_all,
        "make study NAME=pets J=4": of_one,
    }
    assert cluster.calls == [line for call, step in expected.items() for line in (f"{step} {call}", call)]


def test_a_step_that_fails_ends_the_job(cluster: Cluster) -> None:
    cluster.write("torchrun", NOTE.format(name="torchrun", more="exit 3"))
    assert cluster.submit("pets")[0] == 3
    assert cluster.ran()[-1].endswith("-m stages.train --name pets --row edm")
    cluster.write("torchrun", NOTE.format(name="torchrun", more=""))
    assert cluster.submit("pets")[0] == 0, "the same line again goes on"


def test_at_the_time_limit_the_job_is_queued_again(cluster: Cluster) -> None:
    cluster.write(
        "torchrun", NOTE.format(name="torchrun", more="for _ in {1..600}; do test -e end && exit; sleep 0.1; done")
    )
    deadline = time.monotonic() + 60
    with cluster.begin("pets") as job:
        try:
            while not any(call.startswith("torchrun") for call in cluster.calls):
                assert time.monotonic() < deadline and job.poll() is None
                time.sleep(0.05)
            job.send_signal(signal.SIGUSR1)
            while job.poll() is None:  # at once: the training that runs is SLURM's to end
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            (cluster.root / "end").touch()
    assert job.returncode != 0 and cluster.ran()[-1] == "scontrol requeue 70123"


@pytest.mark.parametrize("arguments", [(), ("nowhere",), ("../studies/pets",), ("$(touch pwned)",)])
def test_a_study_that_is_not_there_ends_the_job_with_one_line(cluster: Cluster, arguments: tuple[str, ...]) -> None:
    code, said = cluster.submit(*arguments)
    assert code == 1 and said.startswith("error: sbatch docs/slurm.sh NAME") and said.count("\n") == 1
    assert cluster.calls == [] and not (cluster.root / "pwned").exists()


RANK = """
import json, os, pathlib, sys
said = [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")], sys.argv[1:]
pathlib.Path(f"rank_{os.environ['RANK']}.json").write_text(json.dumps(said))
"""


@pytest.mark.torchrun
def test_torchrun_takes_the_script_s_options(cluster: Cluster) -> None:
    """PyTorch's own, on one node, with two processes."""
    with socket.socket() as free:  # a port that the number of the job leads to
        for port in range(20000, 30000):
            with suppress(OSError):
                free.bind(("localhost", port))
                break
    cluster.write("torchrun", f'#!/bin/sh\nexec "{sys.executable}" -m torch.distributed.run "$@"\n')
    (cluster.root / "stages").mkdir()
    for stage in ("train", "sweep"):
        (cluster.root / f"stages/{stage}.py").write_text(RANK)
    code, said = cluster.submit("pets", SLURM_JOB_NUM_NODES="1", SLURM_JOB_ID=str(port), PER_NODE="2")
    assert code == 0, said
    found = {path.name: json.loads(path.read_text()) for path in cluster.root.glob("rank_*")}
    options = ["--name", "pets", "--row", "rho_3"]
    assert found == {f"rank_{rank}.json": [[str(rank), "2", str(rank)], options] for rank in range(2)}
