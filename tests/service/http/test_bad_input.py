"""Hostile and mistaken bodies on every route: 4xx in the error shape, never 5xx, and the server answers afterwards."""

import base64
import struct
import time
import zlib
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from clipworks import schemas

ROUTES = ("/embed", "/classify", "/localize", "/v1/embeddings", "/label-sets/bad")
JSON = {"Content-Type": "application/json"}


def send(client: TestClient, path: str, body: bytes):  # type: ignore[no-untyped-def]
    return client.request("PUT" if path.startswith("/label-sets") else "POST", path, content=body, headers=JSON)


def check_refused(response, *statuses: int) -> schemas.ErrorDetail:  # type: ignore[no-untyped-def]
    assert response.status_code in (statuses or range(400, 500)), response.text
    return schemas.ErrorResponse.model_validate_json(response.content).error


@pytest.fixture(autouse=True)
def answers_afterwards(client: TestClient):  # type: ignore[no-untyped-def]
    wanted = client.post("/embed", json={"inputs": ["golden"]}).json()
    yield
    assert client.post("/embed", json={"inputs": ["golden"]}).json() == wanted


GOOD = {
    "/embed": {"inputs": b'["a"]', "normalize": b"true", "dimensions": b"32", "encoding_format": b'"float"'},
    "/classify": {"inputs": b'[{"image": "%s"}]', "labels": b'["a"]', "templates": b'"none"', "top_k": b"1",
                  "threshold": b"0.5", "activation": b'"none"', "on_error": b'"fail"'},
    "/localize": {"inputs": b'[{"image": "%s"}]', "labels": b'["a"]', "templates": b'"none"', "threshold": b"0.5",
                  "include": b'["boxes"]', "heatmap_format": b'"png"', "heatmap_labels": b'["a"]', "short_px": b"64",
                  "on_error": b'"fail"'},
    "/v1/embeddings": {"input": b'"a"', "dimensions": b"32", "encoding_format": b'"float"', "modality": b'"text"'},
    "/label-sets/bad": {"labels": b'["a"]', "templates": b'"none"', "model": b'"tiny"'},
}  # fmt: skip
BAD = (
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b'"\\ud800"', b'"\\udc00\\ud800"', b"9" * 5000, b"-" + b"9" * 4000,
    b"[]", b"{}", b"[[]]", b"[null]", b"[{}]", b"-1", b'"\xff\xfe"', b'"true"', b'"1"', b'["a", 1]',
    b'[{"text": "a", "image": "b"}]', b'[{"image": 1}]', b"[" * 1000, b'{"a":' * 1000, b"[" * 100_000,
)  # fmt: skip
# What is right for one field and wrong for the others.
FINE = {("/classify", "threshold", b"-1"), ("/localize", "include", b"[]")}
FINE |= {("/v1/embeddings", "input", value) for value in (b'"true"', b'"1"')}


def body_of(fields: dict[str, bytes], picture: bytes) -> bytes:
    texts = (b'"%s": %s' % (name.encode(), value.replace(b"%s", picture)) for name, value in fields.items())
    return b"{%s}" % b", ".join(texts)


@pytest.fixture(scope="module")
def picture(png: bytes) -> bytes:
    return base64.b64encode(png)


@pytest.mark.parametrize("path", ROUTES)
def test_the_body_that_is_spoilt_below_is_good(client: TestClient, path: str, picture: bytes) -> None:
    assert send(client, path, body_of(GOOD[path], picture)).status_code in (200, 202)
    client.delete("/label-sets/bad")


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("value", BAD, ids=lambda value: repr(value[:12]))
def test_a_bad_value_in_every_field(client: TestClient, path: str, value: bytes, picture: bytes) -> None:
    for field in GOOD[path]:
        if (path, field, value) not in FINE:
            response = send(client, path, body_of({**GOOD[path], field: value}, picture))
            error = check_refused(response)
            assert response.status_code != 422 or str(error.param).startswith(field), (field, error)
    for broken in (value, body_of({**GOOD[path], "x": value}, picture) if path != "/v1/embeddings" else value):
        check_refused(send(client, path, broken))


@pytest.mark.parametrize("path", ROUTES)
def test_what_is_not_json_is_400(client: TestClient, path: str, picture: bytes) -> None:
    field = next(iter(GOOD[path]))
    for value in (b"NaN", b"Infinity", b'"\\ud800"', b"9" * 5000, b"[" * 1000, b'"\xff"', b"", b"tru"):
        error = check_refused(send(client, path, body_of({**GOOD[path], field: value}, picture)), 400)
        assert error.code == "invalid_json"


@pytest.mark.parametrize("path", ROUTES)
def test_empty_lists_and_unknown_models(client: TestClient, path: str) -> None:
    good = {"inputs": ["a"], "labels": ["a"], "input": "a"}
    pictures = ("/classify", "/localize")
    keep = {"/embed": ["inputs"], **dict.fromkeys(pictures, ["inputs", "labels"]), "/v1/embeddings": ["input"]}.get(
        path, ["labels"]
    )
    body = {name: good[name] for name in keep}
    if path in pictures:
        body["inputs"] = [{"image": "QUJD"}]
    for name in keep:
        check_refused(client.request("PUT" if "label" in path else "POST", path, json={**body, name: []}), 422)
    response = client.request("PUT" if "label" in path else "POST", path, json={**body, "model": "unknown"})
    error = check_refused(response, 404)
    assert (error.code, error.param) == ("model_not_found", "model")


