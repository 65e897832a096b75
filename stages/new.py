"""Begin a study of your own images: studies/<name>/ from the template. No stage of a study; `make new` runs it."""

import argparse

from pipeline.commands.new import LABELS, SCALES, new_study
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", default=SCALES[0], help=" or ".join(SCALES))
    parser.add_argument("--labels", default=LABELS[0], help=" or ".join(LABELS) + ": what networks learn")
    own, _ = parser.parse_known_args()
    print(new_study(arguments.name, arguments.images, own.scale, own.labels))


if __name__ == "__main__":
    run_stage(main, __doc__)
