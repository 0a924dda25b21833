"""What observers of a node are told: of each act once, when it is done, and of nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
import secrets
import threading

import pytest

from ipfs_stream_nb.content import observing
from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.car import encode_header, encode_section
from ipfs_stream_nb.content.cid import CID, RAW
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.importer import import_bytes
from ipfs_stream_nb.content.node import PinProgress
from ipfs_stream_nb.content.observing import Happened, acting_user
from ipfs_stream_nb.content.retrieval.retriever import Retriever
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import BadRequestError, NotFoundError, RetrievalError
from kubo_nodes import node_of
from providers import StoreProvider

MIB = 1 << 20
SETTINGS = RetrievalSettings((), (), max_retries=0)


@pytest.fixture(autouse=True)
def _no_slow_pins(monkeypatch):
    """However long a busy machine takes; tests of slow pins say what is slow."""
    monkeypatch.setattr(observing, "SLOW_PIN", 3600.0)


@pytest.fixture
async def embedded(tmp_path):
    async with await EmbeddedNode.open(tmp_path / "repo", min_free=0) as node:
        yield node


@pytest.fixture(params=["embedded", "kubo"])
async def node(request, tmp_path):
    """An embedded node, and one over a Kubo daemon."""
    if request.param == "embedded":
        opened = await EmbeddedNode.open(tmp_path / "repo", min_free=0)
    else:
        opened = node_of(request.getfixturevalue("kubo").api, tmp_path / "repo", patience=1.0)
    async with opened as node:
        yield node


def watch(node):
    """What a node tells from here on, growing."""
    told: list[Happened] = []
    node.observers.append(told.append)
    return told


def kinds(told):
    """The words of what was told, with the status where it is one."""
    return [happened.facts.get("status", happened.what) for happened in told]


async def pieces(*parts):
    for part in parts:
        yield part


def fresh(size=300_000):
    """Bytes that no store has yet."""
    return secrets.token_bytes(size)


async def by_add(node, tmp_path, data):
    return await node.add(pieces(data), name="a.bin")


async def by_writer(node, tmp_path, data):
    writer = node.writer()
    await writer.write(data)
    return await writer.finish(name="a.bin")


async def by_path(node, tmp_path, data):
    (tmp_path / "a.bin").write_bytes(data)
    return await node.add_path(str(tmp_path / "a.bin"), name="a.bin")


async def by_folder(node, tmp_path, data):
    (tmp_path / "folder" / "inner").mkdir(parents=True, exist_ok=True)
    (tmp_path / "folder" / "inner" / "a.bin").write_bytes(data)
    (tmp_path / "folder" / "b").write_bytes(data[:1])
    return await node.add_path(str(tmp_path / "folder"), name="a.bin")


async def by_tree(node, tmp_path, data):
    tree = node.tree_writer()
    await tree.add_file("x/a.bin", pieces(data))
    await tree.add_file("x/b.bin", pieces(data[:1]))
    return await tree.finish(name="a.bin")


async def by_lone_tree(node, tmp_path, data):
    tree = node.tree_writer()
    await tree.add_file("a.bin", pieces(data))
    return await tree.finish(name="a.bin", wrap=False)


async def by_upload(node, tmp_path, data):
    upload = await node.uploads.begin(name="a.bin", size=len(data))
    await upload.write(data[:1000])
    await upload.suspend()
    upload = await node.uploads.resume(upload.id)
    await upload.write(data[1000:])
    return await upload.finish()


@pytest.mark.parametrize(
    ("add", "kind"),
    [
        (by_add, "file"),
        (by_writer, "file"),
        (by_path, "file"),
        (by_folder, "directory"),
        (by_tree, "directory"),
        (by_lone_tree, "file"),
        (by_upload, "file"),
    ],
)
async def test_an_add_is_told_once_and_its_pin_where_it_is_new(node, tmp_path, add, kind):
    """Whatever the way in: one "added" for the root with its facts, one "pinned"; at that time both are there."""
    seen: list[tuple[str, bool]] = []
    told = watch(node)
    data = fresh()

    def look(happened):
        if isinstance(node.store, BlockStore) and node.kind == "embedded":
            seen.append((happened.what, node.store.is_pinned(happened.cid)))

    node.observers.append(look)
    added = await add(node, tmp_path, data)
    facts = {"size": added.size, "kind": kind, "complete": True}
    assert told == [Happened("added", added.cid, "a.bin", facts), Happened("pinned", added.cid, "a.bin")]
    assert seen in ([], [("added", True), ("pinned", True)])
    told.clear()
    assert await add(node, tmp_path, data) == added
    assert kinds(told) == ["added"]


async def test_an_add_without_a_pin_and_a_directory_of_what_is_here(node):
    """No pin, no "pinned"; a directory that is made of content is an add of its own."""
    told = watch(node)
    added = await node.add(pieces(fresh()), pin=False)
    directory = await node.add_directory({"a/b": added.cid, "c": added.cid}, name="d")
    assert kinds(told) == ["added", "added", "pinned"]
    assert told[1].facts["kind"] == "directory"
    assert {happened.cid for happened in told[1:]} == {directory.cid}


async def test_what_fails_or_is_given_up_is_not_told(node, tmp_path):
    """A writer that is aborted, a file that is not there, a tree that breaks off: nothing was added."""
    told = watch(node)
    writer = node.writer()
    await writer.write(fresh())
    await writer.abort()
    with pytest.raises(NotFoundError):
        await node.add_path(str(tmp_path / "nothing"))
    upload = await node.uploads.begin(size=5)
    await upload.write(b"abc")
    with pytest.raises(BadRequestError):
        await upload.finish()
    await upload.abort()
    assert told == []


async def test_each_root_of_a_car_is_told(node):
    """With whether it is whole; the pins of those that are; roots that the CAR does not carry are not told."""
    whole, other = import_bytes(fresh(1000)), fresh(1000)
    parts = import_bytes(fresh(1_500_000))
    absent = CID.of(fresh(10))
    blocks = [*whole.blocks, parts.blocks[-1]]
    assert parts.blocks[-1].cid == parts.root
    lone = CID.of(other, RAW)
    header = encode_header([whole.root, parts.root, absent, lone, lone])
    car = header + b"".join(encode_section(block.cid, bytes(block.data)) for block in blocks)
    told = watch(node)
    await node.import_car(pieces(car + encode_section(lone, other)))
    assert [(h.what, h.cid, h.facts.get("complete"), h.facts.get("size")) for h in told] == [
        ("added", whole.root, True, None),
        ("pinned", whole.root, None, None),
        ("added", parts.root, False, None),
        ("added", lone, True, None),
        ("pinned", lone, None, None),
    ]
    told.clear()
    await node.import_car(pieces(encode_header([lone]) + encode_section(lone, other)), pin=False)
    assert [(h.what, h.facts) for h in told] == [("added", {"size": 1000, "kind": "car", "complete": None})]


async def test_a_pin_is_told_with_its_end(node):
    """A new one is "pinned" and then has its status, a second time there is the status alone, with its new name."""
    added = await node.add(pieces(fresh()), pin=False)
    told = watch(node)
    await node.pin(added.cid, name="one")
    await node.pin(added.cid, name="two")
    assert [(h.what, h.cid, h.name) for h in told] == [
        ("pinned", added.cid, "one"),
        ("pin_status", added.cid, "one"),
        ("pin_status", added.cid, "two"),
    ]
    assert kinds(told)[1:] == ["pinned", "pinned"]


async def test_what_goes_is_told(node):
    """Unpinning, removing (which unpins what was pinned), and one telling for all garbage; not what could not be done."""
    first = await node.add(pieces(fresh()))
    second = await node.add(pieces(fresh()))
    told = watch(node)
    await node.unpin(first.cid)
    with pytest.raises(NotFoundError):
        await node.unpin(first.cid)
    gone = await node.remove(second.cid)
    with pytest.raises(NotFoundError):
        await node.remove(CID.of(b"never here"))
    swept = await node.gc()
    assert told == [
        Happened("unpinned", first.cid),
        Happened("unpinned", second.cid),
        Happened("removed", second.cid, "", {"blocks": gone.blocks, "bytes": gone.bytes}),
        Happened("collected", None, "", {"blocks": swept.blocks, "bytes": swept.bytes}),
    ]


async def test_removing_what_was_not_pinned(embedded):
    """It is removed, and no pin has gone."""
    added = await embedded.add(pieces(fresh()), pin=False)
    told = watch(embedded)
    await embedded.remove(added.cid)
    assert kinds(told) == ["removed"]


async def test_a_pin_that_cannot_be(embedded):
    """It ends as "failed" with the error's text, and is no pin."""
    told = watch(embedded)
    with pytest.raises(NotFoundError) as failure:
        await embedded.pin(CID.of(b"nowhere"), name="x")
    assert [h.facts for h in told] == [{"status": "failed", "error": str(failure.value)}]
    assert told[0].name == "x"


