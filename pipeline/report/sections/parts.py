"""The report's tables and figures, part by part."""

from typing import Any

import numpy as np
from safetensors.numpy import load_file

from pipeline.common.errors import StudyError
from pipeline.common.rows import Row
from pipeline.data.dataset import load_prepared
from pipeline.report.figures import curves_figure, front_figure, points_figure, samples_figure
from pipeline.report.findings import SHARES, best_of, best_of_all, reached
from pipeline.report.lines import few
from pipeline.report.page import Markdown, bold, code, escape, table
from pipeline.report.results import FAILED, cells, difference, is_tie, of_curve, pareto, spread
from pipeline.report.sections.factorial import low_and_high
from pipeline.report.sections.networks import mega
from pipeline.report.study import Report, listed, number, percent, plain, stated

SHOWN_BUDGETS = 7
REAL = "real against real"
BIASED = 0.1  # the share of the best score that its bias may be before it is told


def methods_figure(report: Report) -> str:
    """Score against NFE by method, image sets beside them; no figure where none of them has a point."""
    shown = report.with_points([*report.methods, *report.sets])
    if not shown:
        return ""
    points = {report.label(name): report.points(name) for name in shown}
    curves_figure(report.figures / "methods.png", points, report.score, report.colours, report.score_floor)
    return "methods.png"


def by_budget(report: Report, metric: str | None = None) -> Markdown:
    """Mean and interval of a metric (None: the score) by method and budget, and the floor; of the score, the best and
    its ties in bold."""
    budgets = report.budgets(report.methods)
    having = {budget: report.having(report.methods, budget) for budget in budgets}
    metric = metric or report.headline
    compared = [budget for budget in budgets if metric == report.headline and len(having[budget]) > 1]
    leaders = {budget: report.best(report.methods, budget) for budget in compared}
    lines = []
    for name in report.methods:
        texts: list[object] = []
        for budget in budgets:
            text = report.stated_at(name, budget, metric)
            texts.append(bold(text) if name in leaders.get(budget, ()) else text)
        lines.append([report.label(name), code(name), *texts])
    floor = report.floor(metric)
    lines.append([REAL, "", *[number(floor.mean) if floor else ""] * len(budgets)])
    return table(["method", "curve", *(f"budget {b}" for b in budgets)], lines)


def floor_text(report: Report, metric: str) -> str:
    floor = report.floor(metric)
    return f"{number(floor.mean)} (sd {number(floor.sd)})" if floor else ""


def best_points(report: Report) -> Markdown:
    """Every metric of each method and image set at its best score, with the floor of each."""
    header = ["method", "at NFE", report.score, "minimum of repetitions", *map(report.metric, report.metrics[1:])]
    lines: list[list[object]] = []
    failed = {failure.curve for failure in report.failures}
    for name in [*report.methods, *report.sets]:
        if not report.points(name):
            lines.append([report.label(name), "", FAILED if name in failed else "", *[""] * len(report.metrics)])
            continue
        _, nfe = best_of(report, name)
        own = cells(report.results, name, report.headline)
        values = own[own.nfe == nfe].value
        others = [_at(report, name, nfe, metric) + _fit(report, name, nfe, metric) for metric in report.metrics[1:]]
        least = f"{report.linked(number(values.min()), name, nfe)} (of {len(values)})"
        title = report.label(name) + (" (one repetition)" if len(values) == 1 else "")
        lines.append([title, nfe or "unknown", _at(report, name, nfe), least, *others])
    floors = [floor_text(report, metric) for metric in report.metrics]
    lines.append([REAL, "", floors[0], "", *floors[1:]])
    return table(header, lines)


def _at(report: Report, name: str, nfe: int, metric: str | None = None) -> str:
    """A metric (None: the score) of a curve or image set at a counted NFE."""
    return report.linked(stated(report.points(name, metric)[nfe]), name, nfe, metric)


