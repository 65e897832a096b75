"""Scripts of the project run in this process, which has imported PyTorch already."""

import runpy
import signal
import sys
import warnings

import pytest


def run_module(name: str, *arguments: str) -> int:
    """Do what `python -m name arguments` does, and return the exit code."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that the module was imported before
            patch.setattr(sys, "argv", [name, *arguments])
            with pytest.raises(SystemExit) as caught:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return int(caught.value.code or 0)
