"""Who is alive and what it reads: file locks that the kernel drops when their process dies, however it dies.

Every process that has a store open holds a lock on a lease file of its own, named by a random owner id, so a pid
that is used again is no trap. The file's contents are the roots being read there, for garbage collection to leave.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.errors import BusyError, StoreError

OWNER_BYTES: Final = 16
_PREFIX: Final = "owner-"
_HEADER: Final = struct.Struct("<II")  # bytes that follow, and their CRC-32
_POLL: Final = 0.01
_TORN_READS: Final = 100
"""Tries at reading a lease that is being rewritten, a millisecond apart."""


def pack_cids(cids: list[CID]) -> bytes:
    """CIDs in binary, each behind its length in two bytes."""
    texts = [bytes(cid) for cid in cids]
    return b"".join(len(raw).to_bytes(2, "big") + raw for raw in texts)


def unpack_cids(data: bytes) -> list[CID]:
    """The inverse of `pack_cids`."""
    cids, at = [], 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        cids.append(CID.parse(data[at + 2 : end]))
        at = end
    return cids


class FileLock:
    """A context manager around flock(2) on a file or directory; shared or exclusive.

    Waits up to `wait` seconds and raises BusyError with the text `busy` then; waits for good where `wait` is
    None. Every instance is a lock of its own, against threads of this process too.
    """

    def __init__(
        self,
        path: Path,
        *,
        shared: bool = False,
        wait: float | None = None,
        busy: str = "the store is locked",
    ) -> None:
        self._path = path
        self._mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._wait = wait
        self._busy = busy
        self._fd = -1

    def __enter__(self) -> Self:
        """Take the lock."""
        flags = os.O_RDONLY | os.O_CLOEXEC
        try:
            self._fd = os.open(self._path, flags if self._path.is_dir() else flags | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(f"the block store cannot be locked: {error}") from error
        try:
            self._lock()
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def _lock(self) -> None:
        if self._wait is None:
            fcntl.flock(self._fd, self._mode)
            return
        deadline = time.monotonic() + self._wait
        while not _try_lock(self._fd, self._mode):
            if time.monotonic() >= deadline:
                raise BusyError(self._busy)
            time.sleep(_POLL)

    def __exit__(self, *_: object) -> None:
        """Give it back: by name, since a forked child may have a copy of the descriptor, which would keep it."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)


def _try_lock(fd: int, mode: int) -> bool:
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Lease:
    """This process's sign of life in one store, and the list of roots that it reads. Thread-safe.

    Made under the store's door lock, so that nobody takes a lease that is not locked yet for a dead one.
    """

    def __init__(self, folder: Path) -> None:
        self.owner = os.urandom(OWNER_BYTES)
        self._path = folder / (_PREFIX + self.owner.hex())
        self._roots: Counter[CID] = Counter()
        self._lock = threading.Lock()
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._publish()

    def add(self, root: CID) -> None:
        """Name a root that is read from now on; as often as there are readers."""
        with self._lock:
            self._roots[root] += 1
            if self._roots[root] == 1:
                self._publish()

    def drop(self, root: CID) -> None:
        """Take back one `add`."""
        with self._lock:
            self._roots[root] -= 1
            if not self._roots[root]:
                del self._roots[root]
                if self._fd >= 0:
                    self._publish()

    def _publish(self) -> None:
        payload = pack_cids(list(self._roots))
        os.pwrite(self._fd, _HEADER.pack(len(payload), zlib.crc32(payload)) + payload, 0)

    def close(self) -> None:
        """Leave the store; the file goes with it."""
        with self._lock:
            self._path.unlink(missing_ok=True)
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            self.forget()

    def forget(self) -> None:
        """Close the file without leaving: in a forked child, whose parent still holds the lease."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def living(folder: Path) -> dict[bytes, list[CID]]:
    """The owners that are alive, each with the roots it reads."""
    found = {}
    for path in folder.glob(_PREFIX + "*"):
        with _opened(path) as fd:
            if fd is not None and not _try_lock(fd, fcntl.LOCK_SH):
                found[bytes.fromhex(path.name.removeprefix(_PREFIX))] = _roots(fd)
    return found


def sweep_dead(folder: Path) -> None:
    """Delete the lease files of processes that are gone. Call it under the store's door lock only."""
    for path in folder.glob(_PREFIX + "*"):
        with _opened(path) as fd:
            if fd is not None and _try_lock(fd, fcntl.LOCK_SH):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """The file's descriptor, or None where its owner has just left."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _roots(fd: int) -> list[CID]:
    for _ in range(_TORN_READS):
        header = os.pread(fd, _HEADER.size, 0)
        if len(header) == _HEADER.size:
            size, checksum = _HEADER.unpack(header)
            payload = os.pread(fd, size, _HEADER.size)
            if len(payload) == size and zlib.crc32(payload) == checksum:
                return unpack_cids(payload)
        time.sleep(0.001)
    raise StoreError("a process that reads from the store has a damaged lease file; restart that process")
