"""Seconds per image of every curve. No stage of the graph, because a clock never repeats itself."""

from itertools import chain
from pathlib import Path

from pipeline.commands.repro import reproduce
from pipeline.common.files import Paths, read_json, write_csv
from pipeline.common.threads import side_by_side
from pipeline.diffusion.space import load_space
from pipeline.evaluation.fits import load_fits
from pipeline.evaluation.seconds import COLUMNS, seconds_of, timed_points
from pipeline.params.resolved import ReportRows
from pipeline.params.study import read_study


def time_study(params: Path) -> None:
    """Write a study's timings.csv, then its report again. Raises StudyError if the study has not run."""
    paths = Paths(read_study(params).study.name)
    curves = ReportRows(**read_json(paths.rows / "report.json")).curves
    points = (
        timed_points(
            name,
            entry.row,
            paths.model(entry.row.model),
            load_fits(paths.grids(entry.row.model)),
            load_space(paths.space(entry.row.model)),
        )
        for name, entry in curves.items()
    )
    [timings] = side_by_side([lambda: seconds_of(list(chain.from_iterable(points)))])
    write_csv(paths.timings, COLUMNS, [timing.record() for timing in timings])
    print(f"{paths.timings}: {len(timings)} points of {len(curves)} curves")
    graph = params.with_name("dvc.yaml")
    reproduce(f"{graph}:report", single_item=True, force=True)