async def test_no_text_of_errors_that_are_not_ours(embedded, monkeypatch):
    """Such a text may hold anything: what is told is that the log has it."""

    def broken(*_args):
        raise RuntimeError("secret")

    monkeypatch.setattr(embedded.store, "pin", broken)
    told = watch(embedded)
    with pytest.raises(RuntimeError):
        await embedded.pin(CID.of(b"a"))
    assert told[0].facts == {"status": "failed", "error": observing.INTERNAL}


class Far:
    """A node whose blocks come one by one, when `go` is set, from another one; `fault` is called for each."""

    def __init__(self, tmp_path):
        self.tmp_path = tmp_path
        self.go = asyncio.Event()
        self.first = asyncio.Event()
        self.after = 1
        self.broken = False

    async def __aenter__(self):
        self.far = await EmbeddedNode.open(self.tmp_path / "far", min_free=0)
        self.added = await self.far.add(pieces(random.Random(1).randbytes(10 * MIB)))
        provider = StoreProvider(self.far)
        given = provider.get

        async def get(cid):
            if len(provider.asked) >= self.after:
                self.first.set()
                await self.go.wait()
                if self.broken:
                    raise RetrievalError("it broke")
            return await given(cid)

        provider.get = get
        store = BlockStore.open(self.tmp_path / "repo", min_free=0)
        self.node = EmbeddedNode(store, Retriever([provider], SETTINGS))
        return self

    async def __aexit__(self, *_exc):
        await self.node.close()
        await self.far.close()


