"""Derivations through the exporter's door: every role equals torch, spaces follow the rules, nonsense is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor, nn

from evaluation.encoder import ArtifactEncoder
from model_store.errors import ExportRefused, ManifestError
from model_store.golden import GOLDEN_TEXTS, Goldens
from model_store.graph import open_graph
from model_store.manifest import SpaceProof
from model_store.proving import Proof
from model_store.session import SessionSettings
from model_store.store import Artifact, Store
from model_store.towers import open_head, open_tower
from training.exporting.derive import DerivationSource, export_derivation
from training.exporting.derived_graphs import AdapterSource, HeadSource, linear_head
from training.exporting.export import provenance
from training.exporting.graphs import ImageGraph, TextGraph
from training.tiny import tiny_config

pytestmark = [pytest.mark.torch, pytest.mark.slow]

TINY_STORE = Path(__file__).parents[1] / "fixtures" / "tiny_store"
PROOF = SpaceProof(
    tower="text", statement="captions find their pictures", n=50, metric="R@1", value=0.6, at_least=0.5, base_value=0.4
)
RNG = np.random.default_rng(0)
WEIGHT, BIAS = RNG.standard_normal((4, 32)) * 20, RNG.standard_normal(4)
LABELS = ("red", "green", "blue", "white")


class KeyValue(nn.Module):
    """Tip-Adapter's form: affinities to stored pictures, sharpened, times their one-hot labels."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        keys = torch.randn(9, 32, generator=generator)
        self.register_buffer("keys", keys / keys.norm(dim=1, keepdim=True))
        self.register_buffer("values", torch.eye(3).repeat(3, 1))

    def forward(self, vectors: Tensor) -> Tensor:
        return torch.exp(-3.0 * (1 - vectors @ self.keys.T)) @ self.values


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(Path(shutil.copytree(TINY_STORE, tmp_path_factory.mktemp("derive") / "store")), builtin=False)


@pytest.fixture(scope="module")
def clip() -> open_clip.CLIP:
    """The tiny model itself, from its seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return open_clip.CLIP(**tiny_config()).eval()


@pytest.fixture(scope="module")
def cured_clip(clip: open_clip.CLIP) -> open_clip.CLIP:
    """The tiny model with a linear map folded into its text projection."""
    copy = open_clip.CLIP(**tiny_config()).eval()
    copy.load_state_dict(clip.state_dict())
    with torch.no_grad():
        copy.text_projection.copy_(clip.text_projection @ (torch.eye(32) + 0.2 * torch.ones(32, 32).triu(1)))
    return copy


@pytest.fixture(scope="module")
def source(store: Store) -> DerivationSource:
    """Nothing new yet; tests replace fields."""
    made = provenance(source="a test", architecture="tiny", activation="gelu", structure="test/1", licence="none")
    return DerivationSource(base=store.open("tiny@1"), structure="test/1", provenance=made)


@pytest.fixture(scope="module")
def heads(store: Store, source: DerivationSource) -> Artifact:
    """Two heads on tiny, one in closed form and one a module."""
    brought = {
        "colours": linear_head(WEIGHT, BIAS, LABELS, temperature=2.0),
        "cache": HeadSource(module=KeyValue().eval(), labels=("a", "b", "c"), activation="sigmoid"),
    }
    return export_derivation(replace(source, heads=brought), name="heads", store=store)


@pytest.fixture(scope="module")
def adapted(store: Store, source: DerivationSource) -> Artifact:
    """Both towers through an adapter to 24 components, and a head behind it."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        image = AdapterSource(module=nn.Sequential(nn.Linear(32, 40), nn.GELU(), nn.Linear(40, 24)).eval())
        text = AdapterSource(module=nn.Linear(32, 24, bias=False).eval(), normalized_input=False)
    head = linear_head(RNG.standard_normal((2, 24)), None, ("left", "right"))
    return export_derivation(
        replace(source, image_adapter=image, text_adapter=text, heads={"side": head}), name="adapted", store=store
    )


@pytest.fixture(scope="module")
def cured(store: Store, source: DerivationSource, cured_clip: open_clip.CLIP) -> Artifact:
    changed = replace(source, text=TextGraph(cured_clip).eval(), proofs=(PROOF,), templates=("a drawing of {}.",))
    return export_derivation(changed, name="cured", store=store, precisions=["fp32", "int8"])


def unit(vectors: Any) -> np.ndarray:
    values = np.asarray(vectors, dtype=np.float64)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def torch_image_vectors(clip: open_clip.CLIP, artifact: Artifact, pixels: np.ndarray) -> np.ndarray:
    spec = artifact.image_spec
    assert spec is not None
    with torch.inference_mode():
        return ImageGraph(clip.visual, spec.mean, spec.std).eval()(torch.from_numpy(pixels)).numpy()


def prove(artifact: Artifact, precision: Any) -> None:
    settings = SessionSettings(intra_threads=1)
    proof, opened = Proof(artifact), {name: open_head(artifact, name, settings) for name in artifact.heads()}
    proof.check_inputs(artifact.tokenizer())
    for role in ("image_encoder", "text_encoder"):
        tower = open_tower(artifact, role, artifact.served_precision(role, precision), settings)
        proof.check_tower(role, tower, opened, batch_size=3)


