"""What other processes do to a store in its tests: `python store_children.py <part> <path> [arguments]`.

Every part prints a line for each thing that the store has acknowledged.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import select
import sys

from ipfs_stream_nb.content.blocks import BlockStore, environment
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.errors import BusyError, IPFSStreamError, NotFoundError, RetrievalError
from store_trees import SMALL, add, tree


def say(*words: object) -> None:
    """Print a line in one write, so that lines of two processes don't mix and none is lost in a buffer."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def open_store(path: str) -> BlockStore:
    """Without a low-disk limit: a test's disk may be small."""
    return BlockStore.open(path, min_free=0)


def hold(path: str) -> None:
    """Keep the store open until stdin ends."""
    with open_store(path):
        say("open")
        sys.stdin.read()


def lease(path: str, root: str) -> None:
    """Read a root until stdin ends."""
    with open_store(path) as store, store.reading(CID.parse(root)):
        say("reading")
        sys.stdin.read()


def abandon(path: str, seed: str) -> None:
    """Begin a transfer and wait to be killed."""
    store = open_store(path)
    made = tree(int(seed))
    store.transfer().put(made.blocks)
    say(made.root)
    sys.stdin.read()


def grow(path: str, seed: str, megabytes: str) -> None:
    """Add blocks of 1 MiB with a map that is too small for them."""
    environment.MIN_MAP = 1 << 20
    with open_store(path) as store:
        chooser = random.Random(int(seed))
        for _ in range(int(megabytes)):
            data = chooser.randbytes(1 << 20)
            store.put(CID.of(data), data)
            say(CID.of(data))


def fill(path: str, file_limit: str) -> None:
    """Add until files may not grow any more, and say how it ends; then read everything back and collect it."""
    with open_store(path) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(file_limit), resource.RLIM_INFINITY))
        cids = []
        try:
            for number in range(1000):
                data = random.Random(number).randbytes(1 << 20)
                store.put(CID.of(data), data)
                cids.append(CID.of(data))
        except IPFSStreamError as error:
            say(type(error).__name__, error)
        say(sum(len(store.get(cid)) for cid in cids), store.gc().bytes)


def adds(path: str, seed: str, count: str) -> None:
    """Add and pin trees, some of which share blocks with each other or with unpinned ones."""
    with open_store(path) as store:
        for number in range(int(count)):
            made = tree(int(seed) + number % 7 * 1000 + number)
            if number % 3:
                say(add(store, made))
                continue
            add(store, tree(int(seed) + 500_000 + number), pin=False)  # for the collector
            add(store, made, pin=False)
            try:
                say(store.pin(made.root).cid)
            except IPFSStreamError:  # collected in between, as it may be
                say(add(store, made))


def collects(path: str) -> None:
    """Collect garbage until stdin ends, told by a line for each time."""
    with open_store(path) as store:
        while not select.select([0], [], [], 0)[0]:
            say(store.gc().blocks)


def fetches(path: str, cache_quota: str) -> None:
    """Fetch and touch trees, and pin some of them, until stdin ends, told by a line for each."""
    with BlockStore.open(path, min_free=0, cache_quota=int(cache_quota)) as store:
        while not select.select([0], [], [], 0)[0]:
            made = tree(random.getrandbits(40))
            store.cache(made.blocks, "a child")
            store.touch([made.root])
            if random.random() < 0.1:
                with contextlib.suppress(RetrievalError, NotFoundError):
                    store.pin(made.root)
                    store.unpin(made.root)
            say(made.root)


def disturb(path: str, seed: int) -> None:
    """Everything at once, until killed: `+ cid` for an acknowledged pin, `- cid` before it is taken back."""
    chooser = random.Random(seed)
    pinned: list[CID] = []
    with open_store(path) as store:
        while True:
            made = tree(chooser.getrandbits(40), chooser.choice([500, 5_000, 30_000]), SMALL)
            act = chooser.random()
            if act < 0.1:
                store.cache(made.blocks, "a gateway")
            elif act < 0.7:
                transfer = store.transfer()
                half = chooser.randrange(len(made.blocks))
                transfer.put(made.blocks[:half])
                transfer.put(made.blocks[half:])
                transfer.commit(made.root)
                say("+", made.root)
                pinned.append(made.root)
            elif act < 0.85:
                store.transfer().put(made.blocks)
            elif act < 0.95 and pinned:
                root = pinned.pop()
                say("-", root)
                store.unpin(root)
            else:
                try:
                    store.gc()
                except BusyError:
                    continue


def nursery(path: str) -> None:
    """For every line `seed`, fork two children that `disturb`; say who they are, and when both are dead."""
    say("ready")
    for line in sys.stdin:
        pids = []
        for number in range(2):
            pid = os.fork()
            if not pid:
                disturb(path, int(line) * 2 + number)
            pids.append(pid)
        say("pids", *pids)
        for pid in pids:
            os.waitpid(pid, 0)
        say("dead")


if __name__ == "__main__":
    part, *arguments = sys.argv[1:]
    globals()[part](*arguments)
