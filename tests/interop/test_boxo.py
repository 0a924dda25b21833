"""The formats against boxo, the Go library inside Kubo: same CIDs, and each reads what the other wrote.

The Go program is tests/interop/boxo; see go_program for how it is built.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from go_program import build
from ipfs_stream_nb.content import unixfs
from ipfs_stream_nb.content.car import CarDecoder, encode_header, encode_section
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.directory import build_directory, check_name
from ipfs_stream_nb.content.hamt import ROOT, HamtLookup, read_shard
from ipfs_stream_nb.content.importer import PROFILES, Block, Imported, Profile, import_bytes
from ipfs_stream_nb.content.unixfs import UnixFSType
from ipfs_stream_nb.errors import BadRequestError

SOURCES = Path(__file__).parent / "boxo"
PROJECT = Path(__file__).parents[2]
GO_SECONDS = 140  # fetching and building together stay under pytest's own limit
MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Oracle:
    """The running Go program."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, op: str, profile: Profile | None = None, **more) -> dict:
        """One question, one answer; an error over there is one here."""
        request = {"op": op, **more}
        if profile is not None:
            request["profile"] = asdict(profile)
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert "error" not in answer, answer
        return answer

    def close(self) -> None:
        """Its input ends, and so does it."""
        self._process.stdin.close()
        assert self._process.wait(timeout=10) == 0
        self._process.stdout.close()


def _go(*command: str) -> None:
    subprocess.run(
        ["go", *command], cwd=SOURCES, capture_output=True, text=True, timeout=GO_SECONDS, check=True
    )


@pytest.fixture(scope="module")
def oracle():
    """Boxo, for the tests of this module."""
    running = Oracle(build(Path(__file__).parent / "boxo"))
    yield running
    running.close()


def content(size: int) -> bytes:
    """The bytes that both sides make for a size."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def add(size: int, profile: Profile) -> Imported:
    """Our side of adding a file."""
    return import_bytes(content(size), profile)


def add_directory(sizes: dict[str, int], profile: Profile) -> tuple[CID, int, list[Block]]:
    """Our side of adding a directory of files: its CID, its DAG's bytes, and every block."""
    files = {name: add(size, profile) for name, size in sizes.items()}
    entries = [(name, file.root, file.dag_size) for name, file in files.items()]
    cid, dag_size, blocks = build_directory(entries, profile)
    return cid, dag_size, [*blocks, *(block for file in files.values() for block in file.blocks)]


def ask_directory(oracle: Oracle, sizes: dict[str, int], profile: Profile) -> dict:
    """Boxo's side of it."""
    entries = [{"name": name, "size": size} for name, size in sizes.items()]
    return oracle.ask("directory", profile, entries=entries)


def write_car(path: Path, root: CID, blocks: list[Block]) -> None:
    """A CAR of ours, each block once."""
    unique = {block.cid: block.data for block in blocks}
    path.write_bytes(encode_header([root]) + b"".join(encode_section(*item) for item in unique.items()))


def names(count: int, seed: int = 0) -> list[str]:
    """Names of several scripts and lengths, the same for the same seed."""
    rng = random.Random(seed)
    alphabet = "abcXYZ019 ._-éßλЖ中🎬%+&"
    found: dict[str, None] = {}
    while len(found) < count:
        name = "".join(rng.choices(alphabet, k=rng.randint(1, 40)))
        if name not in {".", ".."}:
            found[name] = None
    return list(found)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("size", [0, 1, 262_144, 262_145, 1_048_577, 46_000_000])
def test_files_of_the_profiles(oracle, name, size):
    """A file gets boxo's CID, size and number of blocks in each profile."""
    profile = PROFILES[name]
    ours = add(size, profile)
    theirs = oracle.ask("file", profile, size=size)
    assert (str(ours.root), ours.dag_size) == (theirs["cid"], theirs["tsize"])
    assert len({block.cid for block in ours.blocks}) == theirs["blocks"]


