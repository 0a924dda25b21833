"""`client.bidirectional()`: many transfers over one real socket."""

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fsspec.callbacks import Callback

import ipfs_stream_nb as ipfs
from cutting_proxy import Cut
from ipfs_stream_nb.clients import transfer_source
from ipfs_stream_nb.content.importer import import_bytes
from ipfs_stream_nb.errors import (
    BadCIDError,
    BadRequestError,
    IsDirectoryError,
    NotFoundError,
    RetrievalError,
)

MIB = 1024 * 1024
DATA = random.Random(5).randbytes(9 * MIB + 321)


async def gathered(stream):
    return b"".join([chunk async for chunk in stream])


async def test_gets_adds_and_pins(client, tmp_path):
    """Whatever names content is got, added or pinned, in parts too."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.txt").write_bytes(b"hello")
    (tmp_path / "d" / "link").symlink_to("x.txt")
    root = await client.add(tmp_path / "d", pin=False)
    async with client.bidirectional() as link:
        assert await gathered(link.get(f"{root}/x.txt")) == b"hello"
        assert await gathered(link.get(f"{root}/link", 1, 3)) == b"ell"
        async with link.get(f"ipfs://{root}/x.txt", offset=5) as chunks:
            assert chunks.metadata["size"] == 5
            assert await gathered(chunks) == b""
        added = await link.add(tmp_path / "d" / "x.txt")
        assert (added.cid, added.size, added.name) == (import_bytes(b"hello").root, 5, "x.txt")
        assert (await link.add(b"", name="empty")).size == 0
        v0 = await link.add(b"v0", profile="unixfs-v0-2015")
        assert v0.cid == (await client.add(b"v0", profile="unixfs-v0-2015")).cid
        seen = Callback()
        assert (
            await link.add((DATA[at : at + 7777] for at in range(0, len(DATA), 7777)), progress=seen)
        ).cid == (import_bytes(DATA).root)
        assert await link.pin(root) == root.cid
        assert await link.pin(f"{root}/x.txt") == added.cid
    assert {pin.cid for pin in await client.pins()} >= {root.cid, added.cid}


async def test_gets_and_adds_interleave(far, monkeypatch):
    """Two gets and two adds over one socket each progress while the others do."""
    monkeypatch.setattr(transfer_source, "RETAINED", 65_536)  # adds read no further ahead
    monkeypatch.setattr(transfer_source, "RESERVE", 0)
    large = await far.upload(DATA)
    events = []

    async def get(name):
        async for _ in link.get(large):
            events.append(name)

    async def add(name, byte):
        async def pieces():
            for _ in range(100):
                events.append(name)
                yield byte * 65_536

        await link.add(pieces(), progress=False)

    async with far.bidirectional() as link:
        await asyncio.gather(get("get 1"), get("get 2"), add("add 1", b"1"), add("add 2", b"2"))
    spans = {name: (events.index(name), len(events) - events[::-1].index(name)) for name in set(events)}
    for name, (first, last) in spans.items():
        others = {one for one in events[first:last] if one != name}
        assert len(others) == 3, f"{name} ran beside {others}"
    assert max(first for first, _ in spans.values()) < min(last for _, last in spans.values())


async def test_a_stalled_get_does_not_slow_an_add(far, proxy):
    """With a get that nobody reads on, an add goes its way; the get holds a window and no more, and goes on later."""
    large = await far.upload((DATA for _ in range(3)), progress=False)

    expected = import_bytes(DATA * 6).root

    class Recorded(Callback):
        """Bytes over time."""

        def relative_update(self, inc=1):
            super().relative_update(inc)
            self.times.append((round(time.monotonic() - self.began, 2), self.value))

    async def timed(link):
        seen = Recorded()
        seen.began, seen.times = time.monotonic(), []
        assert (await link.add(DATA * 6, progress=seen)).cid == expected
        return time.monotonic() - seen.began, seen

    async with far.bidirectional() as link:
        alone = min([(await timed(link))[0] for _ in range(3)])
        chunks = link.get(large)
        got = b"".join([await anext(chunks) for _ in range(20)])
        before = proxy.down
        runs = [await timed(link) for _ in range(3)]  # a busy machine may stand still in one
        beside, seen = min(runs, key=lambda run: run[0])
        print(f"an add took {alone:.3f} s, and {beside:.3f} s beside a stalled get: {seen.times}")
        assert beside < 3 * alone + 1
        assert [run.value for _, run in runs] == [6 * len(DATA)] * 3
        assert proxy.down - before < 2 * MIB
        assert got + await gathered(chunks) == DATA * 3


async def test_more_transfers_than_the_server_takes_wait_for_their_turn(far):
    """Eighty gets at once over a socket that takes 32 all come."""
    added = [await far.add(bytes([n])) for n in range(80)]
    async with far.bidirectional() as link:
        assert await asyncio.gather(*(gathered(link.get(one)) for one in added)) == [
            bytes([n]) for n in range(80)
        ]


async def test_who_leaves_a_get_early_frees_its_place(far):
    """More gets are left early than the server takes at once, and an add that is cancelled leaves nothing."""
    large = await far.upload(DATA)
    async with far.bidirectional() as link:
        for _ in range(40):
            chunks = link.get(large)
            await anext(chunks)
            await chunks.aclose()
        begun = asyncio.Event()

        async def endless():
            while True:
                begun.set()
                yield bytes(MIB)

        adding = asyncio.create_task(link.add(endless(), progress=False))
        await begun.wait()
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        assert await gathered(link.get(large)) == DATA


async def test_an_error_is_its_transfers_own(far, tmp_path):
    """What is wrong with one transfer is raised there, and the others go on."""
    (tmp_path / "d").mkdir()
    root = await far.add(tmp_path / "d")
    large = await far.upload(DATA)

    def broken():
        yield DATA[:MIB]
        raise LookupError("the camera fell")

    async with far.bidirectional() as link:
        chunks = link.get(large)
        got = await anext(chunks)
        for call, kind in (
            (gathered(link.get("bafkreinope")), BadCIDError),
            (gathered(link.get(root)), IsDirectoryError),
            (gathered(link.get(f"{root}/none")), NotFoundError),
            (gathered(link.get(large, len(DATA) + 1)), BadRequestError),
            (link.add(tmp_path), BadRequestError),
            (link.add(b"x", profile="nope"), BadRequestError),
            (link.add(broken()), LookupError),
            (link.add(b"x", name="n" * 70_000), BadRequestError),
            (link.pin(import_bytes(b"not here").root), (NotFoundError, RetrievalError)),
        ):
            with pytest.raises(kind):
                await call
        assert got + await gathered(chunks) == DATA
        with pytest.raises(TypeError, match="did you mean 'offset'"):
            link.get(large, offse=3)


async def test_a_lost_link_is_told_to_all(far, proxy):
    """Every transfer raises, an add with the upload_id by which `client.upload` goes on."""
    large = await far.upload(DATA)
    proxy.cuts.append(Cut(up=3 * MIB))
    async with far.bidirectional() as link:
        chunks = link.get(large)
        await anext(chunks)
        with pytest.raises(RetrievalError, match="upload_id=") as lost:
            await link.add(DATA[::-1])
        with pytest.raises(RetrievalError):
            await gathered(chunks)
        with pytest.raises(RetrievalError):
            await link.add(b"x")
    upload_id = str(lost.value).split("'")[1]
    assert (await far.upload(DATA[::-1], upload_id=upload_id)).cid == import_bytes(DATA[::-1]).root
    assert proxy.passed[-1].offset > 0


async def test_a_link_that_is_closed_says_so(far):
    """Before and after its block a link gives nothing; what still runs when the block ends is told."""
    large = await far.upload(DATA)
    link = far.bidirectional()
    with pytest.raises(BadRequestError, match="not open"):
        await link.add(b"x")
    async with link:
        chunks = link.get(large)
        await anext(chunks)
        stuck = asyncio.create_task(link.add(iter(lambda: bytes(MIB), b""), progress=False))
        await anext(chunks)
    with pytest.raises(BadRequestError, match="closed"):
        await stuck
    with pytest.raises(BadRequestError, match="closed"):
        await link.pin(large)
    with pytest.raises(BadRequestError, match="closed"):
        await gathered(chunks)
    with pytest.raises(BadRequestError, match="once"):
        await link.__aenter__()
    async with asyncio.timeout(20):
        active = {"streams": 1}
        while active["streams"]:
            active = (await far.health())["active"]


def test_a_blocking_link_serves_many_threads(repo):
    """Gets, adds and pins of eight threads at once over one link."""
    with ipfs.connect() as client, client.bidirectional() as link, ThreadPoolExecutor(8) as threads:
        large = link.add(DATA)

        def work(number):
            own = DATA[number:]
            added = link.add(own, name=str(number), progress=False)
            assert link.pin(added) == added.cid
            assert b"".join(link.get(added)) == own
            with link.get(large, offset=number, length=10) as chunks:
                assert chunks.metadata["length"] == 10
                return b"".join(chunks)

        assert list(threads.map(work, range(8))) == [DATA[n : n + 10] for n in range(8)]
        for _ in link.get(large):
            break
        with pytest.raises(BadCIDError):
            next(link.get("bafkreinope"))
