"""Coverage of the probes' intervals, measured with many random encoders.

    python benchmarks/probe_coverage.py --encoders 24 --suite quick

Every picture and every text gets a vector drawn by the digest of its content, so each row's true value is what guessing
gives. Of 95 % intervals 5 % should miss it. A row whose mean over the encoders is far from its printed chance (|z| > 3)
prints a wrong chance, and is listed.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.encoder import Shown
from evaluation.probe_results import ResultRow
from evaluation.scenes_report import SIZE
from evaluation.suites import Suite, probe_names, run, suite

_FAR = 3.0  # standard errors
_WIDTH = 64


class RandomEncoder:
    """A vector drawn by the digest of the input: repeats itself, knows nothing."""

    space = "random"
    image_px: int | None = 48

    def __init__(self, number: int) -> None:
        self.name = self.fingerprint = f"random {number}"
        self._number = number

    def encode_images(self, images: Sequence[Shown]) -> NDArray[np.float32]:
        return self._draw([image if isinstance(image, bytes) else image.tobytes() for image in images])

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._draw([text.encode() for text in texts])

    def _draw(self, inputs: Sequence[bytes]) -> NDArray[np.float32]:
        seeds = [[self._number, *hashlib.sha256(data).digest()] for data in inputs]
        return np.array([np.random.default_rng(seed).normal(size=_WIDTH) for seed in seeds], dtype=np.float32)


def outside(row: ResultRow) -> bool | None:
    """Whether chance lies outside of the row's interval; None where there is no chance or no score."""
    if row.chance is None or row.low is None or row.high is None:
        return None
    return not row.low - 1e-12 <= row.chance <= row.high + 1e-12


def far(rows: Sequence[ResultRow]) -> float:
    """How many standard errors the mean score of one row over several encoders lies from the printed chance."""
    gaps = np.array([row.score - row.chance for row in rows if row.score is not None and row.chance is not None])
    if len(gaps) < 2:
        return 0.0
    error = gaps.std(ddof=1) / np.sqrt(len(gaps))
    return float(gaps.mean() / error) if error else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--encoders", type=int, default=24, help="how many random encoders (24)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first one (0)")
    parser.add_argument("--suite", default="quick", help="quick, full, a probe, or lab: the size of the lab's study")
    arguments = parser.parse_args()
    lab = Suite(name="lab", probes=probe_names(), size=SIZE)
    chosen = lab if arguments.suite == "lab" else suite(arguments.suite)
    found: dict[tuple[str, str], list[ResultRow]] = defaultdict(list)
    try:
        for number in range(arguments.first, arguments.first + arguments.encoders):
            for result in run(RandomEncoder(number), chosen):
                for row in result.rows:
                    found[result.key.probe, row.name].append(row)
            print(f"{number + 1 - arguments.first} of {arguments.encoders}", end="\r", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped: of the encoders so far", file=sys.stderr)
    judged = {name: [missed for row in rows if (missed := outside(row)) is not None] for name, rows in found.items()}
    total, missed = sum(map(len, judged.values())), sum(map(sum, judged.values()))
    for name, rows in found.items():
        score = np.mean([row.score for row in rows if row.score is not None] or [np.nan])
        share, z = np.mean(judged[name] or [np.nan]), far(rows)
        mark = "  chance?" if abs(z) > _FAR else ""
        chance = "-" if rows[0].chance is None else f"{rows[0].chance:.3f}"
        print(
            f"{name[0]:15s} {name[1]:58s} n {rows[0].n:5d} mean {score:.3f} chance {chance} "
            f"outside {share:.2f} z {z:6.1f}{mark}"
        )
    print(f"outside of their own interval: {missed} of {total} rows, {100 * missed / total:.1f} %")


if __name__ == "__main__":
    main()
