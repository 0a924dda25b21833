"""Kill -9 in the middle of everything: what was acknowledged is there, and no rubbish stays for good."""

from __future__ import annotations

import os
import random
import select
import signal
import time

import pytest

from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.cid import CID
from store_trees import cached_keys, kill, reachable, start, stop, stored_keys

ROUNDS = 100
"""Two processes are killed in each."""


@pytest.mark.slow
def test_200_kills(path) -> None:
    """Two processes add, fetch, pin, unpin, abandon and collect until they are killed at a random moment, 100 times over.

    After each, the store opens in under 2 s, unless the machine stands still, and has every acknowledged tree of that round, and its
    counters and records agree with its blocks; at the end all of them are there, every block verifies, and a collection leaves exactly what is pinned.
    """
    chooser = random.Random(2)
    pinned: set[CID] = set()
    openings: list[float] = []
    acknowledged = 0
    child = start("nursery", path)
    assert _line(child) == "ready"
    for number in range(ROUNDS):
        child.stdin.write(f"{number}\n")
        child.stdin.flush()
        lines = [_line(child)]
        while len(lines) < 4 or not any(line.startswith("pids") for line in lines):  # they are at work
            lines.append(_line(child))
        pids = [int(word) for line in lines if line.startswith("pids") for word in line.split()[1:]]
        select.select([], [], [], chooser.uniform(0, 0.3))  # the random moment
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        while lines[-1] != "dead":
            lines.append(_line(child))
        fresh, taken = set(), set()
        for line in lines:
            mark, _, text = line.partition(" ")
            if mark in "+-":
                (fresh if mark == "+" else taken).add(CID.parse(text))
        acknowledged += len(fresh)
        pinned = (pinned | fresh) - taken
        began = time.monotonic()
        with BlockStore.open(path, min_free=0) as store:
            openings.append(time.monotonic() - began)
            assert {pin.cid for pin in store.pins()} >= pinned
            reachable(store, sorted(fresh - taken, key=str))
            cached_keys(store)
    stop(child)
    assert sorted(openings)[-ROUNDS // 20] < 2
    with BlockStore.open(path, min_free=0) as store:
        roots = [pin.cid for pin in store.pins()]
        needed = reachable(store, roots)  # raises where a block is missing or damaged
        assert store.verify().bad == ()
        store.gc()
        assert stored_keys(store) == needed
        assert cached_keys(store) == []
        stat = store.stat()
        assert stat.blocks == len(needed)
    print(
        f"{2 * ROUNDS} kills, {acknowledged} acknowledged, slowest opening {max(openings) * 1000:.0f} ms, {stat}"
    )


def _line(child) -> str:
    line = child.stdout.readline()
    if not line:
        kill(child)
        pytest.fail("the children's parent died")
    return line.strip()
