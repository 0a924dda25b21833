"""Files to blocks: the CIDs of `ipfs add`, whatever the profile and the size."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from hypothesis import given
from hypothesis import strategies as st

from ipfs_stream_nb.content import unixfs
from ipfs_stream_nb.content.cid import CID, RAW
from ipfs_stream_nb.content.importer import (
    DEFAULT_PROFILE,
    MAX_CHUNK,
    PROFILES,
    Block,
    DagBuilder,
    Profile,
    encode_leaf,
    get_profile,
    import_bytes,
)
from ipfs_stream_nb.errors import BadRequestError

REFERENCE = json.loads((Path(__file__).parent / "reference_cids.json").read_text())
BY_REFERENCE = {
    "v0_256k_w174": get_profile("unixfs-v0-2015"),
    "v1_raw_256k_w174": get_profile("ipfs-v1"),
    "v1_raw_1m_w174": Profile("test-cid-v1", max_links=174),
    "v1_raw_1m_w1024": get_profile("unixfs-v1-2025"),
    "v1_pb_256k_w174": Profile("v1-pb", 1, 256 * 1024, 174, raw_leaves=False),
}
TINY = {
    "v0_pb_chunk4_width3": Profile("tiny-v0", 0, 4, 3, raw_leaves=False),
    "v1_raw_chunk4_width3": Profile("tiny-v1", 1, 4, 3),
}
SLOW_BYTES = 2**30


def content(name: str, size: int) -> bytes:
    if name == "hello_world_nl":
        return b"hello world\n"
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def test_the_reference_is_all_used():
    """Every profile, tree and kind of figure in the reference file has a test here or beside this one."""
    assert REFERENCE["profiles"].keys() == BY_REFERENCE.keys()
    assert REFERENCE["tiny"].keys() == TINY.keys()
    assert REFERENCE.keys() == {"_about", "profiles", "files", "tiny", "directories", "kubo_profile_vectors"}


@pytest.mark.parametrize("name", REFERENCE["files"])
@pytest.mark.parametrize("profile", BY_REFERENCE)
def test_reference_files(name, profile):
    """Each file has the CID, the number of blocks, the Tsize and the length that `ipfs add` gives."""
    figures = REFERENCE["files"][name]
    data = content(name, figures["size"])
    assert hashlib.sha256(data).hexdigest() == figures["sha256"]
    file = import_bytes(data, BY_REFERENCE[profile])
    found = {"cid": str(file.root), "blocks": len(file.blocks), "tsize": file.dag_size}
    assert found == figures[profile]
    assert file.file_size == figures["size"]


@pytest.mark.parametrize(
    ("profile", "size", "cid"),
    [(profile, int(size), cid) for profile, cids in REFERENCE["tiny"].items() for size, cid in cids.items()],
)
def test_tiny_trees(profile, size, cid):
    """Chunks of 4 bytes and 3 links make trees of every shape."""
    assert str(import_bytes(content("", size), TINY[profile]).root) == cid


def keystream(seed: str, size: int, step: int):
    """ChaCha20's keystream with the key sha256(seed), nonce and counter 0, in pieces."""
    cipher = Cipher(ChaCha20(hashlib.sha256(seed.encode()).digest(), bytes(16)), mode=None).encryptor()
    zeros = bytes(step)
    for at in range(0, size, step):
        yield cipher.update(zeros[: min(step, size - at)])


@pytest.mark.parametrize(
    "vector",
    [
        pytest.param(vector, marks=pytest.mark.slow if vector["size"] >= SLOW_BYTES else ())
        for vector in REFERENCE["kubo_profile_vectors"]["vectors"]
    ],
    ids=lambda vector: f"{vector['seed']}-{vector['size']}",
)
def test_kubo_vectors(vector):
    """Kubo's own vectors for its profiles, up to 1 GiB, leaf by leaf without holding the file."""
    profile = BY_REFERENCE[vector["profile"]]
    builder = DagBuilder(profile)
    for chunk in keystream(vector["seed"], vector["size"], profile.chunk_size):
        leaf = encode_leaf(chunk, profile)
        builder.add_leaf(leaf.cid, len(chunk), len(leaf.data))
    _, root, size, _ = builder.finish()
    assert (str(root), size) == (vector["cid"], vector["size"])


