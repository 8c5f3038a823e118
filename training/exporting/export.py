"""Torch model -> ONNX graphs -> proof that they are the same model -> goldens -> published artifact."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import open_clip
from numpy.typing import NDArray
from torch import Tensor, nn

from model_store.errors import ExportRefused
from model_store.golden import (
    dense_goldens,
    write_goldens,
)
from model_store.identity import fingerprint, space_of
from model_store.manifest import (
    Distillation,
    Fingerprint,
    GraphSpec,
    ImageSpec,
    Manifest,
    Precision,
    Presence,
    Provenance,
    Role,
    SkippedVariant,
    TextSpec,
)
from model_store.modality.text import Tokenizer
from model_store.precisions.calibration import Calibration, calibration_for
from model_store.precisions.measure import MeasuredRows
from model_store.precisions.rows import calibration_texts, measured_pictures, measured_texts
from model_store.precisions.variants import (
    ALL_PRECISIONS,
    Progress,
    TowerVariant,
    build_tower,
    fp32_first,
    tolerances_of,
)
from model_store.probe import one_child
from model_store.store import Artifact, Store, file_entries
from training.aligned_config import AlignedConfig, Storage
from training.checkpoint import LoadedModel, load_model
from training.config import OpenClipConfig
from training.exporting.dense_build import add_dense, dense_reference, dense_spec_of
from training.exporting.graphs import (
    GRAPH_RECIPE,
    EncoderGraph,
    ImageGraph,
    TextGraph,
    image_tensors,
    text_tensors,
    write_graph,
)
from training.exporting.reference import torch_vectors
from training.exporting.storage import as_stored, keep_compact
from training.log import flatten
from training.models.aligned import AlignedDualEncoder
from training.models.dense import DEFAULT_DENSE, DenseChoice, DenseSource, dense_of_model
from training.models.towers import OpenClipDualEncoder

NOTICE_FILE = "NOTICE"
_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "open_clip_torch", "timm", "tokenizers", "Pillow", "numpy")


@dataclass(frozen=True, kw_only=True)
class ExportSource:
    """A trained model, ready to become an artifact.

    image: module in eval mode, fp32, uint8 [B, H, W, 3] -> float [B, D], not normalised.
    text: module in eval mode, fp32, int64 [B, L] -> float [B, D]. When `text_spec.dynamic_length`, it must give the
        same answer for every L that keeps the row's tokens, and have an int attribute `context_length`.
    tokenizer: the bytes that `text_spec.tokenizer_file` will hold.
    structure: everything that shapes the answer and is not in the weights (architecture, activation), as one string;
        it becomes part of the fingerprints.
    logit_scale: the factor itself, exp applied.
    dense: the image tower read position by position; a string says why there is none, and is kept in the artifact.
    storage: how the weights of a tower's graphs lie in one file (see keep_compact); None: each graph has its own.
    image_weights, text_weights: what each fingerprint covers; by default the module's own state, but two modules around
        one model would both cover both towers.
    """

    image: nn.Module
    text: nn.Module
    image_spec: ImageSpec
    text_spec: TextSpec
    tokenizer: bytes
    structure: str
    logit_scale: float
    logit_bias: float = 0.0
    activation: Literal["softmax", "sigmoid"]
    templates: tuple[str, ...]
    provenance: Provenance
    dimensions: tuple[int, ...] = ()
    dense: DenseSource | str | None = None
    presence: Presence | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    storage: Storage | None = None
    image_weights: Mapping[str, Tensor] | None = None
    text_weights: Mapping[str, Tensor] | None = None


def recipe_of(structure: str) -> str:
    """The string that fingerprints and provenance carry: what the graphs compute besides the weights."""
    return f"{GRAPH_RECIPE};{structure}"


def provenance(
    *,
    source: str,
    architecture: str,
    activation: Literal["gelu", "quickgelu", "other"],
    structure: str,
    licence: str,
    activation_declared: bool = False,
    training_data: str = "",
    limits: str = "",
    source_sha256: str | None = None,
    distillation: Distillation | None = None,
) -> Provenance:
    """A Provenance with the time, the tools' versions and the recipe filled in."""
    tools = {name: importlib.metadata.version(name) for name in _TOOLS}
    return Provenance(
        source=source,
        architecture=architecture,
        activation=activation,
        activation_declared=activation_declared,
        licence=licence,
        training_data=training_data,
        limits=limits,
        created_utc=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        tools={**tools, "python": platform.python_version()},
        source_sha256=source_sha256,
        recipe=recipe_of(structure),
        distillation=distillation,
    )


