"""Directories and symlinks as blocks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from format_strategies import cids
from ipfs_stream_nb.content import unixfs
from ipfs_stream_nb.content.cid import CID, DAG_PB
from ipfs_stream_nb.content.dag_pb import PBLink
from ipfs_stream_nb.content.directory import (
    MAX_NAME_BYTES,
    MAX_TARGET_BYTES,
    build_directory,
    build_symlink,
    check_name,
    directory_entries,
    is_addressable,
)
from ipfs_stream_nb.content.importer import Profile, get_profile, import_bytes
from ipfs_stream_nb.content.unixfs import UnixFSNode, UnixFSType
from ipfs_stream_nb.errors import BadRequestError

HERE = Path(__file__).parent
REFERENCE = json.loads((HERE / "reference_cids.json").read_text())["directories"]
BOXO = json.loads((HERE / "boxo_directories.json").read_text())["directories"]
A = CID.of(b"a")
FILES = {"a.txt": b"hello world\n", "b/c.bin": b"\0", "b/empty": b""}
BAD_NAMES = [
    "",
    ".",
    "..",
    "a/b",
    "/",
    "a\0b",
    "\0",
    "\udcff",
    "a" * (MAX_NAME_BYTES + 1),
    "é" * MAX_NAME_BYTES,
]


@pytest.mark.parametrize(("tree", "profile"), [("dir_v0", "unixfs-v0-2015"), ("dir_v1", "unixfs-v1-2025")])
def test_reference_directories(tree, profile):
    """A small tree has the CIDs that `ipfs add -r` gives for it and everything in it."""
    profile = get_profile(profile)
    added = {path: import_bytes(data, profile) for path, data in FILES.items()}
    found = {path: str(file.root) for path, file in added.items()}
    inner = [(path[2:], file.root, file.dag_size) for path, file in added.items() if path.startswith("b/")]
    b, b_size, _ = build_directory(inner, profile)
    root, dag_size, blocks = build_directory(
        [("b", b, b_size), ("a.txt", added["a.txt"].root, added["a.txt"].dag_size)], profile
    )
    assert found | {"b": str(b), "": str(root)} == REFERENCE[tree]
    assert [block.cid for block in blocks] == [root]
    assert dag_size == len(blocks[0].data) + b_size + added["a.txt"].dag_size


def test_directory_of_the_specification():
    """The UnixFS specification's "Simple Directory" with its entries' CIDs and Tsizes."""
    entries = [
        ("hello.txt", CID.parse("bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"), 12),
        ("multiblock.txt", CID.parse("bafybeigcisqd7m5nf3qmuvjdbakl5bdnh4ocrmacaqkpuh77qjvggmt2sa"), 1271),
        ("ascii.txt", CID.parse("bafkreifkam6ns4aoolg3wedr4uzrs3kvq66p4pecirz6y2vlrngla62mxm"), 31),
        ("ascii-copy.txt", CID.parse("bafkreifkam6ns4aoolg3wedr4uzrs3kvq66p4pecirz6y2vlrngla62mxm"), 31),
    ]
    root, dag_size, blocks = build_directory(entries, get_profile())
    assert str(root) == "bafybeihchr7vmgjaasntayyatmp5sv6xza57iy2h4xj7g46bpjij6yhrmy"
    assert dag_size == len(blocks[0].data) + 12 + 1271 + 31 + 31 == 1572


@pytest.mark.parametrize(
    "case", BOXO, ids=lambda case: f"{case['profile']}-{case['count']}-{case['settings']}"
)
def test_large_directories(case):
    """Large directories have boxo's CID and size, plain under the profile's threshold and sharded over it."""
    profile = replace(get_profile(case["profile"]), **case["settings"])
    content = bytes(i % 251 for i in range(300))
    files = [import_bytes(content[:size], profile) for size in range(300)]
    entries = [
        (f"{i} – {'ñ中🎬'[i % 3]}.txt", files[i % 300].root, files[i % 300].dag_size)
        for i in range(case["count"])
    ]
    root, dag_size, blocks = build_directory(entries, profile)
    assert (str(root), dag_size) == (case["cid"], case["tsize"])
    assert blocks[-1].cid == root
    expected = UnixFSType.HAMT_SHARD if case["sharded"] else UnixFSType.DIRECTORY
    assert unixfs.decode(blocks[-1].data).type == expected


addressable = st.text(min_size=1, max_size=12).filter(is_addressable)


@given(st.dictionaries(addressable, st.tuples(cids, st.integers(0, 2**60)), max_size=8), st.randoms())
def test_any_entries_in_any_order(entries, rng):
    """What goes into a directory stands in it, sorted by the names' bytes, whatever the order it came in."""
    listed = [(name, *entry) for name, entry in entries.items()]
    rng.shuffle(listed)
    root, dag_size, (block,) = build_directory(listed, get_profile())
    block.cid.verify(block.data)
    found = directory_entries(unixfs.decode(block.data))
    assert {link.name: (link.cid, link.tsize) for link in found} == entries
    assert [link.name.encode() for link in found] == sorted(name.encode() for name in entries)
    assert root == block.cid
    assert dag_size == len(block.data) + sum(size for _, size in entries.values())


