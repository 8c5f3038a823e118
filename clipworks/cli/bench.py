"""`clipworks bench`: load on a running server, from encoded image or text in to vector out."""

from __future__ import annotations

import asyncio
import io
import math
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from clipworks._bodies import request_of
from clipworks._inputs import ImageBytes, Text
from clipworks.cli import connect, output
from clipworks.cli.failures import FAILED_ITEMS, UsageError
from clipworks.cli.picture_files import Selection, pictures_of
from clipworks.client import DEFAULT_URL, Client
from clipworks.load import LoadResult, Payload, run_load

_TEXTS = ("a red shirt", "a photo of a blue running shoe", "a leather handbag with a gold buckle", "white socks")
_DRAWN = 16


def bench(
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="IMAGE", help="Images or folders to send; drawn ones when left out.", exists=True),
    ] = None,
    url: Annotated[str, typer.Option(envvar="CLIPWORKS_URL", help="The server.")] = DEFAULT_URL,
    what: Annotated[Literal["images", "texts"], typer.Option("--of", help="What to embed.")] = "images",
    items: Annotated[int, typer.Option(min=1, max=256, help="Inputs of each request.")] = 1,
    clients: Annotated[int, typer.Option(min=1, max=1024, help="Requests at the same time.")] = 8,
    rate: Annotated[
        float | None, typer.Option(help="Requests per second at random moments (open loop), whatever the server does.")
    ] = None,
    duration_s: Annotated[float, typer.Option("--duration-s", min=0.5, help="Measured time.")] = 10.0,
    warmup_s: Annotated[float, typer.Option("--warmup-s", min=0.0, help="Time before it.")] = 2.0,
    model: connect.Model = None,
    api_key: connect.ApiKey = None,
    as_json: connect.AsJson = False,
) -> None:
    """Measure a running server: items per second and latencies over HTTP.

    Where load and server run on one machine they share its cores; "own CPU" is what the load took.
    """
    if rate is not None and (not math.isfinite(rate) or rate <= 0):
        raise UsageError(f"--rate {rate:g}: expected a positive number of requests per second")
    if what == "texts" and images:
        raise UsageError("--of texts sends texts; leave the images out")
    encoded = _encoded(images or []) if what == "images" else []
    payloads = _payloads(encoded, items, model)
    with _client(url, api_key) as client:
        # One request first: what is wrong is told once, as a sentence.
        client.embed(texts=[] if encoded else _TEXTS[:1], images=encoded[:1], model=model)
        address = client.url
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    # More connections than clients would wait for each other at once, so an open loop gets plenty.
    work = run_load(
        f"{address}/embed",
        payloads,
        mode="closed" if rate is None else "open",
        concurrency=clients if rate is None else max(clients, 256),
        rate=rate,
        duration_s=duration_s,
        warmup_s=warmup_s,
        headers=headers,
    )
    result = asyncio.run(_watched(work, warmup_s + duration_s))
    if as_json:
        output.print_json({"url": address, "of": what, "items_per_request": items, **asdict(result)})
    else:
        output.print_facts(_facts(result, what))
    if result.failed:
        raise typer.Exit(FAILED_ITEMS)


def _client(url: str, api_key: str | None) -> Client:
    try:
        return Client(url, api_key=api_key)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _encoded(paths: Sequence[Path]) -> list[bytes]:
    files, _, _ = pictures_of(map(str, paths), Selection())
    return [Path(name).read_bytes() for name in files] if files else drawn_photographs(_DRAWN)


def drawn_photographs(count: int) -> list[bytes]:
    """JPEG files of 640 x 480 with smooth shapes and grain, about as costly to decode as photographs.

    Raises:
        UsageError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise UsageError("name some images: without Pillow none can be drawn (pip install Pillow)") from None
    files: list[bytes] = []
    for seed in range(count):
        grain = Image.effect_noise((640, 480), 40 + seed)
        shapes = Image.radial_gradient("L").resize((640, 480)).rotate(20 * seed)
        picture = Image.merge("RGB", (shapes, Image.linear_gradient("L").resize((640, 480)), grain))
        sink = io.BytesIO()
        picture.save(sink, "JPEG", quality=85)
        files.append(sink.getvalue())
    return files


def _payloads(images: Sequence[bytes], items: int, model: str | None) -> list[Payload]:
    """Bodies as the client makes them; each begins with another input."""
    inputs = [ImageBytes(data) for data in images] or [Text(text) for text in _TEXTS]
    options = {"encoding_format": "base64"} | ({"model": model} if model else {})
    payloads: list[Payload] = []
    for start in range(len(inputs)):
        chosen = [inputs[(start + offset) % len(inputs)] for offset in range(items)]
        request = request_of("/embed", options, chosen)
        payloads.append(Payload(body=request.content or b"", content_type=request.headers["Content-Type"], items=items))
    return payloads


async def _watched(work: Coroutine[None, None, LoadResult], seconds: float) -> LoadResult:
    """Run it with a bar of the time on a terminal."""
    task = asyncio.create_task(work)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task("load", total=seconds)
            while not task.done():
                await asyncio.wait([task], timeout=0.5)
                progress.advance(bar, 0.5)
    return await task


def _facts(result: LoadResult, what: str) -> list[tuple[str, str]]:
    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f} ms"

    loop = f"closed loop, {result.concurrency} clients"
    if result.offered_rate is not None:
        loop = f"open loop, {result.offered_rate:g} requests/s"
    return [
        ("load", f"{loop}, {result.duration_s:g} s"),
        (f"{what}/s", f"{result.items_per_s:.1f}"),
        ("requests", str(result.requests)),
        ("p50", ms(result.p50_ms)),
        ("p95", ms(result.p95_ms)),
        ("p99", ms(result.p99_ms)),
        ("errors", ", ".join(f"{count} x {kind}" for kind, count in result.errors.items()) or "none"),
        ("own CPU", f"{result.own_cpu_share:.2f} cores"),
    ]
