"""Changes of a taught label set: adding and removing examples, merging labels, limits, and the check of its model."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from clipworks.schemas import Label
from model_store.errors import ClipworksError
from service.engine.running import RunningModel
from service.faults import StateConflict, TooManyItems
from service.tasks.kept_label_set import KeptLabelSet
from service.tasks.stored_set import TaughtWith
from service.teaching.examples import ExampleRefused, ExampleVectors, NewExample

_MOST_PAIRS = 5_000_000  # examples x labels: a fit holds a few arrays of so many numbers


def grown(
    before: ExampleVectors | None, new: Sequence[NewExample], *, dim: int, all_or_nothing: bool
) -> tuple[ExampleVectors, list[str | ClipworksError]]:
    """Examples and new ones, with their digest worked out, which takes a while of many; and what became of each.

    Raises:
        ExampleRefused: with all_or_nothing, the first that is not taken.
    """
    examples, outcomes = (before if before is not None else ExampleVectors.none(dim)).with_new(new)
    if all_or_nothing:
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, ClipworksError):
                raise ExampleRefused(index, outcome)
    _ = examples.digest
    return examples, outcomes


def without(examples: ExampleVectors, ids: Collection[str], labels: Collection[str]) -> ExampleVectors:
    """All but these, with their digest worked out."""
    left = examples.without(ids=ids, labels=labels)
    _ = left.digest
    return left


def taught_with(model: RunningModel, examples: ExampleVectors, *, version: int) -> TaughtWith:
    return TaughtWith(sha256=examples.digest, image_fingerprint=str(model.fingerprint.image), version=version)


def each_once(labels: Sequence[Label]) -> list[Label]:
    """By name without the space around it, the first of each."""
    known: dict[str, Label] = {}
    for label in labels:
        known.setdefault((label if isinstance(label, str) else label.name).strip(), label)
    return list(known.values())


def check_amount(examples: int, labels: int, *, most: int) -> None:
    """Raises TooManyItems."""
    if examples > most:
        raise TooManyItems(
            f"the label set would have {examples} examples, the limit is {most} (CLIPWORKS_MAX_EXAMPLES)"
        )
    if examples * labels > _MOST_PAIRS:
        raise TooManyItems(
            f"{examples} examples x {labels} labels are more than a fit takes ({_MOST_PAIRS}): make several label sets"
        )


def require_model(label_set: KeptLabelSet, model: RunningModel) -> None:
    """Raises StateConflict, with the remedy: it belongs to another model, or to other encoders of the same name."""
    stored = label_set.stored
    again = "teach it again" if stored and stored.taught else "put it again"
    fingerprint = stored.fingerprint if stored else None
    if (label_set.model, fingerprint) != (model.reference, model.fingerprint.text):
        raise StateConflict(
            f"label set {label_set.name} belongs to {label_set.model} (text encoder {str(fingerprint)[:12]}), "
            f"the request is for {model.reference} (text encoder {str(model.fingerprint.text)[:12]}): "
            + _remedy(label_set.model, model.reference, again)
        )
    taught = stored.taught if stored else None
    if taught is not None and taught.image_fingerprint != model.fingerprint.image:
        raise StateConflict(
            f"label set {label_set.name} was taught with vectors of image encoder {taught.image_fingerprint[:12]}, "
            f"that of {model.reference} is {str(model.fingerprint.image)[:12]}: {again}"
        )


def _remedy(its: str, asked: str, again: str) -> str:
    """its, asked: references of models; of one reference the encoders are others now."""
    return again if its == asked else f"ask with model {its}, or {again} for {asked} under another name"