def _fit(report: Report, name: str, nfe: int, metric: str) -> str:
    """The mean error of fit of an extrapolation."""
    if metric != "fd_infinity":
        return ""
    found = of_curve(report.results, name)
    found = found[found.metric == metric]
    return f" (fit {number(found[found.nfe == nfe].se.mean())})"


def methods_differences(report: Report) -> Markdown:
    """Each method's paired difference from the first one, by budget."""
    base, *others = report.methods
    if not others:
        return Markdown("")
    budgets = report.budgets(others)
    lines = [[report.label(name), *_differences(report, name, base, budgets)] for name in others]
    return table([f"minus {report.label(base)}", *(f"budget {b}" for b in budgets)], lines)


def _differences(report: Report, name: str, base: str, budgets: list[int]) -> list[str]:
    texts = []
    for budget in budgets:
        if len(report.having([name, base], budget)) == 2:
            texts.append(report.compared(name, base, budget))
        else:
            base_failed = budget in report.curves[name]["nfe"] and report.missing(base, budget)
            texts.append(report.missing(name, budget) or (f"base {FAILED}" if base_failed else ""))
    return texts


def warning(report: Report) -> str:
    """What so few samples mean for the numbers, where they are few; else nothing.

    Of points nothing: their score is no distance between moments, and the floor has its bias.
    """
    if report.of_points or not report.finished:
        return ""
    name, nfe, best = best_of_all(report)
    measured = report.points(name, "fd")[nfe].mean
    bias, dimensions = measured - best, report.extractor["dimensions"]
    small = few(report.samples, dimensions)
    if not small and bias < BIASED * abs(best):
        return ""
    return (
        f"{small}{report.metric('fd')}, the plain distance, is too large by about {number(bias)} at the best point, "
        f"where {number(measured)} is measured and {number(best)} is left without that bias; its values at other "
        "counts of samples can't be compared with these."
    )


def linearity(report: Report) -> str:
    """Whether real-real Frechet distances fall in proportion to the counts, as scaling the floor takes for granted."""
    found = report.reference
    half, quarter = found["floor"]["fd_corrected"]["mean"], found["quarter_fd_corrected"]
    if not quarter:
        return ""
    return (
        f"Between quarters of {found['quarter_images']} images it is {number(quarter['mean'])}, "
        f"{number(quarter['mean'] / half)} times as much; 2 would be in exact proportion."
    )


def ablation(report: Report, title: str, names: list[str]) -> dict[str, Any]:
    """One axis: its figure, and a table of each row's difference from its base by budget."""
    bases = list(dict.fromkeys(report.curves[name]["base"] for name in names))
    labels = {name: f"{name} (base)" for name in bases} | {n: f"{n}: {report.choice(n)}" for n in names}
    file = ablation_file(title)
    points = {labels[name]: report.points(name) for name in report.with_points(list(labels))}
    colours = {label: i for i, label in enumerate(labels.values())}
    if points:
        curves_figure(report.figures / file, points, report.score, colours, report.score_floor)
    budgets = report.budgets(names)
    lines = []
    for name in names:
        base = report.curves[name]["base"]
        texts = _differences(report, name, base, budgets)
        lines.append([code(name), report.choice(name), code(base), *texts])
    header = ["curve", "differs in", "base", *(f"budget {b}" for b in budgets)]
    return {"title": title, "file": file if points else "", "table": table(header, lines)}


def effects(report: Report) -> Markdown:
    """The design table: a line a row, what it changes, and what that does at a small budget and at the largest."""
    lines = []
    for title, names in report.ablations.items():
        for name in names:
            base = report.curves[name]["base"]
            shared = report.common_budgets([name, base]) or report.budgets([name])
            low, high = low_and_high(shared)[0], shared[-1]
            few = [low if low < high else shared[0]] if len(shared) > 1 else []
            texts = [*([] if few else [""]), *(_effect(report, name, base, budget) for budget in (*few, high))]
            figure = Markdown(f"[{escape(title)}](figures/{ablation_file(title)})") if _drawn(report, names) else title
            lines.append([code(name), report.choice(name), code(base), *texts, figure])
    header = ["curve", "differs in", "base", "effect at few evaluations", "effect at the most", "filed under"]
    return table(header, lines) if lines else Markdown("")


