"""One command for a GPU: what must hold there, how fast it is, and a tiny study from end to end.

python -m benchmarks.gpu_check [--presets short paper] [--batches 256 1024] [--seconds 4] [--folder reports/devices].
It writes DEVICE.json and DEVICE.md into the folder, and exits with 1 if a check failed. Without a GPU it rehearses on
the CPU, with the preset `smoke` and small batches, into build/devices/. It needs neither DVC nor a download.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.checks import CHECKS, Failed
from benchmarks.device import DIMENSIONS, STUDY, distance_seconds, matrix_rate, noise_cost, rates, row_of
from pipeline.common.devices import default_device
from pipeline.common.environment import settle
from pipeline.common.files import write_json, write_text
from pipeline.common.fingerprint import ROOT
from pipeline.common.machine import machine
from pipeline.params.study import parse_study

TINY = {
    "study": {"name": "tiny"},
    "data": {"source": "digits", "limit": 300},
    "features": {"epochs": 1, "width": 16},
    "defaults": {
        "models": {"images": 2560, "batch": 64, "train_seeds": [0, 1], "channels": 8, "blocks": 1, "multipliers": [1]},
        "curves": {"samples": 64, "sample_seeds": [0, 1], "nfe": [7]},
    },
    "models": {"edm": {}, "flow": {"parametrization": "flow", "noise": "flow_uniform"}},
    "curves": {
        "edm": {"model": "edm", "method": "EDM"},
        "churn": {"model": "edm", "S_churn": 5},
        "flow": {"model": "flow", "solver": "euler", "schedule": "flow", "discretization": "flow"},
    },
    "sets": {},
}
STAGES = (  # of the tiny study, in the order of dvc.yaml, with their rows
    *("resolve", "prepare", "features", "reference", "train@edm", "train@flow", "grids"),
    *("sweep@edm", "sweep@churn", "sweep@flow", "losses", "propose", "oracle", "agreement", "report"),
)


def checked(device: torch.device) -> list[dict[str, Any]]:
    """Each check with its result, what it found, and its seconds."""
    found = []
    for name, check in CHECKS.items():
        start = time.perf_counter()
        try:
            result, detail = "passed", check(device)
        except Failed as failure:
            result, detail = "failed", str(failure)
        except Exception as error:  # a check that cannot end has failed, and the others go on
            result, detail = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        found.append({"check": name, "result": result, "detail": detail, "seconds": time.perf_counter() - start})
        print(f"{result}: {name} ({detail})", flush=True)
    return found


def tiny_study() -> list[dict[str, Any]]:
    """The stages of a tiny study, one after the other, each in a process of its own: result, last line, seconds."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="nfe-bench-") as folder:
        (Path(folder) / "params.yaml").write_text(yaml.safe_dump(TINY, sort_keys=False), encoding="utf-8")
        (Path(folder) / "dvc.yaml").symlink_to(ROOT / "dvc.yaml")
        for stage in STAGES:
            kind, _, row = stage.partition("@")
            start = time.perf_counter()
            command = [sys.executable, "-m", f"stages.{kind}", "--name=tiny", f"--row={row}"]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8")
            line = next(reversed((done.stderr if done.returncode else done.stdout).strip().splitlines()), "")
            missing = re.fullmatch(r"ModuleNotFoundError: No module named '(\w+).*'", line)
            result = "passed" if not done.returncode else "not run" if missing else "failed"
            detail = f"{missing[1]} is not installed" if missing else line[:300]
            found.append({"stage": stage, "result": result, "detail": detail, "seconds": time.perf_counter() - start})
            print(f"{result}: {stage} ({detail})", flush=True)
            if result == "failed":
                break
    return found


