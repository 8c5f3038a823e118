"""A model hub on this machine: folders as repositories over HTTP, with the faults that real downloads meet."""

from __future__ import annotations

import hashlib
import json
import os
import re
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = frozenset({".onnx", ".safetensors", ".onnx_data", ".data", ".bin"})
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Faults:
    """What goes wrong, by the path of a file; every field may be changed while the hub serves.

    cut_at: the connection breaks after so many bytes of an answer, as often as `cuts` says.
    """

    wrong_bytes: set[str] = field(default_factory=set)
    short_body: set[str] = field(default_factory=set)
    cut_at: dict[str, int] = field(default_factory=dict)
    cuts: int = 1_000_000
    pause_s: float = 0.0
    no_ranges: bool = False
    listed: list[dict[str, Any]] = field(default_factory=list)  # more entries of every listing
    status: int | None = None  # of every answer
    cdn: str | None = None  # address of another server that large files are redirected to, as the real hub does


@dataclass
class LocalHub:
    """`requests` holds (method, path, token, range) of everything that was asked."""

    address: str
    root: Path
    faults: Faults = field(default_factory=Faults)
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    members: set[str] = field(default_factory=set)  # tokens that were given access
    open_files: set[str] = field(default_factory=set)  # that a gated repository gives to everybody
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)

    def commit(self, name: str) -> str:
        """A repository's commit: made of its files, so that a changed file is another commit."""
        digest = hashlib.sha1(name.encode())
        for path, file in self._files(name).items():
            digest.update(f"{path}\0{hashlib.sha1(file.read_bytes()).hexdigest()}".encode())
        return digest.hexdigest()

    def environment(self, home: Path) -> dict[str, str]:
        """Variables with which a child process uses this hub, and nothing of the person who runs the tests."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def _files(self, name: str) -> dict[str, Path]:
        folder = self.root / name
        return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}


def lfs_sha256(file: Path) -> str | None:
    """The digest that a hub states of a large file, told by its suffix; None of the others."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.suffix in LARGE else None


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def local_hub(root: Path, *, tls: ssl.SSLContext | None = None) -> Iterator[LocalHub]:
    """Serve root/ORG/NAME folders until the block ends; with `tls` as https://localhost."""

    class Bound(_Handler):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    hub = Bound.hub = LocalHub(f"http://127.0.0.1:{server.server_port}", root)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        hub.address = f"https://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def came_bytes(home: Path) -> int:
    """The size of the largest file that a download in this hub cache has not finished."""
    sizes = [0]
    for folder, _, names in os.walk(home):  # it passes over folders that go away meanwhile, as rglob does not
        for name in names:
            if name.endswith(".incomplete"):
                with suppress(FileNotFoundError):  # a download that ends between the listing and here renames its file
                    sizes.append((Path(folder) / name).stat().st_size)
    return max(sizes)


def lay_cache(home: Path, name: str, folder: Path, *, commit: str = "1" * 40, ref: str | None = "main") -> Path:
    """A hub cache made by hand: plain files of one commit and its ref, without blobs and without a listing.

    Returns the folder of the commit.
    """
    storage = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = storage / "snapshots" / commit
    for file in folder.rglob("*"):
        if file.is_file():
            copy = snapshot / file.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    if ref:
        (storage / "refs").mkdir(parents=True)
        (storage / "refs" / ref).write_text(commit)
    return snapshot


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        try:
            self._answer()
        except ConnectionError:  # whoever asked was killed
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None: ...

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.requests.append((self.command, path, token, self.headers.get("Range")))
        if self.hub.faults.status is not None:
            return self._refuse(self.hub.faults.status, None)
        parts = path.strip("/").split("/")
        match parts:
            case ["api", "models", org, name, "revision", revision]:
                asked, kind, rest = f"{org}/{name}", "info", revision
            case ["api", "models", org, name, "tree", revision]:
                asked, kind, rest = f"{org}/{name}", "tree", revision
            case [org, name, "resolve", revision, *file]:
                asked, kind, rest = f"{org}/{name}", "file", revision
                parts = file
            case _:
                return self._refuse(404, None)
        if not (self.hub.root / asked).is_dir() or (asked in self.hub.private and token not in self.hub.members):
            return self._refuse(401 if token is None else 404, "RepoNotFound")
        commit = self.hub.commit(asked)
        if rest not in ("main", commit):
            return self._refuse(404, "RevisionNotFound")
        if kind == "info":
            return self._json({"id": asked, "modelId": asked, "sha": commit, "siblings": [], "tags": []})
        if kind == "tree":
            return self._json([*self._tree(asked), *self.hub.faults.listed])
        held_back = "/".join(parts) not in self.hub.open_files
        if asked in self.hub.gated and held_back and token not in self.hub.members:
            return self._refuse(401 if token is None else 403, "GatedRepo")
        return self._file(asked, commit, "/".join(parts))

    def _tree(self, name: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        for path, file in self.hub._files(name).items():
            size, sha256 = file.stat().st_size, lfs_sha256(file)
            entry = {"type": "file", "path": path, "size": size, "oid": git_oid(file.read_bytes())}
            entries.append(entry | ({"lfs": {"oid": sha256, "size": size, "pointerSize": 134}} if sha256 else {}))
        folders = {parent.as_posix() for path in self.hub._files(name) for parent in Path(path).parents}
        return [
            *entries,
            *({"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders - {"."}),
        ]

    def _file(self, name: str, commit: str, path: str) -> None:
        file, faults = self.hub._files(name).get(path), self.hub.faults
        if file is None:
            return self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        data = file.read_bytes()
        sha256 = lfs_sha256(file)
        if path in faults.wrong_bytes:
            data = bytes(byte ^ 0xFF for byte in data)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        headers |= {"ETag": f'"{sha256}"' if sha256 else f'"{git_oid(file.read_bytes())}"'}
        if sha256 and faults.cdn:
            where = {"Location": f"{faults.cdn}{self.path}?signature=of-the-hub"}
            linked = {"X-Linked-Etag": headers.pop("ETag"), "X-Linked-Size": str(len(data))}
            return self._send(302, headers | where | linked, b"")
        if self.command == "HEAD":
            return self._send(200, headers, b"", length=len(data))
        asked = _RANGE.fullmatch(self.headers.get("Range") or "")
        if asked and not faults.no_ranges:
            start, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            if start > end:
                return self._refuse(416, None)
            headers |= {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
            return self._send(206, headers, data[start : end + 1], path=path)
        return self._send(200, headers, data[: len(data) // 2] if path in faults.short_body else data, path=path)

    def _send(
        self, status: int, headers: dict[str, str], body: bytes, *, length: int | None = None, path: str = ""
    ) -> None:
        faults = self.hub.faults
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body) if length is None else length)}.items():
            self.send_header(name, value)
        self.end_headers()
        cut = faults.cut_at.get(path)
        if cut is not None and faults.cuts > 0 and cut < len(body):
            faults.cuts -= 1
            self.wfile.write(body[:cut])
            self.wfile.flush()
            self.close_connection = True
            return
        for start in range(0, len(body), 1 << 16):
            self.wfile.write(body[start : start + (1 << 16)])
            if faults.pause_s:
                time.sleep(faults.pause_s)

    def _json(self, content: Any) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _refuse(self, status: int, code: str | None, headers: dict[str, str] | None = None) -> None:
        stated = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._send(status, {**stated, **(headers or {})}, b"")
