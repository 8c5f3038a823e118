"""A public class has one name in the whole tree, so that a search for it finds one place."""

import ast
from collections import defaultdict
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
ROOMS = ("clipworks", "model_store", "service", "evaluation", "training")
# Box is what the client gives back, and of the wire, whose name is in the OpenAPI document.
KNOWN = frozenset({"Box"})


def places_of_classes() -> dict[str, list[str]]:
    """Files that define each public class at their top level."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(each for room in ROOMS for each in (REPOSITORY / room).rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(str(path.relative_to(REPOSITORY)))
    return found


def test_no_public_class_shares_its_name() -> None:
    shared = {name: places for name, places in places_of_classes().items() if len(places) > 1}
    assert {name: places for name, places in shared.items() if name not in KNOWN} == {}
    assert sorted(KNOWN - set(shared)) == [], "these are unique now: take them off the list"
