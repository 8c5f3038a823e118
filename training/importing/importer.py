"""open_clip architectures and weights -> published artifacts, refusing whatever would be guessed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2

from model_store.errors import ExportRefused
from model_store.golden import GOLDEN_TEXTS
from model_store.golden_images import golden_images
from model_store.hub.repository import DownloadProgress, Repository
from model_store.identity import sha256_file
from model_store.manifest import ImageSpec, Precision
from model_store.modality.image import decode, prepare
from model_store.modality.text import Tokenizer
from model_store.precisions.calibration import CALIBRATION_TEXTS
from model_store.precisions.variants import ALL_PRECISIONS, Progress
from model_store.store import Artifact, Store
from model_store.templates import DEFAULT_TEMPLATES
from training.exporting.export import ExportSource, export_model, provenance
from training.exporting.graphs import ImageGraph, TextGraph
from training.importing import transformers_folder
from training.importing.openclip_weights import (
    FOLDER_CONFIG,
    FOLDER_WEIGHTS,
    Activation,
    OpenClipModel,
    Weights,
    find_weights,
    load_model,
)
from training.importing.tokenizer_import import (
    TOKENIZER_FILES,
    ImportedTokenizer,
    check_against_transformers,
    import_tokenizer,
)
from training.models.dense import DEFAULT_DENSE, DenseChoice, dense_of_openclip
from training.models.pixels import PixelNormalize

_WRAPPER_TOLERANCE = 1e-5  # of the largest component: other order of additions, nothing more
_UNKNOWN_LICENCE = "not stated by the importer"


def import_model(
    arch: str,
    *,
    pretrained: str | None = None,
    name: str,
    store: Store,
    activation: Activation | None = None,
    tokenizer: Path | None = None,
    precisions: Iterable[Precision] = ALL_PRECISIONS,
    templates: tuple[str, ...] = DEFAULT_TEMPLATES,
    licence: str = _UNKNOWN_LICENCE,
    training_data: str = "",
    limits: str = "",
    dense: DenseChoice = DEFAULT_DENSE,
    cache_dir: Path | None = None,
    found: Repository | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Publish an open_clip model as the next version of `name`.

    arch: an architecture of open_clip, or a name that its weights have elsewhere (model_store.hub.names); or a folder,
        `local-dir:FOLDER` or `hf-hub:ORG/REPO`, with the configuration of open_clip or of a CLIP or SigLIP of
        transformers.
    pretrained: an open_clip tag, or a .safetensors, .pt, .pth or .bin file; None with a folder or a hub repository.
    activation: for a local file of an architecture that exists with GELU and with QuickGELU, which the weights do not
        show; recorded as declared.
    tokenizer: for architectures whose tokeniser is not CLIP's (or is a prefix of it), its file or folder.
    dense: what takes the place of a ViT's last attention in the dense role, `maskclip`, `sclip` or `naclip`; "none" for
        no dense role.
    found: the repository that `arch` was downloaded from, for the record.

    Raises:
        ExportRefused: with the reason, and what to do about it where something can be done.
    """
    say = progress or (lambda message: None)
    say("load")
    weights = find_weights(arch, pretrained, activation=activation, cache_dir=cache_dir)
    model = load_model(weights)
    image_spec = image_spec_of(model)
    text = TextGraph(model).eval()
    imported = import_tokenizer(
        weights.config["text_cfg"],
        file=tokenizer or weights.tokenizer,
        context_length=text.context_length,
        table_rows=text.token_embedding.num_embeddings,
        dynamic_length=text.dynamic_length,
        cache_dir=cache_dir,
    )
    if weights.tokenizer is not None:
        check_against_transformers(imported, weights.tokenizer)
    say("compare with open_clip")
    check_against_open_clip(model, image_spec, text, imported)
    source = _source_of(model, weights, image_spec, text, imported, templates, licence, training_data, limits, dense)
    if found is not None:
        at = f" at {found.revision}" if found.revision else ""
        record = {"source": f"{found.name}{at}", "repository": found.name, "revision": found.revision}
        known = source.provenance.model_copy(update={**record, "layout": "open_clip weights"})
        source = dataclasses.replace(source, provenance=known)
    return export_model(source, name=name, store=store, precisions=precisions, progress=progress)


