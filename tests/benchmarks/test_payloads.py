"""The bodies that are sent are what both servers read, and every form of answer becomes the same array."""

from __future__ import annotations

import base64
import io

import httpx2
import numpy as np
import orjson
import pytest
from PIL import Image

from benchmarks.payloads import (
    HEIGHT_PX,
    WIDTH_PX,
    openai_images,
    openai_texts,
    own_texts,
    photographs,
    raw_images,
    short_texts,
    vectors,
)
from clipworks.schemas import EmbedRequest, V1EmbeddingsRequest


def test_photographs_are_different_and_the_same_every_time() -> None:
    pictures = photographs(4)
    assert pictures == photographs(4)
    assert len(set(pictures)) == 4
    for picture in pictures:
        with Image.open(io.BytesIO(picture)) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (WIDTH_PX, HEIGHT_PX))
        assert 50_000 < len(picture) < 200_000, "the size of a photograph, so that decoding costs what it costs"


def test_texts_are_different_short_and_of_mixed_length() -> None:
    texts = short_texts(3000)
    assert texts == short_texts(3000)
    assert len(set(texts)) == 3000
    lengths = {len(text.split()) for text in texts}
    assert min(lengths) == 3
    assert max(lengths) <= 11
    assert len(lengths) >= 4


def test_image_dialects_carry_the_same_bytes() -> None:
    pictures = photographs(4)
    raw = raw_images(pictures, "m@1")
    assert [payload.body for payload in raw.payloads] == pictures
    assert raw.path == "/embed?model=m@1"
    spoken = openai_images(pictures, "m", path="/v1/embeddings", batch=2)
    assert [payload.items for payload in spoken.payloads] == [2, 2]
    carried = []
    for payload in spoken.payloads:
        request = V1EmbeddingsRequest.model_validate_json(payload.body)
        assert request.modality == "image"
        carried += [base64.b64decode(str(uri).partition(",")[2]) for uri in request.input]
    assert carried == pictures


def test_text_dialects_carry_the_same_texts_in_whole_batches() -> None:
    texts = short_texts(35)
    own = own_texts(texts, None, batch=16)
    spoken = openai_texts(texts, "m", path="/embeddings", batch=16)
    sent = [EmbedRequest.model_validate_json(payload.body).inputs for payload in own.payloads]
    assert sent == [texts[:16], texts[16:32]]
    assert sent == [V1EmbeddingsRequest.model_validate_json(payload.body).input for payload in spoken.payloads]
    assert [payload.items for payload in own.payloads] == [16, 16]


def _answers(array: np.ndarray) -> list[httpx2.Response]:
    npy = io.BytesIO()
    np.save(npy, array)
    as_base64 = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in array]
    rows = {"float": array.tolist(), "base64": as_base64}
    return [
        httpx2.Response(200, content=npy.getvalue(), headers={"content-type": "application/x-npy"}),
        *(
            httpx2.Response(200, content=orjson.dumps({"data": data}), headers={"content-type": "application/json"})
            for form in rows.values()
            for data in [[{"index": index, "embedding": row} for index, row in enumerate(form)][::-1]]
        ),
    ]


def test_every_form_of_answer_is_the_same_array() -> None:
    array = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    for answer in _answers(array):
        np.testing.assert_array_equal(vectors(answer), array)


def test_a_failure_is_not_an_array() -> None:
    with pytest.raises(ValueError, match="status 429: b'full'"):
        vectors(httpx2.Response(429, content=b"full"))
