"""The section on training: errors, distances from the truth and gradients by noise level, straightness, bounds, and the
proposed noise.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit

from pipeline.report.figures.lines import Line, densities_figure, noise_levels_figure
from pipeline.report.page import Markdown, code, table
from pipeline.report.results import FAILED
from pipeline.report.statistics import CONFIDENCE, interval
from pipeline.report.study import Report
from pipeline.report.text import course, listed, number, plain, stated
from pipeline.training.noise import Levels, keys_of
from pipeline.training.row import Model
from pipeline.training.weighting import edm

PANEL_LINES = 8  # the most models in one panel of a figure
ALIKE = 0.02  # relative tolerance for drawing untrained networks as one line
SHOWN_SIGMAS = (0.02, 0.1, 0.5, 2.0, 10.0)  # columns of the table: the noise levels nearest to these
CENTRE = (0.05, 0.95)  # quantiles of a model's noise distribution between which gradients are compared
TAIL = 2.6  # densities are drawn between the quantiles of a normal distribution at so many sd
PROPOSED = ("P_mean", "P_std")
NEAR = 0.1  # largest distance of a row's P_mean and P_std from the proposed ones to count as close
NOT_FINITE = "not finite"

Quantity = Callable[[str, str], pd.DataFrame]  # (model, state) -> one row per training seed, one column per sigma


def section(report: Report) -> dict[str, Any]:
    """The section's contents; draws the figures."""
    panels = _panels(report)
    return {
        "images": report.learning["images"],
        "errors_figure": _figure(
            report, "loss_by_noise_level", panels, lambda *of: _errors(report, *of), "error (EDM's normalisation)"
        ),
        "gradients_figure": _figure(
            report, "gradient_by_noise_level", panels, lambda *of: _gradients(report, *of), "gradient norm / its mean"
        ),
        "truth": _truth(report, panels),
        "by_model": _by_model(report),
        "steps": listed(sorted({str(flow["steps"]) for flow in _straightness(report).values()})),
        "pairs": _pairs(report),
        "densities_figure": _densities(report),
        "bounds": _bounds(report),
        "proposal": _proposal(report),
    }


def _levels(report: Report, model: str, state: str, value: str) -> pd.DataFrame:
    """A quantity by training seed and sigma, at noise levels where it is finite and positive for every seed."""
    own = report.losses[(report.losses.model == model) & (report.losses.state == state)]
    found = own.pivot(index="train_seed", columns="sigma", values=value)
    return found.loc[:, (np.isfinite(found) & (found > 0)).all()]


def _errors(report: Report, model: str, state: str) -> pd.DataFrame:
    """The error of D with EDM's weighting, whatever the model's own: 1 means that the network has learned nothing."""
    found = _levels(report, model, state, "error")
    return found * edm(torch.tensor(found.columns.to_numpy(float)), report.data["sigma_data"]).numpy()


def _gradients(report: Report, model: str, state: str) -> pd.DataFrame:
    """The norm of the gradient over its geometric mean, for each seed."""
    found = _levels(report, model, state, "gradient")
    return found.div(np.exp(np.log(found).mean(axis=1)), axis=0)


def _panels(report: Report) -> dict[str, list[str]]:
    """title -> models of each panel, including the bases of its rows; one panel for few models.

    Otherwise, the first panel has the models of the methods. The others have one axis of differences each.
    """
    first, *_ = every = list(report.models)
    if len(every) <= PANEL_LINES:
        return {"": every}
    methods = list(dict.fromkeys([first, *(report.curves[name].row.model for name in report.methods)]))
    groups = {"methods": methods}
    for name in every:
        if name not in methods:
            groups.setdefault(report.models[name].axis or "repeated", []).append(name)
    found = {}
    for title, names in groups.items():
        parts = _split(report, names)
        for i, part in enumerate(parts, 1):
            found[title + (f" ({i} of {len(parts)})" if len(parts) > 1 else "")] = part
    return found


