"""Exported samplers make the samples of their rows: with PyTorch alone, and as schedulers of diffusers."""

import ast
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from pipeline.commands.cli import main
from pipeline.commands.export import _fitted_to, runnable, source
from pipeline.commands.schedulers import CLOSE, candidate, samples_of, scheduler_config
from pipeline.common.errors import StudyError
from pipeline.common.files import Paths
from pipeline.diffusion.denoiser import load_denoiser
from pipeline.diffusion.exact import Gaussian, LabelledMixture
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.fits import Fits, save_fits
from pipeline.params.resolve import resolve
from pipeline.params.resolved import Resolved
from pipeline.params.study import parse_study
from pipeline.sampling.guidance import guided
from pipeline.sampling.linear import linear
from pipeline.sampling.loop import sample
from pipeline.sampling.row import Sampler
from pipeline.sampling.solvers import SOLVERS
from tests.evaluation.small import make
from tests.sampling.peers import F64, MIXTURE, NOISE, drawn

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers

FIXED = [name for name in SOLVERS if name != "rk45"]
ROWS: dict[str, dict[str, Any]] = {name: {"solver": name} for name in SOLVERS} | {
    "flow": {"schedule": "flow", "discretization": "flow"},
    "deis_vp": {"solver": "deis", "schedule": "vp"},
    "lms_2": {"solver": "lms", "order": 2, "schedule": "cosine"},
    "unipc_bh1": {"solver": "unipc", "order": 2, "variant": "bh1"},
    "churn": {"S_churn": 3, "S_noise": 1.1},
    "churn_window": {"solver": "euler", "S_churn": 3, "S_min": 0.1, "S_max": 10},
    "ddpm_beta": {"solver": "ddpm", "variance": "beta"},
    "ancestral": {"solver": "ddim", "eta": 0.7},
    "langevin": {"solver": "euler_maruyama", "corrector_steps": 2, "schedule": "vp"},
    "listed": {"solver": "dpmpp_3m", "discretization": "explicit", "sigmas": [60, 9, 2, 0.3], "nfe": [4]},
    "optimised": {"solver": "dpmpp_2m", "discretization": "optimised"},
    "guided": {"solver": "dpmpp_2m", "model": "classes", "guidance": 2, "nfe": [9, 14]},
    "clipped": {"threshold": "static"},
    "learned": {"solver": "ddpm", "variance": "learned", "model": "variance"},
    "window": {"model": "classes", "guidance": 2, "guidance_min": 0.5},
}
SECTIONS: dict[str, Any] = {
    "study": {"name": "t", "root": ".", "params": "params.yaml"},
    "defaults": {"curves": {"nfe": [9, 18]}, "models": {"train_seeds": [0, 1]}},
    "models": {
        "edm": {},
        "classes": {"labels": "classes", "label_dropout": 0.1},
        "variance": {"learned_variance": "hybrid", "parametrization": "ddpm", "noise": "ddpm_uniform"},
    },
    "curves": {name: {"model": "edm", **row} for name, row in ROWS.items()},
    "sets": {},
}
EXACT = [MIXTURE, Gaussian(0.2, 0.5)]


@pytest.fixture(scope="module")
def rows() -> Resolved:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.params.resolve._warnings", lambda *of, **more: ())
        return resolve(parse_study(json.dumps(SECTIONS), Path("params.yaml")))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the study file, entered."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.params.resolve._warnings", lambda *of, **more: ())
    (tmp_path / "params.yaml").write_text(json.dumps(SECTIONS))
    return tmp_path


def executed(text: str) -> Callable[..., Tensor]:
    """The function `sample` of an exported file, which may import PyTorch alone."""
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] == ["import torch"]
    namespace: dict[str, Any] = {}
    exec(text, namespace)
    found: Callable[..., Tensor] = namespace["sample"]
    return found


def exported(rows: Resolved, name: str, steps: int) -> Callable[..., Tensor]:
    return executed(source(rows, name, steps, linear(rows.curves[name].row, steps)))


def draws(curve: Sampler, steps: int) -> list[Callable[[Tensor], Tensor]]:
    """The last argument of an exported sampler that draws noise."""
    return [drawn()] if linear(curve, steps).stochastic else []


