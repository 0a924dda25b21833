"""Notifications of a real Jupyter server: sockets, server-sent events, rights, tokens, limits and what clients send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from http import HTTPStatus

import aiohttp
import pytest
from jupyter_server.auth import IdentityProvider, User
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ipfs_stream_nb import __version__
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.notifications import manager
from ipfs_stream_nb.notifications.subscriber import MAX_QUEUED_BYTES
from ipfs_stream_nb.security.access import AccessPolicy, Action
from ipfs_stream_nb_server.handlers.notifications import NotificationSocket

SECONDS = 20


def dial(server, path="ws/notifications", headers=None, **options):
    """A client of the `websockets` library, with Jupyter's token unless other headers are given."""
    headers = {"Authorization": f"token {server.token}"} if headers is None else headers
    return connect(
        f"ws://127.0.0.1:{server.port}/a%40b/{path}",
        additional_headers=headers,
        proxy=None,
        compression=None,
        open_timeout=SECONDS,
        **options,
    )


async def hear(link, kind=None):
    """The next message, of this type where one is named."""
    async with asyncio.timeout(SECONDS):
        while True:
            message = json.loads(await link.recv())
            if kind is None or message["type"] == kind:
                return message


async def say(link, action, **fields):
    await link.send(json.dumps({"action": action} | fields))


@contextlib.asynccontextmanager
async def subscribed(
    server, types=("custom_event",), headers=None, path="ws/notifications", max_size=1 << 20, **fields
):
    """A socket that is subscribed."""
    async with dial(server, path, headers, max_size=max_size) as link:
        welcome = await hear(link, "welcome")
        await say(link, "subscribe", notification_types=list(types), **fields)
        link.confirmed = await hear(link, "subscription_confirmed")
        link.welcome = welcome
        yield link


async def emit(server, data=None, **fields):
    """POST an event."""
    return await server.json("POST", "ipfs-stream/events", json={"data": data or {}} | fields)


async def sse(answer, count):
    """So many events of an answer, as (event, data, id)."""
    found, buffer = [], ""
    async with asyncio.timeout(SECONDS):
        while len(found) < count:
            buffer += (await answer.content.readany()).decode()
            *blocks, buffer = buffer.split("\n\n")
            for block in blocks:
                fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
                if "data" in fields:
                    found.append(
                        (fields.get("event", "message"), json.loads(fields["data"]), fields.get("id"))
                    )
    return found


async def test_an_event_from_a_client_to_another(server):
    """What is POSTed is committed, has an id, and reaches who is subscribed, by socket and as server-sent events."""
    async with (
        subscribed(server) as link,
        server.request("GET", "sse/notifications?types=custom_event") as stream,
    ):
        assert stream.headers["Content-Type"] == "text/event-stream"
        assert stream.headers["X-Accel-Buffering"] == "no"
        (welcome, confirmed) = await sse(stream, 2)
        assert welcome[0] == "welcome"
        assert confirmed[0] == "subscription_confirmed"
        since = confirmed[1]["since"]  # a busy server may have told that it is since the other's
        assert confirmed[2] == f"{link.confirmed['epoch']}-{since}"
        told = await emit(server, {"n": 1}, source="test")
        event = await hear(link, "notification")
        assert event["id"] == told["id"] > since
        assert event["data"] == {"n": 1}
        assert event["source"] == "test"
        ((name, data, cursor),) = await sse(stream, 1)
        assert (name, cursor) == ("message", f"{told['epoch']}-{told['id']}")
        assert data | {"prev": since} == event | {"prev": since}  # each has its own
        health = await server.json("GET", "ipfs-stream/health")
        assert health["active"]["subscribers"] == 2
    async with asyncio.timeout(SECONDS):
        while server.context.subscribers.active:  # noqa: ASYNC110  # it has no event to await from outside
            await asyncio.sleep(0.01)


