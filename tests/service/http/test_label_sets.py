"""Label sets cost what is known before, survive damage of their files, and fail with a final answer."""

from __future__ import annotations

import base64
import json
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from clipworks.schemas import LabelSetRequest
from service.retrieval.errors import StorageFailed
from service.tasks.label_set_files import Damaged, LabelSetFiles
from service.tasks.prompts import Prompts
from service.tasks.stored_set import StoredSet

LABELS = ["cat", "dog", "été"]
REQUEST = {"labels": LABELS, "templates": ["a {}", "the {}"]}


def finished(client: TestClient, name: str) -> dict[str, object]:
    end = time.monotonic() + 30
    while True:
        found = client.get(f"/label-sets/{name}").json()
        if found["ready"] or found["failed"] or time.monotonic() > end:
            return found
        time.sleep(0.02)


def refused(response) -> tuple[int, str, str]:  # type: ignore[no-untyped-def]
    error = response.json()["error"]
    return response.status_code, error["code"], error["message"]


@pytest.fixture
def ask(png: bytes) -> Callable[..., object]:
    """Scores of one picture with a stored set."""
    image = {"image": base64.b64encode(png).decode()}
    return lambda client, name: client.post("/classify", json={"inputs": [image], "label_set": name})


# ---------------------------------------------------------------- what a request may cost


def test_products_are_counted_before_they_are_made(client: TestClient, png: bytes) -> None:
    """Four billion texts and 1,000 x 1 MB would end the process, so this test ends only if they are never made."""
    image = {"image": base64.b64encode(png).decode()}
    many = {"labels": [f"a{n}" for n in range(2000)], "templates": ["{}"] * 2000}
    for send in (
        lambda body: client.put("/label-sets/bad", json=body),
        lambda body: client.post("/classify", json={"inputs": [image], **body}),
    ):
        status, code, message = refused(send(many))
        assert (status, code) == (413, "too_many_items")
        assert "4000000 texts" in message
        assert "_TEXTS" in message
        long = {"labels": ["x" * 1_000_000, "cat"], "templates": ["{}"] * 1000}
        status, code, message = refused(send(long))
        assert (status, code) == (422, "invalid_text")
        assert "1000000 characters" in message
    most = {"labels": [f"{n:02}" + "x" * 7998 for n in range(50)], "templates": ["{}"] * 40}
    status, code, message = refused(client.post("/classify", json={"inputs": [image], **most}))
    assert (status, code) == (413, "too_many_items")
    assert "16000000 characters of text, the limit is 1000000 (CLIPWORKS_MAX_LABEL_CHARS)" in message
    assert client.get("/label-sets/bad").status_code == 404
    big = {"labels": [f"a{n}" for n in range(50_000)], "templates": ["{}"] * 90_000}
    began = time.perf_counter()
    assert refused(client.put("/label-sets/bad", json=big))[0] == 413
    assert time.perf_counter() - began < 5


def test_sets_of_before_on_unknown_keep_their_digest() -> None:
    """Their vectors are sealed with it, and would be encoded again."""
    request = {"model": None, "labels": LABELS, "templates": None}
    stored = StoredSet(LabelSetRequest.model_validate(request), "tiny@1", "f" * 64)
    assert stored.content() == {"request": request, "model": "tiny@1", "fingerprint": "f" * 64}
    strict = StoredSet(LabelSetRequest.model_validate({**request, "on_unknown": "error"}), "tiny@1", "f" * 64)
    assert strict.content()["request"]["on_unknown"] == "error"


def test_counting_agrees_with_writing_out() -> None:
    request = LabelSetRequest.model_validate(
        {"labels": ["cat", {"name": "car", "prompts": ["a fast car", "cars"]}, "é"], "templates": ["a {}.", "{}"]}
    )
    prompts = Prompts.of(request.labels, ["a {}.", "{}"])
    texts = list(prompts)
    assert texts == ["a cat.", "cat", "a fast car", "cars", "a é.", "é"]
    assert (prompts.texts, prompts.chars, prompts.longest) == (6, sum(map(len, texts)), 10)
    assert [text for part in prompts.parts(2) for text in part] == texts
    assert prompts.digest == Prompts.of(request.labels, ["a {}.", "{}"]).digest
    assert prompts.digest != Prompts.of(request.labels, ["a {}.{}"]).digest


