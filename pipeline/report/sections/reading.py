"""The section on how to read the numbers: what the counts of samples mean for them."""

from pipeline.report.lines import few
from pipeline.report.study import Report
from pipeline.report.text import number

BIASED = 0.1  # the share of the best score that its bias may be before it is told


def warning(report: Report) -> str:
    """What so few samples mean for the numbers, where they are few; else nothing.

    Of points nothing: their score is no distance between moments, and the floor has its bias.
    """
    if report.of_points or not report.finished:
        return ""
    name, nfe, best = report.best_of_all
    measured = report.points(name, "fd")[nfe].mean
    bias, dimensions = measured - best, report.extractor["dimensions"]
    small = few(report.rows.samples, dimensions)
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
