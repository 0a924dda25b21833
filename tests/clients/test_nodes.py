"""One suite for all nodes: what holds for the embedded node holds for the remote one, and for a Kubo daemon."""

import asyncio
import os
from contextlib import aclosing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipfs_stream_nb.content.car import CarDecoder
from ipfs_stream_nb.content.cid import CID, DAG_PB, RAW
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.importer import import_bytes
from ipfs_stream_nb.errors import (
    BadCIDError,
    BadRequestError,
    IsDirectoryError,
    NotDirectoryError,
    NotFoundError,
    RetrievalError,
    RetrievalTimeoutError,
)

MIB = 1024 * 1024
BIG = os.urandom(3 * MIB + 12_345)
ABSENT = CID.of(b"nobody has this")
NOT_FOUND = (NotFoundError, RetrievalTimeoutError)
"""How a node says that nobody has a block: a Kubo daemon only gives up looking for it."""
OWN_STORE = pytest.mark.parametrize("node", ["embedded", "remote"], indirect=True)
"""For what tests/content/kubo shows of a daemon in other words."""
NAMES = [
    "plain.txt",
    "with space.txt",
    "percent%20.txt",
    'quote".txt',
    "back\\slash",
    "ümlaut ✓.txt",
    "a+b;c=d&e.txt",
    "line\nbreak",
]


async def pieces(*parts):
    for part in parts:
        yield part


async def collect(stream):
    async with aclosing(stream):
        return [item async for item in stream]


async def read(node, path, *args):
    return b"".join(await collect(node.cat(path, *args)))


@pytest.mark.parametrize("profile", [None, "unixfs-v1-2025", "unixfs-v0-2015", "ipfs-v1"])
@pytest.mark.parametrize("data", [b"", b"hello", BIG], ids=["empty", "small", "big"])
async def test_add_gives_the_cid_of_the_bytes(node, data, profile):
    """The CID is the importer's, whatever way and in whatever pieces the bytes come."""
    cid = import_bytes(data, profile)[0]
    seen = []
    added = await node.add(pieces(data[:7], data[7:]), profile=profile, name="n", progress=seen.append)
    assert (added.cid, added.size, added.name) == (cid, len(data), "n")
    assert sum(seen) == len(data)
    assert await read(node, added.cid) == data
    assert [(pin.cid, pin.name) for pin in await node.pins()] == [(cid, "n")]


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, None),
        (0, 0),
        (5, 10),
        (MIB - 1, 2),
        (len(BIG) - 3, 100),
        (len(BIG), 1),
        (len(BIG) + 5, None),
        (2 * MIB, None),
    ],
)
async def test_cat_reads_any_range(node, offset, length):
    """Every range is the slice of the bytes, cut at the end of the file."""
    cid = (await node.add(pieces(BIG))).cid
    expected = BIG[offset:] if length is None else BIG[offset : offset + length]
    got = await collect(node.cat(cid, offset, length))
    assert b"".join(got) == expected
    assert all(len(piece) <= MIB for piece in got)
    if length is not None:
        assert await node.read(cid, offset, length) == expected


@pytest.mark.parametrize(("offset", "length"), [(-1, None), (0, -1)])
async def test_negative_ranges_are_refused(node, offset, length):
    """A negative offset or length is an error of the caller's."""
    cid = (await node.add(pieces(b"x"))).cid
    with pytest.raises(BadRequestError):
        await read(node, cid, offset, length)


@pytest.fixture
def tree(tmp_path):
    """A directory with files of every awkward name, symlinks, an empty directory and hidden files."""
    tree = tmp_path / "tree"
    (tree / "sub" / "deep").mkdir(parents=True)
    (tree / "empty").mkdir()
    for name in NAMES:
        (tree / name).write_text(name)
    (tree / "sub" / "big.bin").write_bytes(BIG)
    (tree / "sub" / "deep" / "up").symlink_to("../../plain.txt")
    (tree / "link").symlink_to("sub/big.bin")
    (tree / ".hidden").write_text("x")
    return tree


