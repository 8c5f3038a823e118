"""Settings files beside graphs: what changes token ids is never passed over, and strange content is refused."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_store.errors import ExportRefused
from model_store.hub.settings import ModelSettings, read_settings_files

PREPROCESSING = {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}


def read(folder: Path, **contents: Any) -> ModelSettings:
    """contents: of config.json and the like, by the name without its ending."""
    files = {"preprocess_cfg": PREPROCESSING, "tokenizer": {}, **contents}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return read_settings_files([folder / f"{name}.json" for name in files])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clean": "canonicalize", "strip_sep_token": True}, "strip_sep_token"),
        ({"tokenizer_mode": "clips"}, "tokenizer_mode"),
        ({"clean": "shout"}, "'shout'"),
        ({"clean": ["lower"]}, "lower"),
    ],
)
def test_options_that_change_token_ids_are_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    config = {"vision_cfg": {}, "text_cfg": {"tokenizer_kwargs": options}}
    with pytest.raises(ExportRefused, match=said):
        read(tmp_path, config=config)


def test_options_that_are_off_change_nothing(tmp_path: Path) -> None:
    options = {"clean": "canonicalize", "strip_sep_token": False}
    found = read(tmp_path, config={"vision_cfg": {}, "text_cfg": {"tokenizer_kwargs": options}})
    assert found.clean == "canonicalize"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "siglip", "gelu", "lower"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "clean", "size"]), inner),
    max_leaves=4,
)
KEYS = (
    "model_type", "architectures", "vision_cfg", "text_cfg", "vision_config", "text_config", "quick_gelu", "embed_dim",
    "projection_dim", "model_cfg", "preprocess_cfg", "init_logit_bias",
)  # fmt: skip
OBJECT = st.dictionaries(st.sampled_from(KEYS), JSON | st.dictionaries(st.sampled_from(KEYS), JSON))


@settings(max_examples=200, deadline=None)
@given(config=OBJECT, open_clip=OBJECT, preprocessing=st.dictionaries(st.sampled_from([*PREPROCESSING, "mode"]), JSON))
def test_any_content_is_read_or_refused(
    config: dict[str, Any], open_clip: dict[str, Any], preprocessing: dict[str, Any]
) -> None:
    with TemporaryDirectory() as folder:
        try:
            found = read(
                Path(folder),
                config=config,
                open_clip_config=open_clip,
                preprocess_cfg={**PREPROCESSING, **preprocessing},
            )
        except ExportRefused:
            return
    assert found.image.height_px > 0
