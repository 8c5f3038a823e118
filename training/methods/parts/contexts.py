"""Learned vectors among the tokens of a text: where they stand, and the frozen tower that reads them.

Zhou et al., 2022, "Learning to Prompt for Vision-Language Models" (CoOp). Nothing here knows what trains the vectors.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from model_store.modality.text import Tokenizer
from training.methods.parts.token_reader import TokenReader, embedded
from training.models.towers import DualEncoder

Position = Literal["end", "middle", "front"]
"""Where a class name stands among its context."""
NOISE_STD = 0.02
"""Of context vectors that are drawn."""
_START_AND_END = 2


def placed(end: Tensor, *, length: int, count: int, before: int, context_length: int) -> tuple[Tensor, Tensor]:
    """Where every token comes from once `count` vectors stand among those of a text, and where the end token is then.

    end: int64 [B], the end tokens of rows of `length` ids, whose start token is the first. before: how many of the
    vectors stand between the start token and the text, the others stand behind it.

    Returns int64 [B, min(length + count, context_length)] and int64 [B]. The first indexes a row's ids with the vectors
    behind them: up to length an id, from there on a vector. A text that has no room beside the vectors is cut, as the
    tokenizer cuts it: the end token stays. A row of one id, which is no text, ends with the last vector.
    """
    end = end[:, None]
    text = (end - 1).clamp(min=0, max=context_length - count - _START_AND_END)
    size = torch.sym_min(length + count, context_length)  # no plain number while a graph is traced
    at = torch.arange(size, device=end.device)[None, :]
    behind = before + text
    source = torch.where(at <= before, length + at - 1, at - before)
    source = torch.where(at > behind, length + at - text - 1, source)
    source = torch.where(at > text + count, (end + at - text - count - 1).clamp(max=length - 1), source)
    return torch.where(at == 0, 0, source), (text + count + 1)[:, 0].clamp(max=size - 1)


class Contexts(Protocol):
    """What stands among the tokens of a text: `count` vectors [n, W], or [C, n, W] of C classes."""

    @property
    def count(self) -> int: ...

    @property
    def vectors(self) -> Tensor: ...


class LearnedContexts(nn.Module):
    """Context vectors: [n, W] of all texts, or [C, n, W], a context of its own for each of C classes."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors.detach().clone())

    @property
    def count(self) -> int:
        return self.vectors.shape[-2]


class PromptedText(nn.Module):
    """A text tower that reads contexts among the tokens of every text: int64 [B, L] -> [B, D].

    Contexts of classes need the names of these very classes, in their order.
    """

    def __init__(self, reader: TokenReader, contexts: Contexts, *, position: Position) -> None:
        super().__init__()
        self.reader, self.contexts = reader, contexts
        self.context_length = reader.context_length
        self._before = {"end": contexts.count, "middle": contexts.count // 2, "front": 0}[position]

    def forward(self, ids: Tensor) -> Tensor:
        return self.among(ids, self.contexts.vectors.expand(ids.shape[0], -1, -1))

    def among(self, ids: Tensor, vectors: Tensor) -> Tensor:
        """Each text with vectors of its own in place of the contexts: int64 [B, L] and [B, n, W] -> [B, D]."""
        tokens = self.reader.token_embedding(ids)
        source, end = placed(
            self.reader.end_of(ids),
            length=ids.shape[1],
            count=self.contexts.count,
            before=self._before,
            context_length=self.context_length,
        )
        both = torch.cat([tokens, vectors], dim=1)
        rows = torch.arange(tokens.shape[0], device=ids.device)[:, None]
        return self.reader.read(both[rows, source], end)


class PromptedBase(nn.Module):
    """A frozen base whose texts are read with contexts; these are no submodule, so freezing leaves them alone."""

    def __init__(self, base: DualEncoder, prompted: PromptedText) -> None:
        super().__init__()
        self.base, self._prompted = base, (prompted,)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> [B, D]."""
        return self.base.encode_image(pixels)

    def encode_text(self, ids: Tensor) -> Tensor:
        """int64 [B, L] -> [B, D]."""
        return self._prompted[0](ids)


def word_vectors(words: str, reader: TokenReader, tokenizer: Tokenizer) -> Tensor:
    """Embeddings [n, W] of the tokens of `words`.

    Raises:
        ValueError: there are none.
    """
    ids = tokenizer.encode(words)[1:-1]
    if not ids:
        raise ValueError(f"words {words!r} have no token to start from")
    return embedded(reader, ids)


def name_ids(names: tuple[str, ...], tokenizer: Tokenizer, *, count: int) -> Tensor:
    """int64 [C, L]: the names as a text tower takes them, each with room for `count` vectors beside it.

    Raises:
        ValueError: a name has too many tokens, or nothing marks where a text begins and ends.
    """
    spec = tokenizer.spec
    if spec.start_id is None or spec.end_id is None:
        raise ValueError("contexts stand between a start and an end token, and this tokenizer has not both")
    room = spec.context_length - count - _START_AND_END
    if room < 1:
        raise ValueError(f"{count} context vectors leave no token of {spec.context_length} for a name: take fewer")
    rows = [tokenizer.encode(name) for name in names]
    for name, row in zip(names, rows, strict=True):
        if len(row) - _START_AND_END > room:
            raise ValueError(
                f"{name!r} has {len(row) - _START_AND_END} tokens or more, and {count} context vectors leave room for "
                f"{room} of {spec.context_length}: take fewer vectors or a shorter name"
            )
    return torch.from_numpy(tokenizer.pad(rows))
