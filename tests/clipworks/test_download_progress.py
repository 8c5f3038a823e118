"""Progress of downloads: lines where stderr is a pipe, a bar on a terminal."""

import os
import pty
import re
import subprocess
import sys

# A download of 50 MB that goes on at 10 MB, in steps of 100 kB.
PROGRAM = """
import time
from clipworks.cli.download_progress import download_progress
with download_progress("acme/clip") as show:
    for done in range(10_000_000, 50_000_001, 100_000):
        show(done, 50_000_000)
        time.sleep(0.001)
"""
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def test_a_pipe_gets_a_line_for_each_tenth() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [line.partition(" of ")[0] for line in lines] == [f"acme/clip: {n}.0 MB" for n in range(10, 51, 5)]
    assert lines[0] == "acme/clip: 10.0 MB of 50.0 MB"  # nothing came yet, so there is no rate
    assert all(re.search(r" of 50\.0 MB, [\d.]+ [kM]B/s, \d+ s left$", line) for line in lines[1:-1])
    assert lines[-1] == "acme/clip: 50.0 MB of 50.0 MB"


def test_a_terminal_gets_a_bar_with_rate_and_time_left() -> None:
    outer, inner = pty.openpty()
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}
    child = subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=inner, stdout=subprocess.PIPE, env=environment)
    os.close(inner)
    shown = b""
    while True:
        try:
            piece = os.read(outer, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(outer)
    printed, _ = child.communicate(timeout=60)
    text = ANSI.sub("", shown.decode("utf-8"))
    assert (child.returncode, printed) == (0, b"")
    assert "acme/clip" in text
    assert "50.0/50.0 MB" in text
    assert re.search(r"[\d.]+ MB/s", text)
    assert re.search(r"\d:\d\d:\d\d", text)
