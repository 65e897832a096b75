"""The report from a study's results: results.csv, figures, report.md and report.html."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from safetensors.numpy import load_file

from pipeline.files import Paths, read_json, whole_folder, write_text
from pipeline.model import Model
from pipeline.report.figures import curves_figure, samples_figure
from pipeline.report.page import Markdown, bold, code, escape, table, to_html
from pipeline.report.results import (
    Interval,
    at_budget,
    interval,
    is_tie,
    ratio,
    read_results,
    summarise,
)
from pipeline.rows import Row
from pipeline.sampler import Sampler

SHOWN_BUDGETS = 7


class Report:
    """What every part of the report reads: the declared rows and their results."""

    def __init__(self, paths: Paths, figures: Path) -> None:
        self.paths, self.figures = paths, figures
        rows = read_json(paths.rows / "report.json")
        self.title, self.models, self.curves = rows["title"], rows["models"], rows["curves"]
        self.study = rows["study"]["name"]
        self.results, self.machines = read_results(paths, self.curves)
        self.data = read_json(paths.metrics("prepare", "data"))
        self.extractor = read_json(paths.metrics("features", "extractor"))
        self.floor = read_json(paths.metrics("reference", "floor"))
        self.fd = f"FD ({self.extractor['name']})"
        self.methods = [name for name, row in self.curves.items() if row["method"]] or list(self.curves)[:1]
        self.colours = {self.label(name): i for i, name in enumerate(self.methods)}

    def label(self, curve: str) -> str:
        return self.curves[curve]["method"] or curve

    def budgets(self, curves: list[str]) -> list[int]:
        """The budgets that all of these curves have."""
        common = set.intersection(*(set(self.curves[name]["nfe"]) for name in curves))
        return sorted(common)

    def values(self, curve: str, budget: int, metric: str = "fd") -> pd.Series:
        return at_budget(self.results, curve, metric, budget)

    def nfe(self, curve: str, budget: int) -> int:
        """What a curve really spends of a budget."""
        spent = self.results[(self.results.curve == curve) & (self.results.nfe <= budget)].nfe
        return int(spent.max())


def number(value: float) -> str:
    """Three significant digits, no exponent."""
    return (
        f"{value:#.3g}".rstrip(".")
        if 0.001 <= abs(value) < 1000
        else f"{value:.0f}"
        if abs(value) >= 1
        else f"{value:.1e}"
    )


def stated(found: Interval) -> str:
    """A mean with its 95% half width, or alone where there is one repetition."""
    return number(found.mean) if found.count < 2 else f"{number(found.mean)} ± {number(found.half_width)}"


def stated_ratio(found: Interval | None) -> str:
    if found is None:
        return "no common seeds"
    if found.count < 2:
        return f"× {number(found.mean)} (one repetition)"
    if found.low == found.high == 1:
        return "equal"
    if is_tie(found):
        return f"× {number(found.mean)} ({number(found.low)} to {number(found.high)}), tie"
    text = f"× {number(found.mean)} ({number(found.low)} to {number(found.high)})"
    return f"× {found.mean:.4f} ({found.low:.4f} to {found.high:.4f})" if "1.00" in text else text


def best(report: Report, curves: list[str], budget: int) -> tuple[str, list[str]]:
    """The curve of the smallest mean at a budget, and those that tie with it."""
    leader = min(curves, key=lambda name: report.values(name, budget).mean())
    others = [name for name in curves if name != leader]
    lead = report.values(leader, budget)
    return leader, [name for name in others if is_tie(ratio(report.values(name, budget), lead))]


def listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def findings(report: Report) -> list[str]:
    """Sentences computed from the numbers."""
    sentences = []
    if len(report.methods) > 1:
        for budget in report.budgets(report.methods):
            leader, ties = best(report, report.methods, budget)
            tied = (
                f", in a tie with {listed([report.label(name) for name in ties])}" if ties else ", ahead of all others"
            )
            value = stated(interval(report.values(leader, budget).to_numpy()))
            value = f"{value} at NFE {report.nfe(leader, budget)}"
            sentences.append(
                f"At a budget of {budget} evaluations {report.label(leader)} has the lowest {report.fd}, {value}{tied}."
            )
    for title, names in ablations(report).items():
        base = report.curves[names[0]]["base"]
        budget = max(report.budgets([base, *names]), default=0)
        found = (
            {name: ratio(report.values(name, budget), report.values(base, budget)) for name in names} if budget else {}
        )
        apart = [f"{choice(report, name)} {stated_ratio(r)}" for name, r in found.items() if not is_tie(r)]
        same = [choice(report, name) for name, r in found.items() if is_tie(r)]
        parts = ([listed(apart)] if apart else []) + (
            [f"{listed(same)} {'ties' if len(same) == 1 else 'tie'}"] if same else []
        )
        if parts:
            start = f"{title[0].upper()}{title[1:]}, against {base} at a budget of {budget}: "
            sentences.append(start + "; ".join(parts) + ".")
    return sentences


def choice(report: Report, name: str) -> str:
    """What a row changes, as it stands in params.yaml: "rho 3"."""
    changed = report.curves[name]["differences"]
    return ", ".join(f"{key} {_plain(value)}" for key, value in changed.items()) or name


def ablations(report: Report) -> dict[str, list[str]]:
    """The curves of each axis in which rows differ from their base, by title; methods among them stand elsewhere."""
    found: dict[str, list[str]] = {}
    for name, row in report.curves.items():
        if row["axis"] and name not in report.methods:
            found.setdefault(row["axis"], []).append(name)
    return found


def ablation_part(report: Report, title: str, names: list[str]) -> dict[str, Any]:
    """One axis: its figure, and a table of each row's ratio to its base by budget."""
    bases = list(dict.fromkeys(report.curves[name]["base"] for name in names))
    labels = {name: f"{name} (base)" for name in bases} | {name: f"{name}: {choice(report, name)}" for name in names}
    file = "ablation_" + "".join(c if c.isalnum() else "_" for c in title) + ".png"
    points = {label: summarise(report.results, name, "fd") for name, label in labels.items()}
    curves_figure(report.figures / file, points, report.fd, {label: i for i, label in enumerate(points)})
    budgets = sorted({budget for name in names for budget in report.curves[name]["nfe"]})
    lines = []
    for name in names:
        base = report.curves[name]["base"]
        cells = []
        for budget in budgets:
            own, other = report.values(name, budget), report.values(base, budget)
            measured = budget in report.curves[name]["nfe"] and budget in report.curves[base]["nfe"]
            cells.append(stated_ratio(ratio(own, other)) if measured else "")
        lines.append([code(name), choice(report, name), code(base), *cells])
    header = ["curve", "differs in", "base", *(f"budget {b}" for b in budgets)]
    return {"title": title, "file": file, "table": table(header, lines)}


