"""The section on agreement with other libraries."""

from pipeline.common.errors import StudyError
from pipeline.report.page import Markdown, code, table
from pipeline.report.study import Report


def agreement(report: Report) -> Markdown:
    """The largest relative difference between this study and each library, by metric."""
    named = [*report.curves, *report.sets]
    if missing := [name for name in named if name not in report.agreement]:
        raise StudyError(f"{missing[0]}: not compared with other libraries yet; run `dvc repro`")
    rows = [row | {"curve": name} for name in named for row in report.agreement[name]]
    lines = []
    for library, metric in dict.fromkeys((row["library"], row["metric"]) for row in rows):
        own = [row for row in rows if (row["library"], row["metric"]) == (library, metric)]
        worst = max(own, key=lambda row: row["difference"])
        values = f"{worst['ours']:.8g} and {worst['theirs']:.8g}"
        apart = f"{worst['difference']:.1e}" if worst["difference"] else 0
        lines.append([library, report.metric(metric), len(own), apart, code(worst["curve"]), values])
    return table(
        ["library", "metric", "cells", "largest relative difference", "at curve", "this study and library"], lines
    )
