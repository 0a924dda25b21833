"""What names content for a client: texts as people paste them, CIDs and results, brought to the node's paths."""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.ipns.name import Name, parse_name
from ipfs_stream_nb.content.node import Path
from ipfs_stream_nb.content.resolver import check_names, ipns_name_of, parse_path
from ipfs_stream_nb.errors import BadCIDError, BadRequestError

SHOWN: Final = 80
"""Characters of a text that an error repeats."""
_BEGINNINGS: Final = ("bafy", "bafk", "Qm")


class HasCID(Protocol):
    """A result that names content: Added, Stat, Entry, Pin."""

    @property
    def cid(self) -> CID:
        """What it names."""


Content = str | CID | HasCID
"""Whatever names content: a CID or its text, `<cid>/name…`, `/ipfs/…`, `ipfs://…`, `/ipns/…`, a gateway's URL, or a
result."""


def path_of(content: Content) -> Path:
    """The node's path for it.

    White space around a text is dropped. Of a gateway's URL (https://specs.ipfs.tech/http-gateways/), path or
    subdomain form, only the CID and the path are taken: the gateway is not asked. Raises BadRequestError for other
    things, which tells how a local file gets a CID.
    """
    if isinstance(content, CID):
        return content
    if isinstance(content, str):
        return _path_of_text(content)
    cid = getattr(content, "cid", None)
    if isinstance(cid, CID):
        return cid
    if isinstance(content, PurePath):
        raise BadRequestError(_add_first(str(content)))
    raise BadRequestError(
        f"{content!r} is not a CID or a path that starts with one; client.add gives the CID of local content"
    )


def _path_of_text(content: str) -> str:
    text = content.strip()
    if text.lower().startswith(("http://", "https://")):
        return _path_of_url(text)
    if ipns_name_of(text) is not None:
        return _below_name(text)
    if text.startswith("ipfs:///"):
        text = text.removeprefix("ipfs:///")
    try:
        parse_path(text)
    except BadCIDError:
        if not text.startswith(_BEGINNINGS) and _is_local(text):
            raise BadCIDError(_add_first(text)) from None
        raise
    return text


def _path_of_url(url: str) -> str:
    """The path in a gateway's URL, its percent escapes decoded."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").split(".")
    except ValueError:
        parts, host = None, []
    if parts is not None and len(host) > 2 and host[1] == "ipns":
        return _below_name(f"/ipns/{_of_label(host[0])}{unquote(parts.path)}")
    if parts is not None and parts.path.startswith("/ipns/"):
        return _below_name(unquote(parts.path))
    if parts is None:
        names = ""
    elif len(host) > 2 and host[1] == "ipfs":
        names = host[0] + parts.path
    else:
        names = parts.path.partition("/ipfs/")[2]
    if not names:
        raise BadRequestError(
            f"{url.partition('?')[0][:SHOWN]!r} names no content: a gateway's URL looks like https://<gateway>/ipfs/<cid>/… or"
            " https://<cid>.ipfs.<gateway>/…; other sites are not read, and only local files can be added"
        )
    path = unquote(names)
    parse_path(path)
    return path


def _below_name(text: str) -> str:
    """A path below an IPNS name, as nodes take it. Raises BadRequestError."""
    name = ipns_name_of(text) or ""
    names = [part for part in text.split(name, 1)[1].split("/") if part] if name else []
    parse_name(name)
    check_names(names)
    return "/".join(["/ipns", name, *names])


def _of_label(label: str) -> str:
    """A name out of a DNS label: domains have their dots as dashes there, and dashes doubled."""
    try:
        Name.parse(label)
    except BadRequestError:
        return label.replace("--", "\0").replace("-", ".").replace("\0", "-")
    return label


def _is_local(text: str) -> bool:
    """Whether a text that is no CID is meant as a file of this machine."""
    if text.startswith(("ipfs://", "/ipfs/", "ipfs/", "ipns://")):
        return False
    try:
        return "." in text or "/" in text or os.sep in text or os.path.exists(os.path.expanduser(text))  # noqa: PTH110, PTH111  # a text, not a path
    except ValueError:  # it holds a NUL
        return False


def _add_first(text: str) -> str:
    shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    try:
        is_directory = os.path.isdir(os.path.expanduser(text))  # noqa: PTH112, PTH111  # a text, not a path
        exists = is_directory or os.path.exists(os.path.expanduser(text))  # noqa: PTH110, PTH111  # a text, not a path
    except ValueError:
        exists = is_directory = False
    kind = "directory" if is_directory else "file"
    if exists:
        return f"{shown!r} is a local {kind}, not a CID; add it first: client.add({shown!r})"
    return f"{shown!r} is not a CID; if a local file is meant, add it first: client.add({shown!r})"
