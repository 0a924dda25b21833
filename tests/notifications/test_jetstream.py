"""The feed over NATS JetStream: what is special to it. What all engines do alike is in test_engines.py."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import nats
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_stream_nb.errors import BadRequestError, BusyError, StoreError
from ipfs_stream_nb.notifications import jetstream_consumer, jetstream_link, jetstream_publisher
from ipfs_stream_nb.notifications.engine import EpochChangedError
from ipfs_stream_nb.notifications.events import MAX_EVENT, Event, NotificationType, Record
from ipfs_stream_nb.notifications.jetstream import STREAM, SUBJECT, JetStreamEngine
from ipfs_stream_nb.notifications.jetstream_wire import encoded, nothing, record_of
from nats_server import NatsServer, running

SECRET = "s3cr3t-of-the-feed"


@pytest.fixture
def server(tmp_path):
    with running(tmp_path / "nats") as found:
        yield found


@asynccontextmanager
async def opened(server, **options):
    engine = JetStreamEngine(server.url, **options)
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def by_hand(server):
    """Somebody else's connection, and what JetStream's own client can do with it."""
    client = await nats.connect(server.url)
    try:
        yield client, client.jetstream()
    finally:
        await client.close()


def event(tag, **options):
    return Event(NotificationType.CUSTOM_EVENT, {"tag": tag}, **options)


def tag(record):
    return record.message()["data"]["tag"]


async def test_two_servers_share_one_feed(server, follow):
    """Events of each reach the subscribers of both, in one order; so does what is announced."""
    async with opened(server) as one, opened(server) as other:
        followings = [follow(one), follow(other)]
        await asyncio.gather(*(engine.publish(event(i)) for i in range(300) for engine in (one, other)))
        for following in followings:
            await following.until(lambda records: len(records) == 600)
        await other.announce(event("now", owner="ann"))
        for following in followings:
            await following.until(lambda records: len(records) == 601)
        assert (
            followings[0].records
            == followings[1].records
            == [*await one.read(0, 600), followings[0].records[-1]]
        )
        assert [r.id for r in followings[0].records] == [*range(1, 601), 0]
        assert (tag(followings[0].records[-1]), followings[0].records[-1].owner) == ("now", "ann")


async def test_nothing_is_lost_or_twice_when_the_server_is_killed(server, follow):
    """Killed thrice while much is on its way: all that is published is there once, in the order of the calls, and a
    subscriber sees each once."""
    async with opened(server, timeout=30) as engine, opened(server) as other:
        following, far = follow(engine), follow(other)
        waiting = []
        for kill in range(3):
            for i in range(800):
                waiting.append(asyncio.create_task(engine.publish(event(kill * 800 + i))))
            await waiting[kill * 800 + 100]
            server.kill()
            assert not all(task.done() for task in waiting)
            await asyncio.to_thread(server.start)
        ids = await asyncio.gather(*waiting)
        assert ids == list(range(1, 2401))
        for reader in (following, far):
            await reader.until(lambda records: len(records) >= 2400)
            assert [r.id for r in reader.records] == ids
            assert [tag(r) for r in reader.records] == list(range(2400))


async def test_what_was_kept_but_not_acknowledged_is_not_kept_again(server):
    """A publication whose acknowledgement never came is sent again over the next connection, and is there once."""
    async with opened(server, timeout=30) as engine:
        deaf = engine._link.on_ack
        heard = asyncio.Event()
        engine._link.on_ack = lambda _number, _message: heard.set()
        publishing = asyncio.create_task(engine.publish(event("once")))
        await heard.wait()
        engine._link.on_ack = deaf
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        assert await publishing == 1
        assert (await engine.bounds()).last == 1


async def test_a_subscription_outlasts_a_restart_while_nothing_happens(server, follow):
    """What is published after a restart of the server comes to who subscribed before it, and what is announced too."""
    async with opened(server) as engine:
        following = follow(engine)
        await engine.publish(event(1))
        await following.until(lambda records: len(records) == 1)
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
        await engine.publish(event(2))
        await engine.announce(event(3))
        await following.until(lambda records: len(records) == 3)
        assert sorted(map(tag, following.records)) == [1, 2, 3]


async def test_an_outage_that_is_too_long(server):
    """Publishing, reading and announcing fail with a text while the server is away, and go on once it is back."""

    def wait_for(engine, seconds):
        engine._timeout = engine._link._timeout = engine._publisher.retry_seconds = seconds

    async with opened(server) as engine:
        await engine.publish(event(1))
        await asyncio.to_thread(server.kill)
        usual = engine._timeout
        # for the outage alone: a busy machine takes longer to make a stream or to acknowledge
        wait_for(engine, 0.3)
        with pytest.raises(StoreError, match=r"within 0\.3 s"):
            await engine.publish(event(2))
        with pytest.raises(StoreError, match=r"within 0\.3 s"):
            await engine.read(0, 10)
        with pytest.raises(StoreError, match="away"):
            await engine.announce(event(3))
        wait_for(engine, usual)
        await asyncio.to_thread(server.start)
        assert await engine.publish(event(4)) == 2
        assert [tag(r) for r in await engine.read(0, 10)] == [1, 4]


async def test_too_much_waits(server, monkeypatch):
    """While the server is away, what waits is bounded: one more gets BusyError; what waited is kept afterwards."""
    monkeypatch.setattr(jetstream_publisher, "MAX_WAITING", 5)
    async with opened(server, timeout=20) as engine:
        await asyncio.to_thread(server.kill)
        waiting = [asyncio.create_task(engine.publish(event(i))) for i in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="5 events"):
            await engine.publish(event(6))
        await asyncio.to_thread(server.start)
        assert await asyncio.gather(*waiting) == [1, 2, 3, 4, 5]
        assert await engine.publish(event(6)) == 6


async def test_a_deleted_stream_is_another_epoch(server, follow):
    """Subscriptions to it end with EpochChangedError; the next call makes the stream anew, and says so once."""
    async with opened(server) as engine, by_hand(server) as (_client, jetstream):
        following = follow(engine)
        await engine.publish(event(1))
        await following.until(lambda records: len(records) == 1)
        before = await engine.bounds()
        await jetstream.delete_stream(STREAM)
        assert await engine.publish(event(2)) == 1
        with pytest.raises(EpochChangedError):
            await asyncio.wait_for(following.task, 30)
        after = await engine.bounds()
        assert before.epoch != after.epoch
        assert after.epoch.isalnum()
        assert (after.first, after.last) == (1, 1)
        assert [tag(r) for r in await engine.read(0, 10)] == [2]
        assert len(engine.take_setbacks()) == 1
        assert engine.take_setbacks() == []


async def test_a_stream_of_another_epoch_that_is_longer(server):
    """Who reads on only once the new stream has more events than it was given of the old one is not given those."""
    async with opened(server) as engine, by_hand(server) as (_client, jetstream):
        await engine.publish(event(1))
        async with aclosing(engine.subscribe(0)) as batches:
            assert [tag(r) for r in await anext(batches)] == [1]
            await jetstream.delete_stream(STREAM)
            for i in range(3):
                await engine.publish(event(i))
            with pytest.raises(EpochChangedError, match="made anew"):
                await anext(batches)


async def test_many_make_the_stream_at_once(server):
    """Servers that start together, and find no stream, share the one that one of them makes."""
    engines = [JetStreamEngine(server.url) for _ in range(8)]
    try:
        await asyncio.gather(*(engine.open() for engine in engines))
        assert len({(await engine.bounds()).epoch for engine in engines}) == 1
    finally:
        for engine in engines:
            await engine.close()


async def test_an_epoch_lasts(server):
    """The epoch and the events are the same after a restart of the server, and for every engine."""
    async with opened(server) as engine:
        await engine.publish(event(1))
        before = await engine.bounds()
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)
    async with opened(server) as engine:
        assert await engine.bounds() == before
        assert engine.take_setbacks() == []


JUNK = [
    b"",
    b"hello",
    b"\xff\xfe{\x00}\x00",
    b"[]",
    b"{}",
    b'{"type":"notification","notification_type":"custom_event","data":{},"timestamp":NaN}',
    b'{"type":"notification","notification_type":"all_events","data":{},"timestamp":1}',
    b'{"type":"notification","notification_type":"custom_event","data":{},"timestamp":1,"id":7}',
    b'{"type":"notification","notification_type":"custom_event","data":{},\n"timestamp":1}',
    b'{"type":"notification","notification_type":"custom_event","data":' + b'{"a":' * 10_000,
]
GOOD = b'{"type":"notification","notification_type":"custom_event","data":{"tag":"theirs"},"timestamp":1}'


async def test_junk_on_the_subject(server, follow):
    """What is no event keeps its id and is nothing that anybody may see; another program's event is one; an owner that
    cannot be read hides the event."""
    async with opened(server) as engine, by_hand(server) as (client, jetstream):
        following = follow(engine)
        await engine.publish(event("first"))
        for junk in JUNK:
            await jetstream.publish(SUBJECT, junk)
        await jetstream.publish(SUBJECT, GOOD, headers={"Ipfs-Stream-Nb-Owner": "ann"})
        await jetstream.publish(SUBJECT, GOOD, headers={"Ipfs-Stream-Nb-Owner": "5"})
        await jetstream.publish(SUBJECT, b"", headers={"Status": "409", "Description": "Consumer Deleted"})
        await jetstream.publish(SUBJECT, GOOD)
        await client.publish("ipfs_stream_nb.live", b"junk")
        last = await engine.publish(event("last"))
        await following.until(lambda records: len(records) == last)
        assert [r.id for r in following.records] == list(range(1, last + 1))
        assert [tag(r) for r in following.records if r.notification_type] == ["first", "theirs", "last"]
        assert following.records == await engine.read(0, 100) == await engine.read_back(last + 1, 100)
        assert following.records[1] == nothing(2)
        json.loads(following.records[1].encode(1))


async def test_what_was_deleted_from_the_middle(server, follow):
    """Its ids are there with nothing in them, for who reads and who subscribes; what was purged in front is not."""
    async with opened(server) as engine, by_hand(server) as (_client, jetstream):
        for i in range(1, 11):
            await engine.publish(event(i))
        await jetstream.purge_stream(STREAM, seq=5)
        for seq in (6, 7, 10):
            await jetstream.delete_msg(STREAM, seq)
        await engine.publish(event(11))
        following = follow(engine)
        await following.until(lambda records: len(records) == 7)
        assert [r.id for r in following.records] == list(range(5, 12))
        assert [tag(r) for r in following.records if r.notification_type] == [5, 8, 9, 11]
        assert [r for r in following.records if not r.notification_type] == [
            nothing(6),
            nothing(7),
            nothing(10),
        ]
        assert following.records == await engine.read(0, 100)
        assert [r.id for r in await engine.read(5, 2)] == [6, 7]
        assert [r.id for r in await engine.read_back(11, 3)] == [8, 9, 10]


async def test_a_subscriber_that_the_log_overtakes(server, monkeypatch):
    """It holds one request's events while it does not read; behind them it goes on with the oldest that there is."""
    monkeypatch.setattr(jetstream_consumer, "BATCH", 50)
    async with opened(server, max_events=100) as engine:
        async with aclosing(engine.subscribe(0)) as batches:
            await engine.publish(event(1))
            ids = [r.id for r in await anext(batches)]
            assert ids == [1]
            await asyncio.gather(*(engine.publish(event(i)) for i in range(1000)))
            while ids[-1] < 1001:
                ids += [r.id for r in await anext(batches)]
        assert ids == sorted(set(ids))
        assert ids[-100:] == list(range(902, 1002))
        assert len(ids) <= 150
        assert (await engine.bounds()).first == 902


