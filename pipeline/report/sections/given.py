"""The section on posterior samplers: distances to exact posteriors, calibration, draws, tuning, and held-out images."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pipeline.data.dataset import load_prepared
from pipeline.evaluation.given import EXACT, HELDOUT, LEVELS, PRIOR, SHOWN_DRAWS
from pipeline.evaluation.given_rows import MeasurementRow, described_keys
from pipeline.report.comparisons import WORDS
from pipeline.report.figures.given import Draws, calibration_figure, distances_figure, grid_figure, planes_figure
from pipeline.report.figures.lines import Line
from pipeline.report.given import COVERAGES, DISTANCE, SCORE, GivenResults, Point
from pipeline.report.page import Markdown, bold, code, escape, table
from pipeline.report.results import FAILED
from pipeline.report.statistics import Interval
from pipeline.report.study import Report
from pipeline.report.text import MANY, listed, number, percent, plain, stated, stated_verdict
from pipeline.report.verdicts import Verdict
from pipeline.sampling.measurement import Linear

NOT_FINITE = "not finite"
SCORES = {
    "energy_distance": "energy distance",
    "mean_error": "error of mean",
    "std_error": "error of std",
    **{name: f"{level:.0%} coverage" for name, level in COVERAGES.items()},
    "misfit": "misfit",
    SCORE: "energy score",
}
OF_IMAGES = {
    SCORE: SCORES[SCORE],
    "psnr": "PSNR of the mean, dB",
    "feature_distance": "feature distance",
    "misfit": "misfit",
    "coverage_90": SCORES["coverage_90"],
}
BILL = {"calls": "calls", "products": "products", "cg_steps": "CG steps", "cost": "cost"}
GRID = np.linspace(0.05, 0.95, 19)  # levels of the calibration plot
BEST_ORACLES, BEST_NETWORKS = 3, 2  # rows whose draws are shown
DRAWN = 2  # draws of each kind among images
SAME = "equal because nothing differs"  # as if tuning keeps the keys, or a single step is the same with two solvers


def section(report: Report) -> dict[str, Any] | None:
    """The section's contents; draws the figures. None without posterior samplers."""
    given = report.given
    if given is None:
        return None
    return {
        "problems": given.given.problems,
        "draws": given.given.draws,
        "oracles": bool(given.oracles),
        "networks": bool(given.networks),
        "figures": _distance_figures(report, given),
        "measurements": [_measurement(given, name) for name in given.measurements],
        "calibration": _calibration_figures(report, given),
        "samples": _samples(report, given),
        "tuning": _tuning(given),
        "network_ratios": _ratios(given, given.network_verdicts, given.network_pairs),
        "sampler_ratios": _ratios(given, given.sampler_verdicts, given.sampler_pairs),
        "heldout": _heldout(given),
        "failures": _failures(given),
        "findings": [
            *_leaders(given),
            *_floors(given),
            *_tuned(given),
            *_calibrated(given),
            *_with_networks(given),
            *_samplers(given),
            *_unseen(given),
            *_failed(given),
        ],
    }


def described(row: MeasurementRow) -> str:
    """A measurement in words: "mask, kept 0, std 0.1"."""
    values = row.model_dump(exclude={"operator", "std"}, exclude_none=True)
    keys = [f"{key} {plain(value)}" for key, value in values.items()]
    return ", ".join([row.operator, *keys, f"std {plain(row.std)}"])


def ranged(found: Interval) -> str:
    """A geometric mean with the ends of its 95% interval."""
    ends = "" if math.isnan(found.low) else f" ({number(found.low)} to {number(found.high)})"
    return number(found.mean) + ends


# Tables


def _measurement(given: GivenResults, name: str) -> dict[str, Any]:
    exact = given.exact(name)
    floor = given.estimate(exact, DISTANCE) if exact else None
    return {
        "name": code(name),
        "text": described(given.rows.measurements[name]),
        "floor": ranged(floor) if floor else "",
        "single": int((~given.spread[name]).sum()) if name in given.spread else 0,
        "oracles": _distances(given, name, given.oracles),
        "networks": _distances(given, name, given.networks),
        "scores": _scores(given, name),
    }


