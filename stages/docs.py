"""Write docs/design-space.md from the code. No stage of a study; `make docs` runs it."""

from pathlib import Path

from pipeline.design_space import page
from pipeline.files import write_text
from stages import Arguments, run_stage

DESIGN_SPACE = Path("docs/design-space.md")


def main(arguments: Arguments) -> None:
    write_text(DESIGN_SPACE, page())
    print(f"wrote {DESIGN_SPACE}")


if __name__ == "__main__":
    run_stage(main, __doc__)
