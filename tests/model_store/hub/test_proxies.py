"""Downloads through the proxy that HTTP_PROXY or HTTPS_PROXY names, and what is said where it does not work."""

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.model_store.hub.ask import ask, ask_each
from tests.model_store.hub.local_hub import LocalHub, local_hub
from tests.model_store.hub.local_proxy import LocalProxy, local_proxy

NAME, GRAPH = "acme/clip", "model.onnx"
DATA = np.random.default_rng(0).bytes(300_000)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    (tmp_path / "served" / NAME).mkdir(parents=True)
    (tmp_path / "served" / NAME / GRAPH).write_bytes(DATA)
    with local_hub(tmp_path / "served") as hub:
        yield hub


@pytest.fixture
def proxy() -> Iterator[LocalProxy]:
    with local_proxy() as proxy:
        yield proxy


@pytest.fixture
def environment(hub: LocalHub, tmp_path: Path) -> dict[str, str]:
    return hub.environment(tmp_path / "home")


def test_every_request_goes_through_the_proxy(hub: LocalHub, environment: dict[str, str], proxy: LocalProxy) -> None:
    through = {**environment, "HTTP_PROXY": f"http://{proxy.address}"}
    found = ask(through, NAME, range=[GRAPH, 7, 3], fetch=[GRAPH])
    assert (Path(found["folder"]) / GRAPH).read_bytes() == DATA
    assert bytes.fromhex(found["bytes"]) == DATA[7:10]
    assert len(proxy.asked) == len(hub.requests)
    assert all(address.startswith(f"{hub.address}/") for _, address in proxy.asked)
    proxy.asked.clear()
    assert "error" not in ask({**through, "NO_PROXY": "127.0.0.1"}, NAME, fetch=[GRAPH])
    assert proxy.asked == []


def test_a_password_of_the_proxy_is_sent_and_not_said(
    hub: LocalHub, environment: dict[str, str], proxy: LocalProxy
) -> None:
    proxy.password = "me:secret-of-the-proxy"
    refused = ask({**environment, "HTTP_PROXY": f"http://{proxy.address}"}, NAME)
    assert refused["message"] == f"{NAME}: the proxy asks for a name and a password: http://NAME:PASSWORD@HOST:PORT"
    found = ask({**environment, "HTTP_PROXY": f"http://{proxy.password}@{proxy.address}"}, NAME, fetch=[GRAPH])
    assert (Path(found["folder"]) / GRAPH).read_bytes() == DATA
    assert "secret-of-the-proxy" not in found["output"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            "http://me:secret@127.0.0.1:9",
            "cannot be reached (ConnectError: [Errno 111] Connection refused); proxies are",
        ),
        (
            "socks5://me:secret@127.0.0.1:9",
            "HTTP_PROXY: expected http://HOST:PORT or https://HOST:PORT; SOCKS needs the",
        ),
        ("ftp://me:secret@127.0.0.1:9", "HTTP_PROXY: expected http://HOST:PORT or https://HOST:PORT"),
        ("http://[::1", "HTTP_PROXY: expected http://HOST:PORT or https://HOST:PORT"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(
    hub: LocalHub, environment: dict[str, str], value: str, said: str
) -> None:
    refused = ask({**environment, "HTTP_PROXY": value}, NAME)
    assert refused["error"] == "RepositoryError"
    assert said in refused["message"]
    assert "HTTP_PROXY" in refused["message"]
    assert "secret" not in refused["output"]
    assert "Traceback" not in refused["output"]
    assert hub.requests == []


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_https_goes_through_a_tunnel(
    tmp_path: Path, hub: LocalHub, environment: dict[str, str], proxy: LocalProxy
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with local_hub(hub.root, tls=context) as secure:
        through = {**environment, "HF_ENDPOINT": secure.address, "HTTPS_PROXY": f"http://{proxy.address}"}
        trusting = {**through, "SSL_CERT_FILE": str(certificate), "HF_TOKEN": "hf_abcdefghijkl"}
        found = ask(trusting, NAME, fetch=[GRAPH])
        assert (Path(found["folder"]) / GRAPH).read_bytes() == DATA
        assert {token for *_, token, _ in secure.requests} == {"hf_abcdefghijkl"}
        assert {method for method, _ in proxy.asked} == {"CONNECT"}, "the proxy sees names of hosts only"
        (stranger,) = ask_each({**through, "HF_HOME": str(tmp_path / "empty")}, [{"repo": NAME}])
        assert f"{secure.address} cannot be reached (ConnectError: " in stranger["message"]
        assert "certificate verify failed" in stranger["message"]
        proxy.password = "me:secret"
        refused = ask({**trusting, "HF_HOME": str(tmp_path / "empty")}, NAME)
        assert "ProxyError: 407" in refused["message"]
        assert "proxies are set by HTTPS_PROXY" in refused["message"]
