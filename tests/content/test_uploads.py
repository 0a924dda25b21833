"""Files that come in parts, over any number of connections and processes: the CID of `ipfs add`, and nothing lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipfs_stream_nb.content import importer, uploads, writer
from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.importer import PROFILES, Profile, import_bytes
from ipfs_stream_nb.content.uploads import Uploads, to_the_end
from ipfs_stream_nb.errors import (
    BadRequestError,
    BusyError,
    DiskFullError,
    NotFoundError,
    QuotaExceededError,
)
from kubo_nodes import node_of
from small_disks import small_disk
from store_trees import stored_keys

CHILD = Path(__file__).parents[1] / "upload_child.py"
MIB = 1 << 20
SMALL = Profile("small", chunk_size=100, max_links=3)


@pytest.fixture
async def node(tmp_path):
    async with await EmbeddedNode.open(tmp_path / "repo", min_free=0) as node:
        yield node


@pytest.fixture
def small(monkeypatch):
    """Leaves of 100 bytes, nodes of 3 links, batches of 500 bytes: a deep tree out of little content."""
    monkeypatch.setitem(PROFILES, "small", SMALL)
    for module in (writer, uploads):
        monkeypatch.setattr(module, "BATCH_BYTES", 500)
    assert importer.get_profile("small") is SMALL


def held(store):
    """What stands in a store: its blocks, and the numbers of notes of transfers and of uploads."""
    env = store._env
    with env.read() as txn:
        notes = [sum(1 for _ in txn.cursor(db)) for db in (env.db.transfers, env.db.uploads)]
    return stored_keys(store), *notes


async def write_in_frames(file, data, size):
    """Hand it over piece by piece."""
    for at in range(0, len(data), size):
        await file.write(data[at : at + size])


@pytest.mark.parametrize("profile", sorted(PROFILES))
@pytest.mark.parametrize(
    ("frame", "length"),
    [
        (1, 3000),
        (999, MIB + 1),
        (65_536, 9 * MIB + 5),
        (262_144, 9 * MIB),
        (262_145, 9 * MIB),
        (8 * MIB, 17 * MIB),
    ],
)
async def test_the_cid_depends_on_the_bytes_alone(node, profile, frame, length):
    """For frames of 1 byte to 8 MiB and every profile, the CID is that of the bytes in one piece, and all is there."""
    data = random.Random(frame).randbytes(length)
    file = await node.uploads.begin(size=length, profile=profile)
    await write_in_frames(file, data, frame)
    added = await file.finish()
    assert added.cid == import_bytes(data, profile).root
    assert added.size == file.bytes_written == length
    assert await node.read(added.cid, 0, length) == data
    assert [pin.cid for pin in await node.pins()] == [added.cid]


async def test_an_empty_file(node):
    """No bytes at all are a file as well, declared or not."""
    for size in (0, None):
        file = await node.uploads.begin(size=size)
        assert (await file.finish()).cid == import_bytes(b"").root


async def test_one_huge_write_is_committed_in_batches(node, monkeypatch):
    """A write of many batches does not gather all of them in memory before the first is stored."""
    sizes = []
    checkpoint = node.store.uploads.checkpoint

    def counted(record, blocks):
        sizes.append(sum(len(block.data) for block in blocks))
        checkpoint(record, blocks)

    monkeypatch.setattr(node.store.uploads, "checkpoint", counted)
    data = random.Random(1).randbytes(40 * MIB)
    file = await node.uploads.begin()
    await file.write(data)
    assert (await file.finish()).cid == import_bytes(data).root
    assert len(sizes) >= 4
    assert max(sizes) <= 2 * writer.BATCH_BYTES


STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 700)),
    st.tuples(st.just("cancel"), st.integers(1, 1500)),
    st.tuples(st.sampled_from(["checkpoint", "suspend", "kill", "takeover", "gc"]), st.just(0)),
)
_SEEDS = count()


async def write_cancelled(file, data, pauses):
    """Begin to write and give up after so many turns of the loop; whether anybody knows what was taken."""
    writing = asyncio.create_task(file.write(data))
    for _ in range(pauses):
        await asyncio.sleep(0)
    writing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await writing
    if not file._torn:
        return True
    for call in (file.write(b"more"), file.finish()):
        with pytest.raises(BadRequestError, match="cancelled"):
            await call
    return False


async def resumed(mine, file, known):
    """The same upload, opened anew: it has what was known to be durable, and the old writer is of no use any more."""
    again = await mine.resume(file.id)
    assert again.bytes_written == again.durable >= known
    with pytest.raises((BusyError, BadRequestError)):
        await file.write(b"x") or await file.checkpoint()
    return again


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(0, 4000), steps=st.lists(STEPS, max_size=14), pauses=st.integers(0, 6))
async def test_however_it_is_broken_off(node, small, length, steps, pauses):
    """Whatever is written, cancelled half-way, suspended, killed, taken over or collected: what was called durable is
    there at the next resumption, and in the end the CID is that of the bytes in one piece."""
    data = random.Random(next(_SEEDS)).randbytes(length)
    mine = Uploads(node.store, node._executor)
    file = await mine.begin(profile="small")
    known = 0
    for step, size in steps:
        at = file.bytes_written
        whole = True
        match step:
            case "write":
                await file.write(data[at : at + size])
            case "cancel":
                whole = await write_cancelled(file, data[at : at + size], pauses)
            case "checkpoint":
                assert await file.checkpoint() == file.bytes_written
            case "suspend":
                await file.suspend()
            case "gc":
                await node.gc()
        known = max(known, file.durable)
        assert known <= len(data)
        if step == "kill" or not whole:
            mine = Uploads(node.store, node._executor)  # a new process knows what is in the store
        if step in {"kill", "suspend", "takeover"} or not whole:
            file = await resumed(mine, file, known)
    await write_in_frames(file, data[file.bytes_written :], 450)
    added = await file.finish()
    assert added.cid == import_bytes(data, SMALL).root
    assert await node.read(added.cid, 0, length) == data
    await node.unpin(added.cid)
    await node.uploads.expire(-1)
    await node.gc()
    assert held(node.store) == (set(), 0, 0)


def child(repo, data, frame, profile, upload_id=""):
    """An upload in another process."""
    seed, size = data
    code = (
        f"import sys, runpy; sys.path[:] = {sys.path!r}; runpy.run_path({str(CHILD)!r}, run_name='__main__')"
    )
    arguments = [str(repo), str(seed), str(size), str(frame), profile, *([upload_id] if upload_id else [])]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )


@pytest.mark.parametrize("profile", ["unixfs-v1-2025", "unixfs-v0-2015"])
def test_kill_9_in_the_middle(tmp_path, profile):
    """A process that is killed while it writes, again and again: what it called durable is there for the next one,
    which goes on from there, and the last one ends in the right CID, read from the store."""
    seed, size = 7, 24 * MIB
    chooser = random.Random(profile)
    upload_id, durable, kills = "", 0, 0
    repo = tmp_path / "repo"
    while True:
        running = child(repo, (seed, size), 300_001, profile, upload_id)
        assert running.stdout is not None
        assert running.stdin is not None
        with running, running.stdout:
            mark, upload_id, begun = running.stdout.readline().decode().split()
            assert mark == "id"
            assert int(begun) >= durable
            durable = int(begun)
            line = ""
            for _ in range(chooser.randrange(1, 6) if kills < 5 else sys.maxsize):
                line = running.stdout.readline().decode()
                if not line or line.startswith("cid"):
                    break
                durable = int(line)
                running.stdin.write(b"\n")
            time.sleep(chooser.uniform(0, 0.02))  # so far it writes on
            running.kill()
        kills += 1
        if line.startswith("cid"):
            break
    assert kills >= 3
    data = random.Random(seed).randbytes(size)
    cid = CID.parse(line.split()[1])
    assert cid == import_bytes(data, profile).root
    with BlockStore.open(repo, min_free=0) as store:
        store.gc()
        assert store.verify().bad == ()
        assert stored_keys(store) == {block.cid.multihash for block in import_bytes(data, profile).blocks}


async def test_a_second_connection_takes_over(node):
    """Resuming an upload that another connection still has takes all of its bytes; the other one is told so."""
    data = random.Random(1).randbytes(3 * MIB)
    first = await node.uploads.begin()
    await first.write(data[: MIB + 77])
    second = await node.uploads.resume(first.id)
    assert second.durable == MIB + 77
    for call in (first.write(b"x"), first.checkpoint(), first.finish()):
        with pytest.raises(BusyError, match="another connection"):
            await call
    await first.suspend()  # as its connection ends
    await second.write(data[MIB + 77 :])
    assert (await second.finish()).cid == import_bytes(data).root


async def test_another_process_takes_over(tmp_path, monkeypatch):
    """The same where the other connection is another process's, which this one cannot tell: it finds out by itself."""
    monkeypatch.setattr(uploads, "CHECKPOINT_SECONDS", 3600.0)  # however long a busy machine takes
    data = random.Random(1).randbytes(2 * MIB)
    async with (
        await EmbeddedNode.open(tmp_path / "repo", min_free=0) as one,
        await EmbeddedNode.open(tmp_path / "repo", min_free=0) as two,
    ):
        first = await one.uploads.begin()
        await first.write(data[:MIB])
        await first.checkpoint()
        await first.write(data[MIB : MIB + 9])
        second = await two.uploads.resume(first.id)
        assert second.durable == MIB
        with pytest.raises(BusyError):
            await first.checkpoint()
        await second.write(data[MIB:])
        assert (await second.finish()).cid == import_bytes(data).root