def test_empty_directories():
    """An empty directory is the well-known block, and never sharded."""
    profile = Profile("eager", 0, sharding_threshold=0, raw_leaves=False)
    assert str(build_directory([], profile)[0]) == "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_no_path_leads_to(name):
    """Restricted, invalid and endless names are refused when a directory is written."""
    with pytest.raises(BadRequestError, match="name"):
        check_name(name)
    with pytest.raises(BadRequestError, match="name"):
        build_directory([("fine", A, 1), (name, A, 1)], get_profile())


def test_duplicates_and_negative_sizes():
    """A name may stand once, and a size is not negative."""
    with pytest.raises(BadRequestError, match="'a' stands twice"):
        build_directory([("a", A, 1), ("b", A, 1), ("a", A, 1)], get_profile())
    with pytest.raises(BadRequestError, match="negative"):
        build_directory([("a", A, -1)], get_profile())


def test_names_that_only_look_alike_differ():
    """Names are compared by their bytes: two normal forms of one letter are two names."""
    _, _, (block,) = build_directory([("é", A, 1), ("e\u0301", A, 2)], get_profile())
    assert len(directory_entries(unixfs.decode(block.data))) == 2


def test_hostile_directories_are_read():
    """Entries that no path can name are left out, and of two of one name the first counts."""
    names = ["..", "a", "b/c", "", ".", "a", "\udcff", "x\0", "ok"]
    node = UnixFSNode(
        UnixFSType.DIRECTORY, links=tuple(PBLink(CID.of(bytes([i])), name, i) for i, name in enumerate(names))
    )
    found = directory_entries(unixfs.decode(unixfs.encode(node)))
    assert [(link.name, link.tsize) for link in found] == [("a", 1), ("ok", 8)]


def test_symlinks():
    """A symlink's block is that of the UnixFS specification's fixture; its target reads back."""
    block = build_symlink("foo", get_profile("unixfs-v0-2015"))
    assert str(block.cid) == "QmTB8BaCJdCH5H3k7GrxJsxgDNmNYGGR71C58ERkivXoj5"
    node = unixfs.decode(build_symlink("../ä/b", get_profile()).data)
    assert (node.type, node.data.decode()) == (UnixFSType.SYMLINK, "../ä/b")
    assert CID.of(unixfs.encode(node), DAG_PB) == build_symlink("../ä/b", get_profile()).cid


@pytest.mark.parametrize("target", ["", "a\0b", "x" * (MAX_TARGET_BYTES + 1), "\udcff"])
def test_targets_that_are_no_paths(target):
    """Empty, endless and invalid targets are refused."""
    with pytest.raises(BadRequestError, match="target"):
        build_symlink(target, get_profile())
