"""The multipart reader by itself."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_stream_nb.errors import BadRequestError, TooLargeError
from ipfs_stream_nb_server import multipart
from ipfs_stream_nb_server.multipart import MultipartReader, PartBegin, PartData, PartEnd

HEAD = "multipart/form-data; boundary=X"


def part(name, content):
    """One part of a form."""
    disposition = f'Content-Disposition: form-data; name="f"; filename="{name}"'.encode()
    return b"--X\r\n" + disposition + b"\r\nContent-Type: text/plain\r\n\r\n" + content + b"\r\n"


def read(body, cuts=()):
    """What a reader makes of a body that comes in pieces: (name, type, content) of each part."""
    reader = MultipartReader(HEAD)
    files = []
    edges = [0, *sorted(cuts), len(body)]
    for start, stop in pairwise(edges):
        for event in reader.feed(body[start:stop]):
            if isinstance(event, PartBegin):
                files.append([event.name, event.content_type, b""])
            elif isinstance(event, PartData):
                files[-1][2] += bytes(event.data)
            else:
                assert isinstance(event, PartEnd)
                files[-1] = tuple(files[-1])
    reader.finish()
    return files


@given(st.data())
def test_any_contents_in_any_pieces(data):
    """Contents with bits of boundaries in them, cut anywhere, come out as they went in."""
    alphabet = st.sampled_from([b"\r\n", b"--X", b"\r\n--", b"-", b"X", b"a", b"\0", b"\r", b"\n"])
    contents = data.draw(st.lists(st.lists(alphabet, max_size=12).map(b"".join), max_size=4))
    contents = [content for content in contents if b"\r\n--X" not in b"\r\n" + content + b"\r\n"]
    body = b"".join(part(f"n{at}", content) for at, content in enumerate(contents)) + b"--X--\r\n"
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=20))
    expected = [(f"n{at}", "text/plain", content) for at, content in enumerate(contents)]
    assert read(body, cuts) == expected


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_garbage_is_a_bad_request(body, cuts):
    """Any bytes are either parts or one of our errors, never another exception."""
    with suppress(BadRequestError, TooLargeError):
        read(b"--X\r\n" + body, [cut for cut in cuts if cut <= len(body)])


def test_too_many_parts(monkeypatch):
    """More parts than the limit are refused while they come."""
    monkeypatch.setattr(multipart, "MAX_PARTS", 3)
    assert len(read(part("a", b"") * 3 + b"--X--\r\n")) == 3
    with pytest.raises(TooLargeError, match="over 3 parts"):
        read(part("a", b"") * 4 + b"--X--\r\n")


@pytest.mark.parametrize("boundary", ['"a b"', "'q'", "x" * 70])
def test_boundaries(boundary):
    """Quoted boundaries and long ones are understood."""
    bare = boundary.strip('"')
    reader = MultipartReader(f"multipart/form-data; charset=utf-8; boundary={boundary}")
    body = part("n", b"v").replace(b"--X", f"--{bare}".encode()) + f"--{bare}--\r\n".encode()
    assert [type(event) for event in reader.feed(body)] == [PartBegin, PartData, PartEnd]
    reader.finish()
