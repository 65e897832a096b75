"""The network as a denoiser: its formula, dtypes and shapes, its file, and the U-Net's start and limits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.denoiser import Counted, Denoiser, load_denoiser, per_sample, save_denoiser
from pipeline.errors import StudyError
from pipeline.networks.unet import UNet
from pipeline.parametrization import PARAMETRIZATIONS

SPEC: dict[str, Any] = {
    "parametrization": "edm",
    "sigma_data": 0.6,
    "shape": [1, 8, 8],
    "channels": 16,
    "multipliers": [1, 2],
    "blocks": 1,
}

all_parametrizations = pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)


def denoiser_of(**changes: Any) -> Denoiser:
    """With random weights, the ones that start at 0 too."""
    denoiser = Denoiser(SPEC | changes)
    generator = torch.Generator().manual_seed(0)
    for parameter in denoiser.parameters():
        parameter.data.normal_(0, 0.05, generator=generator)
    return denoiser.eval().requires_grad_(False)


def images(count: int, shape: tuple[int, ...] = (1, 8, 8)) -> Tensor:
    return torch.randn(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@all_parametrizations
@pytest.mark.parametrize("count", [8, 5, 1])
def test_forward_is_its_formula(parametrization: str, count: int) -> None:
    """Sample by sample, also where the batch is as large as the image is wide."""
    denoiser = denoiser_of(parametrization=parametrization)
    z, sigma = images(count), torch.logspace(-1, 1, count).double()
    together, common = denoiser(z, sigma), denoiser(z, sigma[0])
    for i in range(count):
        for levels, actual in ((sigma[i], together), (sigma[0], common)):
            c_skip, c_out, c_in, c_noise = (float(c) for c in PARAMETRIZATIONS[parametrization](levels, 0.6))
            f = denoiser.network((c_in * z[i : i + 1]).float(), torch.tensor([c_noise]))
            torch.testing.assert_close(actual[i], c_skip * z[i] + c_out * f[0].double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma_dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype, sigma_dtype: torch.dtype) -> None:
    z = images(3).to(dtype)
    for sigma in (torch.tensor(0.5, dtype=sigma_dtype), torch.full((3,), 0.5, dtype=sigma_dtype)):
        denoised = denoiser_of()(z, sigma)
        assert denoised.dtype == dtype and denoised.shape == z.shape


def test_float64_keeps_the_digits_that_the_network_does_not_see() -> None:
    """A fresh network answers 0, so D is c_skip z to float64 rounding."""
    z, sigma = images(4), torch.tensor(0.5, dtype=torch.float64)
    torch.testing.assert_close(Denoiser(SPEC)(z, sigma), z * 0.6**2 / (0.5**2 + 0.6**2), rtol=1e-14, atol=0)


@all_parametrizations
def test_evaluation_warns_of_nothing(parametrization: str, recwarn: pytest.WarningsRecorder) -> None:
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        denoiser_of(parametrization=parametrization)(images(3), torch.tensor(0.5, dtype=torch.float64))
    finally:
        torch.set_warn_always(always)
    assert [str(warning.message) for warning in recwarn] == []


def test_per_sample_expands_over_the_batch_axis() -> None:
    like = torch.zeros(8, 1, 8, 8)
    assert per_sample(torch.arange(8).double(), like).shape == (8, 1, 1, 1)
    assert per_sample(torch.arange(8).double(), like).dtype == torch.float32


def test_counted_counts_and_changes_nothing() -> None:
    counted, z = Counted(lambda z, sigma: z / sigma), images(2)
    assert counted.nfe == 0 and counted.not_finite() is None
    assert torch.equal(counted(z, torch.tensor(2.0)), z / 2) and counted.nfe == 1
    counted(z, torch.tensor(0.5))
    assert counted.nfe == 2 and [float(sigma) for sigma in counted.sigmas] == [2.0, 0.5]
    assert counted.not_finite() is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("calls", [(0,), (2,), (1, 3)])
def test_counted_finds_the_first_answer_that_is_not_finite(value: float, calls: tuple[int, ...]) -> None:
    counted = Counted(lambda z, sigma: torch.where(torch.arange(z.numel()).reshape(z.shape) == 5, sigma, z))
    for i in range(4):
        counted(images(2), torch.tensor(value if i in calls else 1.0))
    assert counted.not_finite() == calls[0] and counted.nfe == 4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (16, 16), (8, 16)])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (2, 1, 1)])
def test_unet_starts_at_zero_and_then_uses_all_it_is_given(
    channels: int, size: tuple[int, int], multipliers: tuple[int, ...]
) -> None:
    x, c_noise = images(2, (channels, *size)).float(), torch.tensor([0.1, 0.7])
    network = UNet(channels, 8, multipliers, 1)
    assert torch.equal(network(x, c_noise), torch.zeros_like(x))
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    out = network(x, c_noise)
    assert out.shape == x.shape and not torch.equal(out, network(x, c_noise + 1))
    out.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize(("shape", "levels"), [([1, 8, 8], 5), ([1, 28, 28], 4), ([3, 8, 6], 3), ([1, 9, 8], 2)])
def test_levels_that_do_not_divide_the_size_are_refused(shape: list[int], levels: int) -> None:
    with pytest.raises(StudyError, match="use fewer levels") as caught:
        Denoiser(SPEC | {"shape": shape, "multipliers": levels * [1]})
    assert len(str(caught.value).splitlines()) == 1
    assert (
        Denoiser(SPEC | {"shape": shape, "multipliers": [1]})(images(1, tuple(shape)), torch.tensor(1.0))
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("changes", [{}, {"parametrization": "flow", "shape": [3, 8, 16], "multipliers": [1, 1, 2]}])
def test_save_and_load_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
    denoiser = denoiser_of(**changes)
    save_denoiser(denoiser, tmp_path / "a.safetensors")
    again = load_denoiser(tmp_path / "a.safetensors")
    assert again.spec == denoiser.spec and not again.training
    for name, value in denoiser.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    z, sigma = images(4, tuple(denoiser.shape)), torch.logspace(-1, 1, 4).double()
    assert torch.equal(again(z, sigma), denoiser(z, sigma))
    save_denoiser(again, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def other_tensors(path: Path) -> None:
    save_file({"x": torch.zeros(3)}, path, {"spec": json.dumps(SPEC)})


def other_shapes(path: Path) -> None:
    save_file(
        {k: v.contiguous() for k, v in denoiser_of().state_dict().items()},
        path,
        {"spec": json.dumps(SPEC | {"channels": 8})},
    )


def spec_of(value: Any) -> Callable[[Path], None]:
    return lambda path: save_file({"x": torch.zeros(3)}, path, {"spec": json.dumps(value)})


@pytest.mark.parametrize(
    ("harm", "cause"),
    [
        (Path.unlink, "missing"),
        (lambda path: path.write_bytes(b""), "not a model"),
        (lambda path: path.write_bytes(b"not a model at all, but long enough for a header"), "not a model"),
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "not a model"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "not a model"),
        (lambda path: save_file({"x": torch.zeros(3)}, path), "not a model"),
        (lambda path: save_file({"x": torch.zeros(3)}, path, {"spec": "{"}), "not a model"),
        (spec_of({}), "not a model"),
        (spec_of([]), "not a model"),
        (spec_of(SPEC | {"parametrization": "other"}), "not a model"),
        (spec_of(SPEC | {"shape": None}), "not a model"),
        (other_tensors, "not a model"),
        (other_shapes, "not a model"),
    ],
)
def test_files_that_are_no_models_are_refused_in_one_line(tmp_path: Path, harm: Callable, cause: str) -> None:
    path = tmp_path / "model.safetensors"
    save_denoiser(denoiser_of(), path)
    harm(path)
    with pytest.raises(StudyError) as caught:
        load_denoiser(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and cause in message
    assert len(message.splitlines()) == 1
