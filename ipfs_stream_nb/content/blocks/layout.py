"""The store's directory and its format: what stands in it, and what is refused before anything is touched.

    data.mdb, lock.mdb   LMDB's files
    locks/owner-…        one lease for each process that has the store open (see leases)
    locks/gc             held by the one garbage collection that runs
    locks/sweep          held while garbage collection deletes a batch
    compacting/          a compacted copy on its way; left by a crash, and removed at the next opening

The directory itself is locked (flock) by whoever opens, compacts or tidies up: its "door".
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import lmdb

from ipfs_stream_nb.content.blocks.failures import as_ours, damaged
from ipfs_stream_nb.content.blocks.filesystems import REPO_VARIABLE, require_local
from ipfs_stream_nb.errors import StoreError

if TYPE_CHECKING:
    from ipfs_stream_nb.content.blocks.records import Database

FORMAT: Final = 1
"""The format that is read and written here. A store of a higher one is refused."""
DATA: Final = "data.mdb"
LOCKS: Final = "locks"
COMPACTING: Final = "compacting"

_MAGIC: Final = b"ipfs_stream_nb block store"
_LATER: Final = frozenset({"fetched", "uses", "sources", "uploads"})
"""Databases that stores of format 1 did not have from the beginning: made at opening where they are missing."""
_HARMLESS: Final = frozenset({DATA, "lock.mdb", LOCKS, COMPACTING, "lost+found"})


class Databases(NamedTuple):
    """The named databases of the environment."""

    meta: Database
    """magic, format, store_id, `records.State` and `records.CacheState`."""
    blocks: Database
    """Multihash to the block's bytes."""
    pins: Database
    """CID to `records.PinRecord`."""
    transfers: Database
    """Sequence number to one batch of a transfer that runs: its owner and CIDs."""
    fetched: Database
    """Multihash to `records.Fetched`, for every block that came from elsewhere."""
    uses: Database
    """Use number to the multihash of a block that may be evicted, least recently used first."""
    sources: Database
    """The name of a source to its number, in four bytes."""
    uploads: Database
    """The id of a resumable upload to `uploads.UploadRecord`."""


def prepare(folder: Path, *, create: bool) -> None:
    """Make the directory if need be. Raises StoreError where it can't hold a store."""
    require_local(folder)
    try:
        if create:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not folder.is_dir():
            raise StoreError(f"there is no block store at {folder}")
    except FileExistsError:
        raise StoreError(
            f"the block store cannot live at {folder}, which is a file: {REPO_VARIABLE} names a directory"
        ) from None
    except OSError as error:
        raise as_ours(error, folder) from error
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise StoreError(
            f"the block store at {folder} cannot be used: this user may not write there, or the filesystem is "
            f"read-only. Set {REPO_VARIABLE} to a directory of your own"
        )


def examine(folder: Path, *, create: bool) -> None:
    """Look at the files before LMDB does. Raises StoreError where they are not those of a store, or not whole."""
    data = folder / DATA
    used_before = (folder / LOCKS).is_dir()
    if not data.exists():
        if used_before:
            raise damaged(folder, f"its file {DATA} is gone")
        strangers = sorted({path.name for path in folder.iterdir()} - _HARMLESS)
        if strangers:
            raise StoreError(
                f"{folder} holds no block store, and other things ({', '.join(strangers[:3])}); name an empty or "
                f"new directory"
            )
        if not create:
            raise StoreError(f"there is no block store at {folder}")
    elif not data.is_file():
        raise damaged(folder, f"{DATA} is not a file")
    elif used_before and data.stat().st_size == 0:
        raise damaged(folder, f"its file {DATA} is empty")


def check_length(env: lmdb.Environment, folder: Path) -> None:
    """Raise StoreError for a file that ends before its last page: touching what is missing kills the process."""
    needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    size = (folder / DATA).stat().st_size
    if size < needed:
        raise damaged(folder, f"{DATA} is cut short, at {size:,} of {needed:,} bytes")


def open_databases(env: lmdb.Environment, folder: Path) -> tuple[Databases, str]:
    """The databases and the store's id. Raises StoreError for anybody else's file.

    They are made in a new store, and in an older one those that it does not have yet. A version of this package
    that does not know these leaves them as they are.
    """
    with env.begin(write=True) as txn:
        if not env.stat()["entries"]:
            databases = Databases(*(env.open_db(name.encode(), txn=txn) for name in Databases._fields))
            txn.put(b"magic", _MAGIC, db=databases.meta)
            txn.put(b"format", b"%d" % FORMAT, db=databases.meta)
            txn.put(b"store_id", secrets.token_hex(16).encode(), db=databases.meta)
        else:
            _check_format(env, txn, folder)
            databases = Databases(
                *(env.open_db(name.encode(), txn=txn, create=name in _LATER) for name in Databases._fields)
            )
        store_id = txn.get(b"store_id", b"", db=databases.meta)
    return databases, bytes(store_id).decode()


def _check_format(env: lmdb.Environment, txn: lmdb.Transaction[bytes], folder: Path) -> None:
    foreign = StoreError(
        f"{folder} holds an LMDB database of another program, not a block store; name an empty or new directory"
    )
    try:
        meta = env.open_db(b"meta", txn=txn, create=False)
    except (lmdb.NotFoundError, lmdb.IncompatibleError):
        raise foreign from None
    if txn.get(b"magic", db=meta) != _MAGIC:
        raise foreign
    version = int(txn.get(b"format", b"0", db=meta))
    if version != FORMAT:
        raise StoreError(
            f"the block store at {folder} has format {version}, and this version of ipfs_stream_nb reads and "
            f"writes format {FORMAT}: upgrade ipfs_stream_nb"
        )
