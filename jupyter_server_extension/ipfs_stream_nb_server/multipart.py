"""multipart/form-data (RFC 7578) as a stream of parts: a push parser that keeps nothing but a part's headers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ipfs_stream_nb.errors import BadRequestError, TooLargeError

MAX_PARTS: Final = 50_000
"""Parts of one body; each file of a directory is one."""
MAX_PART_HEADERS: Final = 16
MAX_HEADER_BYTES: Final = 8192
"""Bytes of all header lines of a part together."""
MAX_NAME: Final = 4096
"""Bytes of a file's relative path."""
_ESCAPES: Final = ((b"%22", b'"'), (b"%0D", b"\r"), (b"%0A", b"\n"))
"""What browsers write for the characters that would end a filename (HTML standard, form submission)."""


@dataclass(frozen=True, slots=True)
class PartBegin:
    """A file begins. `name` is its relative path, checked for length and text only."""

    name: str
    content_type: str


@dataclass(frozen=True, slots=True)
class PartData:
    """Some of the file's bytes."""

    data: memoryview


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The file is whole."""


Event = PartBegin | PartData | PartEnd


class MultipartReader:
    """Fed the body in pieces of any size, gives what they complete."""

    def __init__(self, content_type: str) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if not boundary:
            raise BadRequestError("a multipart/form-data body needs a boundary in its Content-Type")
        self._events: list[Event] = []
        self._headers: dict[bytes, bytes] = {}
        self._field = bytearray()
        self._value = bytearray()
        self._header_bytes = 0
        self._parts = 0
        self._ended = False
        try:
            self._parser = MultipartParser(boundary, self._callbacks())  # type: ignore[arg-type]
        except FormParserError as error:
            raise BadRequestError(f"bad multipart boundary: {error}") from None

    def _callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": lambda data, start, end: self._on_header(self._field, data, start, end),
            "on_header_value": lambda data, start, end: self._on_header(self._value, data, start, end),
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": lambda data, start, end: self._events.append(
                PartData(memoryview(data)[start:end])
            ),
            "on_part_end": lambda: self._events.append(PartEnd()),
            "on_end": self._on_end,
        }

    def feed(self, data: bytes) -> list[Event]:
        """The next bytes of the body. Raises BadRequestError and TooLargeError."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise BadRequestError(f"the body is not multipart/form-data as announced: {error}") from None
        events, self._events = self._events, []
        return events

    def finish(self) -> None:
        """Say that the body is over. Raises BadRequestError where its closing boundary is missing."""
        if not self._ended:
            raise BadRequestError("the multipart body ends before its closing boundary")

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise TooLargeError(f"over {MAX_PARTS} parts in one body; add a directory of that size as a CAR")
        self._headers.clear()
        self._header_bytes = 0

    def _on_header(self, target: bytearray, data: bytes, start: int, end: int) -> None:
        self._header_bytes += end - start
        if self._header_bytes > MAX_HEADER_BYTES:
            raise TooLargeError(f"a part has over {MAX_HEADER_BYTES} bytes of headers")
        target += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[bytes(self._field).strip().lower()] = bytes(self._value).strip()
        self._field.clear()
        self._value.clear()
        if len(self._headers) > MAX_PART_HEADERS:
            raise TooLargeError(f"a part has over {MAX_PART_HEADERS} headers")

    def _on_headers_finished(self) -> None:
        content_type = self._headers.get(b"content-type", b"").decode("latin-1")
        self._events.append(PartBegin(self._name(), content_type.partition(";")[0].strip().lower()))

    def _name(self) -> str:
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        raw = options.get(b"filename")
        if kind != b"form-data" or not raw:
            raise BadRequestError(
                f"part {self._parts} is not a file: it has no filename in Content-Disposition"
            )
        if len(raw) > MAX_NAME:
            raise BadRequestError(
                f"the filename of part {self._parts} has {len(raw)} bytes; at most {MAX_NAME} do"
            )
        for escape, character in _ESCAPES:
            raw = raw.replace(escape, character)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise BadRequestError(f"the filename of part {self._parts} is not UTF-8") from None

    def _on_end(self) -> None:
        self._ended = True
