"""The Dockerfile, the compose file and the systemd unit: what they promise about rights, roots, ports and grace."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.__main__ import AFTER_ALL_S
from service.settings import Settings, unknown_variables
from tests.dockerfile import all_of, ancestry, last, read, stages
from tests.programs import program

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "systemd" / "clipworks.service"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
PINS = {"cpu": ["serve", "otel"], "cuda": ["serve-gpu", "otel"], "milvus": ["serve", "otel", "milvus"]}
DEVICES = {"cpu": "cpu", "cuda": "cuda", "milvus": "cpu"}
SERVERS = ["clipworks", "clipworks-gpu"]


def compose_file() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def services() -> dict[str, dict[str, Any]]:
    return compose_file()["services"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the compose file alone."""
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    return tmp_path


def compose(folder: Path, *options: str) -> dict[str, Any]:
    """What Docker Compose makes of the file in `folder` and of the `.env` beside it."""
    command = [program("docker-compose"), *options, "config", "--format", "json"]
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(command, cwd=folder, env=inherited, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "level=warning" not in done.stderr, done.stderr
    return json.loads(done.stdout)


def seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)s?", text)
    assert match, text
    return int(match[1])


def time_to_stop() -> float:
    """What the server may take after its signal, by default."""
    settings = Settings.model_construct()
    return settings.drain_grace_s + settings.drain_s + settings.stop_s + AFTER_ALL_S


def test_the_base_is_pinned_by_full_version_and_the_cpu_image_is_the_default() -> None:
    found = stages()
    outside = {parent for parent, _ in found.values()} - set(found)
    assert len(outside) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", outside.pop())
    assert list(found)[-1] == "cpu"


@pytest.mark.parametrize("target", PINS)
def test_images_install_hashed_pins_and_run_without_rights(target: str) -> None:
    installs = [rest for word, rest in ancestry(f"environment-{target}") if word == "RUN" and "uv pip install" in rest]
    assert [name for rest in installs for name in re.findall(r"-r requirements/(\S+)\.txt", rest)] == PINS[target]
    assert all(("--require-hashes" in rest) != ("--no-deps /wheels" in rest) for rest in installs)
    assert sum("--no-deps /wheels" in rest for rest in installs) == 1
    assert ("COPY", f"--from=environment-{target} /opt/clipworks /opt/clipworks") in ancestry(target)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last(target, "USER"))
    assert "/readyz" in last(target, "HEALTHCHECK")
    assert last(target, "ENTRYPOINT") == '["clipworks"]'
    assert f"CLIPWORKS_DEVICE={DEVICES[target]}" in last(target, "ENV")


@pytest.mark.parametrize("target", PINS)
def test_the_port_of_an_image_is_one(target: str) -> None:
    """No variable moves it away from the port that is published and asked whether it is healthy."""
    command = json.loads(last(target, "CMD"))
    port = last(target, "EXPOSE")
    assert command == ["serve", "--host", "0.0.0.0", "--port", port]
    assert f"127.0.0.1:{port}/readyz" in last(target, "HEALTHCHECK")
    assert f"CLIPWORKS_PORT={port}" in all_of(target, "ENV")


@pytest.mark.parametrize("target", PINS)
def test_onnx_runtime_reports_to_nobody(target: str) -> None:
    assert "ORT_DISABLE_TELEMETRY=1" in all_of(target, "ENV").split()
    assert "\nEnvironment=ORT_DISABLE_TELEMETRY=1\n" in UNIT.read_text(encoding="utf-8")


@pytest.mark.parametrize("target", PINS)
def test_images_say_what_they_are(target: str) -> None:
    assert ("ARG", f"VERSION={VERSION}") in read()[0]
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', all_of(target, "LABEL")))
    assert set(labels) == {"title", "description", "licenses", "version", "revision", "created"}
    arguments = [rest.partition("=")[0] for word, rest in stages()[target][1] if word == "ARG"]
    assert labels["version"] == "$VERSION"
    assert {"VERSION", "REVISION", "CREATED"} == set(arguments)
    assert stages()[target][1][-1][0] == "LABEL", "a label of each build, before the files, would copy them anew"


