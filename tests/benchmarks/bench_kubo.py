"""Beside a real Kubo, as it is released, in turns in the same run: GET, random ranges, add, and reading through it.

Kubo's own gateway and its `ipfs add` (into the running daemon) are the peer. The same client reads from both: raw
sockets into one reused buffer, one connection for a whole file and eight for random 64 KiB ranges.

- Embedded: our store has the content. Every byte of it was hashed when it was added; Kubo hashes on adding, too.
- What is added is durable once ours answers; Kubo's blocks are not synced (its datastore's default).
- Through KuboNode: our server with `node = "kubo"`, its cache empty at first. The first read hashes every block that
  Kubo gives; Kubo's gateway hashes none. The second read is the one of a block that was hashed before.
- Two ways to cut the file: 1 MiB leaves (unixfs-v1-2025, our default) and 256 KiB (Kubo's default at this time).
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

from bench_http import RangeLoad, download
from http_servers import TOKEN, Served, add_file, jupyter
from measure import MIB, Result, random_file, report, settle

import kubo
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.importer import PROFILES

PROFILE_OPTIONS = {
    "unixfs-v1-2025": ["--cid-version=1", "--raw-leaves", "--chunker=size-1048576", "--max-file-links=1024"],
    "unixfs-v0-2015": [
        "--cid-version=0",
        "--raw-leaves=false",
        "--chunker=size-262144",
        "--max-file-links=174",
    ],
}


def through(file: Path, daemon: kubo.Kubo, repo: str) -> Served:
    """A Jupyter server whose node is the daemon, with a cache of its own at `repo`."""
    served = jupyter(file)
    served.name = "the extension with node=kubo"
    served.command.append("--IPFSStreamExtension.node=kubo")
    served.env |= {"IPFS_STREAM_NB_REPO": str(file.parent / repo), "IPFS_API": daemon.api}
    return served


def log_in(served: Served, path: str) -> Served:
    """Set the path, and what lets a request in."""
    served.path = path
    served.headers = {"Authorization": f"token {TOKEN}"}
    return served


def kubo_add(daemon: kubo.Kubo, file: Path, profile: str) -> tuple[str, float]:
    """`ipfs add` into the running daemon: the CID and the seconds."""
    start = time.perf_counter()
    cid = daemon.run("add", "-Q", *PROFILE_OPTIONS[profile], str(file), timeout=600)
    return cid, time.perf_counter() - start


def direct_add(file: Path) -> float:
    """What client.add does with a file where the store is on the same machine: seconds."""

    async def add() -> float:
        async with await EmbeddedNode.open(file.parent / "direct") as node:
            start = time.perf_counter()
            await node.add_path(str(file))
            return time.perf_counter() - start

    return asyncio.run(add())


def adds(ours: Served, daemon: kubo.Kubo, folder: Path, size: int, rounds: int) -> None:
    """New content each round, added in three ways; their order changes. Ours are synced to disk, Kubo's are not."""
    ways = {
        "client.add": lambda: direct_add(file),
        "POST /ipfs": lambda: add_file(ours, file),
        "ipfs add": lambda: kubo_add(daemon, file, "unixfs-v1-2025")[1],
    }
    results = {way: Result(way, "ipfs add", "MB/s", 3.0) for way in list(ways)[:2]}
    for number in range(rounds):
        file = random_file(folder / "new.bin", size)
        speeds = {}
        for way in list(ways)[:: 1 if number % 2 else -1]:
            settle()
            speeds[way] = size / ways[way]() / 1e6
        for way, result in results.items():
            result.add(speeds[way], speeds["ipfs add"])
    for result in results.values():
        report(result)


def reads(what: str, ours: Served, peer: Served, size: int, *, goal: float, rounds: int) -> None:
    """Whole files in turns."""
    buffer = bytearray(MIB)
    result = Result(what, peer.name, "MB/s", goal)
    for _ in range(rounds):
        speeds = [size / download(served, size, buffer) / 1e6 for served in (ours, peer)]
        result.add(*speeds)
    report(result)


def main(size: int = 1024 * MIB, rounds: int = 5, seconds: float = 3.0) -> None:
    """Print the ratios."""
    assert PROFILE_OPTIONS.keys() <= PROFILES.keys()
    buffer = bytearray(MIB)
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        folder = Path(name)
        file = random_file(folder / "file.bin", size)
        with kubo.running(folder / "kubo") as daemon:
            with jupyter(file) as ours:
                add_file(ours, file)
                cid, _ = kubo_add(daemon, file, "unixfs-v1-2025")
                assert ours.path == f"/ipfs/{cid}", "the CIDs differ"
                peer = Served("Kubo's gateway", daemon.gateway_port, f"/ipfs/{cid}", [])
                for served in (ours, peer):
                    download(served, size, buffer)
                reads("GET of the whole file, embedded", ours, peer, size, goal=3.0, rounds=rounds)
                ranges = Result("64 KiB random ranges, embedded", peer.name, "requests/s", 2.0)
                for _ in range(rounds):
                    ranges.add(*(RangeLoad(served, size).run(seconds) for served in (ours, peer)))
                report(ranges)
                adds(ours, daemon, folder, size, rounds)
            for profile in PROFILE_OPTIONS:
                cid, _ = kubo_add(daemon, file, profile)
                peer = Served("Kubo's gateway", daemon.gateway_port, f"/ipfs/{cid}", [])
                download(peer, size, buffer)
                first = Result(f"GET through KuboNode, first read, {profile}", peer.name, "MB/s", 0.8)
                for number in range(rounds):
                    with through(file, daemon, f"cache-{profile}-{number}") as ours:
                        speeds = [size / download(log_in(ours, peer.path), size, buffer) / 1e6]
                        speeds.append(size / download(peer, size, buffer) / 1e6)
                        first.add(*speeds)
                        if number == rounds - 1:
                            report(first)
                            reads(
                                f"GET through KuboNode, again, {profile}",
                                ours,
                                peer,
                                size,
                                goal=0.8,
                                rounds=rounds,
                            )


if __name__ == "__main__":
    main(*(int(value) * MIB if at == 0 else int(value) for at, value in enumerate(sys.argv[1:])))