def _distances(given: GivenResults, measurement: str, names: Sequence[str]) -> Markdown:
    """One line per row: the distance at each budget. In bold: the row may be the best. Empty without rows."""
    names = given.measured(names, measurement, PRIOR)
    if not any(DISTANCE in point.values for key, point in given.points.items() if key.row in names):
        return Markdown("")
    budgets = given.budgets(names, measurement, PRIOR)
    best = {budget: given.best(names, measurement, PRIOR, budget) for budget in budgets}
    models = any(given.row(name).model for name in names)
    lines = []
    for name in names:
        row, cells = given.row(name), []
        for budget in budgets:
            text = escape(_distance(given, name, measurement, budget))
            cells.append(bold(Markdown(text)) if name in best[budget] else Markdown(text))
        lines.append([code(name), row.posterior, *([row.model] if models else []), *cells])
    head = ["row", "method", *(["model"] if models else []), *(f"cost {budget}" for budget in budgets)]
    return table(head, lines)


def _distance(given: GivenResults, name: str, measurement: str, budget: int) -> str:
    point = given.point(name, measurement, PRIOR, budget)
    if point is None:
        return FAILED if given.failed(name, measurement, PRIOR, budget) else ""
    found = given.estimate(point, DISTANCE)
    return ranged(found) if found else ""


def _scores(given: GivenResults, measurement: str) -> Markdown:
    """One line per row at its largest budget: all other scores, and the bill of a draw. Exact draws come first."""
    exact, lines = given.exact(measurement), list[list[object]]()
    if exact:
        lines.append([EXACT, "", "", *_values(given, exact, SCORES), *("" for _ in BILL)])
    for name in given.measured(list(given.entries), measurement, PRIOR):
        budget = given.largest(name, measurement, PRIOR)
        point, verdict = given.point(name, measurement, PRIOR, budget), given.against_exact.get((name, measurement))
        if point is None:
            lines.append([code(name), budget, FAILED, *("" for _ in [*SCORES, *BILL])])
            continue
        bill = [getattr(point.line, key) for key in BILL]
        ratio = stated_verdict(verdict) if verdict else ""
        lines.append([code(name), budget, ratio, *_values(given, point, SCORES), *bill])
    head = ["row", "budget", "distance relative to exact draws", *SCORES.values(), *BILL.values()]
    return table(head, lines) if lines else Markdown("")


def _values(given: GivenResults, point: Point, names: Mapping[str, str]) -> list[str]:
    return [_value(given, point, name) for name in names]


def _value(given: GivenResults, point: Point, score: str) -> str:
    if score not in point.values:
        return ""
    found = given.estimate(point, score)
    if found is None:
        return NOT_FINITE
    if score in COVERAGES:
        return percent(found.mean) + ("" if math.isnan(found.low) else f" ± {percent(found.half_width)}")
    return stated(found)


def _ratios(
    given: GivenResults, verdicts: Mapping[tuple[str, str, int], Verdict], pairs: Mapping[str, str]
) -> Markdown:
    """One line per row and measurement: the verdicts on its distance relative to its base, by budget."""
    budgets = sorted({budget for *_, budget in verdicts})
    lines = []
    for name, base in pairs.items():
        for measurement in given.measurements:
            own = {budget: verdicts.get((name, measurement, budget)) for budget in budgets}
            if any(own.values()):
                cells = [stated_verdict(found) if found else "" for found in own.values()]
                lines.append([code(name), code(base), code(measurement), *cells])
    head = ["row", "relative to", "measurement", *(f"cost {budget}" for budget in budgets)]
    return table(head, lines) if lines else Markdown("")


def _tuning(given: GivenResults) -> dict[str, Any] | None:
    """What tuning tried, what it chose and cost, and what it gained; None without tuned rows."""
    tuned = {name: records for name, records in given.tuned.items() if records and name in given.entries}
    if not tuned:
        return None
    total = sum(record["cost"] for records in tuned.values() for record in records)
    return {
        "candidates": given.given.candidates,
        "validation": given.given.validation,
        "draws": given.given.validation_draws,
        "cost": f"{total:,}",
        "tables": [
            {"name": code(name), "table": found}
            for name in given.measurements
            if (found := _chosen(given, tuned, name))
        ],
        "ratios": _ratios(given, given.tuning, given.tuned_pairs),
    }


