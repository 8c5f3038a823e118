"""Uses a hub repository in a process of its own, because the hub's client reads its settings when it is imported.

Run with one argument, a JSON list of {repo, revision?, fetch?, range?, scale?} objects; prints what came of each.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
_OF_A_PERSON = ("HF_", "HUGGING", "CLIPWORKS_")


def environment_of_child(environment: dict[str, str]) -> dict[str, str]:
    own = (name for name in os.environ if name.startswith(_OF_A_PERSON) or name.lower().endswith("_proxy"))
    kept = {name: os.environ[name] for name in os.environ.keys() - set(own)}
    return {**kept, **environment}


def ask(environment: dict[str, str], repo: str, **wanted: Any) -> dict[str, Any]:
    """The answer to one question, and under `output` all that the process wrote, with debug logging on."""
    (found,) = ask_each(environment, [{"repo": repo, **wanted}])
    return found


def ask_each(environment: dict[str, str], questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(questions)],
        cwd=ROOT,
        env=environment_of_child(environment),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [{**found, "output": done.stdout + done.stderr} for found in json.loads(done.stdout.splitlines()[-1])]


def answer(
    repo: str,
    revision: str | None = None,
    fetch: list[str] | None = None,
    range: tuple[str, int, int] | None = None,
    scale: bool = False,
) -> dict[str, Any]:
    from model_store.errors import ArtifactError
    from model_store.hub.remote import HubRepository
    from model_store.hub.scale import trained_scale

    seen: list[tuple[int, int]] = []
    try:
        repository = HubRepository(repo, revision)
        found: dict[str, Any] = {
            "revision": repository.revision,
            "licence": repository.licence,
            "base_models": repository.base_models,
            "files": {path: dataclasses.asdict(file) for path, file in repository.files().items()},
        }
        if range:
            found["bytes"] = repository.read_range(*range).hex()
        if scale:
            found["scale"] = dataclasses.asdict(trained_scale(repository))
        if fetch is not None:
            folder = repository.fetch(fetch, lambda done, total: seen.append((done, total)))
            found["folder"] = str(folder)
        return {**found, "seen": seen}
    except ArtifactError as error:
        refused = {"error": type(error).__name__, "code": error.code, "message": str(error)}
        return {**refused, "cause": error.__cause__ and repr(error.__cause__), "seen": seen}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    logging.basicConfig(level=logging.DEBUG)
    print(json.dumps([answer(**question) for question in json.loads(sys.argv[1])]))