async def test_add_path_keeps_a_tree_as_it_is(node, tree):
    """Names, symlinks and empty directories come through, and hidden files only when asked for."""
    seen = []
    added = await node.add_path(str(tree), name="tree", progress=seen.append)
    entries = {entry.name: entry for entry in await collect(node.ls(added.cid, kinds=True))}
    assert set(entries) == {*NAMES, "sub", "empty", "link"}
    assert (entries["sub"].kind, entries["link"].kind, entries["plain.txt"].kind) == (
        "directory",
        "symlink",
        "file",
    )
    assert await collect(node.ls(f"{added.cid}/empty")) == []
    for name in NAMES:
        assert await read(node, f"{added.cid}/{name}") == name.encode()
    assert await read(node, f"{added.cid}/link") == BIG
    assert await read(node, f"{added.cid}/sub/deep/up") == b"plain.txt"
    assert (await node.stat(f"{added.cid}/link")).target == "sub/big.bin"
    assert sum(seen) == len(BIG) + sum(len(name.encode()) for name in NAMES)
    hidden = await node.add_path(str(tree), hidden=True)
    assert ".hidden" in {entry.name for entry in await collect(node.ls(hidden.cid))}


async def test_add_path_gives_one_cid_for_both_nodes(node, tree):
    """The CID of this very tree, so that both nodes must give the same."""
    (tree / "sub" / "big.bin").write_bytes(bytes(2 * MIB))
    added = await node.add_path(str(tree))
    assert str(added.cid) == "bafybeihanjvpre67ki2b6pmtuc4li4e6qdxb7pxioq7kzpob76sfm7smxq"


async def test_add_path_of_a_single_file(node, tmp_path):
    """A file is added as a file, also where it lies alone."""
    (tmp_path / "x").write_bytes(BIG)
    assert (await node.add_path(str(tmp_path / "x"))).cid == import_bytes(BIG, None)[0]


async def test_a_directory_of_one_file_and_of_none(node, tmp_path):
    """A directory stays one, however little is in it."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_text("a")
    one = await node.add_path(str(tmp_path / "one"))
    assert await read(node, f"{one.cid}/a.txt") == b"a"
    (tmp_path / "none").mkdir()
    none = await node.add_path(str(tmp_path / "none"))
    assert str(none.cid) == "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no pipes in the file system")
async def test_add_path_refuses_what_is_no_file(node, tmp_path):
    """A pipe would never end; a path that is not there is named."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadRequestError, match="pipe"):
        await node.add_path(str(tmp_path / "pipe"))
    with pytest.raises(BadRequestError, match="pipe"):
        await node.add_path(str(tmp_path))
    with pytest.raises(NotFoundError, match="nowhere"):
        await node.add_path(str(tmp_path / "nowhere"))
    assert await node.pins() == []


async def test_stat_and_metadata(node):
    """The facts about a file, with its type by content."""
    cid = (await node.add(pieces(b"\x89PNG\r\n\x1a\n" + bytes(100)))).cid
    stat = await node.stat(cid)
    assert (stat.cid, stat.kind, stat.size, stat.mime_type, stat.roots) == (
        cid,
        "file",
        108,
        "image/png",
        (cid,),
    )
    metadata = await node.get_metadata(str(cid))
    assert metadata["content_type"] == "image/png"
    assert metadata["content_length"] == 108
    assert await node.stat(f"/ipfs/{cid}") == await node.stat(f"ipfs://{cid}")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("nonsense", BadCIDError),
        (f"{ABSENT}", NOT_FOUND),
        ("{root}/nothing", NotFoundError),
        ("{root}/file/below", NotDirectoryError),
        ("{root}/../x", BadRequestError),
        ("{root}/a//b", BadRequestError),
        ("{root}/a\0b", BadRequestError),
        ("/ipns/example.org", BadRequestError),
    ],
)
async def test_bad_paths_are_the_same_errors(node, tmp_path, path, kind):
    """Each way in which a path can be wrong is the same error over HTTP as without."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").write_text("x")
    root = (await node.add_path(str(tmp_path / "d"))).cid
    for call in (node.stat(path.format(root=root)), read(node, path.format(root=root))):
        with pytest.raises(kind) as caught:
            await call
        assert len(str(caught.value)) > 10


async def test_directories_are_not_files(node, tmp_path):
    """A directory cannot be read, and a file not listed."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "index.html").write_text("<p>not what was asked for")
    root = (await node.add_path(str(tmp_path / "d"))).cid
    with pytest.raises(IsDirectoryError):
        await read(node, root)
    with pytest.raises(NotDirectoryError):
        await collect(node.ls(f"{root}/index.html"))


async def test_blocks(node):
    """Single blocks go in and out under their CIDs."""
    cid = await node.block_put(b"block", codec=RAW)
    assert cid == CID.of(b"block")
    assert await node.block_get(cid) == b"block"
    assert await node.block_has(cid)
    assert not await node.block_has(ABSENT)
    with pytest.raises(NOT_FOUND):
        await node.block_get(ABSENT)
    assert await node.pins() == []


