"""The table of failed measurements."""

from pipeline.report.page import Markdown, code, table
from pipeline.report.study import Report


def failures(report: Report) -> Markdown:
    """The failed cells, one line for each curve, NFE and reason."""
    seeds: dict[tuple[str, int, str], list[tuple[int, int]]] = {}
    for failure in report.failures:
        seeds.setdefault((failure.curve, failure.nfe, failure.reason), []).append(failure.seeds)
    lines = [[code(curve), nfe, ", ".join(map(str, own)), reason] for (curve, nfe, reason), own in seeds.items()]
    return table(["curve", "NFE", "seeds", "reason"], lines)