def test_the_class_cache_keeps_successes_within_its_bytes(make_client: Callable[..., TestClient], png: bytes) -> None:
    client = make_client(class_cache_bytes=4096)
    cache = client.app.state.services.zero_shot.cache  # type: ignore[attr-defined]
    image = {"image": base64.b64encode(png).decode()}

    def classify(labels: list[str], timeout_ms: int = 30_000) -> int:
        body = {"inputs": [image], "labels": labels, "templates": "none"}
        return client.post("/classify", json=body, headers={"X-Request-Timeout-Ms": str(timeout_ms)}).status_code

    assert classify(["&" + "amp;" * 2000]) == 422
    assert [classify([f"{n} {k} " + "x" * 200 for k in range(500)], 1) for n in range(5)] == [504] * 5
    assert (len(cache), cache.bytes) == (0, 0)
    assert not client.app.state.services.zero_shot._running  # type: ignore[attr-defined]
    for n in range(30):
        assert classify([f"label {n}", "another"]) == 200
    assert 0 < cache.bytes <= 4096
    assert len(cache) > 1


def test_costly_texts_hold_neither_the_loop_nor_their_deadline(client: TestClient) -> None:
    texts = ["Â" * (900 + n % 7) + "™" for n in range(256)]
    began = time.perf_counter()
    response = client.post("/embed", json={"inputs": texts}, headers={"X-Request-Timeout-Ms": "500"})
    answer = response.status_code, response.json()["error"]["code"]
    assert answer in ((422, "invalid_text"), (504, "deadline_exceeded"))
    assert time.perf_counter() - began < 10
    assert client.post("/embed", json={"inputs": ["a"]}).status_code == 200


# ---------------------------------------------------------------- damage


@pytest.fixture
def stored() -> StoredSet:
    return StoredSet(LabelSetRequest.model_validate(REQUEST), "tiny@1", "f" * 64)


def test_no_flipped_bit_of_a_label_set_passes(tmp_path: Path, stored: StoredSet) -> None:
    files = LabelSetFiles(tmp_path)
    vectors = np.random.default_rng(3).normal(size=(3, 16)).astype(np.float32)
    files.write("pets", stored)
    files.write_vectors("pets", stored, vectors)
    assert files.read("pets") == stored
    assert np.array_equal(files.vectors("pets", stored, (3, 16)), vectors)
    rng = random.Random(5)
    for suffix in ("json", "npy"):
        path = tmp_path / f"pets.{suffix}"
        good = path.read_bytes()
        for place in rng.sample(range(8 * len(good)), 400):
            bad = bytearray(good)
            bad[place // 8] ^= 1 << (place % 8)
            path.write_bytes(bad)
            if suffix == "npy":
                assert files.vectors("pets", stored, (3, 16)) is None
            else:
                with suppress(Damaged):
                    assert files.read("pets") == stored
        for cut in (0, 1, len(good) // 2, len(good) - 1):
            path.write_bytes(good[:cut])
            if suffix == "npy":
                assert files.vectors("pets", stored, (3, 16)) is None
            else:
                with pytest.raises(Damaged):
                    files.read("pets")
        path.write_bytes(good)


def test_vectors_of_another_set_encoder_or_shape_are_not_taken(tmp_path: Path, stored: StoredSet) -> None:
    files = LabelSetFiles(tmp_path)
    files.write_vectors("pets", stored, np.ones((3, 16), dtype=np.float32))
    other = StoredSet(stored.request.model_copy(update={"labels": ["a", "b", "c"]}), stored.model, stored.fingerprint)
    assert files.vectors("pets", other, (3, 16)) is None
    assert files.vectors("pets", StoredSet(stored.request, stored.model, "0" * 64), (3, 16)) is None
    assert files.vectors("pets", stored, (3, 8)) is None
    assert files.vectors("pets", stored, (3, 16)) is not None


BAD_FILES = {
    "empty": b"",
    "deep": b"[" * 100_000,
    "a-list": b"[1]",
    "of-nobody": b'{"a": 1}',
    "newer": b'{"format": 3, "sha256": "", "content": {}}',
    "no-labels": b'{"request": {"labels": []}, "model": "tiny@1", "fingerprint": "x"}',
    "no-model": b'{"request": {"labels": ["a"]}, "model": "gone@1", "fingerprint": "x"}',
}
BOMB = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000, 16), }".ljust(117) + b"\n"


