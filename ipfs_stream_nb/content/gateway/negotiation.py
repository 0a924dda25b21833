"""What a request asks for: the content path behind its URL, and the response format."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, unquote_to_bytes, urlencode

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.gateway.messages import GatewayRequest, NotAcceptableError
from ipfs_stream_nb.errors import BadRequestError

FORMATS: Final = {
    "raw": "application/vnd.ipld.raw",
    "car": "application/vnd.ipld.car",
    "dag-json": "application/vnd.ipld.dag-json",
    "dag-cbor": "application/vnd.ipld.dag-cbor",
    "json": "application/json",
    "cbor": "application/cbor",
    "tar": "application/x-tar",
    "ipns-record": "application/vnd.ipfs.ipns-record",
}
"""The specification's names for `?format=`, and their media types."""
_BY_TYPE: Final = {media: name for name, media in FORMATS.items() if name not in {"json", "cbor"}}
_VENDOR: Final = ("application/vnd.ipld.", "application/vnd.ipfs.")
_ESCAPES: Final = re.compile(rb"(?:[^%]|%[0-9A-Fa-f]{2})*")
_WEIGHT: Final = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")


@dataclass(frozen=True, slots=True)
class ContentPath:
    """A decoded content path. `names` are those below the root; `slash` tells of one at the end."""

    namespace: str
    """"ipfs" or "ipns"."""
    root: str
    """A CID's text, or a name's."""
    names: tuple[str, ...]
    slash: bool
    depth: int
    """Slashes after /ipfs/: how many levels a relative link must go up to get back to /ipfs/."""
    target: str = ""
    """What a name stands for, without /ipfs/ before it."""

    @property
    def node_path(self) -> str:
        """The path as nodes take it, below a CID."""
        return "/".join((self.target or self.root, *self.names))

    @property
    def cid(self) -> CID:
        """The CID that it begins with. Raises BadCIDError."""
        return CID.parse(self.node_path.partition("/")[0])

    @property
    def is_root(self) -> bool:
        """Whether it is a CID alone, with no names below it."""
        return "/" not in self.node_path

    @property
    def text(self) -> str:
        """The path as users write it."""
        return "/".join(("", self.namespace, self.root, *self.names, *([""] if self.slash else [])))

    @property
    def to_content(self) -> str:
        """A reference from it to /ipfs/."""
        return "../" * self.depth + ("../ipfs/" if self.namespace == "ipns" else "")

    def relative(self, query: dict[str, str], *, slash: bool) -> str:
        """A reference to this same path from itself, with another query, good at any base URL."""
        last = "" if self.slash else quote(self.names[-1] if self.names else self.root, safe="")
        end = "/" if slash and not self.slash else ""
        return f"./{last}{end}" + (f"?{urlencode(query)}" if query else "")


def parse_path(raw: str) -> ContentPath:
    """Decode the path of a URL, segment by segment. Empty segments are dropped, as boxo's gateway drops them.

    Raises BadRequestError for other namespaces, broken percent escapes, an encoded slash in a segment, and
    names that are not UTF-8. What names may not be (`..`, NUL) and what a CID is, the node checks.
    """
    namespace = raw[1:5]
    if not raw.startswith(("/ipfs/", "/ipns/")):
        raise BadRequestError("the gateway's paths are /ipfs/<cid>[/name…] and /ipns/<name>[/name…]")
    below = raw[len("/ipfs/") :]
    root, *names = [_decode(segment) for segment in below.split("/")]
    if root in {"ipfs", "ipns"}:
        raise BadRequestError(f"the path says /{namespace}/{root}/ where a CID or name must stand")
    slash = bool(names) and names[-1] == ""
    return ContentPath(namespace, root, tuple(name for name in names if name), slash, below.count("/"))


def _decode(segment: str) -> str:
    try:
        octets = segment.encode("latin-1")  # HTTP libraries hand out the URL's bytes as Latin-1
    except UnicodeEncodeError:
        raise BadRequestError(f"{segment!r} must be percent-encoded in a URL") from None
    if _ESCAPES.fullmatch(octets) is None:
        raise BadRequestError(f"{segment!r} has a % that is not followed by two hexadecimal digits")
    try:
        name = unquote_to_bytes(octets).decode()
    except UnicodeDecodeError:
        raise BadRequestError(
            f"{segment!r} is not UTF-8; names that are not cannot be asked for by path"
        ) from None
    if "/" in name:
        raise BadRequestError(f"{segment!r} holds an encoded slash, which no name can have")
    return name


@dataclass(frozen=True, slots=True)
class Choice:
    """The response format: a key of FORMATS, or "" for the content itself."""

    format: str
    params: dict[str, str] = field(default_factory=dict)
    """Of the media type in Accept, where that is the format."""
    by_accept: bool = False
    prefers_json: bool = False
    """Whether a directory should be listed as JSON."""


def choose_format(request: GatewayRequest) -> Choice:
    """`?format=` decides (IPIP-523); without it, Accept does, weighted (RFC 9110, section 12.5.1).

    A vendor type wins over generic types of the same weight. Types that are not the gateway's (image/*, text/html)
    all mean the content itself. Raises BadRequestError for an unknown `format`, and NotAcceptableError
    where Accept lets through nothing but vendor types that are not known here.
    """
    accepted = _accepted(request.headers.get("Accept") or "")
    wanted = request.query.get("format", "")
    if wanted and wanted not in FORMATS:
        raise BadRequestError(f"format {wanted[:40]!r} is not known; there are {', '.join(FORMATS)}")
    if wanted:
        params = next((params for media, params, _ in accepted if media == FORMATS[wanted]), {})
        return Choice("" if wanted == "json" else wanted, params, prefers_json=wanted == "json")
    generic = max((weight for media, _, weight in accepted if not _is_vendor(media)), default=0.0)
    known = [entry for entry in accepted if entry[0] in _BY_TYPE and entry[2] >= generic]
    if known:
        media, params, _ = max(known, key=lambda entry: entry[2])
        return Choice(_BY_TYPE[media], params, by_accept=True)
    if accepted and not generic:
        raise NotAcceptableError(
            f"none of the types in Accept can be had; the gateway has {', '.join(FORMATS.values())}"
        )
    weights = {media: weight for media, _, weight in reversed(accepted)}
    json, html = weights.get("application/json", 0.0), weights.get("text/html", 0.0)
    return Choice("", prefers_json=json > html)


def content_location(request: GatewayRequest, path: ContentPath, choice: Choice) -> str:
    """Where a format that Accept chose can be had by URL alone, for caches that do not look at Accept."""
    params = {f"{choice.format}-{name}": value for name, value in choice.params.items()}
    return path.relative(params | request.query | {"format": choice.format}, slash=False)


def _is_vendor(media: str) -> bool:
    return media.startswith(_VENDOR) or media in _BY_TYPE


def _accepted(header: str) -> list[tuple[str, dict[str, str], float]]:
    """(media type, parameters, weight) of each acceptable entry; what cannot be read is left out."""
    entries = []
    for element in header.split(","):
        media, *rest = [part.strip() for part in element.split(";")]
        pairs = [part.partition("=") for part in rest]
        params = {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs if value}
        weight = params.pop("q", "1")
        if "/" in media and _WEIGHT.fullmatch(weight) and float(weight) > 0:
            entries.append((media.lower(), params, float(weight)))
    return entries