def test_heads_of_arrays_and_of_modules_equal_torch_at_every_batch_size(heads: Artifact, clip: open_clip.CLIP) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (7, 48, 48, 3), dtype=np.uint8)
    vectors = unit(torch_image_vectors(clip, heads, pixels))
    with torch.inference_mode():
        cache = KeyValue()(torch.from_numpy(vectors).float()).numpy()
    expected = {"colours": vectors @ WEIGHT.T + BIAS, "cache": cache}
    tower = open_tower(heads, "image_encoder", "fp32", SessionSettings())
    for name, logits in expected.items():
        head = open_head(heads, name, SessionSettings())
        for size in (1, 2, 7):
            np.testing.assert_allclose(head(tower(pixels[:size])), logits[:size], atol=2e-4)
    encoder = ArtifactEncoder(heads)
    assert encoder.heads == {"colours": LABELS, "cache": ("a", "b", "c")}
    exponentials = np.exp(expected["colours"] / 2.0 - (expected["colours"] / 2.0).max(axis=1, keepdims=True))
    softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.class_scores("colours", list(pixels)), softmax, atol=2e-5)
    np.testing.assert_allclose(encoder.class_scores("cache", list(pixels)), 1 / (1 + np.exp(-cache)), atol=2e-5)


def test_a_heads_artifact_keeps_its_bases_space_and_int8_encoder(heads: Artifact, store: Store) -> None:
    base = store.open("tiny")
    assert heads.manifest.space == base.manifest.space
    assert heads.manifest.fingerprint == base.manifest.fingerprint
    assert heads.manifest.space_proofs == ()
    assert heads.served_precision("image_encoder", "int8") == "int8"
    assert heads.manifest.metrics["head.colours.int8.top1_agreement"] >= 0.9
    chain = heads.head_graph("colours")[1].chain
    assert chain["fp32"].centred_relative_l2 < 1e-5 < chain["int8"].centred_relative_l2 < 0.2
    for precision in ("fp32", "int8"):
        prove(heads, precision)


def test_adapters_equal_torch_and_make_a_space_of_their_own(
    adapted: Artifact, clip: open_clip.CLIP, store: Store
) -> None:
    assert adapted.manifest.dim == 24
    assert adapted.manifest.space != store.open("tiny").manifest.space
    tiny = store.open("tiny")
    goldens = Goldens(tiny)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        image = nn.Sequential(nn.Linear(32, 40), nn.GELU(), nn.Linear(40, 24))
        text = nn.Linear(32, 24, bias=False)
    encoder = ArtifactEncoder(adapted)
    kept = [case for case in goldens.cases.images if case.raises is None]
    vectors = torch_image_vectors(clip, adapted, goldens.inputs("image_encoder"))
    ids = torch.from_numpy(goldens.inputs("text_encoder"))
    with torch.inference_mode():
        images = image(torch.from_numpy(unit(vectors)).float()).numpy()
        texts = text(TextGraph(clip).eval()(ids)).numpy()
    got = encoder.encode_images([tiny.read(case.file) for case in kept])
    np.testing.assert_allclose(got, unit(images), atol=2e-5)
    np.testing.assert_allclose(encoder.encode_texts(GOLDEN_TEXTS), unit(texts), atol=2e-5)
    for precision in ("fp32", "int8"):
        prove(adapted, precision)


def test_a_cured_text_tower_keeps_the_space_with_its_proof(
    cured: Artifact, store: Store, cured_clip: open_clip.CLIP
) -> None:
    base = store.open("tiny")
    assert cured.manifest.space == base.manifest.space
    assert cured.manifest.fingerprint.image == base.manifest.fingerprint.image
    assert cured.manifest.fingerprint.text != base.manifest.fingerprint.text
    assert cured.manifest.space_proofs[0].fingerprint == cured.manifest.fingerprint.text
    assert cured.manifest.templates == ("a drawing of {}.",)
    assert [graph.role for graph in cured.manifest.graphs] == ["text_encoder", "text_encoder"]
    for precision in ("fp32", "int8"):
        prove(cured, precision)
    ids = Goldens(cured).inputs("text_encoder")
    with torch.inference_mode():
        expected = TextGraph(cured_clip).eval()(torch.from_numpy(ids)).numpy()
    found = cured.graph_spec("text_encoder", "fp32")
    assert found is not None
    graph = open_graph(*found)
    for size in (1, 2, 7):
        np.testing.assert_allclose(unit(graph(ids[:size])), unit(expected[:size]), atol=1e-5)
    assert np.abs(unit(expected) - unit(Goldens(base).arrays["text_embeds"])).max() > 0.01  # it is another tower