def _chosen(given: GivenResults, tuned: Mapping[str, list[dict[str, Any]]], measurement: str) -> Markdown:
    """One line per row: its keys at each budget with their validation scores, its trials and their cost."""
    budgets = sorted({own["nfe"] for records in tuned.values() for own in records if own["measurement"] == measurement})
    lines = []
    for name, records in tuned.items():
        own = {record["nfe"]: record for record in records if record["measurement"] == measurement}
        if own:
            ranges = given.row(name).tune
            cells = [_keys(own[budget], ranges) if budget in own else "" for budget in budgets]
            tried, cost = (sum(record[key] for record in own.values()) for key in ("tried", "cost"))
            lines.append([code(name), *cells, tried, f"{cost:,}"])
    head = ["row", *(f"cost {budget}" for budget in budgets), "trials", "cost of all draws"]
    return table(head, lines) if lines else Markdown("")


def _keys(record: Mapping[str, Any], ranges: Mapping[str, tuple[float, float]]) -> str:
    """The chosen keys, a mark if one is at an end of its range, and the validation scores."""
    default, score = (NOT_FINITE if record[key] is None else number(record[key]) for key in ("default", "score"))
    at_end = any(record["keys"][key] in ends for key, ends in ranges.items())
    return f"{described_keys(record['keys'])}{', end of range' if at_end else ''} ({default} → {score})"


def _heldout(given: GivenResults) -> list[dict[str, Any]]:
    """For each measurement, a table of the scores on held-out images; empty without any."""
    return [
        {"name": code(name), "table": found} for name in given.measurements if (found := _heldout_table(given, name))
    ]


def _heldout_table(given: GivenResults, measurement: str) -> Markdown:
    """One line per row at its largest budget. In bold: it may have the lowest energy score at this budget."""
    names, lines = given.measured(list(given.entries), measurement, HELDOUT), []
    for name in names:
        budget = given.largest(name, measurement, HELDOUT)
        point = given.point(name, measurement, HELDOUT, budget)
        texts = _values(given, point, OF_IMAGES) if point else [FAILED, *("" for _ in [*OF_IMAGES][1:])]
        best = name in given.best(names, measurement, HELDOUT, budget, SCORE)
        first = bold(texts[0]) if best else texts[0]
        lines.append([code(name), given.row(name).posterior, given.row(name).model, budget, first, *texts[1:]])
    return table(["row", "method", "model", "budget", *OF_IMAGES.values()], lines) if lines else Markdown("")


def _failures(given: GivenResults) -> Markdown:
    lines = [
        [code(row), code(measurement), part, listed([str(budget) for budget in sorted(budgets)]), reason]
        for (row, measurement, part, reason), budgets in given.failures.items()
    ]
    return table(["row", "measurement", "part", "budgets", "reason"], lines) if lines else Markdown("")


# Figures


def _distance_figures(report: Report, given: GivenResults) -> list[dict[str, str]]:
    """Distance against cost and against calls alone, for the exact denoiser and for networks."""
    looks = {
        name: (_colour(given, name), name in given.tuned_pairs.values())
        for name in sorted(given.oracles, key=lambda name: _colour(given, name))
        if name not in given.sampler_pairs
    }
    of_networks = {name: (_colour(given, name), name in given.tuned_pairs.values()) for name in given.networks}
    found = []
    for kind, own, what in (
        ("oracles", looks, "the exact denoiser"),
        ("networks", of_networks, "trained networks"),
    ):
        for x, title in (("cost", "cost: calls + 2 products"), ("calls", "network calls")):
            panels = _panels(given, own, x)
            if panels:
                path = report.figures / f"given_{kind}_{x}.png"
                distances_figure(path, panels, _floors_of(given), (title, "distance to the exact posterior"))
                found.append({"file": path.name, "title": f"Distance to the exact posterior against {x}, with {what}"})
    return found


def _colour(given: GivenResults, name: str) -> int:
    """The place of a row's colour: that of its method with the exact denoiser, or its own among networks."""
    if name in given.networks:
        return given.networks.index(name)
    methods = list(dict.fromkeys(given.row(other).posterior for other in given.oracles))
    return methods.index(given.row(name).posterior)


