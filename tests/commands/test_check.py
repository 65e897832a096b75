"""The preview of a study: what it would run and cost, and every mistake that only the data or the place can tell."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from dvc.repo import Repo

import pipeline.commands.check as check
import pipeline.commands.cost as estimate
from pipeline.commands import cli
from pipeline.commands.check import preview
from pipeline.commands.cost import Estimate, Speed, Work, off_by
from pipeline.commands.stale import CHANGED, NEW, ROW
from pipeline.common.errors import StudyError
from pipeline.common.files import write_json
from pipeline.common.fingerprint import with_code
from pipeline.common.size import Size, size_of
from pipeline.diffusion.networks.registry import build, cost
from pipeline.params.places import check_place
from pipeline.params.resolve import resolve
from pipeline.params.study import read_study
from pipeline.sampling.fitting import most_calls
from pipeline.sampling.row import Sampler
from pipeline.training.bill import own_bill
from pipeline.training.row import Model
from tests.data.small import images
from tests.imports import ROOT
from tests.scripts import run_module

HERE = Speed(2, 2e-4, 2.5e-11, 8e-5, 6.5e-12, 640.0, 2.0)
TINY: dict[str, Any] = {
    "study": {"name": "tiny", "root": ".", "params": "params.yaml"},
    "data": {"source": "images"},
    "features": {"epochs": 1, "width": 16},
    "defaults": {
        "models": {"images": 512, "batch": 64, "train_seeds": [0], "channels": 8, "multipliers": [1]},
        "curves": {"samples": 40, "sample_seeds": [0, 1], "nfe": [4, 7]},
    },
    "models": {"edm": {}, "flow": {"parametrization": "flow", "noise": "flow_uniform"}},
    "curves": {"edm": {"model": "edm"}, "flow": {"model": "flow"}},
    "sets": {},
}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a tiny study with some sections replaced into an empty repository, as the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "speed", lambda start_seconds: HERE)
    Repo.init(no_scm=True).close()
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    images(tmp_path / "images")

    def write(**sections: Any) -> Path:
        (path := Path("params.yaml")).write_text(yaml.safe_dump(TINY | sections, sort_keys=False))
        return path

    return write


def error(path: Path) -> str:
    with pytest.raises(StudyError) as caught:
        preview(path, 2.0)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.dvc
def test_a_study_that_never_ran_is_new_throughout_and_its_calls_are_counted(repository: Callable[..., Path]) -> None:
    found = preview(repository(), 2.0)
    assert {reason and reason.how for reason in found.stages.values()} == {NEW}
    graph = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    kinds = {"train", "sweep", "measure", "resolve"}
    assert set(found.stages) == {*(graph.keys() - kinds), "train@edm", "train@flow", "sweep@edm", "sweep@flow"}
    assert found.work["train@edm"].evaluations == 512
    assert found.work["sweep@edm"].evaluations == 40 * 2 * (3 + 7)  # heun: 2 steps and 4
    assert all(work.seconds >= 0 and work.mib > HERE.idle_mib for work in found.work.values())
    text = "\n".join(found.lines())
    assert "'images': 90 images of 1 x 8 x 8, 2 classes" in text
    assert "train        2 of 2         1,024" in text and "new: edm, flow" in text
    assert found.warnings() == []


def finish(path: Path) -> None:
    """DVC commits made-up outputs as the results of a study."""
    found = preview(path, 2.0)
    for name, row in with_code(found.rows.files()).items():
        write_json(Path(f"build/tiny/rows/{name}.json"), row)
    of_models = {"grids": "{}.json", "spaces": "{}/space.json"}  # folders with a part for each model
    with Repo() as repo:
        for out in [out for stage in repo.index.stages for out in stage.outs]:
            path = Path(out.fs_path)
            part = of_models.get(path.name)
            for file in [path / part.format(name) for name in found.rows.models] if part else [path]:
                if not file.exists():
                    write_json(file, {})
        repo.commit(force=True)
    assert not preview(Path("params.yaml"), 2.0).running


@pytest.mark.dvc
def test_one_more_line_is_new_and_finished_stages_do_not_run(repository: Callable[..., Path]) -> None:
    finish(repository())
    models = TINY["models"] | {"snr": {"base": "edm", "weighting": "snr"}}
    curves = TINY["curves"] | {"snr": {"model": "snr"}, "edm": {"model": "edm", "rho": 3}}
    found = preview(repository(models=models, curves=curves), 2.0)
    for stage in ("train@snr", "sweep@snr"):
        assert (reason := found.stages[stage]) and reason.how == NEW
    assert (reason := found.stages["sweep@edm"]) and (reason.how, reason.what) == (CHANGED, ROW)
    assert {"losses", "grids", "agreement", "report"} <= set(found.running)
    finished = {"prepare", "features", "reference", "oracle", "train@edm", "train@flow", "sweep@flow"}
    assert not finished & set(found.running)


BAD: dict[str, tuple[dict[str, Any], str, str]] = {  # sections, the place, a part of what is said
    "patches": ({"models": {"edm": {"network": "dit", "patch": 3}}}, "models.edm.patch", "3 x 3 do not tile"),
    "levels": ({"models": {"edm": {"multipliers": [1] * 5}}}, "models.edm.multipliers", "use fewer levels"),
    "attention": (
        {"models": {"edm": {"network": "ddpmpp", "attention": [5]}}}, "models.edm.attention", "have 8"
    ),
    "batch": ({"models": {"edm": {"batch": 91}}}, "models.edm.batch", "the data set has 90 examples"),
    "limit": ({"data": {"source": "images", "limit": 63}}, "models.edm.batch", "the data set has 63 examples"),
    "labels": (
        {"data": {"source": "plain"}, "models": {"edm": {"labels": "classes"}}}, "models.edm.labels", "with classes"
    ),
    "equal": (
        {"models": {"edm": {}, "x": {"network": "dit", "patch": 8, "blocks": 20, "equal": "parameters"}}},
        "models.x.equal", "use more or fewer blocks",
    ),
    "no data": ({"data": {"source": "elsewhere"}}, "data.source", "is no folder"),
    "no data of a set": ({"sets": {"s": {"source": "elsewhere"}}}, "sets.s.source", "is no folder"),
    "a set of another size": ({"sets": {"s": {"source": "large"}}}, "sets.s.source", "images of 1 x 16 x 16"),
    "a small set": ({"sets": {"s": {"source": "few"}}}, "sets.s.source", "39 images, but each score takes 40"),
    "a budget of nothing": ({"curves": {"edm": {"model": "edm", "nfe": [0]}}}, "curves.edm.nfe.0", "greater than"),
    "a budget without a step": (
        {"curves": {"edm": {"model": "edm", "discretization": "explicit", "sigmas": [80, 5, 1], "nfe": [4]}}},
        "curves.edm", "nfe: 4 evaluations are too few; solver heun needs 5 for its 3 sigmas",
    ),
    "a name with a typo": ({"models": {"edm": {"noise": "lognormall"}}}, "models.edm.noise", "mean 'lognormal'?"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_one_line_that_names_the_row(repository: Callable[..., Path], case: str) -> None:
    sections, place, cause = BAD[case]
    images(Path("plain"), classes=())
    images(Path("large"), side=16, classes=())
    images(Path("few"), count=39, classes=())
    curves = {"edm": {"model": "edm"}}
    message = error(repository(**{"models": {"edm": {}}, "curves": curves} | sections))
    assert message.startswith(f"{place}:") and cause in message


@pytest.mark.dvc
def test_what_the_machine_lacks_is_a_warning_and_the_preview_goes_on(
    repository: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    presets = {"small": {}, "large": {"needs": {"gpu_gib": 20}}}
    large = preview(repository(presets=presets, preset="large"), 2.0)
    assert large.warnings()[0].startswith("needs.gpu_gib: preset large needs a GPU of 20 GiB, but ")
    small = preview(repository(presets=presets, preset="small"), 2.0)
    assert small.warnings() == large.warnings()[1:]
    assert list(small.lines()) == list(large.lines())


@pytest.mark.dvc
def test_weights_that_are_not_on_this_machine_are_a_warning(
    repository: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    warnings = preview(repository(features={"extractor": "inception"}), 2.0).warnings()
    assert warnings[0].startswith(f"features: Inception's weights are not at {tmp_path / 'hub'}")
    assert not (tmp_path / "hub").exists()


PLACES: dict[str, tuple[str, dict[str, str], str]] = {  # the study file, its section, the line
    "no graph": ("studies/x/params.yaml", {"name": "x"}, "studies/x/dvc.yaml: missing; copy the root's dvc.yaml"),
    "another root": ("studies/y/params.yaml", {"name": "y", "root": ".", "params": "studies/y/params.yaml"},
                     "study.root: '.' does not lead to the root of the "
                     "repository; write ../.."),
    "another file": ("studies/y/params.yaml", {"name": "y", "root": "../..", "params": "params.yaml"},
                     "study.params: 'params.yaml' is not this "
                     "file; write studies/y/params.yaml"),
    "another graph": ("studies/z/params.yaml", {"name": "z"}, "studies/z/dvc.yaml: not the root's dvc.yaml, which all "
                      "studies share; `make docs` copies it"),
    "a name twice": ("studies/y/params.yaml", {"name": "tiny", "root": "../..", "params": "studies/y/params.yaml"},
                     "study.name: params.yaml already has the name 'tiny'"),
}  # fmt: skip


@pytest.mark.parametrize("case", PLACES)
def test_a_copied_study_that_still_points_elsewhere_is_refused(repository: Callable[..., Path], case: str) -> None:
    file, section, line = PLACES[case]
    repository()
    for name in ("x", "y", "z"):
        Path(f"studies/{name}").mkdir(parents=True)
    Path("studies/y/dvc.yaml").write_text(Path("dvc.yaml").read_text())
    Path("studies/z/dvc.yaml").write_text("stages: {}")
    (path := Path(file)).write_text(yaml.safe_dump(TINY | {"study": section}))
    with pytest.raises(StudyError) as caught:
        check_place(path, read_study(path))
    assert str(caught.value).startswith(line)


def estimated(speed: Speed = HERE, about: dict[str, Any] | None = None, **sections: Any) -> Estimate:
    """The estimate of the tiny study with some sections replaced, on networks of one size."""
    (path := Path("params.yaml")).write_text(yaml.safe_dump(TINY | {"data": {"source": "digits"}} | sections))
    rows = resolve(read_study(path))
    size = Size(100_000, 50, 1_000_000, 50_000, 5_000)
    data = {"count": 1000, "channels": 1, "height": 8, "width": 8, "classes": ["a", "b"]}
    return Estimate(rows, about or data, dict.fromkeys(rows.models, size), speed)


def test_work_adds_up() -> None:
    one, two = Work(1, 2.0, 3.0, 4.0), Work(10, 20.0, 30.0, 3.0)
    assert one + two == Work(11, 22.0, 33.0, 4.0)
    assert one.repeated(4, workers=2) == Work(4, 8.0, 6.0, 4.0)


def test_estimates_depend_on_length_seeds_and_cores(repository: Callable[..., Path]) -> None:
    def model(**keys: Any) -> dict[str, Any]:
        return {"defaults": TINY["defaults"] | {"models": {"batch": 64, "train_seeds": [0], "images": 6400} | keys}}

    one = estimated(**model()).of("train@edm")
    assert one.seconds == pytest.approx(100 * (50 * 2e-4 + 64 * 1e6 * 2.5e-11))
    assert estimated(**model(images=12_800)).of("train@edm").seconds == pytest.approx(2 * one.seconds)
    two, four = (estimated(**model(train_seeds=[*range(n)])).of("train@edm") for n in (2, 4))
    assert two.seconds == pytest.approx(one.seconds) and four.seconds == pytest.approx(2 * one.seconds)
    assert two.evaluations == 2 * one.evaluations and two.mib > one.mib
    alone = replace(HERE, cores=1)
    assert estimated(alone, **model(train_seeds=[0, 1])).of("train@edm").seconds == pytest.approx(2 * one.seconds)


def test_more_budgets_guidance_and_grids_cost_more(repository: Callable[..., Path]) -> None:
    curves = {
        "edm": {"model": "edm"},
        "long": {"model": "edm", "nfe": [4, 7, 35]},
        "fitted": {"model": "edm", "discretization": "optimised"},
        "adaptive": {"model": "edm", "solver": "rk45", "nfe": [35, 63]},
    }
    found = estimated(curves=curves)
    assert found.of("sweep@long").evaluations == found.of("sweep@edm").evaluations + 80 * 35
    assert found.of("sweep@long").seconds > found.of("sweep@edm").seconds
    assert found.of("sweep@adaptive").evaluations == 80 * 63  # as many as its largest budget, one measurement
    assert found.of("grids").evaluations == 127 * 256
    for stage in ("prepare", "features", "reference", "losses", "propose", "oracle", "agreement", "report", "new"):
        assert found.of(stage).seconds > 0


def test_equal_fits_of_solvers_cost_once(repository: Callable[..., Path]) -> None:
    row = {"model": "edm", "solver": "fitted", "nfe": [4]}
    curves: dict[str, Any] = {"edm": {"model": "edm"}, "gs": row}
    one, calls = estimated(curves=curves).of("grids"), most_calls(Sampler(solver="fitted"), 4)
    assert one.evaluations == calls and one.seconds > 0
    curves |= {"seed": row | {"fitted_seed": 0}, "more": row | {"nfe": [4, 2]}, "six": row | {"fitted_nfe": 6}}
    found = estimated(curves=curves).of("grids")
    assert found.evaluations == calls + sum(most_calls(Sampler(solver="fitted"), steps) for steps in (2, 6))


def test_a_likelihood_costs_calls_both_ways_and_its_products(repository: Callable[..., Path]) -> None:
    """64 dimensions, one training: 9 levels cost 9 calls up and 9 back, and as many products as the trace takes."""
    asked = {"models": ["edm"], "nfe": [9], "images": 50, "bound_draws": 64}
    assert estimated().of("likelihood").seconds == 0
    exact = estimated(likelihood=asked).of("likelihood")
    assert exact.evaluations == 50 * 18 + 64
    estimate = estimated(likelihood=asked | {"trace": "hutchinson", "probes": 2}).of("likelihood")
    assert estimate.evaluations == exact.evaluations
    assert exact.flops - estimate.flops == pytest.approx(50 * 9 * (64 - 2) * 1e6)
    about = {"count": 1000, "channels": 1, "height": 8, "width": 8, "classes": ["a"], "heldout": 200}
    assert estimated(about=about, likelihood=asked).of("likelihood").evaluations == 2 * 50 * 18 + 64


GIVEN_ROWS: dict[str, Any] = {
    "measurements": {"half": {"operator": "mask", "share": 0.5, "std": 0.3}, "clipped": {"operator": "clip", "std": 1}},
    "posteriors": {
        "edm": {"model": "edm", "posterior": "dps", "nfe": [9, 27], "tune": {"zeta": [0.1, 1]}},
        "edm_ddnm": {"model": "edm", "posterior": "ddnm", "nfe": [9]},
        "exact_ddnm": {"posterior": "ddnm", "nfe": [9]},
    },
    "given": {"problems": 10, "draws": 5, "validation": 4, "validation_draws": 3, "candidates": 6, "sample_seeds": [0]},
}


def test_posterior_samplers_cost_their_budgets(repository: Callable[..., Path]) -> None:
    """One training; dps can use both measurements, ddnm the linear one. Calls of the exact denoiser take time alone."""
    assert estimated().of("tune").seconds == estimated().of("given").seconds == 0
    found = estimated(**GIVEN_ROWS)
    assert found.of("tune").evaluations == 6 * 4 * 3 * 2 * (9 + 27)
    assert found.of("given").evaluations == 10 * 5 * (2 * (9 + 27) + 9)
    about = {"count": 1000, "channels": 1, "height": 8, "width": 8, "classes": ["a"], "heldout": 200}
    assert estimated(about=about, **GIVEN_ROWS).of("given").evaluations == 2 * found.of("given").evaluations
    without = {**GIVEN_ROWS, "posteriors": {k: v for k, v in GIVEN_ROWS["posteriors"].items() if k != "exact_ddnm"}}
    assert estimated(**without).of("given").evaluations == found.of("given").evaluations
    assert estimated(**without).of("given").seconds < found.of("given").seconds


STUDENTS: dict[str, dict[str, Any]] = {
    "edm": {},
    "flow": {"parametrization": "flow", "noise": "flow_uniform"},
    "pd": {"base": "edm", "objective": "progressive", "first_steps": 2, "budget": "total", "images": 1024},
    "cd": {"base": "edm", "objective": "consistency_distillation", "budget": "total", "images": 1280},
    "ct": {"base": "edm", "objective": "consistency_training"},
    "averaged": {"base": "ct", "target_decay": 0.9},
    "long": {"images": 1280},
    "wide": {"base": "flow", "channels": 16, "pairs": "reflow", "reflow_pairs": 100},
}


def test_further_evaluations_and_copies_of_objectives_are_estimated(repository: Callable[..., Path]) -> None:
    """A step of the teacher or the target takes a call; the teacher and a target's average hold one copy each."""
    found = estimated(models=STUDENTS)
    work = {name: found.of(f"train@{name}") for name in STUDENTS}
    step, call = (64 * 1e6 * flop + 50 * tensor for flop, tensor in ((2.5e-11, 2e-4), (6.5e-12, 8e-5)))
    for name, steps, calls in (("edm", 8, 0), ("pd", 8, 2), ("cd", 12, 3), ("ct", 8, 1), ("averaged", 8, 1)):
        assert work[name].evaluations == steps * 64 * (1 + calls) == own_bill(found.study.models[name].row).evaluations
        assert work[name].seconds == pytest.approx(steps * (step + calls * call))
    copy = 100_000 * 4 / 2**20
    assert work["cd"].mib == pytest.approx(work["edm"].mib + copy)
    assert work["averaged"].mib == pytest.approx(work["ct"].mib + copy) == pytest.approx(work["edm"].mib + copy)


