"""Measure every curve's seconds per image. No stage of the graph: a clock never gives the same file twice."""

from itertools import chain

from pipeline.common.files import read_json, write_csv
from pipeline.common.threads import side_by_side
from pipeline.evaluation.seconds import COLUMNS, seconds_of, timed_points
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths = arguments.paths
    curves = read_json(paths.rows / "report.json")["curves"]
    points = (
        timed_points(name, curve, paths.model(curve["model"]), read_json(paths.grids(curve["model"])))
        for name, curve in curves.items()
    )
    [rows] = side_by_side([lambda: seconds_of(list(chain.from_iterable(points)))])
    write_csv(paths.timings, COLUMNS, rows)
    print(f"{paths.timings}: {len(rows)} points of {len(curves)} curves")


if __name__ == "__main__":
    run_stage(main, __doc__)
