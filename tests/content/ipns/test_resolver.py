"""Names resolved through real Kubo, and by records of routers and gateways that may say anything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from fault_proxy import Fault, FaultProxy
from ipfs_stream_nb.content.ipns import record as record_module
from ipfs_stream_nb.content.ipns import resolver as resolver_module
from ipfs_stream_nb.content.ipns.name import Name
from ipfs_stream_nb.content.ipns.record import verify
from ipfs_stream_nb.content.ipns.resolver import MAX_DEPTH, MAX_QUESTIONS, NameResolver
from ipfs_stream_nb.content.kubo.discovery import find_kubo
from ipfs_stream_nb.content.kubo.rpc import KuboRPC
from ipfs_stream_nb.content.retrieval.gateway import TrustlessGateway
from ipfs_stream_nb.content.retrieval.routing import DelegatedRouting
from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import (
    BadRequestError,
    CorruptContentError,
    NotFoundError,
    RetrievalError,
    RetrievalTimeoutError,
)
from ipns_records import Owner, in_hours

VALUE = "/ipfs/bafkqaddwgevxmmraojswg33smq"
OTHER = "/ipfs/bafkqahtwgevxmmrao5uxi2bamjzg623fnyqhg2lhnzqxi5lsmuqhmmi"
SETTINGS = RetrievalSettings(answer_timeout=5, stall_timeout=5)


class Source:
    """A router or gateway of the tests: what it gives is set, what it is asked is kept."""

    def __init__(self, answer: bytes | Exception | Callable[[str], bytes], name: str = "source") -> None:
        self.answer = answer
        self.name = name
        self.asked: list[str] = []
        self.reached = asyncio.Event()
        self.gate: asyncio.Event | None = None

    async def ipns_record(self, name: str) -> bytes:
        self.asked.append(name)
        self.reached.set()
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer(name) if callable(self.answer) else self.answer


@pytest.fixture
def _all_waited_for(monkeypatch):
    """A record that a busy machine brings late is there all the same."""
    monkeypatch.setattr(resolver_module, "WINDOW", 60.0)
    monkeypatch.setattr(resolver_module, "LIMIT", 60.0)


@pytest.fixture
async def rpc(publisher, _all_waited_for):
    rpc = KuboRPC(find_kubo(publisher.api))
    yield rpc
    await rpc.close()


@pytest.fixture
def clock(monkeypatch):
    """The resolver's monotonic clock, moved by hand."""

    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(resolver_module, "time", clock)
    return clock


# -- through real Kubo


async def test_through_kubo(rpc, publish):
    """The daemon's record is verified, and its TTL kept."""
    name = publish(f"{VALUE}/a/b", "--ttl=70s")
    found = await NameResolver(rpc).resolve(name)
    assert found.path == f"{VALUE}/a/b"
    assert 60 < found.ttl <= 70
    assert verify(Name.parse(name), found.record).value == f"{VALUE}/a/b"


async def test_through_kubo_without_its_record(publisher, publish):
    """Where the daemon does not give the record, its own answer counts, for a minute."""
    name = publish(VALUE)

    def rule(request):
        return Fault(status=500, body=b"no") if "routing/get" in request.path else None

    async with FaultProxy(publisher.api, rule) as proxy:
        rpc = KuboRPC(find_kubo(proxy.url))
        found = await NameResolver(rpc).resolve(name)
        await rpc.close()
    assert (found.path, found.record) == (VALUE, None)
    assert 50 < found.ttl <= 60


async def test_kubo_gives_the_answer_before_the_record(publisher, publish, monkeypatch):
    """A record that is not there soon after the answer is not waited for."""
    monkeypatch.setattr(resolver_module, "WINDOW", 0.05)
    name = publish(VALUE)

    def rule(request):
        return Fault(stall=0) if "routing/get" in request.path else None

    async with FaultProxy(publisher.api, rule) as proxy:
        rpc = KuboRPC(find_kubo(proxy.url))
        found = await NameResolver(rpc).resolve(name)
        await rpc.close()
    assert (found.path, found.record) == (VALUE, None)


async def test_kubo_follows_names_of_names(rpc, publish):
    """The path below each of them is kept."""
    inner = publish(f"{VALUE}/a")
    outer = publish(f"/ipns/{inner}/b", "--ttl=65s")
    found = await NameResolver(rpc).resolve(outer)
    assert found.path == f"{VALUE}/a/b"
    assert 60 < found.ttl <= 65


