"""Labels as a request gives them -> labels that a model can tell apart, each of them once."""

from __future__ import annotations

from collections.abc import Sequence

from clipworks.schemas import Label, LabelPrompts
from service.http.errors import Refusal


def distinct_labels(labels: Sequence[Label]) -> list[Label]:
    """Each label once, in the order of its first place.

    Classes of equal texts have equal vectors, so that softmax would halve the score of a label that is there twice.

    Raises:
        Refusal: 422, a label or a prompt without a character to read, a label of several lines, or two labels of one
            name that mean different prompts.
    """
    known: dict[str, tuple[int, Label]] = {}
    for index, label in enumerate(labels):
        name = _checked(label, index)
        first, other = known.setdefault(name, (index, label))
        if first != index and _meaning(other) != _meaning(label):
            message = f"labels[{index}] has the name of labels[{first}], and other prompts: give one label all of them"
            raise _refused(message, f"labels[{index}]")
    return [label for _, label in known.values()]


def _checked(label: Label, index: int) -> str:
    """The name without the space around it."""
    place = f"labels[{index}]"
    name = checked_name(label if isinstance(label, str) else label.name, place)
    if isinstance(label, LabelPrompts) and not all(prompt.strip() for prompt in label.prompts):
        raise _refused(f"{place}: a prompt needs a character that is not a space", place)
    return name


def checked_name(given: str, place: str) -> str:
    """The name of a label without the space around it; `place` is where it stands in the request.

    Raises:
        Refusal: 422, it has no character to read, or several lines.
    """
    name = given.strip()
    if not name:
        raise _refused(f"{place}: a label needs a character that is not a space", place)
    if "\n" in name or "\r" in name:
        raise _refused(f"{place}: a label of several lines; give each line as a label of its own", place)
    return name


def _meaning(label: Label) -> tuple[str, ...] | None:
    """What distinguishes labels of one name; None: the templates of the request."""
    return tuple(label.prompts) if isinstance(label, LabelPrompts) else None


def _refused(message: str, param: str) -> Refusal:
    return Refusal(422, "invalid_field", message, param=param)
