"""A checkpoint handed back to the method that made it, with its weights by module and the base that it works behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model_store.manifest import ImageSpec
from training.bases import open_base
from training.checkpoint import Checkpoint, LoadedModel, load_model, load_weights
from training.encoder import TorchEncoder, encoder_of

_SAY = "say where it lies now (--base; --base-checkpoint of clipworks export)"


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A checkpoint folder and what its `checkpoint.json` says.

    base_folder: where the checkpoint of the base lies now; None: where the recipe says.
    """

    folder: Path
    info: Checkpoint
    base_folder: Path | None = None

    def state(self, module: str) -> dict[str, Tensor]:
        """The averaged weights of one entry of `Method.modules()`, for `load_state_dict`.

        Raises:
            ValueError: there are none, or the file differs from its digest.
        """
        weights, prefix = load_weights(self.folder), f"{module}."
        found = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        if not found:
            raise ValueError(f"{self.folder} holds no weights of a module {module!r}, it has {sorted(weights)[:3]}")
        return found

    def model(self) -> LoadedModel:
        """The whole model that the checkpoint holds.

        Raises:
            ValueError: it holds none.
        """
        return load_model(self.folder)

    def base(self) -> LoadedModel:
        """The very base that training started from, frozen and in eval mode.

        Raises:
            ValueError: it is not there, or has other weights.
        """
        try:
            found = open_base(self.info.config) if self.base_folder is None else load_model(self.base_folder)
        except FileNotFoundError as error:
            where = self.base_folder or f"{self.info.config.base}, as seen from the folder that it was trained in"
            raise ValueError(f"{self.folder} works behind the base {where}; it is not there: {_SAY}") from error
        if found is None:
            raise ValueError(f"{self.folder} works behind a base and its recipe names none: {_SAY}")
        fitted, named = self.info.base_sha256 or "", self.base_folder or self.info.config.base
        if found.info.weights_sha256 != fitted:
            raise ValueError(
                f"{self.folder} was fitted on weights {fitted[:12]}, the base {named} has "
                f"{found.info.weights_sha256[:12]}"
            )
        return found

    def encoder(
        self,
        encode_image: Callable[[Tensor], Tensor],
        encode_text: Callable[[Tensor], Tensor],
        *,
        base: LoadedModel,
        image_spec: ImageSpec | None = None,
    ) -> TorchEncoder:
        """An encoder of two functions, uint8 [B, H, W, 3] -> [B, D'] and int64 [B, L] -> [B, D'], behind `base`.

        image_spec: how pictures reach it; by default as they reach the base.
        """
        return TorchEncoder(
            encode_image,
            encode_text,
            image_spec=image_spec or base.info.image_spec,
            tokenizer=base.tokenizer,
            name=self.name,
            fingerprint=f"checkpoint {self.info.weights_sha256}",
            templates=self.info.templates,
        )

    def own_encoder(self) -> TorchEncoder:
        """The encoder of a checkpoint that holds a whole model.

        Raises:
            ValueError: it holds none.
        """
        return encoder_of(self.model(), name=self.name)

    @property
    def name(self) -> str:
        return f"{self.folder.name} (checkpoint)"