async def test_server_sent_events_resume(server):
    """`Last-Event-ID` and `since` bring what came after them, with the filter that the query gives."""
    many = await server.json(
        "POST", "ipfs-stream/events", json={"events": [{"data": {"n": n}} for n in range(10)]}
    )
    first = many["ids"][0]
    assert many["ids"] == list(range(first, first + 10))
    path = 'sse/notifications?types=custom_event&filters={"n":{"gte":7}}'
    for extra in ({"headers": {"Last-Event-ID": f"{many['epoch']}-{first}"}}, None):
        query = path if extra else f"{path}&since={many['epoch']}-{first}"
        async with server.request("GET", query.replace('"', "%22"), **(extra or {})) as stream:
            events = await sse(stream, 5)
            assert [data["data"]["n"] for name, data, _ in events if name == "message"] == [7, 8, 9]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("types=nonsense", HTTPStatus.BAD_REQUEST),
        ("filters=[", HTTPStatus.BAD_REQUEST),
        ("filters=[]", HTTPStatus.BAD_REQUEST),
        ("since=x", HTTPStatus.BAD_REQUEST),
    ],
)
async def test_bad_queries(server, query, status):
    """What is wrong with a query is an answer in JSON before the stream begins."""
    body = await server.json("GET", f"sse/notifications?{query}", status)
    assert body["code"] == "bad_request"
    assert server.context.subscribers.active == 0


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"[]", "JSON object"),
        (b'{"data": 5}', "data is missing"),
        (b"{}", "data is missing"),
        (b'{"data": {}, "source": 5}', "source is text"),
        (b'{"data": {}, "x": 5}', "unknown field 'x'"),
        (b'{"data": {}, "notification_type": "nonsense"}', "no notification type"),
        (b'{"data": {}, "notification_type": "all_events"}', "for subscribing"),
        (b'{"data": {}, "notification_type": ["a"]}', "no notification type"),
        (b'{"events": {}}', "events is a list"),
        (b'{"events": [], "data": {}}', "stands alone"),
        (b'{"events": [5]}', "an event is a JSON object"),
        (b'{"data": {"x": NaN}}', "finite"),
        (b'{"data": {}, "keep": 1}', "keep and private are true or false"),
        (b'{"data": {}, "private": 1}', "keep and private are true or false"),
    ],
)
async def test_bad_events(server, body, text):
    """What is no event is refused with the reason, and nothing of it is kept."""
    answer = await server.json("POST", "ipfs-stream/events", 400, data=body)
    assert text in answer["error"]
    assert server.context.feed.manager.get_metrics()["notifications_lost"] == 0


async def test_an_event_that_is_not_to_be_kept(server):
    """It reaches who is subscribed, and has no id."""
    async with subscribed(server) as link:
        assert (await emit(server, {"n": 1}, keep=False))["id"] is None
        event = await hear(link, "notification")
        assert "id" not in event
        await say(link, "get_history", notification_type="custom_event")
        assert (await hear(link, "history"))["count"] == 0


async def test_the_order_of_a_batch(server):
    """What is kept and what is not reach a subscriber in the order in which they stand in one request."""
    events = [{"data": {"n": n}, "keep": n % 3 > 0} for n in range(60)]
    async with subscribed(server) as link:
        await server.json("POST", "ipfs-stream/events", json={"events": events})
        assert [(await hear(link, "notification"))["data"]["n"] for _ in events] == list(range(60))


async def test_types_that_nobody_sends(server):
    """Metrics and WebRTC events are this package's alone to send."""
    for kind in ("system_metrics", "webrtc_error"):
        answer = await server.json(
            "POST", "ipfs-stream/events", 403, json={"data": {}, "notification_type": kind}
        )
        assert kind in answer["error"]
    assert (await emit(server, {"message": "x"}, notification_type="system_info"))["id"]


async def test_no_credential(server):
    """Neither route opens without a credential, nor with another action's token."""
    body = {"action": "add"}
    token = (await server.json("POST", "ipfs-stream/tokens", json=body))["token"]
    for path in ("ws/notifications", "ws/metrics", f"ws/notifications?token={token}"):
        with pytest.raises(InvalidStatus) as refused:
            async with dial(server, path, {}):
                pass
        assert refused.value.response.status_code == HTTPStatus.FORBIDDEN
    async with server.anonymous("GET", "sse/notifications") as answer:
        assert answer.status == HTTPStatus.FORBIDDEN


