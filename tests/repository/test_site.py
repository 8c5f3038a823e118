"""The site of `make docs`: built strictly, whole, without a dead link or another host, and true to the code."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import typer
from markdown_it import MarkdownIt

import clipworks
from clipworks.cli import app as command_line
from service.app import create_app
from service.settings import Settings

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "docs" / "generator" / "build.py"
PARTS = ("li", "table", "tr", "pre", "img", "h1", "h2", "h3", "h4")


@dataclass
class Page(HTMLParser):
    """What a page links to, loads and names, and how often it has each of PARTS."""

    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    parts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.ids.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(given["href"])
        elif "src" in given:
            self.loaded.append(given["src"])
        if tag in self.parts:
            self.parts[tag] += 1


def parsed(html: str) -> Page:
    page = Page()
    page.feed(html)
    return page


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, BUILD, "--folder", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: parsed(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def targets(pages: dict[Path, Page], of: str) -> Iterator[tuple[Path, str, Path, str]]:
    """(page, address, file, fragment) of each address inside the site."""
    for path, page in pages.items():
        for address in getattr(page, of):
            parts = urlsplit(address)
            if not parts.scheme and not parts.netloc:
                file = path.parent / unquote(parts.path) if parts.path else path
                yield path, address, file.resolve(), unquote(parts.fragment)


def test_every_link_and_anchor_leads_somewhere(pages: dict[Path, Page], site: Path) -> None:
    dead: list[str] = []
    for path, address, file, fragment in targets(pages, "links"):
        if path.name == "404.html" or address == ".":
            continue
        if not file.is_file() or (fragment and file in pages and fragment not in pages[file].ids):
            dead.append(f"{path.relative_to(site)}: {address}")
    assert dead == []
    assert sum(1 for _ in targets(pages, "links")) > 5000


def test_nothing_is_loaded_from_another_host(pages: dict[Path, Page], site: Path) -> None:
    for path, page in pages.items():
        foreign = [each for each in page.loaded if urlsplit(each).netloc or urlsplit(each).scheme not in ("", "data")]
        assert foreign == [], path.relative_to(site)
    for path, address, file, _ in targets(pages, "loaded"):
        assert path.name == "404.html" or file.is_file(), f"{path.relative_to(site)} loads {address}"
    for sheet in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import\s*)[\"']?(?:https?:)?//[^)\"']+", sheet.read_text(encoding="utf-8"))
        assert found == [], sheet.relative_to(site)


def test_the_vendored_script_is_that_of_its_package() -> None:
    assets = BUILD.parent / "assets"
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in assets.glob("*.js")}
    assert digests == {"iframe-worker-1.0.4.js": "e8e412dbcfea9b7e31b5ffa288d7b6035915e714c542f4176a0cdbe262fc9609"}
    assert (assets / "LICENSE-iframe-worker.txt").is_file()


def test_every_page_of_the_repository_is_in_the_site_and_its_navigation(pages: dict[Path, Page], site: Path) -> None:
    docs = ROOT / "docs"
    hand_written = {path.relative_to(docs).with_suffix(".html") for path in docs.rglob("*.md")}
    notebooks = {path.relative_to(docs).with_suffix(".html") for path in docs.rglob("*.ipynb")}
    expected = hand_written | notebooks | {Path("contributing.html"), Path("changelog.html")}
    home = site / "index.html"
    navigation = {(home.parent / urlsplit(link).path).resolve() for link in pages[home].links if link}
    for name in sorted(expected):
        assert (site / name).is_file(), name
        assert (site / name).resolve() in navigation, f"{name}: add its page to `nav` in mkdocs.yml"


def test_pages_read_as_on_github(site: Path) -> None:
    """GitHub reads CommonMark, the site Python-Markdown: a list or a table that only one of them sees is a mistake."""
    reader = MarkdownIt("gfm-like", {"linkify": False})
    for path in sorted((ROOT / "docs").rglob("*.md")):
        built = (site / path.relative_to(ROOT / "docs")).with_suffix(".html").read_text(encoding="utf-8")
        article = built[built.index("<article") : built.index("</article>")]
        assert parsed(article).parts == parsed(reader.render(path.read_text(encoding="utf-8"))).parts, path.name


def test_the_reference_has_every_route_and_schema(site: Path) -> None:
    document = create_app(Settings(data="memory"), with_collections=False).openapi()
    routes, schemas = (
        (site / "reference" / name).read_text(encoding="utf-8") for name in ("http.html", "schemas.html")
    )
    headings = re.findall(r"<h3[^>]*>(.*?)<a", routes)
    expected = [f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods]
    assert headings == expected
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            start = routes.index(f">{method.upper()} {path}<")
            section = routes[start : routes.find("<h3", start)]
            for parameter in operation.get("parameters", ()):
                assert f"<code>{parameter['name']}</code>" in section, (path, parameter["name"])
            errors = sorted(status for status in operation["responses"] if status >= "4")
            assert not errors or f"<strong>Errors</strong>: {', '.join(errors)}" in section, path
    for name, schema in document["components"]["schemas"].items():
        start = schemas.index(f'id="schema-{name.lower()}"')
        section = schemas[start : schemas.find("<h2", start)]
        for field_name in schema.get("properties", ()):
            assert f"<code>{field_name}</code>" in section, (name, field_name)


def test_the_reference_has_every_command_and_option(site: Path) -> None:
    html = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    command = typer.main.get_command(command_line)

    def visit(each: Any, context: typer.Context, name: str) -> int:
        sections = re.split(f"<h[2-5][^>]*><code>{re.escape(name)}</code>", html)
        assert len(sections) == 2, name
        section = re.split("<h[2-5]", sections[1], maxsplit=1)[0]
        for parameter in each.get_params(context):
            if parameter.param_type_name == "option" and not getattr(parameter, "hidden", False):
                assert any(option in section for option in parameter.opts), (name, parameter.opts)
        inside = each.list_commands(context) if hasattr(each, "list_commands") else []
        return 1 + sum(visit(each.get_command(context, one), context, f"{name} {one}") for one in inside)

    assert visit(command, typer.Context(command), "clipworks") > 30


def test_the_reference_has_every_public_name_of_the_client(pages: dict[Path, Page], site: Path) -> None:
    ids = pages[site / "reference" / "python.html"].ids
    for name in clipworks.__all__:
        thing = getattr(clipworks, name)
        where = f"{thing.__module__}.{thing.__qualname__}"
        assert where in ids
        for own, value in vars(thing).items():
            if not own.startswith("_") and (callable(value) or isinstance(value, property)):
                assert f"{where}.{own}" in ids
