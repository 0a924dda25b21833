"""Kubo's block files, read where they lie: for a daemon of this machine whose repo this user may read.

Kubo gives some thousand blocks a second over its RPC, and its files give several times as many. Nothing is
written, and nothing here is believed: the layout is used only where the repo declares exactly the usual one
(https://github.com/ipfs/go-ds-flatfs, next-to-last/2), and a block is hashed when it is first read, as those of our
own store are. What is not found is asked of the daemon.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK
from ipfs_stream_nb.errors import NotFoundError

T = TypeVar("T")

SHARDING: Final = "/repo/flatfs/shard/v1/next-to-last/2"
MAX_SOUND: Final = 1 << 20
"""Blocks of which it is remembered that they were right, some 100 bytes each: 1 TiB in 1 MiB blocks."""
MAX_JSON: Final = 1024 * 1024
"""Bytes of Kubo's small JSON files."""


class FlatFS:
    """The block files of one repo."""

    def __init__(self, folder: Path) -> None:
        self._folder = os.fspath(folder)
        self._sound: dict[bytes, None] = {}
        self._lock = threading.Lock()

    @classmethod
    def of_daemon(cls, repo: str, peer_id: str) -> Self | None:
        """The block files of the daemon `peer_id`, which says that its repo is at `repo`.

        None where that is not a folder of this machine, not readable, another node's, or laid out in another way.
        """
        root = Path(repo)
        try:
            if _json(root / "config")["Identity"]["PeerID"] != peer_id:
                return None
            mounts = _json(root / "datastore_spec")["mounts"]
            (blocks,) = [mount for mount in mounts if mount["mountpoint"] == "/blocks"]
            if blocks["type"] != "flatfs" or blocks["shardFunc"] != SHARDING:
                return None
            folder = root / blocks["path"]
            if (folder / "SHARDING").read_text("ascii").strip() != SHARDING:
                return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return cls(folder)

    def peek(self, cid: CID, use: Callable[[memoryview], T]) -> T:
        """What `use` makes of the block where it lies, as BlockStore.peek does: hashed when it is first read.

        Raises NotFoundError where there is no file of a block's size, CorruptContentError. For threads.
        """
        name = base64.b32encode(cid.multihash).rstrip(b"=").decode()
        try:
            file = os.open(f"{self._folder}/{name[-3:-1]}/{name}.data", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise NotFoundError(f"Kubo holds no file of block {cid}") from None
        try:
            size = os.fstat(file).st_size
            if not 0 < size <= MAX_BLOCK:
                raise NotFoundError(f"Kubo's file of block {cid} has {size} bytes")
            with mmap.mmap(file, size, access=mmap.ACCESS_READ) as map_, memoryview(map_) as view:
                self._check(cid, view)
                return use(view)
        finally:
            os.close(file)

    def _check(self, cid: CID, view: memoryview) -> None:
        key = cid.multihash
        if key in self._sound:
            return
        cid.verify(view)
        with self._lock:
            self._sound[key] = None
            while len(self._sound) > MAX_SOUND:
                del self._sound[next(iter(self._sound))]

    def peek_now(self, _cid: CID, _use: Callable[[memoryview], T | None]) -> None:
        """None: a file is opened on a thread, always."""

    def get(self, cid: CID, start: int = 0, stop: int | None = None) -> bytes:
        """A copy of the block's bytes from `start` to `stop`. Raises as `peek` does."""
        return self.peek(cid, lambda block: bytes(block[start:stop]))


def _json(path: Path) -> Any:
    with path.open("rb") as file:
        return json.loads(file.read(MAX_JSON))
