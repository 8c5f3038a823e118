"""Options that come as fields of a form or in the query, as people and libraries write them."""

import pytest
from starlette.testclient import TestClient


def refused(response) -> tuple[int, str, str | None]:  # type: ignore[no-untyped-def]
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ([("labels", b"shirt\r\nshoes\r\nwatch\r\n")], ["shirt", "shoes", "watch"]),  # curl -F 'labels=<labels.txt'
        ([("labels", b"\xef\xbb\xbfshirt\nhat, red\n\n")], ["hat, red", "shirt"]),
        ([("labels", b'["shirt", "hat, red"]')], ["hat, red", "shirt"]),
        ([("labels", b'{"shirt": ["a shirt"], "shoes": "two shoes"}')], ["shirt", "shoes"]),
        ([("labels", b"shirt, shoes\n")], ["shirt", "shoes"]),
        ([("labels", b"shirt"), ("labels", b"shoes,watch")], ["shirt", "shoes", "watch"]),
        ([("request", b'{"labels": {"shirt": ["a shirt"], "shoes": ["shoes"]}}')], ["shirt", "shoes"]),
        ([("labels", b"[shirt, shoes]")], None),
        ([("labels", b"shirt,,shoes")], None),
        ([("request", b"{}"), ("request", b'{"labels": ["a", "b"]}')], None),
        ([("labels", b"caf\xe9,b")], None),
        ([("labels", b"a,b"), ("l\xe4bels", b"a")], None),
    ],
)
def test_labels_in_forms(
    client: TestClient, png: bytes, fields: list[tuple[str, bytes]], labels: list[str] | None
) -> None:
    head = b'--X\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    parts = b"".join(head % (name.encode("latin-1"), value) for name, value in fields)
    body = parts + head % (b'image"; filename="b\xe9.png', png) + b"--X--\r\n"
    answer = client.post("/classify", content=body, headers={"Content-Type": "multipart/form-data; boundary=X"})
    if labels is None:
        assert refused(answer)[:2] == (422, "invalid_field")
    else:
        assert sorted(each["label"] for each in answer.json()["data"][0]["predictions"]) == labels


@pytest.mark.parametrize(
    ("query", "labels"),
    [
        ("labels=shirt%0D%0Ahat%2C+red", ["hat, red", "shirt"]),
        ("labels=%5B%22hat%2C%20red%22%2C%22shirt%22%5D", ["hat, red", "shirt"]),
        ("labels=shirt,shoes", ["shirt", "shoes"]),
        ("labels=caf%C3%A9,shoes", ["café", "shoes"]),
        ("labels=caf%E9,shoes", None),
    ],
)
def test_labels_in_the_query(client: TestClient, png: bytes, query: str, labels: list[str] | None) -> None:
    answer = client.post(f"/classify?{query}", content=png, headers={"Content-Type": "image/png"})
    if labels is None:
        assert refused(answer)[:2] == (400, "invalid_query")
    else:
        assert sorted(each["label"] for each in answer.json()["data"][0]["predictions"]) == labels


@pytest.mark.parametrize("encoding", ["base64", "quoted-printable"])
def test_encoded_parts_are_refused(client: TestClient, png: bytes, encoding: str) -> None:
    head = f'--X\r\nContent-Disposition: form-data; name="image"\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=X"}
    answer = client.post("/embed", content=head.encode() + png + b"\r\n--X--\r\n", headers=headers)
    assert refused(answer)[:2] == (415, "unsupported_encoding")
    plain = head.replace(encoding, "binary")
    assert client.post("/embed", content=plain.encode() + png + b"\r\n--X--\r\n", headers=headers).status_code == 200