async def test_limits(server):
    """The limits of a stream of ours follow the settings at the next opening; those of one made by hand stay."""
    async with opened(server, max_events=100) as engine:
        await asyncio.gather(*(engine.publish(event(i)) for i in range(50)))
    async with opened(server, max_events=10) as engine:
        assert (await engine.bounds()).first == 41
    async with by_hand(server) as (_client, jetstream):
        await jetstream.add_stream(name="BY_HAND", subjects=["by.hand"], max_msgs=7)
        async with opened(server, stream="BY_HAND", subject="by.hand", max_events=100) as engine:
            await asyncio.gather(*(engine.publish(event(i)) for i in range(9)))
            assert (await engine.bounds()).first == 3


async def test_another_stream_under_the_name(server):
    """A stream that is not the feed's is refused with what is wrong with it, and so is a subject that another one has."""
    async with by_hand(server) as (_client, jetstream):
        await jetstream.add_stream(name=STREAM, subjects=["orders.*"], retention="workqueue")
        with pytest.raises(StoreError, match=r"orders.*retention is 'workqueue'"):
            await JetStreamEngine(server.url).open()
        with pytest.raises(StoreError, match="subjects overlap"):
            await JetStreamEngine(server.url, stream="MINE", subject="orders.new").open()


async def test_too_large_for_the_server(tmp_path):
    """An event that the server does not take fails alone, with a text."""
    with running(tmp_path / "nats", config="max_payload: 2000") as server:
        async with opened(server) as engine:
            with pytest.raises(StoreError, match="cannot be sent"):
                await engine.publish(event("x" * 5000))
            with pytest.raises(StoreError, match="cannot be sent"):
                await engine.announce(event("x" * 5000))
            assert await engine.publish(event(1)) == 1


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:4222",
        "http://localhost:4222",
        "nats://",
        f"nats://ann:{SECRET}@host:port",
        "nats://[::1",
        [],
    ],
)
async def test_bad_addresses(url):
    """What is no address of a NATS server gets an error that shows one, and nothing of what was given."""
    with pytest.raises(StoreError, match="nats://localhost:4222") as error:
        await JetStreamEngine(url).open()
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"stream": "a.b"},
        {"subject": "a.*"},
        {"subject": ">"},
        {"live_subject": SUBJECT},
        {"max_events": 0},
        {"max_bytes": -1},
        {"max_age": 0},
        {"timeout": float("nan")},
        {"replicas": 0},
    ],
)
def test_bad_settings(options):
    """Names and numbers that JetStream does not take, and one subject for both, are refused at once and named."""
    with pytest.raises(BadRequestError, match=f"{next(iter(options))}|name a stream|subject"):
        JetStreamEngine("nats://localhost:4222", **options)


