"""Ranges that stay in the store: read, checked, and sent from there."""

from __future__ import annotations

import random
import socket
import threading

import pytest

from ipfs_stream_nb.content import stored, unixfs
from ipfs_stream_nb.content.cid import CID, DAG_PB, RAW
from ipfs_stream_nb.content.dag_pb import PBLink
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.stored import StoredRange, send_ranges
from ipfs_stream_nb.content.unixfs import UnixFSNode, UnixFSType
from ipfs_stream_nb.errors import CorruptContentError, NotFoundError, RetrievalError

MIB = 1 << 20
DATA = random.Random(3).randbytes(5 * MIB + 777)


@pytest.fixture
async def node(tmp_path):
    """A node on an empty store."""
    async with await EmbeddedNode.open(tmp_path, min_free=0) as opened:
        yield opened


async def add(node, data, **kwargs):
    """Add bytes; the CID."""

    async def source():
        yield data

    return (await node.add(source(), **kwargs)).cid


async def ranges_of(node, cid, offset=0, length=10 * MIB):
    """What cat_stored gives."""
    return [piece async for piece in node.cat_stored(cid, offset, length)]


@pytest.mark.parametrize(
    ("offset", "length"), [(0, len(DATA)), (MIB - 5, 10), (3 * MIB, MIB), (5 * MIB, 9999)]
)
async def test_they_read_as_cat_does(node, offset, length):
    """Raw leaves come as ranges of the right bytes, none of which is a copy until it is read."""
    cid = await add(node, DATA)
    found = await ranges_of(node, cid, offset, length)
    assert all(isinstance(piece, StoredRange) for piece in found)
    assert b"".join([await piece.read() for piece in found]) == DATA[offset : offset + length]
    assert sum(map(len, found)) == len(DATA[offset : offset + length])


@pytest.mark.parametrize(
    ("offset", "length"), [(0, len(DATA)), (MIB - 5, 10), (3 * MIB, MIB), (5 * MIB, 9999)]
)
async def test_leaves_in_an_envelope_are_ranges_of_their_content(node, offset, length):
    """dag-pb leaves have their bytes inside of a block: the range is found there, and nothing is copied."""
    cid = await add(node, DATA, profile="unixfs-v0-2015")
    found = await ranges_of(node, cid, offset, length)
    assert all(isinstance(piece, StoredRange) for piece in found)
    assert b"".join([await piece.read() for piece in found]) == DATA[offset : offset + length]


async def test_what_only_looks_like_a_leaf_is_read_as_what_it_is(node):
    """A parent may say of an inner node what it says of leaves: its bytes come all the same."""
    leaf = await node.block_put(b"abc", codec=RAW)
    inner = unixfs.encode(
        UnixFSNode(UnixFSType.FILE, file_size=6, block_sizes=(3, 3), links=(PBLink(leaf, "", 3),) * 2)
    )
    cid = await node.block_put(inner, codec=DAG_PB)
    root = unixfs.encode(
        UnixFSNode(UnixFSType.FILE, file_size=12, block_sizes=(6, 6), links=(PBLink(cid, "", 6),) * 2)
    )
    found = await ranges_of(node, await node.block_put(root, codec=DAG_PB), 1, 10)
    assert b"".join([await piece.read() for piece in found]) == b"abcabcabcabc"[1:11]


async def test_a_leaf_of_another_size_than_its_parent_says_is_corrupt(node):
    """Also where its bytes stand in an envelope."""
    leaf = await node.block_put(unixfs.encode(UnixFSNode(UnixFSType.FILE, b"abcd", 4)), codec=DAG_PB)
    root = unixfs.encode(
        UnixFSNode(UnixFSType.FILE, file_size=6, block_sizes=(3, 3), links=(PBLink(leaf, "", 12),) * 2)
    )
    cid = await node.block_put(root, codec=DAG_PB)
    with pytest.raises(CorruptContentError):
        await ranges_of(node, cid)
    with pytest.raises(CorruptContentError):
        await node.read(cid, 0, 6)


async def test_small_content_is_one_range(node):
    """A file of one raw block, and an identity CID, which holds its bytes itself."""
    (found,) = await ranges_of(node, await add(node, b"hello"), 1, 3)
    assert await found.read() == b"ell"
    (inline,) = await ranges_of(node, CID.parse("bafkqabtimvwgy3yk"), 0, 6)
    assert await inline.read() == b"hello\n"


