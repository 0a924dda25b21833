"""Add a file, against hashing and appending the same bytes in one thread, in turns in the same run.

The peer does the least that any add must: read 1 MiB, SHA-256, append, fdatasync every 32 MiB, and once at the end.
`add` is `node.add_path` into an empty store: the same reading and hashing, the DAG, the commits, the pin.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measure import AnonymousMemory, Result, random_file, report, settle

from ipfs_stream_nb.content.embedded import EmbeddedNode

MIB = 1024 * 1024


def hash_and_append(source: Path, folder: Path) -> None:
    """The peer."""
    buffer = bytearray(MIB)
    with source.open("rb", buffering=0) as file, (folder / "appended").open("wb", buffering=0) as target:
        unsynced = 0
        while count := file.readinto(buffer):
            view = memoryview(buffer)[:count]
            hashlib.sha256(view).digest()
            target.write(view)
            unsynced += count
            if unsynced >= 32 * MIB:
                os.fdatasync(target.fileno())
                unsynced = 0
        os.fdatasync(target.fileno())


def add(source: Path, folder: Path) -> None:
    """Ours, with opening and closing the store."""

    async def run() -> None:
        async with await EmbeddedNode.open(folder / "repo") as node:
            await node.add_path(str(source))

    asyncio.run(run())


def cat(folder: Path, size: int) -> None:
    """Read the added file back, every block verified on its first read, and say what memory that takes."""

    async def run() -> None:
        async with await EmbeddedNode.open(folder / "repo") as node:
            (pin,) = await node.pins()
            with AnonymousMemory() as memory:
                start = time.perf_counter()
                total = 0
                async for piece in node.cat(pin.cid):
                    total += len(piece)
                took = time.perf_counter() - start
            assert total == size
            print(
                f"cat of it, verified: {size / took / 1e6:,.0f} MB/s; private memory {memory.growth / MIB:.0f} MiB"
            )

    asyncio.run(run())


def timed(run: Callable[[Path, Path], None], source: Path, folder: Path) -> float:
    """Seconds, in an empty folder on a disk that has nothing left to write."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    settle()
    start = time.perf_counter()
    run(source, folder)
    return time.perf_counter() - start


def main(size: int = 1024 * MIB, rounds: int = 5) -> None:
    """Print the ratio of each round and the growth of private memory."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        source = random_file(Path(name) / "source", size)
        result = Result("add of 1 GiB", "hash and append in one thread", "MB/s", goal=0.8)
        add(random_file(Path(name) / "small", MIB), Path(name) / "warm-up")
        for _ in range(rounds):
            peer = timed(hash_and_append, source, Path(name) / "peer")
            ours = timed(add, source, Path(name) / "ours")
            result.add(size / ours / 1e6, size / peer / 1e6)
        report(result)
        with (
            AnonymousMemory() as memory
        ):  # a run of its own: looking at the memory takes time from what is timed
            timed(add, source, Path(name) / "ours")
        print(f"private memory above idle while adding: {memory.growth / MIB:.0f} MiB (goal: at most 32)")
        cat(Path(name) / "ours", size)


if __name__ == "__main__":
    main()
