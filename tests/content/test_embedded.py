"""The embedded node, on a real store."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from contextlib import aclosing
from pathlib import Path

import pytest

from ipfs_stream_nb.content import unixfs
from ipfs_stream_nb.content.car import encode_header, encode_section
from ipfs_stream_nb.content.cid import CID, DAG_CBOR, DAG_PB, RAW
from ipfs_stream_nb.content.dag_pb import PBLink
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.importer import import_bytes
from ipfs_stream_nb.content.reader import READ_AHEAD_BLOCKS
from ipfs_stream_nb.content.reading import SNIFF_PIECES
from ipfs_stream_nb.content.stream import IPFSContentStream
from ipfs_stream_nb.content.unixfs import UnixFSNode, UnixFSType
from ipfs_stream_nb.errors import (
    BadCIDError,
    BadRequestError,
    IPFSStreamError,
    IsDirectoryError,
    NotDirectoryError,
    NotFoundError,
    RetrievalError,
    StoreError,
    UnsupportedMediaError,
)

REFERENCE = json.loads((Path(__file__).parent / "reference_cids.json").read_text())
PROFILE_COLUMNS = {
    "unixfs-v1-2025": "v1_raw_1m_w1024",
    "unixfs-v0-2015": "v0_256k_w174",
    "ipfs-v1": "v1_raw_256k_w174",
}
CONTENT = bytes(i * 31 % 251 for i in range(3_000_000))


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.fixture
async def node(tmp_path):
    async with await EmbeddedNode.open(tmp_path / "repo") as node:
        yield node


async def frames(content: bytes, size: int):
    for at in range(0, len(content), size):
        yield content[at : at + size]


async def cat(node: EmbeddedNode, path, *args) -> bytes:
    async with aclosing(node.cat(path, *args)) as pieces:
        return b"".join([piece async for piece in pieces])


@pytest.mark.parametrize("profile", PROFILE_COLUMNS)
@pytest.mark.parametrize(
    "name", [key for key, row in REFERENCE["files"].items() if row["size"] <= 10_485_760]
)
async def test_added_files_have_the_reference_cids(node, profile, name):
    """What is added gets the CID and the sizes that `ipfs add` gives, and reads back."""
    row = REFERENCE["files"][name]
    content = {"one_byte": b"\0", "hello_world_nl": b"hello world\n"}.get(name, pattern(row["size"]))
    added = await node.add(frames(content, 100_000), profile=profile)
    expected = row[PROFILE_COLUMNS[profile]]
    assert (str(added.cid), added.size, added.dag_size) == (expected["cid"], row["size"], expected["tsize"])
    assert hashlib.sha256(await cat(node, added.cid)).hexdigest() == row["sha256"]


@pytest.mark.parametrize("frame", [1_000, 65_536, 1_048_576, 1_048_577, 3_000_000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
async def test_frame_sizes_do_not_change_the_cid(node, frame, kind):
    """The CID depends on the bytes alone, and a buffer may be used again once write() has returned."""
    writer = node.writer()
    async for piece in frames(CONTENT, frame):
        buffer = kind(piece)
        await writer.write(buffer)
        if kind is bytearray:
            buffer[:] = bytes(len(buffer))
    added = await writer.finish()
    assert added.cid == import_bytes(CONTENT).root
    assert await cat(node, added.cid) == CONTENT


async def test_one_byte_frames(node):
    """Frames of one byte are a file like any other."""
    added = await node.add(frames(b"hello world\n", 1))
    assert str(added.cid) == REFERENCE["files"]["hello_world_nl"]["v1_raw_1m_w1024"]["cid"]


async def test_files_and_trees_from_disk(node, tmp_path):
    """add_path gives the CIDs of the reference directory, without dot files unless they are asked for."""
    tree = tmp_path / "tree"
    (tree / "b").mkdir(parents=True)
    (tree / "a.txt").write_bytes(b"hello world\n")
    (tree / "b" / "c.bin").write_bytes(b"\0")
    (tree / "b" / "empty").write_bytes(b"")
    (tree / ".hidden").write_bytes(b"x")
    for profile, row in (("unixfs-v1-2025", "dir_v1"), ("unixfs-v0-2015", "dir_v0")):
        added = await node.add_path(str(tree), profile=profile)
        assert str(added.cid) == REFERENCE["directories"][row][""]
        assert added.size == 13
        for path, cid in REFERENCE["directories"][row].items():
            if path and not path.startswith("_"):
                assert str((await node.stat(f"{added.cid}/{path}")).cid) == cid
    assert (await node.add_path(str(tree), hidden=True)).cid != added.cid


async def test_a_tree_by_streams_is_the_tree_from_disk(node):
    """A tree whose files come as streams has the CID of the same tree on disk."""
    tree = node.tree_writer()
    for name, content in {"a.txt": b"hello world\n", "b/c.bin": b"\0", "b/empty": b""}.items():
        await tree.add_file(name, frames(content, 5))
    added = await tree.finish(name="tree")
    assert str(added.cid) == REFERENCE["directories"]["dir_v1"][""]
    assert [pin.name for pin in await node.pins()] == ["tree"]


@pytest.mark.parametrize("name", ["", "a/../b", "/a", "a//b", ".", "a\0b", "a.txt", "a.txt/b", "x" * 2000])
async def test_bad_names_in_a_tree(node, name):
    """Names that no path could lead to, that are taken, or that are below a file, are refused."""
    tree = node.tree_writer()
    await tree.add_file("a.txt", frames(b"x", 1))
    with pytest.raises(IPFSStreamError):
        await tree.add_file(name, frames(b"y", 1))
        await tree.finish()
    await tree.abort()


async def test_directories_of_what_is_here(node):
    """add_directory makes a tree of things that were added before."""
    one = await node.add(frames(b"one", 3))
    tree = await node.add_directory({"a/one.txt": one.cid, "two.txt": one.cid})
    assert await cat(node, f"{tree.cid}/a/one.txt") == b"one"
    assert [entry.name async for entry in node.ls(tree.cid)] == ["a", "two.txt"]


async def test_symlinks_stay_symlinks_and_are_followed_inside_their_root(node, tmp_path):
    """A relative symlink works inside its tree; one that leaves it, or goes round, is refused."""
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "file.txt").write_bytes(b"content")
    for link, target in {
        "link": "file.txt",
        "sub/up": "../file.txt",
        "dir": "sub",
        "out": "../../etc/passwd",
        "absolute": "/etc/passwd",
        "loop": "loop",
    }.items():
        (tree / link).symlink_to(target)
    root = (await node.add_path(str(tree))).cid
    stat = await node.stat(f"{root}/link")
    assert (stat.kind, stat.target, stat.size) == ("symlink", "file.txt", 8)
    assert await cat(node, f"{root}/link") == b"content"
    assert await cat(node, f"{root}/dir/up") == b"content"
    for bad in ("out", "absolute", "loop"):
        with pytest.raises(BadRequestError):
            await cat(node, f"{root}/{bad}")


async def test_special_files_are_refused(node, tmp_path):
    """A pipe is neither read nor waited for."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadRequestError, match="pipe"):
        await node.add_path(str(tmp_path / "pipe"))
    with pytest.raises(NotFoundError, match="nothing-here"):
        await node.add_path(str(tmp_path / "nothing-here"))


