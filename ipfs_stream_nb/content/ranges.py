"""Range and conditional requests (RFC 9110, sections 13 and 14), and the framing of several ranges at once.

Pure functions over header texts: no I/O, no exception for any input. A Range header that is malformed, in an
unknown unit, or abusive is ignored, which makes the answer a plain 200 with the whole representation, as
section 14.2 has it; one that is well-formed but names nothing that is there is answered with 416.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

MAX_RANGES: Final = 64
"""Ranges served in one answer; a header with more is ignored (RFC 9110, section 17.15)."""
MAX_OVERLAP: Final = 2
"""How many of the ranges may cover one same byte; the RFC names more than two as a sign of abuse."""
MAX_UNORDERED_RANGES: Final = 8
"""How many ranges may come in any order; more than that are served in ascending order only."""

_BEYOND: Final = 10**20
"""Stands for any number of more digits: over every size that 64 bits can state."""
_BEYOND_DIGITS: Final = 20
_OWS: Final = " \t"
_SPEC: Final = re.compile(r"([0-9]*)-([0-9]*)")
_ENTITY_TAG: Final = re.compile(r'(W/)?"[\x21\x23-\x7e\x80-\U0010ffff]*"')


class ByteRange(NamedTuple):
    """`length` bytes (never 0) from offset `start`."""

    start: int
    length: int

    @property
    def last(self) -> int:
        """The offset of the last byte: HTTP's ranges include both ends."""
        return self.start + self.length - 1

    def content_range(self, size: int) -> str:
        """The Content-Range of this part of a representation of `size` bytes."""
        return f"bytes {self.start}-{self.last}/{size}"


def unsatisfied(size: int) -> str:
    """The Content-Range that goes with 416."""
    return f"bytes */{size}"


def parse_range(header: str | None, size: int) -> list[ByteRange] | None:
    """The ranges that a Range header asks of a representation of `size` bytes, clamped to it, in its order.

    None where the whole representation is the answer (no header, or one to ignore), an empty list where none
    of the ranges can be satisfied (416). A suffix range of an empty representation counts as satisfiable in
    RFC 9110, but no Content-Range can express it, so it is ignored.
    """
    specs = _range_specs(header)
    if specs is None:
        return None
    found = []
    for first, last in specs:
        if first is None:  # a suffix: the last `last` bytes
            start, stop = max(0, size - last), size
            if size == 0 and last > 0:
                return None
        else:
            start, stop = first, min(size, last + 1)
        if start < stop:
            found.append(ByteRange(start, stop - start))
    return None if _is_abusive(found) else found


def _range_specs(header: str | None) -> list[tuple[int | None, int]] | None:
    """(first, last) of each range, (None, length) for a suffix; None for a header that is to be ignored."""
    unit, equals, text = (header or "").strip(_OWS).partition("=")
    if not equals or unit.lower() != "bytes":
        return None
    if text[:1] in {" ", "\t"} and not text.lstrip(_OWS).startswith(","):
        return None  # blanks stand around commas only
    specs: list[tuple[int | None, int]] = []
    for element in text.split(","):
        spec = element.strip(_OWS)
        if not spec:  # empty list elements are allowed (RFC 9110, section 5.6.1.2)
            continue
        match = _SPEC.fullmatch(spec)
        if match is None or spec == "-":
            return None
        first, last = match[1].lstrip("0") or match[1][:1], match[2].lstrip("0") or match[2][:1]
        if first and last and (len(last), last) < (len(first), first):
            return None
        specs.append((_number(first) if first else None, _number(last) if last else _BEYOND))
    return specs or None


def _number(digits: str) -> int:
    """int() that no length of `digits` (without leading zeros) makes slow or raise."""
    return int(digits) if len(digits) <= _BEYOND_DIGITS else _BEYOND


def _is_abusive(ranges: Sequence[ByteRange]) -> bool:
    """What RFC 9110 (sections 14.2 and 17.15) lets a server take for a broken client or an attack."""
    if len(ranges) > MAX_RANGES:
        return True
    starts = [r.start for r in ranges]
    if len(ranges) > MAX_UNORDERED_RANGES and starts != sorted(starts):
        return True
    # an end sorts before a start at the same offset
    edges = sorted(edge for start, length in ranges for edge in ((start, 1), (start + length, -1)))
    depth = 0
    for _, step in edges:
        depth += step
        if depth > MAX_OVERLAP:
            return True
    return False


@dataclass(frozen=True, slots=True)
class Multipart:
    """A multipart/byteranges body (RFC 9110, section 14.6) before any of its content is read."""

    content_type: str
    length: int
    """Bytes of the whole body: Content-Length."""
    parts: tuple[tuple[bytes, ByteRange], ...]
    """What goes before each range's bytes, and the range."""
    tail: bytes
    """What goes after the last one."""


def multipart(ranges: Sequence[ByteRange], size: int, content_type: str) -> Multipart:
    """Frame several ranges. The boundary is random, so that no content can hold it on purpose."""
    boundary = secrets.token_hex(16)
    parts: list[tuple[bytes, ByteRange]] = []
    for part in ranges:
        head = f"--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: {part.content_range(size)}\r\n\r\n"
        parts.append(((f"\r\n{head}" if parts else head).encode("latin-1"), part))
    tail = f"\r\n--{boundary}--\r\n".encode()
    length = sum(len(head) + part.length for head, part in parts) + len(tail)
    return Multipart(f"multipart/byteranges; boundary={boundary}", length, tuple(parts), tail)


def matches_weakly(header: str | None, etag: str) -> bool:
    """Whether an If-None-Match header names this entity tag (`*` names any): weak comparison, so `W/` does
    not matter. A header that is not a list of entity tags names none."""
    if header is None:
        return False
    tags = _entity_tags(header)
    return tags is _ANY or etag.removeprefix("W/") in [tag.removeprefix("W/") for tag in tags]


def matches_strongly(header: str, etag: str) -> bool:
    """Whether an If-Match header names this entity tag (`*` names any): strong comparison."""
    tags = _entity_tags(header)
    return tags is _ANY or (etag in tags and not etag.startswith("W/"))


def range_applies(if_range: str | None, etag: str) -> bool:
    """Whether an If-Range header lets a Range be answered: no header, or exactly this strong entity tag.

    A date never does, since no Last-Modified is ever sent that it could equal (RFC 9110, section 13.1.5).
    """
    return if_range is None or (if_range.strip(_OWS) == etag and not etag.startswith("W/"))


_ANY: Final = ("*",)


def _entity_tags(header: str) -> tuple[str, ...]:
    text = header.strip(_OWS)
    if text == "*":
        return _ANY
    tags = []
    at = 0
    while at < len(text):
        if text[at] in ", \t":
            at += 1
            continue
        match = _ENTITY_TAG.match(text, at)
        if match is None:
            return ()
        tags.append(match[0])
        at = match.end()
        if at < len(text) and text[at] not in ", \t":
            return ()
    return tuple(tags)