@pytest.fixture
async def slow(tmp_path, monkeypatch):
    monkeypatch.setattr(observing, "SLOW_PIN", 0.02)
    monkeypatch.setattr(observing, "PROGRESS_EVERY", 0.0)
    async with Far(tmp_path) as far:
        yield far


async def until(node, told, word):
    """Wait until that was told."""
    came = asyncio.Event()
    node.observers.append(lambda _: came.set() if word in kinds(told) else None)
    if word not in kinds(told):
        async with asyncio.timeout(10):
            await came.wait()


async def test_a_slow_pin_is_told_as_it_goes(slow):
    """ "pinning" once it takes long, progress up to the whole with a percentage, then "pinned"; progress goes to whoever
    pins as well."""
    told, got = watch(slow.node), []
    pinning = asyncio.create_task(slow.node.pin(slow.added.cid, name="film", progress=got.append))
    await until(slow.node, told, "pinning")
    slow.go.set()
    await pinning
    assert kinds(told)[0] == "pinning"
    assert kinds(told)[-2:] == ["pinned", "pinned"]
    assert set(kinds(told)[1:-2]) == {"pin_progress"}
    assert [h.what for h in told][-2:] == ["pinned", "pin_status"]
    steps = [h.facts for h in told if h.what == "pin_progress"]
    assert steps[-1]["percent"] == 100.0
    assert steps[-1]["bytes"] == steps[-1]["total_bytes"] == slow.added.dag_size
    assert steps[-1]["blocks"] == steps[-1]["total_blocks"] == 11
    assert {h.name for h in told} == {"film"}
    assert isinstance(got[-1], PinProgress)