def test_a_derivation_of_a_derivation_goes_through_the_bases_adapter(
    adapted: Artifact, store: Store, source: DerivationSource
) -> None:
    weight = np.random.default_rng(8).standard_normal((3, 24))
    child = export_derivation(
        replace(source, base=adapted, heads={"shapes": linear_head(weight, None, ("a", "b", "c"))}),
        name="child",
        store=store,
    )
    assert set(child.heads()) == {"side", "shapes"}
    assert child.manifest.space == adapted.manifest.space
    prove(child, "int8")
    pixels = list(np.random.default_rng(4).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8))
    vectors = ArtifactEncoder(adapted).encode_images(pixels)
    logits = open_head(child, "shapes", SessionSettings())(vectors)
    np.testing.assert_allclose(logits, vectors @ weight.T, atol=1e-4)
    np.testing.assert_allclose(
        ArtifactEncoder(child).class_scores("side", pixels), ArtifactEncoder(adapted).class_scores("side", pixels)
    )


def test_a_head_too_far_behind_the_int8_encoder_is_served_with_fp32(
    store: Store, source: DerivationSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "training.exporting.derived_graphs.HEAD_RELATIVE_L2_MAX", 1e-3
    )  # the tiny model's int8 measures .024
    sharp = export_derivation(replace(source, heads={"sharp": colours()}), name="sharp", store=store)
    (skipped,) = sharp.manifest.skipped
    assert (skipped.role, skipped.precision) == ("class_head", "int8")
    assert "at most 0.001 is allowed; the encoder is served in fp32" in skipped.reason
    assert sharp.served_precision("image_encoder", "int8") == "fp32"
    prove(sharp, "int8")


class Noisy(nn.Module):
    def forward(self, vectors: Tensor) -> Tensor:
        return vectors[:, :2] + (0.0 if torch.compiler.is_exporting() else 0.01)


def colours(**changes: Any) -> HeadSource:
    return linear_head(WEIGHT, BIAS, LABELS, **changes)


REFUSED: dict[str, tuple[Callable[[DerivationSource], DerivationSource], str]] = {
    "nothing": (lambda s: s, "brings at least one"),
    "a name": (lambda s: replace(s, heads={"Colours!": colours()}), "head: name"),
    "a temperature": (lambda s: replace(s, heads={"c": colours(temperature=-1)}), "head: temperature"),
    "labels": (
        lambda s: replace(s, heads={"c": linear_head(WEIGHT, BIAS, ("a", "a", "b", "c"))}),
        "a label occurs twice",
    ),
    "size": (lambda s: replace(s, heads={"c": linear_head(WEIGHT[:, :9], BIAS, LABELS)}), r"does not take .*\[B, 32\]"),
    "training mode": (lambda s: replace(s, image_adapter=AdapterSource(module=nn.Linear(32, 32))), "call eval"),
    "columns": (
        lambda s: replace(s, heads={"c": HeadSource(module=nn.Linear(32, 5).eval(), labels=LABELS)}),
        "has 4 labels and gives 5",
    ),
    "another graph": (
        lambda s: replace(s, heads={"c": HeadSource(module=Noisy().eval(), labels=("a", "b"))}),
        "is not the torch model",
    ),
    "one adapter of another size": (
        lambda s: replace(s, image_adapter=AdapterSource(module=nn.Linear(32, 8).eval())),
        r"different sizes: \[8, 32\]",
    ),
    "an idle proof": (lambda s: replace(s, heads={"c": colours()}, proofs=(PROOF,)), r"changed towers are \[\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_and_nothing_is_left(source: DerivationSource, tmp_path: Path, case: str) -> None:
    change, message = REFUSED[case]
    own = Store(Path(shutil.copytree(TINY_STORE, tmp_path / "store")), builtin=False)
    with pytest.raises(ExportRefused, match=message):
        export_derivation(change(replace(source, base=own.open("tiny"))), name="bad", store=own)
    assert [artifact.reference for artifact in own.list()] == ["tiny@1"]
    assert own.problems() == []


def test_a_proof_that_misses_its_bound_is_refused(source: DerivationSource, store: Store) -> None:
    adapter = AdapterSource(module=nn.Linear(32, 32).eval())
    weak = PROOF.model_copy(update={"value": 0.3})
    with pytest.raises(ManifestError, match=r"R@1 is 0\.3, at least 0\.5 is needed"):
        export_derivation(replace(source, text_adapter=adapter, proofs=(weak,)), name="weak", store=store)
    assert store.problems() == []


def test_another_base_of_the_same_name_is_refused(source: DerivationSource, tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match="base must lie in the same store"):
        export_derivation(replace(source, heads={"c": colours()}), name="x", store=Store(tmp_path, builtin=False))


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (WEIGHT.T, BIAS, r"takes weight \[4, D\] and bias \[4\], got \[32, 4\] and \[4\]"),
        (WEIGHT, BIAS[:2], r"got \[4, 32\] and \[2\]"),
        (WEIGHT * np.inf, BIAS, "not finite"),
    ],
)
def test_arrays_of_another_shape_are_refused(weight: np.ndarray, bias: np.ndarray, message: str) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(ExportRefused, match=message):
        linear_head(weight, bias, LABELS)
