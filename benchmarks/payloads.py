"""The pictures and texts that are sent, in each server's dialects: the same bytes for everybody.

Pictures are 640 x 480 JPEGs of quality 90, each a mosaic of four crops of the attributed photographs that the project
carries, so that they have the detail (and the decoding cost) of photographs without needing any other file.
"""

from __future__ import annotations

import base64
import io
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image

from clipworks.load import Payload

PHOTOGRAPHS = Path(__file__).parent.parent / "model_store" / "precisions" / "calibration"
WIDTH_PX, HEIGHT_PX, QUALITY = 640, 480, 90
NPY = "application/x-npy"
JSON = "application/json"
_ADJECTIVES = "red blue green old small wet shiny broken wooden quiet tall round striped empty golden dusty"
_NOUNS = "bicycle dog house chair boat tree cup bridge lamp horse clock train bird table shoe guitar kite bus"
_SENTENCES = (
    "a {b} {n}",
    "a {a} {n} on the {p}",
    "a photo of a {a} {n}",
    "the {a} {n} near a {b} {m}",
    "a {a} {n} and a {b} {m}, {p}",
    "a photo of a {a} {n} beside the {b} {p}",
)
_PLACES = "street beach forest kitchen river field garden station roof market park hill room bay road"


def photographs(count: int, *, seed: int = 0) -> list[bytes]:
    """`count` different mosaics as JPEG bytes; equal for equal arguments."""
    sources = [Image.open(path).convert("RGB") for path in sorted(PHOTOGRAPHS.glob("*.jpg"))]
    if not sources:
        raise FileNotFoundError(f"no photographs in {PHOTOGRAPHS}")
    chance = random.Random(seed)
    half = (WIDTH_PX // 2, HEIGHT_PX // 2)
    pictures = []
    for _ in range(count):
        mosaic = Image.new("RGB", (WIDTH_PX, HEIGHT_PX))
        corners = itertools.product((0, half[0]), (0, half[1]))
        for corner, source in zip(corners, chance.sample(sources, 4), strict=True):
            mosaic.paste(_fill(source, half), corner)
        pictures.append(jpeg(mosaic))
    return pictures


def jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _fill(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Centre part of `image` that covers `size`; enlarged only when a side is too short."""
    scale = max(size[0] / image.width, size[1] / image.height)
    if scale > 1:
        image = image.resize((max(round(image.width * scale), size[0]), max(round(image.height * scale), size[1])))
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))


def short_texts(count: int, *, seed: int = 0) -> list[str]:
    """Different texts of 3 to 10 words, 5 to 12 tokens as titles and queries have, so that no cache can answer.

    Lengths are mixed, because servers differ in what they do with texts of unequal length.
    """
    chance = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        a, b = chance.sample(_ADJECTIVES.split(), 2)
        n, m = chance.sample(_NOUNS.split(), 2)
        text = chance.choice(_SENTENCES).format(a=a, b=b, n=n, m=m, p=chance.choice(_PLACES.split()))
        found[text] = None
    return list(found)


@dataclass(frozen=True)
class Dialect:
    """One way to ask one server: where to, which answer is wanted, and the bodies, which are sent in turn."""

    path: str
    accept: str
    payloads: tuple[Payload, ...]

    @property
    def headers(self) -> dict[str, str]:
        return {"Accept": self.accept}


def raw_images(images: Sequence[bytes], model: str | None) -> Dialect:
    """clipworks' leanest form: the JPEG itself in, a .npy array out; one image a request."""
    payloads = tuple(Payload(body=image, content_type="image/jpeg") for image in images)
    return Dialect("/embed" + (f"?model={model}" if model else ""), NPY, payloads)


def own_texts(texts: Sequence[str], model: str | None, *, batch: int = 1) -> Dialect:
    """clipworks' own JSON in, a .npy array out."""
    return Dialect("/embed", NPY, tuple(_json(model, {"inputs": group}) for group in _groups(texts, batch)))


def openai_images(images: Sequence[bytes], model: str | None, *, path: str, batch: int = 1) -> Dialect:
    """The dialect both servers speak: data URIs under `modality: image`, base64 float32 back."""
    uris = ["data:image/jpeg;base64," + base64.b64encode(image).decode("ascii") for image in images]
    common = {"modality": "image", "encoding_format": "base64"}
    return Dialect(path, JSON, tuple(_json(model, {**common, "input": group}) for group in _groups(uris, batch)))


def openai_texts(texts: Sequence[str], model: str | None, *, path: str, batch: int = 1) -> Dialect:
    common = {"encoding_format": "base64"}
    return Dialect(path, JSON, tuple(_json(model, {**common, "input": group}) for group in _groups(texts, batch)))


def _groups(items: Sequence[str], size: int) -> list[list[str]]:
    return [list(items[start : start + size]) for start in range(0, len(items) - size + 1, size)]


def _json(model: str | None, body: dict[str, Any]) -> Payload:
    items = len(body["input"] if "input" in body else body["inputs"])
    return Payload(body=orjson.dumps(body | ({"model": model} if model else {})), content_type=JSON, items=items)


def send(url: str, dialect: Dialect, index: int = 0, *, timeout_s: float = 60.0) -> httpx2.Response:
    """One request of a dialect, outside any measurement.

    Raises:
        httpx2.TransportError: nobody listens, or the connection broke.
    """
    payload = dialect.payloads[index]
    headers = {**dialect.headers, "Content-Type": payload.content_type}
    return httpx2.post(url + dialect.path, content=payload.body, headers=headers, timeout=timeout_s)


def vectors(response: httpx2.Response) -> NDArray[np.float32]:
    """The array [n, D] of an answer in any of these dialects.

    Raises:
        ValueError: the status is not 200; the message holds the answer.
    """
    if response.status_code != 200:
        raise ValueError(f"status {response.status_code}: {response.content[:300]!r}")
    if response.headers.get("content-type", "").startswith(NPY):
        return np.load(io.BytesIO(response.content), allow_pickle=False)
    data: list[dict[str, Any]] = orjson.loads(response.content)["data"]
    rows = [item["embedding"] for item in sorted(data, key=lambda item: item["index"])]
    if isinstance(rows[0], str):
        return np.stack([np.frombuffer(base64.b64decode(row), dtype="<f4") for row in rows])
    return np.asarray(rows, dtype=np.float32)
