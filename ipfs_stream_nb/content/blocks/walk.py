"""Everything below a root: each block visited once, however often it is linked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ipfs_stream_nb.content.blocks.environment import Environment
from ipfs_stream_nb.content.cid import CID, DAG_CBOR, DAG_PB
from ipfs_stream_nb.content.links import links_of
from ipfs_stream_nb.content.node import PinProgress
from ipfs_stream_nb.errors import (
    CorruptContentError,
    IPFSStreamError,
    NotFoundError,
    RetrievalError,
    TooLargeError,
)

if TYPE_CHECKING:
    from ipfs_stream_nb.content.blocks.records import Txn

Progress = Callable[[PinProgress], None]

MAX_BLOCKS: Final = 1 << 22
"""Blocks of one pinned tree: 4 TiB in 1 MiB blocks. A walk takes some 150 bytes of memory for each."""
MAX_DEPTH: Final = 1024
"""Levels of one pinned tree."""
REPORT_BLOCKS: Final = 256
"""Blocks between two calls of a progress function, about."""

_LINKING: Final = frozenset({DAG_PB, DAG_CBOR})


class Walk:
    """A set of blocks that grows with every root that is added.

    Memory: one entry for each block (some 150 bytes) and one for each block with links. `limited` applies
    MAX_BLOCKS and MAX_DEPTH and raises TooLargeError; garbage collection must be able to walk what is there.
    """

    def __init__(self, env: Environment, *, limited: bool = False, progress: Progress | None = None) -> None:
        self.codecs: dict[bytes, int] = {}
        """The codec by which each block was first met; its keys are the blocks."""
        self.bytes = 0
        self._env = env
        self._limited = limited
        self._progress = progress
        self._met: set[CID] = set()
        """Blocks with links, and with what codec: the same bytes can be met as raw, too."""
        self._missing: dict[CID, None] = {}

    @property
    def missing(self) -> int:
        """How many blocks are linked and not here."""
        return len({cid.multihash for cid in self._missing})

    def add(self, root: CID, *, whole: bool, txn: Txn | None = None) -> None:
        """Add what is below `root`, seen from `txn` or from short transactions of its own.

        If `whole`, raises NotFoundError where the root is missing and RetrievalError naming the first block
        that is missing below it, else leaves it out; and CorruptContentError where a block with links is damaged,
        so that nobody knows what is below it.
        """
        stack = [(child, 0) for child in self._take([root], root, whole=whole, txn=txn)]
        while stack:
            cid, depth = stack.pop()
            if self._limited and depth >= MAX_DEPTH:
                raise TooLargeError(f"the tree under {root} is over {MAX_DEPTH} levels deep")
            links = self._links(cid, root, whole=whole, txn=txn)
            children = self._take(links, root, whole=whole, txn=txn)
            stack.extend((child, depth + 1) for child in reversed(children))

    def add_arrived(self, txn: Txn | None = None) -> None:
        """Add what was missing before and has come since, with what is below it."""
        missing, self._missing = self._missing, {}
        for cid in missing:
            self.add(cid, whole=False, txn=txn)

    def _take(self, cids: list[CID], root: CID, *, whole: bool, txn: Txn | None) -> list[CID]:
        """Note the blocks, and give back those that may have links and were not met before."""
        inner = []
        before = len(self.codecs)
        with self._view(txn) as view:
            for link in dict.fromkeys(cids):  # a block may name the same one a thousand times
                cid = link if link.version else link.v1()
                if cid in self._met:
                    continue
                if not self._note(cid, view):
                    if whole:
                        raise _missing(link, root)
                    self._missing[cid] = None
                elif cid.codec in _LINKING:
                    self._met.add(cid)
                    inner.append(cid)
        if self._limited and len(self.codecs) > MAX_BLOCKS:
            raise TooLargeError(f"the tree under {root} has over {MAX_BLOCKS:,} blocks")
        if self._progress is not None and before // REPORT_BLOCKS < len(self.codecs) // REPORT_BLOCKS:
            self._progress(PinProgress(len(self.codecs), self.bytes, None, None))
        return inner

    def _note(self, cid: CID, txn: Txn) -> bool:
        """Count a block. False where it is not there."""
        key = cid.multihash
        if cid.is_identity or key in self.codecs:
            return True
        block = txn.get(key, db=self._env.db.blocks)
        if block is None:
            return False
        self.codecs[key] = cid.codec
        self.bytes += len(block)
        return True

    def _links(self, cid: CID, root: CID, *, whole: bool, txn: Txn | None) -> list[CID]:
        """What a block links to; its hash is checked where that matters, and leaves are not read through."""
        if cid.is_identity:
            return _identity_links(cid, whole=whole)
        with self._view(txn) as view:
            block = view.get(cid.multihash, db=self._env.db.blocks)
            if block is None:  # collected since it was noted
                if whole:
                    raise _missing(cid, root)
                return []
            try:
                links = links_of(cid, block)
            except (CorruptContentError, TooLargeError):
                self._check(cid, block)
                if whole:
                    raise
                return []  # these bytes are what was asked for, and hold no links that anybody could follow
            if links:
                self._check(cid, block)
            return links

    def _check(self, cid: CID, block: memoryview) -> None:
        if not self._env.integrity.is_sound(cid.multihash):
            self._env.integrity.check(cid, block)

    def _view(self, txn: Txn | None) -> contextlib.AbstractContextManager[Txn]:
        return self._env.read() if txn is None else contextlib.nullcontext(txn)


def _missing(cid: CID, root: CID) -> IPFSStreamError:
    if cid == root:
        return NotFoundError(f"block {cid} is not in this store; add it, or import a CAR that holds it")
    return RetrievalError(f"block {cid} of the tree under {root} is missing in this store")


def _identity_links(cid: CID, *, whole: bool) -> list[CID]:
    try:
        return links_of(cid, cid.digest)
    except (CorruptContentError, TooLargeError):
        if whole:
            raise
        return []
