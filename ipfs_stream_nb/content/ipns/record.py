"""IPNS records (https://specs.ipfs.tech/ipns/ipns-record/): what a key's owner signed about its name.

A record is used once every step of the specification's "Record Verification" is passed; what its protobuf says
beside the signed part is never used at all.
"""

from __future__ import annotations

import calendar
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import libipld

from ipfs_stream_nb.content.ipns.keys import PublicKey
from ipfs_stream_nb.content.ipns.name import Name
from ipfs_stream_nb.content.protobuf import BYTES, VARINT, fields
from ipfs_stream_nb.errors import CorruptContentError, NotFoundError

MEDIA_TYPE: Final = "application/vnd.ipfs.ipns-record"
MAX_RECORD: Final = 10 * 1024
"""Bytes of a record in its protobuf."""
SIGNATURE_PREFIX: Final = b"ipns-signature:"
EOL: Final = 0
"""The one validity type that there is: until a time."""
_SECOND: Final = 1_000_000_000
_MAX_UINT64: Final = 2**64 - 1
_FIELDS: Final = {
    1: ("value", BYTES),
    2: ("signatureV1", BYTES),
    3: ("validityType", VARINT),
    4: ("validity", BYTES),
    5: ("sequence", VARINT),
    6: ("ttl", VARINT),
    7: ("pubKey", BYTES),
    8: ("signatureV2", BYTES),
    9: ("data", BYTES),
}
_COPIES: Final = {
    "value": "Value",
    "validity": "Validity",
    "validityType": "ValidityType",
    "sequence": "Sequence",
    "ttl": "TTL",
}
"""The protobuf's fields that repeat one of the signed part."""
_TIME: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?(Z|[+-][0-9]{2}:[0-9]{2})"
)


class ExpiredRecordError(NotFoundError):
    """A record whose time is over: its owner does not stand by it any more."""


@dataclass(frozen=True, slots=True)
class Record:
    """A verified record. Of several, the greatest `rank` is the one that counts."""

    name: Name
    value: str
    """A path: /ipfs/… or /ipns/…."""
    sequence: int
    expires: int
    """Nanoseconds since the epoch."""
    ttl: float | None
    """Seconds for which it need not be asked for again; None where it does not say."""
    encoded: bytes = field(repr=False)
    """As it was received."""

    @property
    def rank(self) -> tuple[int, int, bytes]:
        """The later version first, then the longer valid one, then the greater in bytes, as boxo has it."""
        return self.sequence, self.expires, self.encoded

    @property
    def remaining(self) -> float:
        """Seconds for which it is still valid; negative when it is over."""
        return (self.expires - time.time_ns()) / _SECOND


def verify(name: Name, encoded: bytes) -> Record:
    """The record, if the name's owner signed it and it is still valid.

    Raises CorruptContentError for what is malformed or forged, and ExpiredRecordError.
    """
    try:
        record = _checked(name, encoded)
    except CorruptContentError as error:
        raise CorruptContentError(f"this is no valid IPNS record of {name}: {error}") from None
    if record.remaining <= 0:
        until = datetime.fromtimestamp(record.expires // _SECOND, UTC)
        raise ExpiredRecordError(
            f"the IPNS record of {name} was valid until {until:%Y-%m-%d %H:%M:%S} UTC only"
        )
    return record


def _checked(name: Name, encoded: bytes) -> Record:
    if len(encoded) > MAX_RECORD:
        raise CorruptContentError(f"it has {len(encoded):,} bytes, and {MAX_RECORD:,} are allowed")
    entry = _entry(encoded)
    for field_name in ("signatureV2", "data"):
        if not entry.get(field_name):
            raise CorruptContentError(f"it has no {field_name}")
    key = entry.get("pubKey") or name.inline_key
    if key is None:
        raise CorruptContentError("it lacks the public key, which is not in the name either")
    if not name.is_of(key):
        raise CorruptContentError("its public key is not the one of the name")
    signed = _signed(entry["data"])
    if not PublicKey.parse(key).signed(entry["signatureV2"], SIGNATURE_PREFIX + entry["data"]):
        raise CorruptContentError("its signature is not by the owner of the name")
    _compare(entry, signed)
    return _record(name, signed, encoded)


def _entry(encoded: bytes) -> dict[str, Any]:
    """The protobuf's fields by name; unknown ones are passed over."""
    entry: dict[str, Any] = {}
    for number, wire_type, first, stop in fields(encoded, 0, len(encoded)):
        if number not in _FIELDS:
            continue
        name, expected = _FIELDS[number]
        if wire_type != expected or name in entry:
            raise CorruptContentError(f"its field {name} is malformed, or there twice")
        entry[name] = first if wire_type == VARINT else encoded[first:stop]
    return entry


def _signed(data: bytes) -> dict[str, Any]:
    """The fields in the signed DAG-CBOR, whose types are checked."""
    try:
        signed = libipld.decode_dag_cbor(data)
    except (ValueError, RecursionError) as error:
        raise CorruptContentError(f"its data is not DAG-CBOR ({error})") from None
    if not isinstance(signed, dict):
        raise CorruptContentError("its data is not a map")
    for name, kind in (("Value", bytes), ("Validity", bytes), ("ValidityType", int), ("Sequence", int)):
        if type(signed.get(name)) is not kind:
            raise CorruptContentError(f"its data has no {name}, or one of another type")
    for name in ("Sequence", "TTL"):
        number = signed.get(name, 0)
        if type(number) is not int or not 0 <= number <= _MAX_UINT64:
            raise CorruptContentError(f"its {name} is not a number of 64 bits")
    if signed["ValidityType"] != EOL:
        raise CorruptContentError(f"its validity is of the type {signed['ValidityType']}, which is not known")
    return signed


def _compare(entry: dict[str, Any], signed: dict[str, Any]) -> None:
    """What old readers look at must say the same (verification, step 7)."""
    if not entry.get("signatureV1") and not entry.get("value"):
        return
    for name, signed_name in _COPIES.items():
        default: bytes | int = b"" if name in {"value", "validity"} else 0
        if entry.get(name, default) != signed.get(signed_name, default):
            raise CorruptContentError(f"its {name} is not the {signed_name} that was signed")


def _record(name: Name, signed: dict[str, Any], encoded: bytes) -> Record:
    try:
        value = signed["Value"].decode()
    except UnicodeDecodeError:
        value = ""
    if not value.startswith(("/ipfs/", "/ipns/")):
        raise CorruptContentError(f"its value {signed['Value'][:80]!r} is not a path below /ipfs/ or /ipns/")
    ttl = signed.get("TTL")
    return Record(
        name=name,
        value=value,
        sequence=signed["Sequence"],
        expires=_nanoseconds(signed["Validity"]),
        ttl=None if ttl is None else ttl / _SECOND,
        encoded=encoded,
    )


def _nanoseconds(validity: bytes) -> int:
    """Since the epoch, of a time by RFC 3339. Raises CorruptContentError."""
    match = _TIME.fullmatch(validity.decode("latin-1"))
    try:
        moment = datetime.fromisoformat(f"{match[1]}{match[3]}") if match else None
        seconds = calendar.timegm(moment.utctimetuple()) if moment else None
    except (ValueError, OverflowError):
        seconds = None
    if match is None or seconds is None:
        raise CorruptContentError(f"its validity {validity[:40]!r} is not a time by RFC 3339")
    return seconds * _SECOND + int((match[2] or "0").ljust(9, "0"))