async def test_a_capability_token(server):
    """A token for some types opens a socket that sees these, and no others by all_events, by history or by metrics."""
    body = {"action": "subscribe", "notification_types": ["custom_event"]}
    token = (await server.json("POST", "ipfs-stream/tokens", json=body))["token"]
    path = f"ws/notifications?token={token}"
    async with subscribed(server, ["all_events"], {}, path) as link:
        assert link.confirmed["notification_types"] == ["custom_event"]
        assert "system_info" in link.confirmed["unauthorized_types"]
        await emit(server, {}, notification_type="system_info")
        told = await emit(server, {})
        assert (await hear(link, "notification"))["id"] == told["id"]
        await say(link, "get_history")
        kinds = {event["notification_type"] for event in (await hear(link, "history"))["events"]}
        assert kinds == {"custom_event"}
    async with dial(server, f"ws/metrics?token={token}", {}) as link:
        assert (await hear(link))["code"] == "unauthorized"
        with pytest.raises(ConnectionClosed):
            await hear(link)
        assert link.close_code == 1008
    async with server.anonymous("POST", f"ipfs-stream/events?token={token}", json={"data": {}}) as answer:
        assert answer.status == HTTPStatus.FORBIDDEN


async def test_a_token_that_ends(server):
    """Nothing more comes once the token has expired, by socket or as server-sent events."""
    body = {"action": "subscribe", "ttl": 6}  # time enough to use it on a busy machine
    token = (await server.json("POST", "ipfs-stream/tokens", json=body))["token"]
    async with (
        subscribed(server, headers={}, path=f"ws/notifications?token={token}") as link,
        server.anonymous("GET", f"sse/notifications?token={token}") as stream,
    ):
        with pytest.raises(ConnectionClosed):
            await hear(link, "notification")
        assert (link.close_code, link.close_reason) == (1008, "the capability token has expired")
        with contextlib.suppress(aiohttp.ClientPayloadError):
            async with asyncio.timeout(SECONDS):
                await stream.read()
    await subscribers_are(server, 0)


async def test_metrics(server):
    """Everybody who listens gets the same metrics, once a second; who subscribes to system_metrics gets the event."""
    async with dial(server, "ws/metrics") as one, dial(server, "ws/metrics") as other:
        first = await hear(one, "metrics")
        assert set(first["metrics"]) >= {"process", "system", "disk", "active", "event_loop"}
        theirs = await hear(other, "metrics")
        while theirs["timestamp"] < first["timestamp"]:
            theirs = await hear(other, "metrics")
        while first["timestamp"] < theirs["timestamp"]:
            first = await hear(one, "metrics")
        assert first == theirs
    async with subscribed(server, ["system_metrics"]) as link:
        event = await hear(link, "notification")
        assert set(event["data"]) >= {"process", "system"}
        assert "id" not in event
        await say(link, "get_history", notification_type="system_metrics")
        assert (await hear(link, "history"))["events"] == []


class Named(IdentityProvider):
    """Knows its users, by a header of the test."""

    async def get_user(self, handler):
        name = handler.request.headers.get("X-User")
        return User(name) if name else None

    def is_token_authenticated(self, handler):
        return True


class Team(AccessPolicy):
    """Ada is the admin; Eve may not subscribe."""

    async def allows(self, user, action, cid):
        return user != "eve" or action is not Action.SUBSCRIBE

    async def role(self, user):
        return "admin" if user == "ada" else "user"

    async def permissions(self, user):
        return {}


