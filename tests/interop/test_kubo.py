"""Kubo, the reference node, beside ours: the same CIDs, and CARs that travel both ways."""

from __future__ import annotations

import json
import os
import random
from contextlib import aclosing
from pathlib import Path

import pytest

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.directory import build_directory
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.importer import PROFILES, get_profile, import_bytes
from kubo import Kubo, running
from kubo_nodes import node_of

REFERENCE = json.loads((Path(__file__).parents[1] / "content" / "reference_cids.json").read_text())["files"]
COLUMNS = {
    "unixfs-v1-2025": "v1_raw_1m_w1024",
    "unixfs-v0-2015": "v0_256k_w174",
    "ipfs-v1": "v1_raw_256k_w174",
}
PIECE = 251 * 4000


async def pieces(data, size=100_000):
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def pattern(size):
    """The reference's bytes, as many as wanted."""
    piece = bytes(range(251)) * (PIECE // 251)
    for at in range(0, size, PIECE):
        yield piece[: size - at]


@pytest.fixture
async def node(kubo, tmp_path):
    async with node_of(kubo.api, tmp_path / "cache") as node:
        yield node


@pytest.fixture
async def embedded(tmp_path):
    async with await EmbeddedNode.open(tmp_path / "embedded", min_free=0) as node:
        yield node


@pytest.fixture(scope="module", params=["unixfs-v1-2025", "unixfs-v0-2015"])
def profiled(request, tmp_path_factory):
    """A profile that Kubo has as well, and a repo without a daemon that has it set."""
    repo = Kubo(tmp_path_factory.mktemp("profiled") / "repo")
    repo.run("config", "profile", "apply", request.param)
    return request.param, repo


def test_the_daemon_answers(kubo):
    """The fixture gives a running daemon of the version that go.mod names."""
    assert kubo.run("version", "--number") == "0.43.1"
    cid = kubo.run("add", "-Q", "--cid-version=1", data=b"hello")
    assert kubo.run_binary("cat", cid) == b"hello"


# -- the same CIDs


def small_and_wide():
    """Files of up to 10 MiB in each profile, and one for each that has more chunks than one node has room for."""
    for profile, column in COLUMNS.items():
        for name, row in REFERENCE.items():
            wide = row["size"] == (188_743_680 if profile == "unixfs-v1-2025" else 45_613_057)
            if column in row and (row["size"] <= 10_485_760 or wide):
                yield pytest.param(profile, name, id=f"{profile}-{name}")


@pytest.mark.parametrize(("profile", "name"), list(small_and_wide()))
async def test_files_have_the_reference_cids(node, profile, name):
    """What Kubo adds for us has the CID and the sizes that the reference says."""
    row = REFERENCE[name]
    expected = row[COLUMNS[profile]]
    special = {"one_byte": b"\0", "hello_world_nl": b"hello world\n"}.get(name)
    source = pieces(special) if special else pattern(row["size"])
    added = await node.add(source, profile=profile, pin=False)
    assert (str(added.cid), added.size, added.dag_size) == (expected["cid"], row["size"], expected["tsize"])


async def test_the_daemons_import_settings_change_no_cid(tmp_path):
    """Whatever its owner has set for `ipfs add`, a profile's CID is what it is."""
    data = random.Random(1).randbytes(3_000_000)
    daemon = Kubo(tmp_path / "kubo")
    for key, value in {
        "HashFunction": "blake2b-256",
        "CidVersion": 1,
        "UnixFSRawLeaves": False,
        "UnixFSChunker": "size-1000",
        "UnixFSFileMaxLinks": 5,
        "UnixFSDAGLayout": "trickle",
    }.items():
        daemon.configure(f"Import.{key}", value)
    try:
        daemon.start()
        async with node_of(daemon.api, tmp_path / "cache") as node:
            for profile in PROFILES:
                assert (await node.add(pieces(data), profile=profile)).cid == import_bytes(data, profile).root
    finally:
        daemon.stop()


def grow(root: Path, seed: int) -> None:
    """A tree of files, empty and hidden ones, symlinks, empty directories, and names that are no ASCII."""
    chance = random.Random(seed)
    folders = [root]
    root.mkdir()
    for number in range(40):
        parent = chance.choice(folders)
        name = chance.choice(["{}", ".{}", "{}.txt", "ä {}", "日本 {}%20"]).format(number)
        match chance.choice(["folder", "link", "empty", "small", "large"]):
            case "folder":
                (parent / name).mkdir()
                folders.append(parent / name)
            case "link":
                (parent / name).symlink_to(chance.choice(["../x", "/etc/none", "ö"]))
            case "empty":
                (parent / name).touch()
            case "small":
                (parent / name).write_bytes(chance.randbytes(chance.randrange(1, 5000)))
            case "large":
                (parent / name).write_bytes(chance.randbytes(chance.randrange(200_000, 1_200_000)))


@pytest.mark.parametrize("seed", [1, 2])
async def test_trees_have_the_cids_of_the_command_line(node, embedded, profiled, tmp_path, seed):
    """Through the daemon, through our own node, and by `ipfs add -r` with Kubo's own profile."""
    profile, repo = profiled
    grow(tmp_path / "tree", seed)
    for hidden in (False, True):
        told = repo.run("add", "-Q", "-r", "-n", f"--hidden={str(hidden).lower()}", str(tmp_path / "tree"))
        for one in (node, embedded):
            added = await one.add_path(str(tmp_path / "tree"), profile=profile, hidden=hidden)
            assert str(added) == told


async def test_directories_are_sharded_where_kubo_does(node, embedded, profiled, tmp_path):
    """The largest plain directory, and the smallest one that is not: all three agree on both."""
    profile, repo = profiled
    empty = import_bytes(b"", profile).root
    size = len(import_bytes(b"", profile).blocks[0].data)
    names = [f"{number:060}" for number in range(4000)]

    def blocks(many):
        _, _, made = build_directory([(name, empty, size) for name in names[:many]], get_profile(profile))
        return len(made)

    low, high = 1, len(names)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if blocks(middle) > 1 else (middle, high)
    folder = tmp_path / "many"
    folder.mkdir()
    for name in names[:low]:
        (folder / name).touch()
    for many in (low, high):
        (folder / names[many - 1]).touch()
        told = repo.run("add", "-Q", "-r", "-n", str(folder))
        for one in (node, embedded):
            added = await one.add_path(str(folder), profile=profile)
            assert str(added) == told
        inner = (await node.rpc.dag_stat(added.cid))[0] - 1  # without the one empty file
        assert (inner == 1) == (many == low)


# -- CARs


async def put_in(node, kind, tmp_path):
    """Something in a node of ours: its root, and a path of a file in it with its bytes."""
    data = random.Random(7).randbytes(2_500_000)
    if kind == "file":
        cid = (await node.add(pieces(data))).cid
        return cid, str(cid), data
    tree = node.tree_writer(profile="unixfs-v0-2015" if kind == "sharded" else None)
    for number in range(4000 if kind == "sharded" else 3):
        await tree.add_file(f"folder/{number:080}", pieces(b"%d" % number))
    await tree.add_file("folder/large", pieces(data))
    cid = (await tree.finish()).cid
    return cid, f"{cid}/folder/large", data


@pytest.mark.parametrize("kind", ["file", "tree", "sharded"])
async def test_a_car_of_ours_is_kubos(embedded, kubo, tmp_path, kind):
    """`ipfs dag import` takes it and pins it; `ipfs dag stat` and `ipfs cat` agree with us."""
    cid, path, data = await put_in(embedded, kind, tmp_path)
    car = b"".join([part async for part in embedded.export_car(cid)])
    told = kubo.run("dag", "import", "--stats", "--enc=json", data=car)
    lines = [json.loads(line) for line in told.splitlines()]
    assert lines[0]["Root"] == {"Cid": {"/": str(cid)}, "PinErrorMsg": ""}
    stat = json.loads(kubo.run("dag", "stat", "--progress=false", "--enc=json", str(cid)))
    assert stat["UniqueBlocks"] == lines[-1]["Stats"]["BlockCount"] == embedded.store.stat().blocks
    assert stat["TotalSize"] == embedded.store.stat().size
    assert kubo.run_binary("cat", path) == data
    assert kubo.run_binary("dag", "export", "--progress=false", str(cid)) == car


@pytest.mark.parametrize("kind", ["file", "tree", "sharded"])
async def test_a_car_of_kubos_is_ours(embedded, kubo, tmp_path, kind):
    """What `ipfs dag export` writes is taken whole and pinned, and reads the same."""
    async with await EmbeddedNode.open(tmp_path / "other", min_free=0) as other:
        cid, path, data = await put_in(other, kind, tmp_path)
        kubo.run("dag", "import", data=b"".join([part async for part in other.export_car(cid)]))
    car = kubo.run_binary("dag", "export", "--progress=false", str(cid))
    info = await embedded.import_car(pieces(car))
    assert (info.roots, info.missing, info.unpinned) == ((cid,), (), ())
    stat = json.loads(kubo.run("dag", "stat", "--progress=false", "--enc=json", str(cid)))
    assert (info.blocks, info.bytes) == (stat["UniqueBlocks"], stat["TotalSize"])
    async with aclosing(embedded.cat(path)) as read:
        assert b"".join([piece async for piece in read]) == data


async def test_a_car_of_a_part_is_stored_and_not_pinned(node, embedded):
    """Its root is named as not pinned, and one that it does not carry as missing; the daemon has the rest."""
    cid = (await embedded.add(pieces(os.urandom(3_000_000)))).cid
    part = embedded.export_car(cid, scope="entity", entity_bytes=(0, 10))
    info = await node.import_car(part)
    assert (info.roots, info.missing, info.unpinned, info.blocks) == ((cid,), (), (cid,), 2)
    assert cid not in {pin.cid for pin in await node.pins()}
    assert len(await node.rpc.block_get(cid, offline=True)) > 100


async def test_pins_of_both_are_seen_by_both(tmp_path):
    """What we pin, `ipfs pin ls` names; what `ipfs` unpins is gone from ours."""
    with running(tmp_path / "kubo") as daemon:
        async with node_of(daemon.api, tmp_path / "cache") as node:
            cids = [(await node.add(pieces(os.urandom(1000)), name=f"number {at}")).cid for at in range(3)]
            told = daemon.run("pin", "ls", "--type=recursive", "--names", "--enc=json")
            names = {CID.parse(cid): pin["Name"] for cid, pin in json.loads(told)["Keys"].items()}
            assert [names[cid] for cid in cids] == ["number 0", "number 1", "number 2"]
            daemon.run("pin", "rm", str(cids[0]))
            assert {pin.cid for pin in await node.pins()} & set(cids) == set(cids[1:])