def test_bad_files_stop_nothing_and_are_named(
    tmp_path: Path, make_client: Callable[..., TestClient], ask: Callable[..., object]
) -> None:
    folder = tmp_path / "label-sets"
    folder.mkdir()
    for name, data in BAD_FILES.items():
        (folder / f"{name}.json").write_bytes(data)
    old = {"request": {**REQUEST, "model": None}, "model": "tiny@1", "fingerprint": "x"}
    (folder / "old.json").write_text(json.dumps(old))
    (folder / "gone.json").symlink_to(tmp_path / "nothing")  # as if it was deleted since the folder was listed
    (folder / "old.npy").write_bytes(b"\x93NUMPY\1\0" + len(BOMB).to_bytes(2, "little") + BOMB + b"x" * 100)
    client = make_client(data=tmp_path)
    listed = {each["name"]: each for each in client.get("/label-sets").json()["data"]}
    assert set(listed) == {*BAD_FILES, "old"}
    for name in BAD_FILES:
        assert "not restored" in listed[name]["failed"]
        status, code, message = refused(ask(client, name))
        assert (status, code) == (409, "label_set_failed")
        assert str(tmp_path) not in message
    assert "empty.json is not JSON" in listed["empty"]["failed"]
    assert finished(client, "old")["ready"]  # of the format without digests, with vectors that are a bomb
    assert json.loads((folder / "old.json").read_bytes())["format"] == 2
    assert client.put("/label-sets/deep", json=REQUEST).status_code == 202
    assert finished(client, "deep")["ready"]
    assert ask(client, "deep").json()["data"] == ask(client, "old").json()["data"]  # type: ignore[attr-defined]
    assert client.delete("/label-sets/empty").status_code == 204
    assert not (folder / "empty.json").exists()


def test_vectors_without_their_set_are_a_lost_set(
    tmp_path: Path, make_client: Callable[..., TestClient], ask: Callable[..., object]
) -> None:
    """It is said until it is put again or deleted; a pipe in the place of a file is not waited for."""
    folder = tmp_path / "label-sets"
    folder.mkdir()
    for name in ("lost", "lost-too"):
        (folder / f"{name}.npy").write_bytes(b"x" * 100)
    os.mkfifo(folder / "pipe.json")
    client = make_client(data=tmp_path)
    listed = {each["name"]: each["failed"] for each in client.get("/label-sets").json()["data"]}
    assert "lost.json is missing, and lost.npy beside it says that there was a set" in listed["lost"]
    assert "pipe.json is no plain file" in listed["pipe"]
    assert refused(ask(client, "lost"))[:2] == (409, "label_set_failed")
    assert client.put("/label-sets/lost", json=REQUEST).status_code == 202
    assert finished(client, "lost")["ready"]
    for name in ("lost-too", "pipe"):
        assert client.delete(f"/label-sets/{name}").status_code == 204
    client.__exit__(None, None, None)
    assert [each["name"] for each in make_client(data=tmp_path).get("/label-sets").json()["data"]] == ["lost"]


def test_damaged_vectors_are_made_again_from_the_request(
    tmp_path: Path, make_client: Callable[..., TestClient], ask: Callable[..., object]
) -> None:
    client = make_client(data=tmp_path)
    client.put("/label-sets/pets", json=REQUEST)
    assert finished(client, "pets")["ready"]
    before = ask(client, "pets").json()["data"]  # type: ignore[attr-defined]
    path = tmp_path / "label-sets" / "pets.npy"
    end = time.monotonic() + 10
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)
    client.__exit__(None, None, None)
    data = bytearray(path.read_bytes())
    data[200] ^= 64
    path.write_bytes(data)
    again = make_client(data=tmp_path)
    assert finished(again, "pets")["ready"]
    assert ask(again, "pets").json()["data"] == before  # type: ignore[attr-defined]
    again.delete("/label-sets/pets")
    assert list((tmp_path / "label-sets").iterdir()) == []


