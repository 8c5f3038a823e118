"""Hits as one HTML page with thumbnails inside it: no scripts, nothing fetched, every text escaped."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from html import escape
from typing import Any

from clipworks.cli.index_sources import RESERVED, read_picture
from clipworks.errors import UnreadableInput
from clipworks.results import Hit, Hits

_THUMBNAIL_PX = 360
_QUALITY = 82
# Shown under the picture, for those who must be named; other metadata is one click away.
CREDITS = ("author", "credit", "attribution", "licence", "license")
_STYLE = """
:root { color-scheme: light dark; --line: #d5d8dd; --soft: #5c6470; --card: #fff; --page: #f3f4f6; --ink: #15181d;
  --bar: #2f6fde; }
@media (prefers-color-scheme: dark) { :root { --line: #343a43; --soft: #a2abb8; --card: #1d2127; --page: #121519;
  --ink: #e8ebef; --bar: #7aa7f5; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0 0 .2rem; font-size: 1.35rem; overflow-wrap: anywhere; }
header p { margin: 0 0 1.2rem; color: var(--soft); }
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); align-items: start; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; background: var(--card); overflow: hidden; }
.picture { display: grid; place-items: center; height: 200px; background: var(--page); }
.picture img { width: 100%; height: 200px; object-fit: contain; display: block; }
.picture span { padding: 1rem; color: var(--soft); text-align: center; overflow-wrap: anywhere; }
figcaption { padding: .6rem .75rem .7rem; }
.score { display: flex; gap: .5rem; align-items: baseline; font-variant-numeric: tabular-nums; }
.score b { color: var(--bar); }
.id, .credit { overflow-wrap: anywhere; }
.credit, details { color: var(--soft); font-size: 12px; }
summary { cursor: pointer; }
dl { margin: .3rem 0 0; display: grid; grid-template-columns: auto 1fr; gap: .1rem .6rem; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
"""


def contact_sheet(found: Hits, *, title: str, collection: str, offset: int = 0) -> str:
    """A whole page. Pictures are read from the paths in the metadata, and shown only if they are still the same."""
    how = "exact" if found.exact else "approximate: a better item may have been missed"
    count = f"{len(found.hits)} item{'' if len(found.hits) == 1 else 's'}"
    figures = "\n".join(_figure(hit, place) for place, hit in enumerate(found.hits, start=offset + 1))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{_text(title)}</h1><p>{count} of {_text(collection)}, {how}</p></header>
<main>
{figures or "<p>Nothing found.</p>"}
</main>
</body>
</html>
"""


def _figure(hit: Hit, place: int) -> str:
    try:
        picture = f'<img src="{_thumbnail(hit.metadata)}" alt="{_text(hit.id)}">'
    except (OSError, UnreadableInput) as error:
        picture = f"<span>{_text(_reason(error))}</span>"
    credits = [f"{key}: {hit.metadata[key]}" for key in CREDITS if hit.metadata.get(key)]
    credit = f'<div class="credit">{_text(" · ".join(credits))}</div>' if credits else ""
    return (
        f'<figure><div class="picture">{picture}</div><figcaption>'
        f'<div class="score"><span>{place}</span><b>{hit.score:.4f}</b></div>'
        f'<div class="id">{_text(hit.id)}</div>{credit}{_details(hit.metadata)}</figcaption></figure>'
    )


def _details(metadata: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in metadata.items() if key not in CREDITS}
    if not shown:
        return ""
    ordered = sorted(shown, key=lambda key: key in RESERVED)
    rows = "".join(f"<dt>{_text(key)}</dt><dd>{_text(_value(shown[key]))}</dd>" for key in ordered)
    return f"<details><summary>metadata</summary><dl>{rows}</dl></details>"


def _thumbnail(metadata: Mapping[str, Any]) -> str:
    """A data address. Raises OSError or UnreadableInput: no picture, or not the one that was indexed."""
    data = read_picture(metadata)
    if hashlib.sha256(data).hexdigest() != metadata.get("sha256"):
        raise UnreadableInput("the file changed since it was indexed")
    from model_store.errors import InputError
    from model_store.modality.image import decode_preview

    try:
        drawn = decode_preview(data, _THUMBNAIL_PX)
    except InputError as error:
        raise UnreadableInput(f"not a picture that can be drawn: {error}") from error
    sink = io.BytesIO()
    drawn.save(sink, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode("ascii")


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(value: str) -> str:
    """Escaped; a lone surrogate, which no page can hold, becomes a question mark."""
    return escape(value.encode("utf-8", "replace").decode("utf-8"), quote=True)
