"""The device's benchmark: what it is compared with does the same work, and its networks are those of the study."""

import torch

from benchmarks import device
from pipeline.common.devices import CPU
from pipeline.diffusion.networks.registry import build
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
