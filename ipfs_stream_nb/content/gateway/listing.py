"""Directory listings as a web page and as JSON. Everything that content supplies is escaped; no script is used."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final
from urllib.parse import quote, urlencode

from ipfs_stream_nb.content.gateway.negotiation import ContentPath
from ipfs_stream_nb.content.node import Entry

VERSION: Final = 1
"""Part of the listing's ETag: to be raised with every change to the page, so that caches do not keep old ones."""

_STYLE: Final = """
:root{color-scheme:light dark;font:15px/1.5 system-ui,sans-serif}
body{max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.25rem;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%}
caption{text-align:left;color:GrayText;padding-bottom:.5rem}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid color-mix(in srgb,currentColor 15%,transparent)}
td:first-child{overflow-wrap:anywhere}
th:last-child,td:last-child{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
code{font-size:.85em}
"""
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'self'; sandbox allow-downloads"
)
"""The page is ours, so it may have its own style, and its links may lead to downloads; it still runs nothing."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a directory's entries, counted from 1."""

    path: ContentPath
    cid: str
    entries: Sequence[Entry]
    number: int
    has_more: bool
    query: dict[str, str]


def as_json(page: Page) -> bytes:
    """The listing for programs; `size` is the entry's Tsize in bytes, `next_page` null on the last page."""
    listing = {
        "cid": page.cid,
        "path": page.path.text,
        "page": page.number,
        "next_page": page.number + 1 if page.has_more else None,
        "entries": [{"name": e.name, "cid": str(e.cid), "size": e.size} for e in page.entries],
    }
    return json.dumps(listing).encode()


def as_html(page: Page) -> bytes:
    """The listing for people: a table with relative links only, good at any base URL."""
    title = _text(f"Index of {page.path.text}")
    rows = [_row(entry, page.path.to_content) for entry in page.entries]
    if page.path.names:
        rows.insert(0, '<tr><td><a href="../">../</a> (parent directory)</td><td></td><td></td></tr>')
    if not page.entries and page.number == 1:
        rows.append('<tr><td colspan="3">This directory is empty.</td></tr>')
    table = "".join(f"{row}\n" for row in rows)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<table>
<caption>CID <code>{_text(page.cid)}</code></caption>
<thead><tr><th scope="col">Name</th><th scope="col">CID</th><th scope="col">Size with blocks</th></tr></thead>
<tbody>
{table}</tbody>
</table>
{_pager(page)}</main>
</body>
</html>
""".encode()


def _row(entry: Entry, to_content: str) -> str:
    name, cid = entry.name, str(entry.cid)
    link = f"{to_content}{cid}?{urlencode({'filename': name})}"
    short = f"{cid[:6]}…{cid[-6:]}" if len(cid) > 16 else cid
    return (
        f'<tr><td><a href="./{quote(name, safe="")}"><bdi>{_text(name)}</bdi></a></td>'
        f'<td><a href="{_text(link)}" title="{cid}"><code>{short}</code></a></td>'
        f'<td><data value="{entry.size}">{human_size(entry.size)}</data></td></tr>'
    )


def _pager(page: Page) -> str:
    links = []
    for number, label, there in (
        (page.number - 1, "Previous page", page.number > 1),
        (page.number + 1, "Next page", page.has_more),
    ):
        if there:
            query = urlencode(page.query | {"page": str(number)})
            links.append(f'<a href="?{_text(query)}">{label}</a>')
    if not links:
        return ""
    return f'<nav aria-label="Pages"><p>Page {page.number} · {" · ".join(links)}</p></nav>\n'


def _text(text: str) -> str:
    """Text for HTML: escaped, and with the control characters replaced that HTML cannot hold."""
    return escape(_CONTROLS.sub("\ufffd", text))


def human_size(size: int) -> str:
    """Bytes as people read them: `1.5 MiB`."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{size} B"
