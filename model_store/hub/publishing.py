"""A repository of foreign graphs -> wrapped, compared, checked and published as an artifact."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model_store.errors import ExportRefused
from model_store.golden import GOLDEN_TEXTS, write_goldens
from model_store.hub import joint
from model_store.hub.checks import (
    Pairs,
    caption_recall,
    check_captions,
    check_vectors,
    nasty_pictures,
    shipped_pairs,
)
from model_store.hub.graphs import ForeignGraph, weight_arrays
from model_store.hub.layouts import OpenedLayout
from model_store.hub.scale import ScaleFound
from model_store.hub.settings import ModelSettings
from model_store.hub.surgery import quick_gelu_nodes
from model_store.hub.tokenizing import FoundTokenizer, tokenizer_of
from model_store.hub.towers import WrappedTower, choose_output, cuts_padding, wrap_images, wrap_texts
from model_store.identity import fingerprint, space_of
from model_store.manifest import Fingerprint, GraphSpec, Manifest, Precision, Provenance, SkippedVariant
from model_store.modality.text import Tokenizer
from model_store.precisions.calibration import Calibration, calibration_for
from model_store.precisions.measure import MeasuredRows
from model_store.precisions.rows import calibration_texts, measured_pictures, measured_texts
from model_store.precisions.variants import Progress, TowerVariant, build_tower, fp32_first, tolerances_of
from model_store.probe import one_child
from model_store.store import Artifact, Store, file_entries
from model_store.templates import DEFAULT_TEMPLATES

# Version of what is put before and behind foreign graphs; part of every fingerprint.
WRAP_RECIPE = "wrapped-nhwc/1"
_TOOLS = ("onnx", "onnxruntime", "huggingface_hub", "tokenizers", "Pillow", "numpy")
_REFERENCE = "the graph that was found"


@dataclass(frozen=True, kw_only=True)
class ForeignModel:
    """What was found in a repository, ready to be wrapped.

    quick_gelu: what the weights need, where their tag says it. licence: as the repository states it.
    find_scale: asks elsewhere for the scale when the graphs do not hold it.
    """

    opened: OpenedLayout
    settings: ModelSettings
    repository: str
    revision: str | None
    licence: str | None
    quick_gelu: bool | None
    find_scale: Callable[[], ScaleFound]


@dataclass(frozen=True, kw_only=True)
class _Towers:
    image: WrappedTower
    text: WrappedTower
    tokenizer: FoundTokenizer
    scale: ScaleFound


@one_child()
def publish_foreign(
    model: ForeignModel,
    *,
    name: str,
    store: Store,
    precisions: Iterable[Precision] = ("fp32",),
    templates: tuple[str, ...] = DEFAULT_TEMPLATES,
    pairs: Pairs | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Wrap both towers, run every check, and publish the model as the next version of `name`.

    pairs: photographs with their captions that must find each other; by default the shipped ones.

    Raises:
        ExportRefused: the model, or one of its files, cannot be served as it is; the message says why and what to do.
        GraphError: a graph does not load or run.
    """
    say: Progress = progress or (lambda message: None)
    pairs = pairs or shipped_pairs()
    with tempfile.TemporaryDirectory() as scratch, store.staging() as folder:
        say("compare the wrapped graphs with those that were found")
        towers = _wrap(model, Path(scratch))
        activation = _check_activation(model, towers)
        tokenizer = Tokenizer(towers.tokenizer.spec, towers.tokenizer.data)
        say(f"{len(pairs.captions)} photographs and their captions")
        metrics = _checked(model, towers, tokenizer, pairs)
        file = folder / towers.tokenizer.spec.tokenizer_file
        file.parent.mkdir(parents=True)
        file.write_bytes(towers.tokenizer.data)
        calibration = calibration_for(model.settings.image, tokenizer)
        graphs: list[GraphSpec] = []
        skipped: list[SkippedVariant] = []
        for variant in _variants(model, towers, tokenizer, calibration):
            built, missed = build_tower(variant, fp32_first(precisions), folder, say)
            graphs += built
            skipped += missed
        say("goldens")
        write_goldens(
            folder,
            image=(model.settings.image, towers.image.reference),
            text=(tokenizer, towers.text.reference),
            tolerances=tolerances_of(graphs),
        )
        encoders = _fingerprints(model, towers, folder)
        manifest = Manifest(
            format=1,
            name=name,
            version=store.next_version(name),
            kind="base",
            dim=towers.image.dim,
            image=model.settings.image,
            text=towers.tokenizer.spec,
            graphs=tuple(graphs),
            skipped=tuple(skipped),
            **_scale_fields(model, towers.scale),
            templates=templates,
            fingerprint=encoders,
            space=space_of(encoders),
            files=file_entries(folder),
            metrics=metrics,
            provenance=_provenance(model, activation),
        )
        say("publish")
        return store.publish(folder, manifest)


