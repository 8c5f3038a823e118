"""A frozen base with small trained functions behind its towers."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from training.losses import unit
from training.models.towers import DualEncoder

Function = Callable[[Tensor], Tensor]


class BehindBase(nn.Module):
    """The towers of `base`, each with a function behind it that takes unit vectors [B, D] and gives [B, D'].

    Only the base is a submodule: freezing this module, or moving it to eval mode, leaves what is trained as it is.
    """

    def __init__(self, base: DualEncoder, *, image: Function | None = None, text: Function | None = None) -> None:
        super().__init__()
        self.base = base
        self._behind = {"image": image, "text": text}  # in a dict, so that modules among them are not registered

    def encode_image(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> [B, D']."""
        return self._through("image", self.base.encode_image(pixels))

    def encode_text(self, ids: Tensor) -> Tensor:
        """int64 [B, L] -> [B, D']."""
        return self._through("text", self.base.encode_text(ids))

    def _through(self, tower: str, vectors: Tensor) -> Tensor:
        function = self._behind[tower]
        return vectors if function is None else function(unit(vectors))
