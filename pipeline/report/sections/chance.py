"""The section on the variance of retraining and resampling."""

from pipeline.report.page import Markdown, code, table
from pipeline.report.statistics import spread
from pipeline.report.study import Report
from pipeline.report.text import number


def spreads(report: Report) -> Markdown:
    """The components of variance of curves that have all pairs of training and sampling seeds."""
    lines = []
    for name, entry in report.curves.items():
        for budget in sorted(b for b in entry.row.nfe if report.having([name], b)):
            if found := spread(report.cells(name, budget)):
                mean, *others = map(number, found)
                lines.append([code(name), budget, report.linked(mean, name, report.nfe(name, budget)), *others])
    header = ["curve", "budget", f"mean {report.score}", "sd of retraining", "sd of resampling"]
    return table(header, lines) if lines else Markdown("")