async def test_a_name_that_kubo_does_not_know_is_asked_for_elsewhere(rpc):
    """A daemon without peers does not keep a router from being asked."""
    owner = Owner()
    source = Source(owner.record(VALUE))
    assert (await NameResolver(rpc, [source]).resolve(str(owner.name))).path == VALUE
    with pytest.raises(NotFoundError, match="Kubo"):
        await NameResolver(rpc).resolve(str(Owner().name))


@pytest.mark.usefixtures("_all_waited_for")
async def test_a_forged_record_of_kubo_is_not_used(publisher, publish):
    """The record of one name in place of another's: the daemon may be believed, whoever answers for it may not."""
    name, other = publish(VALUE), publish(OTHER)

    class Liar(KuboRPC):
        async def routing_get(self, key: str) -> bytes:
            return await super().routing_get(key.replace(name, other))

    rpc = Liar(find_kubo(publisher.api))
    with pytest.raises(CorruptContentError, match="not by the owner"):
        await NameResolver(rpc).resolve(name)
    await rpc.close()


async def test_domains_are_for_kubo(rpc):
    """Without a daemon the error says so; with one it is the daemon's answer, here that there is no DNS."""
    with pytest.raises(NotFoundError, match="Kubo daemon only"):
        await NameResolver().resolve("docs.ipfs.tech")

    class WithDNS(KuboRPC):
        async def name_resolve(self, name: str) -> str:
            assert name == "docs.ipfs.tech"
            return VALUE

    dns = WithDNS(rpc.address)
    found = await NameResolver(dns).resolve("docs.IPFS.tech")
    assert (found.path, found.record) == (VALUE, None)
    assert 50 < found.ttl <= 60


# -- by records, from real routers and gateways


@pytest.mark.parametrize("through", ["router", "gateway"])
async def test_a_record_of_kubos_router_and_gateway(publisher, publish, through):
    """Without the RPC, over HTTP and by its signature alone."""
    name = publish(VALUE, "--ttl=70s")
    gateway = TrustlessGateway(publisher.gateway, SETTINGS)
    routing = DelegatedRouting([publisher.gateway], SETTINGS) if through == "router" else None
    names = NameResolver(None, [gateway] if through == "gateway" else [], routing)
    found = await names.resolve(name)
    assert found.path == VALUE
    assert 60 < found.ttl <= 70
    await names.close()
    await gateway.close()


async def test_a_new_record_is_seen_after_its_time(publisher, publish, clock):
    """Published again, resolved again: at first as remembered, then as it is now."""
    gateway = TrustlessGateway(publisher.gateway, SETTINGS)
    names = NameResolver(None, [gateway])
    name = publish(VALUE, "--ttl=30s")
    assert (await names.resolve(name)).path == VALUE
    publish(OTHER, "--ttl=30s", key=name)
    assert (await names.resolve(name)).path == VALUE
    clock.now += 31
    assert (await names.resolve(name)).path == OTHER
    await gateway.close()


# -- by records, from whomever


async def test_the_best_record_wins():
    """Of those that answer in time, whoever is quicker."""
    owner = Owner()
    old = Source(owner.record(VALUE, sequence=1, validity=in_hours(48)))
    new = Source(owner.record(OTHER, sequence=2, validity=in_hours(1)))
    failing, forging = Source(RetrievalError("no")), Source(Owner().record("/ipfs/bafkqaaa", sequence=9))
    found = await NameResolver(None, [old, failing, forging, new]).resolve(str(owner.name))
    assert found.path == OTHER


async def test_a_slow_source_is_not_waited_for(monkeypatch):
    """A second after the first valid record is enough; the request of the slow one is ended."""
    monkeypatch.setattr(resolver_module, "LIMIT", 3600)
    monkeypatch.setattr(resolver_module, "WINDOW", 0.01)
    owner = Owner()
    slow = Source(b"")
    slow.gate = asyncio.Event()
    before = asyncio.all_tasks()
    found = await NameResolver(None, [slow, Source(owner.record(VALUE))]).resolve(str(owner.name))
    assert found.path == VALUE
    assert asyncio.all_tasks() == before


async def test_nobody_brings_back_an_older_record(clock):
    """What was seen counts until it expires."""
    owner = Owner()
    source = Source(owner.record(OTHER, sequence=2))
    names = NameResolver(None, [source])
    assert (await names.resolve(str(owner.name))).path == OTHER
    source.answer = owner.record(VALUE, sequence=1)
    clock.now += 100
    assert (await names.resolve(str(owner.name))).path == OTHER
    assert len(source.asked) == 2


