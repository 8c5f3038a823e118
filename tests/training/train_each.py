"""`python -m training` for several recipes, one after another; run by torchrun with a file of their arguments."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from training import distributed
from training.__main__ import main

if __name__ == "__main__":
    with distributed.joined("cpu"):
        for words in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
            sys.argv = ["training", *words]
            if main():
                sys.exit(1)
