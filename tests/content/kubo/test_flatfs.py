"""Kubo's block files, in a real repo."""

from __future__ import annotations

import base64
import json
import os
import shutil

import pytest

from ipfs_stream_nb.content.cid import CID, RAW
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK
from ipfs_stream_nb.content.kubo.flatfs import FlatFS
from ipfs_stream_nb.errors import CorruptContentError, NotFoundError


@pytest.fixture
def peer_id(kubo):
    return json.loads(kubo.run("id"))["ID"]


@pytest.fixture
def copy(kubo, tmp_path):
    """A copy of the repo's small files, to be spoilt."""
    for name in ("config", "datastore_spec"):
        shutil.copy(kubo.repo / name, tmp_path / name)
    (tmp_path / "blocks").mkdir()
    shutil.copy(kubo.repo / "blocks" / "SHARDING", tmp_path / "blocks" / "SHARDING")
    return tmp_path


def test_blocks_are_found_by_their_hash(kubo, peer_id):
    """What Kubo has added is read as it gives it itself, whatever the version of the CID."""
    data = os.urandom(300_000)
    cid = CID.parse(kubo.run("add", "-Q", "--raw-leaves=false", "--chunker=size-1048576", data=data))
    files = FlatFS.of_daemon(str(kubo.repo), peer_id)
    assert files is not None
    block = files.get(cid)
    assert block == kubo.run_binary("block", "get", str(cid))
    assert files.get(cid.v1(), 10, 20) == block[10:20]


def test_what_is_not_there_is_not_found(kubo, peer_id):
    """An unknown block."""
    files = FlatFS.of_daemon(str(kubo.repo), peer_id)
    assert files is not None
    with pytest.raises(NotFoundError):
        files.get(CID.of(os.urandom(32), RAW))


def test_a_damaged_file_is_found_out(kubo, copy, peer_id):
    """Flipped, cut, emptied and far too long: none of it is given."""
    data = os.urandom(1000)
    cid = CID.parse(kubo.run("add", "-Q", "--cid-version=1", "--raw-leaves", data=data))
    (source,) = kubo.repo.glob(f"blocks/*/{_name(cid)}.data")
    target = copy / "blocks" / source.parent.name / source.name
    target.parent.mkdir()
    files = FlatFS.of_daemon(str(copy), peer_id)
    assert files is not None
    for bad in (bytes([data[0] ^ 1]) + data[1:], data[:-1], data + b"x"):
        target.write_bytes(bad)
        with pytest.raises(CorruptContentError):
            files.get(cid)
    for none in (b"", bytes(MAX_BLOCK + 1)):
        target.write_bytes(none)
        with pytest.raises(NotFoundError):
            files.get(cid)
    target.write_bytes(data)
    assert files.get(cid) == data


def _name(cid):
    return base64.b32encode(cid.multihash).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("datastore_spec", "next-to-last/2", "prefix/3"),
        ("datastore_spec", '"type":"flatfs"', '"type":"pebbleds"'),
        ("datastore_spec", "{", "["),
        ("blocks/SHARDING", "next-to-last", "suffix"),
        ("config", "Identity", "Nobody"),
    ],
)
def test_any_other_layout_is_left_alone(copy, peer_id, name, old, new):
    """Files that do not say exactly what is expected are not used."""
    assert FlatFS.of_daemon(str(copy), peer_id) is not None
    path = copy / name
    path.write_text(path.read_text().replace(old, new))
    assert FlatFS.of_daemon(str(copy), peer_id) is None


def test_another_nodes_repo_is_left_alone(kubo, peer_id, tmp_path):
    """The repo must be that of the daemon, and on this machine."""
    assert FlatFS.of_daemon(str(kubo.repo), "12D3KooWsomebodyelse") is None
    assert FlatFS.of_daemon(str(tmp_path / "none"), peer_id) is None