async def test_large_directories_are_sharded(node):
    """A directory that is too large for one block is sharded, and lists, resolves and exports as any other."""
    one = await node.add(frames(b"x", 1))
    names = {f"a rather long name for a file, number {i:05}.txt": one.cid for i in range(6000)}
    added = await node.add_directory(names)
    assert {entry.name async for entry in node.ls(added.cid)} == set(names)
    assert await cat(node, f"{added.cid}/{next(iter(names))}") == b"x"
    with pytest.raises(NotFoundError):
        await node.stat(f"{added.cid}/no such name")


async def test_reading_any_range(node):
    """cat and read give exactly the bytes between offset and offset + length."""
    cid = (await node.add(frames(CONTENT, 700_000))).cid
    for offset, length in [
        (0, 0),
        (0, 1),
        (1_048_575, 2),
        (2_999_999, 10),
        (5_000_000, 1),
        (1, None),
        (999, 2_000_000),
    ]:
        expected = CONTENT[offset : None if length is None else offset + length]
        assert await cat(node, cid, offset, length) == expected
        if length is not None:
            assert await node.read(cid, offset, length) == expected
    with pytest.raises(BadRequestError):
        await cat(node, cid, -1)


async def test_the_guides_stream(node):
    """IPFSContentStream gives metadata and chunks of the size asked for, the last one short."""
    added = await node.add_directory({"clip.txt": (await node.add(frames(CONTENT, 100_000))).cid})
    async with IPFSContentStream(node, f"{added.cid}/clip.txt") as stream:
        metadata = await stream.get_metadata()
        assert metadata["size"] == metadata["content_length"] == len(CONTENT)
        assert metadata["filename"] == "clip.txt"
        chunks = [chunk async for chunk in stream.iter_chunks()]
        assert {len(chunk) for chunk in chunks[:-1]} == {65_536}
        assert b"".join(chunks) == CONTENT
        part = [chunk async for chunk in stream.iter_chunks(chunk_size=1000, offset=5, length=2500)]
        assert [len(chunk) for chunk in part] == [1000, 1000, 500]
        with pytest.raises(BadRequestError, match="chunk_size"):
            await anext(stream.iter_chunks(0))
    with pytest.raises(BadRequestError, match="closed"):
        await anext(stream.iter_chunks())


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("", BadCIDError),
        ("not-a-cid", BadCIDError),
        ("Qm", BadCIDError),
        ("/ipfs/", BadCIDError),
        ("{cid}/../x", BadRequestError),
        ("{cid}/./x", BadRequestError),
        ("{cid}//x", BadRequestError),
        ("{cid}/a\0b", BadRequestError),
        ("{cid}/" + "x/" * 300, IPFSStreamError),
        ("{cid}/nothing", NotFoundError),
        ("{cid}/file/below", NotDirectoryError),
        ("{cid}", IsDirectoryError),
        ("/ipns/example.org", BadRequestError),
        ("bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy", NotFoundError),
    ],
)
async def test_bad_paths(node, path, error):
    """Every path that cannot be read says why."""
    root = (await node.add_directory({"file": (await node.add(frames(b"x", 1))).cid})).cid
    with pytest.raises(error) as caught:
        await cat(node, path.format(cid=root))
    assert str(caught.value)


