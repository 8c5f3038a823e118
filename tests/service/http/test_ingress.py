"""Limits at their edges, and every way in which a body can be written."""

import base64
from collections.abc import Callable, Iterator

import pytest
from starlette.testclient import TestClient


@pytest.fixture(scope="module")
def small(make_client: Callable[..., TestClient]) -> TestClient:
    """A server with small limits."""
    return make_client(max_body_bytes=8192, max_items=4, max_image_bytes=4096, max_label_texts=10, max_pixels=4096)


def refused(response) -> tuple[int, str, str | None]:  # type: ignore[no-untyped-def]
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


@pytest.mark.parametrize("chunked", [False, True])
def test_the_body_limit_holds_to_the_byte(small: TestClient, chunked: bool) -> None:
    def body(size: int) -> bytes | Iterator[bytes]:
        text = b'{"inputs": ["a"]}'.ljust(size)
        return iter([text[:5000], text[5000:]]) if chunked else text

    headers = {"Content-Type": "application/json"}
    assert small.post("/embed", content=body(8192), headers=headers).status_code == 200
    over = small.post("/embed", content=body(8193), headers=headers)
    assert refused(over)[:2] == (413, "body_too_large")


def test_a_declared_length_over_the_limit_is_refused_unread(small: TestClient) -> None:
    headers = {"Content-Type": "application/json", "Content-Length": "9" * 30}
    assert refused(small.post("/embed", content=b"{}", headers=headers))[:2] == (413, "body_too_large")


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate", "gzip, identity"])
def test_encoded_bodies_are_refused(small: TestClient, encoding: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    assert refused(small.post("/embed", content=b"x", headers=headers))[:2] == (415, "unsupported_encoding")


def test_the_item_limit_counts_inputs_and_files_together(small: TestClient, make_picture) -> None:
    tiny = make_picture("PNG", 8, 8)
    files = [("image", ("a.png", tiny))] * 2
    assert small.post("/embed", data={"request": '{"inputs": ["a", "b"]}'}, files=files).status_code == 200
    over = small.post("/embed", data={"request": '{"inputs": ["a", "b", "c"]}'}, files=files)
    assert refused(over)[:2] == (413, "too_many_items")
    assert small.post("/embed", json={"inputs": ["a"] * 4}).status_code == 200
    assert refused(small.post("/embed", json={"inputs": ["a"] * 5}))[:2] == (413, "too_many_items")


def test_labels_times_templates_is_limited_and_the_remedy_is_named(small: TestClient, make_picture) -> None:
    tiny = base64.b64encode(make_picture("PNG", 8, 8)).decode()
    body = {"inputs": [{"image": tiny}], "labels": ["a", "b"]}
    assert small.post("/classify", json={**body, "templates": ["a {}"] * 5}).status_code == 200
    over = small.post("/classify", json={**body, "templates": ["a {}"] * 6})
    assert refused(over)[:2] == (413, "too_many_items")
    assert "/label-sets" in over.json()["error"]["message"]


def test_the_image_limit_holds_for_every_way_in(small: TestClient, make_picture) -> None:
    large = make_picture("PNG", 38, 38)
    assert 4096 < len(large) < 6000
    json = small.post("/embed", json={"inputs": [{"image": base64.b64encode(large).decode()}]})
    raw = small.post("/embed", content=large, headers={"Content-Type": "image/png"})
    form = small.post("/embed", files={"image": ("a.png", large)})
    assert {refused(each) for each in (json, raw, form)} == {(413, "image_too_large", "inputs[0].image")}


def test_the_pixel_limit_is_read_from_the_header(small: TestClient, make_picture) -> None:
    fits, over = make_picture("WEBP", 64, 64), make_picture("WEBP", 65, 64)
    headers = {"Content-Type": "image/webp"}
    assert small.post("/embed", content=fits, headers=headers).status_code == 200
    assert refused(small.post("/embed", content=over, headers=headers))[:2] == (413, "image_too_large")


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "video/mp4", ";", "a\xff"],
)
def test_other_content_types_are_415_with_the_remedy(client: TestClient, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type.encode("latin-1")}
    response = client.post("/embed", content=b'{"inputs": ["a"]}', headers=headers)
    assert refused(response)[:2] == (415, "unsupported_media_type")
    assert "-H 'Content-Type: application/json'" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", "application/json;x=y"]
)
def test_json_is_json_however_it_is_written(client: TestClient, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    assert client.post("/embed", content=b'{"inputs": ["a"]}', headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_multipart"),
        (b"garbage", 400, "invalid_multipart"),
        (b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc', 400, "invalid_multipart"),
        (b"--b\r\n\r\nno name\r\n--b--\r\n", 400, "invalid_multipart"),
        (b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\nx\r\n--b--\r\n', 422, "invalid_field"),
        (b'--b\r\nContent-Disposition: form-data; name="request"\r\n\r\n[1]\r\n--b--\r\n', 422, "invalid_field"),
        (b'--b\r\nContent-Disposition: form-data; name="request"\r\n\r\n{\r\n--b--\r\n', 400, "invalid_json"),
        (b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n\xff\r\n--b--\r\n', 422, "invalid_field"),
        (b"--b\r\n" + b"X: y\r\n" * 200 + b"\r\n\r\n--b--\r\n", 400, "invalid_multipart"),
        (
            b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n' * 2000 + b"--b--\r\n",
            413,
            "too_many_items",
        ),
    ],
)
def test_broken_multipart(client: TestClient, body: bytes, status: int, code: str) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert refused(client.post("/embed", content=body, headers=headers))[:2] == (status, code)


@pytest.mark.parametrize("parameters", ["", "; boundary=", "; boundary=" + "b" * 71])
def test_multipart_needs_a_boundary(client: TestClient, parameters: str) -> None:
    headers = {"Content-Type": "multipart/form-data" + parameters}
    assert refused(client.post("/embed", content=b"x", headers=headers))[:2] == (400, "invalid_multipart")


@pytest.mark.parametrize(
    ("query", "status", "param"),
    [
        ("normalize=false", 200, None),
        ("normalize=True", 200, None),
        ("normalize=yes", 422, "normalize"),
        ("dimensions=32", 200, None),
        ("dimensions=1e1", 422, "dimensions"),
        ("dimensions=" + "9" * 5000, 422, "dimensions"),
        ("normalize=false&normalize=true", 422, "normalize"),
        ("encoding_format=hex", 422, "encoding_format"),
        ("model=tiny@1", 200, None),
        ("inputs=a", 422, None),
        ("typo=1", 422, None),
        ("model=%ff", 400, None),
    ],
)
def test_query_options(client: TestClient, png: bytes, query: str, status: int, param: str | None) -> None:
    response = client.post(f"/embed?{query}", content=png, headers={"Content-Type": "image/png"})
    assert response.status_code == status, response.text
    assert status == 200 or response.json()["error"]["param"] == param


def test_an_option_may_not_come_twice(client: TestClient, png: bytes) -> None:
    response = client.post("/embed?normalize=true", json={"inputs": ["a"], "normalize": True})
    assert refused(response) == (422, "invalid_field", "normalize")
    form = client.post("/embed", data={"request": '{"model": "tiny"}', "model": "tiny"}, files={"image": ("a", png)})
    assert refused(form) == (422, "invalid_field", "model")
    assert client.post("/embed?normalize=true", json={"inputs": ["a"]}).status_code == 200


def test_a_byte_order_mark_is_no_part_of_json(client: TestClient, png: bytes) -> None:
    bom = b"\xef\xbb\xbf"
    json = client.post("/embed", content=bom + b'{"inputs": ["a"]}', headers={"Content-Type": "application/json"})
    assert json.status_code == 200, json.text
    parts = {"request": bom.decode() + '{"inputs": ["a"]}'}
    assert len(client.post("/embed", data=parts, files={"image": ("a", png)}).json()["data"]) == 2
    put = client.put(
        "/label-sets/marked", content=bom + b'{"labels": ["a"]}', headers={"Content-Type": "application/json"}
    )
    assert put.status_code == 202
    client.delete("/label-sets/marked")


NPY, JSON = "application/x-npy", "application/json"


@pytest.mark.parametrize(
    ("accept", "is_npy"),
    [
        ("application/x-npy", True),
        ("Application/X-NPY; q=1.0", True),
        ("application/x-npy;q=0.9, */*", True),  # libraries add wildcards that nobody wrote
        ("application/x-npy, application/json", True),
        ("application/json, application/x-npy;q=0.5", False),
        ("application/json;q=0.2, application/x-npy;q=0.5", True),
        ("application/x-npy;q=0", False),
        ("application/x-npy;q=0, */*", False),
        ("application/x-npy;q=much", False),
        ("application/x-npy2", False),
        ("*/*", False),
        ("application/*", False),
        ("text/html, application/xhtml+xml, */*;q=0.8", False),
        ("", False),
        (",;,", False),
    ],
)
def test_the_accept_header_decides_with_its_weights(client: TestClient, accept: str, is_npy: bool) -> None:
    answer = client.post("/embed", json={"inputs": ["a"]}, headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == (NPY if is_npy else JSON)


def test_several_accept_headers_are_one(client: TestClient) -> None:
    headers = [("Accept", "text/plain"), ("Accept", NPY)]
    assert client.post("/embed", json={"inputs": ["a"]}, headers=headers).headers["content-type"] == NPY
