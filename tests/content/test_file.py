"""The seekable file."""

from __future__ import annotations

import io
import os
import threading
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ipfs_stream_nb.content import file as file_module
from ipfs_stream_nb.content.file import READ_SIZE, ContentFile
from ipfs_stream_nb.errors import BadRequestError

CONTENT = bytes(i * 7 % 251 for i in range(9 * READ_SIZE + 1000))


def open_bytes(content: bytes = CONTENT) -> ContentFile:
    return ContentFile(lambda offset, length: content[offset : offset + length], len(content), label="test")


class LikeBytesIO(RuleBasedStateMachine):
    """Whatever is done to it, it answers as io.BytesIO does."""

    def __init__(self) -> None:
        super().__init__()
        self.file, self.model = open_bytes(), io.BytesIO(CONTENT)

    @rule(size=st.one_of(st.none(), st.integers(-1, 2 * READ_SIZE)))
    def read(self, size):
        assert self.file.read(size) == self.model.read(size)

    @rule(size=st.integers(0, 5000))
    def readinto(self, size):
        ours, theirs = bytearray(size), bytearray(size)
        assert self.file.readinto(ours) == self.model.readinto(theirs)
        assert ours == theirs

    @rule(offset=st.integers(0, len(CONTENT) + 10))
    def seek(self, offset):
        assert self.file.seek(offset) == self.model.seek(offset)

    @rule(back=st.integers(0, len(CONTENT)))
    def seek_from_end(self, back):
        assert self.file.seek(-back, os.SEEK_END) == self.model.seek(-back, os.SEEK_END)

    @invariant()
    def same_position(self):
        assert self.file.tell() == self.model.tell()


LikeBytesIO.TestCase.settings = settings(max_examples=30, deadline=None)
TestLikeBytesIO = LikeBytesIO.TestCase


@given(st.lists(st.tuples(st.integers(0, len(CONTENT)), st.integers(0, 3000)), max_size=20))
def test_small_reads_are_answered_from_kept_pieces(reads):
    """Reads that fall into pieces that are kept fetch nothing again."""
    with open_bytes() as file:
        for offset, size in reads:
            file.seek(offset)
            assert file.read(size) == CONTENT[offset : offset + size]
        assert file.bytes_fetched <= len(CONTENT)


def test_the_cache_is_bounded(monkeypatch):
    """No more than CACHED_PIECES pieces are kept."""
    monkeypatch.setattr(file_module, "CACHED_PIECES", 2)
    monkeypatch.setattr(file_module, "AHEAD_PIECES", 2)
    with open_bytes() as file:
        for at in range(0, len(CONTENT), READ_SIZE):
            file.seek(at)
            file.read(1)
        assert len(file._pieces) == 2


def test_long_sequential_reads_fetch_more_at_once():
    """After a mebibyte in a row pieces are fetched sixteen at a time; a seek goes back to single ones."""
    content = CONTENT * 40
    fetched = []

    def read_at(offset: int, length: int) -> bytes:
        fetched.append(length)
        return content[offset : offset + length]

    with ContentFile(read_at, len(content), label="long") as file:
        while len(fetched) < 18:
            assert file.read(10_000)
        assert fetched == [READ_SIZE] * 16 + [16 * READ_SIZE] * 2
        file.seek(6_000_000)
        file.read(10)
        assert fetched[-1] == READ_SIZE


def test_a_zip_inside_content_opens():
    """Standard readers take it for a file."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.txt", b"hello")
    with zipfile.ZipFile(open_bytes(packed.getvalue())) as archive:
        assert archive.read("a.txt") == b"hello"


def test_lines_can_be_read():
    """Iteration gives lines, as with any binary file."""
    assert list(open_bytes(b"a\nbc\n\nd")) == [b"a\n", b"bc\n", b"\n", b"d"]


def test_seeking_before_the_start_and_bad_whence():
    """Impossible seeks say what was wrong and leave the position alone."""
    with open_bytes(b"abc") as file:
        file.seek(2)
        with pytest.raises(BadRequestError, match="before the start"):
            file.seek(-3, os.SEEK_CUR)
        with pytest.raises(BadRequestError, match="whence"):
            file.seek(0, 7)
        assert file.read() == b"c"


def test_closed_files_refuse():
    """After close() every use raises ValueError, as files do."""
    file = open_bytes(b"abc")
    file.close()
    file.close()
    for use in (file.read, file.tell, lambda: file.seek(0)):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_content_that_ends_early():
    """A node that gives less than the size it named is an error, never a short file."""
    file = ContentFile(lambda offset, length: CONTENT[offset : offset + length - 1], 100, label="short")
    with pytest.raises(EOFError, match="early"):
        file.read(10)


def test_it_is_read_only_and_has_no_name():
    """It cannot be written, and readers that look for a local path find none."""
    file = open_bytes()
    assert file.readable()
    assert file.seekable()
    assert not file.writable()
    assert not hasattr(file, "name")
    with pytest.raises(io.UnsupportedOperation):
        file.write(b"x")


def test_two_threads_read_whole_pieces():
    """Threads that share a file each get consecutive bytes, and together all of them."""
    file = open_bytes()
    got: list[bytes] = []

    def reader():
        while piece := file.read(10_000):
            got.append(piece)

    threads = [threading.Thread(target=reader) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(map(len, got)) == len(CONTENT)