def test_pairs_cost_what_their_teachers_network_does(repository: Callable[..., Path]) -> None:
    found = estimated(models=STUDENTS)
    larger = replace(found, sizes={**found.sizes, "wide": Size(200_000, 50, 3_000_000, 50_000, 5_000)})
    work, other = found.of("train@wide"), larger.of("train@wide")
    assert work.evaluations == other.evaluations == 512 + 64 * 100
    assert other.seconds - work.seconds == pytest.approx(512 * 2_000_000 * 2.5e-11)  # of its own steps alone
    assert other.flops - work.flops == pytest.approx(3 * 512 * 2_000_000)


@pytest.mark.dvc
def test_the_bill_lists_students_their_bases_and_rows_as_long_in_total(repository: Callable[..., Path]) -> None:
    lines = [*preview(repository(models=STUDENTS), 2.0).lines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("training "))
    assert lines[start].split() == ["training", *2 * ["own", "teacher", "together"]]
    assert [line.split() for line in lines[start + 1 : start + 7]] == [
        ["edm", "512", "-", "512", "512", "-", "512"],
        ["flow", "512", "-", "512", "512", "-", "512"],
        ["pd", "512", "512", "1,024", "1,536", "512", "2,048"],
        ["cd", "768", "512", "1,280", "3,072", "512", "3,584"],
        ["long", "1,280", "-", "1,280", "1,280", "-", "1,280"],
        ["wide", "512", "512", "1,024", "6,912", "512", "7,424"],
    ]
    assert len({len(line) for line in lines[start : start + 7]}) == 1 and lines[start + 7].startswith("of one seed")
    assert not any(line.startswith("training ") for line in preview(repository(), 2.0).lines())