async def test_a_block_missing_in_the_middle(node):
    """The bytes before a missing block come, then an error that names it; none of it is taken for the end."""
    imported = import_bytes(CONTENT)
    for block in imported.blocks:
        if block.cid != imported.blocks[1].cid:
            await node.block_put(bytes(block.data), codec=block.cid.codec)
    got = []
    with pytest.raises(RetrievalError, match=str(imported.blocks[1].cid)):
        async for piece in node.cat(imported.root):
            got.append(piece)
    assert b"".join(got) == CONTENT[: 1024 * 1024]
    assert await node.read(imported.root, 2_500_000, 10) == CONTENT[2_500_000:2_500_010]


async def put_file(node, *children: tuple[CID, int]) -> CID:
    """A file node whose children have these sizes."""
    sizes = tuple(size for _, size in children)
    links = tuple(PBLink(cid, "", size) for cid, size in children)
    block = unixfs.encode(UnixFSNode(UnixFSType.FILE, file_size=sum(sizes), block_sizes=sizes, links=links))
    return await node.block_put(block, codec=DAG_PB)


async def test_a_partly_present_file_can_be_read_where_it_is(node):
    """Where a file's head is missing, its name tells the type, and what is here can be read."""
    here = await node.block_put(b"here" * 100, codec=RAW)
    file = await put_file(node, (CID.of(b"gone"), 4), (here, 400))
    directory = await node.add_directory({"clip.mp4": file}, pin=False)
    stat = await node.stat(f"{directory.cid}/clip.mp4")
    assert (stat.mime_type, stat.size) == ("video/mp4", 404)
    assert (await node.stat(file)).mime_type == "application/octet-stream"
    assert await node.read(file, 4, 4) == b"here"
    with pytest.raises(RetrievalError):
        await node.read(file, 0, 4)


