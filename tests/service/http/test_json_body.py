"""What a JSON text holds is counted as the parser would make it, and never less up to where the parser stops."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.faults import TooManyItems
from service.http import json_body
from service.http.errors import Refusal
from service.http.json_body import JsonCounts, check_json, count_values, parse_json
from service.settings import Settings

NO_LIMIT = 2**60
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(alphabet='ab"\\[]{},:\n\u00e9', max_size=8)
VALUES = st.recursive(
    SCALARS | TEXTS,
    lambda inner: st.lists(inner, min_size=1, max_size=6) | st.dictionaries(TEXTS, inner, min_size=1, max_size=6),
    max_leaves=30,
)


def counted(value: Any) -> JsonCounts:
    """The reference: a walk over the parsed value."""
    if isinstance(value, (list, dict)):
        inner = [counted(each) for each in (value if isinstance(value, list) else value.values())]
        names = len(value) if isinstance(value, dict) else 0
        return JsonCounts(
            numbers=sum(each.numbers for each in inner),
            strings=sum(each.strings for each in inner),
            names=sum(each.names for each in inner) + names,
            containers=sum(each.containers for each in inner) + 1,
        )
    return JsonCounts(int(not isinstance(value, str)), int(isinstance(value, str)), 0, 0)


@given(text=st.text(alphabet='ab"\\[]{},: ', max_size=50))
def test_short_texts_need_no_counting(text: str) -> None:
    """What `check_json` relies on: a text of n characters cannot be over a limit of 256 (n + 1) bytes."""
    assert count_values(text.encode(), max_parsed_bytes=NO_LIMIT).parsed_bytes <= 256 * (len(text) + 1)


@given(value=VALUES, is_ascii=st.booleans(), indent=st.sampled_from([None, 2]), chunk=st.integers(1, 9))
def test_counts_are_those_of_the_parsed_value(value: Any, is_ascii: bool, indent: int | None, chunk: int) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_body, "_CHUNK_BYTES", chunk)  # so that every border falls on every kind of character
        assert count_values(text, max_parsed_bytes=NO_LIMIT) == counted(value)
    assert parse_json(b"\xef\xbb\xbf" + text) == value


@given(value=VALUES, cut=st.integers(0, 200), junk=st.binary(max_size=12))
def test_a_broken_text_is_counted_up_to_its_fault(value: Any, cut: int, junk: bytes) -> None:
    good = json.dumps(value).encode()[:cut]
    before = count_values(good, max_parsed_bytes=NO_LIMIT)
    after = count_values(good + junk, max_parsed_bytes=NO_LIMIT)
    assert after.containers >= before.containers
    assert after.parsed_bytes >= before.parsed_bytes - 48  # a quote in the junk may end an open string


@pytest.mark.parametrize("text", [b"[1,2,3,4,5]", b'["a","b",3]', b'{"a":{"b":1}}', b"[[],[]]"])
def test_the_limit_holds_to_the_byte(text: bytes) -> None:
    needed = count_values(text, max_parsed_bytes=NO_LIMIT).parsed_bytes
    assert check_json(text, max_parsed_bytes=needed) in (0, needed)
    assert parse_json(text) == json.loads(text)
    with pytest.raises(TooManyItems, match="CLIPWORKS_MAX_PARSED_BYTES"):
        check_json(text, max_parsed_bytes=needed - 1)


@pytest.mark.parametrize("text", [b"", b"tru", b"[1", b'"a', b"\xef\xbb\xbf", b"\xef\xbb\xbf\xef\xbb\xbf1", b'"\xff"'])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        parse_json(text)
    assert (refused.value.status, refused.value.code) == (400, "invalid_json")


LIMIT = Settings().max_parsed_bytes


def test_the_default_limit_takes_a_body_of_vectors_as_ordinary_numbers() -> None:
    text = b"[" + b"0.12345678," * 2_790_000 + b"0]"  # 31 MB
    assert check_json(text, max_parsed_bytes=LIMIT) <= LIMIT


@pytest.mark.parametrize(
    "text",
    [
        b"{%s}" % b",".join(b'"k%d":1' % n for n in range(600_000)),
        b"[%s]" % b",".join([b"1"] * 3_900_000),
        b"[%s]" % b",".join([b'"abcdefghij"'] * 1_200_000),
        b"[%s]" % b",".join([b"[1]"] * 600_000),
    ],
    ids=["names", "numbers", "strings", "lists"],
)
def test_the_default_limit_takes_nothing_that_holds_the_interpreter_for_long(text: bytes) -> None:
    """Each of these took a quarter of a second or more, in which no other thread ran."""
    with pytest.raises(TooManyItems):
        check_json(text, max_parsed_bytes=LIMIT)
