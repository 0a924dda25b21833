"""One LMDB environment for each store in a process: opened once, shared, checked, and grown as it fills.

LMDB's rules that are kept here: an environment is opened once in a process (its locks are the process's); no
transaction is open while the map is changed; what a transaction gave out is not touched after its end.
Its errors come out as StoreError, DiskFullError and BusyError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import lmdb

from ipfs_stream_nb.content.blocks import layout
from ipfs_stream_nb.content.blocks.cache import Uses
from ipfs_stream_nb.content.blocks.failures import as_ours, is_full
from ipfs_stream_nb.content.blocks.gate import Gate
from ipfs_stream_nb.content.blocks.integrity import Integrity
from ipfs_stream_nb.content.blocks.leases import FileLock, Lease, living, sweep_dead
from ipfs_stream_nb.content.blocks.records import CacheState, State, batch_owner
from ipfs_stream_nb.errors import DiskFullError, StoreError

if TYPE_CHECKING:
    from ipfs_stream_nb.content.blocks.records import Txn

T = TypeVar("T")

MAX_READERS: Final = 2048
"""Reads at once over all processes: each takes 64 bytes of the lock file."""
MIN_MAP: Final = 1 << 30
"""Bytes of address space that a store begins with; doubled as the store grows."""
SLACK_PAGES: Final = 512
"""Pages kept allocated behind the last one, so that garbage collection has room to work on a full disk."""
OPEN_WAIT: Final = 10.0
"""Seconds that opening waits for another process that is just opening, or compacting."""


class Environment:
    """One store in this process, behind all the `BlockStore`s on it. Made and counted by `sharing.acquire`."""

    def __init__(self, folder: Path, *, create: bool) -> None:
        self.folder = folder
        self.users = 0
        self.locks = folder / layout.LOCKS
        self.pid = os.getpid()
        self.integrity = Integrity()
        self.uses = Uses()
        self._scattered = 0
        """Free pages in the file that a commit could not use: too few of them are side by side."""
        self.gate = Gate()
        self.writer = threading.Lock()
        self.closed = False
        self._fd = -1
        with self.door():
            layout.examine(folder, create=create)
            shutil.rmtree(folder / layout.COMPACTING, ignore_errors=True)
            self.connect()
            try:
                self.locks.mkdir(mode=0o700, exist_ok=True)
                sweep_dead(self.locks)
                self.lease = Lease(self.locks)
            except OSError as error:
                self.disconnect()
                raise as_ours(error, folder) from error
        try:
            self.drop_dead_transfers()
        except BaseException:
            self.close()
            raise

    def door(self) -> FileLock:
        """The lock under which the store is opened, compacted and tidied up."""
        busy = f"the block store at {self.folder} is being compacted or opened by another process; try again"
        return FileLock(self.folder, wait=OPEN_WAIT, busy=busy)

    def connect(self) -> None:
        """Open LMDB and check what is there. Under the door lock, with nobody inside the gate."""
        path = self.folder / layout.DATA
        size = path.stat().st_size if path.exists() else 0
        try:
            self.lmdb = lmdb.open(
                str(self.folder),
                map_size=-(-max(MIN_MAP, size * 5 // 4) // MIN_MAP) * MIN_MAP,
                mode=0o700,
                max_dbs=len(layout.Databases._fields),
                max_readers=MAX_READERS,
                max_spare_txns=0,
            )
        except (lmdb.Error, OSError) as error:
            raise as_ours(error, self.folder) from error
        try:
            layout.check_length(self.lmdb, self.folder)
            self.lmdb.reader_check()
            self.db, self.store_id = layout.open_databases(self.lmdb, self.folder)
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except (lmdb.Error, OSError) as error:
            self.lmdb.close()
            raise as_ours(error, self.folder) from error
        except BaseException:
            self.lmdb.close()
            raise
        self._page = self.lmdb.stat()["psize"]

    def disconnect(self) -> None:
        """Close LMDB. With nobody inside the gate."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        self.lmdb.close()

    def close(self) -> None:
        """Wait for whoever is inside, and close for good."""
        with self.gate.exclusive():
            if not self.closed:
                self.closed = True
                self.disconnect()
                self.lease.close()

    @contextlib.contextmanager
    def read(self) -> Iterator[Txn]:
        """A read transaction, to be short: while it lasts, freed pages are not used again. Not to be nested."""
        txn = self._begin_read()
        try:
            yield txn
        except lmdb.Error as error:
            raise as_ours(error, self.folder) from error
        finally:
            txn.abort()
            self.gate.leave()

    @contextlib.contextmanager
    def read_now(self) -> Iterator[Txn | None]:
        """As `read`, or None where that would have to wait for somebody, or failed."""
        self.check_usable()
        if not self.gate.try_enter():
            yield None
            return
        txn = None
        try:
            with contextlib.suppress(lmdb.Error):
                txn = self.lmdb.begin(buffers=True)
            yield txn
        except lmdb.Error as error:
            raise as_ours(error, self.folder) from error
        finally:
            if txn is not None:
                txn.abort()
            self.gate.leave()

    def _begin_read(self) -> Txn:
        checked_readers = False
        while True:
            self.check_usable()  # a forked child must not wait for what its parent holds
            self.gate.enter()
            try:
                self.check_usable()
                return self.lmdb.begin(buffers=True)
            except lmdb.MapResizedError:
                self.gate.leave()
                self._remap(0)
            except lmdb.ReadersFullError as error:
                self.gate.leave()
                if checked_readers:
                    raise as_ours(error, self.folder) from error
                checked_readers = True
                self.lmdb.reader_check()
            except BaseException as error:
                self.gate.leave()
                if isinstance(error, lmdb.Error):
                    raise as_ours(error, self.folder) from error
                raise

    def update(self, change: Callable[[Txn], T], new_bytes: int = 0, min_free: int = 0) -> T:
        """Run `change` in a write transaction; what it did is durable on return.

        It may run again where the map had to grow, so it must not change anything else. `new_bytes`: about
        how much it adds; `min_free`: what must stay free on the disk. Raises DiskFullError and StoreError;
        nothing is changed then.
        """
        map_size = 0
        while True:
            self.check_usable()
            try:
                with self.writer, self.gate.shared():
                    self.check_usable()
                    map_size = self.lmdb.info()["map_size"]
                    with self.lmdb.begin(write=True, buffers=True) as txn:
                        free = self.free_pages(txn)
                        end = self._reserve(txn, new_bytes, min_free, free)
                        result = change(txn)
                    if new_bytes and self.lmdb.info()["last_pgno"] > end:
                        self._scattered = free
                    return result
            except lmdb.MapFullError:
                self._remap(2 * (map_size + new_bytes))
            except lmdb.MapResizedError:
                self._remap(0)
            except lmdb.Error as error:
                if is_full(error, self.folder):
                    self._trim()
                raise as_ours(error, self.folder) from error

    def check_usable(self) -> None:
        """Raise StoreError where the store is closed, or belongs to the parent process."""
        if self.pid != os.getpid():
            raise StoreError(
                f"the block store at {self.folder} was opened before this process was forked; open it again here"
            )
        if self.closed:
            raise StoreError(f"the block store at {self.folder} is closed")

    def check_in_place(self) -> os.stat_result:
        """The stat of the store's file. Raises StoreError where that is not the file that was opened.

        To be called inside the gate.
        """
        try:
            found = (self.folder / layout.DATA).stat()
        except (FileNotFoundError, NotADirectoryError):
            found = None
        if found is None or found.st_ino != os.fstat(self._fd).st_ino:
            raise StoreError(
                f"the block store at {self.folder} was deleted or replaced while it was open; open it again"
            )
        return found

    def _reserve(self, txn: Txn, new_bytes: int, min_free: int, free: int) -> int:
        """Have the disk's room before the work: a commit that runs out of it has to be rolled back.

        `free`: free pages in the file. Gives the last page that the file should have afterwards.

        The file also must not end before its last page: LMDB doesn't write pages that it took and gave back. One
        transaction may rewrite all records of what was fetched, and little of the rest beside its new blocks.
        """
        self.check_in_place()
        last = self.lmdb.info()["last_pgno"]
        size = os.fstat(self._fd).st_size
        rewritten = sum(_pages(txn.stat(db)) for db in (self.db.fetched, self.db.uses))
        spare = last + 1 + SLACK_PAGES + rewritten
        self._scattered = min(self._scattered, free)
        wanted = -(-new_bytes // self._page)
        fresh = max(0, wanted - free)
        feared = max(0, wanted - free + self._scattered) if min_free else fresh
        if feared:
            self._check_disk((spare + feared) * self._page - size, min_free)
        grow = (spare + fresh) * self._page - size
        if grow <= 0:
            return last + fresh
        try:
            _allocate(self._fd, size, grow)
        except OSError as error:
            os.ftruncate(self._fd, size)  # a part of it may have been allocated
            if fresh or not is_full(error, self.folder):
                raise as_ours(error, self.folder) from error
        return last + fresh

    def _check_disk(self, grow: int, min_free: int) -> None:
        """Raise DiskFullError where the file's growth would not leave `min_free` bytes."""
        free = shutil.disk_usage(self.folder).free
        if grow > 0 and free - grow < min_free:
            raise DiskFullError(
                f"the disk of the block store at {self.folder} is nearly full: {free:,} bytes are free, {grow:,} "
                f"more are needed, and {min_free:,} have to stay free. Free some space, or collect garbage"
            )

    def free_pages(self, txn: Txn) -> int:
        """Pages inside the file that hold nothing."""
        used = sum(_pages(stat) for stat in [self.lmdb.stat(), *(txn.stat(db) for db in self.db)])
        return max(0, self.lmdb.info()["last_pgno"] + 1 - used)

    def _trim(self) -> None:
        """Give back the room behind the last page that a failed commit has taken."""
        with contextlib.suppress(lmdb.Error, OSError), self.writer, self.gate.shared():
            txn = self.lmdb.begin(write=True)
            try:
                wanted = (self.lmdb.info()["last_pgno"] + 1 + SLACK_PAGES) * self._page
                if os.fstat(self._fd).st_size > wanted:
                    os.ftruncate(self._fd, wanted)
            finally:
                txn.abort()

    def _remap(self, wanted: int) -> None:
        """Have a map of `wanted` bytes, or of what another process made it (0)."""
        with self.gate.exclusive():
            self.check_usable()
            if wanted and self.lmdb.info()["map_size"] >= wanted:
                return
            try:
                self.lmdb.set_mapsize(-(-wanted // MIN_MAP) * MIN_MAP)
                self._reopen_databases()
            except (lmdb.Error, OverflowError) as error:
                self.disconnect()
                self.connect()
                raise StoreError(
                    f"the block store at {self.folder} cannot be mapped at its new size: {error}"
                ) from error

    def _reopen_databases(self) -> None:
        """Have handles that are good for the new map: lmdb before 2.3 ends the old ones with it."""
        while True:
            try:
                self.db, _ = layout.open_databases(self.lmdb, self.folder)
                return
            except lmdb.MapResizedError:  # another process was quicker
                self.lmdb.set_mapsize(0)

    def state(self) -> State:
        """The counters as they are now."""
        return self.counters()[0]

    def counters(self) -> tuple[State, CacheState]:
        """The counters of all blocks, and of those that may be evicted."""
        with self.read() as txn:
            return State.load(txn, self.db.meta), CacheState.load(txn, self.db.meta)

    def reuse_freed(self) -> None:
        """Commit once more: LMDB uses freed pages again from the second commit on, which a full disk may not get to."""
        self.update(lambda txn: State.load(txn, self.db.meta).save(txn, self.db.meta))

    def upload_ids(self) -> list[bytes]:
        """The resumable uploads, which outlive their processes."""
        with self.read() as txn:
            return [bytes(key) for key in txn.cursor(self.db.uploads).iternext(values=False)]

    def drop_dead_transfers(self) -> None:
        """Forget transfers whose process is gone; their blocks are left to garbage collection."""
        with self.read() as txn:
            owners = [(bytes(key), batch_owner(value)) for key, value in txn.cursor(self.db.transfers)]
        if owners:  # whoever had one of these, and lives, is found alive from here on
            alive = {*living(self.locks), *self.upload_ids()}
            dead = [key for key, owner in owners if owner not in alive]
            if dead:
                self.update(lambda txn: [txn.delete(key, db=self.db.transfers) for key in dead])


def _pages(stat: Mapping[str, Any]) -> int:
    return int(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])


def _allocate(fd: int, start: int, length: int) -> None:
    """Have `length` bytes of disk from `start` on, where the system can promise them; a longer file otherwise."""
    try:
        os.posix_fallocate(fd, start, length)
    except AttributeError:  # macOS has no such call
        os.ftruncate(fd, start + length)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
            raise
        os.ftruncate(fd, start + length)
