"""A child process that ends with its parent, also when the parent is killed and can end nobody."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(parent: int) -> None:
    """To be called by the child, as early as it can: be killed when the thread of `parent` that started it ends.

    Only Linux has this; elsewhere a child of a killed parent runs to its own end. A thread counts as ended with its
    process, so the thread that starts a child must stay until the child has ended.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before this was set
        os._exit(1)