async def test_a_finished_upload_says_so_again(tmp_path):
    """A client that did not get its result resumes and gets the same; bytes are not taken any more."""
    async with await EmbeddedNode.open(tmp_path / "repo", min_free=0) as node:
        file = await node.uploads.begin(name="a.txt")
        await file.write(b"hello")
        added = await file.finish()
        assert await file.finish() == added
    async with await EmbeddedNode.open(tmp_path / "repo", min_free=0) as node:
        again = await node.uploads.resume(file.id)
        assert again.finished == await again.finish() == added
        with pytest.raises(BadRequestError, match="finished"):
            await again.write(b"more")
        await again.abort()  # which a finished one outlives
        assert (await (await node.uploads.resume(file.id)).finish()) == added
        assert [(pin.cid, pin.name) for pin in await node.pins()] == [(added.cid, "a.txt")]


@pytest.mark.parametrize("upload_id", ["", "x", "zz" * 16, "ab" * 15, "ab" * 17, "\udcff" * 32, "ä" * 32])
async def test_ids_that_are_none(node, upload_id):
    """What is no id is refused as such."""
    with pytest.raises(BadRequestError, match="upload_id"):
        await node.uploads.resume(upload_id)


async def test_an_id_that_is_not_there(node, monkeypatch):
    """An id that is not known, was cancelled or has expired is not found; the writer that had it is told as well."""
    monkeypatch.setattr(uploads, "CHECKPOINT_SECONDS", 3600.0)  # so that there is something left to store
    with pytest.raises(NotFoundError, match="no upload"):
        await node.uploads.resume("ab" * 16)
    for end in (lambda file: file.abort(), lambda _file: asyncio.to_thread(node.store.uploads.expire, -1)):
        file = await node.uploads.begin()
        await file.write(b"hello")
        await end(file)
        with pytest.raises(NotFoundError, match="no upload"):
            await node.uploads.resume(file.id)
        with pytest.raises((NotFoundError, BadRequestError), match="cancelled"):
            await file.checkpoint()