def methods_table(report: Report) -> Markdown:
    """Mean and interval by method and budget; the best of each budget and its ties in bold."""
    budgets = sorted({budget for name in report.methods for budget in report.curves[name]["nfe"]})
    leaders: dict[int, set[str]] = {}
    for budget in budgets:
        having = [name for name in report.methods if budget in report.curves[name]["nfe"]]
        leader, ties = best(report, having, budget)
        leaders[budget] = {leader, *ties} if len(having) > 1 else set()
    lines = []
    for name in report.methods:
        cells: list[object] = []
        for budget in budgets:
            text = (
                stated(interval(report.values(name, budget).to_numpy())) if budget in report.curves[name]["nfe"] else ""
            )
            cells.append(bold(text) if name in leaders[budget] else text)
        lines.append([report.label(name), code(name), *cells])
    return table(["method", "curve", *(f"budget {b}" for b in budgets)], lines)


def floor_part(report: Report) -> dict[str, Any]:
    """How near each method comes to the distance of real images from each other, at equal counts."""
    count, floor, spread = (report.floor[key] for key in ("floor_images", "floor", "floor_sd"))
    points = {name: summarise(report.results, name, "fd_equal_counts") for name in report.methods}
    points = {name: found for name, found in points.items() if found}
    text = (
        f"How good is good enough: {count} real images are at {number(floor)} (standard deviation over splits "
        f"{number(spread)}) from {count} other real images. That is the floor."
    )
    if not points:
        return {"text": f"{text} No method was measured with so many samples.", "table": "", "figure": ""}
    lines = []
    for name, found in points.items():
        nfe, lowest = min(found.items(), key=lambda point: point[1].mean)
        lines.append([report.label(name), nfe, stated(lowest), f"× {number(lowest.mean / floor)}"])
    curves_figure(
        report.figures / "floor.png",
        {report.label(name): found for name, found in points.items()},
        f"{report.fd}, {count} against {count}",
        report.colours,
        (floor, "real against real"),
    )
    header = ["method", "lowest at NFE", f"lowest measured {report.fd} at {count}", "over the floor's mean"]
    return {
        "text": f"{text} Generated images at the same counts:",
        "table": table(header, lines),
        "figure": "floor.png",
    }


