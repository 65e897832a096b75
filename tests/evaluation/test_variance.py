"""Sampling with a learned variance from a model's folder: weights, guidance, batches, precision and cost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.diffusion.denoiser import Denoiser, new_denoiser, save_denoiser
from pipeline.diffusion.weights import main_file
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.loading import LoadedModel, load_model
from pipeline.sampling.batches import generate
from pipeline.training.row import Model

SHAPE, STEPS = (1, 4, 4), 5
ROW = Model(
    channels=8,
    multipliers=(1,),
    parametrization="ddpm",
    noise="ddpm_uniform",
    learned_variance="hybrid",
    labels="classes",
    ema_halflives_images=(1000,),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with weights that are not 0."""
    made, denoiser = tmp_path_factory.mktemp("model"), new_denoiser(ROW.spec(0.5, SHAPE, (3, 5)), 0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    save_denoiser(denoiser, main_file(made, 0))
    return made


def loaded(folder: Path, **keys: Any) -> tuple[LoadedModel, Curve]:
    row = {"model": "m", "solver": "ddpm", "discretization": "ddpm", "variance": "learned"} | keys
    curve = Curve(**row, samples=40, nfe=(99,))
    return load_model(curve, folder, 0), curve


def samples(folder: Path, batch: int = 16, **keys: Any) -> tuple[Tensor, set[int]]:
    model, curve = loaded(folder, **keys)
    parts = list(generate(model.denoiser, model.shape, curve, STEPS, 0, 40, batch))
    return torch.cat([part for part, _ in parts]), {nfe for _, nfe in parts}


@pytest.mark.parametrize("keys", [{}, {"labels": "none"}, {"guidance": 2.0}, {"guidance": 0.0}], ids=str)
def test_samples_do_not_depend_on_the_batch_and_a_step_costs_an_evaluation(folder: Path, keys: dict[str, Any]) -> None:
    found, nfe = samples(folder, **keys)
    assert nfe == {loaded(folder, **keys)[1].evaluations(STEPS)} == {STEPS * (2 if keys.get("guidance") == 2 else 1)}
    for batch in (7, 40):
        assert torch.equal(samples(folder, batch, **keys)[0], found)
    for variance in ("beta", "beta_tilde"):
        assert not torch.equal(samples(folder, **keys | {"variance": variance})[0], found)


def test_the_variance_is_asked_in_the_curves_precision(folder: Path) -> None:
    z, sigma = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0)).double(), torch.tensor(0.3).double()
    fine, coarse = (loaded(folder, precision=p)[0].network.with_variance(z, sigma) for p in ("float32", "bfloat16"))
    assert coarse.dtype == fine.dtype == torch.float64 and not torch.equal(coarse, fine)
    torch.testing.assert_close(coarse, fine, rtol=0.05, atol=0.05)


def test_a_model_that_learns_a_variance_denoises_as_any_other(folder: Path) -> None:
    model, _ = loaded(folder, variance="beta", labels="none")
    z, sigma = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0)).double(), torch.tensor(0.3).double()
    assert isinstance(model.denoiser, Denoiser)
    assert model.denoiser(z, sigma).shape == z.shape and model.fitting_batch() > 0
