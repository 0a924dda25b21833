"""Which provider is asked, and what becomes of its answer."""

from __future__ import annotations

import asyncio
import random

import pytest

from fault_proxy import Fault, FaultProxy
from ipfs_stream_nb.content.cid import CID, RAW
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK
from ipfs_stream_nb.content.retrieval import retriever as module
from ipfs_stream_nb.content.retrieval.gateway import TrustlessGateway
from ipfs_stream_nb.content.retrieval.retriever import Retriever
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import (
    BusyError,
    NotFoundError,
    RetrievalError,
    RetrievalTimeoutError,
    UnreachableError,
)

SETTINGS = RetrievalSettings(gateways=(), routers=(), hedge_after=60)
HEDGING = RetrievalSettings(gateways=(), routers=(), hedge_after=0.01)
DATA = b"some block"
BLOCK = CID.of(DATA, RAW)


class Told:
    """A provider that does what it is told: a stand-in, to show the order of things."""

    kind = "gateway"

    def __init__(self, name, answer=DATA, *, near=False, held=None):
        self.name = name
        self.answer = answer
        self.near = near
        self.held = held
        self.asked = 0
        self.called = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()
        self.ended = asyncio.Event()
        self.closed = False

    async def get(self, cid):
        self.asked += 1
        self.called.set()
        try:
            await self.go.wait()
        finally:
            self.ended.set()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer(cid) if callable(self.answer) else self.answer

    async def get_held(self, _cid):
        return self.held

    def run(self, _cid, _start, _stop):
        return None

    async def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(module, "RETRY_DELAY", 0)


async def test_the_first_right_answer_is_taken():
    """The block, and who gave it."""
    one = Told("one")
    retriever = Retriever([one, Told("two")], SETTINGS)
    found = await retriever.get(BLOCK)
    assert (found.data, found.provider) == (DATA, "one")
    await retriever.close()
    assert one.closed


async def test_what_is_at_hand_is_taken_first():
    """A provider on this machine that holds the block is asked before all others, who are not asked."""
    near, far = Told("near", near=True, held=DATA), Told("far")
    retriever = Retriever([far, near], SETTINGS)
    assert (await retriever.get(BLOCK)).held
    assert far.asked == near.asked == 0
    await retriever.close()


async def test_wrong_bytes_are_never_given():
    """The next one is asked, and the liar is left alone."""
    liar, honest = Told("liar", b"other"), Told("honest")
    retriever = Retriever([liar, honest], SETTINGS)
    assert (await retriever.get(BLOCK)).provider == "honest"
    state = {told["name"]: told for told in retriever.describe()}
    assert (state["liar"]["corrupt"], state["liar"]["state"]) == (1, "resting")
    await retriever.close()


async def test_one_that_is_slow_gets_company():
    """Another one is asked after a while; the first answer counts, and the slow request is ended."""
    slow, quick = Told("slow"), Told("quick")
    slow.go.clear()
    retriever = Retriever([slow, quick], HEDGING)
    assert (await retriever.get(BLOCK)).provider == "quick"
    await asyncio.wait_for(slow.ended.wait(), 5)
    assert retriever.describe()[0]["latency_ms"] > 0
    await retriever.close()


async def test_no_more_than_some_are_asked_at_once():
    """Of five slow ones three are asked."""
    told = [Told(str(number)) for number in range(5)]
    for one in told:
        one.go.clear()
    retriever = Retriever(told, HEDGING)
    getting = asyncio.create_task(retriever.get(BLOCK))
    await asyncio.gather(*(one.called.wait() for one in told[: module.AT_ONCE]))
    await asyncio.wait([getting], timeout=0.1)
    assert sum(one.asked for one in told) == module.AT_ONCE
    told[1].go.set()
    assert (await getting).provider == "1"
    await retriever.close()


async def test_callers_share_one_request_and_one_may_leave():
    """A thousand want the same block: it is asked for once, also where the first of them gives up."""
    one = Told("one")
    one.go.clear()
    retriever = Retriever([one], SETTINGS)
    tasks = [asyncio.create_task(retriever.get(BLOCK)) for _ in range(1000)]
    await one.called.wait()
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    one.go.set()
    assert {found.data for found in await asyncio.gather(*tasks[1:])} == {DATA}
    assert one.asked == 1
    await retriever.close()


async def test_a_request_that_nobody_waits_for_is_ended():
    """The last one to leave ends it."""
    one = Told("one")
    one.go.clear()
    retriever = Retriever([one], SETTINGS)
    task = asyncio.create_task(retriever.get(BLOCK))
    await one.called.wait()
    task.cancel()
    await asyncio.wait([task])
    assert one.ended.is_set()
    assert not [other for other in asyncio.all_tasks() if other.get_name().startswith("fetch")]
    await retriever.close()


async def test_what_passes_is_tried_again():
    """A gateway that fails twice is asked three times."""
    answers = [RetrievalError("HTTP 504"), RetrievalTimeoutError("late"), DATA]

    def answer(_cid):
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    one = Told("one", answer)
    retriever = Retriever([one], SETTINGS)
    assert (await retriever.get(BLOCK)).data == DATA
    assert one.asked == 3
    await retriever.close()


async def test_what_will_not_pass_is_not():
    """A no is asked for once, and remembered."""
    one, two = Told("one", NotFoundError("no")), Told("two", NotFoundError("no"))
    retriever = Retriever([one, two], SETTINGS)
    for _ in range(3):
        with pytest.raises(NotFoundError, match=f"{BLOCK} is not here.*one.*two"):
            await retriever.get(BLOCK)
    assert (one.asked, two.asked) == (1, 1)
    await retriever.close()


