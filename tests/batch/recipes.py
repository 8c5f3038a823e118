"""The recipes of docs/batch.md as programs, a table of pictures that they expect, and what a server answers for it."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clipworks import Client

ROOT = Path(__file__).parents[2]
TINY_STORE = ROOT / "tests" / "fixtures" / "tiny_store"
PAGE = (ROOT / "docs" / "batch.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"<!-- run: (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))
NO_PICTURE = b"no picture"


class Job(NamedTuple):
    """A folder with pictures.parquet (path, bytes), the vectors of its pictures by path, and paths of broken ones."""

    folder: Path
    url: str
    wanted: dict[str, np.ndarray]
    broken: set[str]

    def check(self, table: Any) -> None:
        """Every row once, with the server's vector bit for bit or an error, and what made it."""
        assert sorted(table["path"].to_pylist()) == sorted([*self.wanted, *self.broken])
        assert len(set(table["space"].to_pylist())) == len(set(table["fingerprint"].to_pylist())) == 1
        for row in table.to_pylist():
            if row["path"] in self.broken:
                assert row["error"].startswith("unsupported_image: ")
            else:
                assert row["error"] == ""
                assert np.array(row["vector"], dtype=np.float32).tobytes() == self.wanted[row["path"]].tobytes()


def pictures(count: int) -> list[bytes]:
    """Small pictures of different sizes as PNG; of every twenty, one is broken."""
    chance, found = np.random.default_rng(3), list[bytes]()
    for index in range(count):
        sink = io.BytesIO()
        pixels = chance.integers(0, 256, (20 + index % 30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(sink, "PNG")
        found.append(NO_PICTURE if index % 20 == 7 else sink.getvalue())
    return found


def make_job(folder: Path, url: str, count: int) -> Job:
    """url: of a server with the tiny model."""
    found = {f"{index}.png": data for index, data in enumerate(pictures(count))}
    table = pa.table({"path": list(found), "bytes": list(found.values())})
    pq.write_table(table, folder / "pictures.parquet", row_group_size=8)
    good = {path: data for path, data in found.items() if data != NO_PICTURE}
    with Client(url) as client:
        vectors = client.embed(images=list(good.values()), model="tiny")
    return Job(folder, url, dict(zip(good, vectors, strict=True)), set(found) - set(good))


def run_recipe(folder: Path, text: str, *, timeout_s: float = 400) -> None:
    """As a program of its own; frameworks leave processes and warnings behind that are not for pytest."""
    store = repr(str(TINY_STORE))
    text = text.replace('Embedder("everyday-small")', f'Embedder("tiny", {store})')
    text = text.replace('"model": "everyday-small"', f'"model": "tiny", "store": {store}')
    assert "everyday-small" not in text
    (folder / "recipe.py").write_text(text, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLIPWORKS_")}
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "recipe.py"],
        cwd=folder, env={**kept, **quiet, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=timeout_s, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
