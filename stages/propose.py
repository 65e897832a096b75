"""Propose P_mean and P_std for the data, from brief trainings of the study's first model of full images."""

from pipeline.common.files import read_json, write_json, write_text
from pipeline.data.dataset import load_prepared, load_summary, shape_of
from pipeline.evaluation.proposal import file_text, propose, summary
from pipeline.training.row import Model
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths = arguments.paths
    first = read_json(paths.rows / "propose.json")
    name, row = first["model"], Model(**first["row"])
    data, found = load_summary(paths.data), None
    if row.lives_in_data and row.import_ is None:
        found = propose(row, row.spec(data["sigma_data"], shape_of(data)), load_prepared(paths.data).images)
    write_text(paths.proposed, file_text(name, row, found))
    write_json(paths.metrics("propose", "noise"), summary(name, row, found))
    print(f"{name}: {found or 'nothing learned, nothing proposed'}")


if __name__ == "__main__":
    run_stage(main, __doc__)
