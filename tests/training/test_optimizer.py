"""Learning rates in closed form, Adam, clipping, and fallbacks for features that a device lacks."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.common import devices
from pipeline.common.devices import CPU, autocast, compiled, default_device, to_device
from pipeline.common.errors import say_once
from pipeline.training.optimizer import DECAYS, adam, clip, learning_rate
from pipeline.training.row import Model


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    say_once.cache_clear()


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    row = Model(images=6400, batch=64, warmup_images=640, learning_rate=0.5)
    assert learning_rate(row, 0) == pytest.approx(0.5 / 10)
    assert learning_rate(row, 4) == pytest.approx(0.5 * 5 / 10 * (1 + math.cos(math.pi * 0.04)) / 2)
    assert learning_rate(row, 9) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.09)) / 2)
    assert learning_rate(row, 50) == pytest.approx(0.25)
    assert learning_rate(row, 100) == pytest.approx(0)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("inverse_sqrt", [1, 1, math.sqrt(0.5), math.sqrt(1 / 3)]),  # t / t_ref = 0, 1, 2, 3
        ("none", [1, 1, 1, 1]),
    ],
)
def test_every_decay_has_its_closed_form(decay: str, expected: list[float]) -> None:
    row = Model(
        images=6400, batch=64, warmup_images=1, learning_rate=0.5,
        learning_rate_decay=decay, learning_rate_reference_images=1600,
    )  # fmt: skip
    assert [learning_rate(row, step) / 0.5 for step in (0, 25, 50, 75)] == pytest.approx(expected)


@pytest.mark.parametrize("decay", DECAYS)
def test_no_decay_goes_up_again(decay: str) -> None:
    row = Model(images=6400, batch=64, warmup_images=640, learning_rate_decay=decay)
    rates = [learning_rate(row, step) for step in range(row.steps)]
    assert rates[:10] == sorted(rates[:10]) or decay == "linear"
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert all(0 < rate <= row.learning_rate for rate in rates)


def test_clipping_scales_the_gradient_as_one_vector_and_never_up() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    for norm, expected in ((2.5, 0.5), (10.0, 1.0)):
        for parameter, gradient in zip(parameters, ([3.0, 0.0], [4.0]), strict=True):
            parameter.grad = torch.tensor(gradient)
        clip(parameters, norm)
        found = torch.cat([p.grad for p in parameters if p.grad is not None])
        torch.testing.assert_close(found, torch.tensor([3.0, 0.0, 4.0]) * expected, rtol=1e-5, atol=0)


def test_adam_follows_its_recursion() -> None:
    """Kingma and Ba 2015, arXiv 1412.6980, algorithm 1."""
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64)
    parameter = nn.Parameter(weights.clone())
    optimizer = adam([parameter], 0.1)
    m, v = torch.zeros(2, 2, dtype=torch.float64)
    for t in range(1, 6):
        gradient = 2 * parameter.detach().clone()
        parameter.grad = gradient
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        weights = weights - 0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    torch.testing.assert_close(parameter.detach(), weights)


def test_without_a_fused_kernel_adam_is_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = torch.optim.Adam

    def unfused(parameters: Any, lr: float, fused: bool = False) -> torch.optim.Adam:
        if fused:
            raise RuntimeError("no such kernel")
        return real(parameters, lr=lr)

    monkeypatch.setattr(torch.optim, "Adam", unfused)
    for _ in range(2):
        assert adam([nn.Parameter(torch.zeros(1))], 0.3).param_groups[0]["lr"] == 0.3
    assert capsys.readouterr().err == "cpu has no fused Adam; using the plain one\n"


def test_bfloat16_applies_to_products_only() -> None:
    layer, x = nn.Linear(4, 4), torch.ones(2, 4)
    with autocast("float32", CPU):
        assert layer(x).dtype == torch.float32
    with autocast("bfloat16", CPU):
        assert layer(x).dtype == torch.bfloat16
    assert layer.weight.dtype == torch.float32


def test_a_gpu_without_bfloat16_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    for _ in range(2):
        with autocast("bfloat16", torch.device("cuda")):
            assert not torch.is_autocast_enabled("cuda")
    assert capsys.readouterr().err.count("\n") == 1


def double(x: Tensor) -> Tensor:
    return 2 * x


@pytest.mark.parametrize("where", ["compiler", "call"])
def test_a_network_that_does_not_compile_is_returned(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: object, **keys: object) -> Tensor:
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", fails if where == "compiler" else lambda network, **_: fails)
    for _ in range(2):
        assert compiled(double, lambda network: network(torch.ones(1))) is double
    assert capsys.readouterr().err == "compile: not possible here (no compiler); continuing without\n"


def test_a_network_that_compiles_is_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def faster(x: Tensor) -> Tensor:
        return x + x

    monkeypatch.setattr(torch, "compile", lambda network, **_: faster)
    assert compiled(double, lambda network: network(torch.ones(1))) is faster
    assert capsys.readouterr().err == ""


def test_the_default_device_is_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NFE_DEVICE", raising=False)
    monkeypatch.setattr(devices, "_make_repeatable", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert default_device().type == kind
    values = torch.arange(3)
    assert to_device(values, CPU) is values