async def test_the_type_of_a_bomb_costs_little(node, monkeypatch):
    """Telling a file's type goes through a bounded number of blocks, however its tree is made."""
    cid, size, empty = await node.block_put(b"z", codec=RAW), 1, CID.of(b"")
    for _ in range(14):
        cid = await put_file(node, *[(cid, size)] * 2, *[(empty, 0)] * 2000)
        size *= 2
    gets = []
    get = node.store.get
    monkeypatch.setattr(node.store, "get", lambda cid, *args: gets.append(cid) or get(cid, *args))
    assert (await node.stat(cid)).size == 2**14
    assert len(gets) <= SNIFF_PIECES + 14 + READ_AHEAD_BLOCKS + 10


async def test_identity_cids_need_no_store(node):
    """An identity CID is its own content."""
    cid = CID(1, RAW, 0, b"hello")
    assert await cat(node, cid) == b"hello"
    assert (await node.stat(cid)).size == 5


async def test_other_codecs_are_blocks_but_not_files(node):
    """A dag-cbor block can be stored and had back, and is refused as a file."""
    cid = await node.block_put(b"\xa0", codec=DAG_CBOR)
    assert await node.block_get(cid) == b"\xa0"
    with pytest.raises(UnsupportedMediaError, match="dag-cbor"):
        await node.stat(cid)


async def test_garbage_dag_pb_is_corrupt_content_not_a_crash(node):
    """A block that claims to be dag-pb and is not gives a clear error."""
    cid = await node.block_put(b"\xff\xff", codec=DAG_PB)
    with pytest.raises(IPFSStreamError):
        await node.stat(cid)


async def test_pins_gc_and_removal(node):
    """Pinned content stays, unpinned goes, and content that is being read stays until it is read."""
    kept = await node.add(frames(CONTENT, 500_000), name="kept")
    loose = await node.add(frames(CONTENT[1:], 500_000), pin=False)
    async with aclosing(node.cat(loose.cid)) as pieces:
        first = await anext(pieces)
        await node.gc()
        assert first + b"".join([piece async for piece in pieces]) == CONTENT[1:]
    assert (await node.gc()).blocks > 0
    with pytest.raises(NotFoundError):
        await node.stat(loose.cid)
    assert await cat(node, kept.cid) == CONTENT
    assert [(pin.cid, pin.name) for pin in await node.pins()] == [(kept.cid, "kept")]
    await node.remove(kept.cid)
    assert (await node.repo_stat()).blocks == 0
    with pytest.raises(NotFoundError):
        await node.unpin(kept.cid)


async def test_pin_progress_ends_at_its_true_total(node):
    """The last progress of a pin counts all blocks, and its total was true."""
    added = await node.add(frames(CONTENT, 500_000), pin=False)
    seen = []
    await node.pin(added.cid, name="p", progress=seen.append)
    await asyncio.sleep(0)
    assert seen[-1].blocks == seen[-1].total_blocks == 4
    assert seen[-1].bytes == seen[-1].total_bytes == added.dag_size


async def test_cars_travel(node, tmp_path):
    """A CAR of a tree, imported into another store, gives the same tree, pinned."""
    tree = await node.add_directory({"a/b.bin": (await node.add(frames(CONTENT, 500_000))).cid})
    async with await EmbeddedNode.open(tmp_path / "other") as other:
        info = await other.import_car(node.export_car(tree.cid))
        assert info.roots == (tree.cid,)
        assert info.missing == ()
        assert await cat(other, f"{tree.cid}/a/b.bin") == CONTENT
        assert [pin.cid for pin in await other.pins()] == [tree.cid]