async def test_progress_is_told_some_times_a_second(tmp_path, monkeypatch):
    """However often it comes."""
    monkeypatch.setattr(observing, "SLOW_PIN", 0.02)
    monkeypatch.setattr(observing, "PROGRESS_EVERY", 3600.0)  # so that how long it takes does not count
    async with Far(tmp_path) as far:
        told, got = watch(far.node), []
        pinning = asyncio.create_task(far.node.pin(far.added.cid, progress=got.append))
        await until(far.node, told, "pinning")
        far.go.set()
        await pinning
        assert len(got) > 10
        assert kinds(told).count("pin_progress") == 1


async def test_a_quick_pin_tells_no_progress(embedded):
    """Nothing but its end, for a pin that is done in a moment."""
    added = await embedded.add(pieces(fresh(3 * MIB)), pin=False)
    told = watch(embedded)
    await embedded.pin(added.cid)
    assert [h.what for h in told] == ["pinned", "pin_status"]


async def test_a_pin_that_is_given_up(slow):
    """It ends as "cancelled", and as "failed" where a block cannot be had."""
    told = watch(slow.node)
    pinning = asyncio.create_task(slow.node.pin(slow.added.cid))
    await slow.first.wait()
    pinning.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await pinning
    assert kinds(told)[-1] == "cancelled"
    told.clear()
    slow.broken = True
    slow.go.set()
    with pytest.raises(RetrievalError):
        await slow.node.pin(slow.added.cid)
    assert kinds(told)[-1] == "failed"
    assert "pinned" not in kinds(told)


async def test_observers_are_called_on_the_loop_and_cannot_harm(embedded, caplog):
    """One that raises is logged; the add goes on, and the next observer is told."""
    threads = []

    def bad(_happened):
        threads.append(threading.current_thread())
        raise RuntimeError("observer")

    embedded.observers.append(bad)
    told = watch(embedded)
    added = await embedded.add(pieces(b"x"))
    assert kinds(told) == ["added", "pinned"]
    assert threads == [threading.current_thread()] * 2
    assert str(added.cid) in caplog.text


async def test_the_acting_user_is_told(embedded, slow):
    """That of the context in which the act began, also for progress that comes from other threads."""
    told = watch(embedded)

    async def act(user):
        acting_user.set(user)
        await embedded.add(pieces(fresh(10)), name=user)

    await asyncio.gather(asyncio.create_task(act("ada")), asyncio.create_task(act("bob")))
    await embedded.add(pieces(fresh(10)), name="")
    assert {(h.name, h.user) for h in told} == {("ada", "ada"), ("bob", "bob"), ("", None)}
    progress = watch(slow.node)
    acting_user.set("eve")
    pinning = asyncio.create_task(slow.node.pin(slow.added.cid))
    acting_user.set("mallory")
    await until(slow.node, progress, "pinning")
    slow.go.set()
    await pinning
    assert {"pin_progress", "pinning", "pinned"} <= set(kinds(progress))
    assert {h.user for h in progress} == {"eve"}


async def test_a_pin_that_somebody_else_goes_on_with(embedded):
    """After `leave` nothing more is told here."""
    told = watch(embedded)
    with observing.PinWatch(embedded.observers, CID.of(b"a"), "", None, new=True) as pin:
        pin.leave()
        pin(PinProgress(1, 1, 1, 1))
    assert told == []


async def test_progress_from_threads_is_the_users(embedded, monkeypatch):
    """The store's threads know of no user: it is whoever began the pin."""
    monkeypatch.setattr(observing, "SLOW_PIN", 0.0)
    told = watch(embedded)
    acting_user.set("eve")
    with observing.PinWatch(embedded.observers, CID.of(b"a"), "", None, new=True) as pin:
        await until(embedded, told, "pinning")
        contextvars.Context().run(pin, PinProgress(1, 1, 2, None))
    assert [(h.what, h.user) for h in told] == [
        ("pin_status", "eve"),
        ("pin_progress", "eve"),
        ("pinned", "eve"),
        ("pin_status", "eve"),
    ]
    assert told[1].facts["percent"] == 50.0
