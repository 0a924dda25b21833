"""KuboNode over a real daemon."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from ipfs_stream_nb.content.cid import CID, DAG_CBOR, DAG_PB, RAW
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.errors import (
    BadRequestError,
    CorruptContentError,
    IsDirectoryError,
    NotFoundError,
    RetrievalError,
    RetrievalTimeoutError,
)
from kubo import running
from kubo_nodes import node_of

PROFILES = {
    "unixfs-v1-2025": ["--cid-version=1", "--raw-leaves", "--chunker=size-1048576", "--max-file-links=1024"],
    "unixfs-v0-2015": [
        "--cid-version=0",
        "--raw-leaves=false",
        "--chunker=size-262144",
        "--max-file-links=174",
    ],
    "ipfs-v1": ["--cid-version=1", "--raw-leaves", "--chunker=size-262144", "--max-file-links=174"],
}


async def pieces(data, size=70_000):
    for at in range(0, len(data), size):
        yield data[at : at + size]


@pytest.fixture
async def embedded(tmp_path):
    async with await EmbeddedNode.open(tmp_path / "embedded", min_free=0) as node:
        yield node


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("size", [0, 1, 262_144, 1_048_577, 3_000_000])
async def test_a_file_has_the_cid_of_its_profile(node, embedded, kubo, profile, size):
    """The daemon's add by us, by its command line, and our own node agree; the bytes come back verified."""
    data = random.Random(size).randbytes(size)
    told = []
    added = await node.add(pieces(data), profile=profile, name="file", progress=told.append)
    assert str(added) == kubo.run("add", "-Q", "-n", *PROFILES[profile], data=data)
    assert added.cid == (await embedded.add(pieces(data), profile=profile)).cid
    assert (added.size, sum(told), added.name) == (size, size, "file")
    assert await node.read(added.cid, 0, size + 1) == data
    assert added.cid in {pin.cid for pin in await node.pins()}


async def test_what_the_daemon_holds_is_read_and_not_copied(node, kubo):
    """Ranges and wholes of what was added by the command line; our store keeps no copy."""
    data = os.urandom(2_000_000)
    cid = kubo.run("add", "-Q", data=data)
    assert await node.read(cid, 1_234_567, 1000) == data[1_234_567:1_235_567]
    assert b"".join([piece async for piece in node.cat(cid)]) == data
    assert (await node.stat(cid)).size == len(data)
    assert node.store.stat().blocks == 0


async def test_where_blocks_are_is_told(node, kubo):
    """What the daemon holds is its; what it lacks is missing, and what is below that is not known."""
    data = os.urandom(3_000_000)
    cid = CID.parse(
        kubo.run("add", "-Q", "--pin=false", "--cid-version=1", "--chunker=size-262144", data=data)
    )
    found = await node.sources(cid)
    (origin,) = found.origins
    assert (origin.source, origin.blocks, found.missing) == (node.rpc.address.name, 13, 0)
    assert origin.bytes > len(data)
    leaf = CID.of(data[:262_144])
    kubo.run("block", "rm", str(leaf))
    node.store.put(leaf, data[:262_144])
    found = await node.sources(cid)
    assert {origin.source: origin.blocks for origin in found.origins} == {
        node.rpc.address.name: 12,
        "added here": 1,
    }
    kubo.run("block", "rm", str(cid))
    found = await node.sources(cid)
    assert (found.origins, found.missing) == ((), 1)


def make_tree(root: Path) -> None:
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "sub" / "a.txt").write_text("a")
    (root / "sub" / "deep" / "b.bin").write_bytes(os.urandom(1_500_000))
    (root / "empty").write_bytes(b"")
    (root / ".hidden").write_text("h")
    (root / "link").symlink_to("sub/a.txt")
    (root / "hollow").mkdir()


