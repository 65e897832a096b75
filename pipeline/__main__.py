"""`python -m pipeline <command>`; `python -m pipeline --help` lists the commands."""

import sys

from pipeline.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