async def test_a_record_is_remembered_as_long_as_it_says(clock):
    """All texts of a name share it. The TTL counts down."""
    owner = Owner()
    source = Source(owner.record(VALUE, ttl=40_000_000_000))
    names = NameResolver(None, [source])
    assert (await names.resolve(str(owner.name))).ttl == 40
    clock.now += 30
    assert (await names.resolve(str(owner.name))).ttl == 10
    assert len(source.asked) == 1
    clock.now += 11
    await names.resolve(str(owner.name))
    assert len(source.asked) == 2


@pytest.mark.parametrize(
    ("ttl", "validity", "seconds"),
    [(None, 24, 300), (0, 24, 5), (10**9, 24, 5), (86_400 * 10**9, 24, 3600), (86_400 * 10**9, 0.01, 36)],
)
async def test_a_ttl_has_bounds(clock, ttl, validity, seconds):
    """Five minutes where it is missing, an hour at most, never beyond the validity, and a little at least."""
    owner, began = Owner(), time.monotonic()
    names = NameResolver(None, [Source(owner.record(VALUE, ttl=ttl, validity=in_hours(validity)))])
    found = await names.resolve(str(owner.name))
    assert seconds - 1 - (time.monotonic() - began) < found.ttl <= seconds


async def test_an_old_record_is_used_where_nobody_answers(clock):
    """It is still valid, and marked; the next question comes soon."""
    owner = Owner()
    source = Source(owner.record(VALUE))
    names = NameResolver(None, [source])
    await names.resolve(str(owner.name))
    source.answer = RetrievalError("no")
    clock.now += 61
    found = await names.resolve(str(owner.name))
    assert (found.path, found.stale) == (VALUE, True)
    source.answer = owner.record(OTHER, sequence=2)
    assert (await names.resolve(str(owner.name))).stale
    clock.now += 31
    found = await names.resolve(str(owner.name))
    assert (found.path, found.stale) == (OTHER, False)


async def test_an_expired_record_is_not_used(clock, monkeypatch):
    """What the owner signed is over, so nobody's answer is an error."""
    owner = Owner()
    source = Source(owner.record(VALUE, validity=in_hours(0.01)))
    names = NameResolver(None, [source])
    await names.resolve(str(owner.name))
    source.answer = NotFoundError("no")
    clock.now += 37
    later = time.time_ns() + 37 * 10**9
    monkeypatch.setattr(record_module, "time", SimpleNamespace(time_ns=lambda: later))
    with pytest.raises(NotFoundError):
        await names.resolve(str(owner.name))


async def test_a_failure_is_remembered_for_a_while(clock):
    """A page with many requests waits once."""
    source = Source(NotFoundError("no"))
    names = NameResolver(None, [source])
    name = str(Owner().name)
    for _ in range(3):
        with pytest.raises(NotFoundError, match="source: no"):
            await names.resolve(name)
    assert len(source.asked) == 1


async def test_callers_share_a_question():
    """Many at once make one request; one that leaves does not take the others with it."""
    owner = Owner()
    source = Source(owner.record(VALUE))
    source.gate = asyncio.Event()
    names = NameResolver(None, [source])
    callers = [asyncio.create_task(names.resolve(str(owner.name))) for _ in range(5)]
    await source.reached.wait()
    callers[0].cancel()
    source.gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert {found.path for found in results[1:]} == {VALUE}
    assert len(source.asked) == 2  # the one that left had asked for all


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([], NotFoundError),
        ([NotFoundError("no")], NotFoundError),
        ([NotFoundError("no"), RetrievalError("broken")], RetrievalError),
        ([NotFoundError("no"), RetrievalTimeoutError("late")], RetrievalTimeoutError),
        ([NotFoundError("no"), b"nonsense"], CorruptContentError),
        ([Owner().record(VALUE)], CorruptContentError),
        ([RetrievalError("broken"), Owner().record(VALUE)], CorruptContentError),
    ],
)
async def test_errors_tell_who_was_asked(answers, error):
    """Missing, forged and failed are told apart."""
    sources = [Source(answer, f"source-{number}") for number, answer in enumerate(answers)]
    with pytest.raises(error) as raised:
        await NameResolver(None, sources).resolve(str(Owner().name))
    assert type(raised.value) is error
    assert all(source.name in str(raised.value) for source in sources)


