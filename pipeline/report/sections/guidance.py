"""The section on guidance: the score against the scale, and precision against recall."""

from typing import Any, NamedTuple

import numpy as np
import seaborn as sns

from pipeline.diffusion.averages import snapshot_steps
from pipeline.evaluation.curve import Curve
from pipeline.metrics.measurement import SHOWN_IMAGES
from pipeline.report.figures.drawing import literal, new_figure, save
from pipeline.report.figures.pictures import tile
from pipeline.report.figures.scores import frontier_figure, scale_figure
from pipeline.report.page import Markdown, bold, code, table
from pipeline.report.sections.samples import shown_samples
from pipeline.report.study import APART, Report, low_and_high
from pipeline.report.text import course, listed, number, percent, plain
from pipeline.sampling.guidance import GUIDES, sample_labels

KEYS = ("guide", "guide_images", "guidance_min", "guidance_max")  # keys of a guide, apart from its scale
OWN = ("guidance", *KEYS, *APART)  # keys that may differ within a family
LEAST_SCALES = 3  # including that of the unguided curve
TRADED = ("precision", "recall")


Rest = tuple[Any, ...]  # the values of all keys of a curve but guidance


class Family(NamedTuple):
    """Curves of a model that differ only in the scale of a guide: scale -> curve, ascending; `unguided` is a scale."""

    model: str
    guide: str
    curves: dict[float, str]
    unguided: float

    @property
    def label(self) -> str:
        return f"{self.model}, {self.guide}"


def families(report: Report) -> list[Family]:
    """Every set of at least LEAST_SCALES curves with the same model, guide and sampler.

    The curve without guidance belongs to the families of all guides. Of equal curves, the first one counts.
    """
    unguided: dict[Rest, str] = {}
    found: dict[tuple[Rest, tuple[Any, ...]], dict[float, str]] = {}
    for name, entry in report.curves.items():
        rest = _rest(report, name)
        if entry.row.guidance == GUIDES[entry.row.guide].idle:
            unguided.setdefault(rest, name)
        else:
            guide = tuple(getattr(entry.row, key) for key in KEYS)
            found.setdefault((rest, guide), {}).setdefault(entry.row.guidance, name)
    result: list[Family] = []
    for (rest, _), guided in found.items():
        if rest in unguided and len(guided) + 1 >= LEAST_SCALES:
            first = next(iter(guided.values()))
            row = report.curves[first].row
            idle = GUIDES[row.guide].idle
            curves = dict(sorted((guided | {idle: unguided[rest]}).items()))
            family = Family(row.model, _guide(report, first), curves, idle)
            again = family.label in [other.label for other in result]
            result.append(family._replace(guide=f"{family.guide}, sampled like {first}") if again else family)
    return result


def section(report: Report) -> dict[str, Any] | None:
    """The section's contents; draws the figures. None if no guide has enough scales."""
    found = families(report)
    budgets = report.common_budgets([name for family in found for name in family.curves.values()]) if found else []
    if not budgets:
        return None
    compared, high = low_and_high(budgets), budgets[-1]
    scales = {f"budget {b}": lines for b in compared if (lines := _points(report, found, b))}
    if not scales:
        return None
    scale_figure(
        report.figures / "guidance_scale.png", scales, "guidance scale", report.score, report.score_floor, log=False
    )
    return {
        "scale_figure": "guidance_scale.png",
        "frontier_figure": _frontier(report, found, high),
        "budget": high,
        "table": _table(report, found, compared),
        "classifiers": _classifiers(report, found),
        "samples_figure": _samples(report, found, high),
        "labels": _labels(report, found),
        "findings": [text for family in found if (text := finding(report, family))],
    }


