"""Write docs/design-space.md and params.schema.json, which are made from the code: `make docs`. No stage of a study."""

from pathlib import Path

from pipeline.commands.docs import page
from pipeline.common.files import write_text
from pipeline.params import schema
from stages import Arguments, run_stage

FILES = {Path("docs/design-space.md"): page, Path(schema.FILE): schema.text}


def main(arguments: Arguments) -> None:
    for file, text in FILES.items():
        write_text(file, text())
        print(f"wrote {file}")


if __name__ == "__main__":
    run_stage(main, __doc__)