async def test_expired_everywhere_is_not_found():
    """The text says until when it was valid."""
    owner = Owner()
    with pytest.raises(NotFoundError, match="valid until"):
        await NameResolver(None, [Source(owner.record(VALUE, validity=in_hours(-1)))]).resolve(
            str(owner.name)
        )


async def test_silence_has_an_end(monkeypatch):
    """Nobody waits for ever."""
    monkeypatch.setattr(resolver_module, "LIMIT", 0.05)
    silent = Source(b"")
    silent.gate = asyncio.Event()
    with pytest.raises(RetrievalTimeoutError, match="source: no answer"):
        await NameResolver(None, [silent]).resolve(str(Owner().name))


async def test_a_chain_has_an_end_too(monkeypatch):
    """Each step takes less than its own limit, and all of them have one together."""
    monkeypatch.setattr(resolver_module, "CHAIN_LIMIT", 0.2)
    owners = [Owner() for _ in range(20)]
    records = {
        str(owner.name): owner.record(f"/ipns/{following.name}")
        for owner, following in zip(owners, [*owners[1:], Owner()], strict=True)
    }

    class Slow(Source):
        async def ipns_record(self, name: str) -> bytes:
            await asyncio.sleep(0.05)
            return await super().ipns_record(name)

    slow = Slow(records.__getitem__)
    before = asyncio.all_tasks()
    with pytest.raises(RetrievalTimeoutError, match=r"was not resolved in 0\.2 s"):
        await NameResolver(None, [slow]).resolve(str(owners[0].name))
    assert len(slow.asked) < 8
    assert asyncio.all_tasks() == before


async def test_questions_at_once_are_few():
    """Of a flood of names some are asked for, and the others wait; whoever leaves leaves nothing."""
    source = Source(b"")
    source.gate = asyncio.Event()
    before = asyncio.all_tasks()
    names = NameResolver(None, [source])
    callers = [asyncio.create_task(names.resolve(str(Owner().name))) for _ in range(100)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(source.asked) == MAX_QUESTIONS
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    assert asyncio.all_tasks() == before


async def test_a_surprise_of_one_source_is_not_that_of_the_others(caplog):
    """The log has the traceback, and the others' records count."""
    owner = Owner()
    sources = [Source(OverflowError()), Source(owner.record(VALUE), "good")]
    assert (await NameResolver(None, sources).resolve(str(owner.name))).path == VALUE
    with pytest.raises(RetrievalError, match="OverflowError"):
        await NameResolver(None, sources[:1]).resolve(str(owner.name))
    assert {record.exc_info[0] for record in caplog.records} == {OverflowError}


async def test_names_of_names():
    """Each is resolved; the paths below add up, the shortest TTL counts, and the record is the first one's."""
    owners = {str(owner.name): owner for owner in (Owner(), Owner(), Owner())}
    one, two, three = owners
    records = {
        one: owners[one].record(f"/ipns/{two}/a/", ttl=90 * 10**9),
        two: owners[two].record(f"/ipns/{three}", ttl=30 * 10**9),
        three: owners[three].record(f"{VALUE}/b", ttl=90 * 10**9),
    }
    found = await NameResolver(None, [Source(records.__getitem__)]).resolve(one)
    assert (found.path, found.record) == (f"{VALUE}/b/a", records[one])
    assert 25 < found.ttl <= 30


async def test_names_in_a_circle():
    """A loop ends."""
    one, two = Owner(), Owner()
    records = {str(one.name): one.record(f"/ipns/{two.name}"), str(two.name): two.record(f"/ipns/{one.name}")}
    with pytest.raises(BadRequestError, match=f"{MAX_DEPTH} times"):
        await NameResolver(None, [Source(records.__getitem__)]).resolve(str(one.name))


@pytest.mark.parametrize(
    "value", ["/ipfs/", "/ipfs/nonsense", "/ipfs/bafkqaaa/../a", "/ipns/", "/ipns/nonsense"]
)
async def test_a_value_that_leads_nowhere(value):
    """The owner's mistake is not the asker's."""
    owner = Owner()
    with pytest.raises(CorruptContentError, match="leads nowhere"):
        await NameResolver(None, [Source(owner.record(value))]).resolve(str(owner.name))


async def test_a_closed_resolver_asks_nobody():
    """After close, which can be called twice."""
    source = Source(NotFoundError("no"))
    names = NameResolver(None, [source])
    await names.close()
    await names.close()
    with pytest.raises(RetrievalError, match="closed"):
        await names.resolve(str(Owner().name))
    assert not source.asked
