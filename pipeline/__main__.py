"""`python -m pipeline <command>`; `python -m pipeline --help` lists the commands."""

import signal
import sys

from pipeline.commands.cli import main, terminate
from pipeline.common.environment import drop_unwritten, settle

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminate)
    settle()
    try:
        sys.exit(main())
    finally:
        drop_unwritten()