async def test_with_nobody_to_reach_it_fails_at_once():
    """Offline: everybody is asked once, the text says what came of it, and then nobody for a while."""
    told = [Told("one", UnreachableError("no route")), Told("two", UnreachableError("no such host"))]
    retriever = Retriever(told, SETTINGS)
    with pytest.raises(RetrievalError, match="one: no route; two: no such host"):
        await retriever.get(BLOCK)
    with pytest.raises(RetrievalError, match=r"left alone for \d+ s more"):
        await retriever.get(BLOCK)
    assert [one.asked for one in told] == [1, 1]
    await retriever.close()


async def test_one_that_is_busy_is_left_alone():
    """429: nobody asks it again before its time."""
    busy, other = Told("busy", BusyError("HTTP 429", retry_after=60)), Told("other")
    retriever = Retriever([busy, other], SETTINGS)
    for number in range(3):
        data = b"%d" % number
        other.answer = data
        await retriever.get(CID.of(data, RAW))
    assert busy.asked == 1
    await retriever.close()


class Routes:
    """A router that knows one gateway."""

    def __init__(self, url):
        self.urls = [url]
        self.closed = False

    async def providers(self, _cid):
        return self.urls

    async def close(self):
        self.closed = True


async def test_where_none_has_it_the_router_is_asked(kubo):
    """Its gateway is used like any other, and closed in the end."""
    cid = CID.parse(kubo.run("add", "-Q", "--cid-version=1", data=DATA))
    routes = Routes(kubo.gateway)
    retriever = Retriever([Told("one", NotFoundError("no"))], SETTINGS, router=routes)
    found = await retriever.get(cid)
    assert (found.data, found.provider) == (DATA, kubo.gateway)
    assert [told["name"] for told in retriever.describe()] == ["one", kubo.gateway]
    await retriever.close()
    assert routes.closed


async def test_an_identity_cid_needs_nobody():
    """It holds its block itself."""
    retriever = Retriever([], SETTINGS)
    assert (await retriever.get(CID(1, RAW, 0, b"hello"))).data == b"hello"
    await retriever.close()


async def test_closing_ends_what_is_under_way():
    """Whoever waits is told."""
    one = Told("one")
    one.go.clear()
    retriever = Retriever([one], SETTINGS)
    task = asyncio.create_task(retriever.get(BLOCK))
    await one.called.wait()
    await retriever.close()
    await asyncio.wait([task])
    assert task.cancelled() or isinstance(task.exception(), RetrievalError)
    with pytest.raises(RetrievalError, match="closed"):
        await retriever.get(BLOCK)


def spoil(number, blocks, data):
    """A block, spoilt in one of four ways."""
    kind = number % 4
    if kind == 0:
        at = number % len(data)
        return data[:at] + bytes([data[at] ^ (1 << number % 8)]) + data[at + 1 :]
    if kind == 1:
        return data[: number % len(data)]
    if kind == 2:
        return blocks[(number + 1) % len(blocks)]
    return data + bytes(1 + number % 50) if number % 40 else bytes(MAX_BLOCK + 1)


async def test_ten_thousand_faulty_blocks_are_all_found(monkeypatch):
    """Flipped, truncated, swapped and oversized: none is given out, and another source gives the right one."""
    rng = random.Random(7)
    blocks = [rng.randbytes(rng.randint(2, 300)) for _ in range(10_000)]
    numbers = {CID.of(block, RAW): number for number, block in enumerate(blocks)}
    monkeypatch.setattr("ipfs_stream_nb.content.retrieval.health.CORRUPT_SECONDS", 0)
    bad = Told("bad", lambda cid: spoil(numbers[cid], blocks, blocks[numbers[cid]]))
    good = Told("good", lambda cid: blocks[numbers[cid]])
    retriever = Retriever([bad, good], SETTINGS)
    retriever._known[1].health.overtaken(5.0)  # so that the bad one is asked first each time
    for cid, number in numbers.items():
        found = await retriever.get(cid)
        assert (found.data, found.provider) == (blocks[number], "good")
        retriever._known[1].health._latencies.clear()
        retriever._known[1].health.overtaken(5.0)
    assert bad.asked == 10_000
    assert retriever.describe()[0]["corrupt"] == 10_000
    await retriever.close()


async def test_faulty_blocks_over_http_are_found_and_reading_goes_on(kubo, monkeypatch):
    """The same through real HTTP: Kubo's gateway behind a proxy that spoils every answer, and once more without."""
    rng = random.Random(8)
    monkeypatch.setattr("ipfs_stream_nb.content.retrieval.health.CORRUPT_SECONDS", 0)
    data = rng.randbytes(400 * 256)
    root = kubo.run("add", "-Q", "--cid-version=1", "--raw-leaves", "--chunker=size-256", data=data)
    blocks = [data[at : at + 256] for at in range(0, len(data), 256)]
    numbers = {str(CID.of(block, RAW)): number for number, block in enumerate(blocks)}
    assert root

    def rule(request):
        number = numbers[request.path.split("?")[0].rpartition("/")[2]]
        return Fault(change=lambda body: spoil(number, blocks, body))

    async with FaultProxy(kubo.gateway, rule) as proxy:
        bad, good = TrustlessGateway(proxy.url, SETTINGS), TrustlessGateway(kubo.gateway, SETTINGS)
        retriever = Retriever([bad, good], SETTINGS)
        got = []
        for cid in numbers:
            retriever._known[1].health.overtaken(50.0)
            retriever._known[0].health._failures = 0
            retriever._known[0].health._rest_until = 0
            got.append(await retriever.get(CID.parse(cid)))
        assert b"".join(found.data for found in got) == data
        assert {found.provider for found in got} == {good.name}
        assert len(proxy.requests) == 400
        await retriever.close()
