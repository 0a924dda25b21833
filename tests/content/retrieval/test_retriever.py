"""Which provider is asked, and what becomes of its answer."""

from __future__ import annotations

import asyncio
import gc
import os
import random
from contextlib import aclosing

import pytest

from fault_proxy import Fault, FaultProxy
from ipfs_stream_nb.content.car import CarBlock
from ipfs_stream_nb.content.cid import CID, RAW
from ipfs_stream_nb.content.dag_pb import MAX_BLOCK
from ipfs_stream_nb.content.retrieval import race
from ipfs_stream_nb.content.retrieval import retriever as module
from ipfs_stream_nb.content.retrieval.gateway import TrustlessGateway
from ipfs_stream_nb.content.retrieval.provider import FoundNowhereError, StalledError
from ipfs_stream_nb.content.retrieval.retriever import Retriever
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import (
    BusyError,
    NotFoundError,
    RefusedError,
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
        self.blocks = None
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
        return None if self.blocks is None else self._run()

    async def _run(self):
        for block in self.blocks:
            await self.go.wait()
            yield block

    async def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(module, "RETRY_DELAY", 0)


def frozen(providers):
    """A retriever for which rests do not get shorter, however long a busy machine takes."""
    retriever = Retriever(providers, SETTINGS)
    for known in retriever._known:
        known.health.clock = lambda: 1000.0
    return retriever


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
    quick.go.clear()
    retriever = Retriever([slow, quick], HEDGING)
    getting = asyncio.create_task(retriever.get(BLOCK))
    await slow.called.wait()
    assert not quick.asked
    await quick.called.wait()
    assert not slow.ended.is_set()
    quick.go.set()
    assert (await getting).provider == "quick"
    assert slow.ended.is_set()
    await retriever.close()


async def test_being_overtaken_late_is_remembered(monkeypatch):
    """Who was given longer than was expected of it stands behind whoever was quicker."""
    monkeypatch.setattr("ipfs_stream_nb.content.retrieval.health.UNTRIED_SECONDS", 0)
    slow, quick = Told("slow"), Told("quick")
    slow.go.clear()
    retriever = Retriever([slow, quick], HEDGING)
    await retriever.get(BLOCK)
    assert retriever.describe()[0]["latency_ms"] > 0
    await retriever.close()


async def test_a_caller_that_leaves_says_nothing_about_a_provider(monkeypatch):
    """A seek that ends a request is no sign of slowness, nor of speed."""
    monkeypatch.setattr("ipfs_stream_nb.content.retrieval.health.UNTRIED_SECONDS", 0)
    one = Told("one")
    one.go.clear()
    retriever = Retriever([one], SETTINGS)
    task = asyncio.create_task(retriever.get(BLOCK))
    await one.called.wait()
    task.cancel()
    await asyncio.wait([task])
    assert retriever.describe()[0]["latency_ms"] is None
    await retriever.close()


async def test_answers_that_come_together_are_all_taken_note_of():
    """Of two at once one is taken, and a third one's failure is no exception that nobody sees."""
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    told = [Told("one"), Told("two"), Told("bad", RetrievalError("HTTP 500"))]
    for one in told:
        one.go.clear()
    retriever = Retriever(told, HEDGING)
    getting = asyncio.create_task(retriever.get(BLOCK))
    await asyncio.gather(*(one.called.wait() for one in told))
    for one in told:
        one.go.set()
    assert (await getting).data == DATA
    assert [one["failed"] for one in retriever.describe()] == [0, 0, 1]
    await retriever.close()
    gc.collect()
    assert complaints == []


async def test_no_more_than_some_are_asked_at_once(monkeypatch):
    """Of five three are asked, as long as they are not slow."""
    monkeypatch.setattr(race, "SLOW_AFTER", 1e6)  # which they are not, whatever the machine does
    told = [Told(str(number)) for number in range(5)]
    for one in told:
        one.go.clear()
    retriever = Retriever(told, HEDGING)
    getting = asyncio.create_task(retriever.get(BLOCK))
    await asyncio.gather(*(one.called.wait() for one in told[: race.AT_ONCE]))
    await asyncio.wait([getting], timeout=0.1)
    assert sum(one.asked for one in told) == race.AT_ONCE
    told[1].go.set()
    assert (await getting).provider == "1"
    await retriever.close()


async def test_slow_ones_do_not_keep_others_from_being_asked():
    """Three that never come to an end give up their places; their requests go on, and could still be the first."""
    told = [Told("1"), Told("2"), Told("3"), quick := Told("quick")]
    for one in told:
        one.go.clear()
    retriever = Retriever(told, HEDGING)
    getting = asyncio.create_task(retriever.get(BLOCK))
    await asyncio.wait_for(quick.called.wait(), 5)
    assert not any(one.ended.is_set() for one in told)
    quick.go.set()
    assert (await getting).provider == "quick"
    assert all(one.ended.is_set() for one in told)
    await retriever.close()


async def test_the_slowest_are_given_up():
    """There are never more than some under way, and everybody gets their turn."""
    told = [Told(str(number)) for number in range(10)]
    for one in told:
        one.go.clear()
    retriever = Retriever(told, HEDGING)
    getting = asyncio.create_task(retriever.get(BLOCK))
    await asyncio.wait_for(told[-1].called.wait(), 5)
    assert [one.ended.is_set() for one in told] == [True] * 4 + [False] * race.AT_MOST
    told[-1].go.set()
    assert (await getting).provider == "9"
    await retriever.close()


async def test_a_trickle_has_an_end():
    """A provider that goes on and on is given up after the time of an answer and of a block, and not asked again."""
    one = Told("one")
    one.go.clear()
    settings = RetrievalSettings((), (), answer_timeout=0.05, block_timeout=0.05)
    retriever = Retriever([one], settings)
    with pytest.raises(RetrievalTimeoutError, match=r"one: the block was not there after 0\.1 s"):
        await retriever.get(BLOCK)
    assert one.asked == 1
    await retriever.close()


class Surprise(Told):
    """A provider with a fault that nobody thought of."""

    async def get(self, cid):
        await super().get(cid)
        raise self.surprise

    async def _run(self):
        yield RUN[0]
        raise self.surprise


@pytest.mark.parametrize("surprise", [OverflowError("int too large"), asyncio.CancelledError()])
async def test_a_surprise_is_the_failure_of_one_provider(surprise, caplog):
    """The others are asked; it counts, and the log has the traceback."""
    bad, good = Surprise("bad"), Told("good")
    bad.surprise = surprise
    retriever = Retriever([bad, good], SETTINGS)
    assert (await retriever.get(BLOCK)).provider == "good"
    if isinstance(surprise, Exception):
        assert retriever.describe()[0]["failed"] == 1
        (record,) = caplog.records
        assert record.exc_info[1] is surprise
        bad.blocks = RUN
        with pytest.raises(RetrievalError, match="bad broke off"):
            _ = [fetched async for fetched in retriever.run(RUN[0].cid, 0, 12)]
        assert retriever.describe()[0]["failed"] == 2
    await retriever.close()


async def test_a_surprise_of_what_is_near_or_of_a_router_is_none_for_the_reader(caplog):
    """Both only help."""

    class Near(Told):
        async def get_held(self, _cid):
            raise OverflowError

    class Lost(Routes):
        async def providers(self, _cid):
            raise OverflowError

    near, good = Near("near", near=True), Told("good", NotFoundError("no"))
    near.answer = NotFoundError("no")
    retriever = Retriever([near, good], SETTINGS, router=Lost(""))
    with pytest.raises(NotFoundError):
        await retriever.get(BLOCK)
    assert [record.exc_info[0] for record in caplog.records] == [OverflowError] * 2
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
    answers = [FoundNowhereError("HTTP 504"), StalledError("it stopped"), DATA]

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


async def test_a_full_look_up_is_not_repeated():
    """Offline with a Kubo that has no peers: after one time-out it is over, not after four."""
    late, gone = Told("late", RetrievalTimeoutError("no answer in 15 s")), Told("gone", NotFoundError("no"))
    retriever = Retriever([late, gone], SETTINGS)
    with pytest.raises(RetrievalTimeoutError, match="late: no answer in 15 s"):
        await retriever.get(BLOCK)
    assert late.asked == 1
    with pytest.raises(RetrievalTimeoutError):
        await retriever.get(BLOCK)
    assert late.asked == 2  # whoever asks anew is served anew
    await retriever.close()


@pytest.mark.parametrize("error", [FoundNowhereError("HTTP 504"), RetrievalTimeoutError("late")])
async def test_what_nobody_has_takes_nothing_from_others(error):
    """Twenty blocks that nobody has, one after the other: what the providers do have is still to be had."""

    def answer(cid):
        if cid != BLOCK:
            raise error
        return DATA

    retriever = Retriever([Told("one", answer), Told("two", answer)], SETTINGS)
    for number in range(20):
        with pytest.raises((RetrievalError, RetrievalTimeoutError)):
            await retriever.get(CID.of(b"%d" % number, RAW))
    assert (await retriever.get(BLOCK)).data == DATA
    await retriever.close()


async def test_one_block_with_errors_takes_nothing_from_others():
    """A provider that fails with one block, four times and more, is asked for the next one."""

    def answer(cid):
        if cid != BLOCK:
            raise RetrievalError("HTTP 500")
        return DATA

    one = Told("one", answer)
    retriever = Retriever([one], SETTINGS)
    for _ in range(2):
        with pytest.raises(RetrievalError):
            await retriever.get(CID.of(b"other", RAW))
    assert one.asked == 8
    assert (await retriever.get(BLOCK)).data == DATA
    await retriever.close()


async def test_what_is_near_and_hangs_is_left(monkeypatch):
    """It must give what it holds at once; the others are asked, and it is left alone for a while."""
    monkeypatch.setattr(module, "HELD_TIMEOUT", 0.05)

    class Hanging(Told):
        async def get_held(self, _cid):
            self.asked += 1
            await asyncio.Event().wait()

    near, far = Hanging("near", near=True), Told("far")
    retriever = frozen([near, far])
    for _ in range(2):
        assert (await retriever.get(BLOCK)).provider == "far"
    assert near.asked == 1
    assert retriever.describe()[0]["state"] == "resting"
    await retriever.close()


async def test_what_is_held_does_not_wait_for_look_ups():
    """All slots of a provider on this machine are taken by blocks that it looks for: what it holds is had at once."""
    near = Told("near", near=True)
    near.go.clear()
    retriever = Retriever([near], SETTINGS)
    looked_for = [
        asyncio.create_task(retriever.get(CID.of(b"%d" % number, RAW)))
        for number in range(SETTINGS.max_requests + 1)
    ]
    for _ in range(100):
        await asyncio.sleep(0)
    assert near.asked == SETTINGS.max_requests
    near.held = DATA
    assert (await asyncio.wait_for(retriever.get(BLOCK), 5)).held
    await retriever.close()
    await asyncio.wait(looked_for)
    assert all(isinstance(task.exception(), RetrievalError) for task in looked_for)


async def test_what_will_not_pass_is_not():
    """A no is asked for once, and remembered."""
    one, two = Told("one", NotFoundError("no")), Told("two", NotFoundError("no"))
    retriever = Retriever([one, two], SETTINGS)
    for _ in range(3):
        with pytest.raises(NotFoundError, match=f"{BLOCK} is not here.*one.*two"):
            await retriever.get(BLOCK)
    assert (one.asked, two.asked) == (1, 1)
    await retriever.close()


async def test_what_is_refused_is_not_asked_for_again():
    """Neither in this call nor in the next one, and the text tells why."""
    one = Told("one", RefusedError("HTTP 451"))
    retriever = Retriever([one], SETTINGS)
    for _ in range(2):
        with pytest.raises(RetrievalError, match="one: HTTP 451"):
            await retriever.get(BLOCK)
    assert one.asked == 1
    await retriever.close()


async def test_offline_over_real_sockets(unused_tcp_port):
    """Nobody listens: the text has the reason of each, and when it is asked again."""
    urls = [f"http://127.0.0.1:{unused_tcp_port}", "http://nobody.invalid"]
    retriever = frozen([TrustlessGateway(url, SETTINGS) for url in urls])
    with pytest.raises(RetrievalError) as raised:
        await retriever.get(BLOCK)
    for url in urls:
        assert f"{url}: it cannot be reached" in str(raised.value)
    assert str(raised.value).count("asked again in 30 s") == 2
    await retriever.close()


async def test_those_who_wait_for_a_slot_do_not_ask_one_that_rests():
    """Forty blocks are wanted at once of one that cannot be reached: it is asked as often as there are slots."""
    one = Told("one", UnreachableError("no route"))
    one.go.clear()
    retriever = Retriever([one], SETTINGS)
    tasks = [asyncio.create_task(retriever.get(CID.of(b"%d" % number, RAW))) for number in range(40)]
    await one.called.wait()
    one.go.set()
    await asyncio.wait(tasks)
    assert all(isinstance(task.exception(), RetrievalError) for task in tasks)
    assert one.asked == SETTINGS.max_requests
    assert 0 < retriever.describe()[0]["resting_s"] <= 30  # one rest, not one for each
    await retriever.close()


async def test_with_nobody_to_reach_it_fails_at_once():
    """Offline: everybody is asked once, the text says what came of it, and then nobody for a while."""
    told = [Told("one", UnreachableError("no route")), Told("two", UnreachableError("no such host"))]
    retriever = frozen(told)
    text = r"one: no route \(asked again in 30 s\); two: no such host \(asked again in 30 s\)"
    with pytest.raises(RetrievalError, match=text):
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


async def test_a_gateway_that_a_router_named_is_asked_with_the_others(kubo):
    """Once it has given a block, the next one needs no router; in the end it is closed."""
    blocks = [os.urandom(50) for _ in range(2)]
    first, second = (CID.parse(kubo.run("add", "-Q", "--cid-version=1", data=block)) for block in blocks)
    routes = Routes(kubo.gateway)
    retriever = Retriever([Told("one", NotFoundError("no"))], SETTINGS, router=routes)
    await retriever.get(first)
    routes.urls = []
    assert (await retriever.get(second)).data == blocks[1]
    await retriever.close()
    (routed,) = retriever._routed.values()
    assert routed.provider._session is None


async def test_few_of_a_routers_gateways_are_kept(unused_tcp_port):
    """The least recently named ones make room, and are closed."""
    routes = Routes("")
    retriever = Retriever([], SETTINGS, router=routes)
    met = {}
    for number in range(3):
        hosts = range(2 + 5 * number, 7 + 5 * number)
        routes.urls = [f"http://127.0.0.{host}:{unused_tcp_port}" for host in hosts]
        with pytest.raises(RetrievalError):
            await retriever.get(CID.of(b"%d" % number, RAW))
        met |= dict(retriever._routed)
    assert len(retriever._routed) == module.ROUTED_PROVIDERS
    assert [url in retriever._routed for url in routes.urls] == [True] * 5
    dropped = [known for url, known in met.items() if url not in retriever._routed]
    assert len(dropped) == 7
    assert all(known.provider._session is None for known in dropped)
    await retriever.close()


RUN = [CarBlock(CID.of(data, RAW), data) for data in (b"root", b"leaf 1", b"leaf 2")]


async def test_a_run_gives_verified_blocks_in_their_order():
    """From the one that can, though another one stands before it."""
    retriever = Retriever([Told("no runs"), runner := Told("runner")], SETTINGS)
    runner.blocks = RUN
    found = [fetched async for fetched in retriever.run(RUN[0].cid, 0, 12)]
    assert [(fetched.cid, fetched.data) for fetched in found] == RUN
    assert {fetched.provider for fetched in found} == {"runner"}
    with pytest.raises(RetrievalError, match="nobody sends"):
        _ = [fetched async for fetched in retriever.run(RUN[0].cid, 0, 12, provider="no runs")]
    await retriever.close()


async def test_a_wrong_block_ends_a_run():
    """What came before it is given, it is not, and its provider rests."""
    retriever = Retriever([runner := Told("runner")], SETTINGS)
    runner.blocks = [RUN[0], CarBlock(RUN[1].cid, b"leaf !"), RUN[2]]
    found = []
    with pytest.raises(RetrievalError, match="runner broke off"):
        async for fetched in retriever.run(RUN[0].cid, 0, 12):
            found.append(fetched.data)
    assert found == [b"root"]
    assert (retriever.describe()[0]["corrupt"], retriever.describe()[0]["state"]) == (1, "resting")
    await retriever.close()


async def test_runs_that_wait_for_their_readers_leave_room():
    """Half of a provider's slots at most: there is always one for the block that a reader waits for."""
    retriever = Retriever([runner := Told("runner")], SETTINGS)
    runner.blocks = RUN
    runs = [retriever.run(RUN[0].cid, 0, 12) for _ in range(SETTINGS.max_requests // 2)]
    for run in runs:
        await anext(run)
    with pytest.raises(RetrievalError, match="nobody sends"):
        await anext(retriever.run(RUN[0].cid, 0, 12))
    assert (await retriever.get(BLOCK)).data == DATA
    for run in runs:
        await run.aclose()
    async with aclosing(retriever.run(RUN[0].cid, 0, 12)) as again:
        assert (await anext(again)).data == b"root"
    await retriever.close()


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
    with pytest.raises(RetrievalError, match="closed"):
        await task
    assert one.ended.is_set()
    with pytest.raises(RetrievalError, match="closed"):
        await retriever.get(BLOCK)


async def test_a_new_caller_does_not_join_a_request_that_is_being_ended():
    """The last one left, and its request is still winding up: the next one gets one of its own, which is known."""
    one = Told("one")
    one.go.clear()
    retriever = Retriever([one], SETTINGS)
    first = asyncio.create_task(retriever.get(BLOCK))
    await one.called.wait()
    first.cancel()
    await asyncio.sleep(0)  # it has left, and waits for its request to end
    one.called.clear()
    second = asyncio.create_task(retriever.get(BLOCK))
    await asyncio.wait([first])
    await one.called.wait()
    assert BLOCK in retriever._flights
    one.go.set()
    assert (await second).data == DATA
    await retriever.close()


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
    return bytes(MAX_BLOCK + 1) if number % 100 == 3 else data + bytes(1 + number % 50)


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
    told = retriever.describe()
    assert (told[0]["corrupt"], told[0]["ok"], told[1]["ok"]) == (10_000, 0, 10_000)
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
            retriever._known[0].health._rest_until = 0
            got.append(await retriever.get(CID.parse(cid)))
        assert b"".join(found.data for found in got) == data
        assert {found.provider for found in got} == {good.name}
        assert len(proxy.requests) == 400
        told = retriever.describe()[0]
        assert (told["ok"], told["corrupt"], told["failed"]) == (0, 396, 4)  # 4 are over any block's size
        await retriever.close()