def _split(report: Report, names: list[str]) -> list[list[str]]:
    """Models with their bases, in the smallest number of equal parts that fit into one panel each."""
    for count in range(1, len(names) + 1):
        size = -(-len(names) // count)
        chunks = [names[start : start + size] for start in range(0, len(names), size)]
        parts = [list(dict.fromkeys(x for n in chunk for x in (report.models[n].base, n))) for chunk in chunks]
        if size == 1 or max(map(len, parts)) <= PANEL_LINES:
            return parts
    return []


def _figure(report: Report, name: str, panels: dict[str, list[str]], quantity: Quantity, ylabel: str) -> str:
    """Draw a quantity of trained and untrained networks by noise level; no figure without any finite value."""
    drawn = {title: _panel(names, quantity) for title, names in panels.items()}
    drawn = {title: lines for title, lines in drawn.items() if lines}
    if not drawn:
        return ""
    path = report.figures / f"{name}.png"
    noise_levels_figure(path, drawn, ylabel, "solid: trained\ndashed: untrained")
    return path.name


def _panel(names: list[str], quantity: Quantity) -> dict[str, list[Line]]:
    """The lines of each model; of equal untrained networks only the first one."""
    lines: dict[str, list[Line]] = {}
    untrained: list[pd.Series] = []
    for place, name in enumerate(names):
        trained, initial = quantity(name, "trained"), quantity(name, "initial")
        own = [Line(_points(trained), place)] if trained.size else []
        if initial.size and not any(_alike(initial.mean(), other) for other in untrained):
            untrained.append(initial.mean())
            own.append(Line(_points(initial), place, dashed=True))
        if own:
            lines[name] = own
    return lines


def _points(found: pd.DataFrame) -> list[tuple[float, float, float]]:
    """(sigma, mean over seeds, standard deviation over seeds or 0)."""
    deviation = found.std(ddof=1) if len(found) > 1 else 0 * found.mean()
    return list(zip(found.columns, found.mean(), deviation, strict=True))


def _alike(own: pd.Series, other: pd.Series) -> bool:
    return own.index.equals(other.index) and np.allclose(own, other, rtol=ALIKE)


def _by_model(report: Report) -> Markdown:
    """Errors of trained models at a few noise levels, ratios of gradients, and the straightness of the flow."""
    shown, straightness = _shown(report), _straightness(report)
    lines = []
    for name in report.models:
        share = report.share_trained(name)
        model = Markdown(f"{code(name)} ({share})") if share else code(name)
        if not report.trainings(name):
            lines.append([model, *[FAILED] * (len(shown) + 2)])
            continue
        texts = _stated(_errors(report, name, "trained"), shown)
        lines.append([model, *texts, _spread_of_gradients(report, name), _with_sd(straightness[name])])
    header = ["model", *(f"error at sigma {number(sigma)}" for sigma in shown), "largest / smallest gradient"]
    return table([*header, "straightness"], lines)


def _shown(report: Report) -> list[float]:
    """The noise levels of tables."""
    levels = np.unique(report.losses.sigma)
    return list(dict.fromkeys(float(levels[abs(np.log(levels / near)).argmin()]) for near in SHOWN_SIGMAS))


def _stated(found: pd.DataFrame, shown: list[float]) -> list[str]:
    """A quantity at the noise levels of tables, with its interval over trainings."""
    return [stated(interval(found[sigma].to_numpy())) if sigma in found else NOT_FINITE for sigma in shown]


def _truth(report: Report, panels: dict[str, list[str]]) -> dict[str, Any] | None:
    """Distances from the exact denoiser and from its consistency map; None if the study's data have no known truth."""
    truth, shown = report.learning["truth"], _shown(report)
    told = [name for name, entry in report.models.items() if entry.row.labels == "classes"]
    compared = [name for name in report.models if name not in told]
    if truth is None or not compared:
        return None
    own = {title: [name for name in names if name in compared] for title, names in panels.items()}
    found: dict[str, Any] = {"draws": truth["draws"], "end": f"{truth['end']:g}", "told": listed(told)}
    for column, ylabel in (("denoising_error", "RMS of D - exact D"), ("map_error", "RMS of D - exact f")):
        lines = [[code(name), *_stated(_levels(report, name, "trained", column), shown)] for name in compared]
        if column == "map_error":
            levels = np.unique(report.losses.sigma)
            exact = dict(zip(levels, truth["denoiser_map_errors"], strict=True))
            lines.append(["the exact denoiser", *(number(exact[sigma]) for sigma in shown)])
        found[column] = table(["model", *(f"at sigma {number(sigma)}" for sigma in shown)], lines)
        name, quantity = f"{column}_by_noise_level", partial(_levels, report, value=column)
        found[f"{column}_figure"] = _figure(report, name, own, quantity, ylabel)
    return found


def _spread_of_gradients(report: Report, name: str) -> str:
    """The ratio of the largest to the smallest gradient within CENTRE of a model's noise, interpolated in ln sigma."""
    found = np.log(_gradients(report, name, "trained"))
    if not found.size:
        return NOT_FINITE
    low, high = report.models[name].row.distribution.sigma(torch.tensor(CENTRE, dtype=torch.float64)).log().tolist()
    levels = np.log(found.columns.to_numpy(float))
    inside = [low, *levels[(low < levels) & (levels < high)], high]
    spreads = [np.ptp(np.interp(inside, levels, gradients)) for gradients in found.to_numpy()]
    return stated(interval(np.exp(spreads)))


def _straightness(report: Report) -> dict[str, dict[str, Any]]:
    return {name: report.learning["models"][name]["straightness"] for name in report.models}


def _with_sd(found: dict[str, Any]) -> str:
    if found["mean"] is None:
        return NOT_FINITE
    return number(found["mean"]) + ("" if found["sd"] is None else f" (sd {number(found['sd'])})")


def _pairs(report: Report) -> list[str]:
    """The effect of other pairs of noise and image on the straightness of the flow."""
    found, sentences = _straightness(report), []
    for name, entry in report.models.items():
        base = entry.base
        if "pairs" not in entry.differences or None in (found[name]["mean"], found[base]["mean"]):
            continue
        sentences.append(
            f"The flow of {name} (pairs {entry.row.pairs}) is {_straighter(report, name, base)} that of its base "
            f"{base}: {_with_sd(found[name])} against {_with_sd(found[base])}."
        )
    return sentences


def _straighter(report: Report, name: str, base: str) -> str:
    own, other = (report.learning["models"][n]["straightness"] for n in (name, base))
    word = "straighter than" if own["mean"] < other["mean"] else "less straight than"
    if None in (own["sd"], other["sd"]):
        return f"{word} (one training, so the error is unknown)"
    counts = [report.trainings(n) for n in (name, base)]
    error = math.hypot(own["sd"] / math.sqrt(counts[0]), other["sd"] / math.sqrt(counts[1]))
    half = float(stdtrit(max(min(counts) - 1, 1), (1 + CONFIDENCE) / 2)) * error
    return (
        word if abs(own["mean"] - other["mean"]) > half else "neither clearly straighter nor clearly less straight than"
    )


def _densities(report: Report) -> str:
    """Draw the density over ln sigma of every distinct noise distribution of the models; "" if all are imported."""
    u = torch.special.ndtr(torch.linspace(-TAIL, TAIL, 301, dtype=torch.float64))
    drawn: dict[bytes, tuple[str, Line]] = {}
    for entry in (entry for entry in report.models.values() if entry.row.import_ is None):
        noise = entry.row.distribution
        sigma, density = noise.sigma(u), noise.density(u)
        points = [(s, d, 0.0) for s, d in zip(sigma.tolist(), density.tolist(), strict=True) if math.isfinite(d)]
        line = Line(points, len(drawn), isinstance(noise, Levels))
        drawn.setdefault(sigma.numpy().tobytes(), (_name(entry.row), line))
    if not drawn:
        return ""
    path = report.figures / "noise_distributions.png"
    densities_figure(path, dict(drawn.values()))
    return path.name


def _name(row: Model) -> str:
    """The name of a noise distribution with its keys that differ from the defaults."""
    keys = [key for key in keys_of(row.noise) if getattr(row, key) != Model.model_fields[key].default]
    return ", ".join([row.noise, *(f"{key} {plain(getattr(row, key))}" for key in keys)])


def _bounds(report: Report) -> Markdown:
    """The variational bounds of models with discrete noise levels."""
    lines = []
    for name in report.models:
        if bound := report.learning["models"][name]["bound"]:
            total = f"{number(bound['total'])} (se {number(bound['se'])})"
            lines.append([code(name), *(number(bound[part]) for part in ("L_0", "L_t", "L_T")), total, bound["levels"]])
    return table(["model", "L_0", "L_t", "L_T", "total", "noise levels"], lines) if lines else Markdown("")


def _proposal(report: Report) -> list[Markdown | str]:
    """The proposed noise distribution, its row, and the score of a similar row of the study."""
    found = report.proposal
    if found["row"] is None:
        trainings = f"brief trainings of {found['model']} ({plain(found['images'])} images)"
        return [f"No noise distribution is proposed, because {trainings} learn at no noise level."]
    values, published = (", ".join(f"{k} {plain(own[k])}" for k in PROPOSED) for own in (found, found["published"]))
    return [
        f"Proposed lognormal noise distribution: {values} (published: {published}). It covers the noise levels at "
        f"which brief trainings of {found['model']} ({plain(found['images'])} images) learn. As a row of the study:",
        code(found["row"].replace("`", "")),
        *_tried(report),
    ]


def _tried(report: Report) -> list[str]:
    """The scores of rows close to the proposal, relative to their base with the same sampler."""
    sentences = []
    for name, entry in report.models.items():
        near = all(abs(getattr(entry.row, key) - report.proposal[key]) <= NEAR for key in PROPOSED)
        alone = entry.differences and set(entry.differences) <= set(PROPOSED)
        if near and alone and entry.base == report.proposal["model"]:
            pairs = _same_sampler(report, name, entry.base)
            sentences += [f"{name} is close to the proposal: {_compared(report, *pair)}." for pair in pairs[:1]]
    return sentences


def _same_sampler(report: Report, model: str, base: str) -> list[tuple[str, str]]:
    """Curves of a model with their bases, if these sample another model in the same way and both have results."""
    return [
        (name, entry.base)
        for name, entry in report.curves.items()
        if (entry.row.model, report.curves[entry.base].row.model) == (model, base)
        and report.sampler(name) == report.sampler(entry.base)
        and report.course(name, entry.base)
    ]


def _compared(report: Report, own: str, base: str) -> str:
    return f"relative to {base}, {own} is {course(report.course(own, base))}"
