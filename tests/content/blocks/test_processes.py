"""Several processes, forks and threads on one store."""

from __future__ import annotations

import os
import random
import threading
import time
import warnings

import pytest

from ipfs_stream_nb.content.blocks import BlockStore, environment, layout, leases, maintenance
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.errors import BusyError, StoreError
from store_trees import add, keys_of, kill, reachable, start, stop, stored_keys, tree


def forked(call) -> str:
    """What `call` returns, or the text of what it raises, in a forked child."""
    out, into = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is what is tested
        pid = os.fork()
    if not pid:
        try:
            text = str(call())
        except BaseException as error:  # noqa: BLE001 - all of it is told to the parent
            text = f"{type(error).__name__}: {error}"
        os.write(into, text.encode())
        os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as file:
        text = file.read().decode()
    os.waitpid(pid, 0)
    return text


def test_two_processes_grow_one_store(path, monkeypatch) -> None:
    """Each follows the growth that the other made, while a third reads what both acknowledge."""
    monkeypatch.setattr(environment, "MIN_MAP", 1 << 20)
    with BlockStore.open(path, min_free=0) as store:
        children = [start("grow", path, seed, 24) for seed in (1, 2)]
        cids = []
        for lines in zip(*(child.stdout for child in children), strict=False):
            for line in lines:
                cids.append(CID.parse(line.strip()))
                cids[-1].verify(store.get(cids[-1]))
        for child in children:
            cids += [CID.parse(line) for line in stop(child)]
        assert len(set(cids)) == store.stat().blocks == 48
        assert store._env.lmdb.info()["map_size"] >= 48 << 20
        assert store.verify().bad == ()


def test_a_forked_child_opens_the_store_anew(store) -> None:
    """The inherited object says so; a new one works, and the parent's goes on, whoever ends first."""
    made, other = tree(1), tree(2)
    add(store, made)

    def child() -> str:
        for call in (
            store.get,
            store.pin,
            store.unpin,
            store.remove,
            lambda cid: store.reading(cid).__enter__(),
        ):
            with pytest.raises(StoreError, match="forked; open it again"):
                call(made.root)
        store.close()
        with BlockStore.open(store.path, min_free=0) as own:
            add(own, other)
            return str(reachable(own, [made.root]) == keys_of(made))

    assert forked(child) == "True"
    assert reachable(store, [made.root, other.root]) == keys_of(made) | keys_of(other)
    assert len(list((store.path / layout.LOCKS).glob("owner-*"))) == 1
    store.gc()
    add(store, tree(3))


def test_forks_beside_busy_threads(store) -> None:
    """A fork waits for transactions that run, so the child never inherits half of one."""
    stop_it = threading.Event()
    made = tree(1)
    add(store, made)

    def reads() -> None:
        while not stop_it.is_set():
            store.get(made.root)

    def writes(seed: int) -> None:
        while not stop_it.is_set():
            add(store, tree(seed, 2000))
            seed += 1

    threads = [threading.Thread(target=reads), threading.Thread(target=writes, args=(1000,))]
    for thread in threads:
        thread.start()

    def child() -> int:
        with BlockStore.open(store.path, min_free=0) as own:
            return len(reachable(own, [made.root]))

    try:
        assert {forked(child) for _ in range(20)} == {str(len(keys_of(made)))}
    finally:
        stop_it.set()
        for thread in threads:
            thread.join()
    reachable(store, [pin.cid for pin in store.pins()])


def test_a_forked_child_does_not_keep_its_parents_lease(path) -> None:
    """A child that never opens the store doesn't count as a process that has it open."""
    store = BlockStore.open(path, min_free=0)
    out, into = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        os.close(into)
        os.read(out, 1)
        os._exit(0)
    store.close()
    with BlockStore.open(path, min_free=0) as again:
        again.compact()
    os.close(into)
    os.waitpid(pid, 0)
    os.close(out)