async def test_a_version_0_block(node):
    """A dag-pb block can have a version 0 CID."""
    imported = import_bytes(b"x", "unixfs-v0-2015")
    (block,) = imported.blocks
    assert await node.block_put(block.data, codec=DAG_PB, version=0) == imported.root


async def test_a_writer_takes_frames_of_any_size(node):
    """What is written in pieces is the file."""
    writer = node.writer()
    for at in range(0, len(BIG), 700_001):
        await writer.write(memoryview(BIG)[at : at + 700_001])
    assert writer.bytes_written == len(BIG)
    added = await writer.finish(name="w")
    assert added.cid == import_bytes(BIG, None)[0]
    assert [pin.name for pin in await node.pins()] == ["w"]
    with pytest.raises(BadRequestError, match="finished"):
        await writer.write(b"more")
    await writer.abort()


async def test_an_empty_writer_makes_an_empty_file(node):
    """A file may be empty; it is pinned when asked for only."""
    added = await node.writer().finish(pin=False)
    assert added.cid == import_bytes(b"", None)[0]
    assert await node.pins() == []


@OWN_STORE
async def test_an_aborted_writer_leaves_nothing(node):
    """What was written of an aborted file is taken by the next collection."""
    writer = node.writer()
    await writer.write(BIG)
    await writer.abort()
    await writer.abort()
    async with asyncio.timeout(20):
        while (await node.repo_stat()).blocks:  # the server hears of the abort in its own time
            await node.gc()
    assert await node.pins() == []


async def test_a_tree_writer_makes_directories(node):
    """Files, symlinks and empty directories by name."""
    tree = node.tree_writer()
    added = await tree.add_file("a/b.txt", pieces(b"b"))
    assert (added.name, added.size) == ("a/b.txt", 1)
    await tree.add_symlink("a/link", "b.txt")
    tree.add_directory("empty")
    tree.add_directory("a")
    root = await tree.finish(name="t")
    assert root.size == 1
    assert sorted(entry.name for entry in await collect(node.ls(root.cid))) == ["a", "empty"]
    assert await read(node, f"{root.cid}/a/link") == b"b"
    assert str(root.cid) == "bafybeibhwaxhqwr5m2xhkepfunjctpfqlzmoocch5wfdvn2veonjkptknm"
    with pytest.raises(BadRequestError):
        await tree.add_file("late", pieces(b"x"))


@pytest.mark.parametrize("wrap", [True, False])
async def test_a_tree_of_one_file(node, wrap):
    """Without wrap, a lone file is the root itself."""
    tree = node.tree_writer()
    await tree.add_file("x", pieces(b"x"))
    root = await tree.finish(wrap=wrap)
    assert await read(node, f"{root.cid}/x" if wrap else root.cid) == b"x"


async def test_a_name_comes_once_in_a_tree(node):
    """Two files of one name, or a bad name, are refused."""
    tree = node.tree_writer()
    await tree.add_file("x", pieces(b"x"))
    with pytest.raises(BadRequestError):
        await tree.add_file("x", pieces(b"y"))
    with pytest.raises(BadRequestError):
        await tree.add_file("../x", pieces(b"y"))
    await tree.abort()


async def test_a_directory_of_what_is_here(node):
    """add_directory gives names to content that the node holds, and refuses what it does not hold."""
    a = (await node.add(pieces(b"a"))).cid
    root = await node.add_directory({"x/a.txt": a, "b.txt": a}, name="d")
    assert await read(node, f"{root.cid}/x/a.txt") == b"a"
    assert "d" in [pin.name for pin in await node.pins()]
    with pytest.raises((*NOT_FOUND, RetrievalError)):
        await node.add_directory({"x": ABSENT})


@OWN_STORE
async def test_pins_progress_and_gc(node):
    """A pin tells its progress with a true total; what is not pinned goes with the collection."""
    added = await node.add(pieces(BIG), pin=False)
    seen = []
    pin = await node.pin(added.cid, name="kept", progress=seen.append)
    assert (pin.cid, pin.name, pin.recursive) == (added.cid, "kept", True)
    await asyncio.sleep(0)  # the last report of the embedded node comes with the next turn of the loop
    assert seen[-1].bytes == seen[-1].total_bytes == added.dag_size
    loose = await node.add(pieces(b"loose"), pin=False)
    collected = await node.gc()
    assert (collected.blocks, collected.bytes) == (1, 5)
    assert not await node.block_has(loose.cid)
    await node.unpin(added.cid)
    with pytest.raises(NotFoundError):
        await node.unpin(added.cid)
    assert (await node.gc()).kept_blocks == 0


@OWN_STORE
async def test_a_pin_of_what_is_not_there(node):
    """A missing block is named."""
    with pytest.raises((RetrievalError, NotFoundError), match=str(ABSENT)):
        await node.pin(ABSENT)


