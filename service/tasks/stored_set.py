"""The file of a stored label set, and the digest that its vectors are sealed with."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from clipworks.schemas import LabelSetRequest


@dataclass(frozen=True)
class TaughtWith:
    """sha256: of the examples' bytes. image_fingerprint: of what made their vectors. version: counts changes."""

    sha256: str
    image_fingerprint: str
    version: int


@dataclass(frozen=True)
class WeighedWith:
    """sha256: of the bytes of the pictures' vectors, which are kept until `weights` are worked out.

    pictures: how many there are, without those of reference. weights: of the templates, in their order.
    """

    sha256: str
    image_fingerprint: str
    pictures: int
    weights: tuple[float, ...] | None = None

    @classmethod
    def of_content(cls, content: dict[str, Any]) -> WeighedWith:
        """Raises TypeError, ValueError: it is not what `asdict` gives."""
        found = cls(**content)
        weights = None if found.weights is None else tuple(map(float, found.weights))
        return cls(found.sha256, found.image_fingerprint, found.pictures, weights)


@dataclass(frozen=True)
class StoredSet:
    """What a set is: its request (without pictures), the model and text encoder it was put for, and its examples.

    weighed: how much its templates count; None: all the same.
    """

    request: LabelSetRequest
    model: str
    fingerprint: str | None
    taught: TaughtWith | None = None
    weighed: WeighedWith | None = None

    @property
    def weights(self) -> tuple[float, ...] | None:
        return self.weighed.weights if self.weighed else None

    @property
    def is_unweighed(self) -> bool:
        """Whether weights are wanted and not known yet."""
        return self.weighed is not None and self.weighed.weights is None

    def content(self) -> dict[str, Any]:
        whole = self._text_content()
        return whole if self.taught is None else {**whole, "taught": asdict(self.taught)}

    def digest(self) -> bytes:
        """Of what the vectors of its texts are of."""
        return digest_of(self._text_content())

    def _text_content(self) -> dict[str, Any]:
        request = self.request.model_dump(mode="json", exclude={"examples", "on_error", "needs_example"})
        if request["on_unknown"] == "warn":
            del request["on_unknown"]  # sets of before it keep their digest, and so their vectors
        if request["weigh_templates"] is None:
            del request["weigh_templates"]
        whole = {"request": request, "model": self.model, "fingerprint": self.fingerprint}
        return whole if self.weighed is None else {**whole, "weighed": asdict(self.weighed)}


def digest_of(content: dict[str, Any]) -> bytes:
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).digest()