def _wrap(model: ForeignModel, scratch: Path) -> _Towers:
    settings, opened = model.settings, model.opened
    image, text = opened.both(model.repository)
    projected = settings.pooled_is_projected
    image_output = choose_output(image, "image", pooled_is_projected=projected)
    text_output = choose_output(text, "text", pooled_is_projected=projected)
    pixels = nasty_pictures(settings.image)
    if opened.is_joint:
        image, text = joint.cut(image, image_output, text_output, scratch)
    tokenizer = _tokenizer(model, text, text_output)
    speaker = Tokenizer(tokenizer.spec, tokenizer.data)
    ids = speaker.pad([speaker.encode(each) for each in GOLDEN_TEXTS], speaker.spec.context_length)
    scale = None
    if opened.is_joint:
        whole = opened.both(model.repository)[0]
        rows = pixels[: len(ids)]
        scale = joint.scale_in_graph(whole, image_output, text_output, settings.image, tokenizer.spec, rows, ids)
    towers = _Towers(
        image=wrap_images(image, image_output, settings.image, pixels, _folder(scratch, "image")),
        text=wrap_texts(text, text_output, tokenizer.spec, ids, _folder(scratch, "text")),
        tokenizer=tokenizer,
        scale=scale or model.find_scale(),
    )
    if towers.image.dim != towers.text.dim:
        raise ExportRefused(
            f"image vectors have {towers.image.dim} components, text vectors {towers.text.dim}: one of the outputs "
            f"({image_output}, {text_output}) is not projected, or the towers are not of one model"
        )
    return towers


def _folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def _tokenizer(model: ForeignModel, text: ForeignGraph, output: str) -> FoundTokenizer:
    """The tokenizer, with the length that the graph and the configuration allow, and whether padding may be cut."""
    settings = model.settings
    lengths = {port.shape[1] for port in text.inputs if len(port.shape) == 2 and port.shape[1] is not None}
    context = next(iter(lengths), None) or settings.context_length
    found = tokenizer_of(settings.tokenizer_folder, clean=settings.clean, context_length=context, dynamic_length=False)
    speaker = Tokenizer(found.spec, found.data)
    if not cuts_padding(text, output, found.spec, [speaker.encode(each) for each in GOLDEN_TEXTS]):
        return found
    return FoundTokenizer(spec=found.spec.model_copy(update={"dynamic_length": True}), data=found.data)


def _check_activation(model: ForeignModel, towers: _Towers) -> Literal["gelu", "quickgelu", "other"]:
    """What the graphs compute, refused when the weights were trained with the other one.

    Raises:
        ExportRefused: GELU in the graph of weights that need QuickGELU, or the reverse.
    """
    quick, plain = (
        sum(counts) for counts in zip(*(quick_gelu_nodes(t.graph) for t in (towers.image, towers.text)), strict=True)
    )
    named = model.settings.activations
    wanted = next(iter(named)) if len(named) == 1 else None
    if model.quick_gelu is not None:
        wanted = "quickgelu" if model.quick_gelu else "gelu"
    if wanted == "quickgelu" and not quick and plain:
        raise ExportRefused(
            f"these weights were trained with QuickGELU, but the graphs compute GELU ({plain} times): their vectors "
            "are wrong. Take another export, or make one: clipworks models import ARCH-quickgelu --pretrained TAG"
        )
    if wanted == "gelu" and quick and not plain:
        raise ExportRefused(
            f"these weights were trained with GELU, but the graphs compute QuickGELU ({quick} times): their vectors "
            "are wrong. Take another export, or make one: clipworks models import ARCH --pretrained TAG"
        )
    if quick and plain:
        return "other"
    return "quickgelu" if quick else "gelu" if plain else "other"


