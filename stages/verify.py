"""Make a study's cells again from nothing and compare them with its committed results. No stage of the graph."""

import argparse
import json
import re
import sys
from pathlib import Path

from pipeline.commands.verify import CSV_COLUMNS, csv_rows, table, verify
from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, write_csv
from pipeline.params.study import read_study, resolve
from stages import Arguments, run_stage


def parse() -> tuple[str, str]:
    """--study, a folder of studies/ or none for params.yaml, and --cells, as `verify.choose` takes them."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--study", default="")
    parser.add_argument("--cells", default="")
    found, _ = parser.parse_known_args()
    if not re.fullmatch(r"\w*", found.study, re.ASCII):
        raise StudyError(f"NAME: {found.study!r}: a name has letters, digits and underscores alone")
    return found.study, found.cells.strip()


def main(arguments: Arguments) -> None:
    study, cells = parse()
    params = Path("studies") / study / "params.yaml" if study else arguments.params
    rows = json.loads(json.dumps(resolve(read_study(params))))
    found = verify(rows, cells, lambda line: print(line, flush=True))
    place = Paths(rows["report"]["study"]["name"]).build / "verify.csv"
    write_csv(place, CSV_COLUMNS, csv_rows(found.numbers))
    print(table(found.numbers, found.headline), *found.sentences, f"Every number: {place}", sep="\n")
    if any(number.result == "outside" for number in found.numbers):
        sys.exit(1)


if __name__ == "__main__":
    run_stage(main, __doc__)
