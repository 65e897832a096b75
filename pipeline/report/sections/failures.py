"""The tables of failed trainings and of failed measurements."""

from pipeline.report.page import Markdown, code, table
from pipeline.report.study import Report


def trainings(report: Report) -> Markdown:
    """The failed trainings, one line each, with how many of the model's are left; empty without any."""
    lines = [
        [code(name), seed, report.share_trained(name), reason]
        for name in report.models
        for seed, reason in report.failed_trainings(name).items()
    ]
    return table(["model", "seed", "left", "reason"], lines) if lines else Markdown("")


def failures(report: Report) -> Markdown:
    """The failed cells, one line for each curve, NFE and reason."""
    seeds: dict[tuple[str, int, str], list[tuple[int, int]]] = {}
    for failure in report.failures:
        seeds.setdefault((failure.curve, failure.nfe, failure.reason), []).append(failure.seeds)
    lines = [[code(curve), nfe, ", ".join(map(str, own)), reason] for (curve, nfe, reason), own in seeds.items()]
    return table(["curve", "NFE", "seeds", "reason"], lines)