tiny_profiles = st.builds(
    Profile,
    st.just("tiny"),
    st.sampled_from([0, 1]),
    st.integers(1, 9),
    st.integers(2, 5),
    raw_leaves=st.booleans(),
)


def read_back(root: CID, blocks: list[Block], expected: int) -> bytes:
    """The file's bytes from its blocks, with each child as long as its parent says."""
    data = {block.cid: bytes(block.data) for block in blocks}[root]
    if root.codec == RAW:
        assert len(data) == expected
        return data
    node = unixfs.decode(data)
    assert node.file_size == expected
    children = zip(node.links, node.block_sizes, strict=True)
    return node.data + b"".join(read_back(link.cid, blocks, size) for link, size in children)


@given(st.binary(max_size=300), tiny_profiles)
def test_what_goes_in_comes_out(data, profile):
    """Any bytes in any tree read back; the sizes are those of the blocks, each of which hashes to its CID."""
    file = import_bytes(data, profile)
    assert read_back(file.root, file.blocks, len(data)) == data
    assert file.dag_size == sum(len(block.data) for block in file.blocks)
    for block in file.blocks:
        block.cid.verify(block.data)
    assert file.blocks[-1].cid == file.root
    leaves = max(1, math.ceil(len(data) / profile.chunk_size))
    depth = 0
    while leaves > profile.max_links**depth:
        depth += 1
    assert depth_of(file.root, file.blocks) == depth


def depth_of(root: CID, blocks: list[Block]) -> int:
    if root.codec == RAW:
        return 0
    node = unixfs.decode({block.cid: block.data for block in blocks}[root])
    return 1 + depth_of(node.links[0].cid, blocks) if node.links else 0


def test_a_raw_leaf_is_not_copied():
    """The block of a raw leaf is the very bytes that were given."""
    chunk = memoryview(bytearray(b"abc"))
    assert encode_leaf(chunk, get_profile()).data is chunk


def test_the_builder_keeps_one_open_node_a_level():
    """However long the file, what the builder remembers is bounded by its depth and width."""
    builder = DagBuilder(TINY["v1_raw_chunk4_width3"])
    cid = CID.of(b"abcd")
    held = 0
    for _ in range(3**7 + 5):
        builder.add_leaf(cid, 4, 4)
        held = max(held, sum(len(level) for level in builder._levels))
    assert held <= 2 * 8


def test_a_builder_without_leaves_gives_the_empty_file():
    """Nothing added is an empty file, whose one block is handed out."""
    blocks, root, size, dag_size = DagBuilder(get_profile()).finish()
    assert [block.cid for block in blocks] == [root]
    assert (size, dag_size) == (0, 0)
    assert str(root) == REFERENCE["files"]["empty"]["v1_raw_1m_w1024"]["cid"]


def test_profiles_by_name():
    """None is the default, names and profiles are themselves, and a wrong name lists the right ones."""
    assert get_profile() is get_profile(DEFAULT_PROFILE) is PROFILES["unixfs-v1-2025"]
    assert get_profile(TINY["v0_pb_chunk4_width3"]) is TINY["v0_pb_chunk4_width3"]
    with pytest.raises(BadRequestError, match=r"'v2'; known are unixfs-v1-2025, unixfs-v0-2015, ipfs-v1"):
        get_profile("v2")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"cid_version": 2}, "cid_version"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"chunk_size": MAX_CHUNK + 1}, "chunk_size"),
        ({"max_links": 1}, "max_links"),
        ({"max_links": 10**6}, "max_links"),
        ({"directory_estimate": "guess"}, "directory_estimate"),
        ({"shard_fanout": 4}, "shard_fanout"),
        ({"shard_fanout": 2048}, "shard_fanout"),
        ({"shard_fanout": 100}, "shard_fanout"),
    ],
)
def test_profiles_that_give_no_tree(settings, name):
    """A setting that makes no sense is refused by its name."""
    with pytest.raises(BadRequestError, match=name):
        Profile("wrong", **settings)