@pytest.mark.parametrize("end", ["abort", "expire", "expire after reopening", "abort while collecting"])
async def test_what_is_given_up_leaves_nothing(tmp_path, small, end):
    """Cancelling and expiry take away the blocks, the notes and the record, and nothing that somebody else needs."""
    path = tmp_path / "repo"
    data = random.Random(1).randbytes(5000)
    node = await EmbeddedNode.open(path, min_free=0)
    shared = await node.uploads.begin(profile="small")
    await shared.write(data[:1000])
    await shared.finish()
    before = held(node.store)
    file = await node.uploads.begin(profile="small")
    await write_in_frames(file, data, 333)
    await file.checkpoint()
    assert len(held(node.store)[0]) > len(before[0]) + 40
    if end == "abort":
        await file.abort()
        await file.abort()
    elif end == "abort while collecting":
        await asyncio.gather(file.abort(), node.gc())
    else:
        if "reopening" in end:
            await node.close()
            node = await EmbeddedNode.open(path, min_free=0)
        assert await node.uploads.expire(3600) == 0
        assert await asyncio.to_thread(node.store.uploads.expire, -1) == 2
        before = (*before[:2], 0)
    if end == "abort while collecting":
        await node.gc()
    assert held(node.store) == before
    await file.suspend()
    await node.close()


