"""`clipworks models pull` and `clipworks serve --model hub:...`, against a hub on this machine, in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

pytest.importorskip("torch")
from tests.model_store.hub.ask import environment_of_child  # noqa: E402
from tests.model_store.hub.layouts import immich, torch_weights, transformers_layouts  # noqa: E402
from tests.model_store.hub.layouts.captions import taught_captions  # noqa: E402
from tests.model_store.hub.layouts.source_models import small_clip, tiny_clip  # noqa: E402
from tests.model_store.hub.local_hub import LocalHub, local_hub  # noqa: E402

pytestmark = pytest.mark.torch

IMMICH = "immich-app/ViT-B-32__laion2b-s34b-b79k"
JOINT = "Xenova/tiny"
WEIGHTS = "laion/weights"
PICTURE = Path(__file__).parents[2] / "docs" / "photos" / "cat.jpg"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repositories")
    source = taught_captions(tiny_clip())
    writers = {
        IMMICH: immich.write_immich_v1,
        JOINT: lambda folder, source: transformers_layouts.write_transformersjs_joint(
            folder, source, external_data=True
        ),
        WEIGHTS: torch_weights.write_open_clip,
    }
    for name, write in writers.items():
        (root / name).mkdir(parents=True)
        write(root / name, small_clip() if name == WEIGHTS else source)
        (root / name / "README.md").write_text("---\nlicense: mit\n---\nWeights.\n")
    return root


@pytest.fixture
def hub(repositories: Path) -> Iterator[LocalHub]:
    with local_hub(repositories) as served:
        yield served


@dataclass
class Finished:
    code: int
    out: str
    err: str


@pytest.fixture
def clipworks(hub: LocalHub, tmp_path: Path) -> Callable[..., Finished]:
    """clipworks(*words, **variables): the command in a process of its own that knows the hub on this machine."""

    def run(*words: str | Path, **variables: str) -> Finished:
        done = subprocess.run(
            [sys.executable, "-m", "clipworks", *map(str, words)],
            env=environment_of_child({**hub.environment(tmp_path / "hub"), **variables}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return run


def test_a_repository_becomes_a_model(hub: LocalHub, clipworks: Callable[..., Finished], tmp_path: Path) -> None:
    store = tmp_path / "store"
    asked = clipworks("models", "pull", IMMICH, "--store", store)
    assert (asked.code, not store.exists()) == (2, True), asked.err
    assert "kB in 6 files, licence mit" in asked.err
    assert "write --yes" in asked.err
    done = clipworks("models", "pull", IMMICH, "--store", store, "--yes")
    assert done.code == 0, done.err
    assert f"{IMMICH} at {hub.commit(IMMICH)}" in done.out
    assert "photographs find captions" in done.out
    assert "published vit-b-32__laion2b-s34b-b79k@1 (fp32)" in done.err
    shown = json.loads(clipworks("models", "show", "vit-b-32__laion2b-s34b-b79k", "--store", store, "--json").out)
    assert shown["provenance"]["revision"] == hub.commit(IMMICH)
    assert (shown["provenance"]["verified"], shown["provenance"]["licence"]) == ("wrapped", "mit")
    assert shown["logit_scale"] == 100
    assert shown["scale_source"].startswith("recorded for ViT-B-32__laion2b_s34b_b79k")
    verified = clipworks("models", "verify", "vit-b-32__laion2b-s34b-b79k", "--store", store)
    assert verified.code == 0, verified.out


def test_a_folder_is_pulled_from_without_the_hub(
    hub: LocalHub, clipworks: Callable[..., Finished], repositories: Path, tmp_path: Path
) -> None:
    done = clipworks("models", "pull", "--from", repositories / JOINT, "--name", "mine", "--store", tmp_path, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["model"] == "mine@1"
    assert not hub.requests


@pytest.mark.long
def test_weights_go_through_torch_where_it_is_installed(
    hub: LocalHub, clipworks: Callable[..., Finished], tmp_path: Path
) -> None:
    done = clipworks("models", "pull", WEIGHTS, "--store", tmp_path, "--yes", "--json")
    assert done.code == 0, done.err
    shown = json.loads(clipworks("models", "show", "weights", "--store", tmp_path, "--json").out)["provenance"]
    assert (shown["verified"], shown["repository"], shown["licence"]) == ("torch", WEIGHTS, "mit")
    assert shown["source"] == f"{WEIGHTS} at {hub.commit(WEIGHTS)}"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nope/model"], 3, "there is no repository nope/model"),
        (["a model"], 2, "expected ORG/REPO"),
        (["clip-ViT-B-32"], 2, "clipworks models import ViT-B-32-quickgelu --pretrained openai"),
        (["ViT-B/32"], 3, "clipworks models import ViT-B-32-quickgelu --pretrained openai"),
        ([IMMICH, "--revision", "v9"], 3, "has no revision 'v9'"),
        ([IMMICH + "@main", "--revision", "other"], 2, "name two revisions"),
        ([], 2, "name a repository"),
    ],
)
def test_what_cannot_be_pulled_is_one_sentence(
    clipworks: Callable[..., Finished], tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    done = clipworks("models", "pull", *words, "--store", tmp_path, "--yes")
    assert done.code == code, done.err
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_gated_repository_says_where_its_terms_are(
    hub: LocalHub, clipworks: Callable[..., Finished], tmp_path: Path
) -> None:
    hub.gated.add(IMMICH)
    done = clipworks("models", "pull", IMMICH, "--store", tmp_path, "--yes", HF_TOKEN="hf_secret0123456789")
    assert done.code == 3, done.err
    assert f"{hub.address}/{IMMICH}" in done.err
    assert "hf_secret" not in done.err + done.out


def test_wrong_bytes_are_not_published(hub: LocalHub, clipworks: Callable[..., Finished], tmp_path: Path) -> None:
    hub.faults.wrong_bytes.add("visual/model.onnx")
    done = clipworks("models", "pull", IMMICH, "--store", tmp_path / "store", "--yes")
    assert done.code == 3, done.err
    assert "visual/model.onnx" in done.err
    assert "sha256" in done.err
    hub.faults.wrong_bytes.clear()
    again = clipworks("models", "pull", IMMICH, "--store", tmp_path / "store", "--yes")
    assert again.code == 0, again.err


@pytest.mark.long
def test_serve_pulls_what_is_missing_and_then_asks_nobody(
    hub: LocalHub,
    clipworks: Callable[..., Finished],
    serving: Callable[..., AbstractContextManager[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The whole way: a line of settings, a model that is not there yet, a picture that finds its label."""
    for name, value in hub.environment(tmp_path / "hub").items():
        monkeypatch.setenv(name, value)
    options = ("--model", f"hub:{JOINT}", "--store", tmp_path / "store", "--data", "memory")
    with serving(*options, start_s=120) as url:
        shown = httpx2.get(f"{url}/models/tiny").json()
        assert (shown["verified"], shown["licence"], shown["loaded"]) == ("wrapped", "mit", True)
        assert shown["source"] == f"{JOINT} at {hub.commit(JOINT)}"
        answer = httpx2.post(f"{url}/classify?labels=cat,dog", content=PICTURE.read_bytes(), headers=JPEG).json()
        assert sum(each["score"] for each in answer["data"][0]["predictions"]) == pytest.approx(1)
    asked = len(hub.requests)
    assert asked
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}.items():
        monkeypatch.setenv(name, value)
    with serving(*options, start_s=60) as url:
        assert httpx2.get(f"{url}/readyz").status_code == 200
    assert len(hub.requests) == asked
    refused = clipworks("serve", "--model", "hub:Xenova/other", "--store", tmp_path / "store", HF_HUB_OFFLINE="1")
    assert refused.code == 3, refused.err
    assert "run `clipworks models pull Xenova/other` once with a connection" in refused.err


