"""Compare one cell of every curve with the values of torchmetrics and torch-fidelity for the same features."""

from pipeline.common.files import read_json, write_json
from pipeline.metrics.agreement import compare_curve
from pipeline.metrics.reference import load_reference
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths = arguments.paths
    curves, reference = read_json(paths.rows / "curves.json"), load_reference(paths.reference)
    comparisons = {name: compare_curve(paths.curve(name), f"curves.{name}", reference) for name in curves}
    write_json(paths.metrics("agreement", "libraries"), comparisons)
    worst = max((row["difference"] for rows in comparisons.values() for row in rows), default=0.0)
    print(f"torchmetrics and torch-fidelity agree on {len(comparisons)} curves, within {worst:.1e} relative")


if __name__ == "__main__":
    run_stage(main, __doc__)