@MANY
@given(
    size=st.integers(0, 3000),
    chunk=st.integers(1, 40),
    width=st.integers(2, 7),
    raw=st.booleans(),
    version=st.sampled_from([0, 1]),
)
def test_trees_of_any_shape(oracle, *, size, chunk, width, raw, version):
    """Small chunks and few links make deep trees: every shape of them is boxo's."""
    profile = Profile("tiny", version, chunk, width, raw_leaves=raw)
    ours = add(size, profile)
    theirs = oracle.ask("file", profile, size=size)
    assert (str(ours.root), ours.dag_size) == (theirs["cid"], theirs["tsize"])


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("count", [1, 100, 3000, 9000])
def test_directories_of_the_profiles(oracle, name, count):
    """A directory gets boxo's CID and size, plain or sharded, in each profile."""
    profile = PROFILES[name]
    sizes = {text: index % 300 for index, text in enumerate(names(count))}
    cid, dag_size, blocks = add_directory(sizes, profile)
    theirs = ask_directory(oracle, sizes, profile)
    assert (str(cid), dag_size) == (theirs["cid"], theirs["tsize"])
    sharded = unixfs.decode(blocks[0].data).type == UnixFSType.HAMT_SHARD
    assert sharded == theirs["sharded"]
    assert sharded == (count == 9000)


@pytest.mark.parametrize("name", PROFILES)
def test_threshold_to_the_byte(oracle, name):
    """A directory of exactly the threshold is plain, and one of a byte more is sharded, as with boxo."""
    profile = PROFILES[name]
    sizes = {f"{index:040}": 5 for index in range(3000)}
    plain = replace(profile, sharding_threshold=10**9)
    if profile.directory_estimate == "block-bytes":
        size = len(add_directory(sizes, plain)[2][0].data)
    else:
        size = sum(len(text) + len(bytes(add(5, profile).root)) for text in sizes)
    for threshold in (size, size - 1):
        exact = replace(profile, sharding_threshold=threshold)
        cid, dag_size, _ = add_directory(sizes, exact)
        theirs = ask_directory(oracle, sizes, exact)
        assert (str(cid), dag_size) == (theirs["cid"], theirs["tsize"])
        assert theirs["sharded"] == (threshold < size)


@MANY
@given(
    sizes=st.dictionaries(st.text(min_size=1, max_size=30), st.integers(0, 400), max_size=60),
    fanout=st.sampled_from([8, 16, 32, 64, 128, 256, 512, 1024]),
    threshold=st.integers(1, 4000),
    estimate=st.sampled_from(["block-bytes", "links-bytes"]),
    version=st.sampled_from([0, 1]),
)
def test_directories_of_any_names(oracle, *, sizes, fanout, threshold, estimate, version):
    """Any Unicode names, any fanout, either rule for sharding: boxo's CID."""
    for name in list(sizes):
        try:
            check_name(name)
        except BadRequestError:
            del sizes[name]
    profile = Profile(
        "any",
        version,
        64,
        4,
        raw_leaves=version == 1,
        directory_estimate=estimate,
        sharding_threshold=threshold,
        shard_fanout=fanout,
    )
    cid, dag_size, _ = add_directory(sizes, profile)
    theirs = ask_directory(oracle, sizes, profile)
    assert (str(cid), dag_size) == (theirs["cid"], theirs["tsize"])


@pytest.mark.parametrize(("fanout", "count"), [(8, 2000), (16, 2000), (256, 70_000), (1024, 5000)])
def test_deep_shards(oracle, fanout, count):
    """Many names under a small fanout, or very many under the usual one, make shards several levels deep."""
    profile = Profile("deep", sharding_threshold=1000, shard_fanout=fanout)
    sizes = {f"{index}.txt": index % 7 for index in range(count)}
    cid, dag_size, blocks = add_directory(sizes, profile)
    theirs = ask_directory(oracle, sizes, profile)
    assert (str(cid), dag_size) == (theirs["cid"], theirs["tsize"])
    depth, listed = walk(cid, {block.cid: block.data for block in blocks})
    assert len(listed) == count
    assert depth >= (3 if fanout in {8, 16, 256} else 2)