def _panels(given: GivenResults, looks: Mapping[str, tuple[int, bool]], x: str) -> dict[str, dict[str, Line]]:
    """measurement -> {row: line} of all points with a distance."""
    panels = {}
    for measurement in given.measurements:
        lines = {}
        for name, (place, dashed) in looks.items():
            points = []
            for budget in given.budgets([name], measurement, PRIOR):
                point = given.point(name, measurement, PRIOR, budget)
                found = given.estimate(point, DISTANCE) if point else None
                if point and found:
                    points.append((float(getattr(point.line, x)), found.mean, 0.0))
            if points:
                lines[name] = Line(sorted(points), place, dashed)
        if lines:
            panels[measurement] = lines
    return panels


def _floors_of(given: GivenResults) -> dict[str, float]:
    found = {}
    for measurement in given.measurements:
        exact = given.exact(measurement)
        own = given.estimate(exact, DISTANCE) if exact else None
        if own:
            found[measurement] = own.mean
    return found


def _calibration_figures(report: Report, given: GivenResults) -> list[dict[str, str]]:
    """Observed coverage by level, for one row of each method with the exact denoiser, and for networks."""
    found = []
    for kind, names, what in (
        ("oracles", given.variants, "the exact denoiser"),
        ("networks", given.networks, "trained networks"),
    ):
        panels = {}
        for measurement in given.measurements:
            lines = {}
            for name in given.measured(names, measurement, PRIOR):
                point = given.point(name, measurement, PRIOR, given.largest(name, measurement, PRIOR))
                if point:
                    lines[name] = Line(_coverage(point), _colour(given, name))
            if lines:
                panels[measurement] = lines
        if panels:
            path = report.figures / f"given_calibration_{kind}.png"
            calibration_figure(path, panels)
            found.append({"file": path.name, "title": f"Observed against nominal coverage, with {what}"})
    return found


def _coverage(point: Point) -> list[tuple[float, float, float]]:
    inside = np.abs(2 * point.ranks - 1)
    return [(float(level), float((inside <= level).mean()), 0.0) for level in GRID]


def _shown(given: GivenResults, measurement: str, part: str) -> list[tuple[str, Point]]:
    """The rows with the lowest means at the largest budget, of the exact denoiser and of networks."""
    score = DISTANCE if part == PRIOR else SCORE
    found = []
    for names, count in ((given.oracles, BEST_ORACLES), (given.networks, BEST_NETWORKS)):
        own = given.measured(names, measurement, part)
        budget = max(given.budgets(own, measurement, part), default=0)
        points = [
            (float(point.values[score].mean()), name, point)
            for name in own
            if (point := given.point(name, measurement, part, budget)) and score in point.values
        ]
        found += [(name, point) for _, name, point in sorted(points, key=lambda entry: entry[:2])[:count]]
    return found


def _samples(report: Report, given: GivenResults) -> list[dict[str, str]]:
    """The first draws of the best rows, beside the truth and exact draws."""
    if len(given.shape) == 3:
        return [
            {"file": file, "title": f"Draws given {measurement}, {words}"}
            for measurement in given.measurements
            for part, words in ((PRIOR, "with the exact posterior"), (HELDOUT, "held-out images"))
            if (file := _image_draws(report, given, measurement, part))
        ]
    rows = {}
    for measurement in given.measurements:
        shown, place = _shown(given, measurement, PRIOR), f"{measurement}/{PRIOR}"
        if shown and f"{place}/exact" in given.problems:
            panels = [Draws("exact", given.problems[f"{place}/exact"][:, :SHOWN_DRAWS])]
            panels += [Draws(name, point.shown[:, :SHOWN_DRAWS]) for name, point in shown]
            rows[measurement] = given.problems[f"{place}/x0"], panels
    if not rows or math.prod(given.shape) != 2:
        return []
    path = report.figures / "given_draws.png"
    planes_figure(path, load_prepared(report.paths.data).images.numpy().reshape(-1, 2)[:2000], rows)
    return [{"file": path.name, "title": "Draws given a measurement, by measurement and row"}]


