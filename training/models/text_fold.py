"""A linear map of text vectors, moved into the weights that end the text tower: no graph gets a node more."""

from __future__ import annotations

from typing import Literal

import open_clip
import torch
from torch import Tensor, nn

from training.models.towers import DualEncoder, OpenClipDualEncoder, SmallDualEncoder

Side = Literal["rows", "columns"]


def text_ends(model: DualEncoder) -> dict[str, Side]:
    """The state entries that all text vectors are a linear function of, and where their output axis is.

    "rows": [D, ...] as nn.Linear has it; "columns": [..., D] as OpenAI's text_projection and embeddings have it.

    Raises:
        ValueError: the tower does not end in such weights; the message says why.
    """
    if isinstance(model, SmallDualEncoder):
        return _small_ends(model)
    if isinstance(model, OpenClipDualEncoder):
        clip = model.clip
        holder, prefix = (clip, "clip.") if isinstance(clip, open_clip.CLIP) else (clip.text, "clip.text.")
        last = getattr(holder, "text_projection", None)
        if isinstance(last, nn.Parameter):
            return {f"{prefix}text_projection": "columns"}
        if isinstance(last, nn.Linear):
            return {f"{prefix}text_projection.{name}": "rows" for name in last.state_dict()}
        raise ValueError(f"{type(holder).__name__} has no text_projection that a linear map could be folded into")
    raise ValueError(f"{type(model).__name__}: it is not known how its text tower ends")


def _small_ends(model: SmallDualEncoder) -> dict[str, Side]:
    tower = model.text
    found: dict[str, Side] = {}
    if tower.pool != "bag":
        found["text.projection.weight"] = "rows"
    if tower.pool == "eos":
        return found
    if isinstance(tower.bag_projection, nn.Linear):
        return {**found, "text.bag_projection.weight": "rows"}
    if tower.pool == "bag":
        # The vector is the mean of token embeddings, which nothing else reads: they are the last linear layer.
        return {"text.token_embedding.weight": "columns"}
    raise ValueError(
        "pool = 'eos+bag' with bag_projection = false: its token embeddings are added to the vector and read by the "
        "transformer too, so a map cannot be folded into them; a base with bag_projection = true can take it"
    )


def folded(state: dict[str, Tensor], ends: dict[str, Side], matrix: Tensor) -> dict[str, Tensor]:
    """`state` with `matrix` [D, D] applied after its `ends`: text' = matrix @ text. With the identity, equal bytes."""
    changed = {name: matrix @ state[name] if side == "rows" else state[name] @ matrix.T for name, side in ends.items()}
    return {**state, **changed}


def check_fold(model: DualEncoder, ends: dict[str, Side], ids: Tensor) -> None:
    """Fold a map that mixes all components, encode ids int64 [B, L], compare; `model` is as it was afterwards.

    Raises:
        ValueError: the folded tower is not the map applied after the tower.
    """
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        plain = model.encode_text(ids)
        generator = torch.Generator().manual_seed(0)
        matrix = torch.linalg.qr(torch.randn(plain.shape[1], plain.shape[1], generator=generator)).Q.to(plain)
        model.load_state_dict(folded(before, ends, matrix))
        found = model.encode_text(ids)
        model.load_state_dict(before)
    error, size = (found - plain @ matrix.T).norm(), plain.norm()
    if error > 1e-4 * size:
        raise ValueError(f"the text tower is not linear in {', '.join(ends)}: folding a map misses by {error / size:g}")
