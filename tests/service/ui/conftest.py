"""A real browser in front of a real server with pictures in a collection; nothing of it reaches another host."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright", reason="the page is tested in a browser (extra dev)")
pytest.importorskip("onnx")
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright  # noqa: E402

from clipworks.client import Client, Item  # noqa: E402
from model_store.manifest import SearchCalibration  # noqa: E402
from model_store.seal import write_manifest  # noqa: E402
from model_store.store import Store  # noqa: E402
from tests.service.http import colour_model  # noqa: E402
from tests.stores import TINY_STORE  # noqa: E402

expect.set_options(timeout=20_000)
COLOURS = {"red": (200, 40, 40), "green": (30, 160, 40), "blue": (40, 60, 200)}


def browser_program() -> str:
    """Chromium of the system; in CI it must be there."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        if os.environ.get("CI") and not os.environ.get("CLIPWORKS_NO_BROWSER"):
            pytest.fail("no Chromium: .ci/run installs it with apt-get")
        pytest.skip("no Chromium here: apt-get install chromium")
    return found


def picture(colour: str, seed: int = 0, *, form: str = "PNG") -> bytes:
    """A noisy picture of one colour."""
    rng = np.random.default_rng([seed, *colour.encode()])
    pixels = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 25, (48, 64, 3)), 0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


@dataclass
class Site:
    """A server and a browser; `page()` opens one of its pages, and what went wrong there is kept."""

    url: str
    client: Client
    browser: Browser
    troubles: list[str]
    foreign: list[str]

    def page(self, query: str = "", *, width: int = 1200, height: int = 900, dark: bool = False) -> Page:
        page = self.browser.new_page(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        page.set_default_timeout(20_000)
        page.on("console", lambda said: self.troubles.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("request", self._asked)
        page.goto(f"{self.url}/ui{query}")
        return page

    def refused(self, status: int) -> None:
        """Take back what the browser itself says of an answer that was meant to be this."""
        self.troubles[:] = [said for said in self.troubles if f"status of {status}" not in said]

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.foreign.append(request.url)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of a module: while it is open, Playwright's event loop counts as running, and no other test could start one."""
    with sync_playwright() as playwright:
        # A container's root has no user namespaces for the sandbox.
        options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=browser_program(), args=options)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def colour_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colour_store") / "store"
    shutil.copytree(TINY_STORE, folder)  # its tokeniser is taken
    colour_model.publish(folder, "colours")
    made = Store(folder, builtin=False).open("colours")
    # What shows no colour more than the others matches none: "no" is such a text.
    curves = SearchCalibration(
        neutral_texts=("red", "green", "blue"),
        hit_slope=10,
        hit_offset=0,
        match_slope=10,
        match_offset=0,
        threshold=0.5,
    )
    write_manifest(made.folder, made.manifest.model_copy(update={"search": curves}))
    return folder


@pytest.fixture(scope="module")
def served(
    colour_store: Path, tmp_path_factory: pytest.TempPathFactory, serving: Callable[..., AbstractContextManager[str]]
) -> Iterator[Client]:
    """A server with two collections: "photos", 24 pictures with metadata, and "vectors", 1,000 vectors."""
    data = tmp_path_factory.mktemp("data")
    with serving("--store", colour_store, "--model", "colours", "--data", data) as url, Client(url) as client:
        photos = client.create_collection(
            "photos", thumbnails=True, metadata_schema={"year": "number", "kind": "string", "own": "boolean"}
        )
        names = [(colour, number) for colour in COLOURS for number in range(8)]
        photos.upsert_images(
            [picture(*each) for each in names],
            ids=[f"{colour}/{number}.png" for colour, number in names],
            metadata=[{"year": 2016 + number, "kind": colour, "own": number % 2 == 0} for colour, number in names],
        )
        rng = np.random.default_rng(0)
        vectors_of = client.create_collection("vectors")
        vectors = np.abs(rng.normal(size=(1000, colour_model.DIM))).astype(np.float32)
        vectors_of.upsert([Item(id=f"item-{number:04}", vector=vector) for number, vector in enumerate(vectors)])
        yield client


@pytest.fixture
def site(served: Client, browser: Browser) -> Iterator[Site]:
    """A fresh context (session, address); at the end nothing was said on the console, and no other host was asked."""
    found = Site(served.url, served, browser, [], [])
    yield found
    for each in browser.contexts:
        each.close()
    assert not found.troubles
    assert not found.foreign
