"""`client.stream` and `client.upload` over real sockets."""

import asyncio
import io
import json
import os
import random
import signal
import socket
import threading

import pytest
from fsspec.callbacks import Callback
from websockets.asyncio.server import serve

import ipfs_stream_nb as ipfs
from cutting_proxy import Cut
from far_client import connected
from ipfs_stream_nb.clients import transfer_socket, transfer_source
from ipfs_stream_nb.clients.transfer_stream import BlockingStream, ContentStream, Part
from ipfs_stream_nb.content.importer import import_bytes
from ipfs_stream_nb.errors import (
    BadCIDError,
    BadRequestError,
    BusyError,
    IsDirectoryError,
    NotFoundError,
    RetrievalError,
    UnauthorizedError,
)

MIB = 1024 * 1024
DATA = random.Random(4).randbytes(9 * MIB + 12_345)


@pytest.fixture
def blocking(repo):
    """The blocking client."""
    with ipfs.connect() as client:
        yield client


async def idle(client):
    """Return once nothing is under way on the server."""
    async with asyncio.timeout(20):
        while True:
            active = (await client.health())["active"]
            if not active["streams"] and not active["uploads"]:
                return


async def gathered(stream):
    return b"".join([chunk async for chunk in stream])


# -- stream


async def test_a_stream_gives_the_file_and_its_parts(client):
    """All bytes, or those from an offset, with the metadata known on entry."""
    added = await client.add(DATA, name="x.bin")
    assert await gathered(client.stream(added)) == DATA
    assert await gathered(client.stream(f"/ipfs/{added}", 1000, 70_000)) == DATA[1000:71_000]
    async with client.stream(added.cid, offset=len(DATA) - 5) as chunks:
        assert (chunks.metadata["size"], chunks.metadata["length"], chunks.position) == (
            len(DATA),
            5,
            len(DATA) - 5,
        )
        assert await gathered(chunks) == DATA[-5:]
        assert chunks.position == len(DATA)
    assert await gathered(client.stream(added, offset=len(DATA))) == b""
    assert await gathered(client.stream(await client.add(b""))) == b""


async def test_a_stream_follows_paths_and_symlinks(client, tmp_path):
    """A file in a directory is named by its path, also where a symlink leads to it."""
    (tmp_path / "d" / "in").mkdir(parents=True)
    (tmp_path / "d" / "in" / "a b%20?.txt").write_bytes(b"hello")
    (tmp_path / "d" / "link").symlink_to("in/a b%20?.txt")
    root = await client.add(tmp_path / "d")
    assert await gathered(client.stream(f"{root}/in/a b%20?.txt")) == b"hello"
    assert await gathered(client.stream(f"{root}/link")) == b"hello"
    with pytest.raises(IsDirectoryError):
        await gathered(client.stream(root))


async def test_streams_that_are_cut_come_whole(far, proxy):
    """Cut at random bytes, in the handshake too, a stream equals the original, and no byte is asked for twice."""
    added = await far.add(DATA)
    rng = random.Random(7)
    for _ in range(4):
        before = len(proxy.passed)
        proxy.cuts.extend(
            Cut(down=rng.choice([rng.randrange(600), rng.randrange(2 * MIB)])) for _ in range(6)
        )
        first = rng.randrange(MIB)
        assert await gathered(far.stream(added, first)) == DATA[first:]
        assert not proxy.cuts
        offsets = [one.offset for one in proxy.passed[before:] if one.offset is not None]
        assert offsets == sorted(offsets)
        assert offsets[-1] > first


async def test_a_consumer_that_leaves_early_frees_the_server(far):
    """A break, an aclose and a cancelled task each end the transfer on both sides."""
    added = await far.add(DATA)
    async for _ in far.stream(added):
        break
    await idle(far)
    chunks = far.stream(added)
    await anext(chunks)
    await chunks.aclose()
    assert [chunk async for chunk in chunks] == []
    await idle(far)
    begun = asyncio.Event()

    async def read():
        async for _ in far.stream(added):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await idle(far)


async def test_a_slow_consumer_makes_the_server_wait(far, proxy):
    """Who takes one chunk and no more gets no more sent than sockets hold: nothing piles up in memory."""
    large = await far.upload((DATA for _ in range(8)), progress=False)
    proxy.passed.clear()
    chunks = far.stream(large)
    await anext(chunks)
    seen = -1
    while proxy.down > seen:
        seen = proxy.down
        for _ in range(20):
            await far.health()  # the loop runs meanwhile
    assert seen < 24 * MIB
    assert len(await gathered(chunks)) == large.size - 65_536


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("bafkreinope", BadCIDError),
        ("bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy", NotFoundError),
    ],
)
async def test_what_is_not_there_is_told_at_once(far, proxy, content, kind):
    """What no second try can mend is raised as its own class after one connection at the most."""
    with pytest.raises(kind):
        await gathered(far.stream(content))
    assert len(proxy.passed) <= 1