async def test_a_car_of_a_part_is_imported(node, tmp_path):
    """Its blocks are stored, its root is not pinned and is named so; what came can be read."""
    file = await node.add(frames(CONTENT, 500_000))
    part = node.export_car(file.cid, scope="entity", entity_bytes=(0, 9))
    async with await EmbeddedNode.open(tmp_path / "other") as other:
        info = await other.import_car(part)
        assert (info.roots, info.blocks) == ((file.cid,), 2)
        assert (info.missing, info.unpinned) == ((), (file.cid,))
        assert await other.pins() == []
        assert await other.read(file.cid, 0, 10) == CONTENT[:10]
        whole = await other.import_car(node.export_car(file.cid))
        assert whole.unpinned == ()
        assert [pin.cid for pin in await other.pins()] == [file.cid]


async def test_a_car_without_its_root(node):
    """A root that the CAR names and does not carry is reported, and the rest is stored."""
    gone, block = CID.of(b"gone"), b"here"
    car = encode_header([gone]) + encode_section(CID.of(block), block)
    info = await node.import_car(frames(car, 1000))
    assert (info.missing, info.unpinned) == ((gone,), (gone,))
    assert await node.block_get(CID.of(block)) == block
    with pytest.raises(NotFoundError, match=str(gone)):
        await node.pin(gone)


async def test_car_scopes(node, tmp_path):
    """dag-scope and entity-bytes put in the way to the path and what is asked for, nothing else."""
    file = await node.add(frames(CONTENT, 500_000))
    tree = await node.add_directory({"a/b.bin": file.cid, "z": (await node.add(frames(b"zz", 2))).cid})
    path = f"{tree.cid}/a/b.bin"

    async def blocks(path, **options) -> int:
        async with await EmbeddedNode.open(tmp_path / "scopes") as other:
            return (await other.import_car(node.export_car(path, **options), pin=False)).blocks

    assert await blocks(path, scope="block") == 3
    assert await blocks(path, scope="entity") == 6
    assert await blocks(path, scope="entity", entity_bytes=(0, 10)) == 4
    assert await blocks(path, scope="entity", entity_bytes=(1_048_570, 1_048_580)) == 5
    assert await blocks(path, scope="entity", entity_bytes=(-5, None)) == 4
    assert await blocks(path, scope="entity", entity_bytes=(9_000_000, None)) == 3
    assert await blocks(tree.cid, scope="entity") == 1
    assert await blocks(tree.cid, scope="all") == 7


async def test_an_aborted_writer_leaves_only_what_gc_takes(node):
    """An aborted file pins nothing, and garbage collection takes its blocks."""
    writer = node.writer()
    await writer.write(CONTENT)
    await writer.abort()
    await writer.abort()
    with pytest.raises(BadRequestError):
        await writer.write(b"x")
    await node.gc()
    assert (await node.repo_stat()).blocks == 0


async def test_a_source_that_fails_is_aborted(node):
    """An error in the source reaches the caller, and nothing stays behind."""

    async def broken():
        yield CONTENT
        raise OSError("the source broke")

    with pytest.raises(OSError, match="the source broke"):
        await node.add(broken())
    await node.gc()
    assert (await node.repo_stat()).blocks == 0


async def test_mime_types_and_names(node):
    """stat tells the MIME type from the bytes, and the name from the path."""
    png = b"\x89PNG\r\n\x1a\n" + bytes(100)
    tree = await node.add_directory({"picture.txt": (await node.add(frames(png, 50))).cid})
    stat = await node.stat(f"{tree.cid}/picture.txt")
    assert (stat.mime_type, stat.name) == ("image/png", "picture.txt")
    assert stat.roots == (tree.cid, stat.cid)
    assert (await node.stat(tree.cid)).kind == "directory"


async def test_a_closed_node_says_so(tmp_path):
    """Whoever comes after close() gets a StoreError, which is a 503 and not a 500."""
    node = await EmbeddedNode.open(tmp_path / "repo")
    cid = (await node.add(frames(b"x", 1))).cid
    await node.close()
    await node.close()
    for use in (node.stat(cid), node.block_get(cid), node.add_path(__file__), node.pins(), node.gc()):
        with pytest.raises(StoreError, match="closed"):
            await use


async def test_an_embedded_node_has_no_peers(node):
    """There is nobody to list or ping."""
    assert await node.swarm_peers() == []
    with pytest.raises(NotFoundError):
        await node.ping("peer")