def _checked(model: ForeignModel, towers: _Towers, tokenizer: Tokenizer, pairs: Pairs) -> dict[str, float]:
    """Run the checks that need no reference; what was measured, for the manifest.

    Raises:
        ExportRefused: one of them fails.
    """
    spec = model.settings.image
    check_vectors("image encoder", towers.image.reference(nasty_pictures(spec)))
    check_vectors("text encoder", towers.text.reference(tokenizer([text for text in GOLDEN_TEXTS if text])))
    recall = caption_recall(pairs, spec, tokenizer, towers.image.reference, towers.text.reference)
    check_captions(recall, pairs)
    return {
        "wrapped/captions recall@1": recall,
        "wrapped/captions pairs": float(len(pairs.captions)),
        "wrapped/image max difference": towers.image.difference,
        "wrapped/text max difference": towers.text.difference,
    }


def _variants(
    model: ForeignModel, towers: _Towers, tokenizer: Tokenizer, calibration: Calibration
) -> tuple[TowerVariant, TowerVariant]:
    pictures, texts = measured_pictures(model.settings.image, calibration), measured_texts(tokenizer, calibration)
    return (
        _variant(towers.image, pictures, [calibration.pixels[i : i + 1] for i in range(len(calibration.pixels))]),
        _variant(towers.text, texts, calibration_texts(texts)),
    )


def _variant(tower: WrappedTower, rows: MeasuredRows, calibration: Sequence[NDArray[np.generic]]) -> TowerVariant:
    return TowerVariant(
        role=tower.role,
        write_fp32=tower.graph.save,
        tensors=tower.tensors,
        rows=rows,
        calibration=list(calibration),
        reference=tower.reference(rows.padded),
        reference_name=_REFERENCE,
        normalized_output=tower.normalized,
    )


def _fingerprints(model: ForeignModel, towers: _Towers, folder: Path) -> Fingerprint:
    """Of the written graphs: their weights by name, and the digest of everything else in them."""

    def of(tower: WrappedTower, tokenizer: bytes | None) -> str:
        graph = ForeignGraph.read(folder / f"{tower.role}.fp32.onnx")
        recipe = f"{WRAP_RECIPE};{hashlib.sha256(graph.structure()).hexdigest()}"
        spec = model.settings.image if tower.role == "image_encoder" else towers.tokenizer.spec
        return fingerprint(weight_arrays(graph), spec, recipe, tokenizer)

    return Fingerprint(image=of(towers.image, None), text=of(towers.text, towers.tokenizer.data))


def _scale_fields(model: ForeignModel, scale: ScaleFound) -> dict[str, Any]:
    if scale.scale is None:
        return {"logit_scale": None, "activation": "none", "scale_source": scale.source}
    sigmoid = model.settings.sigmoid or scale.bias is not None
    return {
        "logit_scale": scale.scale,
        "logit_bias": scale.bias or 0.0,
        "activation": "sigmoid" if sigmoid else "softmax",
        "scale_source": scale.source,
    }


def _provenance(model: ForeignModel, activation: Literal["gelu", "quickgelu", "other"]) -> Provenance:
    revision = f" at {model.revision}" if model.revision else ""
    return Provenance(
        source=f"{model.repository}{revision}",
        verified="wrapped",
        repository=model.repository,
        revision=model.revision,
        layout=model.opened.name,
        architecture=model.settings.architecture,
        activation=activation,
        licence=model.licence or "not stated by the repository",
        created_utc=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        tools={**{name: importlib.metadata.version(name) for name in _TOOLS}, "python": platform.python_version()},
        recipe=WRAP_RECIPE,
    )
