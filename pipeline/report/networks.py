"""The report's table of networks: what each costs, and which were made to cost as much as another."""

from typing import Any

from pipeline.networks.network import KEYS as KEYS_OF_NETWORK
from pipeline.report.page import Markdown, code, table
from pipeline.report.study import Report, listed

KEYS = ("network", "channels", "parameters", "flops")
COSTS = {"parameters": "parameters", "flops": "FLOPs"}  # what `equal` stands for


def section(report: Report) -> Markdown:
    """A line a network: which models have it, its size, what an evaluation costs, and what it was made to equal."""
    models: dict[tuple[str, int, int, int], list[str]] = {}
    for name, summary in report.training.items():
        network, channels, parameters, flops = (summary[key] for key in KEYS)
        models.setdefault((network, channels, parameters, flops), []).append(name)
    lines = []
    for (network, channels, parameters, flops), names in models.items():
        rows = [report.models[name] for name in names]
        equal = dict.fromkeys(f"{COSTS[row['equal']]} of {code(row['base'])}" for row in rows if row["equal"])
        own = [Markdown(listed([code(name) for name in names])), network, channels]
        lines.append([*own, f"{parameters:,}", mega(flops), Markdown(listed(list(equal)))])
    return table(["models", "network", "channels", "parameters", f"MFLOPs per {report.thing}", "made to equal"], lines)


def as_trained(report: Report) -> dict[str, Any]:
    """The models' rows with the channels that `equal` found, and nothing for the keys of other networks."""
    every = {key for keys in KEYS_OF_NETWORK.values() for key in keys}
    rows = {}
    for name, row in report.models.items():
        others = dict.fromkeys(every - set(KEYS_OF_NETWORK[row["network"]]), "-")
        rows[name] = row | {"channels": report.training[name]["channels"]} | others
    return rows


def mega(flops: int) -> str:
    """Millions of floating-point operations, to three digits at least."""
    return f"{flops / 1e6:#,.3g}".rstrip(".") if flops < 999.5e6 else f"{flops / 1e6:,.0f}"
