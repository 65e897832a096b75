"""Devices: their choice, transfers that nothing waits for, compilation, and batches that fit into memory."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common import devices
from pipeline.common.devices import CPU, compiled_calls, default_device, fitting_batch, state_type, to_device
from pipeline.common.errors import StudyError, say_once
from pipeline.common.randomness import SampleNoise
from pipeline.common.threads import in_turns
from pipeline.diffusion.denoiser import Denoiser
from pipeline.diffusion.exact import Gaussian
from pipeline.sampling import cascade
from pipeline.sampling import loop as sampling
from pipeline.sampling.batches import generate, generate_share
from pipeline.sampling.counting import Counted
from pipeline.sampling.row import Sampler
from pipeline.sampling.solvers import SOLVERS
from pipeline.training import loop as training
from pipeline.training.batches import Examples
from pipeline.training.row import Model
from pipeline.training.run import Run
from pipeline.training.trained import Trained

META = torch.device("meta")  # has no values, so reading one, or mixing in a CPU tensor, fails
SHAPE = (1, 8, 8)
TINY = {"channels": 8, "multipliers": (1,), "batch": 8, "images": 64, "warmup_images": 16, "ema_halflife_images": 40}


@pytest.fixture(autouse=True)
def no_messages_yet() -> None:
    say_once.cache_clear()


def test_the_environment_variable_overrides_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for name in ("cpu", "mps"):
        monkeypatch.setenv("NFE_DEVICE", name)
        assert default_device().type == name


@pytest.mark.parametrize("name", ["mps", "cuda", "tpu"])
def test_a_missing_device_is_refused_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv("NFE_DEVICE", name)
    with pytest.raises(StudyError, match=f"^NFE_DEVICE={name}: no such device here; valid: cpu$"):
        default_device()


def test_each_process_gets_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NFE_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(devices, "_make_repeatable", lambda: None)
    found = []
    for rank in range(5):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        found.append(default_device().index)
    assert found == [0, 1, 2, 3, 0]


def without_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counted, "not_finite", lambda self, *others: None)  # at the end, once


FIXED = [name for name, solver in SOLVERS.items() if name != "rk45"]


@pytest.mark.parametrize("keys", [*({"solver": name} for name in FIXED), {"S_churn": 5}, {"schedule": "vp"}], ids=str)
def test_sampling_reads_no_value_and_mixes_no_devices(keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    without_looking(monkeypatch)
    own = Denoiser(Model(**TINY, labels="classes").spec(0.5, SHAPE, [5, 5])).eval().requires_grad_(False).run_on(META)
    labels, noise = torch.zeros(16, dtype=torch.int64), SampleNoise(0, range(16))
    found = sampling.sample(
        lambda z, sigma: own(z, sigma, labels),
        noise.randn(SHAPE).to(META),
        Sampler(**keys).as_started(5),
        5,
        noise.randn_like,
    )
    assert found.x0.device == META and found.nfe >= 5


ROWS: list[dict[str, Any]] = [
    {},
    {"labels": "classes", "augment": 0.2, "flip": 0.5, "micro_batch": 3, "ema_sigma_rels": (0.1,)},
    {"weighting": "uncertainty", "draws": "stratified"},
    {"parametrization": "flow", "noise": "flow_uniform"},
    {"parametrization": "iddpm", "noise": "iddpm_uniform"},
    {"network": "ddpmpp", "multipliers": (1, 1), "attention": (4,)},
    {"network": "dit", "multipliers": (1, 2, 4)},
]


@pytest.mark.parametrize("keys", ROWS, ids=str)
def test_training_reads_no_value_and_mixes_no_devices(keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(parameters: Any, rate: float) -> torch.optim.Adam:  # the fused one does not support this device
        return torch.optim.Adam(list(parameters), lr=rate, foreach=True)

    monkeypatch.setattr("pipeline.training.run.adam", plain)
    row = Model(**TINY | keys)
    run = Run(row.spec(0.5, SHAPE, [16, 16]), row, 0, META)
    labels = torch.arange(32) % 2 if row.labels == "classes" else None
    for _ in range(2):
        training.advance(run, Examples(torch.zeros(32, *SHAPE, dtype=torch.uint8, device=META), labels))
    assert run.step == 2


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_float32_state_gives_nearly_the_same_samples(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apple's GPUs have no float64."""
    assert state_type(torch.device("mps")) == torch.float32 and state_type(CPU) == torch.float64
    noise = SampleNoise(0, range(16)).randn(SHAPE)
    found = {}
    for kind in (torch.float64, torch.float32):
        monkeypatch.setattr(sampling, "state_type", lambda device, kind=kind: kind)
        own = SampleNoise(1, range(16))
        found[kind] = sampling.sample(
            Gaussian(0.0, 0.5), noise, Sampler(solver=solver).as_started(8), 8, own.randn_like
        ).x0
        assert found[kind].dtype == kind
    torch.testing.assert_close(found[torch.float32].double(), found[torch.float64], rtol=1e-3, atol=1e-3)