@pytest.mark.parametrize(
    "name",
    [name for name in ROWS if name not in ("rk45", "fitted", "optimised", "guided", "clipped", "learned", "window")],
)
def test_an_exported_sampler_makes_the_samples_of_its_row(rows: Resolved, name: str) -> None:
    curve = rows.curves[name].row
    for steps in curve.step_counts if curve.sigmas else (1, 2, 3, 5, 9):
        own = exported(rows, name, steps)
        for oracle in EXACT:
            expected = sample(oracle, NOISE, curve, steps, drawn()).x0
            found = own(oracle, NOISE, *draws(curve, steps))
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_every_solver_with_fixed_steps_is_exported() -> None:
    assert set(FIXED) <= set(ROWS) and set(FIXED) == {
        name for name in SOLVERS if not Sampler(solver=name, nfe=(18,)).build_solver().adaptive
    }


def test_an_exported_sampler_calls_the_denoiser_as_often_as_its_row(rows: Resolved) -> None:
    for name in ("heun", "rk4", "langevin", "unipc"):
        curve = rows.curves[name].row
        for steps in (1, 4, 7):
            assert linear(curve, steps).calls == curve.evaluations(steps)


def test_the_default_draws_are_those_of_sample(rows: Resolved) -> None:
    curve = rows.curves["ancestral"].row
    torch.manual_seed(1)
    expected = sample(MIXTURE, NOISE, curve, 4).x0
    torch.manual_seed(1)
    torch.testing.assert_close(exported(rows, "ancestral", 4)(MIXTURE, NOISE), expected, rtol=1e-9, atol=1e-9)


def test_a_guided_curve_needs_a_guided_denoiser(rows: Resolved) -> None:
    curve = rows.curves["guided"].row
    text = source(rows, "guided", 4, linear(curve, 4))
    assert "8 network evaluations" in text and "D_u + 2 (D - D_u)" in text
    oracle, labels = LabelledMixture(MIXTURE.means, MIXTURE.weights, MIXTURE.std), torch.tensor([0, 1, 2, 0, 1])
    denoiser = guided(curve.build_guidance(), oracle, labels)
    expected = sample(denoiser, NOISE, curve, 4).x0
    torch.testing.assert_close(executed(text)(denoiser, NOISE), expected, rtol=1e-9, atol=1e-9)


def test_a_grid_that_ends_above_zero_keeps_its_noise(rows: Resolved, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = lambda self, steps: torch.tensor([80.0, 5.0, 0.5, 0.1], dtype=F64)  # noqa: E731
    monkeypatch.setattr(Sampler, "grid", ends)
    for name in ("heun", "dpmpp_2m", "ddpm"):
        curve = rows.curves[name].row
        expected = sample(MIXTURE, NOISE, curve, 3, drawn()).x0
        found = exported(rows, name, 3)
        torch.testing.assert_close(found(MIXTURE, NOISE, *draws(curve, 3)), expected, rtol=1e-9, atol=1e-9)


def test_a_trained_network_on_a_grid_that_is_fitted_to_it(study: Path, rows: Resolved) -> None:
    trained = make(study)
    paths = Paths("t")
    first, second = trained.fits.grids
    changed = replace(first, grids=(*first.grids[:8], tuple(Sampler().grid(9)[:-1].tolist())))
    save_fits(Fits((changed, second)), paths.grids("edm"), {})
    denoiser = load_denoiser(trained.model / "seed_1.safetensors")
    noise = torch.randn(4, *denoiser.shape, generator=torch.Generator().manual_seed(0))
    curve = rows.curves["optimised"].row
    assert main(["export", "--curve=optimised", "--budget=9", "--seed=1", "--out=own/file.py"]) == 0
    text = Path("own/file.py").read_text()
    found = executed(text)(denoiser, noise)
    assert "fitted to the network of training seed 1." in " ".join(text.split())
    expected = sample(denoiser, noise, runnable("optimised", curve, paths, 9, 1), 9).x0
    assert float((found - expected).abs().max()) < 1e-6
    other = sample(denoiser, noise, runnable("optimised", curve, paths, 9, 0), 9).x0
    assert float((found - other).abs().max()) > 1e-4
    assert not Path("own/file_scheduler").exists()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "training seed 1."),
        ({"fitted_seed": 0, "fitted_model": "classes"}, "training seed 0 of the model classes."),
        ({"fitted_nfe": 18}, "training seed 1 for 18 steps, and interpolated."),
    ],
)
def test_the_file_names_the_network_that_its_numbers_are_fitted_to(keys: dict[str, Any], words: str) -> None:
    assert _fitted_to(Curve(model="edm", solver="fitted", **keys), 1, 9).endswith(f" to the network of {words}")


