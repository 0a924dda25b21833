"""Now and then: giving freed space back to the disk, and hashing everything that is stored."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lmdb

from ipfs_stream_nb.content.blocks import layout
from ipfs_stream_nb.content.blocks.environment import Environment
from ipfs_stream_nb.content.blocks.failures import as_ours, damaged
from ipfs_stream_nb.content.blocks.gc import all_keys, one_at_a_time
from ipfs_stream_nb.content.blocks.leases import living
from ipfs_stream_nb.content.blocks.records import raw_cid
from ipfs_stream_nb.content.blocks.walk import Progress
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.node import PinProgress
from ipfs_stream_nb.errors import BadCIDError, BusyError, CorruptContentError, DiskFullError

_SPARE: Final = 1 << 16
"""Bytes that must be free beyond those of a compacted copy."""


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What a check of all blocks found. `bad` names each damaged block's multihash by a raw CID."""

    blocks: int
    bytes: int
    bad: tuple[CID, ...] = ()


def verify(env: Environment, progress: Progress | None) -> VerifyResult:
    """Hash every block, whether it was hashed before or not; the store stays in use."""
    total = env.state()
    blocks = size = 0
    bad = []
    for key in all_keys(env):
        try:
            cid = raw_cid(key)
        except BadCIDError as error:
            raise damaged(env.folder, f"a block's key is no multihash, as {error}") from None
        with env.read() as txn:
            block = txn.get(key, db=env.db.blocks)
            if block is None:
                continue  # collected meanwhile
            blocks, size = blocks + 1, size + len(block)
            try:
                env.integrity.check(cid, block)
            except CorruptContentError:
                bad.append(cid)
        if progress is not None:
            progress(PinProgress(blocks, size, total.blocks, total.bytes))
    return VerifyResult(blocks, size, tuple(bad))


def compact(env: Environment) -> int:
    """Write the store anew without its free pages; gives the bytes that the disk has back.

    Done while no other process has the store open, which the leases tell and the door lock keeps so. Reads go
    on while the copy is made; writes wait. A crash leaves the old file or the new one, never less.
    """
    with one_at_a_time(env, wait=0), env.door():
        others = len(living(env.locks).keys() - {env.lease.owner})
        if others:
            raise BusyError(
                f"the block store at {env.folder} can be compacted only while no other process has it open, and "
                f"{others} {'others have' if others > 1 else 'other has'}: shut down other notebooks and servers"
            )
        target = env.folder / layout.COMPACTING
        before = _disk_size(env.folder / layout.DATA)
        try:
            with env.writer:
                _copy(env, target)
                _exchange(env, target / layout.DATA)
        except (lmdb.Error, OSError) as error:
            raise as_ours(error, env.folder) from error
        finally:
            shutil.rmtree(target, ignore_errors=True)
        return max(0, before - _disk_size(env.folder / layout.DATA))


def _copy(env: Environment, target: Path) -> None:
    """Write a compacted copy, on disk for good, and see that it is whole."""
    with env.read() as txn:
        used = (env.lmdb.info()["last_pgno"] + 1 - env.free_pages(txn)) * env.lmdb.stat()["psize"]
    free = shutil.disk_usage(env.folder).free
    if free < used + _SPARE:
        raise DiskFullError(
            f"compacting the block store at {env.folder} takes {used + _SPARE:,} bytes for a while, and {free:,} are "
            f"free on its disk"
        )
    target.mkdir(mode=0o700)
    with env.gate.shared():
        env.check_usable()
        env.lmdb.copy(str(target), compact=True)
        expected = env.lmdb.stat()
    data = target / layout.DATA
    data.chmod(0o600)
    with data.open("rb") as file:
        os.fsync(file.fileno())
    with lmdb.open(str(target), readonly=True, lock=False, max_dbs=len(layout.Databases._fields)) as copy:
        layout.check_length(copy, target)
        if copy.stat()["entries"] != expected["entries"]:
            raise lmdb.CorruptedError("the compacted copy is not whole")


def _exchange(env: Environment, copy: Path) -> None:
    with env.gate.exclusive():
        env.check_usable()
        env.disconnect()
        try:
            copy.replace(env.folder / layout.DATA)
            _sync_directory(env.folder)
        finally:
            env.connect()
            env.integrity.clear()


def _sync_directory(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _disk_size(path: Path) -> int:
    return path.stat().st_blocks * 512
