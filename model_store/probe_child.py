"""The child process of `model_store.probe`; imports as little as it can, because a server's start waits for it."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from model_store.lifetime import end_with_parent

if __name__ == "__main__":  # before anything that takes time: the server may be killed meanwhile
    end_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process

import numpy as np

from model_store.errors import GraphError
from model_store.session import SessionSettings, first_line, open_session


def answer(folder: Path) -> str:
    """Open each graph of `request.json`, run it on `feedsN.npz` and write `outputsN.npz`; why it is refused, or ""."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    settings = SessionSettings(**request["settings"])
    for index, (path, label, outputs) in enumerate(request["graphs"]):
        with np.load(folder / f"feeds{index}.npz", allow_pickle=False) as stored:
            feeds = {key: stored[key] for key in stored.files}
        try:
            values = open_session(path, settings, label).run(outputs, feeds)
        except GraphError as error:
            return str(error)
        except Exception as error:
            return f"{label}: {first_line(error)}"
        np.savez(folder / f"outputs{index}.npz", allow_pickle=False, **dict(zip(outputs, values, strict=True)))
    return ""


def main() -> None:
    """Answer each line of standard input, the folder of a request as JSON, with a line on standard output."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what native code prints is no answer
        for line in sys.stdin:
            print(json.dumps(answer(Path(json.loads(line)))), file=answers, flush=True)


if __name__ == "__main__":
    main()
