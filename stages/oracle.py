"""Measure every solver on exact denoisers: its order, its errors, what it samples. No network."""

from pipeline.common.files import write_json
from pipeline.data.dataset import load_prepared
from pipeline.evaluation.convergence import measure_solvers
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths = arguments.paths
    found = measure_solvers(load_prepared(paths.data).images)
    write_json(paths.metrics("oracle", "solvers"), found)
    worst = max(abs(row["measured"] - row["order"]) for row in found["orders"] if row["measured"] is not None)
    print(f"{len(found['orders'])} solvers on exact denoisers: orders within {worst:.2f} of theory")


if __name__ == "__main__":
    run_stage(main, __doc__)