@pytest.mark.parametrize(
    "server_config",
    [
        {
            "ServerApp": {"identity_provider_class": Named},
            "IPFSStreamExtension": {"access_policy_class": Team},
        }
    ],
)
async def test_users(server):
    """Where the server knows its users, one's events are not another's, nor the system's a plain user's."""
    async with (
        subscribed(server, ["all_events"], {"X-User": "ada"}) as ada,
        subscribed(server, ["all_events"], {"X-User": "bob"}) as bob,
    ):
        assert "system_error" in bob.confirmed["unauthorized_types"]
        assert "webrtc_error" in ada.confirmed["unauthorized_types"]
        async with server.anonymous(
            "POST", "ipfs-stream/events", json={"data": {"n": 1}, "private": True}, headers={"X-User": "ada"}
        ) as answer:
            assert answer.status == HTTPStatus.OK, await answer.text()
        async with server.anonymous(
            "POST", "ipfs-stream/events", json={"data": {"n": 2}, "private": True}, headers={"X-User": "bob"}
        ) as answer:
            assert answer.status == HTTPStatus.OK
        async with server.anonymous(
            "POST",
            "ipfs-stream/events",
            json={"data": {}, "notification_type": "content_added"},
            headers={"X-User": "bob"},
        ) as answer:
            assert answer.status == HTTPStatus.FORBIDDEN
        assert (await hear(bob, "notification"))["data"] == {"n": 2}
        await say(bob, "get_history")
        assert [e["data"] for e in (await hear(bob, "history"))["events"]] == [{"n": 2}]
        seen = await hear(ada, "notification")
        while seen["notification_type"] != "custom_event":
            seen = await hear(ada, "notification")
        assert seen["data"] == {"n": 1}
        async with server.anonymous(
            "POST", "ipfs-stream/events", json={"data": {"n": 3}}, headers={"X-User": "bob"}
        ) as answer:
            assert answer.status == HTTPStatus.OK
        for link in (ada, bob):  # a message is for everybody
            seen = await hear(link, "notification")
            while seen["notification_type"] != "custom_event":  # Ada sees the metrics of each second, too
                seen = await hear(link, "notification")
            assert seen["data"] == {"n": 3}
    with pytest.raises(InvalidStatus) as refused:
        async with dial(server, headers={"X-User": "eve"}):
            pass
    assert refused.value.response.status_code == HTTPStatus.FORBIDDEN


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"max_subscribers": 2}}])
async def test_the_limit_of_subscribers(server):
    """One more than the limit is refused with 503, by socket and as server-sent events; a place that is left is free."""
    async with subscribed(server), dial(server, "ws/metrics"):
        with pytest.raises(InvalidStatus) as refused:
            async with dial(server):
                pass
        assert refused.value.response.status_code == HTTPStatus.SERVICE_UNAVAILABLE
        assert (await server.json("GET", "sse/notifications", 503))["code"] == "busy"
    async with asyncio.timeout(SECONDS):
        while server.context.subscribers.active:  # noqa: ASYNC110  # see above
            await asyncio.sleep(0.01)
    async with subscribed(server):
        pass


async def test_the_log_outlives_the_server(start_server, tmp_path):
    """After a restart the ids go on, and a client gets what came before by its cursor."""
    async with start_server({}, tmp_path) as server:
        told = await emit(server, {"n": 1})
    async with start_server({}, tmp_path) as server:
        since = f"{told['epoch']}-{told['id'] - 1}"
        async with subscribed(server, since=since) as link:
            assert link.confirmed["epoch"] == told["epoch"]
            assert (await hear(link, "notification"))["id"] == told["id"]
        assert (await emit(server, {"n": 2}))["id"] > told["id"]


async def test_a_log_that_cannot_be_opened(start_server, tmp_path):
    """A server whose log cannot be made starts all the same, serves content, and says why there are no notifications."""
    (tmp_path / "file").write_text("no directory")
    settings = {"IPFSStreamExtension": {"notifications_path": str(tmp_path / "file")}}
    async with start_server(settings, tmp_path) as server:
        assert await server.add(b"content")
        async with dial(server) as link:
            error = await hear(link)
            assert error["type"] == "error"
            assert str(tmp_path / "file") in error["error"]
        answer = await server.json("POST", "ipfs-stream/events", 503, json={"data": {}})
        assert str(tmp_path / "file") in answer["error"]


async def test_a_client_that_sends_no_command(server):
    """What is no command is told over the socket, which lives on."""
    async with dial(server) as link:
        await hear(link, "welcome")
        for message in (b"\x00", "[]", "{", '{"action":"nothing"}'):
            await link.send(message)
            assert (await hear(link))["code"] == "bad_request"
        await say(link, "ping")
        assert (await hear(link))["type"] == "pong"


