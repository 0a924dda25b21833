"""Uploads that outlive their process: what came of each is noted in the commit that stores its blocks.

A batch of an upload is noted like one of a transfer, with the upload's id as its owner, so that garbage collection
leaves it. The record beside it holds what a process needs to go on: the links of the DAG's open nodes and the bytes
of a leaf that is not full yet.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Self

from ipfs_stream_nb.content.blocks import gc, pins
from ipfs_stream_nb.content.blocks.environment import OPEN_WAIT, Environment
from ipfs_stream_nb.content.blocks.inserts import Limits, insert
from ipfs_stream_nb.content.blocks.records import batch_cids, batch_owner
from ipfs_stream_nb.content.cid import CID, BytesLike
from ipfs_stream_nb.content.importer import Levels, pack_levels, unpack_levels
from ipfs_stream_nb.errors import BusyError, CorruptContentError, NotFoundError

if TYPE_CHECKING:
    from ipfs_stream_nb.content.blocks.records import Txn

EMPTY_SECONDS: Final = 60.0
"""How long an upload without a byte is left alone where others need its place."""
RESULT_SECONDS: Final = 3600.0
"""How long the result of a finished upload is remembered."""
_LENGTH: Final = 4
"""Bytes of the length that stands before a record's JSON."""


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """One upload as it stands. Sizes are bytes."""

    id: bytes
    """Random: who knows it may go on with it."""
    name: str
    mime_type: str
    size: int | None
    """What the client declared; None where it did not."""
    profile: str
    durable: int = 0
    """Bytes from its start that are in the store, those of `tail` included."""
    levels: Levels = ((),)
    """The children of each open node (importer.DagBuilder)."""
    tail: bytes = field(default=b"", repr=False)
    """The bytes behind the last whole leaf."""
    generation: int = 1
    """How many times it was begun or resumed: whoever holds an older one has been replaced."""
    updated: float = field(default_factory=time.time)
    """Seconds since the epoch."""
    result: tuple[CID, int, int] | None = None
    """Root, content bytes and DAG bytes, once it is finished."""

    def pack(self) -> bytes:
        """The record in bytes."""
        facts = {
            "name": self.name,
            "mime_type": self.mime_type,
            "size": self.size,
            "profile": self.profile,
            "durable": self.durable,
            "generation": self.generation,
            "updated": self.updated,
            "result": None if self.result is None else [str(self.result[0]), *self.result[1:]],
        }
        texts = [json.dumps(value).encode() for value in (facts, pack_levels(self.levels))]
        return b"".join(len(text).to_bytes(_LENGTH, "big") + text for text in texts) + self.tail

    @classmethod
    def unpack(cls, key: bytes, raw: memoryview, *, whole: bool = True) -> Self:
        """The inverse of `pack`; unless `whole`, without levels and tail, which can be large."""
        start, end = _text(raw, 0)
        facts: dict[str, Any] = json.loads(bytes(raw[start:end]))
        if whole:
            start, end = _text(raw, end)
            facts |= {"levels": unpack_levels(json.loads(bytes(raw[start:end]))), "tail": bytes(raw[end:])}
        result = facts.pop("result")
        return cls(
            id=bytes(key),
            result=None if result is None else (CID.parse(result[0]), result[1], result[2]),
            **facts,
        )


def _text(raw: memoryview, at: int) -> tuple[int, int]:
    """Where the text begins and ends whose length stands at `at`."""
    start = at + _LENGTH
    return start, start + int.from_bytes(raw[at:start], "big")


