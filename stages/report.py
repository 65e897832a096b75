"""Write the report from the results of all declared rows."""

from pipeline.report.build import build
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths = arguments.paths
    build(paths)
    print(f"{paths.reports / 'report.html'}: open it in a browser")


if __name__ == "__main__":
    run_stage(main, __doc__)
