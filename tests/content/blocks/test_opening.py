"""What is not a whole store of this format, in a place where one can live, is refused with words that help."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import sys

import lmdb
import pytest

from ipfs_stream_nb.content.blocks import BlockStore, environment, filesystems, layout, leases
from ipfs_stream_nb.content.blocks.filesystems import Mount
from ipfs_stream_nb.errors import BusyError, StoreError
from store_trees import add, cached_keys, keys_of, reachable, start, stop, stored_keys, tree


@pytest.fixture
def filled(path):
    """A closed store with one tree."""
    with BlockStore.open(path, min_free=0) as store:
        add(store, tree(1, 300_000))
    return path


def refused(path, match: str, **options: object) -> None:
    """Opening says this, and does so again."""
    for _ in range(2):
        with pytest.raises(StoreError, match=match):
            BlockStore.open(path, min_free=0, **options)


@pytest.mark.parametrize("size", [1, 4000, 4096, 5000, 8191, 8192, 50_000, 200_000])
def test_a_file_that_is_cut_short(filled, size) -> None:
    """It is refused before anything behind its end is touched, which would kill the process."""
    os.truncate(filled / "data.mdb", size)
    refused(filled, "damaged")


def test_a_cut_names_both_lengths(filled) -> None:
    """The text says how much is there of how much."""
    os.truncate(filled / "data.mdb", 100_000)
    refused(filled, r"cut short, at 100,000 of \d{3},\d{3} bytes")


def test_an_emptied_or_missing_file(filled) -> None:
    """A store that lost its data is not silently begun anew."""
    os.truncate(filled / "data.mdb", 0)
    refused(filled, "damaged.*empty")
    (filled / "data.mdb").unlink()
    refused(filled, "damaged.*gone")
    (filled / "data.mdb").mkdir()
    refused(filled, "damaged.*not a file")


@pytest.mark.parametrize("size", [10, 4096, 100_000])
def test_garbage(path, size) -> None:
    """A file of anything."""
    path.mkdir()
    (path / "data.mdb").write_bytes(random.Random(1).randbytes(size))
    refused(path, "damaged|failed")


def test_a_damaged_inner_page(filled) -> None:
    """Garbage in the middle of the tree gives a StoreError on opening or on use."""
    with (filled / "data.mdb").open("r+b") as file:
        for page in range(2, 40):
            file.seek(page * 4096)
            file.write(b"\xee" * 4096)
    code = (
        "import sys; from ipfs_stream_nb.content.blocks import BlockStore; from ipfs_stream_nb.errors import *\n"
        "try:\n  s = BlockStore.open(sys.argv[1], min_free=0); s.verify(); s.gc()\n"
        "except (StoreError, CorruptContentError) as e: print('refused')"
    )
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}", filled],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.strip() == "refused", run.stderr


def test_a_newer_format(filled) -> None:
    """Both versions are named, and what to do."""
    with lmdb.open(str(filled), max_dbs=4) as env:
        meta = env.open_db(b"meta")
        with env.begin(write=True, db=meta) as txn:
            txn.put(b"format", b"7")
    refused(filled, "format 7, and this version of ipfs_stream_nb reads and writes format 1: upgrade")


def test_a_store_from_before_there_was_a_cache(path) -> None:
    """Its databases are made at opening, and what it holds is as it was; its format stays the same."""
    made = tree(1)
    state = struct.pack("<QQQQ", len(made.blocks), sum(len(block.data) for block in made.blocks), 2, 2)
    pin = {"cid": str(made.root), "name": "old", "created": 1e9, "order": 2, "sequence": 2}
    with lmdb.open(str(path), max_dbs=4) as env, env.begin(write=True) as txn:
        meta, blocks, pins, _ = (
            env.open_db(name, txn=txn) for name in (b"meta", b"blocks", b"pins", b"transfers")
        )
        for key, value in {
            "magic": "ipfs_stream_nb block store",
            "format": "1",
            "store_id": "ab" * 16,
        }.items():
            txn.put(key.encode(), value.encode(), db=meta)
        txn.put(b"state", state, db=meta)
        txn.put(bytes(made.root.v1()), json.dumps(pin).encode(), db=pins)
        for cid, data in made.blocks:
            txn.put(cid.multihash, data, db=blocks)
    for _ in range(2):
        with BlockStore.open(path, min_free=0) as store:
            assert store.store_id == "ab" * 16
            assert [(found.cid, found.name) for found in store.pins()] == [(made.root, "old")]
            assert reachable(store, [made.root]) == keys_of(made)
            assert [origin.source for origin in store.origins(made.root).origins] == ["added here"]
            assert store.cache(tree(2).blocks, "a gateway")
            assert len(cached_keys(store)) == len(keys_of(tree(2)))
    with lmdb.open(str(path), max_dbs=4) as env, env.begin() as txn:
        assert txn.get(b"format", db=env.open_db(b"meta", txn=txn)) == b"1"


@pytest.mark.parametrize("name", [b"meta", b"theirs", None])
def test_a_foreign_database(path, name) -> None:
    """Another program's LMDB file is left as it is."""
    with lmdb.open(str(path), max_dbs=4) as env, env.begin(write=True) as txn:
        db = env.open_db(name, txn=txn) if name else None
        txn.put(b"meta" if name is None else b"key", b"value", **({"db": db} if db else {}))
    before = (path / "data.mdb").read_bytes()
    refused(path, "another program")
    assert (path / "data.mdb").read_bytes() == before


def test_an_interrupted_creation(path) -> None:
    """A directory in which LMDB has just begun becomes a store."""
    lmdb.open(str(path)).close()
    with BlockStore.open(path, min_free=0) as store:
        add(store, tree(1))
    path.with_name("other").mkdir()
    (path.with_name("other") / "data.mdb").touch()
    BlockStore.open(path.with_name("other"), min_free=0).close()


