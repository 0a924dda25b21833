"""Small trees for the block store's tests, and an independent look at what a store holds."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.blocks.gc import all_keys
from ipfs_stream_nb.content.blocks.records import CacheState, Fetched, State
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.importer import Imported, Profile, import_bytes
from ipfs_stream_nb.content.links import links_of

SMALL = Profile("small", chunk_size=1000, max_links=3)
CHILDREN = Path(__file__).with_name("store_children.py")


def tree(seed: int, size: int = 10_000, profile: Profile = SMALL) -> Imported:
    """A file of random bytes: with SMALL, 10 leaves under 7 nodes."""
    return import_bytes(random.Random(seed).randbytes(size), profile)


def add(store: BlockStore, made: Imported, *, pin: bool = True, name: str = "") -> CID:
    """Put a whole tree through a transfer."""
    with store.transfer() as transfer:
        transfer.put(made.blocks)
        transfer.commit(made.root, pin=pin, name=name)
    return made.root


def keys_of(made: Imported) -> set[bytes]:
    """The keys of a tree's blocks."""
    return {block.cid.multihash for block in made.blocks}


def stored_keys(store: BlockStore) -> set[bytes]:
    """The keys of everything that a store holds."""
    return set(all_keys(store._env))


def reachable(store: BlockStore, roots: list[CID]) -> set[bytes]:
    """The keys of everything below some roots, read through `get`, which hashes; raises where one is missing."""
    found: set[bytes] = set()
    todo = list(roots)
    while todo:
        cid = todo.pop()
        if cid.multihash not in found:
            found.add(cid.multihash)
            todo += links_of(cid, store.get(cid))
    return found


def start(*arguments: object) -> subprocess.Popen[str]:
    """Another Python process with `store_children.py`, that can import what this one can."""
    code = f"import sys, runpy; sys.path[:] = {sys.path!r}; runpy.run_path({str(CHILDREN)!r}, run_name='__main__')"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def stop(child: subprocess.Popen[str]) -> list[str]:
    """End a child's stdin, take the rest of its lines, and see that it ended well."""
    rest, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    return rest.splitlines()


def kill(child: subprocess.Popen[str]) -> None:
    """Kill -9 a child and be done with it."""
    child.kill()
    child.communicate(timeout=60)


def damage(path: Path, data: bytes) -> None:
    """Change one byte in the middle of a stored block, wherever it stands in the file, behind the store's back."""
    file = path / "data.mdb"
    broken = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    whole = file.read_bytes()
    assert data in whole
    file.write_bytes(whole.replace(data, broken))


def cached_keys(store: BlockStore) -> list[bytes]:
    """The keys of what may be evicted, least recently used first, once the records are found to agree with each
    other, with the counters and with the blocks."""
    env = store._env
    with env.read() as txn:
        uses = {bytes(key): int.from_bytes(number, "big") for number, key in txn.cursor(env.db.uses)}
        records = {bytes(key): Fetched.unpack(raw) for key, raw in txn.cursor(env.db.fetched)}
        blocks = {bytes(key): len(block) for key, block in txn.cursor(env.db.blocks)}
        cached = CacheState.load(txn, env.db.meta)
        state = State.load(txn, env.db.meta)
    assert {key: record.size for key, record in records.items()}.items() <= blocks.items()
    assert {key: record.use for key, record in records.items() if record.use} == uses
    assert (state.blocks, state.bytes) == (len(blocks), sum(blocks.values()))
    assert (cached.blocks, cached.bytes) == (len(uses), sum(blocks[key] for key in uses))
    return sorted(uses, key=uses.__getitem__)
