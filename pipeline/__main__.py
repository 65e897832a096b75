"""`python -m pipeline <command>`; `python -m pipeline --help` lists the commands."""

import sys

from pipeline.commands.cli import main
from pipeline.common.environment import settle

if __name__ == "__main__":
    settle()
    sys.exit(main())
