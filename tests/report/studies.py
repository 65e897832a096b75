"""Made-up results of studies, in the files that the stages write, and helpers of the report's tests."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.common.files import Paths, write_csv, write_json
from pipeline.common.sealed import load_json, save_json
from pipeline.common.tensors import load_tensors, save_tensors
from pipeline.evaluation.likelihoods import COLUMNS as LIKELIHOOD_COLUMNS
from pipeline.params.resolve import resolve
from pipeline.params.resolved import ModelEntry
from pipeline.params.study import Study
from pipeline.report.results import LOSS_COLUMNS
from pipeline.report.study import METRICS

HOSTILE = '<script>alert("x")</script> | $a_b$ `c` **d** [e](http://evil.example)'
LONG = "Größe " + "<b>" * 30 + "模型"  # a choice that a row makes may be any text


class ParsedPage(HTMLParser):
    """The tags, addresses, ids and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.ids |= {value or "" for key, value in attrs if key == "id"}
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


CURVES: dict[str, dict] = {
    "edm": {"model": "edm", "method": HOSTILE[:40]},
    "flow": {"model": "edm", "method": "flow", "discretization": "flow", "solver": "euler"},
    "rho_3": {"model": "edm", "rho": 3},
    "rho_5": {"model": "edm", "rho": 5},
    "euler": {"model": "edm", "solver": "euler"},
    "weighted": {"model": "edm_snr"},
    "both": {"model": "edm", "rho": 3, "solver": "euler"},
}
MACHINE = {"device": "CPU (made up)", "system": "none", "python": "3", "libraries": {"torch": "2"}}
PROVENANCE = {
    "extractor": "classifier",
    "extractor_hash": "e" * 64,
    "preprocessing": "none",
    "reference_hash": "f" * 64,
    "reference_split": "all",
    "samples": 64,
    "rounding": "8 bits",
    "libraries": {"torch": "2"},
    "device": "cpu",
}
AGREED = [{"library": "torch-fidelity", "metric": "fd", "ours": 1.0, "theirs": 1.0, "difference": 1e-15}]
EXTRACTOR = {
    "name": "classifier",
    "dimensions": 64,
    "official": False,
    "hash": "e" * 64,
    "held_out_images": 9,
    "held_out_accuracy": 0.98,
    "wanted": "classifier",
    "fallback": None,
}
SOLVERS: dict[str, Any] = {
    "settings": {"mixture": "two hills", "data": "a made-up set", "distance": "a mean", "seeds": 3, "samples": 8192},
    "orders": [
        {"row": row, "kind": kind, "order": order, "measured": measured, "evaluations_per_step": 2}
        | {"stochastic": kind == "sde", "convention": "made up | and said"}
        for row, kind, order, measured in (
            ("euler", "ode", 1, 1.02),
            ("heun", "ode", 2, 1.9),
            ("rk45", "ode", None, None),
            ("ddim, eta 1", "sde", 1, 0.97),
            ("Langevin", "sde", 1, None),
        )
    ],
    "errors": [
        {"oracle": oracle, "row": row, "steps": nfe, "nfe": nfe, "error": error}
        for oracle, scale in (("mixture", 1.0), ("data", 2.0))
        for row, nfe, error in (("euler", 4, 0.5), ("euler", 9, 0.25), ("heun", 7, 0.4), ("heun", 15, 0.1))
        for error in (error * scale,)
    ],
    "distances": [
        {"row": row, "stochastic": row != "heun", "steps": nfe, "nfe": nfe, "distance": distance, "sd": 0.01}
        for row, nfe, distance in (
            ("heun", 7, 0.3),
            ("heun", 15, 0.2),
            ("ddim, eta 1", 8, 0.6),
            ("ddim, eta 1", 64, 0.02),
        )
    ],
    "floor": {"distance": 0.012, "sd": 0.001},
}


