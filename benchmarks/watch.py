"""What watching images costs: seconds of a digest of many files, first and again.

python -m benchmarks.watch [--files 60000] [--bytes 3000]
"""

import argparse
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.data.watch import RACY_NS, watched

CLASSES = 10


def seconds(source: Path) -> float:
    start = time.perf_counter()
    watched(str(source))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=60_000, help="the number of files")
    parser.add_argument("--bytes", type=int, default=3000, help="the size of each file")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        os.chdir(folder)  # the listing is below the working directory
        for index in range(arguments.files):
            path = Path("images") / str(index % CLASSES) / f"{index:06}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(arguments.bytes))
        time.sleep(RACY_NS / 1e9)
        first, *again = (seconds(Path("images")) for _ in range(4))
    print(f"{arguments.files:,} files of {arguments.bytes:,} bytes: first {first:.1f} s, unchanged {min(again):.2f} s")


if __name__ == "__main__":
    main()