@pytest.mark.parametrize("hidden", [False, True])
async def test_a_directory_has_the_cid_of_the_command_line(node, embedded, kubo, tmp_path, hidden):
    """Files, symlinks, empty and hidden ones; it is pinned by name, and nothing of it stays in our store."""
    make_tree(tmp_path / "tree")
    added = await node.add_path(str(tmp_path / "tree"), hidden=hidden, name="tree")
    assert {pin.cid: pin.name for pin in await node.pins()}[added.cid] == "tree"
    options = ["--hidden"] if hidden else []
    told = kubo.run(
        "add", "-Q", "-r", "--empty-dirs", *PROFILES["unixfs-v1-2025"], *options, str(tmp_path / "tree")
    )
    assert str(added) == told
    assert added.cid == (await embedded.add_path(str(tmp_path / "tree"), hidden=hidden)).cid
    assert node.store.stat().blocks == 0
    assert [entry.name async for entry in node.ls(f"{added.cid}/sub")] == ["a.txt", "deep"]
    assert (
        json.loads(kubo.run("dag", "stat", "--progress=false", "--enc=json", str(added)))["TotalSize"]
        > 1_500_000
    )


async def test_a_large_directory_is_sharded_as_ours_is(node, embedded):
    """Thousands of names: the daemon serves the shards that we have built."""
    tree = node.tree_writer()
    ours = embedded.tree_writer()
    for writer in (tree, ours):
        for number in range(6000):
            await writer.add_file(f"a file with a long name {number:06}.txt", pieces(b"%d" % number))
    added, same = await tree.finish(name="many"), await ours.finish()
    assert added.cid == same.cid
    assert await node.read(f"{added.cid}/a file with a long name 004321.txt", 0, 10) == b"4321"


async def test_a_directory_of_what_the_daemon_has(node, kubo):
    """Names are given to content that is not in our store; its sub-directories are there as well."""
    one, two = (kubo.run("add", "-Q", data=os.urandom(300_000)) for _ in range(2))
    entries = {"one": CID.parse(one), "in/here/two": CID.parse(two)}
    added = await node.add_directory(entries, name="both")
    resolved = kubo.run("resolve", f"/ipfs/{added}/in/here/two").removeprefix("/ipfs/")
    assert CID.parse(resolved).v1() == CID.parse(two).v1()
    assert added.cid in {pin.cid for pin in await node.pins()}
    assert len(await node.read(f"{added}/one", 0, 10**6)) == 300_000


async def test_pins_tell_how_far_they_are_of_a_true_total(node, kubo):
    """The last progress is the total; the pin has its name and can be taken away once."""
    cid = CID.parse(kubo.run("add", "-Q", "--pin=false", data=os.urandom(3_000_000)))
    told = []
    pin = await node.pin(cid, name="mine", progress=told.append)
    assert pin.name == "mine"
    stat = json.loads(kubo.run("dag", "stat", "--progress=false", "--enc=json", str(cid)))
    assert (told[-1].blocks, told[-1].bytes) == (told[-1].total_blocks, told[-1].total_bytes)
    assert told[-1].total_blocks == sum(entry["NumBlocks"] for entry in stat["DagStats"])
    assert told[-1].total_bytes == pytest.approx(stat["TotalSize"], abs=12 * 20)  # dag-pb leaves are not read
    await node.unpin(cid)
    with pytest.raises(NotFoundError, match="not pinned"):
        await node.unpin(cid)


async def test_a_pin_of_what_nobody_has_fails(node, monkeypatch):
    """The daemon would look for it for ever: after a while without a further block it is ended."""
    monkeypatch.setattr("ipfs_stream_nb.content.kubo.rpc.PIN_STALL", 1)
    with pytest.raises(RetrievalTimeoutError, match="no further block"):
        await node.pin(CID.of(os.urandom(10), RAW))