def write_cells(folder: Path, seeds: list[list[int]], points: list[tuple[int, int]], changed: dict) -> None:
    """Write made-up results of a curve or image set at (steps, nfe)."""
    random = np.random.default_rng(0)
    cells = [
        {"train_seed": a, "sample_seed": b, "steps": n, "nfe": nfe, "samples": 64, "checkpoint": "c" * 64}
        | {"metrics": [{"metric": m, "value": 1 + random.random() / (n + 1), "se": 0.1} for m in METRICS]}
        | ({"failed": ""} if nfe > 0 else {})  # image sets cannot fail
        for n, nfe in points
        for a, b in seeds
    ]
    content = {"provenance": PROVENANCE | changed, "machine": MACHINE, "cells": cells}
    save_json(folder / "results.json", content)
    images = {f"{c['steps']}/{c['train_seed']}/{c['sample_seed']}": torch.zeros(16, 1, 8, 8).byte() for c in cells}
    save_tensors(folder / "images.safetensors", images, "images")


MODELS: dict[str, dict] = {"edm": {}, "edm_snr": {"weighting": "snr"}}
PROPOSAL = {
    "model": "edm",
    "images": 20_000,
    "P_mean": -0.95,
    "P_std": 1.1,
    "published": {"P_mean": -1.2, "P_std": 1.2},
}


def write_losses(folder: Path, paths: Paths, models: Mapping[str, ModelEntry]) -> None:
    """Write made-up losses and gradients of models by noise level, and the other files of training."""
    rows = [
        {"model": name, "train_seed": seed, "state": state, "sigma": sigma, "error": error, "loss": error * (i + 1)}
        | {"gradient": (i + 1) * (seed + 1) * sigma**0.1}
        for i, (name, entry) in enumerate(models.items())
        for seed in entry.row.train_seeds
        for state, share in (("initial", 1.0), ("trained", 0.3 + 0.02 * i + 0.01 * seed))
        for sigma in np.geomspace(0.002, 80, 8).tolist()
        for error in (share * 0.25 * sigma**2 / (sigma**2 + 0.25),)
    ]
    write_csv(folder / paths.losses, LOSS_COLUMNS, rows)
    seeds = {name: len(entry.row.train_seeds) for name, entry in models.items()}
    own = {
        name: {"straightness": {"mean": 0.02, "sd": 0.003 if count > 1 else None, "steps": 32}, "bound": None}
        for name, count in seeds.items()
    }
    write_json(folder / paths.metrics("losses", "models"), {"images": 256, "models": own, "truth": None})
    row = "edm_proposed: {base: edm, P_mean: -0.95, P_std: 1.1}"
    write_json(folder / paths.metrics("propose", "noise"), PROPOSAL | {"row": row})


MADE: dict[str, dict[str, bytes]] = {}


def made_up_study(
    folder: Path,
    curves: dict[str, dict],
    seeds: list[int],
    sets: dict[str, dict] | None = None,
    models: dict[str, dict] | None = None,
) -> Paths:
    """Write the files of the stages for a study with made-up results, which are made once for each study."""
    paths = Paths("made_up")
    study = repr((curves, seeds, sets, models, PROVENANCE))
    if study not in MADE:
        with tempfile.TemporaryDirectory() as place:
            make_study(Path(place), paths, curves, seeds, sets or {}, models or MODELS)
            MADE[study] = written(Path(place))
    for name, content in MADE[study].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return paths