async def test_the_server_is_away_at_open(server):
    """The error names the address, without the password in it, and says what to do."""
    await asyncio.to_thread(server.kill)
    url = server.url.replace("//", f"//ann:{SECRET}@")
    with pytest.raises(StoreError, match=f"127.0.0.1:{server.port}.*nats-server -js") as error:
        await JetStreamEngine(url).open()
    assert SECRET not in str(error.value)


async def test_jetstream_is_off(tmp_path):
    """A server without JetStream gets an error that says how to have it."""
    with (
        running(tmp_path / "nats", jetstream=False) as server,
        pytest.raises(StoreError, match="nats-server -js"),
    ):
        await JetStreamEngine(server.url).open()


async def test_credentials(tmp_path, caplog):
    """The right ones do, each kind of them; wrong ones get an error with what to do, and stand in no error and no log."""
    caplog.set_level(logging.DEBUG)
    for config, right in (
        (f'authorization {{ user: ann, password: "{SECRET}" }}', {"user": "ann", "password": SECRET}),
        (f'authorization {{ token: "{SECRET}" }}', {"token": SECRET}),
    ):
        with running(tmp_path / "nats", config=config) as server:
            async with opened(server, **right) as engine:
                assert await engine.publish(event(1)) == 1
            for wrong in ({}, {"token": f"{SECRET}!"}, {"user": "ann", "password": f"{SECRET}!"}):
                with pytest.raises(StoreError, match="not take the credentials") as error:
                    await JetStreamEngine(server.url, **wrong).open()
                assert SECRET not in f"{error.value}{error.value.__cause__}"
    assert SECRET not in caplog.text