JPEG = {"Content-Type": "image/jpeg"}


@pytest.mark.long
def test_a_model_without_a_scale_gives_cosines_and_says_why(
    hub: LocalHub,
    clipworks: Callable[..., Finished],
    serving: Callable[..., AbstractContextManager[str]],
    repositories: Path,
    tmp_path: Path,
) -> None:
    """Nobody knows the scale of a pair of towers of this name: /classify must not make one up."""
    folder = tmp_path / "towers"
    folder.mkdir()
    immich.write_immich_v2(folder, taught_captions(tiny_clip()))
    done = clipworks("models", "pull", "--from", folder, "--store", tmp_path / "store")
    assert done.code == 0, done.err
    assert "cosines only" in done.out
    with serving("--store", tmp_path / "store", "--model", "towers", "--data", "memory", start_s=60) as url:
        picture = PICTURE.read_bytes()
        answer = httpx2.post(f"{url}/classify?labels=cat,dog", content=picture, headers=JPEG).json()
        assert all(each["score"] == each["similarity"] for each in answer["data"][0]["predictions"])
        assert "the logit scale of towers is not known" in answer["warnings"][0]
        shown = httpx2.get(f"{url}/models/towers").json()
        assert (shown["logit_scale"], shown["activation"]) == (None, "none")
        for activation in ("softmax", "sigmoid"):
            refused = httpx2.post(
                f"{url}/classify?labels=cat,dog&activation={activation}", content=picture, headers=JPEG
            )
            error = refused.json()["error"]
            assert (refused.status_code, error["param"]) == (422, "activation"), error
            assert "no logit scale" in error["message"]


def test_the_service_alone_does_not_pull(tmp_path: Path) -> None:
    environment = {**os.environ, "CLIPWORKS_MODEL": f"hub:{JOINT}"}
    done = subprocess.run(
        [sys.executable, "-m", "service"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "`clipworks serve` pulls models" in done.stderr
