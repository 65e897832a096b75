"""Train LONG in processes that are killed at random moments, then to its end; print how many were killed.

Arguments: the seed of the moments, the checkpoint, and the file of the final weights.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from safetensors.torch import save_file

from pipeline.training.batches import Examples
from pipeline.training.loop import advance
from pipeline.training.run import Run
from tests.training.small import IMAGES, ROW, SPEC, train

LONG = ROW.model_copy(update={"images": 120 * 8, "snapshots": 3, "draws": "adaptive"})
KILLS = 8


def attempt(checkpoint: Path, result: Path) -> None:
    trained = train(LONG, SPEC, IMAGES, 0, checkpoint, lambda images: time.sleep(0.002))
    save_file({k: v.contiguous() for k, v in trained.denoiser.state_dict().items()}, result)


if __name__ == "__main__":
    advance(Run(SPEC, LONG, 0), Examples(IMAGES))  # imports everything before the first fork
    moments, (checkpoint, result) = random.Random(int(sys.argv[1])), map(Path, sys.argv[2:])
    killed = 0
    for _ in range(KILLS):
        if not (child := os.fork()):
            attempt(checkpoint, result)
            os._exit(0)
        time.sleep(moments.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        killed += os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    attempt(checkpoint, result)
    print(killed)