@one_child()
def export_model(
    source: ExportSource,
    *,
    name: str,
    store: Store,
    precisions: Iterable[Precision] = ALL_PRECISIONS,
    text_precisions: Iterable[Precision] | None = None,
    pictures: Sequence[bytes] = (),
    texts: Sequence[str] = (),
    notice: str = "",
    progress: Progress | None = None,
) -> Artifact:
    """Export, prove and publish `source` as the next version of `name`.

    int8 is calibrated, and every precision measured, on the shipped pictures and texts and on `pictures` (encoded) and
    `texts` beside them: a model of a narrow domain should bring some of its own training data.
    Every graph is first opened in a child process. fp32 is always built; another precision that crashes or misses its
    floor is left out, and `manifest.skipped` says why. text_precisions: of the text encoder, where they are not those
    of the image encoder. notice: the text of the artifact's file NOTICE, if there is any.

    Raises:
        ExportRefused: a tower cannot be exported, or its fp32 graph is not the torch model.
    """
    say = progress or (lambda message: None)
    wanted = fp32_first(precisions)
    wanted_of_texts = wanted if text_precisions is None else fp32_first(text_precisions)
    tokenizer = Tokenizer(source.text_spec, source.tokenizer)
    calibration = calibration_for(source.image_spec, tokenizer, pictures=pictures, texts=texts)
    graphs: list[GraphSpec] = []
    skipped: list[SkippedVariant] = []
    with store.staging() as folder:
        tokenizer_file = folder / source.text_spec.tokenizer_file
        tokenizer_file.parent.mkdir(parents=True, exist_ok=True)
        tokenizer_file.write_bytes(source.tokenizer)
        image = image_tower(source.image, source.image_spec, calibration)
        text = text_tower(source.text, source.text_spec, tokenizer, calibration)
        if image.dim != text.dim:
            raise ExportRefused(f"image vectors have {image.dim} components, text vectors {text.dim}")
        for tower, its in ((image, wanted), (text, wanted_of_texts)):
            built, missed = build_tower(tower, its, folder, say)
            graphs += built
            skipped += missed
        graphs, missed = add_dense(source.dense, source.image, graphs, calibration.pixels, folder, say)
        skipped += missed
        if source.storage is not None:
            graphs = keep_compact(graphs, folder, source.storage, feeds=_feeds(source, image, text))
        say("goldens")
        _write_goldens(folder, source, tokenizer, graphs)
        write_notice(folder, notice)
        manifest = _manifest(source, name, store.next_version(name), graphs, skipped, folder)
        say("publish")
        return store.publish(folder, manifest)


def export_checkpoint(
    path: Path,
    name: str,
    store: Store,
    *,
    precisions: Iterable[Precision] = ALL_PRECISIONS,
    text_precisions: Iterable[Precision] | None = None,
    pictures: Sequence[bytes] = (),
    texts: Sequence[str] = (),
    licence: str = "not stated",
    training_data: str = "",
    limits: str = "",
    notice: str = "",
    report: Mapping[str, object] | None = None,
    dense: DenseChoice = DEFAULT_DENSE,
    progress: Progress | None = None,
) -> Artifact:
    """Publish a checkpoint folder of `training.checkpoint`; `dense` as in `source_of_checkpoint`, the rest as in
    `export_model`.

    Raises:
        ExportRefused: the folder is not a sound checkpoint, or the model is refused by `export_model`.
    """
    try:
        loaded = load_model(path)
    except (OSError, ValueError, KeyError) as error:
        raise ExportRefused(f"{path.name} is not a checkpoint that can be exported: {error}") from error
    source = source_of_checkpoint(
        loaded, licence=licence, training_data=training_data, limits=limits, report=report, dense=dense
    )
    return export_model(
        source,
        name=name,
        store=store,
        precisions=precisions,
        text_precisions=text_precisions,
        pictures=pictures,
        texts=texts,
        notice=notice,
        progress=progress,
    )


