"""Every public name of `clipworks`; mkdocstrings fills in signatures and docstrings when the site is built."""

from __future__ import annotations

_INTRODUCTION = """# Names of the Python client

Made from the code. How they are used: [Python client](../client.md). The models of answers are those of the wire:
[schemas](schemas.md), importable from `clipworks.schemas`.

"""


def page() -> str:
    return _INTRODUCTION + "\n".join(f"::: {where}\n" for where in names().values())


def names() -> dict[str, str]:
    """Public names with the place of their definition, classes that are called first."""
    import clipworks

    homes = {name: getattr(clipworks, name) for name in clipworks.__all__}
    first = ("Client", "AsyncClient", "Collection", "AsyncCollection")
    ordered = [*first, *sorted(set(homes) - set(first))]
    return {name: f"{homes[name].__module__}.{homes[name].__qualname__}" for name in ordered}
