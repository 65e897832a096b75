"""The section on cost: FLOPs and seconds of a sample, and what a training costs."""

from pipeline.report.flops import bill
from pipeline.report.page import Markdown, code, table
from pipeline.report.sections.networks import mega
from pipeline.report.study import Report
from pipeline.report.text import listed, number
from pipeline.training.bill import bills


def costs(report: Report) -> Markdown:
    """FLOPs of an evaluation and of a sample at the NFE of each curve's best score, and its seconds, if measured."""
    seconds = {(row.curve, row.nfe): f"{row.seconds_per_image:.3g}" for row in report.timings.itertuples()}
    thing, lines = report.thing, []
    for name in report.with_points(report.distinct):
        model = report.curves[name].row.model
        mean, nfe = report.best_point(name)
        parameters, cost = report.training[model]["parameters"], bill(report, name, nfe)
        flops = " + ".join(mega(stage.flops) for stage in cost.stages)
        own: list[object] = [code(name), number(mean), nfe, code(model), f"{parameters:,}", flops]
        if report.side_by_side:
            own.insert(3, report.depth(name, report.steps(name)[nfe], nfe) or "")
        time = [seconds.get((name, nfe), "not measured")] if seconds else []
        lines.append([*own, mega(cost.total), *time])
    header = ["curve", f"best {report.score}", "at NFE", *(["depth"] if report.side_by_side else [])]
    header += ["model", "parameters", "MFLOPs per evaluation"]
    header += [f"MFLOPs per {thing}", *([f"seconds per {thing}"] if seconds else [])]
    return table(header, lines) if lines else Markdown("")


def trainings(report: Report) -> Markdown:
    """Images and network evaluations of trainings with a teacher and of those beside them; empty without a teacher."""
    lines = []
    for name in report.rows.billed:
        entry = report.models[name]
        row, before = entry.row, entry.row.teacher or report.models[entry.base].row
        _, teacher, both = parts = [*bills(row).values()]
        images, evaluations = ([f"{getattr(p, key):,}" for p in parts] for key in ("images", "evaluations"))
        if not teacher.images:
            images[1] = evaluations[1] = ""
        way = f"pairs {row.pairs}" if row.objective == "denoising" and row.pairs != "independent" else row.objective
        unit = bills(before)["both"].passes
        lines.append([code(name), way, *images, *evaluations, f"{both.passes / unit:.2f}" if unit else ""])
    header = [f"{what}, {whose}" for what in ("images", "evaluations") for whose in ("own", "teacher", "together")]
    return table(["model", "learns by", *header, "passes"], lines) if lines else Markdown("")


def timed_on(report: Report) -> str:
    """How seconds were measured, and which curves have none."""
    seconds = f"Seconds per {report.thing}"
    if report.timings.empty:
        name = "" if report.rows.study.root == "." else f" NAME={report.rows.study.name}"
        return f"{seconds} are not measured for the current curves; make timings{name} measures them."
    missing = sorted(set(report.curves) - set(report.timings.curve))
    how = (
        f"{seconds} were measured on one thread of {listed(sorted(set(report.timings.device)))}, in batches of "
        f"{listed([str(n) for n in sorted(set(report.timings.images))])}; each value is the minimum of several runs."
    )
    return how + (f" {listed(missing)} {'has' if len(missing) == 1 else 'have'} none." if missing else "")
