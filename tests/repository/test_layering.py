"""The one rule, seen from outside: each package is imported in a fresh interpreter, `sys.modules` is the witness."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TORCH_FAMILY = {"torch", "torchvision", "open_clip", "timm", "onnxscript"}
WEB_FAMILY = {"fastapi", "starlette", "uvicorn"}
HUB_FAMILY = {"huggingface_hub", "onnx"}

# Imports every module under a package (a `__main__` is a program, not a module) and prints all that is loaded then.
IMPORT_ALL = """
import importlib, json, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""
RUN = "import json, sys\nexec(sys.argv[1])\nprint(json.dumps(sorted(sys.modules)))"


def loaded_by(program: str, argument: str) -> set[str]:
    """Names of all modules in the interpreter that ran `program`."""
    done = subprocess.run(
        [sys.executable, "-c", program, argument], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def families(modules: set[str]) -> set[str]:
    """Top-level names, less the standard library and the private names that interpreters and installers add."""
    tops = {name.partition(".")[0] for name in modules}
    return {name for name in tops if name not in sys.stdlib_module_names and not name.startswith("_")}


@pytest.mark.parametrize(
    "statement",
    [
        "import clipworks",
        "from clipworks import Client, AsyncClient",
        "import clipworks.schemas, clipworks.client",
    ],
)
def test_clipworks_costs_the_http_library_and_pydantic(statement: str) -> None:
    # annotated_types is pydantic's own requirement, loaded with the first constraint.
    allowed = families(loaded_by(RUN, "import httpx2, pydantic, annotated_types")) | {"clipworks"}
    assert families(loaded_by(RUN, statement)) <= allowed


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("model_store", TORCH_FAMILY | WEB_FAMILY | {"clipworks", "service", "evaluation", "training"}),
        ("evaluation", TORCH_FAMILY | WEB_FAMILY | {"service", "training"}),
        ("service", TORCH_FAMILY | HUB_FAMILY | {"evaluation", "training"}),
        ("training", WEB_FAMILY | {"service"}),
        ("training.building", TORCH_FAMILY | WEB_FAMILY | HUB_FAMILY | {"service", "fsspec", "matplotlib"}),
    ],
)
def test_packages_load_nothing_across_the_rule(package: str, forbidden: set[str]) -> None:
    modules = loaded_by(IMPORT_ALL, package)
    assert package in modules
    assert families(modules) & forbidden == set()
    assert not {name for name in modules if f"{name}.".startswith("clipworks.cli.")}