def test_a_curve_without_fitted_numbers_needs_no_training(study: Path) -> None:
    row = SECTIONS["curves"]["heun"] | {"train_seeds": [1]}
    (study / "params.yaml").write_text(json.dumps(SECTIONS | {"curves": {"heun": row}}))
    assert main(["export", "--curve=heun"]) == main(["export", "--curve=heun", "--seed=7"]) == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--curve=heum"], "--curve: no curve 'heum' in params.yaml; did you mean 'heun'? valid: "),
        (["--curve=heun", "--budget=10"], "--budget: heun has no budget 10; it has 9, 18"),
        (["--curve=optimised", "--seed=2"], "--seed: optimised has no training 2; it has 0, 1"),
        (["--curve=rk45"], "rk45: solver rk45: its steps depend on the answers; "),
        (["--curve=clipped"], "clipped: threshold static: clips the answers, "),
        (["--curve=learned"], "learned: variance learned: the noise depends on the answers; "),
        (["--curve=window"], "window: guidance_min, guidance_max: "),
        (["--curve=optimised"], "build/t/grids/edm.json: missing"),
        (["--curve=heun", "--out=."], "--out: . is a folder; "),
    ],
)
def test_a_curve_that_cannot_be_exported_is_one_line(
    study: Path, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *arguments]) == 1
    [printed] = capsys.readouterr().err.splitlines()
    assert printed.startswith(f"error: {line}")
    assert [path.name for path in study.iterdir()] == ["params.yaml"]


def test_the_command_writes_the_sampler_and_its_scheduler(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--curve=dpmpp_2m"]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    file = Path("build/t/exported/dpmpp_2m_18.py")
    assert first.startswith(f"{file}: 18 network evaluations, 18 steps")
    assert second.endswith("/scheduler_config.json: diffusers, 18 steps")
    assert third == "The state of EDMDPMSolverMultistepScheduler is z: give it EDM's network F."
    folder = file.with_name("dpmpp_2m_18_scheduler")
    scheduler = diffusers.EDMDPMSolverMultistepScheduler.from_pretrained(folder)
    assert scheduler.config.solver_order == 2 and scheduler.config.sigma_data == 0.5
    assert main(["export", "--curve=heun", "--budget=17"]) == 0  # what its budget of 18 really costs
    assert capsys.readouterr().out.splitlines()[1] == "diffusers: no scheduler makes these samples"


SCHEDULED: list[dict[str, Any]] = [
    {"solver": "euler"},
    {"solver": "ddim", "rho": 3},
    {"solver": "dpmpp_2m", "sigma_min": 0.01, "sigma_max": 50},
    {"solver": "dpmpp_2m", "schedule": "vp"},
    {"solver": "dpmpp_2m", "discretization": "exponential"},
    {"solver": "dpmpp_3m"},
    {"solver": "exp_adams", "order": 2},
    {"solver": "unipc"},
    {"solver": "unipc", "order": 2},
    {"solver": "ddim", "discretization": "ddpm", "spacing": "leading"},
]


@pytest.mark.parametrize("row", SCHEDULED, ids=str)
def test_schedulers_of_diffusers_make_the_same_samples(row: dict[str, Any]) -> None:
    sampler = Sampler(**row)
    for steps in (2, 5, 14):
        config = scheduler_config(sampler, steps, sigma_data=0.7)
        assert config is not None
        theirs = samples_of(config, MIXTURE, NOISE.float(), steps).double()
        assert float((theirs - sample(MIXTURE, NOISE.float(), sampler, steps).x0).abs().max()) < CLOSE


@pytest.mark.parametrize(
    "row",
    [
        {"solver": "euler", "schedule": "vp"},  # other steps
        {"solver": "unipc", "rho": 5.0},  # its grid has rho 7 alone
        {"solver": "unipc", "order": 2, "variant": "bh1"},  # not a number in the last step
        {"solver": "dpmpp_2m", "discretization": "vp"},
        {
            "solver": "ddim",
            "discretization": "ddpm",
        },  # with linspace, diffusers steps to other levels than it evaluates
        {"solver": "ddim", "eta": 0.5},
        {"solver": "heun"},
    ],
    ids=str,
)
def test_what_diffusers_lacks_has_no_scheduler(row: dict[str, Any]) -> None:
    assert scheduler_config(Sampler(**row), 5, 0.5) is None


def test_a_candidate_is_not_enough(rows: Resolved) -> None:
    assert candidate(Sampler(solver="unipc", rho=5), 5, 0.5)
    assert candidate(Sampler(solver="dpmpp_3m"), 15, 0.5) is None


def test_a_cascade_is_refused(rows: Resolved) -> None:
    curve: Curve = rows.curves["heun"].row.model_copy(update={"after": "low"})
    with pytest.raises(StudyError, match=r"heun: a cascade, .* export low, its first stage"):
        runnable("heun", curve, Paths("t"), 4, 0)
