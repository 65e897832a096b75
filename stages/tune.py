"""Choose the keys of posterior samplers on validation measurements, with the same allowance of trials for each."""

from pipeline.common.files import read_json, write_json
from pipeline.common.progress import bar
from pipeline.data.dataset import load_prepared
from pipeline.evaluation.given import Bench, Cell, chosen, run
from pipeline.metrics.extractors.registry import load_extractor
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths, asked = arguments.paths, read_json(arguments.paths.rows / "given.json")
    rows = {}
    if asked:
        bench = Bench.of(asked, load_prepared(paths.data), None, paths.model, load_extractor(paths.features))
        tasks = {name: bench.trials(name) for name, row in bench.posteriors.items() if row.tune}
        with bar("tune", sum(map(len, tasks.values())), "trial") as progress:

            def finished(cell: Cell) -> None:
                progress.update(1)

            cells = iter(run([task for own in tasks.values() for task in own], bench.setting, finished))
            rows = {name: chosen(own, [next(cells) for _ in own]) for name, own in tasks.items()}
    write_json(paths.metrics("tune", "posteriors"), rows)
    print(f"tuned {len(rows)} posterior samplers")


if __name__ == "__main__":
    run_stage(main, __doc__)