async def test_an_open_upload_survives_collections(tmp_path, small):
    """Garbage collection leaves the blocks of an upload that is not finished, also once its process has ended."""
    path = tmp_path / "repo"
    data = random.Random(1).randbytes(5000)
    async with await EmbeddedNode.open(path, min_free=0) as node:
        file = await node.uploads.begin(profile="small")
        await write_in_frames(file, data[:4321], 1000)
        await file.checkpoint()
        assert (await node.gc()).blocks == 0
    async with await EmbeddedNode.open(path, min_free=0) as node:
        assert (await node.gc()).blocks == 0
        file = await node.uploads.resume(file.id)
        assert file.durable == 4321
        await file.write(data[4321:])
        added = await file.finish(pin=False)
        assert added.cid == import_bytes(data, SMALL).root
        assert await node.read(added.cid, 0, 5000) == data
        assert (await node.gc()).blocks > 50


async def test_too_many_unfinished(node, monkeypatch):
    """Over MAX_UNFINISHED no more are begun; finished ones don't count, and a cancelled one makes room."""
    monkeypatch.setattr(uploads, "MAX_UNFINISHED", 2)
    for _ in range(3):
        await (await node.uploads.begin()).finish()
    first, _ = await node.uploads.begin(), await node.uploads.begin()
    with pytest.raises(BusyError, match="2 uploads"):
        await node.uploads.begin()
    await first.abort()
    await node.uploads.begin()


async def test_sizes_that_lie(node):
    """Less than was declared is no file yet; more is not taken, and what is here is not passed off as the file."""
    file = await node.uploads.begin(size=10)
    await file.write(b"12345")
    with pytest.raises(BadRequestError, match="10 bytes were declared, and 5 came"):
        await file.finish()
    await file.write(b"67890")
    assert (await file.finish()).cid == import_bytes(b"1234567890").root

    file = await node.uploads.begin(size=10)
    await file.write(b"12345678")
    with pytest.raises(BadRequestError, match="10 bytes were declared, and 13 came"):
        await file.write(b"90abc")
    with pytest.raises(BadRequestError, match="more bytes came"):
        await file.write(b"90") or await file.finish()
    again = await node.uploads.resume(file.id)
    assert again.durable == 10
    assert (await again.finish()).size == 10


async def test_an_unknown_profile(node):
    """It is refused before anything is noted."""
    with pytest.raises(BadRequestError, match="nonsense"):
        await node.uploads.begin(profile="nonsense")
    assert held(node.store) == (set(), 0, 0)


async def test_a_quota_ends_it_and_is_mended_by_room(tmp_path, small):
    """Over the quota it ends with the reason; what was durable before is there once there is room again."""
    data = random.Random(1).randbytes(8000)
    async with await EmbeddedNode.open(tmp_path / "repo", min_free=0, quota=4000) as node:
        file = await node.uploads.begin(profile="small")
        with pytest.raises(QuotaExceededError, match="quota"):
            await write_in_frames(file, data, 100)
            await file.checkpoint()
        with pytest.raises(QuotaExceededError):
            await file.write(b"x")
        assert 0 < file.durable < 4000
        durable = file.durable
    async with await EmbeddedNode.open(tmp_path / "repo", min_free=0) as node:
        file = await node.uploads.resume(file.id)
        assert file.durable == durable
        await file.write(data[durable:])
        assert (await file.finish()).cid == import_bytes(data, SMALL).root


@pytest.fixture
def disk(tmp_path):
    """16 MiB."""
    with small_disk(tmp_path / "disk") as mounted:
        yield mounted


