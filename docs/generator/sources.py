"""Files of the repository that pages link to, as pages of their own: the site knows of no host with the repository."""

from __future__ import annotations

import html
from pathlib import Path

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
body {{ margin: 1rem; font: 15px/1.5 system-ui, sans-serif }}
h1 {{ font-size: 1.2rem; overflow-wrap: anywhere }}
pre {{ font: 13px/1.45 ui-monospace, monospace; overflow-x: auto }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def name_of(target: str, root: Path) -> str:
    """The page of a file or folder of the repository."""
    return f"source/{target}/index.html" if (root / target).is_dir() else f"source/{target}.html"


def write(root: Path, folder: Path, *, wanted: set[str]) -> None:
    """A page for each file of `wanted`, and for a folder a list that leads to its files."""
    for target in sorted(wanted):
        path = root / target
        if path.is_file():
            _write_file(path, target, folder)
            continue
        rows: list[str] = []
        for each in sorted(path.rglob("*")):
            if each.is_dir() or "__pycache__" in each.parts:
                continue
            name = html.escape(each.relative_to(path).as_posix())
            written = _write_file(each, f"{target}/{name}", folder)
            rows.append(f'<li><a href="{name}.html">{name}</a></li>' if written else f"<li>{name}</li>")
        _write(folder / target / "index.html", f"{target}/", f"<ul>{''.join(rows)}</ul>")


def _write_file(path: Path, target: str, folder: Path) -> bool:
    """False where the file is no text."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    _write(folder / f"{target}.html", target, f"<pre>{html.escape(text, quote=False)}</pre>")
    return True


def _write(page: Path, title: str, body: str) -> None:
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(_PAGE.format(title=html.escape(title), body=body), encoding="utf-8")
