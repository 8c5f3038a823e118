"""Pins: every requirement is exact and hashed, one resolution serves all files, and an environment has one flavour."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
EXTRAS = [
    "serve",
    "serve-gpu",
    "hub",
    "eval",
    "train",
    "parquet",
    "milvus",
    "heic",
    "wandb",
    "otel",
    "test",
    "docs",
    "test-batch",
    "dev",
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(name: str) -> list[tuple[Requirement, int]]:
    """The requirements of `requirements/<name>.txt`, each with its number of hashes."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    joined = re.sub(r"\\\n", " ", text)
    lines = [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [(Requirement(line.split("--hash")[0].strip()), line.count("--hash=sha256:")) for line in lines]


def names(name: str) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement, _ in pins(name)}


def asked_by(extra: str) -> list[Requirement]:
    """What an extra asks for, with the extras of clipworks that it takes in."""
    found: list[Requirement] = []
    for line in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(line)
        if requirement.name == "clipworks":
            found += [inner for part in requirement.extras for inner in asked_by(part)]
        else:
            found.append(requirement)
    return found


@pytest.mark.parametrize("name", [*EXTRAS, "build"])
def test_every_pin_is_exact_and_hashed(name: str) -> None:
    read = pins(name)
    assert len(read) >= 5
    for requirement, hashes in read:
        assert re.fullmatch(r"==[0-9][^,*]*", str(requirement.specifier)), requirement
        assert hashes >= 1, requirement
        assert requirement.url is None, requirement


@pytest.mark.parametrize("name", [*EXTRAS, "build"])
def test_no_file_names_an_index_or_a_folder(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    assert not re.findall(r"://|--(?:index-url|extra-index-url|find-links|trusted-host)|^-[ier]\b|file:", text, re.M)
    assert text.splitlines()[1].strip() == "#    make pins"


@pytest.mark.parametrize("extra", EXTRAS)
def test_pins_satisfy_what_the_extra_asks_for(extra: str) -> None:
    read = pins(extra)
    for asked in [*map(Requirement, PROJECT["dependencies"]), *asked_by(extra)]:
        fitting = [pin for pin, _ in read if canonicalize_name(pin.name) == canonicalize_name(asked.name)]
        assert fitting, f"{extra}: {asked} is in pyproject.toml, not in the pins; run `make pins`"
        for pin in fitting:
            assert asked.specifier.contains(str(pin.specifier).removeprefix("==")), (extra, asked, pin)


def test_all_files_come_from_one_resolution() -> None:
    """Files can be installed together (`-r serve-gpu.txt -r train.txt`): no package has two versions for one Python."""
    seen: dict[tuple[str, str], str] = {}
    for name in EXTRAS:
        for requirement, _ in pins(name):
            for python in ("3.11", "3.12", "3.13", "3.14"):
                marker = requirement.marker
                if marker is None or marker.evaluate({"python_full_version": f"{python}.0", "python_version": python}):
                    key = canonicalize_name(requirement.name), python
                    assert seen.setdefault(key, str(requirement.specifier)) == str(requirement.specifier), key


def test_one_flavour_per_environment() -> None:
    assert names("serve") & {"onnxruntime", "onnxruntime-gpu"} == {"onnxruntime"}
    assert names("serve-gpu") & {"onnxruntime", "onnxruntime-gpu"} == {"onnxruntime-gpu"}
    assert names("dev") & {"onnxruntime", "onnxruntime-gpu"} == {"onnxruntime"}
    for extra in ("eval", "train", "parquet", "milvus", "heic"):
        assert names(extra) & {"onnxruntime", "onnxruntime-gpu"} == set(), extra
    for extra in EXTRAS:
        assert len(names(extra) & {"faiss-cpu", "faiss-gpu"}) <= 1, extra


@pytest.mark.parametrize(
    "extra", ["serve", "serve-gpu", "eval", "parquet", "milvus", "heic", "otel", "test", "test-batch", "docs"]
)
def test_torch_is_a_matter_of_training(extra: str) -> None:
    assert names(extra) & {"torch", "torchvision", "open-clip-torch", "timm"} == set()
    assert "torch" in names("train")
