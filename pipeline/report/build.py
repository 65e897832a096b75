"""Build the report of a study: results.csv, figures, report.md, report.html and the summary files."""

from importlib.resources import files
from typing import Any

import jinja2
import pandas as pd

from pipeline.common.files import SHORT_HASH, Paths, whole_folder, write_json, write_text
from pipeline.data.dataset import described, shape_of
from pipeline.metrics.names import split
from pipeline.metrics.wasserstein import W2_POINTS
from pipeline.report import flops
from pipeline.report.cells import behind
from pipeline.report.findings import findings
from pipeline.report.page import Markdown, bullets, escape, paragraphs, to_html, unmarked
from pipeline.report.results import CSV_COLUMNS
from pipeline.report.sections import (
    agreement,
    averages,
    chance,
    classes,
    cost,
    design,
    efficiency,
    exact,
    factorial,
    failures,
    few_steps,
    fitted,
    given,
    guidance,
    heldout,
    latents,
    learning,
    likelihood,
    machines,
    methods,
    networks,
    precision,
    published,
    reading,
    samplers,
    samples,
    settings,
    trajectories,
)
from pipeline.report.sections import paths as cumulative
from pipeline.report.study import SMALL_BUDGET, Report
from pipeline.report.summary import write_summary
from pipeline.report.text import listed, number, percent


def build(paths: Paths) -> None:
    """Write the report of a study. The same results give the same bytes.

    All contents are computed before the first file is written, and each file is written atomically.
    """
    with whole_folder(paths.reports / "figures") as figures:
        report = Report(paths, figures)
        markdown = render(report)
        page = to_html(markdown, report.rows.title, figures, behind(report), list(report.links))
        table, origins = csv_text(report), provenance(report)
        write_summary(report)
    write_json(paths.reports / "provenance.json", origins)
    write_text(paths.reports / "results.csv", table)
    write_text(paths.reports / "report.md", unmarked(markdown))
    write_text(paths.reports / "report.html", page)


def csv_text(report: Report) -> str:
    """The text of results.csv; unknown values of image sets, and unknown depths, are empty.

    `reference` is what a metric is measured against: TRAIN or one of REFERENCES.
    """
    shown = report.results.astype({"steps": object, "nfe": object, "train_seed": object})
    unknown = shown.curve.isin(list(report.sets))
    shown.loc[unknown, ["steps", "train_seed"]] = None
    shown.loc[unknown & (shown.nfe == 0), "nfe"] = None
    names = pd.DataFrame([split(metric) for metric in shown.metric], shown.index, ["reference", "metric"])
    depths = [report.depth(row.curve, row.steps, row.nfe) for row in report.results.itertuples()]
    names["depth"] = pd.array(depths, "Int64")
    return shown.assign(**names)[CSV_COLUMNS].to_csv(index=False, lineterminator="\n")


def provenance(report: Report) -> dict[str, Any]:
    """For every curve and image set: its row, measurement, machine, and the checkpoint of each training seed."""
    found = {}
    for name, own in report.provenance.items():
        cells = report.results[report.results.curve == name].drop_duplicates("train_seed")
        found[name] = {
            "row": report.flat("curves" if name in report.curves else "sets", name),
            "measured_with": own,
            "machine": report.machines[name],
            "checkpoints": {str(row.train_seed): row.checkpoint for row in cells.itertuples()},
        }
    return found


def render(report: Report) -> str:
    """Draw the figures and return the report as Markdown, with marks around numbers that link to cells."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=escape
    )
    environment.filters |= {
        "begin": lambda text: text[:1].upper() + text[1:],
        "number": number,
        "ratio": lambda value: f"{value:.3g}",
        "percent": percent,
        "short": lambda h: h[:SHORT_HASH],
    }
    measured = report.results[
        (report.results.metric == report.headline) & report.results.curve.isin(list(report.curves))
    ]
    guided, averaged, curved = guidance.section(report), averages.section(report), trajectories.section(report)
    by_class, unseen = classes.section(report), heldout.section(report)
    taught, probable = few_steps.section(report), likelihood.section(report)
    measured_given, staged = given.section(report), latents.section(report)
    fits = fitted.section(report)
    parts = (taught, fits, staged, unseen, probable, measured_given, guided, averaged)
    others = [part["findings"] for part in parts if part]
    return environment.from_string(
        files("pipeline.report").joinpath("template.md.j2").read_text(encoding="utf-8")
    ).render(
        bullets=bullets,
        paragraphs=paragraphs,
        title=report.rows.title,
        report=report,
        methods=methods,
        reading=reading,
        precision=precision.section(report),
        verdicts=report.verdicts,
        margin=report.rows.report.smallest_effect,
        timed_on=cost.timed_on(report),
        agreement=agreement.agreement(report),
        machines=machines.machines(report),
        study=Markdown(report.rows.study.name),
        data=report.data,
        shape=described(shape_of(report.data)),
        w2_points=W2_POINTS,
        extractor=report.extractor,
        reference=report.reference,
        score=report.score,
        models=report.models,
        curves=report.curves,
        measurements=len(measured),
        findings=findings(report, others),
        published=published.section(report),
        effects=design.effects(report),
        costs=cost.costs(report),
        trainings=cost.trainings(report),
        small_budget=SMALL_BUDGET,
        ablations=[design.ablation(report, title, names) for title, names in report.ablations.items()],
        paths=cumulative.sections(report),
        factorials=factorial.sections(report),
        fronts=efficiency.fronts(report),
        reach=efficiency.reach(report),
        best_samplers=samplers.best_samplers(report),
        failed_trainings=failures.trainings(report),
        failures=failures.failures(report),
        exact=exact.section(report),
        learning=learning.section(report),
        likelihood=probable,
        few_steps=taught,
        fitted=fits,
        latents=staged,
        given=measured_given,
        guidance=guided,
        averages=averaged,
        networks=networks.section(report),
        spreads=chance.spreads(report),
        shown=samples.samples(report),
        classes=by_class,
        heldout=unseen,
        trajectories=curved,
        model_table=settings.models(report),
        curve_table=settings.curves(report),
        repetitions=listed(sorted({str(pair) for entry in report.curves.values() for pair in entry.row.seeds})),
        figure=methods.methods_figure(report),
        flops_unit=flops.reference(report),
        flops_figure=methods.flops_figure(report),
    )
