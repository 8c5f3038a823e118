"""Preprocessing files of open_clip and transformers: read, compared with their own libraries, refused when unknown."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.errors import ExportRefused
from model_store.hub.preprocessing import image_spec_from_open_clip, image_spec_from_transformers, read_json
from model_store.manifest import ImageSpec

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
OPEN_CLIP = {
    "size": 224,
    "mode": "RGB",
    "mean": MEAN,
    "std": STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
CLIP = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": MEAN,
    "image_processor_type": "CLIPImageProcessor",
    "image_std": STD,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}
SIGLIP = {
    "do_resize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "resample": 2,
    "size": {"height": 256, "width": 256},
}


def test_open_clips_file() -> None:
    spec = image_spec_from_open_clip(OPEN_CLIP)
    assert (spec.height_px, spec.width_px, spec.resize_mode, spec.interpolation) == (224, 224, "shortest", "bicubic")
    assert (spec.mean, spec.std) == (tuple(MEAN), tuple(STD))
    assert image_spec_from_open_clip({**OPEN_CLIP, "size": [256, 128], "resize_mode": "squash"}).width_px == 128


def test_transformers_files() -> None:
    assert image_spec_from_transformers(CLIP) == image_spec_from_open_clip(OPEN_CLIP)
    spec = image_spec_from_transformers(SIGLIP)
    assert (spec.height_px, spec.resize_mode, spec.interpolation) == (256, "squash", "bilinear")


def test_no_normalisation_is_mean_0_and_deviation_1() -> None:
    spec = image_spec_from_transformers({**CLIP, "do_normalize": False})
    assert (spec.mean, spec.std) == ((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"crop_size": 256}, "resized to 224 px and cropped to"),
        ({"crop_size": {"height": 224, "width": 200}}, "only equal sizes"),
        ({"resample": 1}, "resample 1"),
        ({"rescale_factor": 1 / 127.5}, "expected 1/255"),
        ({"do_resize": False}, "do_resize is false"),
        ({"do_pad": True}, "sets do_pad"),
        ({"do_flip_channel_order": True}, "sets do_flip_channel_order"),
        ({"image_mean": None}, "no mean and std"),
        ({"image_mean": [0.5]}, "not a preprocessing"),
        ({"size": {"longest_edge": 224}}, "longest_edge"),
        ({"size": "large"}, "no size in pixels"),
        ({"do_center_crop": False}, "nothing is cropped"),
    ],
)
def test_what_would_be_guessed_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ExportRefused, match=said):
        image_spec_from_transformers({**CLIP, **change})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mode": "L"}, "only RGB"),
        ({"jitter": 0.1}, "sets jitter"),
        ({"interpolation": "nearest"}, "not a preprocessing"),
        ({"resize_mode": "stretch"}, "not a preprocessing"),
        ({"size": True}, "no size in pixels"),
        ({"mean": None}, "no mean and std"),
    ],
)
def test_unknown_settings_of_open_clip_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ExportRefused, match=said):
        image_spec_from_open_clip({**OPEN_CLIP, **change})


@pytest.mark.parametrize("value", [None, False])
def test_a_key_that_sets_nothing_changes_nothing(value: object) -> None:
    assert image_spec_from_transformers({**CLIP, "do_pad": value, "pad_size": value}) == image_spec_from_transformers(
        CLIP
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 5000) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*CLIP, *OPEN_CLIP, "other"]), JSON, max_size=4))
def test_any_content_is_a_spec_or_a_refusal(change: dict[str, Any]) -> None:
    for read, known in ((image_spec_from_open_clip, OPEN_CLIP), (image_spec_from_transformers, CLIP)):
        with suppress(ExportRefused):
            assert isinstance(read({**known, **change}), ImageSpec)


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000, "\x00"])
def test_files_that_are_no_object_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(content)
    with pytest.raises(ExportRefused, match=r"config.json (cannot|holds)"):
        read_json(file)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["CLIPImageProcessor", "SiglipImageProcessor"])
def test_what_transformers_writes_is_read(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, name)()
    processor.save_pretrained(tmp_path)
    spec = image_spec_from_transformers(json.loads((tmp_path / "preprocessor_config.json").read_text()))
    assert spec.resize_mode == ("shortest" if name.startswith("CLIP") else "squash")
    assert spec.mean == tuple(processor.image_mean)


def test_a_size_out_of_range_is_one_sentence() -> None:
    with pytest.raises(ExportRefused) as refused:
        image_spec_from_open_clip({**OPEN_CLIP, "size": 100_000})
    assert "height_px: Input should be less than or equal to 4096" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("std", [[0.0, 0.2, 0.2], [-0.2] * 3, [1e-60] * 3])
def test_a_deviation_that_cannot_be_divided_by_is_refused(std: list[float]) -> None:
    with pytest.raises(ExportRefused, match="std"):
        image_spec_from_open_clip({**OPEN_CLIP, "std": std})
