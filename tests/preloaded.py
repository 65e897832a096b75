"""Python processes that start at once: a server that has imported the libraries forks one for each command.

Importing PyTorch takes seconds, and the tests of the graph start hundreds of stages. A folder of `programs` on PATH has
a `python` that hands `-m module arguments` to the server, with its folder, environment and streams. The process imports
the project's own modules from its folder, as ever. It gets no signals: tests of these use `sys.executable`.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from tests.imports import ROOT

PRELOADED = ("stages", "pipeline/commands")  # with all that they import
LATE = (
    "dvc.cli",
    "dvc.repo",
    "dvc.commands.repro",
    "sklearn.datasets",
    "torch._dynamo",
    "torch.distributed.run",
    "torch_fidelity",
    "torchmetrics.image.kid",
)
OWN = ("pipeline", "stages", "tests")
# The first two lines start Python from a path with spaces, too, and are a text to Python itself.
CLIENT = """#!/bin/sh
'''exec' "{python}" -SE "$0" "$@"
'''
import json, os, socket, sys
arguments = {before!r} + sys.argv[1:]
if arguments[:1] == ["-u"]:
    del arguments[0]
if arguments[:1] != ["-m"]:
    os.execv({python!r}, [{python!r}, *arguments])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    what = json.dumps([arguments[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(what).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(what)
    code = server.recv(1)
sys.exit(code[0] if code else 1)
"""


@cache
def programs(hash_seed: int) -> Path:
    """The folder with a `python` and a `dvc` that start at once; elsewhere than on Linux that of the present Python.

    hash_seed: the order of sets in their processes. The server ends with this process.
    """
    if sys.platform != "linux":
        return Path(sys.executable).parent
    folder = Path(tempfile.mkdtemp(prefix="python"))
    address = str(folder / "socket")
    for name, before in {"python": [], "dvc": ["-m", "dvc"]}.items():
        (folder / name).write_text(CLIENT.format(python=sys.executable, address=address, before=before))
        (folder / name).chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, "-m", __name__, address],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": str(hash_seed)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin and server.stdout
    atexit.register(shutil.rmtree, folder)
    atexit.register(server.stdin.close)
    assert server.stdout.readline() == "ready\n"
    return folder


def serve(address: str) -> list[str]:
    """Import the libraries, then answer until standard input ends. Returns only in a new process: its command."""
    for file in [file for place in PRELOADED for file in (ROOT / place).glob("[!_]*.py")]:
        importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    for name in LATE:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.split(".")[0] in OWN]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # so that a fork shares these objects instead of looking through them
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(64)
        print("ready", flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while listening in select.select([listening, sys.stdin], [], [])[0]:
            client, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                return begin(client)
            client.close()
    sys.exit()


def begin(client: socket.socket) -> list[str]:
    """In a fork of the server: fork the command's process, in which this returns; wait for it, tell its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(client, 4, 3)
    request = client.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
    arguments, folder, environment = json.loads(request)
    if child := os.fork():
        for stream in (0, 1, 2, *streams):
            os.close(stream)
        if client in select.select([client, os.pidfd_open(child)], [], [])[0]:  # the client has been killed
            os.kill(child, signal.SIGKILL)
        with suppress(OSError):
            client.sendall(bytes([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256]))
        os._exit(0)
    client.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:1] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.executable = str(Path(sys.argv[1]).with_name("python"))
    if count := environment.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(count))
    importlib.invalidate_caches()
    return arguments


def run(command: list[str]) -> int:
    """Run a module with its arguments as `python -m` does; its exit code."""
    sys.argv = command
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    code = run(serve(sys.argv[1]))
    for thread in set(threading.enumerate()) - {threading.main_thread()}:
        if not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)  # taking PyTorch's modules apart takes a second
