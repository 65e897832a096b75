"""Measure every solver on exact denoisers: its order, its errors, the distances of its samples. No network."""

from dataclasses import asdict

from pipeline.common.files import write_json
from pipeline.data.dataset import load_prepared
from pipeline.evaluation.convergence import measure_solvers
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths = arguments.paths
    tables = measure_solvers(load_prepared(paths.data).images)
    write_json(paths.metrics("oracle", "solvers"), asdict(tables))
    worst = tables.largest_difference
    print(f"{len(tables.orders)} solvers on exact denoisers: orders within {worst:.2f} of theory")


if __name__ == "__main__":
    run_stage(main, __doc__)
