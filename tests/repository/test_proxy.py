"""deploy/nginx: what goes to every server changes nothing, and nginx takes the file where it is installed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from service.app import create_app
from tests.programs import program
from tests.service.http.conftest import tiny_settings

FILE = Path(__file__).parents[2] / "deploy" / "nginx" / "clipworks.conf"


def test_only_requests_that_change_nothing_go_to_every_server() -> None:
    """A path is a POST that no stored thing takes part in: no parameter names a collection or a label set."""
    text = FILE.read_text(encoding="utf-8")
    (pattern,) = re.findall(r"location ~ (\S+) \{[^}]*clipworks_encoders", text)
    schema = create_app(tiny_settings()).openapi()
    shared = {path: methods for path, methods in schema["paths"].items() if re.search(pattern, path)}
    assert set(shared) == {"/embed", "/v1/embeddings"}
    for path, methods in shared.items():
        assert set(methods) == {"post"}, path
        body = methods["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[-1]
        assert not {"label_set", "collection"} & set(schema["components"]["schemas"][body]["properties"])
    assert text.count("proxy_pass http://clipworks_owner;") == 1


def test_nginx_takes_it(tmp_path: Path) -> None:
    nginx = program("nginx")
    temporary = " ".join(f"{name}_temp_path {tmp_path}/{name};" for name in ("client_body", "proxy"))
    rest = " ".join(f"{name}_temp_path {tmp_path}/{name};" for name in ("fastcgi", "uwsgi", "scgi"))
    http = f"access_log off; {temporary} {rest} include {FILE};"
    whole = f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ {http} }}"
    (tmp_path / "nginx.conf").write_text(whole, encoding="utf-8")
    done = subprocess.run([nginx, "-t", "-c", tmp_path / "nginx.conf"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
