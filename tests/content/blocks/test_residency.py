"""What is in the page cache."""

import mmap
import os
import sys

import pytest

from ipfs_stream_nb.content.blocks import residency
from ipfs_stream_nb.content.blocks.residency import is_resident

PAGE = mmap.PAGESIZE


@pytest.fixture
def mapped(tmp_path):
    """A file of 64 pages, mapped; and a way to drop it from the page cache."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(64 * PAGE))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as whole:

        def drop():
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

        with memoryview(whole) as view:
            yield view, drop


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mincore is asked on Linux only")
def test_what_was_just_written_is_resident(mapped):
    """Pages that are in the cache are told so, at any offset and length."""
    view, _ = mapped
    for start, stop in [(0, 64 * PAGE), (1, 2), (PAGE - 1, PAGE + 1), (5000, 70_000)]:
        assert is_resident(view[start:stop])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mincore is asked on Linux only")
def test_what_was_dropped_is_not(mapped):
    """Pages that the cache has dropped are not resident until they are read."""
    view, drop = mapped
    drop()
    if is_resident(view[:PAGE]):
        pytest.skip("this file system keeps its pages in the cache")
    assert not is_resident(view)
    bytes(view)
    assert is_resident(view)


def test_nobody_can_tell(mapped, monkeypatch):
    """Without mincore, and for no bytes at all, the answer is no."""
    view, _ = mapped
    assert not is_resident(view[5:5])
    monkeypatch.setattr(residency, "_mincore", None)
    assert not is_resident(view)