def test_an_enlarging_extractor_takes_longer_than_any_network_here(repository: Callable[..., Path]) -> None:
    plain = estimated().of("sweep@edm").seconds
    assert estimated(features={"extractor": "inception"}).of("sweep@edm").seconds > 10 * plain


def test_points_are_estimated_too(repository: Callable[..., Path]) -> None:
    points = {"data": {"source": "spiral"}, "features": {"extractor": "coordinates"}}
    points |= {"defaults": TINY["defaults"] | {"models": {"network": "mlp", "batch": 64}}}
    found = estimated(about={"count": 1000, "dimensions": 2, "classes": []}, **points)
    assert found.of("sweep@edm").seconds > 0 and found.of("reference").seconds > 1


def test_a_networks_size_is_its_cost_and_what_its_gradient_keeps() -> None:
    spec = Model(multipliers=(1, 2), dropout=0.1).spec(0.5, (1, 8, 8))
    found = size_of(lambda: build(spec), torch.zeros(1, 1, 8, 8), torch.zeros(1))
    assert (found.parameters, found.flops) == cost(spec)
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    network = build(spec).eval()
    sizes = []
    for count in (1, 2):
        kept = 0
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(torch.zeros(count, 1, 8, 8), torch.zeros(count))
        sizes.append(kept)
    assert found.saved == pytest.approx(sizes[1] - sizes[0], rel=0.1)


