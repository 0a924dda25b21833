"""What the store writes beside its blocks: counters, pins, transfers and provenance, in bytes."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Final, Self

from ipfs_stream_nb.content.blocks.leases import OWNER_BYTES, pack_cids, unpack_cids
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.node import Pin

if TYPE_CHECKING:
    import lmdb

    Txn = lmdb.Transaction[memoryview]
    Database = lmdb._Database  # noqa: SLF001 - the only name that this type has

_COUNTERS: Final = struct.Struct("<QQQQ")
_SEQUENCE: Final = struct.Struct(">Q")  # big-endian, so that keys sort by number
_FETCHED: Final = struct.Struct("<QIId")


@dataclass(slots=True)
class _Counters:
    """Four numbers in `meta`, changed in the same transaction as what they count."""

    KEY: ClassVar[bytes]

    @classmethod
    def load(cls, txn: Txn, meta: Database) -> Self:
        """Read the counters."""
        raw = txn.get(cls.KEY, db=meta)
        return cls() if raw is None else cls(*_COUNTERS.unpack(raw))

    def save(self, txn: Txn, meta: Database) -> None:
        """Write the counters."""
        txn.put(self.KEY, _COUNTERS.pack(*(getattr(self, field.name) for field in fields(self))), db=meta)


@dataclass(slots=True)
class State(_Counters):
    """The counters of all blocks."""

    KEY = b"state"

    blocks: int = 0
    bytes: int = 0
    protected: int = 0
    """Grows with every pin and every batch of blocks: tells garbage collection what it has not marked yet."""
    pinned: int = 0
    """The value of `protected` at the last pin."""


@dataclass(slots=True)
class CacheState(_Counters):
    """The counters of those blocks that may be evicted, which `State` counts as well."""

    KEY = b"cache"

    blocks: int = 0
    bytes: int = 0
    uses: int = 0
    """The last use number that was given out."""
    evictions: int = 0
    """Grows whenever something is evicted: tells a pin whether the tree that it found can still be whole."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """Where a block came from, and whether it may be evicted."""

    use: int
    """The number of its last use, by which `uses` has it; 0 where it may not be evicted (any more)."""
    size: int
    source: int
    """The number of its source in `sources`."""
    time: float
    """Seconds since the epoch at which it was stored."""

    def pack(self) -> bytes:
        """The record in bytes."""
        return _FETCHED.pack(self.use, self.size, self.source, self.time)

    @classmethod
    def unpack(cls, raw: memoryview) -> Self:
        """The inverse of `pack`."""
        return cls(*_FETCHED.unpack(raw))


@dataclass(frozen=True, slots=True)
class PinRecord:
    """A pin with its place in time: `order` from its first making, `sequence` from its last."""

    pin: Pin
    order: int
    sequence: int

    def pack(self) -> bytes:
        """The record in bytes."""
        pin = self.pin
        fields = {"cid": str(pin.cid), "name": pin.name, "created": pin.created}
        return json.dumps(fields | {"order": self.order, "sequence": self.sequence}).encode()

    @classmethod
    def unpack(cls, raw: memoryview) -> Self:
        """The inverse of `pack`."""
        fields = json.loads(bytes(raw))
        pin = Pin(CID.parse(fields["cid"]), name=fields["name"], created=fields["created"])
        return cls(pin, fields["order"], fields["sequence"])


def pin_key(cid: CID) -> bytes:
    """One key for both versions of a CID: they name the same tree."""
    return bytes(cid.v1())


def sequence_key(sequence: int) -> bytes:
    """The key of a transfer's batch, or of a use."""
    return _SEQUENCE.pack(sequence)


def pack_batch(owner: bytes, cids: list[CID]) -> bytes:
    """What one commit of a transfer put in, and whose it is."""
    return owner + pack_cids(cids)


def batch_owner(raw: memoryview) -> bytes:
    """The owner of a batch."""
    return bytes(raw[:OWNER_BYTES])


def batch_cids(raw: memoryview) -> list[CID]:
    """The CIDs of a batch."""
    return unpack_cids(bytes(raw[OWNER_BYTES:]))


def raw_cid(multihash: bytes) -> CID:
    """A CID for a key of the store; the codec is not known there, so it is raw. BadCIDError for what is no key."""
    return CID.parse(b"\x01\x55" + multihash)