async def test_what_is_asked_for_must_make_sense(far, proxy, server):
    """Offsets behind the end, negative ones, other types, a wrong token and unknown arguments are refused."""
    added = await far.add(b"hello")
    with pytest.raises(BadRequestError, match="has 5 bytes"):
        await gathered(far.stream(added, 6))
    for offset, length in ((-1, None), (0, -1), (1.5, None)):
        with pytest.raises(BadRequestError, match="bytes"):
            far.stream(added, offset, length)
    with pytest.raises(TypeError, match="did you mean 'offset'"):
        far.stream(added, offsett=1)
    async with connected(proxy.url, "wrong") as stranger:
        for call in (gathered(stranger.stream(added)), stranger.upload(b"x")):
            with pytest.raises(UnauthorizedError, match="token"):
                await call
        with pytest.raises(UnauthorizedError, match="token"):
            async with stranger.bidirectional():
                pass
    await far.close()
    with pytest.raises(BadRequestError, match="closed"):
        far.stream(added)
    with pytest.raises(BadRequestError, match="closed"):
        await far.upload(b"x")


async def test_a_server_that_is_not_there_is_told_at_once(server):
    """Nobody at the address is an error without a wait."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
    async with asyncio.timeout(5), connected(url, "t") as client:
        cid = import_bytes(b"x").root
        with pytest.raises(RetrievalError, match="no server answers"):
            await gathered(client.stream(cid))
        with pytest.raises(RetrievalError, match="no server answers"):
            await client.upload(b"x")


async def test_connections_without_progress_are_counted(far, proxy, monkeypatch):
    """A connection that drops again and again before a byte has come is given up, and says so."""
    monkeypatch.setattr(transfer_socket, "FIRST_DELAY", 0.0)
    added = await far.add(DATA)
    proxy.cuts.extend(Cut(down=100) for _ in range(100))
    with pytest.raises(RetrievalError, match=f"{transfer_socket.TRIES + 1} times in a row"):
        await gathered(far.stream(added))
    assert len(proxy.passed) == transfer_socket.TRIES + 1


@pytest.mark.parametrize(("tell", "match"), [(10, "ended after 5 of 10"), (3, "over 3 bytes")])
async def test_a_server_that_miscounts_is_not_believed(far, tell, match):
    """`complete` after too few bytes, and bytes beyond the end, are errors."""

    async def miscount(socket):
        await socket.send(json.dumps({"type": "metadata", "offset": 0, "length": tell}))
        await socket.send(b"hello")
        await socket.send(json.dumps({"type": "complete", "bytes_sent": tell}))

    async with serve(miscount, "127.0.0.1", 0) as fake:
        port = fake.sockets[0].getsockname()[1]
        async with connected(f"http://127.0.0.1:{port}/", "t") as client:
            with pytest.raises(RetrievalError, match=match):
                await gathered(client.stream((await far.add(b"hello")).cid))


async def test_a_close_without_complete_is_not_the_end(far):
    """A connection that is closed in all politeness before `complete` is gone on with at its offset, at any base URL."""
    asked = []

    async def half(socket):
        asked.append(socket.request.path)
        await socket.send(
            json.dumps({"type": "metadata", "offset": 5 if len(asked) > 1 else 0, "length": 10})
        )
        await socket.send(b"12345")
        if len(asked) > 1:
            await socket.send(json.dumps({"type": "complete"}))

    async with serve(half, "127.0.0.1", 0) as fake:
        port = fake.sockets[0].getsockname()[1]
        async with connected(f"http://127.0.0.1:{port}/a%40b/", "t") as client:
            cid = (await far.add(b"hello")).cid
            assert await gathered(client.stream(f"{cid}/a b%2F?")) == b"1234512345"
    path = f"/a%40b/ws/stream/{cid}/a%20b%252F%3F"
    assert asked == [f"{path}?offset=0&progress=0", f"{path}?offset=5&progress=0&length=5"]


# -- upload


@pytest.mark.parametrize(
    ("size", "frame"),
    [(3000, 1), (100_001, 77), (len(DATA), 65_537), (len(DATA), MIB), (len(DATA), 8 * MIB), (0, MIB)],
)
async def test_frames_of_any_size_give_the_same_cid(far, size, frame):
    """From 1 byte to 8 MiB a frame, an upload ends in the CID of an add."""
    added = await far.upload(DATA[:size], frame_size=frame)
    assert (added.cid, added.size) == (import_bytes(DATA[:size]).root, size)


async def test_frames_that_the_server_does_not_take_become_smaller(far):
    """A frame over the server's limit is no reason to fail."""
    data = DATA * 2
    assert (await far.upload(data, frame_size=64 * MIB)).cid == import_bytes(data).root


