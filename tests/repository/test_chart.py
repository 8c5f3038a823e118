"""The Helm chart: what Helm makes of it, checked by the schemas of Kubernetes and against what the server has."""

import json
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.__main__ import AFTER_ALL_S
from service.http.gate import OPEN_PATHS
from service.settings import Settings, setting_fields
from tests.dockerfile import ancestry
from tests.programs import program

kubernetes_validate = pytest.importorskip("kubernetes_validate")

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "clipworks"
RELEASE = "vision"
KUBERNETES = ("1.27.0", "1.37.0")  # the oldest that Chart.yaml allows, and the newest that there are schemas for
CUSTOM = {"ScaledObject", "ServiceMonitor"}  # of KEDA and of the Prometheus operator, whose schemas are not there
SETTLED = {name: f"/var/lib/clipworks/{folder}" for name, folder in (("STORE", "artifacts"), ("DATA", "collections"))}

Manifests = dict[str, dict[str, Any]]
VARIANTS: dict[str, tuple[str, ...]] = {
    "default": (),
    "hub": (
        "model=hub:immich-app/ViT-B-32__laion2b-s34b-b79k",
        "flavour=cuda",
        "photos.existingClaim=photos",
        "auth.existingSecret=keys",
        "serviceMonitor.enabled=true",
        "settings.MAX_WAIT_S=1.5",
    ),
    "milvus": (
        "collections.backend=milvus",
        "collections.milvus.uri=http://milvus",
        "collections.milvus.existingSecret=milvus",
        "image.tag=0.1.0-milvus",
        "autoscaling.enabled=true",
    ),
    "memory": (
        "collections.backend=memory",
        "autoscaling.enabled=true",
        "autoscaling.kind=keda",
        "autoscaling.keda.prometheusAddress=http://prometheus:9090",
        "artifacts.persistence.existingClaim=models",
        "artifacts.persistence.readOnly=true",
    ),
}