def test_places_that_are_no_place(tmp_path, path) -> None:
    """A file, a path below a file, a directory of other things, and one that isn't there."""
    file = tmp_path / "file"
    file.write_text("x")
    refused(file, "is a file")
    refused(file / "below", "Not a directory")
    refused(tmp_path, "other things.*file.*empty or new")
    refused(path, "no block store", create=False)
    path.mkdir()
    refused(path, "no block store", create=False)
    assert list(path.iterdir()) == []


def test_a_directory_without_permission(filled) -> None:
    """As seen by a user who may not write there."""
    code = (
        "import os, sys; from ipfs_stream_nb.content.blocks import BlockStore; from ipfs_stream_nb.errors import *\n"
        "if not os.geteuid(): os.setegid(65534); os.seteuid(65534)\n"
        "try: BlockStore.open(sys.argv[1])\n"
        "except StoreError as e: print(e)"
    )
    filled.chmod(0o555)
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}", filled],
        capture_output=True,
        text=True,
        check=False,
    )
    filled.chmod(0o700)
    assert "may not write there" in run.stdout or "Permission denied" in run.stdout, run.stderr


def test_a_lock_file_that_is_none(filled) -> None:
    """A directory or rubbish in the place of LMDB's lock file: an error, or a new lock file; the data is safe."""
    (filled / "lock.mdb").write_bytes(b"rubbish" * 1000)
    with BlockStore.open(filled, min_free=0) as store:
        assert stored_keys(store) == keys_of(tree(1, 300_000))
    (filled / "lock.mdb").unlink()
    (filled / "lock.mdb").mkdir()
    refused(filled, "Is a directory")


def test_a_store_that_is_replaced_while_open(path, filled) -> None:
    """Nothing is acknowledged into a file that nobody will find again."""
    with BlockStore.open(filled, min_free=0) as store:
        (filled / "data.mdb").rename(filled / "old.mdb")
        (filled / "data.mdb").write_bytes((filled / "old.mdb").read_bytes())
        with pytest.raises(StoreError, match="replaced"):
            add(store, tree(2))


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
def test_a_store_whose_directory_goes_while_open(path, filled, replaced) -> None:
    """Counters and inserts say what happened, in our own error."""
    with BlockStore.open(filled, min_free=0) as store:
        shutil.rmtree(filled)
        if replaced:
            BlockStore.open(filled, min_free=0).close()
        for call in (store.stat, lambda: store.put(*tree(2).blocks[0])):
            with pytest.raises(StoreError, match="deleted or replaced while it was open"):
                call()


def test_opening_waits_for_the_door(filled, monkeypatch) -> None:
    """While another one opens or compacts, and no longer than the limit."""

    monkeypatch.setattr(environment, "OPEN_WAIT", 0.05)
    with leases.FileLock(filled), pytest.raises(BusyError, match="try again"):
        BlockStore.open(filled)


def test_many_processes_open_at_once(path) -> None:
    """The store is made once, whoever comes first."""
    children = [start("adds", path, seed, 2) for seed in (1, 100, 200, 300)]
    lines = [line for child in children for line in stop(child)]
    with BlockStore.open(path, min_free=0) as store:
        assert len(reachable(store, [pin.cid for pin in store.pins()])) > 0
        assert len(store.pins()) == len(lines) == 8
        assert (path / layout.LOCKS).is_dir()


MOUNTS = [
    Mount("/", "ext4"),
    Mount("/home", "nfs4"),
    Mount("/home/me/local", "xfs"),
    Mount("/mnt/s3", "fuse.s3fs"),
    Mount("/mnt/crypt", "fuse.gocryptfs"),
    Mount("/mnt/win", "9p"),
    Mount("/mnt/share", "CIFS"),
    Mount("/data", "lustre"),
    Mount("/data", "tmpfs"),
]


@pytest.mark.parametrize(
    ("where", "remote"),
    [
        ("/var/lib", False),
        ("/home", True),
        ("/home/me/notebooks", True),
        ("/home/me/local/repo", False),
        ("/homestead", False),
        ("/mnt/s3/x", True),
        ("/mnt/crypt/x", False),
        ("/mnt/win/c", True),
        ("/mnt/share/a/b", True),
        ("/data/repo", False),
    ],
)
def test_remote_filesystems_are_told_by_the_mount(where, remote) -> None:
    """The longest mount point counts, of two at the same place the later one."""
    assert filesystems.is_remote(where, MOUNTS) is remote


def test_a_store_on_a_remote_filesystem_is_refused(path, monkeypatch) -> None:
    """The text names the filesystem and the way out; nothing is made there."""
    monkeypatch.setattr(
        filesystems, "mount_table", lambda: [Mount("/", "ext4"), Mount(str(path.parent), "nfs4")]
    )
    with pytest.raises(StoreError, match=r"nfs4 filesystem.*IPFS_STREAM_NB_REPO"):
        BlockStore.open(path)
    assert not path.exists()


def test_this_system_has_a_mount_table() -> None:
    """The real table names the filesystem of the working directory."""
    assert filesystems.filesystem_of(".").fstype


def test_the_repo_setting(monkeypatch, tmp_path) -> None:
    """The environment names the store's place; without it, the user's data directory does."""
    monkeypatch.setenv(filesystems.REPO_VARIABLE, str(tmp_path))
    assert filesystems.default_repo() == tmp_path
    monkeypatch.delenv(filesystems.REPO_VARIABLE)
    assert filesystems.default_repo().name == "repo"