async def test_all_kinds_of_sources_are_uploaded(client, tmp_path):
    """Paths, bytes, files from where they stand, pipes, iterables of both kinds give the CID of their bytes."""
    (tmp_path / "f.bin").write_bytes(DATA)
    opened = (tmp_path / "f.bin").open("rb")
    opened.seek(5)
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(b"through a pipe")

    async def pieces():
        for at in range(0, len(DATA), 100_000):
            yield bytearray(DATA[at : at + 100_000])

    with opened, os.fdopen(reading, "rb") as pipe:
        for source, data in (
            (tmp_path / "f.bin", DATA),
            (str(tmp_path / "f.bin"), DATA),
            (DATA, DATA),
            (memoryview(DATA)[::2], DATA[::2]),
            (opened, DATA[5:]),
            (io.BytesIO(DATA), DATA),
            (pipe, b"through a pipe"),
            ([b"", b"he", b"llo"], b"hello"),
            ((bytes([n % 251]) for n in range(3000)), bytes(n % 251 for n in range(3000))),
            (pieces(), DATA),
        ):
            assert (await client.upload(source, progress=False)).cid == import_bytes(data).root


async def test_an_upload_is_pinned_named_and_profiled_like_an_add(client, tmp_path):
    """`name`, `pin` and `profile` do what they do in an add; the file's own name is the default."""
    (tmp_path / "clip.bin").write_bytes(b"hello")
    named = await client.upload(tmp_path / "clip.bin")
    assert named.name == "clip.bin"
    assert [(pin.cid, pin.name) for pin in await client.pins()] == [(named.cid, "clip.bin")]
    await client.upload(b"loose", pin=False)
    other = await client.upload(b"other", name="o", profile="unixfs-v0-2015")
    assert other.cid == (await client.add(b"other", profile="unixfs-v0-2015")).cid
    assert len(await client.pins()) == 2


async def test_what_cannot_be_uploaded_is_told(client, tmp_path):
    """Directories, missing files, text files, wrong profiles, frame sizes and arguments are refused."""
    (tmp_path / "t.txt").write_text("x")
    for source, kind, match in (
        (tmp_path, BadRequestError, "is a directory"),
        (tmp_path / "none", NotFoundError, "there is no file"),
        (3, BadRequestError, "cannot add"),
        (os.devnull, BadRequestError, "device"),
    ):
        with pytest.raises(kind, match=match):
            await client.upload(source)
    with (tmp_path / "t.txt").open() as text, pytest.raises(BadRequestError, match="binary"):
        await client.upload(text)
    with pytest.raises(BadRequestError, match="frame_size"):
        await client.upload(b"x", frame_size=0)
    with pytest.raises(BadRequestError, match="profile"):
        await client.upload(b"x", profile="nope")
    with pytest.raises(BadRequestError, match="control"):
        await client.upload(b"x", name="a\nb")
    with pytest.raises(BadRequestError, match="upload_id"):
        await client.upload(b"x", upload_id="nope")
    with pytest.raises(NotFoundError, match="upload"):
        await client.upload(b"x", upload_id="00" * 16)
    with pytest.raises(TypeError, match="did you mean 'upload_id'"):
        await client.upload(b"x", uploadid="nope")
    await idle(client)


async def test_progress_counts_the_bytes_that_the_server_took(client):
    """A callback gets the size and ends at it."""
    seen = Callback()
    await client.upload(DATA, progress=seen)
    assert (seen.size, seen.value) == (len(DATA), len(DATA))


async def test_an_iterable_is_kept_within_its_bound(far, proxy, monkeypatch):
    """What can be read once is read no further ahead than its bound; cut off, no byte of it is lost."""
    monkeypatch.setattr(transfer_source, "RETAINED", MIB)
    given = 0

    async def pieces():
        nonlocal given
        for at in range(0, 4 * MIB, 50_000):
            durable = max((one.durable for one in proxy.passed), default=0)
            assert given <= max(durable, proxy.passed[-1].offset or 0) + MIB + 50_000
            given += 50_000
            yield DATA[at : at + 50_000]

    proxy.cuts.extend(Cut(up=cut) for cut in (300_000, 1_500_000, 20, 100_000))
    assert (await far.upload(pieces(), progress=False)).cid == import_bytes(DATA[:given]).root
    assert not proxy.cuts