class StoredUploads:
    """The uploads of one store. Synchronous and thread-safe."""

    def __init__(self, env: Callable[[], Environment], limits: Limits) -> None:
        self._of = env
        self._limits = limits

    def begin(self, record: UploadRecord, most: int) -> None:
        """Note a new one. Raises BusyError where `most` are not finished; those that are left without a byte make room."""
        env = self._of()

        def change(txn: Txn) -> None:
            unfinished = [one for one in _all(env, txn) if one.result is None]
            left = time.time() - EMPTY_SECONDS
            empty = [one for one in unfinished if not one.durable and one.updated < left]
            for one in empty if len(unfinished) >= most else ():
                txn.delete(one.id, db=env.db.uploads)
                unfinished.remove(one)
            if len(unfinished) >= most:
                raise BusyError(
                    f"{most} uploads are not finished, which is the limit: resume or cancel one, or wait until some expire"
                )
            _save(env, txn, record)

        env.update(change, len(record.tail))

    def resume(self, key: bytes) -> UploadRecord:
        """Take one over from whoever had it. Raises NotFoundError."""
        env = self._of()

        def change(txn: Txn) -> UploadRecord:
            found = _load(env, txn, key)
            if found is None:
                raise NotFoundError(
                    f"there is no upload {key.hex()}: it was cancelled, has expired, or is another server's"
                )
            taken = replace(found, generation=found.generation + 1, updated=time.time())
            _save(env, txn, taken)
            return taken

        return env.update(change)

    def checkpoint(self, record: UploadRecord, blocks: Sequence[tuple[CID, BytesLike]]) -> None:
        """Store the next blocks and the record in one commit: durable on return.

        Raises BusyError where somebody else has taken the upload over, NotFoundError where it was cancelled, and
        what `BlockStore.put` raises.
        """
        env = self._of()

        def note(txn: Txn) -> None:
            self._check(env, txn, record)
            _save(env, txn, replace(record, updated=time.time()))

        if blocks:
            insert(env, self._limits, blocks, verify=False, owner=record.id, also=note)
        else:
            env.update(note, len(record.tail))

    def finish(self, record: UploadRecord, *, pin: bool) -> None:
        """Keep the result alone, and pin its root if asked, in one commit. The record's blocks must be stored."""
        env = self._of()
        assert record.result is not None  # noqa: S101  # what is finished has one
        root = record.result[0]

        def change(txn: Txn) -> None:
            self._check(env, txn, record)
            _drop_notes(env, txn, record.id)
            if pin:
                pins.record(env, txn, root, record.name)
            _save(env, txn, replace(record, levels=(), tail=b"", updated=time.time()))

        with pins.reading(env, root):
            if pin:
                pins.take_tree(env, root)
            env.update(change)

    def all(self) -> list[UploadRecord]:
        """All that are noted, without levels and tails."""
        env = self._of()
        with env.read() as txn:
            return _all(env, txn)

    def discard(self, key: bytes, before: float | None = None, *, generation: int | None = None) -> bool:
        """Forget one, and delete those of its blocks that nothing else needs. False where there is none.

        `before`: only if nothing came for it since then; `generation`: only if it is not finished, and nobody has
        taken it over since.
        """
        env = self._of()

        def change(txn: Txn) -> tuple[bool, list[CID]]:
            raw = txn.get(key, db=env.db.uploads)
            known = None if raw is None else UploadRecord.unpack(key, raw, whole=False)
            if known is None:
                return False, []
            if before is not None and known.updated >= before:
                return False, []
            if generation is not None and (known.generation != generation or known.result is not None):
                return False, []
            cids = _drop_notes(env, txn, key)
            return txn.delete(key, db=env.db.uploads), cids

        known, cids = env.update(change)
        if cids:
            # where a pinned tree is damaged nobody knows what it needs: a later collection takes them
            with suppress(BusyError, CorruptContentError), gc.one_at_a_time(env, wait=OPEN_WAIT):
                gc.sweep(env, dict.fromkeys(cid.multihash for cid in cids))
        return known

    def expire(self, ttl: float, spared: Collection[bytes] = ()) -> int:
        """Discard those that nothing came for in `ttl` seconds, but for `spared`; gives how many.

        What is finished is only remembered for a client that missed its result: RESULT_SECONDS at the most.
        """
        now, gone = time.time(), 0
        for one in self.all():
            before = now - (ttl if one.result is None else min(ttl, RESULT_SECONDS))
            if one.updated < before and one.id not in spared:
                gone += self.discard(one.id, before)
        return gone

    def _check(self, env: Environment, txn: Txn, record: UploadRecord) -> None:
        raw = txn.get(record.id, db=env.db.uploads)
        if raw is None:
            raise NotFoundError(f"the upload {record.id.hex()} was cancelled, or has expired")
        if UploadRecord.unpack(record.id, raw, whole=False).generation != record.generation:
            raise BusyError(f"the upload {record.id.hex()} goes on over another connection")


def _load(env: Environment, txn: Txn, key: bytes) -> UploadRecord | None:
    raw = txn.get(key, db=env.db.uploads)
    return None if raw is None else UploadRecord.unpack(key, raw)


def _save(env: Environment, txn: Txn, record: UploadRecord) -> None:
    txn.put(record.id, record.pack(), db=env.db.uploads)


def _all(env: Environment, txn: Txn) -> list[UploadRecord]:
    return [UploadRecord.unpack(bytes(key), raw, whole=False) for key, raw in txn.cursor(env.db.uploads)]


def _drop_notes(env: Environment, txn: Txn, owner: bytes) -> list[CID]:
    """Delete the notes of an upload's batches; gives what was in them."""
    cids = []
    for key, raw in list(txn.cursor(env.db.transfers)):
        if batch_owner(raw) == owner:
            cids += batch_cids(raw)
            txn.delete(bytes(key), db=env.db.transfers)
    return cids