def samples_part(report: Report) -> int:
    """Draw the sample grid by method; returns how many samples each tile shows."""
    grid = {}
    for name in report.methods:
        curve = report.curves[name]
        images = load_file(report.paths.curve(name) / "images.safetensors")
        train_seed, sample_seed = curve["seeds"][0]
        own = report.results[(report.results.curve == name) & (report.results.metric == "fd")]
        points = own[["steps", "nfe"]].drop_duplicates().sort_values("nfe").head(SHOWN_BUDGETS).itertuples()
        grid[report.label(name)] = {int(p.nfe): images[f"{p.steps}/{train_seed}/{sample_seed}"] for p in points}
    samples_figure(report.figures / "samples.png", grid)
    return min(len(tiles) for cells in grid.values() for tiles in cells.values())


def design_table(rows: dict[str, Any], schema: type[Row], first: list[str]) -> Markdown:
    """Every row's design choices in full, the values that differ from its base's in bold."""
    keys = first + [key for key, field in schema.model_fields.items() if field.title]
    shown = {name: {key: "measured" if row[key] is None else row[key] for key in keys} for name, row in rows.items()}
    lines = []
    for name, row in rows.items():
        base = shown[row["base"]]
        cells = [_plain(v) if v == base[key] else bold(_plain(v)) for key, v in shown[name].items()]
        lines.append([code(name), code(row["base"]), *cells])
    return table(["row", "base", *keys], lines)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(v) for v in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def build(paths: Paths) -> None:
    """Write a study's report from its results, all of it or nothing. The same results give the same bytes."""
    with whole_folder(paths.reports / "figures") as figures:
        report = Report(paths, figures)
        markdown = render(report)
        page = to_html(markdown, report.title, figures)
    write_text(paths.reports / "results.csv", report.results.to_csv(index=False, lineterminator="\n"))
    write_text(paths.reports / "report.md", markdown)
    write_text(paths.reports / "report.html", page)


def render(report: Report) -> str:
    """The report as Markdown; draws its figures on the way."""
    methods = {report.label(name): summarise(report.results, name, "fd") for name in report.methods}
    curves_figure(report.figures / "methods.png", methods, report.fd, report.colours)
    machines = pd.Series([tuple(m.items()) for m in report.machines.values()]).value_counts(sort=False)
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=escape
    )
    environment.filters |= {"number": number, "percent": lambda share: f"{share:.1%}"}
    return environment.from_string(files("pipeline.report").joinpath("template.md.j2").read_text()).render(
        title=report.title,
        study=Markdown(report.study),
        data=report.data,
        extractor=report.extractor,
        fd=report.fd,
        models=report.models,
        curves=report.curves,
        measurements=len(report.results[report.results.metric == "fd"]),
        findings=findings(report),
        methods_table=methods_table(report),
        floor=floor_part(report),
        ablations=[ablation_part(report, title, names) for title, names in ablations(report).items()],
        shown=samples_part(report),
        model_table=design_table(report.models, Model, []),
        curve_table=design_table(report.curves, Sampler, ["model"]),
        repetitions=listed(sorted({str(tuple(pair)) for row in report.curves.values() for pair in row["seeds"]})),
        samples=listed(sorted({str(row["samples"]) for row in report.curves.values()})),
        machines=[dict(m) | {"curves": count} for m, count in machines.items()],
    )