def _effect(report: Report, name: str, base: str, budget: int) -> str:
    """The difference from the base at a budget, and what it is called."""
    [text] = _differences(report, name, base, [budget])
    if len(report.having([name, base], budget)) < 2:
        return f"{budget}: {text}" if text else ""
    found = difference(report.cells(name, budget), report.cells(base, budget))
    verdict = "" if found is None or is_tie(found) else ", better" if found.mean < 0 else ", worse"
    return f"{budget}: {text}{verdict}{report.once(name, base, budget) if verdict else ''}"


def ablation_file(title: str) -> str:
    return f"ablation_{_slug(title)}.png"


def _slug(title: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in title)


def _drawn(report: Report, names: list[str]) -> bool:
    """Whether an axis has a figure: any of its rows or of their bases has a point."""
    return bool(report.with_points([*names, *(report.curves[name]["base"] for name in names)]))


def reach(report: Report) -> dict[str, Any] | None:
    """For each curve the smallest NFE that comes near its own best score, and near the study's; None without any."""
    if not report.finished:
        return None
    name, nfe, best = best_of_all(report)
    lines: list[list[object]] = []
    failed = {failure.curve for failure in report.failures}
    for curve in report.distinct:
        if not report.points(curve):
            lines.append([code(curve), FAILED if curve in failed else "", *[""] * (1 + 2 * len(SHARES))])
            continue
        own, own_nfe = best_of(report, curve)
        found = [*reached(report, curve, own), *reached(report, curve, best)]
        lines.append(
            [
                code(curve),
                report.linked(number(own), curve, own_nfe),
                own_nfe,
                *("not reached" if n is None else n for n in found),
            ]
        )
    within = [f"within {share:.0%} of {whose}" for whose in ("its own best", "the study's") for share in SHARES]
    return {
        "best": f"{number(best)}, by {report.label(name)} at NFE {nfe}",
        "table": table(["curve", "its best", "at NFE", *within], lines),
    }


def fronts(report: Report) -> list[dict[str, Any]]:
    """The Pareto fronts of the score against NFE, image sets included, and, where measured, against seconds."""
    points = {(name, nfe): p for name in [*report.distinct, *report.sets] for nfe, p in report.points(name).items()}
    costs = {"NFE": {key: float(key[1]) for key in points if key[1]}}
    seconds = {(row.curve, row.nfe): row.seconds_per_image for row in report.timings.itertuples()}
    costs[f"seconds per {report.thing}"] = {key: seconds[key] for key in points if key in seconds}
    found = []
    for title, cost in costs.items():
        if not cost:
            continue
        front = pareto((cost[key], points[key].mean, key) for key in cost)
        lines = [[f"{x:.3g}", code(curve), nfe, _at(report, curve, nfe)] for x, _, (curve, nfe) in front]
        file = f"front_{title.replace(' ', '_')}.png"
        front_figure(
            report.figures / file,
            [(cost[key], points[key].mean, f"{key[0]} ({key[1]})") for key in cost],
            [(x, y, f"{curve} ({nfe})") for x, y, (curve, nfe) in front],
            title,
            report.score,
        )
        header = [title, "curve", "at NFE", report.score]
        note = _clock(report, cost) if title != "NFE" else ""
        found.append({"title": title, "file": file, "table": table(header, lines), "note": note})
    return found


def _clock(report: Report, seconds: dict[tuple[str, int], float]) -> str:
    """How far seconds lie apart where networks and evaluations are the same, so that they should be nearly equal."""
    alike: dict[tuple[str, int], list[float]] = {}
    for (curve, nfe), value in seconds.items():
        alike.setdefault((report.curves[curve]["model"], nfe), []).append(value)
    ratio = max((max(values) / min(values) for values in alike.values()), default=1.0)
    return (
        f"A clock measured these, in turns, the least of several times. Samplers of one network with one NFE lie up to "
        f"{percent(ratio - 1)} apart, by what they do besides and by chance; points of the front that are nearer to "
        "each other are not told apart."
    )