def import_repository(
    repository: Repository,
    *,
    name: str,
    store: Store,
    precisions: Iterable[Precision] = ALL_PRECISIONS,
    downloaded: DownloadProgress | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Publish the model of a repository that holds weights for torch: open_clip's files, or those of transformers.

    Raises:
        ExportRefused: it has no such files, or the model is refused by `import_model`.
        RepositoryError: it cannot be downloaded.
    """
    files = repository.files()
    if FOLDER_CONFIG in files:
        weights = next((each for each in FOLDER_WEIGHTS if each in files), None)
        wanted = [FOLDER_CONFIG, weights, *TOKENIZER_FILES]
    else:
        weights = next((each for each in transformers_folder.WEIGHTS if each in files), None)
        wanted = [weights, *transformers_folder.FILES]
    if weights is None:
        raise ExportRefused(f"{repository.name} has no weights that open_clip or transformers would load")
    wanted = [each for each in wanted if each in files]
    folder = repository.fetch(wanted, downloaded)
    own_tokenizer = FOLDER_CONFIG in files and _has_own_tokenizer(folder)
    return import_model(
        f"local-dir:{folder}",
        name=name,
        store=store,
        precisions=precisions,
        tokenizer=folder if own_tokenizer and "tokenizer.json" in files else None,
        licence=repository.licence or _UNKNOWN_LICENCE,
        found=repository,
        progress=progress,
    )


def _has_own_tokenizer(folder: Path) -> bool:
    config = json.loads((folder / FOLDER_CONFIG).read_text(encoding="utf-8"))
    return config.get("model_cfg", {}).get("text_cfg", {}).get("hf_tokenizer_name") is not None


def preprocess_config(model: OpenClipModel) -> PreprocessCfg:
    """The preprocessing that open_clip hung on the image tower when the weights were loaded."""
    settings: dict[str, Any] = getattr(model.visual, "preprocess_cfg")  # noqa: B009  (an attribute no class declares)
    return PreprocessCfg(**settings)


def image_spec_of(model: OpenClipModel) -> ImageSpec:
    """open_clip's own preprocessing of a model as closed data."""
    config = preprocess_config(model)
    _, height, width = config.input_size
    fill = config.fill_color
    try:
        return ImageSpec.model_validate(
            {
                "height_px": height,
                "width_px": width,
                "resize_mode": config.resize_mode,
                "interpolation": "bicubic" if config.interpolation == "random" else config.interpolation,
                "fill": fill if isinstance(fill, int) else -1,
                "mean": tuple(config.mean),
                "std": tuple(config.std),
            }
        )
    except ValueError as error:
        raise ExportRefused(f"open_clip's preprocessing {config} is not one this project has: {error}") from error


def check_against_open_clip(
    model: OpenClipModel, image_spec: ImageSpec, text: TextGraph, imported: ImportedTokenizer
) -> None:
    """Stop unless pixels, ids and both towers are what open_clip itself gives for this model.

    Pixels must be bit-equal after normalisation on every golden picture, ids equal on the golden and calibration texts.

    Raises:
        ExportRefused: names the first picture or text that differs.
    """
    transform: Any = image_transform_v2(preprocess_config(model), is_train=False)
    normalize = PixelNormalize(image_spec.mean, image_spec.std)
    prepared, expected = [], []
    for case in golden_images():
        if case.raises is None:
            image = decode(case.data)
            prepared.append(torch.from_numpy(prepare(image, image_spec)))
            expected.append(transform(image))
            if not torch.equal(normalize(prepared[-1][None])[0], expected[-1]):
                raise ExportRefused(f"picture {case.id}: prepared pixels differ from open_clip's transform")
    tokenizer = Tokenizer(imported.spec, imported.data)
    texts = [*GOLDEN_TEXTS, *CALIBRATION_TEXTS]
    ours, theirs = tokenizer(texts), imported.reference(texts).numpy()
    for index in np.flatnonzero((ours != theirs).any(axis=1)):
        raise ExportRefused(f"text {texts[index][:60]!r}: token ids differ from open_clip's tokenizer")
    rows = [tokenizer.encode(t) for t in texts[:4]]
    with torch.inference_mode():
        image = ImageGraph(model.visual, image_spec.mean, image_spec.std)
        _check_close("image", image(torch.stack(prepared[:3])), model.encode_image(torch.stack(expected[:3])))
        cut = torch.from_numpy(tokenizer.pad(rows))
        _check_close("text", text(cut), model.encode_text(torch.from_numpy(theirs[:4])))


def _check_close(tower: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    difference = float((got - expected).abs().max() / expected.abs().max())
    if not difference <= _WRAPPER_TOLERANCE:
        raise ExportRefused(f"{tower} tower: the exported module differs from open_clip's by {difference:.1e} relative")


def _source_of(
    model: OpenClipModel,
    weights: Weights,
    image_spec: ImageSpec,
    text: TextGraph,
    imported: ImportedTokenizer,
    templates: tuple[str, ...],
    licence: str,
    training_data: str,
    limits: str,
    dense: DenseChoice,
) -> ExportSource:
    structure = json.dumps(weights.config, sort_keys=True, separators=(",", ":"))
    bias = model.logit_bias
    return ExportSource(
        image=ImageGraph(model.visual, image_spec.mean, image_spec.std).eval(),
        text=text,
        image_spec=image_spec,
        text_spec=imported.spec,
        tokenizer=imported.data,
        structure=structure,
        logit_scale=float(model.logit_scale.detach().exp().reshape(-1)[0]),
        logit_bias=0.0 if bias is None else float(bias.detach().reshape(-1)[0]),
        activation="softmax" if bias is None else "sigmoid",
        templates=templates,
        dense=dense_of_openclip(model.visual, image_spec, dense),
        provenance=provenance(
            source=weights.source,
            architecture=weights.architecture,
            activation="quickgelu" if weights.config.get("quick_gelu") else "gelu",
            activation_declared=weights.declared,
            structure=structure,
            licence=licence,
            training_data=training_data,
            limits=limits,
            source_sha256=sha256_file(weights.file),
        ),
    )
