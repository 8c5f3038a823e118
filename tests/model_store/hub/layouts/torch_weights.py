"""Layouts without a graph: an open_clip repository, and a folder of transformers' save_pretrained."""

from __future__ import annotations

import copy
from pathlib import Path

from open_clip.model import set_model_preprocess_cfg
from open_clip.push_to_hf_hub import save_for_hf
from open_clip.transform import PreprocessCfg

from tests.model_store.hub.layouts.source_models import SourceModel
from tests.model_store.hub.layouts.transformers_models import image_processor, transformers_model


def write_open_clip(folder: Path, source: SourceModel) -> None:
    """open_clip_config.json, open_clip_model.safetensors and the tokeniser, by open_clip's own writer."""
    set_model_preprocess_cfg(source.model, _as_dict(source.preprocess))
    save_for_hf(
        source.model,
        tokenizer=source.hub_tokenizer,
        model_config=copy.deepcopy(source.config),
        save_directory=str(folder),
        safe_serialization=True,
    )


def write_save_pretrained(folder: Path, source: SourceModel) -> None:
    """config.json, model.safetensors, preprocessor_config.json and the tokeniser, as transformers saves them."""
    transformers_model(source).save_pretrained(folder)
    image_processor(source).save_pretrained(folder)
    source.hub_tokenizer.save_pretrained(folder)


def _as_dict(config: PreprocessCfg) -> dict[str, object]:
    return dict(vars(config))