def test_calls_in_bfloat16_are_near_those_in_float32() -> None:
    torch.manual_seed(0)
    own = Denoiser(Model(**TINY).spec(0.5, SHAPE)).eval().requires_grad_(False)
    for parameter in own.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    z, sigma = torch.randn(16, *SHAPE, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    exact = own(z, sigma)
    near = own.run_on(CPU, "bfloat16")(z, sigma)
    assert near.dtype == torch.float64 and not near.equal(exact)
    torch.testing.assert_close(near, exact, rtol=0.1, atol=0.1)
    assert own.run_on(CPU)(z, sigma).equal(exact)


def test_compiled_calls_return_copies_and_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one, made = torch.zeros(2), []

    def overwritten(network: Callable[..., Tensor], **keys: object) -> Callable[..., Tensor]:
        made.append(keys)
        return lambda x: one.copy_(network(x))

    monkeypatch.setattr(torch, "compile", overwritten)
    call = compiled_calls(lambda x: 2 * x, CPU)
    first, second = call(torch.ones(2)), call(torch.zeros(2))
    assert first.tolist() == [2, 2] and second.tolist() == [0, 0]
    assert made == [{"dynamic": False, "mode": None}]


def test_calls_that_do_not_compile_run_uncompiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, **_: None)
    assert compiled_calls(lambda x: 2 * x, CPU)(torch.ones(1)).tolist() == [2]
    assert capsys.readouterr().err.startswith("compile: not possible here")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The memory counters of a GPU on which a sample takes 1,000 bytes."""
    memory = {"kept": 500, "peak": 0, "free": 10_000_000}
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: memory["kept"])
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: memory["kept"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: memory.update(peak=0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: memory["peak"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory["free"], 0))
    return memory


@pytest.mark.parametrize(("free", "expected"), [(10_000_000, 4096), (1_000_000, 512), (50_000, 16), (0, 16)])
def test_the_batch_fits_into_free_memory(free: int, expected: int, gpu: dict[str, int]) -> None:
    gpu["free"] = free

    def call(count: int) -> None:
        gpu["peak"] = gpu["kept"] + 1000 * count

    assert fitting_batch(call, torch.device("cuda")) == expected
    assert fitting_batch(call, CPU) == devices.CPU_BATCH


def short_of_memory(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make batches of more than `most` samples run out of memory."""
    real = cascade.sample

    def sample(denoiser: Any, noise: Tensor, *others: Any) -> sampling.Samples:
        if len(noise) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(denoiser, noise, *others)

    monkeypatch.setattr(cascade, "sample", sample)


def images(batch: int) -> Iterator[Tensor]:
    yield from (part for part, _ in generate(Gaussian(0.0, 0.5), SHAPE, Sampler(), 4, 0, 100, batch))


def test_out_of_memory_halves_the_batches_once_and_keeps_the_samples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = torch.cat(list(images(50)))
    short_of_memory(28, monkeypatch)
    parts = list(images(50))
    assert [len(part) for part in parts] == [25] * 4
    assert torch.cat(parts).equal(expected)
    assert capsys.readouterr().err.splitlines() == [
        "out of memory with 50 samples at a time: from here on with half as many"
    ]


def test_out_of_memory_at_half_a_batch_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(20, monkeypatch)
    with pytest.raises(StudyError, match="out of memory on cpu with 25 samples at a time; set batch: 12 in the curve"):
        list(images(50))


def test_a_process_with_a_share_of_the_batches_does_not_halve_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short_of_memory(28, monkeypatch)
    with pytest.raises(StudyError, match="out of memory on cpu with 50 samples at a time"):
        list(generate_share(Gaussian(0.0, 0.5), SHAPE, Sampler(), 4, 0, 100, 50, share=slice(1, None, 2)))


def test_a_tensor_is_made_contiguous_before_it_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    def pin_memory(self: Tensor) -> Tensor:  # like PyTorch's, which keeps the strides
        return torch.empty_strided(self.shape, self.stride(), dtype=self.dtype).copy_(self)

    def to(self: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
        return self

    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(Tensor, "to", to)
    for values in (torch.tensor(2.0).expand(4), torch.arange(6).reshape(2, 3).T):
        assert to_device(values, torch.device("cuda")).equal(values)


def test_a_run_out_of_memory_is_freed_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Run]] = []

    class Watched(Run):
        def __init__(self, *arguments: Any) -> None:
            assert not any(run() for run in alive)
            super().__init__(*arguments)
            alive.append(weakref.ref(self))

    monkeypatch.setattr(training, "Run", Watched)
    train_within(4, monkeypatch, 5)
    assert len(alive) == 2


def train_within(most: int, monkeypatch: pytest.MonkeyPatch, after: int = 0, **keys: Any) -> Trained:
    """Train a row; from step `after` on, more than `most` images at a time run out of memory."""
    real, calls = training.network_error, []

    def network_error(network: Any, terms: Any, x0: Tensor, *others: Any) -> Tensor:
        calls.append(len(x0))
        if len(x0) > most and len(calls) > after:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(network, terms, x0, *others)

    row = Model(**TINY | keys)
    with monkeypatch.context() as patched:
        patched.setattr(training, "network_error", network_error)
        data = torch.randint(0, 256, (30, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        [trained] = in_turns([training.train(row, row.spec(0.5, SHAPE), data, 0)])
    return trained


@pytest.mark.parametrize("after", [0, 5])
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_weights(
    after: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = train_within(8, monkeypatch, micro_batch=4)
    found = train_within(4, monkeypatch, after)
    for one, other in zip(expected.denoiser.parameters(), found.denoiser.parameters(), strict=True):
        assert one.equal(other)
    message = "out of memory with 8 images at a time: continuing from the last checkpoint with 4"
    assert capsys.readouterr().err.splitlines() == [message]


def test_out_of_memory_at_half_the_micro_batch_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        StudyError, match="seed 0: out of memory on cpu with 4 images at a time; set micro_batch: 2 in the model's row"
    ):
        train_within(3, monkeypatch)