def best_samplers(report: Report) -> Markdown:
    """By budget the best of each model's samplers and its ties, of models that are sampled in two ways or more."""
    budgets = report.budgets([name for names in report.samplers.values() for name in names])
    lines = [
        [code(model), *(_best_sampler(report, names, b) for b in budgets)] for model, names in report.samplers.items()
    ]
    return table(["model", *(f"budget {b}" for b in budgets)], lines) if lines else Markdown("")


def _best_sampler(report: Report, names: list[str], budget: int) -> Markdown:
    if not (best := report.best(names, budget)):
        return Markdown(next((FAILED for name in names if report.missing(name, budget)), ""))
    leader, *ties = best
    text = f"{code(leader)} {escape(report.stated_at(leader, budget))}"
    if len(report.having(names, budget)) == 1:
        return Markdown(f"{text}, alone")
    return Markdown(text + (f"; tie: {', '.join(map(code, ties))}" if ties else ""))


def failures(report: Report) -> Markdown:
    """The cells that failed: those of one curve, NFE and reason in one line."""
    seeds: dict[tuple[str, int, str], list[tuple[int, int]]] = {}
    for failure in report.failures:
        seeds.setdefault((failure.curve, failure.nfe, failure.reason), []).append(failure.seeds)
    lines = [[code(curve), nfe, ", ".join(map(str, own)), reason] for (curve, nfe, reason), own in seeds.items()]
    return table(["curve", "NFE", "seeds", "reason"], lines)


def spreads(report: Report) -> Markdown:
    """What retraining and what resampling add, of curves that have every training seed with every sampling seed."""
    lines = []
    for name, row in report.curves.items():
        for budget in sorted(b for b in row["nfe"] if report.having([name], b)):
            if found := spread(report.cells(name, budget)):
                mean, *others = map(number, found)
                lines.append([code(name), budget, report.linked(mean, name, report.nfe(name, budget)), *others])
    header = ["curve", "budget", f"mean {report.score}", "sd of retraining", "sd of resampling"]
    return table(header, lines) if lines else Markdown("")


def costs(report: Report) -> Markdown:
    """What an evaluation costs, and a sample at the NFE of each curve's best score, in seconds too where measured."""
    seconds = {(row.curve, row.nfe): f"{row.seconds_per_image:.3g}" for row in report.timings.itertuples()}
    thing, lines = report.thing, []
    for name in report.with_points(report.distinct):
        model = report.curves[name]["model"]
        mean, nfe = best_of(report, name)
        parameters, flops = (report.training[model][key] for key in ("parameters", "flops"))
        own: list[object] = [code(name), number(mean), nfe, code(model), f"{parameters:,}", mega(flops)]
        time = [seconds.get((name, nfe), "not measured")] if seconds else []
        lines.append([*own, mega(flops * nfe), *time])
    header = ["curve", f"its best {report.score}", "at NFE", "model", "parameters", "MFLOPs per evaluation"]
    header += [f"MFLOPs per {thing}", *([f"seconds per {thing}"] if seconds else [])]
    return table(header, lines) if lines else Markdown("")


def timed_on(report: Report) -> str:
    """How seconds were measured, and of how many curves they are missing."""
    seconds = f"Seconds per {report.thing}"
    if report.timings.empty:
        return f"{seconds} are measured by make timings, which has not been run for the curves as they stand."
    missing = sorted(set(report.curves) - set(report.timings.curve))
    how = (
        f"{seconds} were measured on one thread of {listed(sorted(set(report.timings.device)))}, in batches of "
        f"{listed([str(n) for n in sorted(set(report.timings.images))])}, each the least of several times."
    )
    return how + (f" They are missing for {listed(missing)}." if missing else "")


