"""Measure every curve's seconds per image. No stage of the graph: a clock never gives the same file twice."""

from pipeline.files import read_json, write_csv
from pipeline.parallel import side_by_side
from pipeline.timing import COLUMNS, time_curve
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths = arguments.paths
    curves = read_json(paths.rows / "report.json")["curves"]
    tasks = [lambda n=name, c=curve: list(time_curve(n, c, paths.model(c["model"]))) for name, curve in curves.items()]
    rows = side_by_side(tasks, workers=1)
    write_csv(paths.timings, COLUMNS, [row for found in rows for row in found])
    print(f"{paths.timings}: {sum(map(len, rows))} points of {len(curves)} curves")


if __name__ == "__main__":
    run_stage(main, __doc__)
