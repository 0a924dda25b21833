"""Where the blocks of a tree came from."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ipfs_stream_nb.content.blocks.cache import HERE, source_names
from ipfs_stream_nb.content.blocks.environment import Environment
from ipfs_stream_nb.content.blocks.records import Fetched
from ipfs_stream_nb.content.blocks.walk import Walk
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.node import Origin, Origins

if TYPE_CHECKING:
    from ipfs_stream_nb.content.blocks.records import Txn

_READ_AT_ONCE: Final = 4096


@dataclass(slots=True)
class _Sum:
    blocks: int = 0
    bytes: int = 0
    last: float | None = None


def origins(env: Environment, root: CID) -> Origins:
    """Walk what is here below `root`, and sum it up by source, the one with the most bytes first."""
    walk = Walk(env, limited=True)
    walk.add(root, whole=False)
    sums: dict[str, _Sum] = {}
    keys = iter(walk.codecs)
    while some := list(itertools.islice(keys, _READ_AT_ONCE)):
        with env.read() as txn:
            _count(env, txn, some, sums)
    found = [Origin(source, sum_.blocks, sum_.bytes, sum_.last) for source, sum_ in sums.items()]
    found.sort(key=lambda origin: (-origin.bytes, origin.source))
    return Origins(root, tuple(found), walk.missing)


def _count(env: Environment, txn: Txn, keys: list[bytes], sums: dict[str, _Sum]) -> None:
    names = source_names(env, txn)
    for key in keys:
        block = txn.get(key, db=env.db.blocks)
        if block is None:  # collected or evicted since it was found
            continue
        raw = txn.get(key, db=env.db.fetched)
        fetched = None if raw is None else Fetched.unpack(raw)
        entry = sums.setdefault(HERE if fetched is None else names[fetched.source], _Sum())
        entry.blocks += 1
        entry.bytes += len(block)
        if fetched is not None:
            entry.last = max(fetched.time, entry.last or 0.0)


def origin_of(env: Environment, cid: CID) -> Origin | None:
    """Where one block came from; None where it is not here."""
    sums: dict[str, _Sum] = {}
    with env.read() as txn:
        _count(env, txn, [cid.multihash], sums)
    return next((Origin(source, sum_.blocks, sum_.bytes, sum_.last) for source, sum_ in sums.items()), None)