def write_notice(folder: Path, notice: str) -> None:
    """Put attributions and licence texts into the file NOTICE of a staged artifact; none if there are none."""
    if notice:
        (folder / NOTICE_FILE).write_text(notice, encoding="utf-8")


def source_of_checkpoint(
    loaded: LoadedModel,
    *,
    licence: str = "not stated",
    training_data: str = "",
    limits: str = "",
    report: Mapping[str, object] | None = None,
    dense: DenseChoice = DEFAULT_DENSE,
) -> ExportSource:
    """An opened checkpoint as what `export_model` takes; `report` holds more measurements than its own, by split.

    dense: what takes the place of a ViT's last attention in the dense role, or "none" for no dense role.
    """
    model, info = loaded.model, loaded.info
    described = info.config.model
    aligned = described if isinstance(described, AlignedConfig) else None
    known = isinstance(described, AlignedConfig | OpenClipConfig)
    structure = described.structure() if known else described.model_dump_json()
    if aligned and isinstance(model, AlignedDualEncoder):
        model, state = as_stored(model, aligned)
    else:
        state = model.state_dict()
    image_weights = text_weights = None
    text: nn.Module
    if isinstance(model, OpenClipDualEncoder) and isinstance(info.config.model, OpenClipConfig):
        spec = info.image_spec
        visual = model.clip.get_submodule("visual")
        image: nn.Module = ImageGraph(visual, spec.mean, spec.std)
        text = TextGraph(model.clip)
        if text.dynamic_length != info.text_spec.dynamic_length:
            raise ExportRefused(
                f"the text spec says dynamic_length={info.text_spec.dynamic_length}, the text tower's attention and "
                f"pooling allow {text.dynamic_length}"
            )
        quick = (open_clip.get_model_config(info.config.model.architecture) or {}).get("quick_gelu")
        architecture, activation = info.config.model.architecture, "quickgelu" if quick else "gelu"
        architecture += "" if info.config.model.slim is None else ", slim"
    else:
        image = EncoderGraph(model, "encode_image")
        text = EncoderGraph(model, "encode_text", context_length=info.text_spec.context_length)
        image_weights = {k: v for k, v in state.items() if not k.startswith(("text.", "logit_"))}
        text_weights = {k: v for k, v in state.items() if k.startswith("text.")}
        architecture = f"clipworks {described.kind}" + (f" {aligned.image.trunk}" if aligned else "")
        activation = "other" if aligned else "gelu"
    bias = model.logit_bias
    return ExportSource(
        image=image.eval(),
        text=text.eval(),
        image_spec=info.image_spec,
        text_spec=info.text_spec,
        tokenizer=loaded.tokenizer_bytes,
        structure=structure,
        logit_scale=float(model.logit_scale.detach().exp().reshape(-1)[0]),
        logit_bias=0.0 if bias is None else float(bias.detach().reshape(-1)[0]),
        activation="softmax" if bias is None else "sigmoid",
        templates=info.templates,
        provenance=provenance(
            source=f"clipworks checkpoint {info.config.name}, step {info.step}, data {info.data_digest[:16]}",
            architecture=architecture,
            activation=activation,
            structure=structure,
            licence=licence,
            training_data=training_data,
            limits=limits,
            source_sha256=info.weights_sha256,
            distillation=info.distillation,
        ),
        dense=dense_of_model(model, info.image_spec, dense),
        metrics=flatten({**info.metrics, **(report or {})}),
        storage=aligned.storage if aligned else None,
        image_weights=image_weights,
        text_weights=text_weights,
    )


