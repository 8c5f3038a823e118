"""Labels in templates, counted before a single text is written out, and written out piece by piece."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from clipworks.schemas import Label
from model_store.errors import InvalidText
from model_store.modality.text import MAX_CHARS
from service.faults import TooManyItems

_PLACE = "{}"


@dataclass(frozen=True)
class Limits:
    """How much text labels and templates may come to, and the settings that say so."""

    texts: int
    chars: int
    texts_setting: str
    chars_setting: str
    advice: str = ""

    def check(self, prompts: Prompts) -> None:
        """Costs one look at each label and template, however many texts they make.

        Raises:
            TooManyItems: too many texts, or too many characters in all of them.
            InvalidText: one text is longer than a text may be.
        """
        if prompts.texts > self.texts:
            raise TooManyItems(
                f"labels x templates is {prompts.texts} texts, the limit is {self.texts} "
                f"({self.texts_setting}){self.advice}"
            )
        if prompts.longest > MAX_CHARS:
            raise InvalidText(f"a label in a template has {prompts.longest} characters, the limit is {MAX_CHARS}")
        if prompts.chars > self.chars:
            raise TooManyItems(
                f"labels x templates is {prompts.chars} characters of text, the limit is {self.chars} "
                f"({self.chars_setting})"
            )


@dataclass(frozen=True, eq=False)
class Prompts:
    """The texts of each label: templates filled in, or the label's own prompts as they are.

    Templates have one {} each. Nothing here holds the texts: labels x templates of a small body are gigabytes.
    """

    labels: tuple[Label, ...]
    templates: tuple[str, ...]

    @classmethod
    def of(cls, labels: Sequence[Label], templates: Sequence[str]) -> Prompts:
        return cls(tuple(labels), tuple(templates))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(label if isinstance(label, str) else label.name for label in self.labels)

    @property
    def counts(self) -> list[int]:
        """How many texts each label has."""
        return [len(self.templates) if isinstance(label, str) else len(label.prompts) for label in self.labels]

    @cached_property
    def texts(self) -> int:
        return sum(self.counts)

    @cached_property
    def chars(self) -> int:
        """Characters of all texts together."""
        around = sum(len(template) - len(_PLACE) for template in self.templates)
        return sum(
            around + len(self.templates) * len(label)
            if isinstance(label, str)
            else sum(len(prompt) for prompt in label.prompts)
            for label in self.labels
        )

    @cached_property
    def longest(self) -> int:
        """Characters of the longest text."""
        around = max((len(template) - len(_PLACE) for template in self.templates), default=0)
        return max(
            (
                around + len(label) if isinstance(label, str) else max(len(prompt) for prompt in label.prompts)
                for label in self.labels
            ),
            default=0,
        )

    @cached_property
    def digest(self) -> bytes:
        """Equal for equal labels and templates."""
        digest = hashlib.sha256(json.dumps(self.templates).encode())
        for label in self.labels:
            digest.update(json.dumps(label if isinstance(label, str) else [label.name, *label.prompts]).encode())
            digest.update(b"\0")
        return digest.digest()

    def __iter__(self) -> Iterator[str]:
        """All texts, label by label, each made when it is asked for."""
        for label in self.labels:
            if isinstance(label, str):
                for template in self.templates:
                    yield template.replace(_PLACE, label)
            else:
                yield from label.prompts

    def parts(self, labels: int) -> Iterator[Prompts]:
        """The same prompts in pieces of so many labels."""
        for start in range(0, len(self.labels), labels):
            yield Prompts(self.labels[start : start + labels], self.templates)
