"""Sample given measurements with every posterior sampler, and score the samples against exact posteriors."""

from dataclasses import asdict

from pipeline.common.files import read_json, whole_folder, write_csv, write_json
from pipeline.common.progress import bar
from pipeline.data.dataset import load_heldout, load_prepared
from pipeline.evaluation.given import (
    COLUMNS,
    EXACT,
    PROBLEMS,
    Bench,
    Cell,
    exact_cells,
    run,
    save_cells,
    save_problems,
)
from pipeline.metrics.extractors.registry import load_extractor
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths, asked = arguments.paths, read_json(arguments.paths.rows / "given.json")
    lines = []
    with whole_folder(paths.build / "posteriors") as folder:
        write_json(folder / "rows.json", list(asked["posteriors"]) if asked else [])  # DVC warns of empty folders
        if asked:
            data, extractor = (load_prepared(paths.data), load_heldout(paths.data)), load_extractor(paths.features)
            bench = Bench.of(asked, *data, paths.model, extractor)
            tuned = read_json(paths.metrics("tune", "posteriors"))
            tasks = {name: bench.tasks(name, tuned) for name in bench.posteriors}
            with bar("given", sum(map(len, tasks.values())), "cell") as progress:

                def finished(cell: Cell) -> None:
                    progress.update(1)

                cells = iter(run([task for own in tasks.values() for task in own], bench.setting, finished))
            by_row = {EXACT: list(exact_cells(bench))}
            by_row |= {name: [next(cells) for _ in own] for name, own in tasks.items()}
            for name, own in by_row.items():
                save_cells(folder / f"{name}.safetensors", own)
                lines += [asdict(cell.line) for cell in own]
            save_problems(folder / f"{PROBLEMS}.safetensors", bench)
    write_csv(paths.reports / "given.csv", COLUMNS, lines)
    print(f"{len(lines)} measurements of posterior samplers")


if __name__ == "__main__":
    run_stage(main, __doc__)
