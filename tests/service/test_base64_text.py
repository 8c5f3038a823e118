"""Base64 of every dialect gives the bytes that were encoded; what has two readings gives none."""

import base64
import binascii
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.errors import ImageTooLarge, InvalidImage
from service.base64_text import NotBase64, decode_base64, is_data_uri
from service.collections.vectors import InvalidVector, given_vector
from service.http.inputs import decode_image_field
from service.http.limits import IngressLimits

LIMITS = IngressLimits(max_body_bytes=4096, max_image_bytes=300, max_items=4, body_timeout_s=5)
HEADS = ("", "data:image/png;base64,", "DATA:;BASE64,", "data:image/jpeg;charset=utf-8;base64,", " data:a/b; base64 ,")


@given(
    data=st.binary(max_size=300),
    head=st.sampled_from(HEADS),
    width=st.sampled_from([0, 4, 64, 76]),
    line_break=st.sampled_from(["\n", "\r\n", "\r"]),
    is_url_safe=st.booleans(),
    is_padded=st.booleans(),
    end=st.sampled_from(["", "\n", "\r\n", "  "]),
    is_percent_encoded=st.booleans(),
)
def test_every_dialect_gives_the_bytes(
    data: bytes,
    head: str,
    width: int,
    line_break: str,
    is_url_safe: bool,
    is_padded: bool,
    end: str,
    is_percent_encoded: bool,
) -> None:
    text = (base64.urlsafe_b64encode if is_url_safe else base64.b64encode)(data).decode()
    text = text if is_padded else text.rstrip("=")
    text = line_break.join(textwrap.wrap(text, width)) if width else text
    if head and is_percent_encoded:
        text = text.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D")
    assert decode_base64(head + text + end) == data


@given(st.text(alphabet="QUJDxyz019+/-_= \n\r\t,:;%.", max_size=24) | st.text(max_size=12))
def test_what_is_decoded_has_one_reading(text: str) -> None:
    """Whoever decodes it otherwise, dropping what is of no alphabet, gets the same bytes; or it was refused."""
    try:
        found = decode_base64(text)
    except NotBase64:
        return
    digits = text.rpartition(",")[2] if is_data_uri(text) else text
    digits = "".join(digits.split()).rstrip("=").replace("-", "+").replace("_", "/").replace("%2B", "+")
    assert found == binascii.a2b_base64(digits + "=" * (-len(digits) % 4))
    assert not ({"+", "/"} & set(text.rpartition(",")[2]) and {"-", "_"} & set(text.rpartition(",")[2]))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("QUJ_Q/==", "mixes"),
        ("-+++", "mixes"),
        ("QU JD", "spaces"),
        ("QUJDQ", "missing"),
        ("QUJD=", "'='"),
        ("QUI==", "'='"),
        ("QUI=QUI=", "behind its padding"),
        ("QÜJD", "neither alphabet"),
        ("QUJD%2B", "neither alphabet"),  # percent-encoding belongs to URIs
        ("data:image/png,QUJD", "data: URI"),
        ("data:image/png;base64", "data: URI"),
        ("data:" + "x" * 300 + ";base64,QUJD", "data: URI"),
        ("data:image/png;base64,data:image/png;base64,QUJD", "neither alphabet"),
        ("data:image/png;base64,QU%4AD", "neither alphabet"),
        ("=", "'='"),
        ("b'QUJD'", "neither alphabet"),
    ],
)
def test_what_has_no_reading_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(NotBase64, match=why):
        decode_base64(text)
    with pytest.raises(InvalidImage, match=why):
        decode_image_field(text, LIMITS)


def test_long_base64_is_refused_by_its_length() -> None:
    with pytest.raises(ImageTooLarge, match="CLIPWORKS_MAX_IMAGE_BYTES"):
        decode_image_field("!" * 2000, LIMITS)
    with pytest.raises(InvalidVector, match="2000 characters"):
        given_vector("!" * 2000, 3)


@given(st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3).filter(any))
def test_vectors_are_read_as_pictures_are(numbers: list[float]) -> None:
    import numpy as np

    packed = np.asarray(numbers, "<f4").tobytes()
    wanted = given_vector(numbers, 3)
    dialects = [base64.b64encode(packed), base64.urlsafe_b64encode(packed), base64.encodebytes(packed)]
    for text in [*dialects, base64.b64encode(packed).rstrip(b"="), b"data:;base64," + dialects[0]]:
        np.testing.assert_array_equal(given_vector(text.decode(), 3), wanted)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("data:image/png;base64,AAAA", True),
        ("  DATA:Image/SVG+xml,<svg/>", True),
        ("data:;base64,AAAA", True),
        ("data:text/plain;charset=utf-8;base64,AAAA", True),
        ("data: the new oil, base64 or not", False),
        ("data:science", False),
        ("a picture, data:image/png;base64,AAAA", False),
    ],
)
def test_a_sentence_about_data_is_no_data_uri(text: str, is_one: bool) -> None:
    assert is_data_uri(text) is is_one
