"""Lists that come as text: between commas, one a line, or as JSON; and parts of a form of any content."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.faults import TooManyItems
from service.http.errors import Refusal
from service.http.limits import IngressLimits, ListLimit
from service.http.multipart import boundary_of, read_parts
from service.http.options import Options, typed_options

OPTIONS: Options = {"labels": "list", "templates": "templates", "id": "texts", "top_k": "whole", "model": "text"}
LIMITS = IngressLimits(
    max_body_bytes=4096, max_image_bytes=300, max_items=4, body_timeout_s=5, lists={"labels": ListLimit(8, "SETTING")}
)
LINES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), min_size=1, max_size=12).filter(
    lambda text: text.strip() == text and text[0] not in "[{\ufeff"
)


def labels(*values: str) -> object:
    return typed_options({"labels": list(values)}, OPTIONS, LIMITS)["labels"]


@given(
    lines=st.lists(LINES, min_size=2, max_size=8), line_break=st.sampled_from(["\n", "\r\n", "\r"]), bom=st.booleans()
)
def test_a_file_of_lines_is_a_list(lines: list[str], line_break: str, bom: bool) -> None:
    text = line_break.join(lines)
    assert labels(("\ufeff" if bom else "") + text) == lines
    assert labels(text + line_break) == lines
    assert labels(text.replace(line_break, line_break * 2) + line_break) == lines


@given(lines=st.lists(LINES.filter(lambda text: "," not in text), min_size=1, max_size=8))
def test_commas_and_json_give_the_same_list(lines: list[str]) -> None:
    assert labels(",".join(lines)) == labels(json.dumps(lines)) == labels(*lines) == lines
    assert labels(" , ".join(lines) + "\r\n") == lines


@given(st.lists(st.text(max_size=8), max_size=8))
def test_json_holds_any_label(given_labels: list[str]) -> None:
    assert labels(json.dumps(given_labels)) == given_labels
    assert labels("a", json.dumps(given_labels[:7])) == ["a", *given_labels[:7]]


def test_json_of_prompts() -> None:
    assert labels('{"shirt": ["a shirt"]}') == {"shirt": ["a shirt"]}
    assert labels('[{"name": "a", "prompts": ["b"]}, "c"]') == [{"name": "a", "prompts": ["b"]}, "c"]
    assert typed_options({"id": ["[1", "a,b"]}, OPTIONS, LIMITS) == {"id": ["[1", "a,b"]}  # ids are taken as they are
    assert typed_options({"templates": ['["a, {}", "{}"]']}, OPTIONS, LIMITS) == {"templates": ["a, {}", "{}"]}
    assert typed_options({"templates": ["none"]}, OPTIONS, LIMITS) == {"templates": "none"}


@pytest.mark.parametrize("text", ["[a, b]", '["a", "b"', "{", "[NaN]"])
def test_half_json_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(Refusal, match="one of them a line") as refused:
        labels(text)
    assert (refused.value.status, refused.value.param) == (422, "labels")


@pytest.mark.parametrize(
    "values",
    [
        ["a," * 8 + "a"],
        ["a\n" * 9],
        ["a", "b"] * 5,
        ["a," * 10_000_000],
        ["a\r\n" * 5_000_000],
        ["\n".join("abcdefghi")],
    ],
    ids=["commas", "lines", "fields", "many commas", "many lines", "one line too many"],
)
def test_lists_end_at_their_limit(values: list[str]) -> None:
    with pytest.raises(TooManyItems, match="SETTING"):
        labels(*values)


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc",), exclude_characters='"\\;'), min_size=1)
PARTS = st.lists(st.tuples(NAMES, st.binary(max_size=60)), max_size=5)


@given(parts=PARTS, boundary=st.from_regex(rb"[A-Za-z0-9'()+_,./:=?-]{1,70}", fullmatch=True))
def test_parts_come_out_as_they_went_in(parts: list[tuple[str, bytes]], boundary: bytes) -> None:
    if any(b"\r\n--" + boundary in b"\r\n" + data + b"\r\n" for _, data in parts):
        return  # whoever builds a form chooses another boundary then
    head = b'--%b\r\nContent-Disposition: form-data; name="%b"; filename="\xe9\xff.png"\r\n\r\n'
    body = b"".join(head % (boundary, name.encode()) + data + b"\r\n" for name, data in parts)
    found = boundary_of(f'boundary="{boundary.decode()}"')
    assert found == boundary
    read = read_parts(body + b"--" + boundary + b"--\r\n", found, max_parts=9)
    assert [(part.name, part.data) for part in read] == parts


@given(st.binary(max_size=120))
def test_any_bytes_are_parts_or_a_refusal(raw: bytes) -> None:
    for body in (raw, b"--b\r\n" + raw, b'--b\r\nContent-Disposition: form-data; name="a"\r\n' + raw + b"\r\n--b--"):
        with suppress(Refusal, TooManyItems):
            assert len(read_parts(body, b"b", max_parts=3)) <= 3


@pytest.mark.parametrize(
    ("header", "data", "text"),
    [
        (b"text/plain; charset=ISO-8859-1", b"caf\xe9", "café"),
        (b"text/plain;charset=utf-8", b"caf\xc3\xa9", "café"),
        (b"text/plain", b"caf\xc3\xa9", "café"),
        (b"text/plain; charset=us-ascii", b"caf\xe9", None),
        (b"text/plain", b"caf\xe9", None),
        (b"text/plain; charset=utf-16", b"c\0", None),
    ],
)
def test_text_is_read_in_the_charset_that_its_part_declares(header: bytes, data: bytes, text: str | None) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="labels"\r\nContent-Type: ' + header
    [part] = read_parts(head + b"\r\n\r\n" + data + b"\r\n--b--\r\n", b"b", max_parts=1)
    if text is not None:
        assert part.text() == text
        return
    with pytest.raises(Refusal, match="the part labels") as refused:
        part.text()
    assert refused.value.status == 422