def make_study(
    folder: Path,
    paths: Paths,
    curves: dict[str, dict],
    seeds: list[int],
    sets: dict[str, dict],
    models: dict[str, dict],
) -> None:
    study = Study(
        title=HOSTILE,
        study={"name": "made_up"},
        defaults={"curves": {"nfe": [4, 8], "sample_seeds": seeds, "samples": 64}, "models": {"train_seeds": seeds}},
        models=models,
        curves=curves,
        sets=sets,
    )
    with pytest.MonkeyPatch.context() as patch:  # looking for choices without effect takes longest, and none is here
        patch.setattr("pipeline.params.resolve._warnings", lambda *of, **more: ())
        resolved = resolve(study)
    write_json(folder / paths.row("", "report"), resolved.files()["report"])
    for name in curves:
        write_cells(folder / paths.curve(name), list(map(list, resolved.curves[name].row.seeds)), [(2, 3), (4, 7)], {})
    for name, row in sets.items():
        write_cells(folder / paths.set(name), [[0, 0]], [(0, row.get("nfe", 0))], {})
        write_json(folder / paths.metrics("measure", name), {"agreement": AGREED})
    data = {"count": 100, "channels": 1, "height": 8, "width": 8, "sigma_data": 0.5, "content_hash": "0" * 64}
    write_json(folder / paths.metrics("prepare", "data"), data | {"classes": [HOSTILE]})
    write_json(folder / paths.metrics("features", "extractor"), EXTRACTOR)
    floor = {
        "reference_hash": "f" * 64,
        "images": 100,
        "floor_images": 50,
        "floor_splits": 10,
        "floor": {metric: {"mean": 0.5, "sd": 0.1} for metric in METRICS},
    }
    floor |= {"quarter_images": 25, "quarter_fd_corrected": {"mean": 1.1, "sd": 0.1}}
    write_json(folder / paths.metrics("reference", "floor"), floor)
    for model in resolved.models:
        own = {"network": "unet", "channels": 16, "parameters": 12_345, "flops": 6_700_000}
        write_json(folder / paths.metrics("train", model), own | {"machine": MACHINE})
        curve = [{"seed": seed, "images": n, "loss": 1 / n + seed} for seed in seeds for n in (64, 128)]
        write_csv(folder / paths.training_curve(model), ["seed", "images", "loss"], curve)
    write_losses(folder, paths, resolved.models)
    write_csv(folder / paths.reports / "likelihood.csv", LIKELIHOOD_COLUMNS, [])
    write_json(folder / paths.metrics("likelihood", "models"), {"about": None, "models": {}})
    write_json(folder / paths.metrics("agreement", "libraries"), dict.fromkeys(curves, AGREED))
    write_json(folder / paths.metrics("oracle", "solvers"), SOLVERS)
    for stage in ("autoencode", "reconstruct"):
        write_json(folder / paths.metrics(stage, "autoencoders"), {})


def written(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


REASON = "step 3, sigma 0.53: the denoiser's answer is not finite"


def fail(paths: Paths, curve: str, nfes: tuple[int, ...] = (3, 7), seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    """Make cells of a curve fail, as a sweep writes them."""
    folder = paths.curve(curve)
    results, (images, _) = load_json(folder / "results.json"), load_tensors(folder / "images.safetensors", "images")
    for cell in results["cells"]:
        if cell["nfe"] in nfes and cell["train_seed"] in seeds:
            cell |= {"failed": REASON, "metrics": []}
            del images[f"{cell['steps']}/{cell['train_seed']}/{cell['sample_seed']}"]
    save_json(folder / "results.json", results)
    save_tensors(folder / "images.safetensors", images, "images")


def change(paths: Paths, curve: str, scores: dict[int, list[float]] | None = None, costs: dict | None = None) -> None:
    """Give a curve other scores, by NFE and seed, and then other NFEs: {nfe: another, for every seed or by seed}."""
    file = paths.curve(curve) / "results.json"
    results = json.loads(file.read_text())
    for cell in results["cells"]:
        for metric in cell["metrics"]:
            if metric["metric"] == "fd_corrected" and scores:
                metric["value"] = scores[cell["nfe"]][cell["train_seed"]]
        if costs:
            cost = costs[cell["nfe"]]
            cell["nfe"] = cost[cell["train_seed"]] if isinstance(cost, list) else cost
    save_json(file, results)


def markdown(paths: Paths) -> str:
    return (paths.reports / "report.md").read_text().replace("\\", "")


def row(text: str, name: str, heading: str) -> list[str]:
    """The cells of the first table line with a name, below a heading."""
    part = text.split(heading, 1)[1]
    line = next(line for line in part.splitlines() if line.startswith("|") and name in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def score(paths: Paths, values: dict[str, Any]) -> None:
    """Give curves scores: name -> {nfe: scores by training seed}."""
    for name, by_nfe in values.items():
        file = paths.curve(name) / "results.json"
        results = json.loads(file.read_text())
        for cell in results["cells"]:
            for metric in cell["metrics"]:
                if metric["metric"] == "fd_corrected" and cell["nfe"] in by_nfe:
                    metric["value"] = float(by_nfe[cell["nfe"]][cell["train_seed"]])
        save_json(file, results)
