"""Checks of Python and of the packages: versions, flavours that exclude each other, formats of pictures, torch."""

from __future__ import annotations

import importlib
import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from types import MappingProxyType

from clipworks.cli.doctor.diagnosis import Diagnosis, failure, ok, warning
from clipworks.cli.doctor.subject import Subject

_PROJECT = "clipworks"
# Module -> the distributions that may bring it; where there are several, they write over each other's files.
_MODULES = MappingProxyType(
    {
        "numpy": re.compile("numpy"),
        "onnxruntime": re.compile("onnxruntime(-(gpu|directml|openvino|rocm|migraphx|qnn|training|silicon))?"),
        "faiss": re.compile("faiss(-(cpu|gpu)(-.*)?)?"),
        "PIL": re.compile("pillow(-simd)?"),
        "apsw": re.compile("apsw"),
        "fastapi": re.compile("fastapi"),
        "pydantic": re.compile("pydantic"),
        "httpx2": re.compile("httpx2"),
    }
)
_OF_A_SERVER = frozenset({"fastapi", "onnxruntime"})
_CLAUSE = re.compile(r"(>=|<)\s*(\d+(?:\.\d+)*)")
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^]]*\])?([^;]*)")


def check_python(subject: Subject) -> Diagnosis:
    """Whether this release of clipworks runs on this Python."""
    found = f"Python {platform.python_version()}, {sys.executable}"
    wanted = _fact("Requires-Python")
    if wanted and not _satisfies(platform.python_version(), wanted):
        return failure(
            f"{found}; clipworks needs {wanted}", f"make an environment with Python {wanted}, pip install clipworks"
        )
    return ok(found)


def check_packages(subject: Subject) -> Diagnosis:
    """Versions, and whether each can be imported and is as new as this release asks for."""
    installed = dict(_distributions())
    missing = sorted(module for module in _MODULES if find_spec(module) is None)
    if missing and set(missing) >= _OF_A_SERVER:
        return warning(
            f"clipworks {_version()} without a server: {', '.join(missing)} are not there",
            "pip install 'clipworks[serve]' to serve here; to ask a server with --url nothing is missing",
        )
    if missing:
        return failure(f"not there: {', '.join(missing)}", "pip install 'clipworks[serve]'")
    broken = [f"{module} ({reason})" for module in _MODULES if (reason := _unimportable(module))]
    if broken:
        return failure(f"cannot be imported: {', '.join(broken)}", "pip install --force-reinstall 'clipworks[serve]'")
    wanted = dict(_requirements())
    versions = {name: installed[name] for name in sorted(installed) if _module_of(name)}
    old = [name for name, version in versions.items() if not _satisfies(version, wanted.get(name, ""))]
    if old:
        return failure(
            "not the version that this release needs: "
            + ", ".join(f"{name} {versions[name]} ({wanted[name]})" for name in old),
            f"pip install {' '.join(repr(name + wanted[name]) for name in old)}",
        )
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    return ok(f"clipworks {_version()}, {shown}")


def check_flavours(subject: Subject) -> Diagnosis | None:
    """Two distributions of one module: whichever was installed last has written over the other's files."""
    names = [name for name, _ in _distributions()]
    flavours = {module: sorted(filter(one_of.fullmatch, names)) for module, one_of in _MODULES.items()}
    several = {module: found for module, found in flavours.items() if len(found) > 1}
    if several:
        all_of_them = " ".join(name for found in several.values() for name in found)
        return failure(
            "two flavours of one package: " + "; ".join(" and ".join(found) for found in several.values()),
            f"pip uninstall {all_of_them}, then pip install 'clipworks[serve]', or 'clipworks[serve-gpu]' for a GPU",
        )
    one_each = [found[0] for module in ("onnxruntime", "faiss") if (found := flavours[module])]
    return ok(f"one flavour of each: {', '.join(one_each)}") if one_each else None


def check_formats(subject: Subject) -> Diagnosis | None:
    """Which pictures this Pillow can read."""
    if find_spec("PIL") is None:
        return None
    from PIL import features

    from model_store.modality.formats import ALL_FORMATS, HEIC_EXTRA, missing_decoder

    lacking = [name for name in ("WEBP", "AVIF") if not features.check(name.lower())]  # pyright: ignore[reportUnknownMemberType]
    if lacking:
        return warning(
            f"this Pillow reads no {' and no '.join(lacking)}: such pictures are refused",
            "pip install --force-reinstall --only-binary :all: Pillow",
        )
    readable = [name for name in ALL_FORMATS if missing_decoder(name) is None]
    heic = "" if "HEIF" in readable else f"; HEIC only with pip install 'clipworks[{HEIC_EXTRA}]'"
    return ok(", ".join(readable) + heic)


def check_torch(subject: Subject) -> Diagnosis:
    """Said, never judged: only training and importing open_clip's models need it. It is not imported here."""
    if find_spec("torch") is None:
        return ok("not there; only training and `clipworks models import` need it")
    versions = [each.version for each in metadata.distributions(name="torch")]
    return ok(f"torch {versions[0] if versions else 'of unknown version'}, for training; a server never imports it")


def _distributions() -> Iterator[tuple[str, str]]:
    """(name in lower case with hyphens, version) of everything that is installed, the first on the path wins."""
    seen: set[str] = set()
    for each in metadata.distributions():
        name = re.sub("[-_.]+", "-", each.name or "").lower()
        if name not in seen:
            seen.add(name)
            yield name, each.version


def _module_of(distribution: str) -> str | None:
    return next((module for module, one_of in _MODULES.items() if one_of.fullmatch(distribution)), None)


def _unimportable(module: str) -> str:
    """Why it cannot be imported; "" where it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a package that was built for something else fails in any way it likes
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return ""


def _requirements() -> Iterator[tuple[str, str]]:
    """(distribution, clauses such as >=2.3) of every extra."""
    try:
        lines = metadata.requires(_PROJECT) or []
    except metadata.PackageNotFoundError:
        return
    for line in lines:
        if found := _REQUIREMENT.match(line):
            yield re.sub("[-_.]+", "-", found[1]).lower(), found[2].strip()


def _satisfies(version: str, wanted: str) -> bool:
    """Whether the numbers of a version are within clauses of >= and <; others are not looked at."""
    numbers = _numbers(version)
    return all(
        numbers >= _numbers(bound) if operator == ">=" else numbers < _numbers(bound)
        for operator, bound in _CLAUSE.findall(wanted)
    )


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _version() -> str:
    return _fact("Version") or "of unknown version"


def _fact(name: str) -> str:
    """A line of this project's own metadata; "" in a bare checkout."""
    try:
        return next(iter(metadata.metadata(_PROJECT).get_all(name) or []), "")
    except metadata.PackageNotFoundError:
        return ""
