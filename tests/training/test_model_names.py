"""The table of names leads to what open_clip has: its architectures and tags, with the activation of the weights."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import open_clip
import pytest
from open_clip.pretrained import get_pretrained_cfg

from model_store.errors import ExportRefused
from training.importing.openclip_weights import find_weights
from training.tiny import write_tiny_source

pytestmark = pytest.mark.torch
ROWS = json.loads(files("model_store.hub").joinpath("names.json").read_text(encoding="utf-8"))


def test_every_name_is_a_tag_of_the_right_activation() -> None:
    for row in ROWS:
        config, tag = open_clip.get_model_config(row["arch"]), get_pretrained_cfg(row["arch"], row["tag"])
        assert config, row
        assert tag, row
        assert bool(config.get("quick_gelu")) is bool(tag.get("quick_gelu")), row


def test_a_name_from_elsewhere_is_imported_as_what_it_is() -> None:
    """There is no connection in a test; the sentence says what would have been fetched."""
    with pytest.raises(ExportRefused, match="cannot download ViT-B-32-quickgelu 'openai'"):
        find_weights("openai/clip-vit-base-patch32", None)
    with pytest.raises(ExportRefused, match="cannot download ViT-B-32 'laion2b_s34b_b79k'"):
        find_weights("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", None)


def test_a_file_takes_the_place_of_the_weights_that_a_name_means(tmp_path: Path) -> None:
    source = write_tiny_source(tmp_path)
    file = str(source / "open_clip_model.safetensors")
    weights = find_weights("ViT-B/32", file, activation="quickgelu")
    assert (weights.architecture, weights.file) == ("ViT-B-32-quickgelu", Path(file))


def test_an_unknown_name_leads_on() -> None:
    with pytest.raises(ExportRefused, match="is openai/clip-vit-base-patch32 meant.*hf-hub:ORG/NAME"):
        find_weights("openai/clip-vit-base-patch23", None)
    with pytest.raises(ExportRefused, match="similar: .*ViT-B-32"):
        find_weights("vit-b-32", None)
