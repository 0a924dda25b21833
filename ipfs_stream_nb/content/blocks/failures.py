"""LMDB's and the system's errors, told as this package's."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Final

import lmdb

from ipfs_stream_nb.errors import BusyError, DiskFullError, IPFSStreamError, StoreError

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PERMISSION: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


def is_full(error: lmdb.Error | OSError, folder: Path) -> bool:
    """Whether the error says that the disk, the user's disk quota or the file size limit is reached.

    LMDB reports a write that was cut short, as it is on a disk that has just filled up, as EIO.
    """
    number = _number(error)
    return number in _FULL or (number == errno.EIO and shutil.disk_usage(folder).free < 1 << 20)


def as_ours(error: lmdb.Error | OSError, folder: Path) -> IPFSStreamError:
    """The error to raise instead of one of LMDB or of the system."""
    if is_full(error, folder):
        free = shutil.disk_usage(folder).free
        return DiskFullError(
            f"no room under the block store at {folder} ({os.strerror(_number(error) or errno.ENOSPC)}): "
            f"{free:,} bytes are free on its disk. Nothing of what was stored before is touched; free some "
            f"space, or collect garbage, and try again"
        )
    if isinstance(error, lmdb.ReadersFullError):
        return BusyError(f"too many reads at once in the block store at {folder}; try again")
    if isinstance(error, lmdb.InvalidError | lmdb.CorruptedError | lmdb.PageNotFoundError):
        return damaged(folder, str(error))
    return StoreError(_reason(error, folder))


def _reason(error: lmdb.Error | OSError, folder: Path) -> str:
    if isinstance(error, lmdb.PanicError):
        return f"the disk failed while the block store at {folder} was written; close it and open it again"
    if isinstance(error, lmdb.VersionMismatchError):
        return (
            f"the block store at {folder} was written by another version of LMDB than this one, "
            f"{'.'.join(map(str, lmdb.version()))}; upgrade the package lmdb"
        )
    if isinstance(error, lmdb.ReadonlyError) or _number(error) in _PERMISSION:
        return (
            f"the block store at {folder} cannot be used: {error}. This user must be able to read and write the "
            f"directory and the files in it"
        )
    return f"the block store at {folder} failed: {error}"


def damaged(folder: Path, what: str) -> StoreError:
    """The error for a store whose file is not whole."""
    return StoreError(
        f"the block store at {folder} is damaged: {what}. Restore it from a backup, or move the directory away "
        f"and begin a new store"
    )


def _number(error: lmdb.Error | OSError) -> int | None:
    """The errno; lmdb before 2 has it in the text only."""
    number = getattr(error, "code", None) or getattr(error, "errno", None)
    if number:
        return int(number)
    text = str(error)
    return next((known for known in (*_FULL, errno.EIO, *_PERMISSION) if os.strerror(known) in text), None)
