"""The hand-written pages: copied, with links that lead to pages of the site or to copies of the repository's files."""

from __future__ import annotations

import posixpath
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import sources

OUTSIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages that GitHub wants at the top of the repository."""
_COPIED = ("photos", "pictures")
_FENCE = re.compile(r"^ *(`{3,}|~{3,})")
_INDENTED = re.compile(r"^(    |\t)")
# [name.md](place#anchor) with the name of a page as its text, or the end of any other link.
_LINK = re.compile(
    r"(?:\[(?:docs/)?(?P<name>[\w-]+\.md))?\]\((?!\w+:|#)(?P<place>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?=[)\s])"
)
_COMMENT = re.compile(r"^<!--.*?-->\n", re.MULTILINE)


def stage(root: Path, written: Path) -> set[str]:
    """Copy every page below docs/ and those outside of it; their names in the site."""
    staged: set[str] = set()
    for path, name in _pages(root):
        target = written / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_for_site(path, name, root), encoding="utf-8")
        staged.add(name)
    (written / "decisions" / "index.md").write_text(_decisions(root), encoding="utf-8")
    staged.add("decisions/index.md")
    for folder in _COPIED:
        shutil.copytree(root / "docs" / folder, written / folder)
    shutil.copytree(root / "docs" / "generator" / "assets", written / "assets")
    return staged


def _decisions(root: Path) -> str:
    """The list that GitHub shows as a folder."""
    rows: list[str] = []
    for path in sorted((root / "docs" / "decisions").glob("*.md")):
        rows.append(f"- [{_title(path)}]({path.name})\n")
    return "# Decisions\n\nWhy things are as they are, where it is not obvious.\n\n" + "".join(rows)


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def linked_sources(root: Path) -> set[str]:
    """Files and folders of the repository that pages link to and that are no pages: posix paths from its root."""
    found: set[str] = set()
    for path, name in _pages(root):
        _for_site(path, name, root, found.add)
    return found


def _pages(root: Path) -> Iterator[tuple[Path, str]]:
    docs = root / "docs"
    for path in sorted(docs.rglob("*.md")):
        yield path, path.relative_to(docs).as_posix()
    for at_top, name in OUTSIDE.items():
        yield root / at_top, name


def _for_site(path: Path, name: str, root: Path, linked: Callable[[str], object] = lambda _: None) -> str:
    """The text of a page without its remarks for tests, its links rewritten, but not in code."""
    here = posixpath.dirname(path.relative_to(root).as_posix())
    from_folder = posixpath.dirname(name) or "."

    def rewritten(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, match["place"]))
        place = _place(target, root)
        if place.startswith("source/"):
            linked(target)
        text = ""
        if match["name"]:
            is_page = posixpath.basename(target) == match["name"] and (root / target).is_file()
            text = f"[{_title(root / target) if is_page else match['name']}"
        return f"{text}]({posixpath.relpath(place, from_folder)}{match['anchor'] or ''}"

    lines: list[str] = []
    fence = ""
    for line in _COMMENT.sub("", path.read_text(encoding="utf-8")).splitlines():
        mark = _FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        elif not fence and not _INDENTED.match(line):
            line = _LINK.sub(rewritten, line)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _place(target: str, root: Path) -> str:
    """Where in the site a path of the repository is. What is nowhere keeps its name, and the build says so."""
    if target in OUTSIDE:
        return OUTSIDE[target]
    if target == "README.md":
        return "index.md"
    inside = target.removeprefix("docs/")
    if target == "docs/decisions":
        return "decisions/index.md"
    if target.startswith("docs/"):
        if target.endswith(".ipynb"):
            return inside.removesuffix(".ipynb") + ".md"
        if target.endswith(".md") or inside.split("/")[0] in _COPIED:
            return inside
    return sources.name_of(target, root) if (root / target).exists() else inside
