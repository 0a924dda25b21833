"""Kubo's block files, read where they lie: for a daemon of this machine whose repo this user may read.

Kubo gives some thousand blocks a second over its RPC, and its files give several times as many. Nothing is
written, and nothing here is believed: the layout is used only where the repo declares exactly the usual one
(https://github.com/ipfs/go-ds-flatfs, next-to-last/2), and every block is hashed like any other. What is not found is
asked of the daemon.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any, Final, Self

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK

SHARDING: Final = "/repo/flatfs/shard/v1/next-to-last/2"
MAX_JSON: Final = 1024 * 1024
"""Bytes of Kubo's small JSON files."""


class FlatFS:
    """The block files of one repo."""

    def __init__(self, folder: Path) -> None:
        self._folder = os.fspath(folder)

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
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return cls(folder)

    def read(self, cid: CID) -> bytes | None:
        """The block as its file has it, not verified; None where there is none of a block's size. For threads."""
        name = base64.b32encode(cid.multihash).rstrip(b"=").decode()
        try:
            file = os.open(f"{self._folder}/{name[-3:-1]}/{name}.data", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            size = os.fstat(file).st_size
            return os.pread(file, size, 0) if size <= MAX_BLOCK else None
        except OSError:
            return None
        finally:
            os.close(file)


def _json(path: Path) -> Any:
    with path.open("rb") as file:
        return json.loads(file.read(MAX_JSON))
