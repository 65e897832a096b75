"""The benchmarks of the device and of latents: both compare like with like, on the networks of the studies."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import checks, device, gpu_check, latents
from pipeline.common.devices import CPU
from pipeline.diffusion.networks.registry import build
from pipeline.sampling.loop import Samples
from pipeline.training.row import Model

TINY = Model(channels=8, multipliers=(1,), batch=4, warmup_images=8)


def test_the_plain_sampling_loop_makes_the_same_samples() -> None:
    torch.manual_seed(0)
    loops = device.sampling_loops(TINY, CPU)
    ours, plain = loops["ours"](), loops["plain"]()
    torch.testing.assert_close(ours.x0, plain, rtol=1e-4, atol=1e-4)  # type: ignore[attr-defined]
    assert ours.nfe == 2 * device.STEPS - 1  # type: ignore[attr-defined]


def test_both_training_loops_take_more_steps_than_the_row_has() -> None:
    row = TINY.model_copy(update={"images": 2 * TINY.batch})
    for loop in device.training_loops(row, CPU).values():
        for _ in range(row.steps + 1):
            loop()


def test_times_are_medians_of_turns_and_rates_are_positive() -> None:
    calls: list[str] = []
    found = device.seconds_of({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, CPU, 0)
    assert calls.count("a") == calls.count("b") == 5 and min(found.values()) > 0
    assert calls[:4] == ["a", "b", "b", "a"]


def test_its_networks_are_those_of_the_study() -> None:
    specs = {preset: device.row_of(preset).spec(0.5, device.SHAPE) for preset in ("short", "paper")}
    with torch.device("meta"):
        networks = {preset: build(spec) for preset, spec in specs.items()}
    sizes = {preset: sum(p.numel() for p in network.parameters()) for preset, network in networks.items()}
    assert 9e6 < sizes["short"] < 11e6 and 55e6 < sizes["paper"] < 56.5e6


@pytest.mark.parametrize("name", [name for name in checks.CHECKS if not name.startswith("bfloat16")])
def test_a_check_passes_on_the_cpu(name: str) -> None:
    assert checks.CHECKS[name](CPU)


@contextmanager
def waiting(_: torch.device) -> Iterator[list[str]]:
    yield ["loop.py:1"] * 3


BROKEN: dict[str, tuple[str, Any]] = {  # a check, and what is replaced in it so that it must fail
    "solvers, schedules and grids agree with the CPU": ("solved", lambda *_: Samples(torch.rand(2), 1)),
    "metrics agree with the CPU": ("frechet_distance", lambda *_: float(torch.rand(1))),
    "nothing waits for the GPU": ("waits_counted", waiting),
    "equal bytes of two runs": ("state", lambda run: {"losses": torch.rand(2)}),
    "out of memory": ("generate", lambda *_: iter([(torch.rand(2), 1)])),
    "resume": ("load_checkpoint", lambda *_: None),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_check_can_fail(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(checks, *BROKEN[name])
    with pytest.raises(checks.Failed):
        checks.CHECKS[name](CPU)


def test_gpu_check_writes_numbers_and_a_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its checks and its study are replaced by short ones: those above are checked by themselves."""

    def fail(device: torch.device) -> str:
        raise checks.Failed("a | b")

    monkeypatch.setattr(gpu_check, "CHECKS", {"one": lambda device: "fine", "two": fail, "three": lambda device: 1 / 0})
    monkeypatch.setattr(gpu_check, "STAGES", ("resolve", "train@edm"))
    monkeypatch.setattr(gpu_check, "row_of", lambda preset: TINY)
    monkeypatch.setattr(gpu_check, "distance_seconds", lambda device, budget: 0.25)
    assert gpu_check.main(["--batches", "4", "--seconds", "0", "--folder", str(tmp_path)]) == 1
    found, page = json.loads((tmp_path / "cpu.json").read_text()), (tmp_path / "cpu.md").read_text()
    assert [each["result"] for each in found["checks"]] == ["passed", "failed", "failed"]
    assert [each["result"] for each in found["study"]] == ["passed", "failed"]  # no data are prepared
    assert "data/summary.json: missing" in found["study"][1]["detail"]
    assert found["rehearsal"] and "A rehearsal on a CPU" in page and r"a \| b" in page
    assert [row["what"] for row in found["rates"]] == ["training", "sampling"]
    assert min(row["ratio"] for row in [*found["rates"], *found["noise"]]) > 0
    assert all(f"| {name} |" in page for name in ("one", "two", "three", "resolve", "smoke"))


def test_candidates_alternate_and_the_first_round_is_not_timed() -> None:
    calls: list[str] = []
    found = latents.least({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert "".join(calls) == "ababab" and found.keys() == {"a", "b"} and min(found.values()) >= 0


def test_latents_are_compared_with_pixels_at_their_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"channels": 8, "multipliers": (1,), "batch": 4}
    networks = {name: (tiny | keys, shape) for name, (keys, shape) in latents.NETWORKS.items() if "32" not in name}
    monkeypatch.setattr(latents, "NETWORKS", networks)
    monkeypatch.setattr(latents, "IMAGES", 8)
    found = latents.training(1)
    assert found["pixels"][1:] == (1, 1, 1)
    assert found["latents"].flops == pytest.approx(1 / 4, rel=0.2)  # a quarter of the places
    assert found["upsampler"].flops > 1 and min(min(row) for row in found.values()) > 0


@pytest.mark.parametrize("name", latents.AUTOENCODERS)
def test_latents_are_sampled_decoded_and_encoded(name: str) -> None:
    assert min(latents.coding(name, rounds=1, steps=1, count=16)) > 0
