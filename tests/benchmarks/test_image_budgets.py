"""The budgets of decoding, in a process of their own: memory for each pixel, and damaged files of every format."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from /proc")
DEAREST = ["webp lossless, alpha", "png RGBA", "png I;16"]


def run(module: str, *arguments: str) -> dict:
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-1000:])
    return json.loads(done.stdout)


def test_a_decode_takes_sixteen_bytes_a_pixel_at_most() -> None:
    measured = run("decode_memory", "--side", "2048", "--only", *DEAREST)
    assert len(measured) == 2 * len(DEAREST)
    # One byte more for what does not grow with the picture: strips of a megapixel, against four megapixels here.
    assert {name: each for name, each in measured.items() if each > 17} == {}


@pytest.mark.long
def test_damaged_files_are_decoded_or_refused_within_their_budgets() -> None:
    found = run("fuzz_images", "--count", "1500", "--seed", "5")
    assert found["broken"] == []
    decoded = {name.split(":")[0] for name in found["outcomes"] if name.endswith("decoded")}
    assert {"JPEG", "PNG", "WEBP", "GIF", "BMP"} <= decoded