def raw_subscriber(server):
    """A subscriber's socket that reads no more once it is subscribed, and answers no pings."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", server.port))
    client.sendall(
        f"GET /a%40b/ws/notifications?token={server.token} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {'A' * 22}==\r\n\r\n".encode()
    )
    command = b'{"action":"subscribe","notification_types":["custom_event"]}'
    client.sendall(bytes([0x81, 0x80 | len(command), 0, 0, 0, 0]) + command)
    heard = b""
    while b"subscription_confirmed" not in heard:
        heard += client.recv(1024)
    client.setblocking(False)
    return client


async def subscribers_are(server, count):
    """Wait until the server has so many."""
    async with asyncio.timeout(SECONDS):
        while server.context.subscribers.active != count:  # noqa: ASYNC110  # see above
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"subscriber_timeout": 1.0}}])
async def test_a_subscriber_that_never_reads(server):
    """It is closed after the time-out, its queue stays bounded, and the other one has every event meanwhile."""
    with contextlib.closing(await asyncio.to_thread(raw_subscriber, server)):
        async with subscribed(server, max_size=None) as link:
            stuck = next(iter(server.context.feed.manager.active_connections.values()))
            await subscribers_are(server, 2)
            for n in range(150):
                await emit(server, {"n": n, "text": "x" * 60_000})
                assert (await hear(link, "notification"))["data"]["n"] == n
                assert stuck._queued_bytes <= MAX_QUEUED_BYTES
            await subscribers_are(server, 1)
            await emit(server, {"n": 150})
            assert (await hear(link, "notification"))["data"]["n"] == 150


async def test_a_dead_peer(server, monkeypatch):
    """Who answers no ping is forgotten."""
    monkeypatch.setattr(NotificationSocket, "ping_interval", 0.2)
    monkeypatch.setattr(NotificationSocket, "ping_timeout", 0.2)
    with contextlib.closing(await asyncio.to_thread(raw_subscriber, server)):
        await subscribers_are(server, 1)
        await subscribers_are(server, 0)
        assert server.context.feed.manager.active_connections == {}
    # a busy machine answers later than in 0.2 s; Tornado takes no time-out that is longer than the interval
    monkeypatch.setattr(NotificationSocket, "ping_interval", 0.8)
    monkeypatch.setattr(NotificationSocket, "ping_timeout", 0.8)
    async with subscribed(server) as link:  # the library answers
        await asyncio.wait([asyncio.create_task(link.wait_closed())], timeout=1.8)
        await emit(server)
        assert await hear(link, "notification")


async def test_the_guides_ping(server, monkeypatch):
    """The server's own ping is a message with a timestamp, to sockets; event streams get a comment."""
    monkeypatch.setattr(manager, "PING_SECONDS", 0.1)
    await server.context.feed.ready()
    async with dial(server) as link, server.request("GET", "sse/notifications") as stream:
        ping = await hear(link, "ping")
        assert ping == {"type": "ping", "timestamp": ping["timestamp"]}
        text = ""
        async with asyncio.timeout(SECONDS):
            while ": ping\n\n" not in text:
                text += (await stream.content.readany()).decode()


async def test_what_the_server_tells_of_itself(server, monkeypatch):
    """That it has started; and an internal error of a request, without its text."""
    node = await server.node()

    async def fail(_path):
        raise RuntimeError("secret")

    monkeypatch.setattr(node, "stat", fail)
    async with subscribed(server, ["system_info", "system_error"], since=0) as link:
        started = await hear(link, "notification")
        assert started["data"] == {
            "event": "started",
            "message": "the server has started",
            "version": __version__,
            "node": "embedded",
        }
        assert started["source"] == "ipfs_stream_nb"
        path = f"ipfs-stream/stat/{CID.of(b'x')}"
        await server.json("GET", path, 500)
        error = (await hear(link, "notification"))["data"]
        assert error["operation"] == f"GET /a%40b/{path}"
        assert error["code"] == "internal"
        assert "secret" not in json.dumps(error)


async def test_a_store_that_cannot_be_opened(start_server, tmp_path):
    """Is told by a system_error with the reason; notifications have a place of their own."""
    settings = {"repo_path": "/dev/null/repo", "notifications_path": str(tmp_path / "log")}
    async with (
        start_server({"IPFSStreamExtension": settings}, tmp_path) as server,
        subscribed(server, ["system_error"]) as link,
    ):
        await server.json("GET", "ipfs-stream/health", 503)
        error = (await hear(link, "notification"))["data"]
        assert error["operation"] == "open the block store"
        assert "/dev/null/repo" in error["error"]
