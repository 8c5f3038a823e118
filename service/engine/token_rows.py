"""Texts as rows of token ids, at the lengths that keep a text's vector independent of its company."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.modality.text import Tokenizer
from service.engine.stacking import EqualShapes, PaddedTokens, Stacking

# Where padding changes a bit, a text is padded to a length that depends on itself alone, never on its company.
_LENGTH_STEP = 4


class TokenRows:
    """How the texts of one text encoder become rows, and which rows share a run (docs/decisions/0002).

    is_exact_padded: the graph's measured batch difference, with rows padded to the longest of their run, is exactly 0.
    """

    def __init__(self, tokenizer: Tokenizer, *, is_exact_padded: bool) -> None:
        self.tokenizer = tokenizer
        self._pads_in_company = is_exact_padded and tokenizer.spec.dynamic_length
        self.stacking: Stacking[NDArray[Any]] = (
            PaddedTokens(tokenizer.spec.pad_id) if self._pads_in_company else EqualShapes()
        )

    def row(self, text: str) -> NDArray[np.int64]:
        """Ids of one text, int64 [L]. Raises InvalidText: see Tokenizer.encode."""
        ids = self.tokenizer.encode(text)
        if self._pads_in_company:
            return np.array(ids, dtype=np.int64)
        spec = self.tokenizer.spec
        length = min(-(-len(ids) // _LENGTH_STEP) * _LENGTH_STEP, spec.context_length) if spec.dynamic_length else None
        return self.tokenizer.pad([ids], length)[0]
