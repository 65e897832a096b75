"""`python -m pipeline <command>`; `python -m pipeline --help` lists the commands."""

import sys
from io import TextIOWrapper

from pipeline.commands.cli import main

if __name__ == "__main__":
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the locale cannot write, as stderr does
    sys.exit(main())