def test_a_set_that_cannot_be_stored_is_said_and_the_old_one_stays(
    tmp_path: Path, make_client: Callable[..., TestClient], ask: Callable[..., object]
) -> None:
    client = make_client(data=tmp_path)
    assert client.put("/label-sets/pets", json=REQUEST).status_code == 202
    assert finished(client, "pets")["ready"]
    before = ask(client, "pets").json()["data"]  # type: ignore[attr-defined]
    in_the_way = tmp_path / "label-sets" / ".pets.json.writing"
    in_the_way.mkdir()  # the file that is written first cannot be opened
    other = {"labels": ["red", "blue"]}
    status, code, message = refused(client.put("/label-sets/pets", json=other))
    assert (status, code) in ((503, "storage_failed"), (507, "storage_full"))
    assert str(tmp_path) not in message
    assert ask(client, "pets").json()["data"] == before  # type: ignore[attr-defined]
    in_the_way.rmdir()
    assert client.put("/label-sets/pets", json=other).status_code == 202
    assert finished(client, "pets")["label_names"] == ["red", "blue"]


def test_no_room_and_no_descriptors_are_507() -> None:
    import errno

    from service.http.errors import status_of
    from service.tasks.label_set_files import _failure

    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE):
        assert status_of(_failure(OSError(number, "no room"), "pets.json")) == 507
    assert isinstance(_failure(OSError(errno.EIO, "broken"), "pets.json"), StorageFailed)


def test_a_set_that_cannot_be_encoded_fails_for_good(client: TestClient, ask: Callable[..., object]) -> None:
    body = {"labels": ["cat", "&" + "#38;" * 1900], "templates": "none"}
    assert client.put("/label-sets/hopeless", json=body).status_code == 202
    try:
        found = finished(client, "hopeless")
        assert "layers" in str(found["failed"])
        response = ask(client, "hopeless")
        assert refused(response)[:2] == (409, "label_set_failed")
        assert "Retry-After" not in response.headers  # type: ignore[attr-defined]
    finally:
        client.delete("/label-sets/hopeless")


def test_predictions_are_counted_before_pictures_are_decoded(
    make_client: Callable[..., TestClient], png: bytes
) -> None:
    client = make_client(max_predictions=5)
    image = {"image": base64.b64encode(png).decode()}
    body = {"inputs": [image, image], "labels": LABELS}
    status, code, message = refused(client.post("/classify", json=body))
    assert (status, code) == (413, "too_many_items")
    assert "2 images x 3 labels are 6 predictions, the limit is 5 (CLIPWORKS_MAX_PREDICTIONS)" in message
    assert client.post("/classify", json=body | {"top_k": 2}).status_code == 200
    assert client.post("/classify", json=body | {"inputs": [image]}).status_code == 200
    hopeless = [*LABELS, "&" + "#38;" * 1900]  # refused when it is encoded
    assert refused(client.post("/classify", json=body | {"labels": hopeless}))[:2] == (413, "too_many_items")
    assert refused(client.post("/classify", json=body | {"labels": hopeless[3:]}))[:2] == (422, "invalid_field")
    assert refused(client.post("/classify", json=body | {"labels": hopeless, "top_k": 1}))[:2] == (422, "invalid_text")


def test_many_labels_are_ranked_as_few(make_client: Callable[..., TestClient], png: bytes) -> None:
    client = make_client(max_label_set_texts=20_000, data=None)
    names = [f"thing {n}" for n in range(10_001)]
    asked = {"inputs": [{"image": base64.b64encode(png).decode()}], "activation": "none"}
    few = client.post("/classify", json=asked | {"labels": names[:300], "templates": ["{}"]})
    assert client.put("/label-sets/many", json={"labels": names, "templates": ["{}"]}).status_code == 202
    assert finished(client, "many")["ready"]
    many = client.post("/classify", json=asked | {"label_set": "many"})
    found = {each["label"]: each["score"] for each in many.json()["data"][0]["predictions"]}
    assert len(found) == len(names)
    for each in few.json()["data"][0]["predictions"]:
        assert found[each["label"]] == pytest.approx(each["score"], abs=1e-5)
    assert "rank" in many.headers["server-timing"]
