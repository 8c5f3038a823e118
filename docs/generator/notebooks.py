"""Notebooks as pages, with the outputs that are stored in them."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

_PICTURE = re.compile(r"!\[(?:jpe?g|png|svg)\]")


def write(notebooks: Path, folder: Path) -> set[str]:
    """A page, and a folder of its pictures, for each notebook; the names of the pages in the site."""
    written: set[str] = set()
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(notebooks.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        resources = {"output_files_dir": f"{path.stem}_files", "unique_key": path.stem}
        text, made = MarkdownExporter().from_notebook_node(notebook, resources=resources)
        for name, content in made["outputs"].items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        described = iter(_descriptions(notebook))
        page = _PICTURE.sub(lambda _, each=described: f"![{next(each)}]", text)
        (folder / f"{path.stem}.md").write_text(page, encoding="utf-8")
        written.add(f"{folder.name}/{path.stem}.md")
    return written


def _descriptions(notebook: nbformat.NotebookNode) -> list[str]:
    """The `alt` of each picture among the outputs, in their order."""
    return [
        described.get("alt", "")
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        for kind, described in output.get("metadata", {}).items()
        if kind.startswith("image/")
    ]