def _samples(report: Report, found: list[Family], budget: int) -> str:
    """Draw samples at a budget, one row per guide: without guidance, at a middle scale and at the largest."""
    rows = {}
    for family in found:
        shown = _shown(report, family, budget)
        guided = [scale for scale in shown if scale > family.unguided]
        scales = list(dict.fromkeys([*guided[len(guided) // 2 :][:1], *guided[-1:]]))
        if family.unguided in shown and scales:
            rows[family.label] = {w: _kept(report, shown[w], budget) for w in (family.unguided, *scales)}
    if not rows or report.of_points:
        return ""
    columns = max(len(row) for row in rows.values())
    size = (2.6 * columns + 0.6, 2.5 * len(rows))
    figure, grid = new_figure(size, len(rows), columns, style="white")
    for line, (label, row) in zip(grid, rows.items(), strict=True):
        for axes in line[len(row) :]:
            axes.set_axis_off()
        for axes, (scale, images) in zip(line, row.items(), strict=False):
            picture = tile(images)
            axes.imshow(picture.squeeze(2) if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"scale {scale:g}", fontsize=9)
            sns.despine(ax=axes, left=True, bottom=True)
        line[0].set_ylabel(literal(label).replace(", ", ",\n", 1).replace(" from ", "\nfrom "), fontsize=8)
    path = report.figures / "samples_guided.png"
    save(figure, path)
    return path.name


def _kept(report: Report, name: str, budget: int) -> np.ndarray:
    """The stored images of a curve that has a result at a budget."""
    own = report.results[report.results.curve == name]
    steps = int(own[own.nfe <= report.nfe(name, budget)].steps.max())
    return shown_samples(report, name, steps)


def _labels(report: Report, found: list[Family]) -> str:
    """The classes of the samples in the figure, if the data have classes."""
    counts = report.data.get("class_counts")
    if not counts or report.of_points:
        return ""
    _, seed = report.curves[found[0].curves[found[0].unguided]].row.seeds[0]
    labels = sample_labels(seed, range(SHOWN_IMAGES), list(counts.values()))
    return ", ".join(report.data["classes"][k] for k in labels.tolist())


def _classifiers(report: Report, found: list[Family]) -> list[str]:
    """The accuracy of guiding classifiers on noised data, by sigma."""
    names = [name for family in found for name in family.curves.values()]
    guiding = [report.curves[name].row.model for name in names if report.curves[name].row.guide == "classifier"]
    return [
        f"Accuracy of the classifier of model {model} on its training {report.things} with new noise: {shares}."
        for model in dict.fromkeys(guiding)
        if (shares := listed([f"{percent(a)} at sigma {s}" for s, a in _accuracy(report, model).items()]))
    ]


def _accuracy(report: Report, model: str) -> dict[str, float]:
    found: dict[str, float] = report.training[model]["classifier_accuracy"]
    return found


def finding(report: Report, family: Family) -> str:
    """The effect of the best scale on the score, and of all scales on precision and recall, at the largest budget.

    Empty without a result of the unguided curve or of a guided one.
    """
    budgets = report.common_budgets(list(family.curves.values()))
    having = {w: n for w, n in family.curves.items() if budgets and report.having([n], budgets[-1])}
    if family.unguided not in having or len(having) < 2:
        return ""
    budget, base = budgets[-1], having[family.unguided]
    best = min(having, key=lambda w: report.estimate(having[w], budget).mean)
    if best == family.unguided:
        best_scale = f"no scale scores lower than {base} without guidance"
    else:
        best_scale = f"scale {plain(best)} has the lowest mean {report.score}; relative to no guidance, it is "
        best_scale += course(report.course(having[best], base))
    lost = [plain(scale) for scale in family.curves if scale not in having]
    without = [f"no result at scale {listed(lost)}"] if lost else []
    parts = [best_scale, *_traded(report, having, budget), *without]
    return f"Guidance of {family.model} ({family.guide}) at a budget of {budget}: {'; '.join(parts)}."


def _traded(report: Report, having: dict[float, str], budget: int) -> list[str]:
    """The change of precision and recall from the smallest to the largest scale."""
    low, high = min(having), max(having)
    texts = []
    for metric in _measured(report):
        one, two = (report.estimate(having[w], budget, metric).mean for w in (low, high))
        texts.append(f"{metric} changes from {number(one)} to {number(two)}")
    return [f"from scale {plain(low)} to scale {plain(high)}, {listed(texts)}"] if texts else []


def _measured(report: Report) -> list[str]:
    return [metric for metric in TRADED if metric in report.metrics]


def _rest(report: Report, name: str) -> Rest:
    """All keys of a curve but its guidance. A classifier guides the model's answer without a label."""
    row = report.curves[name].row
    if row.guide == "classifier" and report.model(name).labels != "none":
        row = row.model_copy(update={"labels": "none"})
    return tuple(getattr(row, key) for key in Curve.model_fields if key not in OWN)


def _guide(report: Report, name: str) -> str:
    """The name of a guide."""
    row, model = report.curves[name].row, report.model(name)
    parts = [row.guide]
    if row.guide == "snapshot":
        images = row.guide_images or snapshot_steps(model)[0] * model.batch
        parts.append(f"after {images} {report.things}")
    if row.guidance_min or row.guidance_max:
        high = plain(row.guidance_max) if row.guidance_max else "infinity"
        parts.append(f"from sigma {plain(row.guidance_min)} to {high}")
    return " ".join(parts)


def _acts(report: Report, name: str, budget: int) -> bool:
    """Whether a curve calls its guide at a budget: the guide's interval may contain none of its few noise levels.

    The later steps of an adaptive solver are unknown, so it counts as guided.
    """
    sampler = report.curves[name].row
    guidance, steps = sampler.build_guidance(), sampler.steps(budget)
    if guidance.idle or not guidance.limited or sampler.build_solver().adaptive:
        return not guidance.idle
    return sampler.evaluations(steps) > sampler.depth(steps)


def _shown(report: Report, family: Family, budget: int) -> dict[float, str]:
    """scale -> curve, of the curves that have a result at a budget and, if guided, call the guide there."""
    return {
        w: n
        for w, n in family.curves.items()
        if report.having([n], budget) and (w == family.unguided or _acts(report, n, budget))
    }


def _points(report: Report, found: list[Family], budget: int) -> dict[str, dict[float, Any]]:
    """label -> {scale: interval} at a budget."""
    lines = {}
    for family in found:
        points = {w: report.estimate(n, budget) for w, n in _shown(report, family, budget).items()}
        if points:
            lines[family.label] = points
    return lines


def _frontier(report: Report, found: list[Family], budget: int) -> str:
    """Draw precision against recall along the scales of each guide; no figure if they were not measured."""
    if len(_measured(report)) < len(TRADED):
        return ""
    lines = {}
    for family in found:
        having = _shown(report, family, budget)
        if having:
            lines[family.label] = {
                w: (report.estimate(n, budget, "recall"), report.estimate(n, budget, "precision"))
                for w, n in having.items()
            }
    if not lines:
        return ""
    labels = report.metric("recall"), report.metric("precision")
    frontier_figure(report.figures / "precision_recall.png", lines, labels)
    return "precision_recall.png"


def _stated(report: Report, family: Family, name: str, budget: int) -> str:
    """The score of a curve at a budget, with a remark if its guide is never called."""
    text = report.stated_at(name, budget)
    guided = name != family.curves[family.unguided] and report.having([name], budget)
    return f"{text} (guide never called)" if guided and not _acts(report, name, budget) else text


def _table(report: Report, found: list[Family], budgets: list[int]) -> Markdown:
    """One line per scale: the scores, and at the largest budget the ratio to no guidance, precision, recall."""
    lines, high = [], budgets[-1]
    for family in found:
        base = family.curves[family.unguided]
        for scale, name in family.curves.items():
            scores = [_stated(report, family, name, budget) for budget in budgets]
            both = name != base and len(report.having([name, base], high)) == 2
            change = report.compared(name, base, high) if both else ""
            others = [report.stated_at(name, high, metric) for metric in _measured(report)]
            shown = bold(plain(scale)) if scale == family.unguided else plain(scale)
            lines.append([family.model, family.guide, shown, code(name), *scores, change, *others])
    scores = [*(f"budget {b}" for b in budgets), f"ratio to no guidance, budget {high}"]
    others = [f"{report.metric(metric)}, budget {high}" for metric in _measured(report)]
    return table(["model", "guide", "scale", "curve", *scores, *others], lines)
