"""Remarks on sample sizes for the section on how to read the numbers."""

from pipeline.report.lines import few
from pipeline.report.study import Report
from pipeline.report.text import number

BIASED = 0.1  # the largest share of the best score that its bias may have without a warning


def warning(report: Report) -> str:
    """A warning about the bias of the plain distance if there are few samples or if the bias is large.

    None for points: their score is not a distance between moments, and its floor has the same bias.
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
        f"{small}{report.metric('fd')}, the plain distance, has a bias of about {number(bias)} at the best point: "
        f"{number(measured)} with the bias, {number(best)} without. Its values are not comparable with those at other "
        "numbers of samples."
    )


def linearity(report: Report) -> str:
    """A check of scaled floors: whether Frechet distances between real sets are proportional to 1 / count."""
    found = report.reference
    half, quarter = found["floor"]["fd_corrected"]["mean"], found["quarter_fd_corrected"]
    if not quarter:
        return ""
    return (
        f"Between quarters of {found['quarter_images']} images, it is {number(quarter['mean'])}, "
        f"{number(quarter['mean'] / half)} times as much; exact proportion would be 2 times."
    )
