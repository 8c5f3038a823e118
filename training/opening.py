"""Opening a trained checkpoint through the method that made it."""

from __future__ import annotations

from pathlib import Path

from training.checkpoint import Checkpoint, read_checkpoint
from training.encoder import TorchEncoder
from training.method import Method, create
from training.saved import SavedRun


def method_of(info: Checkpoint) -> Method:
    """The method that made a checkpoint, with its options; nothing of it is set up.

    Raises:
        ValueError: there is no such method any more, or it knows other options.
    """
    return create(info.config.method, info.config.method_options)


def open_checkpoint(folder: Path, *, base: Path | None = None) -> TorchEncoder:
    """The averaged weights of a checkpoint as an encoder, as `export` will ship them.

    base: the checkpoint that adapters work behind, where it does not lie where the recipe says.

    Raises:
        ValueError: not a checkpoint, its files differ from their digests, or it encodes nothing (a class head).
    """
    run = SavedRun(folder=folder, info=read_checkpoint(folder), base_folder=base)
    return method_of(run.info).encoder(run) if run.info.derives else run.own_encoder()
