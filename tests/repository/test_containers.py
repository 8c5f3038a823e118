"""The Dockerfile and the compose file, read as data: what they promise about rights, roots and grace."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).parents[2]
Stage = tuple[str, list[tuple[str, str]]]


def stages() -> dict[str, Stage]:
    """Stage name -> (parent, instructions in order), continuation lines joined and comments dropped."""
    lines = [line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    read: dict[str, Stage] = {}
    current = ""
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            parent, _, current = rest.partition(" AS ")
            read[current] = (parent, [])
        elif word:
            read[current][1].append((word, rest))
    return read


def ancestry(target: str) -> list[tuple[str, str]]:
    """All instructions that shape the image of `target`, oldest first."""
    read = stages()
    chain: list[list[tuple[str, str]]] = []
    name = target
    while name in read:
        parent, instructions = read[name]
        chain.insert(0, instructions)
        name = parent
    return [instruction for part in chain for instruction in part]


def last(target: str, word: str) -> str:
    return [rest for found, rest in ancestry(target) if found == word][-1]


def services() -> dict[str, dict[str, Any]]:
    read = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return read["services"]


def seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)s", text)
    assert match, text
    return int(match[1])


def test_the_base_is_pinned_by_full_version_and_the_cpu_image_is_the_default() -> None:
    read = stages()
    outside = {parent for parent, _ in read.values()} - set(read)
    assert len(outside) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", outside.pop())
    assert list(read)[-1] == "cpu"


@pytest.mark.parametrize(("target", "pins"), [("cpu", "serve.txt"), ("cuda", "serve-gpu.txt")])
def test_images_install_hashed_pins_and_run_without_rights(target: str, pins: str) -> None:
    installs = [rest for word, rest in ancestry(f"environment-{target}") if word == "RUN" and "uv pip install" in rest]
    assert [f"--require-hashes -r requirements/{pins}" in installs[0], "--no-deps" in installs[1]] == [True, True]
    assert len(installs) == 2
    assert ("COPY", f"--from=environment-{target} /opt/clipworks /opt/clipworks") in ancestry(target)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last(target, "USER"))
    assert "/readyz" in last(target, "HEALTHCHECK")
    assert last(target, "ENTRYPOINT") == '["clipworks"]'
    assert last(target, "CMD") == '["serve"]'
    assert f"CLIPWORKS_DEVICE={target}" in last(target, "ENV")


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_runtime_gets_no_tools_and_no_sources(target: str) -> None:
    for word, rest in ancestry(target):
        assert word != "ADD"
        if word == "COPY":
            assert rest == f"--from=environment-{target} /opt/clipworks /opt/clipworks"
        if word == "RUN":
            assert not re.search(r"\b(?:pip|uv|apt-get|torch)\b", rest), rest


def test_library_folders_name_the_python_of_the_image() -> None:
    version = re.match(r"python:(3\.\d+)\.", stages()["python"][0])
    assert version
    assert set(re.findall(r"python3\.\d+", last("cuda", "ENV"))) == {f"python{version[1]}"}


def test_every_package_is_copied_into_the_build() -> None:
    copied = {rest.split()[0] for word, rest in stages()["wheel"][1] if word == "COPY" and len(rest.split()) == 2}
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for package in ("clipworks", "model_store", "service", "evaluation", "training"):
        assert package in copied
        assert f"!{package}" in sent
    assert "*" in sent


@pytest.mark.parametrize("name", ["clipworks", "clipworks-gpu"])
def test_services_run_locked_down_and_have_time_to_drain(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert any(mount.startswith("/tmp") for mount in service["tmpfs"])
    settings = Settings.model_construct()
    assert seconds(service["stop_grace_period"]) > settings.drain_grace_s + settings.drain_s
    assert not service.get("privileged", False)
    mounts = dict(mount.split(":")[:2] for mount in service["volumes"])
    target = service["build"]["target"]
    environment = " ".join(rest for word, rest in ancestry(target) if word == "ENV")
    assert f"CLIPWORKS_STORE={mounts['artifacts']}" in environment
    assert f"CLIPWORKS_DATA={mounts['collections']}" in environment
    prepared = " ".join(rest for word, rest in ancestry(target) if word == "RUN")
    assert all(folder in prepared for folder in mounts.values()), "a volume takes its owner from the image's folder"


def test_the_gpu_is_asked_for_by_profile_only() -> None:
    read = services()
    assert "profiles" not in read["clipworks"]
    assert read["clipworks"]["build"]["target"] == "cpu"
    assert read["clipworks-gpu"]["profiles"] == ["gpu"]
    assert read["clipworks-gpu"]["build"]["target"] == "cuda"
    devices = read["clipworks-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]
    declared = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["volumes"]
    assert set(declared) == {"artifacts", "collections"}