@pytest.mark.parametrize("target", PINS)
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


@pytest.mark.parametrize("name", SERVERS)
def test_services_run_locked_down_and_have_time_to_drain(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert any(mount.startswith("/tmp") for mount in service["tmpfs"])
    assert seconds(service["stop_grace_period"]) > time_to_stop()
    assert not service.get("privileged", False)
    assert service["mem_limit"].startswith("${CLIPWORKS_MEMORY:-")


@pytest.mark.parametrize(
    ("options", "started"),
    [
        ((), {"clipworks"}),
        (("--profile", "cpu"), {"clipworks"}),
        (("--profile", "gpu"), {"clipworks-gpu"}),
        (("--profile", "gpu", "--profile", "monitoring"), {"clipworks-gpu", "prometheus", "grafana"}),
    ],
)
def test_profiles_start_one_server(project: Path, options: tuple[str, ...], started: set[str]) -> None:
    assert set(compose(project, *options)["services"]) == started


def test_the_gpu_and_its_image_are_those_of_its_profile() -> None:
    found = services()
    assert found["clipworks"]["build"]["target"] == "cpu"
    assert found["clipworks"]["image"] == f"clipworks:${{CLIPWORKS_VERSION:-{VERSION}}}-cpu"
    assert found["clipworks-gpu"]["build"]["target"] == "cuda"
    assert found["clipworks-gpu"]["image"] == f"clipworks:${{CLIPWORKS_VERSION:-{VERSION}}}-cuda"
    devices = found["clipworks-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]
    assert "deploy" not in found["clipworks"]


def test_a_dotenv_sets_the_model_and_cannot_break_ports_or_folders(project: Path) -> None:
    """Of a host's settings, which `clipworks serve` in the same folder would obey."""
    lines = ["CLIPWORKS_MODEL=hub:org/repo", "CLIPWORKS_PORT=9000", "CLIPWORKS_HOST=127.0.0.1"]
    lines += ["CLIPWORKS_STORE=./models", "CLIPWORKS_DATA=./data", "CLIPWORKS_DEVICE=cuda", "CLIPWORKS_MAX_WAIT_S=1"]
    (project / ".env").write_text("\n".join(lines))
    service = compose(project)["services"]["clipworks"]
    inside = service["environment"]
    assert (inside["CLIPWORKS_MODEL"], inside["CLIPWORKS_MAX_WAIT_S"]) == ("hub:org/repo", "1")
    (port,) = service["ports"]
    assert (port["host_ip"], port["published"], port["target"]) == ("127.0.0.1", "9000", 8000)
    assert (inside["CLIPWORKS_PORT"], inside["CLIPWORKS_HOST"]) == ("8000", "0.0.0.0")
    assert last("cpu", "EXPOSE") == "8000"
    mounts = {mount["target"]: mount for mount in service["volumes"]}
    assert {mounts[inside[f"CLIPWORKS_{name}"]]["type"] for name in ("STORE", "DATA")} == {"volume"}
    assert inside["CLIPWORKS_DEVICE"] == "cpu"
    prepared = all_of("cpu", "RUN")
    assert all(folder in prepared for folder in mounts), "a volume takes its owner from the image's folder"


def test_models_and_photographs_of_the_host_are_mounted(project: Path) -> None:
    lines = ["CLIPWORKS_ARTIFACTS=./models", "CLIPWORKS_PHOTOS=/srv/photos", "CLIPWORKS_MEMORY=8g"]
    (project / ".env").write_text("\n".join(lines))
    service = compose(project)["services"]["clipworks"]
    mounts = {mount["target"]: mount for mount in service["volumes"]}
    models = mounts["/var/lib/clipworks/artifacts"]
    assert (models["type"], models["source"]) == ("bind", str(project / "models"))
    photos = mounts["/photos"]
    assert (photos["source"], photos["read_only"]) == ("/srv/photos", True)
    assert photos["bind"]["create_host_path"] is False, "a misspelt folder would be made, and be empty"
    assert service["environment"]["CLIPWORKS_MEDIA_ROOT"] == "/photos"
    assert int(service["mem_limit"]) == 8 * 2**30


def test_variables_are_known_to_the_server() -> None:
    """Those of the compose file reach it by .env, and it reports each CLIPWORKS_ variable that means nothing."""
    files = [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    files += [ROOT / "docker-compose.yml", ROOT / "Dockerfile", ROOT / "docs" / "deploy.md"]
    for path in files:
        named = set(re.findall(r"CLIPWORKS_[A-Z_]+[A-Z]", path.read_text(encoding="utf-8")))
        assert not unknown_variables(dict.fromkeys(named, "x")), path


def test_the_guide_names_files_and_values_that_are_there() -> None:
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"(?:deploy|requirements|tests|\.ci)/[\w./-]*\w", text))
    assert len(paths) > 5
    assert all((ROOT / path).exists() for path in paths), paths
    values = yaml.safe_load((ROOT / "deploy" / "helm" / "clipworks" / "values.yaml").read_text(encoding="utf-8"))
    for dotted in re.findall(
        r"`((?:auth|autoscaling|artifacts|collections|drain|image|networkPolicy|photos)\.[\w.]+)", text
    ):
        found = values
        for part in dotted.split("."):
            assert part in found, dotted
            found = found[part]


def test_the_monitoring_profile_finds_its_files_and_the_server() -> None:
    found = services()
    for name in ("prometheus", "grafana"):
        assert found[name]["profiles"] == ["monitoring"]
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", found[name]["image"])
        assert all(port.startswith("127.0.0.1:") for port in found[name]["ports"])
        for source in [mount.split(":")[0] for mount in found[name]["volumes"] if mount.startswith("./")]:
            assert (ROOT / source).exists(), source
    scrape = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (target,) = scrape["scrape_configs"][0]["static_configs"][0]["targets"]
    for name in SERVERS:
        assert target == f"{found[name]['networks']['default']['aliases'][0]}:{last('cpu', 'EXPOSE')}"
    provisioned = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioned / "datasources" / "prometheus.yml").read_text("utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioned / "dashboards" / "clipworks.yml").read_text("utf-8"))["providers"]
    dashboard = next(mount for mount in found["grafana"]["volumes"] if "clipworks.json" in mount)
    assert dashboard.split(":")[1].startswith(provider["options"]["path"])


def directives() -> dict[str, str]:
    lines = [line for line in UNIT.read_text(encoding="utf-8").splitlines() if line[:1] not in {"#", "["}]
    return dict(line.split("=", 1) for line in lines if "=" in line)


def test_systemd_understands_the_unit_and_finds_it_closed(tmp_path: Path) -> None:
    tool = program("systemd-analyze")
    here = tmp_path / UNIT.name
    here.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/clipworks/bin/clipworks", sys.executable))
    read = subprocess.run([tool, "verify", here], capture_output=True, text=True, check=False)
    assert (read.returncode, read.stderr) == (0, "")
    closed = [tool, "security", "--offline=true", "--threshold=20", here]
    rated = subprocess.run(closed, capture_output=True, text=True, check=False)
    assert rated.returncode == 0, rated.stdout[-200:] + rated.stderr


def test_the_unit_gives_the_server_time_and_folders() -> None:
    said = directives()
    assert seconds(said["TimeoutStopSec"]) > time_to_stop()
    assert said["RestartPreventExitStatus"] == "2"
    owned = {f"/var/lib/{folder}" for folder in said["StateDirectory"].split()}
    text = UNIT.read_text(encoding="utf-8")
    given = dict(re.findall(r"^Environment=(CLIPWORKS_\w+)=(.*)$", text, re.MULTILINE))
    assert {"CLIPWORKS_STORE", "CLIPWORKS_DATA"} == set(given)
    assert set(given.values()) <= owned
