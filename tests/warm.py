"""Commands that need torch, run as children of one process that has imported it.

Importing torch and what stands on it is most of what a small command costs: 8 s of CPU, 10 for `clipworks export`.
A test that runs a page full of commands puts `Warm.folder` in front of its PATH: the `clipworks` and `python` that lie
there hand arguments, environment, working directory and standard streams to a process that forks. Packages of others
are imported ahead, nothing of this project: a clone of it runs its own code. Commands without torch, and those that may
use more than one thread, are the real programs.
"""

from __future__ import annotations

import atexit
import contextlib
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
import threading
from pathlib import Path
from typing import Any, NoReturn, Self

AHEAD = ("torch", "torch._dynamo", "torch.onnx", "torchvision", "timm", "open_clip", "onnx", "onnxscript", "onnx_ir")
AHEAD += ("safetensors.torch", "numpy", "PIL.Image", "pydantic", "typer", "rich", "tokenizers", "httpx2")
AHEAD += ("scipy.optimize", "scipy.ndimage", "torch.utils.tensorboard")
"""Not onnxruntime and scikit-learn: importing them starts a thread, and threads are not forked."""
WITH_TORCH = ("train", "export", "eval", "distill")
"""Subcommands of `clipworks` that import it."""
ONE_THREAD = "OMP_NUM_THREADS"
_SHIM = """#!{python} -IS
import json, os, socket, sys
words, name = sys.argv[1:], {name!r}
first = words[0] if words else ""
warm = first in {subcommands!r} if name == "clipworks" else first == "-m" or first.endswith(".py")
if not warm or os.environ.get({one!r}) != "1":
    os.execv({program!r}, [{program!r}, *words])
with socket.socket(socket.AF_UNIX) as door:
    door.connect({address!r})
    socket.send_fds(door, [b"-"], [0, 1, 2])
    asked = dict(program=name, words=words, folder=os.getcwd(), environment=dict(os.environ))
    door.sendall(json.dumps(asked).encode() + b"\\n")
    sys.exit(int(door.makefile().readline() or 70))
"""


class Warm:
    """The process and the folder of its programs, until it is closed."""

    def __init__(self, folder: Path) -> None:
        """folder: a new one; its path must be short, for a socket lies in it."""
        self.folder, address = folder / "bin", folder / "door"
        self.folder.mkdir(parents=True)
        for name in ("clipworks", "python"):
            program = self.folder / name
            names = {"python": sys.executable, "name": name, "subcommands": WITH_TORCH, "one": ONE_THREAD}
            real = Path(sys.executable).with_name(name)
            program.write_text(_SHIM.format(**names, program=str(real), address=str(address)), encoding="utf-8")
            program.chmod(0o755)
        environment = {**os.environ, ONE_THREAD: "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, __file__, str(address)]
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert self._process.stdout
        said = self._process.stdout.readline()
        assert said == b"listening\n", "the process that forks did not start"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)
        if self._process.stdout:
            self._process.stdout.close()
        shutil.rmtree(self.folder.parent, ignore_errors=True)


def serve(address: str) -> dict[str, Any]:
    """Fork for every connection; returns in a child only, with what it was asked to run."""
    gc.disable()
    for name in AHEAD:
        importlib.import_module(name)
    importlib.import_module("exporter_once").write_first_graph()  # lies beside this file, which runs as a program
    gc.freeze()  # a collection in a child would look at, and so copy, all that was imported here
    gc.enable()
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"{threads} threads after the imports: a fork would lose all but one")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
        print("listening", flush=True)
        while True:
            door, _ = listener.accept()
            with door:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    listener.close()
                    return _kept(door)


def _kept(door: socket.socket) -> dict[str, Any]:
    """Fork once more; the keeper waits for its child, which returns, and sends the exit status to the shim."""
    _, streams, _, _ = socket.recv_fds(door, 1, 3)
    asked: dict[str, Any] = json.loads(door.makefile().readline())
    child = os.fork()
    if child == 0:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        door.close()
        return asked
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    if door in select.select([door, ended], [], [])[0]:  # whoever asked is gone
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        door.sendall(f"{status if status >= 0 else 128 - status}\n".encode())
    os._exit(0)


def run(asked: dict[str, Any]) -> None:
    """What was asked for, as Python runs it: arguments, import path and environment are those of the shim."""
    # Those that it has were opened on other files.
    sys.stdin, sys.stdout = (os.fdopen(number, mode, closefd=False) for number, mode in ((0, "r"), (1, "w")))
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    words, given = asked["words"], os.environ.get("PYTHONPATH", "")
    path = [each for each in given.split(os.pathsep) if each] + sys.path[1:]
    if asked["program"] == "clipworks":
        sys.path[:] = path
        sys.argv = ["clipworks", *words]
        sys.exit(importlib.import_module("clipworks.cli").app())
    if words[0] == "-m":
        sys.path[:] = [asked["folder"], *path]
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[:] = [str(Path(words[0]).resolve().parent), *path]
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def run_and_leave(asked: dict[str, Any]) -> NoReturn:
    """Run it and end as Python does, but for taking apart all that was imported: half of what a small command costs."""
    status: object = 0
    try:
        run(asked)
    except SystemExit as ended:
        status = ended.code or 0
    except Exception:
        sys.excepthook(*sys.exc_info())
        status = 1
    except KeyboardInterrupt:
        gc.unfreeze()  # this one ends as Python does, where libraries look for what nobody took back
        raise
    if not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined] # joins them, and wakes those of executors first
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


if __name__ == "__main__":
    run_and_leave(serve(sys.argv[1]))