def image_tower(module: nn.Module, spec: ImageSpec, calibration: Calibration) -> TowerVariant:
    """An image encoder with the pictures it is measured on: the golden ones, then the calibration's."""
    rows = measured_pictures(spec, calibration)
    reference = torch_vectors(module, rows)
    tensors = image_tensors(spec, reference.shape[1])
    return TowerVariant(
        role="image_encoder",
        write_fp32=lambda path: write_graph(module, tensors, path),
        tensors=tensors,
        rows=rows,
        calibration=[calibration.pixels[i : i + 1] for i in range(len(calibration.pixels))],
        reference=reference,
    )


def text_tower(module: nn.Module, spec: TextSpec, tokenizer: Tokenizer, calibration: Calibration) -> TowerVariant:
    """A text encoder with the texts it is measured on: the golden ones, then the calibration's."""
    rows = measured_texts(tokenizer, calibration)
    reference = torch_vectors(module, rows)
    tensors = text_tensors(spec, reference.shape[1])
    return TowerVariant(
        role="text_encoder",
        write_fp32=lambda path: write_graph(module, tensors, path),
        tensors=tensors,
        rows=rows,
        calibration=calibration_texts(rows),
        reference=reference,
    )


def _feeds(source: ExportSource, image: TowerVariant, text: TowerVariant) -> dict[Role, NDArray[Any]]:
    """Some input for every encoder."""
    feeds: dict[Role, NDArray[Any]] = {
        "image_encoder": image.rows.batch([0, 1]),
        "text_encoder": text.rows.batch([0, 1]),
    }
    if isinstance(source.dense, DenseSource):
        feeds["dense_encoder"] = next(iter(dense_goldens(source.dense.spec).values()))
    return feeds


def _write_goldens(folder: Path, source: ExportSource, tokenizer: Tokenizer, graphs: list[GraphSpec]) -> None:
    write_goldens(
        folder,
        image=(source.image_spec, lambda pixels: torch_vectors(source.image, MeasuredRows(padded=pixels))),
        text=(tokenizer, lambda ids: torch_vectors(source.text, MeasuredRows(padded=ids))),
        dense=dense_reference(source.dense, graphs),
        tolerances=tolerances_of(graphs),
    )


def _manifest(
    source: ExportSource,
    name: str,
    version: int,
    graphs: list[GraphSpec],
    skipped: list[SkippedVariant],
    folder: Path,
) -> Manifest:
    encoders = fingerprints_of(source)
    (output,) = graphs[0].outputs
    dim = output.shape[1]
    if not isinstance(dim, int):
        raise ExportRefused(f"{graphs[0].file}: the vector's size is not fixed ({output.shape})")
    return Manifest(
        format=1,
        name=name,
        version=version,
        kind="base",
        dim=dim,
        dimensions=source.dimensions,
        image=source.image_spec,
        text=source.text_spec,
        dense=dense_spec_of(source.dense, graphs),
        graphs=tuple(graphs),
        skipped=tuple(skipped),
        logit_scale=source.logit_scale,
        logit_bias=source.logit_bias,
        activation=source.activation,
        templates=source.templates,
        presence=source.presence,
        fingerprint=encoders,
        space=space_of(encoders),
        files=file_entries(folder),
        metrics=dict(source.metrics),
        provenance=source.provenance,
    )


def fingerprints_of(source: ExportSource) -> Fingerprint:
    """The names both encoders will have: weights, spec, structure and recipe, tokeniser."""
    recipe = recipe_of(source.structure)
    return Fingerprint(
        image=fingerprint(weight_arrays(source.image_weights or source.image.state_dict()), source.image_spec, recipe),
        text=fingerprint(
            weight_arrays(source.text_weights or source.text.state_dict()), source.text_spec, recipe, source.tokenizer
        ),
    )


def weight_arrays(state: Mapping[str, Tensor]) -> list[tuple[str, NDArray[np.float32]]]:
    """fp32 parameters and persistent buffers by name (integer buffers such as batch counters shape no answer)."""
    return [(name, t.detach().cpu().float().numpy()) for name, t in state.items() if t.is_floating_point()]
