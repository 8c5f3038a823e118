"""Label sets whose templates are weighed: pictures of collections as they are kept, and what can be weighed at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clipworks.schemas import Label, WeighTemplates
from model_store.errors import InputError
from model_store.template_weights import TemplateScores
from service.engine.running import RunningModel
from service.faults import TooManyItems
from service.tasks.prompts import Prompts
from service.tasks.stored_set import WeighedWith
from service.teaching.examples import ExampleVectors, item_id

LEAST_PICTURES = 10  # the expectation of fewer says little
_MOST_NUMBERS = 20_000_000  # pictures x templates: scores are worked out in an array of so many
_PICTURE, _REFERENCE = "picture", "reference"
F32 = NDArray[np.float32]


class NotWeighable(InputError):
    """Labels, templates or pictures that give nothing to weigh."""


def kept_pictures(wanted: WeighTemplates, pictures: dict[str, F32], reference: dict[str, F32]) -> ExampleVectors:
    """Unit vectors by id of item, in the form of examples, whose label says which of the two they are.

    The digest is worked out, which takes a while of many.

    Raises:
        NotWeighable: there are too few.
    """
    groups = [(wanted.collection, pictures, _PICTURE)]
    if wanted.reference is not None:
        groups.append((wanted.reference, reference, _REFERENCE))
    for name, found, _ in groups:
        if len(found) < LEAST_PICTURES:
            raise NotWeighable(f"collection {name} has {len(found)} items, templates are weighed by {LEAST_PICTURES}")
    kept = ExampleVectors(
        tuple(item_id(name, id) for name, found, _ in groups for id in found),
        tuple(label for _, found, label in groups for _ in found),
        np.stack([vector for _, found, _ in groups for vector in found.values()]),
    )
    _ = kept.digest
    return kept


def weighed_with(model: RunningModel, pictures: ExampleVectors) -> WeighedWith:
    return WeighedWith(
        sha256=pictures.digest,
        image_fingerprint=str(model.fingerprint.image),
        pictures=pictures.labels.count(_PICTURE),
    )


def check_weighable(labels: Sequence[Label], templates: Sequence[str], pictures: int) -> None:
    """Raises NotWeighable: there is nothing to weigh; TooManyItems: pictures x templates."""
    filled = sum(isinstance(label, str) for label in labels)
    if filled < 2:
        raise NotWeighable(
            f"templates are weighed by how they tell labels apart, and {filled} labels are put into them"
        )
    if len(templates) < 2:
        raise NotWeighable('there is one template, so there is nothing to weigh: give several, such as "imagenet"')
    if pictures * len(templates) > _MOST_NUMBERS:
        raise TooManyItems(
            f"{pictures} pictures x {len(templates)} templates are more than can be weighed ({_MOST_NUMBERS}): "
            "give a lower limit"
        )


def check_prompts(prompts: Prompts, weighed: WeighedWith | None) -> None:
    """Raises NotWeighable: the weights are of other templates, as named ones of another version of the server are."""
    if weighed is not None and weighed.weights is not None and len(weighed.weights) != len(prompts.templates):
        raise NotWeighable(f"{len(weighed.weights)} templates were weighed, {len(prompts.templates)} are there now")


def scores_by(kept: ExampleVectors, templates: int, *, scale: float) -> TemplateScores:
    is_picture = np.array([label == _PICTURE for label in kept.labels])
    reference = None if is_picture.all() else kept.vectors[~is_picture]
    return TemplateScores(kept.vectors[is_picture], templates, reference=reference, scale=scale)


def add_labels(scores: TemplateScores, texts: F32) -> None:
    """texts: unit vectors [C, P, D]."""
    for label in texts:
        scores.add(label)