@OWN_STORE
async def test_remove_takes_what_nothing_else_needs(node):
    """Shared blocks stay; a path below a root cannot be removed."""
    one = await node.add(pieces(bytes(MIB), b"1"))
    two = await node.add(pieces(bytes(MIB), b"2"))
    removed = await node.remove(one.cid)
    assert removed.blocks == 2
    assert await read(node, two.cid) == bytes(MIB) + b"2"
    with pytest.raises(BadRequestError):
        await node.remove(f"{two.cid}/x")
    with pytest.raises(NotFoundError):
        await node.stat(one.cid)


async def test_cars_go_round(node):
    """An exported CAR holds the whole tree, and brings it back."""
    added = await node.add(pieces(BIG), pin=False)
    car = b"".join(await collect(node.export_car(added.cid)))
    decoder = CarDecoder()
    assert len(decoder.feed(car)) == 5
    assert list(decoder.roots) == [added.cid]
    await node.gc()
    info = await node.import_car(pieces(car[:1000], car[1000:]))
    assert (info.roots, info.blocks, info.missing) == ((added.cid,), 5, ())
    assert await read(node, added.cid) == BIG
    assert [pin.cid for pin in await node.pins()] == [added.cid]


async def test_a_car_of_a_part(node):
    """dag-scope and entity-bytes narrow what a CAR holds."""
    added = await node.add(pieces(BIG))
    block = b"".join(await collect(node.export_car(added.cid, scope="block")))
    part = b"".join(await collect(node.export_car(added.cid, scope="entity", entity_bytes=(0, 10))))
    assert [len(CarDecoder().feed(car)) for car in (block, part)] == [1, 2]


@pytest.mark.parametrize("car", [b"", b"not a car at all", b"\x00"])
async def test_a_broken_car_is_refused(node, car):
    """What is no CAR is a clear error and leaves no pin."""
    with pytest.raises(Exception, match="CAR") as caught:
        await node.import_car(pieces(car))
    assert caught.value.code in {"bad_request", "corrupt_content"}


@OWN_STORE
async def test_repo_stat(node, repo):
    """The store's own figures."""
    await node.add(pieces(b"12345"))
    stat = await node.repo_stat()
    assert (stat.path, stat.blocks, stat.size) == (str(repo), 1, 5)
    assert stat.disk_free > 0
    assert len(stat.store_id) >= 16


@OWN_STORE
async def test_there_are_no_peers(node):
    """An embedded node is alone."""
    assert await node.swarm_peers() == []
    with pytest.raises(NotFoundError):
        await node.ping("12D3Koo")


async def test_what_a_source_raises_comes_through(node):
    """An error of the caller's own while adding is that error, and nothing is pinned."""

    async def broken():
        yield bytes(MIB)
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        await node.add(broken())
    assert await node.pins() == []


async def test_an_unknown_profile_is_refused(node):
    """The error lists the profiles there are."""
    with pytest.raises(BadRequestError, match="unixfs-v1-2025"):
        await node.add(pieces(b"x"), profile="unixfs-v9")


async def test_leaving_a_stream_early_frees_it(node):
    """After a cat that was left in the middle the node goes on."""
    cid = (await node.add(pieces(BIG))).cid
    async with aclosing(node.cat(cid)) as stream:
        assert len(await anext(stream)) > 0
    assert await node.read(cid, 1, 1) == BIG[1:2]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=2000), max_size=8), st.integers(0, 9000), st.integers(0, 9000))
async def test_any_bytes_read_back_at_any_offset(node, parts, offset, length):
    """Whatever is added, in whatever pieces, reads back the same at any offset."""
    data = b"".join(parts)
    added = await node.add(pieces(*parts))
    assert added.cid == import_bytes(data, None)[0]
    assert await node.read(added.cid, offset, length) == data[offset : offset + length]


@OWN_STORE
async def test_a_missing_block_in_the_middle_is_named(node, tmp_path):
    """What is here comes, and then the error that names what is not, over HTTP as without."""
    async with await EmbeddedNode.open(tmp_path / "other", min_free=0) as other:
        cid = (await other.add(pieces(BIG))).cid
        await node.import_car(other.export_car(cid, scope="entity", entity_bytes=(0, MIB + 10)))
    got = []
    with pytest.raises((NotFoundError, RetrievalError), match="bafk") as caught:
        async for piece in node.cat(cid):
            got.append(piece)
    assert b"".join(got) == BIG[: 2 * MIB]
    assert "broke off" not in str(caught.value)