async def test_a_disk_that_fills_up(disk):
    """A full disk ends it with the reason, and it goes on from its durable bytes when there is room."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(5 * MIB))
    data = random.Random(1).randbytes(11 * MIB)
    async with await EmbeddedNode.open(disk / "repo", min_free=0) as node:
        file = await node.uploads.begin()
        with pytest.raises(DiskFullError):
            for at in range(0, len(data), MIB // 2):
                await file.write(data[at : at + MIB // 2])
                await file.checkpoint()
        durable = file.durable
        assert durable > 2 * MIB
        await file.suspend()
        ballast.unlink()
        again = await node.uploads.resume(file.id)
        assert again.durable >= durable
        await again.write(data[again.durable :])
        assert (await again.finish()).cid == import_bytes(data).root


async def test_an_end_that_is_cancelled(node, monkeypatch):
    """Whoever gives up waiting for the end cannot go on writing; a resumption ends in the right CID."""
    data = random.Random(1).randbytes(3 * MIB)
    file = await node.uploads.begin()
    await file.write(data)
    inside = asyncio.Event()

    async def forever(*_args, **_kwargs):
        inside.set()
        await asyncio.get_running_loop().create_future()

    with monkeypatch.context() as patch:
        patch.setattr(node.uploads, "complete", forever)
        ending = asyncio.create_task(file.finish())
        await inside.wait()
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
    for call in (file.write(b"x"), file.finish()):
        with pytest.raises(BadRequestError, match="resume"):
            await call
    again = await node.uploads.resume(file.id)
    await again.write(b"and more")
    assert (await again.finish()).cid == import_bytes(data + b"and more").root


async def test_giving_up_is_done_to_the_end(node, small):
    """However often the task that cancels an upload is cancelled itself, nothing of it stays."""
    file = await node.uploads.begin(profile="small")
    await write_in_frames(file, bytes(2000), 100)
    ending = asyncio.create_task(file.abort())
    for _ in range(3):
        await asyncio.sleep(0)
        ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert held(node.store) == (set(), 0, 0)
    assert node.uploads._open == {}


async def test_to_the_end():
    """It gives the result, raises what was raised, and a cancellation after the work is done."""
    done = []

    async def work(error=None):
        await asyncio.sleep(0.01)
        done.append(1)
        if error is not None:
            raise error
        return 5

    assert await to_the_end(work()) == 5
    with pytest.raises(ValueError, match="no"):
        await to_the_end(work(ValueError("no")))
    for error in (None, ValueError("no")):
        task = asyncio.create_task(to_the_end(work(error)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(done) == 4


async def test_closing_the_node_leaves_it_to_be_resumed(tmp_path):
    """What came before the node was closed is durable."""
    async with await EmbeddedNode.open(tmp_path / "repo", min_free=0) as node:
        file = await node.uploads.begin()
        await file.write(b"hello")
    async with await EmbeddedNode.open(tmp_path / "repo", min_free=0) as node:
        assert (await node.uploads.resume(file.id)).durable == 5
        assert [(record.name, record.durable, record.result) for record in await node.uploads.list()] == [
            ("", 5, None)
        ]


@pytest.mark.parametrize("pin", [True, False])
async def test_over_a_kubo_daemon(kubo, tmp_path, pin):
    """The result is with the daemon, pinned if asked and under its name, and nothing of it stays here, also where it
    was resumed; a result that was not heard is told again."""
    data = random.Random(9 + pin).randbytes(3 * MIB + 5)
    node = node_of(kubo.api, tmp_path / "store")
    try:
        file = await node.uploads.begin(name=f"up-{pin}.bin", size=len(data), profile="ipfs-v1")
        await file.write(data[:MIB])
        await file.suspend()
        file = await node.uploads.resume(file.id)
        assert file.durable == MIB
        await write_in_frames(file, data[MIB:], 100_000)
        added = await file.finish(pin=pin)
        assert added.cid == import_bytes(data, "ipfs-v1").root
        assert held(node.store)[:2] == (set(), 0)
        assert kubo.run_binary("cat", str(added.cid)) == data
        pins = kubo.run("pin", "ls", "--type=recursive", "--names")
        assert (f"{added.cid} recursive up-{pin}.bin" in pins) is pin
        assert (str(added.cid) in pins) is pin
        assert await (await node.uploads.resume(file.id)).finish() == added
        await asyncio.to_thread(node.store.uploads.expire, -1)
        assert held(node.store) == (set(), 0, 0)
    finally:
        await node.close()
