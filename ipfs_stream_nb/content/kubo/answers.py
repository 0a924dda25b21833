"""What a daemon answered, taken apart with its shape checked: anything may listen on its port."""

from __future__ import annotations

import binascii
import json
import re
import reprlib
from collections.abc import Iterator
from typing import Any, Final

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.errors import BadCIDError, RetrievalError

MAX_PIN: Final = 4096
"""Bytes of one entry of pin/ls."""
MAX_TEXT: Final = 1000
"""Characters of a daemon's own words that our errors repeat."""
MAX_NUMBER: Final = 2**64
"""Kubo's numbers are below."""
_NO_PINS: Final = re.compile(rb'\s*(?:\{\s*(?:"Keys"\s*:\s*(?:\{\s*\}|null)\s*)?\}\s*)?')
_PINS_HEAD: Final = re.compile(rb'\s*+\{\s*+"Keys"\s*+:\s*+\{')
_PIN: Final = re.compile(
    rb'\s*+"([^"\\]{1,200})"\s*+:\s*+'  # the CID
    rb'(\{(?:[^{}"]++|"(?:[^"\\]++|\\.)*+")*+\})'  # an object without objects in it
    rb"\s*+(?:,|(\}\s*+\}\s*+\Z))",
    re.DOTALL,
)


class Answer:
    """A JSON object of a daemon's answer. What is not as Kubo has it raises RetrievalError.

    Where a `default` is given, it stands for what is null or not there.
    """

    __slots__ = ("_source", "plain")

    def __init__(self, plain: Any, source: str) -> None:
        """`source`: who answered what, for texts."""
        self._source = source
        self.plain: dict[str, Any] = plain
        """The object itself."""
        if not isinstance(plain, dict):
            raise self._wrong("is no object")

    @classmethod
    def parse(cls, data: bytes | bytearray, source: str) -> Answer:
        """Of JSON. On the event loop, so it is to be short: json holds the interpreter, on other threads as well."""
        try:
            return cls(json.loads(data), source)
        except (ValueError, RecursionError):
            raise _not_kubos(source, bytes(data[:100]), "is no JSON") from None

    def _wrong(self, why: str) -> RetrievalError:
        return _not_kubos(self._source, self.plain, why)

    def has(self, key: str) -> bool:
        """Whether it is there, and not null."""
        return self.plain.get(key) is not None

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        found = self._get(key, default)
        if not isinstance(found, str):
            raise self._wrong(f"has no text as {key}")
        try:
            found.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which could not be written anywhere
            raise self._wrong(f"has no text as {key}") from None
        return found

    def words(self, key: str) -> str:
        """A text for people, cut to a length that can be shown; "" where there is none."""
        return self.text(key, "")[:MAX_TEXT]

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number that is not negative, which Kubo writes as a text here and there."""
        found = self._get(key, default)
        if isinstance(found, str) and re.fullmatch("[0-9]{1,20}", found):
            found = int(found)
        if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < MAX_NUMBER:
            raise self._wrong(f"has no whole number as {key}")
        return found

    def flag(self, key: str) -> bool:
        """True or false; Kubo leaves out some that are false."""
        found = self._get(key, False)
        if not isinstance(found, bool):
            raise self._wrong(f"has neither true nor false as {key}")
        return found

    def base64(self, key: str) -> bytes:
        """Bytes in a text."""
        try:
            return binascii.a2b_base64(self.text(key), strict_mode=True)
        except ValueError:
            raise self._wrong(f"has no base64 as {key}") from None

    def any(self, key: str) -> Any:
        """Whatever it is, null as well."""
        if key not in self.plain:
            raise self._wrong(f"has no {key}")
        return self.plain[key]

    def cid(self, key: str) -> CID:
        """A CID in a text."""
        try:
            return CID.parse(self.text(key))
        except BadCIDError:
            raise self._wrong(f"has no CID as {key}") from None

    def part(self, key: str) -> Answer:
        """An object in it."""
        found = self._get(key, None)
        if not isinstance(found, dict):
            raise self._wrong(f"has no object as {key}")
        return Answer(found, self._source)

    def parts(self, key: str) -> list[Answer]:
        """A list of objects, which Go writes as null where it is empty."""
        found = self._get(key, [])
        if not isinstance(found, list):
            raise self._wrong(f"has no list as {key}")
        return [Answer(one, self._source) for one in found]

    def _get(self, key: str, default: Any) -> Any:
        found = self.plain.get(key)
        return default if found is None else found


def parse_pins(data: bytes, source: str) -> dict[CID, str]:
    """The roots and names of pin/ls, which may be very long: one after the other, so other threads go on meanwhile."""
    if _NO_PINS.fullmatch(data):
        return {}
    pins: dict[CID, str] = {}
    for cid, entry in _entries(data, source):
        pin = Answer.parse(entry, source)
        try:
            pins[CID.parse(cid.decode("ascii", "replace"))] = pin.text("Name", "")
        except BadCIDError:
            raise _not_kubos(source, cid, "is no CID") from None
    return pins


def _entries(data: bytes, source: str) -> Iterator[tuple[bytes, bytes]]:
    head = _PINS_HEAD.match(data)
    at = head.end() if head else 0
    while found := _PIN.match(data, at) if head else None:
        if len(found[2]) > MAX_PIN:
            break
        yield found[1], found[2]
        at = found.end()
        if found[3] is not None:
            return
    raise _not_kubos(source, data[at : at + 100], "is no list of pins")


def _not_kubos(source: str, found: Any, why: str) -> RetrievalError:
    return RetrievalError(f"{source} with something that is not Kubo's: {reprlib.repr(found)} {why}")