async def test_a_failed_source_names_the_upload_for_later(far, proxy):
    """Its own error comes through with the upload_id, by which another call sends only the rest."""

    def broken():
        yield DATA[: 5 * MIB]
        raise LookupError("the camera fell")

    with pytest.raises(LookupError, match="camera") as failed:
        await far.upload(broken())
    (note,) = failed.value.__notes__
    upload_id = note.split("'")[1]
    told = []
    added = await far.upload(DATA, upload_id=upload_id, on_upload_id=told.append)
    assert (added.cid, told) == (import_bytes(DATA).root, [upload_id])
    assert 0 < proxy.passed[-1].offset <= 5 * MIB
    assert proxy.passed[-1].up < len(DATA) - proxy.passed[-1].offset + 20_000
    again = await far.upload(iter([DATA]), upload_id=upload_id)
    assert again.cid == added.cid, "a finished upload only tells its result again"
    assert proxy.passed[-1].up < 20_000


async def test_a_lost_server_names_the_upload_for_later(far, proxy, monkeypatch):
    """When no connection comes through any more, the error tells how to go on, and that works."""
    monkeypatch.setattr(transfer_socket, "FIRST_DELAY", 0.0)
    proxy.cuts.append(Cut(up=3_000_000))
    proxy.cuts.extend(Cut(up=10) for _ in range(100))
    with pytest.raises(RetrievalError, match="upload_id=") as failed:
        await far.upload(DATA)
    proxy.cuts.clear()
    upload_id = str(failed.value).split("'")[1]
    assert (await far.upload(iter([DATA]), upload_id=upload_id)).cid == import_bytes(DATA).root
    assert proxy.passed[-1].offset > MIB


async def test_another_file_is_not_mixed_into_an_upload(far, tmp_path):
    """A source that is shorter than what the server has, and a file that lost its end, are refused."""

    def broken():
        yield DATA[:MIB]
        raise LookupError

    with pytest.raises(LookupError) as failed:
        await far.upload(broken())
    upload_id = failed.value.__notes__[0].split("'")[1]
    for other in (b"short", iter([b"short"])):
        with pytest.raises(BadRequestError, match="5 bytes"):
            await far.upload(other, upload_id=upload_id)

    class Cropped(io.BytesIO):
        def read(self, size=-1):
            return super().read(size) if self.tell() < MIB else b""

    with pytest.raises(BadRequestError, match="became shorter"):
        await far.upload(Cropped(DATA))
    await idle(far)


async def test_an_upload_that_is_taken_over_ends_here(far):
    """Two clients do not tear at one upload: the one that came first is told."""
    ids, go_on = [], asyncio.Event()

    async def waiting():
        yield DATA[:MIB]
        await go_on.wait()
        yield DATA[MIB:]

    begun = asyncio.Event()
    first = asyncio.create_task(
        far.upload(waiting(), on_upload_id=lambda one: (ids.append(one), begun.set()))
    )
    await begun.wait()
    assert (await far.upload(DATA, upload_id=ids[0])).cid == import_bytes(DATA).root
    go_on.set()
    with pytest.raises((BusyError, BadRequestError)):
        await first


# -- blocking


def test_the_blocking_client_streams_and_uploads(blocking, tmp_path):
    """Plain loops and calls; leaving a loop early ends the transfer."""
    (tmp_path / "f.bin").write_bytes(DATA)
    added = blocking.upload(tmp_path / "f.bin", progress=False)
    assert added.cid == import_bytes(DATA).root
    assert b"".join(blocking.stream(added)) == DATA
    with blocking.stream(added, offset=10, length=5) as chunks:
        assert chunks.metadata["size"] == len(DATA)
        assert list(chunks) == [DATA[10:15]]
    for _ in blocking.stream(added):
        break
    for _ in range(1000):
        if not blocking.health()["active"]["streams"]:
            break
    else:
        pytest.fail("the stream still runs")


async def test_the_blocking_client_works_beside_a_running_loop(blocking):
    """A notebook's kernel has a loop that runs: the blocking calls do not mind."""
    added = blocking.upload(b"hello")
    assert list(blocking.stream(added)) == [b"hello"]
    with blocking.bidirectional() as link:
        assert list(link.get(added)) == [b"hello"]


def test_ctrl_c_ends_an_upload_and_a_stream(blocking):
    """KeyboardInterrupt comes through with the upload_id; a stream that was interrupted does not look whole."""
    begun = threading.Event()

    def endless():
        while True:
            yield bytes(MIB)
            begun.set()

    def interrupt():
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt) as stopped:
        blocking.upload(endless(), progress=False)
    assert "upload_id=" in stopped.value.__notes__[0]
    begun.clear()
    part = Part(0, 100)

    async def stuck():
        yield part.take(b"hello")
        begun.set()
        await asyncio.Event().wait()

    threading.Thread(target=interrupt).start()
    stream = BlockingStream(blocking._session.loop.run, ContentStream(stuck(), part))
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    for _ in range(2):
        with pytest.raises(BadRequestError, match="offset=5"):
            next(stream)
    stream.close()
    assert list(stream) == []
    assert list(blocking.stream(blocking.upload(b"next"))) == [b"next"]