def test_a_forked_child_does_not_keep_its_parents_locks(path) -> None:
    """A lock that is held while a child is forked ends when the parent gives it back."""
    path.mkdir()
    out, into = os.pipe()
    with leases.FileLock(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
        if not pid:
            os.close(into)
            os.read(out, 1)
            os._exit(0)
    with leases.FileLock(path, wait=0):
        pass
    os.close(into)
    os.waitpid(pid, 0)
    os.close(out)


def test_compacting_gives_space_back(store) -> None:
    """The freed part of the file, and nothing else; the store is in use before and after."""
    kept = add(store, tree(1, 500_000), name="kept")
    add(store, tree(2, 5_000_000), pin=False)
    store.gc()
    before, keys = store.stat(), stored_keys(store)
    transfer = store.transfer()
    transfer.put(tree(3).blocks)
    returned = store.compact()
    assert returned > 4_000_000
    assert store.stat().disk_size < before.disk_size - 4_000_000
    transfer.commit(tree(3).root)
    assert stored_keys(store) == keys | keys_of(tree(3))
    assert [pin.name for pin in store.pins()] == ["kept", ""]
    assert reachable(store, [kept])
    assert store.store_id == BlockStore.open(store.path).store_id


def test_compacting_waits_for_nobody_else(path) -> None:
    """Another process that has the store open would go on with the old file, so it is refused."""
    with BlockStore.open(path, min_free=0) as store:
        child = start("hold", path)
        child.stdout.readline()
        with pytest.raises(BusyError, match="1 other has"):
            store.compact()
        kill(child)
        store.compact()


def test_reads_and_writes_while_compacting(store) -> None:
    """Threads of this process wait at most, and all that they acknowledge is there."""
    made = tree(1, 2_000_000)
    add(store, made)
    roots, at_work, done = [], threading.Semaphore(0), threading.Event()

    def work(seed: int) -> None:
        while not done.is_set():
            roots.append(add(store, tree(seed, 3000)))
            at_work.release()
            store.get(made.blocks[seed % len(made.blocks)].cid)
            seed += 1

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1000, 2000)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        assert at_work.acquire(timeout=60)  # with none of them under way there would be nothing to see
        store.compact()
    done.set()
    for thread in threads:
        thread.join()
    reachable(store, [made.root, *roots])
    assert store.verify().bad == ()


@pytest.mark.parametrize("step", ["_copy", "_exchange", "_sync_directory"])
def test_a_crash_while_compacting(path, monkeypatch, step) -> None:
    """Before, after and in the middle of the exchange: the next opening finds a whole store and no left-overs."""
    with BlockStore.open(path, min_free=0) as store:
        add(store, tree(1, 300_000))

    def child() -> None:
        store = BlockStore.open(path, min_free=0)
        whole = getattr(maintenance, step)

        def crash(*arguments: object) -> None:
            whole(*arguments)
            os.kill(os.getpid(), 9)

        setattr(maintenance, step, crash)
        store.compact()

    assert forked(child) == ""
    with BlockStore.open(path, min_free=0) as store:
        assert stored_keys(store) == keys_of(tree(1, 300_000))
        assert store.verify().bad == ()
        assert not (path / layout.COMPACTING).exists()
        store.compact()


def test_opening_is_quick_whatever_the_size(path) -> None:
    """No scan: a store of 20,000 blocks opens as fast as an empty one, also after a kill."""
    chooser = random.Random(1)
    with BlockStore.open(path, min_free=0) as store, store.transfer() as transfer:
        for _ in range(20):
            datas = [chooser.randbytes(64) for _ in range(1000)]
            transfer.put([(CID.of(data), data) for data in datas])
    child = start("abandon", path, 1)
    child.stdout.readline()
    kill(child)
    began = time.thread_time()  # a machine that stands still meanwhile is no scan
    with BlockStore.open(path, min_free=0) as store:
        assert time.thread_time() - began < 2
        assert store.stat().blocks >= 20_000