def _image_draws(report: Report, given: GivenResults, measurement: str, part: str) -> str:
    """Draw images by problem: truth, y as an image, exact mean and draws, and those of the best rows."""
    shown, place = _shown(given, measurement, part), f"{measurement}/{part}"
    if not shown or f"{place}/x0" not in given.problems:
        return ""
    columns = {"truth": given.problems[f"{place}/x0"]}
    operator, y = given.rows.measurements[measurement].build(given.shape), given.problems[f"{place}/y"]
    if isinstance(operator, Linear):
        columns["y"] = operator.pseudo_inverse(torch.from_numpy(y).double()).flatten(1).numpy()
    elif y.shape == columns["truth"].shape:
        columns["y"] = y
    if f"{place}/exact" in given.problems:
        columns |= _means_and_draws(EXACT, given.problems[f"{place}/exact"])
    for name, point in shown:
        columns |= _means_and_draws(name, point.shown)
    images = {title: own.reshape(-1, *given.shape) for title, own in columns.items()}
    path = report.figures / f"given_{measurement}_{part}.png"
    grid_figure(path, images)
    return path.name


def _means_and_draws(name: str, shown: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of the mean and the first draws; shown: draws with the mean as the last one, (P, S + 1, d)."""
    found = {f"{name}\nmean": shown[:, -1]}
    return found | {f"{name}\ndraw {place + 1}": shown[:, place] for place in range(min(DRAWN, shown.shape[1] - 1))}


# Findings


def _any_of(names: Sequence[str]) -> str:
    """The rows that may be the best, the lowest mean first."""
    first, *others = names
    if not others:
        return f"{first} alone"
    if len(others) < MANY:
        return f"{', '.join([first, *others[:-1]])} or {others[-1]}"
    return f"{first} (lowest mean) or any of {len(others)} others in bold in its table"


def _counted(names: Sequence[str], total: int) -> str:
    """Few names, or the number of many."""
    return listed(list(names)) if len(names) <= MANY else f"{len(names)} of {total} rows"


def _counts(verdicts: Sequence[Verdict]) -> str:
    """How many verdicts have each word: "60 are better, 3 are worse"."""
    words = [SAME if verdict.equal else verdict.word for verdict in verdicts]
    parts = [f"{words.count(word)} {'is' if words.count(word) == 1 else 'are'} {word}" for word in (*WORDS, SAME)]
    return ", ".join(part for word, part in zip((*WORDS, SAME), parts, strict=True) if word in words)


def _leaders(given: GivenResults) -> list[str]:
    """The rows that may be the best at the largest and at the smallest budget, for the exact denoiser and networks."""
    sentences: list[str] = []
    for names, what in ((given.oracles, "the exact denoiser"), (given.networks, "trained networks")):
        for place, word in ((-1, "largest"), (0, "smallest")):
            text = _best_at(given, names, PRIOR, place, DISTANCE)
            start = f"Rows with {what} that may have the lowest distance to the exact posterior at the {word} cost"
            start = start if sentences else f'{start}, as "Given a measurement" defines distance and cost'
            sentences += [f"{start}{text}"] if text else []
    return sentences


def _best_at(given: GivenResults, names: Sequence[str], part: str, place: int, score: str) -> str:
    """The rows that may be the best by measurement, at the budget in this place: " (243): given noisy, a or b."."""
    found = {}
    for measurement in given.measurements:
        budgets = given.budgets(names, measurement, part)
        best = given.best(names, measurement, part, budgets[place], score) if budgets else []
        if best:
            found[measurement] = budgets[place], _any_of(best)
    costs = {budget for budget, _ in found.values()}
    several = len(costs) > 1
    parts = [f"given {name}{f' ({budget})' if several else ''}, {text}" for name, (budget, text) in found.items()]
    return f"{'' if several else f' ({costs.pop()})'}: {'; '.join(parts)}." if found else ""


def _floors(given: GivenResults) -> list[str]:
    """The lowest mean of the exact denoiser against exact draws, and the rows that are not told apart from these."""
    leads, same = [], {}
    for measurement in given.measurements:
        names = [name for name in given.oracles if (name, measurement) in given.against_exact]
        if not names:
            continue
        ratios = {name: given.against_exact[name, measurement] for name in names}
        lead = min(names, key=lambda name: ratios[name].effect.mean)
        leads.append(f"given {measurement}, {lead}, {stated_verdict(ratios[lead])}")
        same[measurement] = [name for name in names if ratios[name].word != "worse"]
    if not leads:
        return []
    apart = [measurement for measurement, names in same.items() if not names]
    near = [f"given {name}, {_counted(own, len(given.oracles))}" for name, own in same.items() if own]
    text = f"Lowest distances with the exact denoiser, relative to further exact draws: {'; '.join(leads)}."
    text += " Each is the lowest of several rows, and so too low by chance; its interval ignores this."
    text += (
        f" Rows that a corrected test does not show to be worse than exact draws: {'; '.join(near)}." if near else ""
    )
    text += f" All rows are worse than exact draws given {listed(apart)}." if apart else ""
    return [text]


def _tuned(given: GivenResults) -> list[str]:
    """Whether tuning helps on the measurements of the tables."""
    if not given.tuning:
        return []
    start = f"Tuned rows, relative to the same rows without tuning, in {len(given.tuning)} comparisons of distances"
    worse = [f"{name} given {m} at {b}" for (name, m, b), verdict in given.tuning.items() if verdict.word == "worse"]
    helped = {name for (name, *_), verdict in given.tuning.items() if verdict.word == "better"}
    changed = {name for (name, *_), verdict in given.tuning.items() if not verdict.equal}
    never = [name for name in given.tuned_pairs if name in changed - helped]
    text = f"{start}: {_counts(list(given.tuning.values()))}."
    text += f" Worse: {listed(worse)}." if 0 < len(worse) <= MANY else ""
    text += f" With other keys but never better: {listed(never)}." if never else ""
    return [text]


def _calibrated(given: GivenResults) -> list[str]:
    """For which rows central intervals cover less or more than their level."""
    if not given.calibration:
        return []
    parts = []
    for measurement in given.measurements:
        own = {name: word for (name, at), word in given.calibration.items() if at == measurement}
        texts = []
        for word in ("less", "more"):
            names = [name for name, found in own.items() if found == word]
            texts += [f"{word} for {_counted(names, len(own))}"] if names else []
        parts += [f"given {measurement}, {' and '.join(texts) or 'different for none'}"] if own else []
    level = f"{LEVELS[-1]:.0%}"
    return [
        f"Share of truths in central {level} intervals at the largest cost, relative to {level}, corrected for "
        f"{len(given.calibration)} tests: {'; '.join(parts)}. The others are not told apart from {level}."
    ]


def _with_networks(given: GivenResults) -> list[str]:
    """Networks against the exact denoiser with the same method and keys."""
    sentences = []
    models = dict.fromkeys(given.row(name).model for name in given.network_pairs)
    for model in models:
        own = [
            found
            for (name, measurement, budget), found in given.network_verdicts.items()
            if given.row(name).model == model and given.same_keys(name, measurement, budget)
        ]
        if own:
            what = f"Distances of rows with the network {model}, relative to the same rows with the exact denoiser"
            sentences.append(f"{what}, in {len(own)} comparisons with equal keys: {_counts(own)}.")
    return sentences


def _samplers(given: GivenResults) -> list[str]:
    """Other solvers and ranges against their bases."""
    parts = []
    for name, base in given.sampler_pairs.items():
        own = [found for (row, *_), found in given.sampler_verdicts.items() if row == name]
        if own:
            parts.append(f"{name} against {base} ({len(own)} comparisons), {_counts(own)}")
    return [f"Distances with other solvers or ranges: {'; '.join(parts)}."] if parts else []


def _unseen(given: GivenResults) -> list[str]:
    """The rows that may have the lowest energy score on held-out images at the largest budget."""
    text = _best_at(given, given.networks, HELDOUT, -1, SCORE)
    return [f"Rows that may have the lowest energy score on held-out images at the largest cost{text}"] if text else []


def _failed(given: GivenResults) -> list[str]:
    rows = list(dict.fromkeys(row for row, *_ in given.failures))
    count = sum(len(budgets) for budgets in given.failures.values())
    return [f"Failed results of posterior samplers: {count}, of {_counted(rows, len(given.entries))}."] if rows else []