async def test_a_credentials_file(tmp_path):
    """A user's JWT and seed let in; a file that is not there, or is none, gets an error that says what it should be."""
    config, credentials = operator_mode(tmp_path)
    with running(tmp_path / "nats", config=config) as server:
        async with opened(server, credentials=credentials) as engine:
            assert await engine.publish(event(1)) == 1
        with pytest.raises(StoreError, match="cannot be read"):
            await JetStreamEngine(server.url, credentials=tmp_path / "missing").open()
        (tmp_path / "none").write_text("hello")
        with pytest.raises(StoreError, match="nsc generate creds"):
            await JetStreamEngine(server.url, credentials=tmp_path / "none").open()


async def test_credentials_that_become_wrong(tmp_path, monkeypatch):
    """While the server refuses them the feed waits; it goes on once they are right again."""
    told = []
    with running(tmp_path / "nats", config='authorization { token: "a" }') as server:
        async with opened(server, token="a", timeout=20) as engine:
            await asyncio.to_thread(server.kill)
            config = server._config.read_text()
            server._config.write_text(config.replace('"a"', '"b"'))
            refused = asyncio.Event()
            monkeypatch.setattr(
                jetstream_link.log, "warning", lambda text, *args: told.append(text % args) or refused.set()
            )
            await asyncio.to_thread(server.start)
            publishing = asyncio.create_task(engine.publish(event(1)))
            async with asyncio.timeout(10):
                await refused.wait()
            assert not publishing.done()
            await asyncio.to_thread(server.kill)
            server._config.write_text(config)
            await asyncio.to_thread(server.start)
            assert await publishing == 1
            assert any("not take the credentials" in text for text in told)