def walk(root: CID, blocks: dict[CID, bytes]) -> tuple[int, dict[str, CID]]:
    """Every entry of a sharded directory, and how many levels its shards have."""
    found, depth, level = {}, 0, [(root, ROOT)]
    while level:
        depth += 1
        shards = [read_shard(unixfs.decode(blocks[cid]), prefix) for cid, prefix in level]
        found |= {entry.name: entry.cid for shard in shards for entry in shard.entries}
        level = [(child.cid, child.prefix) for shard in shards for child in shard.children]
    return depth, found


@pytest.mark.parametrize("fanout", [8, 256, 1024])
def test_boxo_reads_our_shards(oracle, tmp_path, fanout):
    """Boxo lists a sharded directory of ours and finds each name in it; so do we, at the same CIDs."""
    profile = Profile("ours", sharding_threshold=1000, shard_fanout=fanout)
    sizes = {text: index % 9 for index, text in enumerate(names(1500, seed=1))}
    cid, _, blocks = add_directory(sizes, profile)
    write_car(tmp_path / "ours.car", cid, blocks)
    theirs = oracle.ask("list", car=str(tmp_path / "ours.car"), root=str(cid))["entries"]
    by_cid = {block.cid: block.data for block in blocks}
    assert {name: str(entry) for name, entry in walk(cid, by_cid)[1].items()} == theirs
    assert theirs.keys() == sizes.keys()
    for name in [*sizes, "is not there"]:
        lookup, here = HamtLookup(name), cid
        while isinstance(here, CID):
            here = lookup.step(unixfs.decode(by_cid[here]))
        assert (str(here.cid) if here else None) == theirs.get(name)


@pytest.mark.parametrize("profile", [*PROFILES.values(), Profile("tiny", 1, 100, 3, raw_leaves=False)])
def test_boxo_reads_our_files(oracle, tmp_path, profile):
    """Boxo gives a file's bytes back from a CAR of ours."""
    size = 700_000 if profile.chunk_size > 100 else 5000
    file = add(size, profile)
    write_car(tmp_path / "ours.car", file.root, file.blocks)
    theirs = oracle.ask("cat", car=str(tmp_path / "ours.car"), root=str(file.root))
    assert (theirs["size"], theirs["sha256"]) == (size, hashlib.sha256(content(size)).hexdigest())


def test_go_car_reads_our_cars(oracle, tmp_path):
    """go-car reads our CAR with its roots and each block, one with several roots and one of CIDv0 too."""
    first, second = add(5_000_000, PROFILES["unixfs-v1-2025"]), add(1_000_000, PROFILES["unixfs-v0-2015"])
    blocks = [*first.blocks, *second.blocks]
    path = tmp_path / "ours.car"
    path.write_bytes(
        encode_header([first.root, second.root]) + b"".join(encode_section(*block) for block in blocks)
    )
    theirs = oracle.ask("read-car", car=str(path))
    assert theirs["roots"] == [str(first.root), str(second.root)]
    assert theirs["cids"] == [str(block.cid) for block in blocks]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", PROFILES)
def test_our_decoder_reads_go_cars(oracle, tmp_path, version, name):
    """A CAR that go-car wrote, v1 or v2 with its index, gives all blocks of the file, in pieces of any size."""
    path = tmp_path / "theirs.car"
    theirs = oracle.ask("write-car", PROFILES[name], size=3_000_000, car=str(path), version=version)
    ours = add(3_000_000, PROFILES[name])
    decoder, data, found, rng = CarDecoder(), path.read_bytes(), {}, random.Random(version)
    at = 0
    while at < len(data):
        step = rng.choice([1, 10, 100, 65536, 1_000_000])
        for cid, block in decoder.feed(data[at : at + step]):
            cid.verify(block)
            found[cid] = block
        at += step
    decoder.finish()
    assert decoder.version == version
    assert [str(root) for root in decoder.roots] == [theirs["cid"]] == [str(ours.root)]
    assert found == {block.cid: bytes(block.data) for block in ours.blocks}
