"""The tables of every setting: models as they were trained, curves as they were sampled."""

from collections.abc import Mapping

from pipeline.common.rows import Row
from pipeline.diffusion.networks.registry import KEYS
from pipeline.params.resolved import Filed
from pipeline.report.page import Markdown, bold, code, table
from pipeline.report.study import Report
from pipeline.report.text import plain
from pipeline.training.row import WEIGHTING_KEYS

UNSET = {"sigma_data": "measured", **dict.fromkeys(WEIGHTING_KEYS, "as published")}  # what None means in a model's row
UNKNOWN = "unknown"  # a setting of an imported network's training
NETWORK_KEYS = frozenset(key for keys in KEYS.values() for key in keys)

Values = dict[str, object]  # a row's design choices, by key; a text in place of None


def models(report: Report) -> tuple[Markdown, str]:
    """The models, with the channels that `equal` found, and "-" for keys that their network does not have."""
    values = {}
    for name, entry in report.models.items():
        values[name] = _choices(report, entry.row, UNSET) | {"channels": report.training[name]["channels"]}
        network = report.training[name]["network"]
        values[name] |= dict.fromkeys(NETWORK_KEYS - set(KEYS.get(network, ())), "-") | {"network": network}
        if entry.row.import_ is not None:
            known = ("parametrization", "sha256", "sigma_data", "labels", "network")
            values[name] |= dict.fromkeys(values[name].keys() - known, UNKNOWN)
    return _tables(values, report.models)


def curves(report: Report) -> tuple[Markdown, str]:
    values = {name: {"model": e.row.model} | _choices(report, e.row, {}) for name, e in report.curves.items()}
    return _tables(values, report.curves)


def _choices(report: Report, row: Row, unset: Mapping[str, str]) -> Values:
    """A row's design choices that the study uses. unset: what None means, by key ("none" for all others)."""
    keys = [key for key, own in type(row).model_fields.items() if own.title and key not in report.unused]
    values = {key: getattr(row, key) for key in keys}
    return {key: unset.get(key, "none") if value is None else value for key, value in values.items()}


def _tables(values: dict[str, Values], filed: Mapping[str, Filed]) -> tuple[Markdown, str]:
    """The choices in which any two rows differ, with differences from a row's base in bold; and a sentence that lists
    the choices that are the same in all rows."""
    known = {
        key: [own[key] for own in values.values() if own[key] != UNKNOWN] or [UNKNOWN]
        for key in next(iter(values.values()))
    }
    keys = [key for key, own in known.items() if any(value != own[0] for value in own)]
    lines = []
    for name, own in values.items():
        base = filed[name].base
        texts = [plain(own[key]) if own[key] == values[base][key] else bold(plain(own[key])) for key in keys]
        lines.append([code(name), code(base), *texts])
    common = "; ".join(f"{key} {plain(own[0])}" for key, own in known.items() if key not in keys)
    return table(["row", "base", *keys], lines), f"The same in all rows: {common}." if common else ""