def test_a_speed_is_measured_once_for_a_machine_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = estimate.speed(2.0)
    assert found.cores >= 1 and found.start_seconds == 2.0 and found.idle_mib > 50
    assert 0 < found.call_flop < found.step_flop < 1e-8 and 0 < found.call_tensor < 1 and 0 < found.step_tensor < 1
    monkeypatch.setattr(estimate, "measure_speed", lambda start_seconds: pytest.fail("measured again"))
    assert estimate.speed(9.0) == found


def test_what_came_from_the_cache_tells_nothing_of_an_estimate() -> None:
    estimates = {"a": 10.0, "b": 10.0, "c": 10.0, "d": 10.0}
    assert off_by(estimates, {"a": 20.0, "b": 5.0, "c": 0.1}) == [0.5, 2.0]


COMMAND = """
import sys
from pipeline.commands.cli import main
code = main(["check"])
print(sorted({"torch._dynamo", "sklearn"} & set(sys.modules)))
sys.exit(code)
"""


@pytest.mark.dvc
def test_the_command_warns_previews_and_is_quick_the_second_time(repository: Callable[..., Path]) -> None:
    """What takes seconds to load is only loaded where a network's size or the machine's speed is not known yet."""
    repository(models=TINY["models"] | {"unused": {"snapshots": 4}})
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", COMMAND]
    before = {path for path in Path().rglob("*") if path.is_file()}
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: models.unused.snapshots: no curve uses them")
    lines = done.stdout.splitlines()
    assert lines[0] == "params.yaml: 3 models, 2 curves" and lines[-1] == "[]"
    assert any(line.startswith("together") for line in lines)
    written = {path for path in Path().rglob("*") if path.is_file()} - before
    assert written and all(path.parts[0] in (".cache", ".dvc") for path in written)