async def test_several_addresses(server):
    """One of them that answers is enough."""
    engine = JetStreamEngine(f"nats://127.0.0.1:1,{server.url}")
    await engine.open()
    assert await engine.publish(event(1)) == 1
    await engine.close()


async def test_without_nats_py(monkeypatch):
    """The error says which extra is to be installed."""
    monkeypatch.setitem(sys.modules, "nats.aio.client", None)
    with pytest.raises(StoreError, match=r"ipfs_stream_nb\[jetstream\]"):
        await JetStreamEngine("nats://localhost:4222").open()


@pytest.mark.parametrize("away", [False, True])
async def test_close_leaves_nothing(server, away, follow):
    """Subscriptions end, no task is left, and closing again does nothing; also while the server is away."""
    before = asyncio.all_tasks()
    async with opened(server, timeout=5) as engine:
        following = follow(engine)
        publishing = [asyncio.create_task(engine.publish(event(i))) for i in range(10)]
        await following.until(lambda records: len(records) == 10)
        await asyncio.gather(*publishing)
        if away:
            lost = asyncio.Event()
            engine._link.on_down.add(lost.set)
            await asyncio.to_thread(server.kill)
            await lost.wait()
    await following.task
    await engine.close()
    assert asyncio.all_tasks() == before
    with pytest.raises(StoreError, match="closed"):
        await engine.publish(event(1))
    with pytest.raises(StoreError, match="closed"):
        await engine.bounds()


async def test_close_commits_what_is_being_published(server):
    """What was called before the close is acknowledged."""
    async with opened(server) as engine:
        publishing = [asyncio.create_task(engine.publish(event(i))) for i in range(1000)]
        await asyncio.sleep(0)
    assert await asyncio.gather(*publishing) == list(range(1, 1001))