def test_a_million_labels_are_refused_fast(client: TestClient) -> None:
    labels = b'"a",' * 999_999 + b'"a"'
    started = time.monotonic()
    error = check_refused(send(client, "/classify", b'{"inputs":[{"image":"QUJD"}],"labels":[%s]}' % labels), 413)
    check_refused(send(client, "/localize", b'{"inputs":[{"image":"QUJD"}],"labels":[%s]}' % labels), 413)
    assert time.monotonic() - started < 3
    assert "/label-sets" in error.message
    check_refused(send(client, "/label-sets/bad", b'{"labels":[%s]}' % labels), 413)
    check_refused(send(client, "/embed", b'{"inputs":[%s]}' % labels), 413)
    check_refused(send(client, "/v1/embeddings", b'{"input":[%s]}' % labels), 413)
    numbers = b"1," * 999_999 + b"1"  # counted first: their type is never looked at
    check_refused(send(client, "/classify", b'{"inputs":[{"image":"QUJD"}],"labels":[%s]}' % numbers), 413)
    nested = b'{"inputs":[{"image":"QUJD"}],"labels":[{"name":"a","prompts":[%s]},"b"]}' % labels
    check_refused(send(client, "/classify", nested), 413)


# Bytes at the end of a file whose loss is one of pixels: a PNG's last 20 are two checksums and a chunk without content.
TAILS = {"PNG": 21, "JPEG": 1, "WEBP": 1}


def png_of(width: int, height: int) -> bytes:
    """A valid PNG of one colour, as small as it can be."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compressobj(9)
    row = b"\0" * (width // 8 + 2)
    body = b"".join(rows.compress(row) for _ in range(height)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(12_000, 12_000), (16_385, 8), (8000, 8), (2**31 - 1, 2**31 - 1)])
def test_image_bombs_are_refused_by_their_header(client: TestClient, width: int, height: int) -> None:
    small = png_of(min(width, 20_000), min(height, 20_000)) if width < 2**20 else png_of(8, 8)
    if width >= 2**20:
        small = small[:16] + struct.pack(">II", width, height) + small[24:]
    started = time.monotonic()
    check_refused(client.post("/embed", content=small, headers={"Content-Type": "image/png"}), 413, 422)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_images_cut_at_every_sixteenth_and_at_the_tail_are_refused(
    client: TestClient, make_picture: Callable[..., bytes], form: str
) -> None:
    data = make_picture(form, 61, 43)
    for length in (*(len(data) * part // 16 for part in range(16)), len(data) - TAILS[form], len(data)):
        answer = client.post("/embed", content=data[:length], headers={"Content-Type": "image/png"})
        if length == len(data):
            assert answer.status_code == 200
        else:
            assert check_refused(answer, 422).param == "inputs[0].image", length


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a" + b"\0" * 50,
        b"<html>not found</html>",
        b"II*\0" + b"\0" * 60,
        b"%PDF-1.7",
        b"\0" * 1000,
        b"%!PS\n",
    ],
)
def test_what_is_no_image_is_refused(client: TestClient, data: bytes) -> None:
    check_refused(client.post("/embed", content=data, headers={"Content-Type": "image/jpeg"}), 422)
    check_refused(client.post("/embed", files={"image": ("a.jpg", data)}), 422)
    body = {"inputs": [{"image": base64.b64encode(data).decode()}], "labels": ["a"]}
    check_refused(client.post("/classify", json=body), 422)


@pytest.mark.parametrize("text", ["a" * 8193, "\0" * 9000, "𝕏" * 8193])
def test_long_texts_are_refused(client: TestClient, text: str) -> None:
    assert check_refused(client.post("/embed", json={"inputs": ["ok", text]}), 422).param == "inputs[1]"
    assert check_refused(client.post("/v1/embeddings", json={"input": text}), 422).param == "input"


@pytest.mark.parametrize("text", ["", " ", "\0", "\x1b[31m", "a" * 8192, "🏴‍☠️" * 500, "‮evil", "A̸̛" * 999, "\ufeff"])
def test_strange_texts_are_embedded(client: TestClient, text: str) -> None:
    response = client.post("/embed", json={"inputs": [text]})
    assert response.status_code == 200
    schemas.EmbedResponse.model_validate_json(response.content)


def test_nothing_of_the_request_is_echoed(client: TestClient) -> None:
    secret = "hunter2secret"
    bodies = [
        {"inputs": [{"image": secret}]},
        {"inputs": secret},
        {"inputs": ["a"], "encoding_format": secret},
        {"inputs": ["a"], "normalize": secret},
        {"inputs": ["a"], "model": secret.upper()},
        {"inputs": [{"image_url": f"http://{secret}"}]},
        {"inputs": [secret * 1000]},
    ]
    for body in bodies:
        assert secret not in client.post("/embed", json=body).text.lower()
    assert secret not in client.post("/embed", content=f'{{"inputs": {secret}', headers=JSON).text
    assert secret not in client.post(f"/embed?{secret}={secret}", json={"inputs": ["a"]}).text
