"""`?offset=` and `?length=`: which part of a file a stream is asked for."""

from __future__ import annotations

from typing import Final

from tornado.web import RequestHandler

from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.transports.stream import Part

MAX_DIGITS: Final = 20


def part_argument(handler: RequestHandler) -> Part:
    """The part that the query asks for. Raises BadRequestError."""
    return Part(_bytes(handler, "offset") or 0, _bytes(handler, "length"))


def _bytes(handler: RequestHandler, name: str) -> int | None:
    value = handler.get_query_argument(name, None)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= MAX_DIGITS):
        raise BadRequestError(f"{name} is a whole number of bytes, not {value[:80]!r}")
    return int(value)