def table(rows: Iterable[dict[str, Any]], columns: dict[str, Callable[[dict[str, Any]], str]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return [
        *lines,
        *("| " + " | ".join(write(row).replace("|", "\\|") for write in columns.values()) + " |" for row in rows),
    ]


def number(key: str, form: str = ".3g") -> Callable[[dict[str, Any]], str]:
    return lambda row: format(row[key], form) if key in row else row.get("failed", "")


def page(found: dict[str, Any]) -> str:
    """The results as a page of Markdown."""
    own = found["machine"]
    rehearsal = ["", "**A rehearsal on a CPU: no GPU took part, and these rates say nothing about one.**"]
    products = ", ".join(f"{rate / 1e12:.3g} Tflop/s in {kind}" for kind, rate in found["products"].items())
    result = {name: itemgetter(name) for name in ("result", "detail")} | {"seconds": number("seconds", ".1f")}
    return "\n".join(
        [
            f"# {own['device']}",
            *(rehearsal if found["rehearsal"] else []),
            "",
            f"{own['system']}, Python {own['python']}, PyTorch {own['libraries']['torch']}. "
            "Made by `python -m benchmarks.gpu_check`.",
            "",
            "## What must hold",
            "",
            *table(found["checks"], {"check": itemgetter("check"), **result}),
            "",
            "## A tiny study",
            "",
            *table(found["study"], {"stage": itemgetter("stage"), **result}),
            "",
            "## Rates",
            "",
            f"Large products: {products}. Frechet distance at d = {DIMENSIONS}: {found['distance_seconds']:.3g} s.",
            "",
            *table(
                found["rates"],
                {
                    "what": itemgetter("what"),
                    "network": itemgetter("network"),
                    "parameters": number("parameters", ","),
                    "batch": number("batch", "d"),
                    "images/s": number("images_per_second"),
                    "images/s, plain": number("plain"),
                    "ours / plain": number("ratio", ".3f"),
                    "of the products' rate": number("share", ".1%"),
                },
            ),
            "",
            "The noise of one step of a stochastic solver is drawn on the CPU, per sample:",
            "",
            *table(
                found["noise"],
                {
                    "network": itemgetter("network"),
                    "batch": number("batch", "d"),
                    "noise, ms": number("noise_ms"),
                    "call of the network, ms": number("call_ms"),
                    "noise / call": number("ratio"),
                },
            ),
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    device = default_device()
    on_cpu = device.type == "cpu"
    parser = argparse.ArgumentParser(description=__doc__)
    presets = list(parse_study(STUDY.read_text(encoding="utf-8"), STUDY).presets)
    parser.add_argument("--presets", nargs="+", choices=presets, default=["smoke"] if on_cpu else ["short", "paper"])
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 64] if on_cpu else [256, 1024])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each measurement, about")
    parser.add_argument("--folder", type=Path, default=Path("build/devices" if on_cpu else "reports/devices"))
    chosen = parser.parse_args(arguments)
    found: dict[str, Any] = {"machine": machine(device), "rehearsal": on_cpu, "checks": checked(device)}
    found["study"] = tiny_study()
    rows = {preset: row_of(preset) for preset in chosen.presets}
    kinds = {row.precision for row in rows.values()}
    found["products"] = {kind: matrix_rate(kind, device, chosen.seconds) for kind in sorted(kinds)}
    found |= {"rates": [], "noise": []}
    for preset, batch in ((preset, batch) for preset in rows for batch in chosen.batches):
        row = rows[preset].model_copy(update={"batch": batch, "micro_batch": None})
        found["rates"] += rates(preset, row, found["products"][row.precision], device, chosen.seconds)
        found["noise"].append(noise_cost(preset, row, device, chosen.seconds))
        print(f"measured: {preset}, batch {batch}", flush=True)
    found["distance_seconds"] = distance_seconds(device, chosen.seconds)
    name = "cpu" if on_cpu else re.sub(r"\W+", "_", found["machine"]["device"]).strip("_").lower()
    write_json(chosen.folder / f"{name}.json", found)
    write_text(chosen.folder / f"{name}.md", page(found))
    print(f"written: {chosen.folder / name}.json and .md")
    return int(any(each["result"] == "failed" for each in [*found["checks"], *found["study"]]))


if __name__ == "__main__":
    settle()
    sys.exit(main())