texts = st.text(max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


@given(
    st.sampled_from(NotificationType).filter(lambda kind: kind is not NotificationType.ALL_EVENTS),
    st.dictionaries(texts, values, max_size=3),
    st.none() | texts,
    st.none() | st.text(st.characters(codec="utf-8"), max_size=30),
    st.sampled_from(["notification", "system_notification"]),
)
def test_every_event_comes_back(kind, data, source, owner, sort):
    """An event is the same after it was a message, its owner included, whatever characters it has."""
    given_event = Event(kind, data, source, owner, sort)
    payload, headers = encoded(given_event)
    assert record_of(5, payload, headers) == Record.of(given_event, 5)
    assert all(text.isascii() and text == text.strip() and "\n" not in text for text in headers.values())


mostly = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["notification", "system_notification", "error"]) | values,
        "notification_type": st.sampled_from(["custom_event", "all_events", ""]) | values,
        "data": st.dictionaries(texts, values, max_size=2) | values,
        "timestamp": st.floats() | values,
    },
    optional={"source": values, "id": values},
)


@given(
    st.binary(max_size=50) | (values | mostly).map(lambda value: json.dumps(value).encode()),
    st.none() | texts,
)
def test_whatever_is_on_the_subject(payload, owner):
    """Any message is an event that subscribers can parse, or nothing; no message raises."""
    record = record_of(3, payload, None if owner is None else {"Ipfs-Stream-Nb-Owner": owner})
    message = json.loads(record.encode(2), parse_constant=pytest.fail)
    assert (message["id"], message["prev"]) == (3, 2)
    if record != nothing(3):
        assert message["notification_type"] == record.notification_type in set(NotificationType)
        assert record == replace(record, kind=message["type"], timestamp=message["timestamp"])
        assert isinstance(message["data"], dict)
        assert len(payload) <= MAX_EVENT


def operator_mode(folder):
    """A server's configuration with one account that has JetStream, and a credentials file of a user of it."""
    import base64  # noqa: PLC0415

    import nkeys  # noqa: PLC0415
    from nacl.signing import SigningKey  # noqa: PLC0415

    def pair(prefix):
        return nkeys.from_seed(nkeys.encode_seed(bytes(SigningKey.generate()), prefix))

    def text(raw):
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    def jwt(signer, subject, claims):
        issuer = signer.public_key.decode()
        body = {
            "jti": "x",
            "iat": 1,
            "iss": issuer,
            "sub": subject.public_key.decode(),
            "name": "x",
            "nats": claims,
        }
        head = (
            text(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())
            + "."
            + text(json.dumps(body).encode())
        )
        return f"{head}.{text(signer.sign(head.encode()))}"

    operator, account, user = (
        pair(kind) for kind in (nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_USER)
    )
    names = (
        "subs",
        "data",
        "payload",
        "imports",
        "exports",
        "conn",
        "leaf",
        "mem_storage",
        "disk_storage",
        "streams",
    )
    limits = dict.fromkeys((*names, "consumer"), -1) | {"wildcards": True}
    system = pair(nkeys.PREFIX_BYTE_ACCOUNT)
    no_streams = limits | {"mem_storage": 0, "disk_storage": 0}
    system_jwt = jwt(operator, system, {"limits": no_streams, "type": "account", "version": 2})
    account_jwt = jwt(operator, account, {"limits": limits, "type": "account", "version": 2})
    user_limits = {"subs": -1, "data": -1, "payload": -1}
    user_jwt = jwt(account, user, {**user_limits, "pub": {}, "sub": {}, "type": "user", "version": 2})
    path = folder / "user.creds"
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    operator_jwt = jwt(operator, operator, {"type": "operator", "version": 2})
    name, system_name = account.public_key.decode(), system.public_key.decode()
    config = (
        f"operator: {operator_jwt}\nsystem_account: {system_name}\nresolver: MEMORY\n"
        f"resolver_preload: {{ {name}: {account_jwt}, {system_name}: {system_jwt} }}\n"
    )
    return config, path


def test_the_server_needs_its_program(tmp_path, monkeypatch):
    """Where nats-server cannot be had, the tests say so and are passed over."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="nats-server"):
        NatsServer(tmp_path)
