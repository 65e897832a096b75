"""The section on cost: FLOPs and seconds of a sample."""

from pipeline.report.page import Markdown, code, table
from pipeline.report.sections.networks import mega
from pipeline.report.study import Report
from pipeline.report.text import listed, number


def costs(report: Report) -> Markdown:
    """FLOPs of an evaluation and of a sample at the NFE of each curve's best score, and its seconds, if measured."""
    seconds = {(row.curve, row.nfe): f"{row.seconds_per_image:.3g}" for row in report.timings.itertuples()}
    thing, lines = report.thing, []
    for name in report.with_points(report.distinct):
        model = report.curves[name].row.model
        mean, nfe = report.best_point(name)
        parameters, flops = (report.training[model][key] for key in ("parameters", "flops"))
        own: list[object] = [code(name), number(mean), nfe, code(model), f"{parameters:,}", mega(flops)]
        time = [seconds.get((name, nfe), "not measured")] if seconds else []
        lines.append([*own, mega(flops * nfe), *time])
    header = ["curve", f"best {report.score}", "at NFE", "model", "parameters", "MFLOPs per evaluation"]
    header += [f"MFLOPs per {thing}", *([f"seconds per {thing}"] if seconds else [])]
    return table(header, lines) if lines else Markdown("")


def timed_on(report: Report) -> str:
    """How seconds were measured, and which curves have none."""
    seconds = f"Seconds per {report.thing}"
    if report.timings.empty:
        return f"{seconds} are not measured for the current curves; make timings measures them."
    missing = sorted(set(report.curves) - set(report.timings.curve))
    how = (
        f"{seconds} were measured on one thread of {listed(sorted(set(report.timings.device)))}, in batches of "
        f"{listed([str(n) for n in sorted(set(report.timings.images))])}; each value is the minimum of several runs."
    )
    return how + (f" {listed(missing)} {'has' if len(missing) == 1 else 'have'} none." if missing else "")
