"""The shape of a model whose transformers have fewer channels, layers, heads and MLP units than its architecture."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from training.config_table import ConfigTable

Count = Annotated[int, Field(ge=1)]


class SlimTower(ConfigTable):
    """One transformer tower. width: channels of the residual stream. heads, mlp: of each layer, first layer first.

    A layer's attention is heads * head_width channels wide, which need not be the width of the stream.
    position_channels: of a trunk whose positions are sines of its channels, which channels those of this tower are.
    """

    width: Count
    head_width: Count
    heads: tuple[Count, ...] = Field(min_length=1)
    mlp: tuple[Count, ...] = Field(min_length=1)
    position_channels: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.heads) != len(self.mlp):
            raise ValueError(f"heads names {len(self.heads)} layers and mlp {len(self.mlp)}")
        if self.position_channels is not None and len(self.position_channels) != self.width:
            raise ValueError(f"position_channels names {len(self.position_channels)} channels of {self.width}")
        return self


class SlimShape(ConfigTable):
    """The towers of a model; None: as the architecture says."""

    image: SlimTower | None = Field(default=None, exclude_if=lambda value: value is None)
    text: SlimTower | None = Field(default=None, exclude_if=lambda value: value is None)
