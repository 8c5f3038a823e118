"""Build the site of the documentation: `make docs`, or `python docs/generator/build.py`.

Pages lie where GitHub shows them (docs/, CONTRIBUTING.md, CHANGELOG.md). They are copied to build/pages with links that
fit the site, next to what is made from code (routes, commands, client) and from the notebooks; then zensical builds
build/site from mkdocs.yml. A broken link, a page that `nav` does not list and one that it lists in vain are errors.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cli_reference
import client_reference
import http_reference
import notebooks
import pages
import sources
import yaml

ROOT = Path(__file__).resolve().parents[2]
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
sys.path.insert(1, str(ROOT))  # what is documented is this tree, wherever clipworks is installed


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the site of the documentation.")
    parser.add_argument("--folder", type=Path, default=ROOT / "build", help="gets pages/ and site/; default: build")
    parser.add_argument("--serve", action="store_true", help="serve the site afterwards, on this machine only")
    parser.add_argument("--port", type=int, default=8001)
    asked = parser.parse_args()
    site = build(asked.folder.resolve())
    print(f"open {site / 'index.html'}")
    if asked.serve:
        serve(site, asked.port)


def build(folder: Path) -> Path:
    """Write folder/pages and folder/site; the latter is returned.

    Raises:
        SystemExit: a link, an anchor or the navigation is wrong; what and where was printed.
    """
    written, site = folder / "pages", folder / "site"
    for old in (written, site):
        shutil.rmtree(old, ignore_errors=True)
    staged = pages.stage(ROOT, written)
    staged |= notebooks.write(ROOT / "docs" / "notebooks", written / "notebooks")
    for name, text in {
        "reference/http.md": http_reference.routes_page(),
        "reference/schemas.md": http_reference.schemas_page(),
        "reference/cli.md": cli_reference.page(),
        "reference/python.md": client_reference.page(),
    }.items():
        (written / name).parent.mkdir(exist_ok=True)
        (written / name).write_text(text, encoding="utf-8")
        staged.add(name)
    sources.write(ROOT, written / "source", wanted=pages.linked_sources(ROOT))
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    config["nav"] = expanded(config["nav"], staged)
    if troubles := navigation_troubles(config["nav"], staged):
        raise SystemExit("\n".join(troubles))
    config |= {"docs_dir": "pages", "site_dir": "site"}
    for plugin in config["plugins"]:
        if "mkdocstrings" in plugin:
            plugin["mkdocstrings"]["handlers"]["python"]["paths"] = [str(ROOT)]
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", str(folder / "mkdocs.yml")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(_COLOUR.sub("", done.stdout + done.stderr.partition("Traceback")[0]))
    return site


def expanded(nav: list[object], staged: set[str]) -> list[object]:
    """`nav` with the pages of a folder in place of `folder/*`; their titles are those of the pages."""
    parts: list[object] = []
    for part in nav:
        if isinstance(part, dict):
            parts.append(
                {
                    title: expanded(inside, staged) if isinstance(inside, list) else inside
                    for title, inside in part.items()
                }
            )
        elif isinstance(part, str) and part.endswith("/*"):
            parts += sorted(name for name in staged if name.startswith(part[:-1]) and name != f"{part[:-1]}index.md")
        else:
            parts.append(part)
    return parts


def listed(nav: object) -> list[str]:
    """The files of a `nav`, in their order."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [name for part in parts for name in listed(part)]


def navigation_troubles(nav: object, staged: set[str]) -> list[str]:
    """Pages that stand in `nav` twice, in vain, or not at all."""
    names = listed(nav)
    return [
        *(f"mkdocs.yml: nav lists {name} twice" for name in sorted({name for name in names if names.count(name) > 1})),
        *(f"mkdocs.yml: nav lists {name}, which is no page" for name in sorted(set(names) - staged)),
        *(
            f"{name} is not in the nav of mkdocs.yml: add a line `- Title: {name}` under Tutorials, How-to guides, "
            "Reference, Explanation or Studies"
            for name in sorted(staged - set(names))
        ),
    ]


def serve(site: Path, port: int) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        print(f"http://127.0.0.1:{server.server_port} until Ctrl-C")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