async def test_blocks_are_put_and_found(node):
    """Raw, dag-pb and dag-cbor, under the CIDs that we know."""
    for codec, data in ((RAW, os.urandom(100)), (DAG_PB, b"\x0a\x02\x08\x01"), (DAG_CBOR, b"\xa0")):
        cid = await node.block_put(data, codec=codec)
        assert await node.block_has(cid)
        assert await node.block_get(cid) == data
    assert not await node.block_has(CID.of(os.urandom(9), RAW))
    with pytest.raises(BadRequestError, match="codec"):
        await node.block_put(b"", codec=0x300000)


async def test_cars_travel_both_ways(node, embedded, kubo):
    """What ours exports the daemon imports and pins, and the other way round."""
    data = os.urandom(1_500_000)
    cid = (await embedded.add(pieces(data))).cid
    info = await node.import_car(embedded.export_car(cid))
    assert (info.roots, info.missing, info.unpinned) == ((cid,), (), ())
    assert kubo.run_binary("cat", str(cid)) == data
    other = kubo.run("add", "-Q", data=data[:400_000])
    await embedded.import_car(node.rpc.dag_export(CID.parse(other)))
    assert await embedded.read(other, 0, 400_000) == data[:400_000]


async def test_a_car_with_a_wrong_block_is_refused_by_us(node, embedded):
    """A flipped bit is found before the daemon sees the block."""
    cid = (await embedded.add(pieces(os.urandom(5000)))).cid
    car = bytearray(b"".join([part async for part in embedded.export_car(cid)]))
    car[-1] ^= 1
    with pytest.raises(CorruptContentError):
        await node.import_car(pieces(bytes(car)))


async def test_garbage_is_the_daemons(tmp_path):
    """Collecting takes away what is not pinned; removing unpins."""
    with running(tmp_path / "kubo") as daemon:
        async with node_of(daemon.api, tmp_path / "cache") as node:
            kept = (await node.add(pieces(os.urandom(300_000)))).cid
            lost = (await node.add(pieces(os.urandom(300_000)), pin=False)).cid
            result = await node.gc()
            assert result.blocks >= 1
            assert await node.block_has(kept)
            assert not await node.block_has(lost)
            await node.remove(kept)
            assert kept not in {pin.cid for pin in await node.pins()}
            stat = await node.repo_stat()
            assert stat.path == str(daemon.repo)
            assert await node.swarm_peers() == []


async def test_paths_that_are_no_files_are_told(node, kubo, tmp_path):
    """A missing local file, a directory in place of a file, a missing entry."""
    with pytest.raises(NotFoundError):
        await node.add_path(str(tmp_path / "none"))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_text("f")
    cid = kubo.run("add", "-Q", "-r", str(tmp_path / "d"))
    with pytest.raises(IsDirectoryError):
        await node.read(cid, 0, 1)
    with pytest.raises(NotFoundError, match="no 'none'"):
        await node.stat(f"{cid}/none")


async def test_a_daemon_that_dies_is_told_by_name(tmp_path):
    """In the middle of an add, of reading, and when it is gone: clear errors, and nothing hangs."""
    with running(tmp_path / "kubo") as daemon:
        async with node_of(daemon.api, tmp_path / "cache") as node:
            cid = (await node.add(pieces(os.urandom(5_000_000)))).cid
            reading = node.cat(cid)
            await anext(reading)
            writer = node.writer()
            await writer.write(bytes(1_000_000))
            daemon.kill()
            with pytest.raises(RetrievalError, match="Kubo at"):
                for _ in range(100):
                    await writer.write(bytes(1_000_000))
            await writer.abort()
            with pytest.raises(RetrievalError, match="ipfs daemon"):
                await node.pins()
            await reading.aclose()


async def test_an_add_that_is_given_up_leaves_nothing_running(node):
    """Aborting ends the request; the node goes on."""
    writer = node.writer()
    await writer.write(bytes(2_000_000))
    await writer.abort()
    await writer.abort()
    with pytest.raises(BadRequestError, match="finished"):
        await writer.write(b"x")
    assert (await node.add(pieces(b"after"))).size == 5