async def test_hot_bytes_are_read_at_once(node, monkeypatch):
    """Bytes that were hashed and are in memory are read without a thread; others on one."""
    (found,) = await ranges_of(node, await add(node, b"hello" * 1000), 0, 5000)

    def submit(*_args):
        pytest.fail("a thread was asked")

    with monkeypatch.context() as patched:
        patched.setattr(node._executor, "submit", submit)
        patched.setattr(stored, "is_resident", lambda view: len(view) == 5000)
        assert await found.read() == b"hello" * 1000
    monkeypatch.setattr(stored, "is_resident", lambda _view: False)
    assert await found.read() == b"hello" * 1000
    node.store._env.integrity.clear()
    monkeypatch.setattr(stored, "is_resident", lambda _view: pytest.fail("it was not hashed yet"))
    assert await found.read() == b"hello" * 1000


async def test_nobody_waits_for_a_store_that_is_being_changed(node):
    """While somebody has the store alone, a hot read is left to a thread instead of holding up the loop."""
    cid = await add(node, b"hello")
    with node.store._env.gate.exclusive():
        assert node.store.peek_now(cid, bytes) is None
    assert node.store.peek_now(cid, bytes) == b"hello"


async def test_missing_and_damaged_blocks(node):
    """A missing block, a wrong length and wrong bytes are the errors that cat has, before anything is sent."""
    cid = CID.of(b"a")
    (found,) = await ranges_of(node, await add(node, b"hello"), 0, 5)
    lying = StoredRange(node.store, node._executor, found.cid, 4, 0, 4)
    absent = StoredRange(node.store, node._executor, cid, 1, 0, 1)
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        for broken, error in [(lying, CorruptContentError), (absent, NotFoundError)]:
            for attempt in (broken.checked, broken.read, lambda one=broken: send_ranges(left, [one])):
                with pytest.raises(error):
                    await attempt()
    node.store.put(cid, b"b", verify=False)
    node.store._env.integrity.clear()
    with pytest.raises(CorruptContentError):
        await absent.checked()


async def test_a_missing_leaf_is_named(node):
    """A leaf that was never hashed is looked at before its range is given out."""
    cid = await add(node, DATA)
    leaf = CID.of(DATA[MIB : 2 * MIB])
    node.store._env.update(lambda txn: txn.delete(leaf.multihash, db=node.store._env.db.blocks))
    node.store._env.integrity.clear()
    with pytest.raises(RetrievalError, match=str(leaf)):
        await ranges_of(node, cid)


async def test_sending(node):
    """A socket gets all bytes in order: what it does not take is given back, to be sent when it has room."""
    found = await ranges_of(node, await add(node, DATA), 100, 4 * MIB)
    left, right = socket.socketpair()
    received = bytearray()

    def receive():
        while data := right.recv(MIB):
            received.extend(data)

    left.setblocking(False)
    visits = 0
    with right:
        with left:
            rest = await send_ranges(left, found)
            assert rest, "the socket took all at once"
            assert 0 < sum(map(len, rest)) < 4 * MIB
            assert await send_ranges(left, rest) == rest  # still full
            thread = threading.Thread(target=receive)
            thread.start()
            while rest:
                rest = await send_ranges(left, rest)
                visits += 1
        thread.join()
    assert bytes(received) == DATA[100 : 100 + 4 * MIB]
    assert visits >= 1


async def test_lingering(node, monkeypatch):
    """With `linger`, a visit goes on as long as the other side reads, and ends when it stops."""
    found = await ranges_of(node, await add(node, DATA))
    left, right = socket.socketpair()
    left.setblocking(False)
    received = bytearray()

    def receive():
        while len(received) < len(DATA):
            received.extend(right.recv(MIB))

    with left, right:
        thread = threading.Thread(target=receive)
        thread.start()
        with monkeypatch.context() as patch:
            patch.setattr(stored, "LINGER_MS", 60_000)  # a busy machine may hold the reader up
            assert await send_ranges(left, found, linger=True) == []
        thread.join()
        assert bytes(received) == DATA
        rest = await send_ranges(left, found, linger=True)
        assert sum(map(len, rest)) > MIB  # nobody reads any more