def helm(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [program("helm"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def template(*values: str, file: Path | None = None) -> "subprocess.CompletedProcess[str]":
    options = [part for value in values for part in ("--set", value)] + (["--values", str(file)] if file else [])
    return helm("template", RELEASE, CHART, "--namespace", "shop", *options)


def by_kind(rendered: str) -> Manifests:
    """The manifests by kind; the pod of `helm test` is the only pod."""
    return {each["kind"]: each for each in yaml.safe_load_all(rendered) if each}


@cache
def manifests(variant: str) -> Manifests:
    done = template(*VARIANTS[variant])
    assert done.returncode == 0, done.stderr
    return by_kind(done.stdout)


def pod(found: Manifests) -> dict[str, Any]:
    return (found.get("StatefulSet") or found["Deployment"])["spec"]["template"]["spec"]


def server(found: Manifests) -> dict[str, Any]:
    (container,) = pod(found)["containers"]
    return container


def variables(found: Manifests) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in server(found)["env"]}


every_variant = pytest.mark.parametrize("variant", VARIANTS)


def test_helm_has_nothing_to_say() -> None:
    done = helm("lint", "--strict", CHART)
    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout


@every_variant
def test_manifests_fit_the_schemas_of_kubernetes(variant: str) -> None:
    found = manifests(variant)
    for kind, manifest in found.items():
        for version in KUBERNETES if kind not in CUSTOM else ():
            kubernetes_validate.validate(manifest, version, strict=True)


@every_variant
def test_pods_have_no_rights(variant: str) -> None:
    found = manifests(variant)
    for spec in (pod(found), found["Pod"]["spec"]):
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        security = spec["securityContext"]
        assert (security["runAsNonRoot"], security["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
        (container,) = spec["containers"]
        inside = container["securityContext"]
        assert (inside["readOnlyRootFilesystem"], inside["allowPrivilegeEscalation"]) == (True, False)
        assert inside["capabilities"] == {"drop": ["ALL"]}
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
        names = {volume["name"] for volume in spec["volumes"]}
        if "StatefulSet" in found and spec is pod(found):
            names |= {claim["metadata"]["name"] for claim in found["StatefulSet"]["spec"]["volumeClaimTemplates"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == names
    (user,) = [rest for word, rest in ancestry("cpu") if word == "USER"]
    ids = pod(found)["securityContext"]
    assert user == f"{ids['runAsUser']}:{ids['runAsGroup']}"
    assert ids["fsGroup"] == ids["runAsGroup"]
    assert found["ServiceAccount"]["automountServiceAccountToken"] is False


@every_variant
def test_variables_are_settings_and_folders_those_of_the_image(variant: str) -> None:
    found = variables(manifests(variant))
    assert {name.removeprefix("CLIPWORKS_").lower() for name in found} <= set(Settings.model_fields)
    image = " ".join(rest for word, rest in ancestry("cpu") if word in {"ENV", "EXPOSE"})
    mounted = {mount["mountPath"] for mount in server(manifests(variant))["volumeMounts"]}
    assert found["CLIPWORKS_STORE"] in mounted
    assert f"CLIPWORKS_STORE={found['CLIPWORKS_STORE']}" in image
    assert found["CLIPWORKS_DATA"] == (SETTLED["DATA"] if variant in {"default", "hub"} else "memory")
    assert SETTLED["DATA"] in image
    (port,) = server(manifests(variant))["ports"]
    assert found["CLIPWORKS_PORT"] == str(port["containerPort"])
    assert f"CLIPWORKS_PORT={port['containerPort']}" in image
    plain = {name.removeprefix("CLIPWORKS_").lower(): value for name, value in found.items() if isinstance(value, str)}
    Settings.model_validate({name: value for name, value in plain.items() if name != "media_root"})


def test_every_setting_may_be_given_but_those_that_the_chart_has() -> None:
    names = json.loads((CHART / "values.schema.json").read_text("utf-8"))["properties"]["settings"]["propertyNames"]
    assert {f"CLIPWORKS_{name}" for name in names["not"]["enum"]} <= {each.variable for each in setting_fields()}
    taken = {f"CLIPWORKS_{name}" for name in names["not"]["enum"]}
    given = {name for variant in VARIANTS for name in variables(manifests(variant))} - {"CLIPWORKS_MAX_WAIT_S"}
    threads = {f"CLIPWORKS_{name}" for name in ("INTRA_THREADS", "DECODE_WORKERS", "SEARCH_THREADS")}
    assert given - threads <= taken


@every_variant
def test_probes_and_the_time_to_stop(variant: str) -> None:
    spec, container = pod(manifests(variant)), server(manifests(variant))
    probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")}
    paths = {kind: probe["httpGet"]["path"] for kind, probe in probes.items()}
    assert paths == {"startup": "/readyz", "liveness": "/livez", "readiness": "/readyz"}
    assert set(paths.values()) <= OPEN_PATHS, "the kubelet has no key"
    starting = probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"]
    assert starting == (900 if variant == "hub" else 300)
    told = variables(manifests(variant))
    drain = sum(float(told[f"CLIPWORKS_{name}"]) for name in ("DRAIN_GRACE_S", "DRAIN_S", "STOP_S"))
    assert spec["terminationGracePeriodSeconds"] > drain + AFTER_ALL_S


def test_collections_on_a_volume_have_one_server() -> None:
    found = manifests("default")
    assert found["StatefulSet"]["spec"]["replicas"] == 1
    claims = {
        claim["metadata"]["name"]: claim["spec"] for claim in found["StatefulSet"]["spec"]["volumeClaimTemplates"]
    }
    assert set(claims) == {"artifacts", "collections"}
    assert claims["collections"]["accessModes"] == ["ReadWriteOnce"]
    assert "HorizontalPodAutoscaler" not in found


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["replicaCount=2"], "one server owns"),
        (["autoscaling.enabled=true"], "one server owns"),
        (["collections.backend=milvus"], "needs collections.milvus.uri"),
        (["artifacts.persistence.readOnly=true"], "needs artifacts.persistence.existingClaim"),
        (["settings.PORT=9000"], "PORT"),
        (["replicas=2"], "replicas"),
    ],
)
def test_what_cannot_work_is_refused(values: list[str], said: str) -> None:
    done = template(*values)
    assert done.returncode != 0
    assert said in done.stderr


def test_the_queue_decides_how_many_servers_there_are() -> None:
    scaler = manifests("milvus")["HorizontalPodAutoscaler"]["spec"]
    (metric,) = scaler["metrics"]
    assert metric["pods"]["metric"]["name"] == "clipworks_queue_depth"
    workload = manifests("milvus")["Deployment"]
    target = scaler["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", workload["metadata"]["name"])
    assert "replicas" not in workload["spec"]
    scaled = manifests("memory")["ScaledObject"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == manifests("memory")["Deployment"]["metadata"]["name"]
    (trigger,) = scaled["triggers"]
    service = manifests("memory")["Service"]["metadata"]["name"]
    expected = f'sum(clipworks_queue_depth{{namespace="shop", service="{service}"}}) or vector(0)'
    assert trigger["metadata"]["query"] == expected
    assert trigger["metadata"]["threshold"] == metric["pods"]["target"]["averageValue"] == "16"
    assert Settings.model_fields["max_batch_images"].default == 16


def test_only_what_is_needed_may_be_reached() -> None:
    def ports(variant: str, way: str) -> set[Any]:
        rules = manifests(variant)["NetworkPolicy"]["spec"][way]
        return {port["port"] for rule in rules for port in rule["ports"]}

    assert [ports(variant, "egress") for variant in VARIANTS] == [{53}, {53, 443}, {53, 19530}, {53}]
    for variant in VARIANTS:
        assert ports(variant, "ingress") == {"http"}
        spec = manifests(variant)["NetworkPolicy"]["spec"]
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        assert all(rule["from"] for rule in spec["ingress"])
        labels = (manifests(variant).get("StatefulSet") or manifests(variant)["Deployment"])["spec"]["template"]
        assert spec["podSelector"]["matchLabels"].items() <= labels["metadata"]["labels"].items()


def test_keys_come_from_the_secret_and_the_gpu_from_the_flavour() -> None:
    found = manifests("hub")
    keys = variables(found)["CLIPWORKS_API_KEYS"]["secretKeyRef"]
    assert keys == {"name": "keys", "key": "api-keys"}
    scrape = found["ServiceMonitor"]["spec"]["endpoints"][0]
    assert scrape["path"] == "/metrics"
    assert "/metrics" not in OPEN_PATHS
    assert scrape["authorization"]["credentials"] == {"name": "keys", "key": "api-key"}
    (client,) = found["Pod"]["spec"]["containers"]
    assert client["env"][0]["name"] == "CLIPWORKS_API_KEY"
    assert server(found)["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert server(found)["image"].endswith("-cuda")
    assert "CLIPWORKS_API_KEYS" not in variables(manifests("default"))


def test_large_numbers_of_a_values_file_stay_numbers(tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text('settings: {MAX_BODIES_BYTES: 536870912, MAX_WAIT_S: 1.5, ACCESS_LOG: false, LOG_LEVEL: "error"}\n')
    found = variables(by_kind(template(file=file).stdout))
    given = {name: found[f"CLIPWORKS_{name}"] for name in ("MAX_BODIES_BYTES", "MAX_WAIT_S", "ACCESS_LOG", "LOG_LEVEL")}
    assert given == {"MAX_BODIES_BYTES": "536870912", "MAX_WAIT_S": "1.5", "ACCESS_LOG": "false", "LOG_LEVEL": "error"}


def test_the_chart_has_the_version_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert chart["appVersion"] == project["version"]
    assert server(manifests("default"))["image"] == f"clipworks:{project['version']}-cpu"
