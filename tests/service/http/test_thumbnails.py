"""Pictures of hits: stored at upsert, or read from a media root; never more than a small picture, encoded anew."""

import os
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Generator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image, ImageOps

ROTATED, ORIENTATION = 6, 0x0112
DIM = 32


def encoded(width: int, height: int, form: str = "JPEG", *, orientation: int = 1, seed: int = 0) -> bytes:
    """A smooth picture, red at its stored left and blue at its right, with metadata that must not get out."""
    rng = np.random.default_rng(seed)
    levels = np.zeros((height, width, 3), np.float64)
    levels[..., 0] = np.linspace(255, 0, width)[None]
    levels[..., 1] = rng.integers(0, 256)
    levels[..., 2] = np.linspace(0, 255, width)[None]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[0x010F] = "SECRET-CAMERA"
    buffer = BytesIO()
    Image.fromarray(levels.astype(np.uint8)).save(buffer, form, exif=exif)
    return buffer.getvalue()


def reference(data: bytes) -> Image.Image:
    """What Pillow makes of it, in no hurry."""
    image = ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")
    image.thumbnail((256, 256))
    return image


def check_picture(answer: Any, original: bytes) -> bytes:
    """A 200 with a small WebP that looks like the original and has nothing but pixels in it."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'"
    assert answer.headers["cache-control"] == "private, no-cache"
    found, wanted = Image.open(BytesIO(answer.content)), reference(original)
    assert (found.format, found.size, found.mode) == ("WEBP", wanted.size, "RGB")
    assert set(found.info) <= {"background", "timestamp", "duration", "loop"}
    assert not found.getexif()
    for word in (b"EXIF", b"XMP ", b"ICCP", b"SECRET"):
        assert word not in answer.content
    difference = np.asarray(found).astype(int) - np.asarray(wanted).astype(int)
    assert np.abs(difference).mean() < 6, "it is turned, mirrored or of other colours"
    return answer.content


def refused(answer: Any, code: str, status: int = 404) -> str:
    assert answer.status_code == status, answer.text
    found = answer.json()["error"]
    assert found["code"] == code
    return found["message"]


class Server:
    """A collection of a served folder; `media` is its media root."""

    def __init__(self, address: str, media: Path) -> None:
        self.http = httpx2.Client(base_url=address, timeout=30)
        self.media = media

    def make(self, name: str, **body: Any) -> Any:
        return self.http.put(f"/collections/{name}", json=body)

    def put(self, name: str, id: str, data: bytes | None = None, **metadata: Any) -> None:
        """As a picture, or as a vector."""
        if data is None:
            item = {"id": id, "vector": np.random.default_rng(1).standard_normal(DIM).tolist(), "metadata": metadata}
            answer = self.http.post(f"/collections/{name}/items", json={"items": [item]})
        else:
            answer = self.http.post(f"/collections/{name}/items", files={"image": data}, data={"id": id})
        assert answer.status_code == 200, answer.text

    def get(self, name: str, id: str, **headers: str) -> Any:
        return self.http.get(f"/collections/{name}/items/{id}/thumbnail", headers=headers)

    def kept(self, name: str) -> Any:
        return self.http.get(f"/collections/{name}").json()["thumbnails"]


@pytest.fixture(scope="module")
def server(serve_module: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    media = tmp_path_factory.mktemp("media") / "root"
    media.mkdir()
    served = serve_module(media_root=media, max_pixels=2_000_000, max_image_bytes=2**20)
    served.wait_for("ready")
    made = Server(served.address, media)
    for name, thumbnails in (("kept", True), ("plain", False)):
        assert made.make(name, thumbnails=thumbnails).status_code == 201
    yield made
    made.http.close()


# ---------------------------------------------------------------- stored at upsert


@pytest.mark.parametrize(
    ("width", "height", "form", "orientation"),
    [
        (640, 480, "JPEG", 1), (640, 480, "JPEG", ROTATED), (300, 900, "PNG", 1), (512, 384, "WEBP", 3),
        (40, 30, "PNG", 1), (1000, 8, "PNG", 1), (256, 256, "JPEG", 8), (257, 256, "PNG", 1),
    ],
)  # fmt: skip
def test_what_was_upserted_is_shown_upright_and_small(
    server: Server, width: int, height: int, form: str, orientation: int
) -> None:
    data = encoded(width, height, form, orientation=orientation)
    server.put("kept", "folder/a b.jpg", data)
    check_picture(server.get("kept", "folder/a%20b.jpg"), data)


def test_the_option_is_part_of_the_collection(server: Server) -> None:
    assert server.make("kept", thumbnails=True).status_code == 200
    message = refused(server.make("kept"), "collection_conflict", 409)
    assert "thumbnails" in message
    assert server.make("plain").status_code == 200
    assert server.make("plain", thumbnails=False).status_code == 200
    refused(server.make("plain", thumbnails=True), "collection_conflict", 409)
    refused(server.make("words", thumbnails="yes"), "invalid_field", 422)
    assert server.http.get("/collections/plain").json()["thumbnails"] is None


def test_it_is_replaced_counted_and_gone_with_its_item(server: Server) -> None:
    assert server.make("life", thumbnails=True).json()["thumbnails"] == {"count": 0, "bytes": 0}
    one, two = encoded(400, 300, seed=1), encoded(300, 400, seed=2)
    server.put("life", "a", one)
    first = check_picture(server.get("life", "a"), one)
    assert server.kept("life") == {"count": 1, "bytes": len(first)}
    server.put("life", "a", two)
    second = check_picture(server.get("life", "a"), two)
    assert server.kept("life") == {"count": 1, "bytes": len(second)}
    server.put("life", "b", one)
    metrics = server.http.get("/metrics").text
    assert "clipworks_collection_thumbnails " in metrics
    total = sum(
        each["thumbnails"]["bytes"] for each in server.http.get("/collections").json()["data"] if each["thumbnails"]
    )
    assert f"clipworks_collection_thumbnail_bytes {float(total)}" in metrics
    server.put("life", "a")  # as a vector: the picture was of something else
    refused(server.get("life", "a"), "thumbnail_not_found")
    text = {"items": [{"id": "b", "text": "a cat"}]}
    assert server.http.post("/collections/life/items", json=text).status_code == 200
    refused(server.get("life", "b"), "thumbnail_not_found")
    server.put("life", "b", one)
    assert server.http.delete("/collections/life/items/b").status_code == 204
    refused(server.get("life", "b"), "item_not_found")
    assert server.kept("life") == {"count": 0, "bytes": 0}


def test_of_a_request_in_which_items_fail_the_good_ones_keep_theirs(server: Server) -> None:
    good, other = encoded(300, 200, seed=3), encoded(200, 300, seed=4)
    files = [("image", each) for each in (good, b"no picture", other)]
    form = {"id": ["g0", "g1", "g2"], "on_error": "item"}
    answer = server.http.post("/collections/kept/items", files=files, data=form)
    assert answer.json()["upserted"] == 2, answer.text
    check_picture(server.get("kept", "g0"), good)
    check_picture(server.get("kept", "g2"), other)
    refused(server.get("kept", "g1"), "item_not_found")


def test_vectors_are_those_of_a_collection_without(server: Server) -> None:
    data = encoded(700, 500, orientation=ROTATED)
    found: list[Any] = []
    for name in ("kept", "plain"):
        server.put(name, "same", data)
        found.append(server.http.get(f"/collections/{name}/items/same?include=vector").json()["vector"])
    np.testing.assert_array_equal(found[0], found[1])


def test_a_client_that_has_it_is_told_so(server: Server) -> None:
    server.put("kept", "cached", encoded(300, 200))
    tag = server.get("kept", "cached").headers["etag"]
    for value in (tag, f'"other", W/{tag}', "*"):
        answer = server.get("kept", "cached", **{"if-none-match": value})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
        assert answer.headers["cache-control"] == "private, no-cache"
    server.put("kept", "cached", encoded(200, 300))
    answer = server.get("kept", "cached", **{"if-none-match": tag})
    assert (answer.status_code, answer.headers["etag"] == tag) == (200, False)
    head = server.http.head("/collections/kept/items/cached/thumbnail")
    assert (head.status_code, head.content, head.headers["content-type"]) == (200, b"", "image/webp")


def test_an_item_whose_own_id_ends_so_stays_readable(server: Server) -> None:
    """It comes first; sent as %2F it is always meant."""
    server.put("kept", "x", encoded(300, 200))
    assert server.get("kept", "x").headers["content-type"] == "image/webp"
    refused(server.http.get("/collections/kept/items/x%2Fthumbnail"), "item_not_found")
    server.put("kept", "x/thumbnail", None, n=7)
    for path in ("x/thumbnail", "x%2Fthumbnail"):
        answer = server.http.get(f"/collections/kept/items/{path}?include=metadata")
        assert (answer.status_code, answer.json()["id"]) == (200, "x/thumbnail")
        assert answer.json()["metadata"] == {"n": 7}
    assert server.http.delete("/collections/kept/items/x/thumbnail").status_code == 204
    assert server.get("kept", "x").headers["content-type"] == "image/webp"
    server.put("kept", "/thumbnail", None, n=8)
    assert server.http.get("/collections/kept/items//thumbnail").json()["metadata"] == {"n": 8}


def test_what_is_not_there_and_what_is_asked_wrongly(server: Server) -> None:
    refused(server.get("kept", "nobody"), "item_not_found")
    refused(server.get("nothing", "a"), "collection_not_found")
    server.put("kept", "asked", encoded(30, 20))
    refused(server.http.get("/collections/kept/items/asked/thumbnail?size=9000"), "invalid_field", 422)
    answer = server.http.post("/collections/kept/items/asked/thumbnail")
    assert answer.status_code == 405
    refused(server.get("kept", "%01"), "invalid_item", 422)


def test_the_reference_names_the_route(server: Server) -> None:
    document = server.http.get("/openapi.json").json()
    route = document["paths"]["/collections/{name}/items/{id}/thumbnail"]["get"]
    assert set(route["responses"]["200"]["content"]) == {"image/webp"}
    assert {"304", "401", "404"} <= set(route["responses"])
    assert document["components"]["schemas"]["CollectionRequest"]["properties"]["thumbnails"]["default"] is False


def test_it_needs_the_key_and_is_there_after_a_kill(serve: Callable[..., Any], tmp_path: Path) -> None:
    """An upsert that was answered has its picture after kill -9, one that was not has neither row nor picture."""
    data = tmp_path / "data"
    served = serve(data=data, api_keys="an-api-key")
    served.wait_for("ready")
    key = {"Authorization": "Bearer an-api-key"}
    pictures = {f"r{n}": encoded(300 + n, 200, seed=n) for n in range(64)}
    answered: list[str] = []
    with httpx2.Client(base_url=served.address, headers=key, timeout=30) as http:
        assert http.put("/collections/c", json={"thumbnails": True}).status_code == 201
        for id, picture in pictures.items():
            if len(answered) == 12:
                threading.Timer(0.05, served.process.kill).start()
            try:
                answer = http.post("/collections/c/items", files={"image": picture}, data={"id": id})
            except httpx2.HTTPError:
                break
            assert answer.status_code == 200, answer.text
            answered.append(id)
    assert 12 <= len(answered) < len(pictures), "it was killed while it worked"
    served.wait()
    served = serve(data=data, api_keys="an-api-key", admin_keys="an-admin-key")
    served.wait_for("ready")
    with httpx2.Client(base_url=served.address, headers=key, timeout=30) as http:
        there = [each["id"] for each in http.get("/collections/c/items").json()["data"]]
        assert set(answered) <= set(there) <= set(pictures)
        assert len(there) <= len(answered) + 1
        size = 0
        for id in there:
            size += len(check_picture(http.get(f"/collections/c/items/{id}/thumbnail"), pictures[id]))
        assert http.get("/collections/c").json()["thumbnails"] == {"count": len(there), "bytes": size}
        path = f"{served.address}/collections/c/items/{there[0]}/thumbnail"
        refused(httpx2.get(path), "invalid_api_key", 401)
        refused(httpx2.get(path, headers={"Authorization": "Bearer wrong"}), "invalid_api_key", 401)
        report = http.post("/collections/c/doctor", json={}, headers={"Authorization": "Bearer an-admin-key"}).json()
        assert (report["healthy"], report["problems"]) == (True, [])


def test_they_move_with_snapshots_and_aliases(serve: Callable[..., Any], tmp_path: Path) -> None:
    served = serve(data=tmp_path / "data", admin_keys="an-admin-key")
    served.wait_for("ready")
    data = encoded(500, 400)
    with httpx2.Client(base_url=served.address, headers={"Authorization": "Bearer an-admin-key"}, timeout=30) as http:
        http.put("/collections/c", json={"thumbnails": True})
        http.post("/collections/c/items", files={"image": data}, data={"id": "a"})
        made = http.post("/collections/c/snapshot").json()["snapshot"]
        restored = http.post("/collections/copy/restore", json={"snapshot": made}).json()
        assert restored["thumbnails"] == http.get("/collections/c").json()["thumbnails"]
        http.put("/aliases/other", json={"collection": "copy"})
        assert http.post("/collections/copy/compact").status_code == 200
        for name in ("c", "copy", "other"):
            check_picture(http.get(f"/collections/{name}/items/a/thumbnail"), data)


# ---------------------------------------------------------------- from the media root


@pytest.mark.parametrize("absolute", [False, True])
def test_a_file_below_the_root_is_shown(server: Server, absolute: bool) -> None:
    data = encoded(640, 480, orientation=ROTATED)
    (server.media / "trips").mkdir(exist_ok=True)
    file = server.media / "trips" / "röme 1.jpg"
    file.write_bytes(data)
    server.put("plain", "a", None, path=str(file) if absolute else "trips/röme 1.jpg")
    answer = server.get("plain", "a")
    check_picture(answer, data)
    tag = answer.headers["etag"]
    assert server.get("plain", "a", **{"if-none-match": tag}).status_code == 304
    assert server.get("plain", "a", **{"if-none-match": "*"}).status_code == 304
    other = encoded(480, 640, seed=9)
    file.write_bytes(other)
    check_picture(server.get("plain", "a", **{"if-none-match": tag}), other)


def test_what_is_stored_comes_before_the_file(server: Server) -> None:
    stored, file = encoded(300, 200), encoded(200, 300)
    (server.media / "file.jpg").write_bytes(file)
    request = {"items": [{"id": "both", "metadata": {"path": "file.jpg"}}]}
    body = {"request": httpx2.Response(200, json=request).text}
    answer = server.http.post("/collections/kept/items", files={"image": stored}, data=body)
    assert answer.status_code == 200, answer.text
    check_picture(server.get("kept", "both"), stored)
    server.put("kept", "vector", None, path="file.jpg")
    check_picture(server.get("kept", "vector"), file)


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels by its header, and of the bytes of a few."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def traps(server: Server) -> dict[str, Any]:
    """Values of metadata.path that must all be answered alike, by name."""
    root, outside = server.media, server.media.parent / "outside"
    outside.mkdir()
    good = encoded(300, 200)
    (outside / "secret.jpg").write_bytes(good)
    (root.parent / "rootless.jpg").write_bytes(good)  # beside the root
    sibling = root.parent / "root-2"  # begins with the root's name
    sibling.mkdir()
    (sibling / "secret.jpg").write_bytes(good)
    (root / "link.jpg").symlink_to(outside / "secret.jpg")
    (root / "folder-link").symlink_to(outside)
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe.jpg")
    listener = socket.socket(socket.AF_UNIX)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)  # its path may be longer than a socket's may be
        listener.bind("socket.jpg")
    listener.close()
    (root / "device.jpg").symlink_to("/dev/zero")
    (root / "page.html").write_bytes(b"<html><script>alert(1)</script>")
    (root / "drawing.svg").write_bytes(b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>')
    (root / "cut.jpg").write_bytes(good[: len(good) // 2])
    (root / "empty.jpg").write_bytes(b"")
    (root / "bomb.png").write_bytes(bomb())
    (root / "large.jpg").write_bytes(good + bytes(2**20))
    (root / "unreadable.jpg").write_bytes(b"x")
    (root / "unreadable.jpg").chmod(0)
    return {
        "dots": "../outside/secret.jpg", "more dots": "trips/../../outside/secret.jpg", "beside": "../rootless.jpg",
        "absolute": str(outside / "secret.jpg"), "begins alike": str(sibling / "secret.jpg"),
        "system": "/etc/passwd", "slashes": "//etc//passwd", "device": "/dev/zero", "process": "/proc/self/environ",
        "link": "link.jpg", "folder link": "folder-link/secret.jpg", "loop": "loop", "link to a device": "device.jpg",
        "pipe": "pipe.jpg", "socket": "socket.jpg", "folder": ".", "the root": str(root), "parent": "..",
        "below a file": "page.html/a.jpg", "absent": "nothing.jpg", "absent outside": "/nothing/there.jpg",
        "page": "page.html", "drawing": "drawing.svg", "cut": "cut.jpg", "empty file": "empty.jpg",
        "bomb": "bomb.png", "too large": "large.jpg", "unreadable": "unreadable.jpg", "nul": "file.jpg\0.png",
        "long": "a/" * 4000, "long name": "a" * 4000, "address": "file:///etc/passwd", "home": "~/a.jpg",
        "percent": "%2e%2e/outside/secret.jpg", "nothing": "", "number": 7, "list": ["file.jpg"], "null": None,
        "truth": True,
    }  # fmt: skip


def test_whatever_else_a_path_names_is_one_and_the_same_404(server: Server, traps: dict[str, Any]) -> None:
    before = server.get("plain", "nowhere")
    server.put("plain", "nowhere", None)
    wanted = server.get("plain", "nowhere")
    assert (before.status_code, before.json()["error"]["code"]) == (404, "item_not_found")
    refused(wanted, "thumbnail_not_found")
    for name, path in traps.items():
        server.put("plain", "trap", None, path=path)
        for headers in ({}, {"if-none-match": "*"}):
            answer = server.http.get("/collections/plain/items/trap/thumbnail", headers=headers, timeout=10)
            assert (answer.status_code, answer.content) == (404, wanted.content), name
            assert set(answer.headers) == set(wanted.headers), name


def test_a_link_that_stays_inside_is_followed(server: Server) -> None:
    data = encoded(300, 200)
    (server.media / "inside").mkdir(exist_ok=True)
    (server.media / "inside" / "real.jpg").write_bytes(data)
    link = server.media / "by-link"
    if not link.exists():
        link.symlink_to(server.media / "inside")
    server.put("plain", "linked", None, path="by-link/real.jpg")
    check_picture(server.get("plain", "linked"), data)


def test_many_at_once_are_all_answered(server: Server) -> None:
    """As a page of hits asks."""
    data = encoded(900, 700)
    (server.media / "many.jpg").write_bytes(data)
    server.put("plain", "many", None, path="many.jpg")
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(server.get("plain", "many"))) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({check_picture(answer, data) for answer in answers}) == 1
    assert len(answers) == 40


def test_without_a_root_no_file_is_read(serve: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(30, 20))
    served = serve()
    served.wait_for("ready")
    server = Server(served.address, tmp_path)
    server.make("c")
    server.put("c", "a", None, path=str(tmp_path / "a.jpg"))
    refused(server.get("c", "a"), "thumbnail_not_found")
    server.http.close()


def test_a_root_that_is_not_there_is_named_at_start(serve: Callable[..., Any], tmp_path: Path) -> None:
    served = serve(media_root=tmp_path / "typo")
    assert served.wait() != 0
    assert any("CLIPWORKS_MEDIA_ROOT (--media-root): there is no such folder" in line for line in served.log)
