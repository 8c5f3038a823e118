"""The Dockerfile, read as data."""

import re
from pathlib import Path

_FILE = Path(__file__).parents[1] / "Dockerfile"
Instruction = tuple[str, str]
Stage = tuple[str, list[Instruction]]


def read() -> tuple[list[Instruction], dict[str, Stage]]:
    """What stands before the first stage, and stage name -> (parent, instructions in order); comments are dropped."""
    lines = [line for line in _FILE.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    before: list[Instruction] = []
    found: dict[str, Stage] = {}
    current = before
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            parent, _, name = rest.partition(" AS ")
            current = []
            found[name] = (parent, current)
        elif word:
            current.append((word, rest))
    return before, found


def stages() -> dict[str, Stage]:
    return read()[1]


def ancestry(target: str) -> list[Instruction]:
    """All instructions that shape the image of `target`, oldest first."""
    found = stages()
    chain: list[list[Instruction]] = []
    name = target
    while name in found:
        parent, instructions = found[name]
        chain.insert(0, instructions)
        name = parent
    return [instruction for part in chain for instruction in part]


def last(target: str, word: str) -> str:
    return [rest for found, rest in ancestry(target) if found == word][-1]


def all_of(target: str, word: str) -> str:
    """Every instruction of one kind, joined."""
    return " ".join(rest for found, rest in ancestry(target) if found == word)
