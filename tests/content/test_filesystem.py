"""`ipfs://` in fsspec, pandas and PyAV, over a real client."""

from __future__ import annotations

import av
import fsspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import ipfs_stream_nb as ipfs
from ipfs_stream_nb.content.filesystem import IPFSFileSystem
from ipfs_stream_nb.errors import BadCIDError, BadRequestError, NotFoundError


@pytest.fixture
def client(tmp_path):
    with ipfs.connect(repo=tmp_path / "repo") as client:
        yield client


@pytest.fixture
def tree(client, tmp_path):
    """A directory with a text, a table and a sub-directory."""
    folder = tmp_path / "tree"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"one\ntwo\nthree\n")
    (folder / "sub" / "b.txt").write_bytes(b"b")
    rows = 400_000
    table = pd.DataFrame({"x": np.arange(rows), "y": np.random.default_rng(1).random(rows)})
    table.to_parquet(folder / "table.parquet", row_group_size=10_000)
    return client.add(folder).cid


@pytest.fixture
def fs(client):
    return IPFSFileSystem(client)


def test_listing_and_walking(fs, tree):
    """ls, find, info, isdir and exists see the directory as any filesystem's."""
    assert sorted(fs.ls(f"ipfs://{tree}", detail=False)) == [
        f"{tree}/a.txt",
        f"{tree}/sub",
        f"{tree}/table.parquet",
    ]
    assert sorted(fs.find(str(tree))) == [f"{tree}/a.txt", f"{tree}/sub/b.txt", f"{tree}/table.parquet"]
    assert fs.isdir(f"{tree}/sub")
    assert fs.isfile(f"/ipfs/{tree}/a.txt")
    assert not fs.exists(f"{tree}/nothing")
    assert fs.info(f"{tree}/a.txt")["size"] == 14
    assert fs.glob(f"{tree}/*.txt") == [f"{tree}/a.txt"]


def test_reading(fs, tree):
    """open, cat and cat with a range give the bytes; text mode gives lines."""
    assert fs.cat(f"{tree}/a.txt") == b"one\ntwo\nthree\n"
    assert fs.cat_file(f"{tree}/a.txt", 4, 7) == b"two"
    assert fs.cat_file(f"{tree}/a.txt", -6, None) == b"three\n"
    with fs.open(f"{tree}/a.txt", "r") as file:
        assert file.readlines() == ["one\n", "two\n", "three\n"]


def test_the_checksum_is_the_cid(fs, tree):
    """Two paths to the same content have the same key."""
    file = fs.info(f"{tree}/a.txt")["cid"]
    assert fs.ukey(f"{tree}/a.txt") == fs.ukey(file)
    assert fs.checksum(f"{tree}/a.txt") == fs.checksum(file)


def test_it_is_read_only(fs, tree):
    """Writing says how content is added."""
    with pytest.raises(BadRequestError, match=r"client\.add"):
        fs.open(f"{tree}/new.txt", "wb")


def test_bad_paths(fs, tree):
    """Errors are ours, and are the ones that fsspec's users catch."""
    with pytest.raises(BadCIDError):
        fs.cat("ipfs://not-a-cid/x")
    with pytest.raises(FileNotFoundError) as caught:
        fs.cat(f"{tree}/nothing")
    assert isinstance(caught.value, NotFoundError)


def test_pandas_reads_only_what_it_needs(client, tree):
    """One column of one row group of a Parquet file costs a small part of the file."""
    with client.open(f"{tree}/table.parquet") as file:
        table = pq.ParquetFile(file).read_row_group(20, columns=["x"])
        assert table["x"][0].as_py() == 200_000
        assert file.bytes_fetched < file.size / 4


def test_pandas_finds_the_filesystem_by_its_url(tmp_path, monkeypatch):
    """pandas.read_parquet("ipfs://…") and fsspec.open need nothing but the package."""
    monkeypatch.setenv("IPFS_STREAM_NB_REPO", str(tmp_path / "default"))
    with ipfs.connect() as client:
        pd.DataFrame({"x": [1, 2, 3]}).to_parquet(tmp_path / "t.parquet")
        cid = client.add(tmp_path / "t.parquet").cid
        assert pd.read_parquet(f"ipfs://{cid}")["x"].tolist() == [1, 2, 3]
        with fsspec.open(f"ipfs://{cid}") as file:
            assert file.read(4) == b"PAR1"


def test_pyav_opens_content(client):
    """av.open(client.open(cid)) decodes, and a seek near the end of a clip reads a part of it."""
    cid = client.add(ipfs.samples.video(duration=20, width=320, height=180, grain=40, bit_rate=3_000_000)).cid
    with client.open(cid) as file, av.open(file) as container:
        container.seek(10_000_000)
        frame = next(container.decode(video=0))
        assert 9 <= frame.time <= 10
        assert file.bytes_fetched < file.size / 2