def test_a_mistake_ends_the_command_with_one_line(
    repository: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repository(models={"edm": {"multipliers": [1] * 5}, "flow": {}})
    monkeypatch.setattr(cli, "ProcessPoolExecutor", ThreadPoolExecutor)  # DVC is loaded already
    assert run_module("pipeline", "check") == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: models.edm.multipliers: ")
    assert len(printed.err.splitlines()) == 1


MIXED: dict[str, Any] = {
    "autoencoders": {"half": {"factor": 2, "batch": 64}},
    "models": {
        "edm": {},
        "latents": {"space": "half"},
        "small": {"resolution": 4},
        "last": {"upsampler": {"from": 4}},
    },
    "curves": {
        "edm": {"model": "edm", "method": "pixels"},
        "latents": {"model": "latents", "method": "latents"},
        "first": {"model": "small"},
        "cascade": {"model": "last", "after": "first", "nfe": [8, 14], "method": "cascade"},
        "quarter": {"base": "cascade", "model": "last", "share": 0.25, "method": "quarter"},
        "truncated": {"base": "cascade", "model": "last", "strength": 0.2, "truncated": True, "method": "truncated"},
        "strong": {"base": "cascade", "model": "last", "strength": 0.5},  # no method of the figure
    },
}
FLOPS = {"edm": 1000, "latents": 400, "small": 250, "last": 1200}  # of an evaluation
DECODING = 700


@pytest.fixture
def flops(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The FLOPs of rows by the kind of their data, in place of those of networks."""
    found = dict(FLOPS)

    def of(row: Model, about: dict[str, Any]) -> Size:
        kind = "latents" if row.space else "small" if row.resolution else "last" if row.upsampler else "edm"
        return Size(100_000, 50, found[kind], 50_000, 5_000)

    monkeypatch.setattr(check, "model_size", of)
    monkeypatch.setattr(check, "decoder_size_of", lambda *_: Size(10_000, 5, DECODING, 500, 50))
    return found


@pytest.mark.dvc
def test_flop_weighted_nfe_counts_all_stages_and_the_decoder(
    repository: Callable[..., Path], flops: dict[str, int]
) -> None:
    """Heun takes 2 N - 1 evaluations for N steps down to noise level 0, and 2 N to another level."""
    found = preview(repository(**MIXED), 2.0)
    assert found.weighted == {
        "edm": {4: 3.0, 7: 7.0},
        "latents": {4: pytest.approx((3 * 400 + 700) / 1000), 7: pytest.approx((7 * 400 + 700) / 1000)},
        "cascade": {8: pytest.approx(3 * (250 + 1200) / 1000), 14: pytest.approx(7 * (250 + 1200) / 1000)},
        # a quarter of 8 is 2; for 5 evaluations of 6, the stage before may take 1.67, for 9 of 10, 3
        "quarter": {8: pytest.approx((250 + 5 * 1200) / 1000), 14: pytest.approx((3 * 250 + 9 * 1200) / 1000)},
        "truncated": {8: pytest.approx((2 * 250 + 3 * 1200) / 1000), 14: pytest.approx((6 * 250 + 7 * 1200) / 1000)},
    }
    lines = [*found.lines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("FLOP-weighted NFE  "))
    assert [line.split(maxsplit=1) for line in lines[start + 1 : start + 7]] == [
        ["edm", "4: 3, 7: 7"],
        ["latents", "4: 1.9, 7: 3.5"],
        ["cascade", "8: 4.35, 14: 10.2"],
        ["quarter", "8: 6.25, 14: 11.6"],
        ["truncated", "8: 4.1, 14: 9.9"],
        [],
    ]
    flops["edm"] = 2000
    assert preview(Path("params.yaml"), 2.0).weighted["cascade"][8] == pytest.approx(4.35 / 2)


@pytest.mark.dvc
def test_another_autoencoder_trains_its_models_again_alone(
    repository: Callable[..., Path], flops: dict[str, int]
) -> None:
    finish(repository(**MIXED))
    found = preview(repository(**MIXED | {"autoencoders": {"half": {"factor": 2, "batch": 64, "width": 16}}}), 2.0)
    assert (reason := found.stages["autoencode"]) and (reason.how, reason.what) == (CHANGED, ROW)
    assert [stage for stage in found.running if stage.startswith(("train@", "sweep@"))] == [
        "train@latents",
        "sweep@latents",
    ]
    found = preview(repository(**MIXED | {"models": MIXED["models"] | {"new": {"resolution": 2}}}), 2.0)
    assert [stage for stage in found.running if stage.startswith(("train@", "sweep@"))] == ["train@new"]


@pytest.mark.dvc
def test_flop_weighted_nfe_is_left_out_if_all_networks_cost_the_same(
    repository: Callable[..., Path], flops: dict[str, int]
) -> None:
    flops.update(last=1000, small=1000)
    curves = {name: row for name, row in MIXED["curves"].items() if name != "latents"}
    found = preview(repository(**MIXED | {"curves": curves}), 2.0)
    assert found.weighted == {} and not any("FLOP-weighted" in line for line in found.lines())
    flops["last"] = 1020
    assert preview(Path("params.yaml"), 2.0).weighted["cascade"][8] == pytest.approx(3 + 3 * 1.02)


@pytest.mark.dvc
def test_flop_weighted_nfe_of_latents_alone_is_of_the_first_model(
    repository: Callable[..., Path], flops: dict[str, int]
) -> None:
    """As in the report. Its decoders still cost something."""
    sections = {"autoencoders": {"half": {"factor": 2, "batch": 64}}, "models": {"x": {"space": "half"}}}
    found = preview(repository(**sections, curves={"x": {"model": "x", "method": "x"}}), 2.0)
    assert found.weighted == {"x": {4: pytest.approx(3 + 700 / 400), 7: pytest.approx(7 + 700 / 400)}}
