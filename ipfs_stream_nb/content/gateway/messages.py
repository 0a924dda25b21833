"""The gateway's request and response, free of any HTTP framework, and the headers that all answers share."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol
from urllib.parse import quote

from ipfs_stream_nb.content import mime, ranges
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.errors import BadRequestError

CACHE_IMMUTABLE: Final = "max-age=29030400, immutable"
SANDBOX: Final = "default-src 'none'; sandbox"
"""The Content-Security-Policy of everything that a CID holds: no scripts, no loads, an origin of its own."""
MEDIA_SANDBOX: Final = "default-src 'none'; media-src 'self'; sandbox allow-same-origin"
"""The same for audio and video that is shown in place. A browser that opens its URL makes a page of its own around
it, which loads the URL again: SANDBOX alone would leave that player empty. It still runs no script."""
MAX_FILENAME: Final = 255
"""Characters of `?filename=`, as file systems have it."""

_FIELD_SAFE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_UNSAFE_IN_NAME: Final = re.compile(r"[\x00-\x1f\x7f-\x9f/\\\u2028\u2029\ud800-\udfff]")
_UNQUOTABLE: Final = re.compile(r'[^\x20-\x7e]|["%]')
_ATTR_CHARS: Final = "!#$&+-.^_`|~"  # RFC 8187, section 3.2.1, letters and digits aside


class Headers(Protocol):
    """Request headers: `get` must not mind the case, and joins repeated fields by commas."""

    def get(self, name: str, /) -> str | None:
        """The field's value."""


@dataclass(frozen=True, slots=True)
class GatewayRequest:
    """`path` begins with /ipfs/ or /ipns/ and is percent-encoded as on the wire; `query` is decoded.

    Credentials (`token`) must not be in `query`: redirects and links repeat it.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: Headers


@dataclass(frozen=True, slots=True)
class GatewayResponse:
    """An answer; header names are unique.

    `body` is None where there is none. It must be closed when it is left early; where it raises, the bytes
    sent so far are not the whole, and the connection must be broken.
    """

    status: int
    headers: list[tuple[str, str]]
    body: AsyncGenerator[bytes, None] | None = None


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """What a server may set."""

    public_cache: bool = False
    """Whether shared caches (a CDN in front) may keep answers; off, since answers may carry a cookie."""
    listing_entries: int = 1000
    """Entries on one page of a directory listing."""
    stored_ranges: bool = False
    """Whether bodies may have StoredRanges among their pieces (content/stored.py), where the node has them: for a
    server that sends them from where they lie."""

    @property
    def cache_scope(self) -> str:
        """The first word of Cache-Control."""
        return "public" if self.public_cache else "private"


class NotAcceptableError(BadRequestError):
    """The gateway specification's 406: a response format that this gateway does not have for the content."""

    status: ClassVar[int] = 406


class PreconditionFailedError(BadRequestError):
    """412: an If-Match that names another version, or only-if-cached for what is not here."""

    status: ClassVar[int] = 412


@dataclass(slots=True)
class Answer:
    """The headers of one answer on their way; `path` is the content path that was asked for.

    `max_age`: seconds for which it may be kept; None for ever, as what is below a CID.
    """

    request: GatewayRequest
    settings: GatewaySettings
    path: str
    max_age: int | None = None
    headers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.headers |= {
            "X-Ipfs-Path": self.path if _FIELD_SAFE.fullmatch(self.path) else quote(self.path, safe="/"),
            "Cache-Control": self._cache_control(CACHE_IMMUTABLE),
            "Content-Security-Policy": SANDBOX,
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
        }
        if "format" not in self.request.query:
            self.headers["Vary"] = "Accept"

    def _cache_control(self, lasting: str) -> str:
        return (
            f"{self.settings.cache_scope}, {lasting if self.max_age is None else f'max-age={self.max_age}'}"
        )

    def limit_age(self, seconds: int) -> None:
        """Let it be kept for so long at most."""
        self.max_age = seconds if self.max_age is None else min(self.max_age, seconds)
        self.headers["Cache-Control"] = self._cache_control("")

    @property
    def is_head(self) -> bool:
        """Whether headers alone are wanted."""
        return self.request.method == "HEAD"

    def set(self, **headers: Any) -> None:
        """Set headers; underscores in names stand for hyphens."""
        self.headers |= {name.replace("_", "-"): value for name, value in headers.items()}

    def set_roots(self, roots: Sequence[CID]) -> None:
        """X-Ipfs-Roots: the CID of each segment of the path."""
        self.headers["X-Ipfs-Roots"] = ",".join(map(str, roots))

    def set_disposition(self, mime_type: str, fallback: str, *, attachment: bool = False) -> None:
        """Content-Disposition: an attachment where `attachment`, `?download=true` or the type make it one.

        `fallback` names an attachment where there is no `?filename=`. The specification lets every type be
        inline; this gateway shares its origin with a notebook server, so only passive types are.
        """
        name = requested_filename(self.request)
        download = self.request.query.get("download") in {"true", "1"}
        if attachment or download or not mime.inline_allowed(mime_type):
            self.headers["Content-Disposition"] = content_disposition("attachment", name or fallback)
            return
        if name:
            self.headers["Content-Disposition"] = content_disposition("inline", name)
        if mime_type.startswith(("audio/", "video/")):
            self.headers["Content-Security-Policy"] = MEDIA_SANDBOX

    def precondition(self, etag: str) -> GatewayResponse | None:
        """Set the ETag; the 304 that If-None-Match asks for, or None to go on (RFC 9110, section 13.2.2).

        Dates are ignored, as section 13.1.3 has it where there is no modification date: content by CID does not
        change. Raises PreconditionFailedError for If-Match.
        """
        self.headers["ETag"] = etag
        if_match = self.request.headers.get("If-Match")
        if if_match is not None and not ranges.matches_strongly(if_match, etag):
            raise PreconditionFailedError(f"If-Match does not name the content's entity tag, which is {etag}")
        if ranges.matches_weakly(self.request.headers.get("If-None-Match"), etag):
            return self.respond(304)
        return None

    def respond(self, status: int, body: AsyncGenerator[bytes, None] | None = None) -> GatewayResponse:
        """The answer, without its body for HEAD."""
        headers = [(name, str(value)) for name, value in self.headers.items()]
        return GatewayResponse(status, headers, None if self.is_head else body)


def requested_filename(request: GatewayRequest) -> str:
    """`?filename=`, or nothing. Raises BadRequestError where it is too long."""
    name = request.query.get("filename", "")
    if len(name) > MAX_FILENAME:
        raise BadRequestError(f"filename has {len(name)} characters, and at most {MAX_FILENAME} are allowed")
    return name


def content_disposition(kind: str, filename: str) -> str:
    """The header (RFC 6266), with an ASCII name for old clients and filename* (RFC 8187) where that differs."""
    name = _UNSAFE_IN_NAME.sub("_", filename)
    plain = _UNQUOTABLE.sub("_", name)
    value = f'{kind}; filename="{plain}"'
    return value if plain == name else f"{value}; filename*=UTF-8''{quote(name, safe=_ATTR_CHARS)}"
