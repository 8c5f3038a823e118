"""A process that decodes one image after the other for a server; it is killed when one takes too long.

Its arguments are the parent's process id, a socket, a file that both hold in memory, and the limits as JSON. A request
is a line of JSON on the socket, the encoded bytes are in the file; the answer is a line, the pixels are in the file,
and behind them the thumbnail, if one was asked for.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import sys
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.errors import InputError, InvalidImage
from model_store.modality.image import DECODE_BYTES_PER_PIXEL, DecodeLimits, decode, prepare, prepare_dense
from service.decoding.allocator import return_large_buffers
from service.decoding.thumbnails import encode_thumbnail

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "500"  # memory that runs out is taken from this process, not from the server
_GRACE_S = 1.0  # the parent ends a late process; this one ends itself if the parent is not there to do it
_KEPT_BYTES = 4 * 2**20  # a picture of a megapixel; asking the kernel for its memory each time took a tenth of decoding
_SLACK_BYTES = 2**30  # encoded bytes, strips, and what a resize holds between its two passes


def main(arguments: list[str]) -> None:
    parent, link, memory = (int(each) for each in arguments[:3])
    given = json.loads(arguments[3])
    limits = DecodeLimits(**{each.name: given[each.name] for each in fields(DecodeLimits)} | _formats(given))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # meant for the server, which drains first
        signal.signal(number, signal.SIG_IGN)
    _die_with(parent)
    return_large_buffers(from_bytes=_KEPT_BYTES)
    _load_plugins()
    _bound_memory(limits)
    with socket.socket(fileno=link) as channel, channel.makefile("rwb", buffering=0) as lines:
        lines.write(b'{"ready": true}\n')
        while line := lines.readline():
            request = json.loads(line)
            signal.setitimer(signal.ITIMER_REAL, request["limit_s"] + _GRACE_S)
            answer = _answer(request, memory, limits)
            signal.setitimer(signal.ITIMER_REAL, 0)
            lines.write(json.dumps(answer).encode() + b"\n")


def _answer(request: dict[str, Any], memory: int, limits: DecodeLimits) -> dict[str, Any]:
    try:
        pixels, size, thumbnail = _framed(os.pread(memory, request["bytes"], 0), request["frame"], limits)
    except InputError as error:
        return {"error": error.code, "message": str(error)}
    except (Exception, MemoryError) as error:
        return {"error": InvalidImage.code, "message": f"image cannot be prepared ({type(error).__name__})"}
    if pixels.size:
        os.pwrite(memory, pixels.data, 0)
    if thumbnail:
        os.pwrite(memory, thumbnail, pixels.nbytes)
    return {"shape": pixels.shape, "size": size, "thumbnail_bytes": len(thumbnail)}


def _framed(
    data: bytes, frame: dict[str, Any], limits: DecodeLimits
) -> tuple[NDArray[np.uint8], tuple[int, int], bytes]:
    """Pixels uint8 [H, W, 3] as the spec says, (width, height) of the upright original, and its thumbnail.

    Without a spec there are no pixels, and the thumbnail is empty unless it was asked for: the picture is decoded once.
    """
    image = decode(data, limits)
    size = image.size
    spec: Any = SimpleNamespace(**(frame["spec"] or {}))
    if frame["spec"] is None:
        pixels = np.zeros((0, 0, 3), dtype=np.uint8)
    elif frame["dense"]:
        pixels = prepare_dense(image, spec, short_px=frame["short_px"])
    else:
        pixels = prepare(image, spec)
    return pixels, size, encode_thumbnail(image) if frame.get("thumbnail") else b""


def _formats(given: dict[str, Any]) -> dict[str, Any]:
    return {"formats": tuple(given["formats"])}


def _die_with(parent: int) -> None:
    """Be killed when the parent ends, whatever this process does then; without such a call, end at the next line."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
            score.write(_OOM_SCORE)
    if os.getppid() != parent:
        sys.exit(1)


def _load_plugins() -> None:
    """What Pillow loads with the first image of a format, and AVIF's threads: a process is one worker."""
    from PIL import AvifImagePlugin, Image, WebPImagePlugin

    Image.preinit()
    Image.MAX_IMAGE_PIXELS = None  # the limits are ours
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    assert WebPImagePlugin.SUPPORTED is not None


def _bound_memory(limits: DecodeLimits) -> None:
    """Memory for one picture of the largest size, and no more: a decoder that wants it fails alone."""
    try:
        with open("/proc/self/statm", encoding="ascii") as sizes:
            present = int(sizes.read().split()[0]) * resource.getpagesize()
    except OSError:
        return
    most = present + DECODE_BYTES_PER_PIXEL * limits.max_pixels + limits.max_bytes + _SLACK_BYTES
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main(sys.argv[1:])