def agreement(report: Report) -> Markdown:
    """The largest relative difference between this study's numbers and either library's, by metric."""
    named = [*report.curves, *report.sets]
    if missing := [name for name in named if name not in report.agreement]:
        raise StudyError(f"{missing[0]}: not compared with the libraries yet; run `dvc repro`")
    rows = [row | {"curve": name} for name in named for row in report.agreement[name]]
    lines = []
    for library, metric in dict.fromkeys((row["library"], row["metric"]) for row in rows):
        own = [row for row in rows if (row["library"], row["metric"]) == (library, metric)]
        worst = max(own, key=lambda row: row["difference"])
        values = f"{worst['ours']:.8g} against {worst['theirs']:.8g}"
        apart = f"{worst['difference']:.1e}" if worst["difference"] else 0
        lines.append([library, report.metric(metric), len(own), apart, code(worst["curve"]), values])
    return table(["library", "metric", "cells", "largest relative difference", "in", "ours against theirs"], lines)


def shown_samples(report: Report, name: str, steps: int) -> np.ndarray:
    """What was kept of a curve's first repetition with so many steps: images (n, C, H, W), uint8, or points (n, 2)."""
    train_seed, sample_seed = report.curves[name]["seeds"][0]
    kept = load_file(report.paths.curve(name) / "images.safetensors")
    found: np.ndarray = kept[f"{steps}/{train_seed}/{sample_seed}"]
    return found


def samples(report: Report) -> int:
    """Draw the samples by method; returns how many of each set are shown, 0 where no method has a point."""
    grid = {}
    for name in report.with_points(report.methods):
        points = cells(report.results, name, report.headline)[["steps", "nfe"]].drop_duplicates().sort_values("nfe")
        shown = points.head(SHOWN_BUDGETS).itertuples()
        grid[report.label(name)] = {int(p.nfe): shown_samples(report, name, p.steps) for p in shown}
    if grid and report.of_points:
        points_figure(report.figures / "samples.png", load_prepared(report.paths.data).images.numpy(), grid)
    elif grid:
        samples_figure(report.figures / "samples.png", grid)
    return min((len(tiles) for row in grid.values() for tiles in row.values()), default=0)


def design_table(rows: dict[str, Any], schema: type[Row], first: list[str], unset: dict[str, str]) -> dict[str, str]:
    """The design choices in which any row differs from another, the values that differ from a row's base in bold.

    Below it, as a sentence, the choices that are the same everywhere. unset: what a None stands for, by key
    ("" for all other keys).
    """
    every = first + [key for key, field in schema.model_fields.items() if field.title]
    shown = {
        name: {key: unset.get(key, unset[""]) if row[key] is None else row[key] for key in every}
        for name, row in rows.items()
    }
    first_row = next(iter(shown.values()))
    keys = [key for key in every if any(row[key] != first_row[key] for row in shown.values())]
    lines = []
    for name, row in rows.items():
        base, own = shown[row["base"]], shown[name]
        texts = [plain(own[key]) if own[key] == base[key] else bold(plain(own[key])) for key in keys]
        lines.append([code(name), code(row["base"]), *texts])
    common = "; ".join(f"{key} {plain(first_row[key])}" for key in every if key not in keys)
    return {"table": table(["row", "base", *keys], lines), "common": f"All others: {common}." if common else ""}


def machines(report: Report) -> list[str]:
    """On what curves were measured and models were trained, the commonest first."""
    found: dict[str, list[str]] = {}
    trained = [summary["machine"] for summary in report.training.values()]
    for kind, used in (("curve", list(report.machines.values())), ("model", trained)):
        for machine in used:
            libraries = ", ".join(f"{key} {value}" for key, value in machine["libraries"].items())
            where = f"{machine['device']}, {machine['system']}, Python {machine['python']}, {libraries}"
            found.setdefault(where, []).append(kind)
    return [
        f"{kinds.count('curve')} curves or image sets and {kinds.count('model')} models on {where}"
        for where, kinds in sorted(found.items(), key=lambda item: -len(item[1]))
    ]
