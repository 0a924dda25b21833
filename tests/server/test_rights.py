"""Who may do what: every route, every credential, every refusal."""

from __future__ import annotations

import asyncio
import io
import logging
import re
import time
from typing import ClassVar

import jwt
import pytest
from jupyter_server.auth import Authorizer
from jupyter_server.base.handlers import JupyterHandler
from tornado import web

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.ipns.resolver import ResolvedName
from ipfs_stream_nb.security.access import AccessPolicy, Action
from ipfs_stream_nb.security.tokens import TokenSigner
from ipfs_stream_nb_server.handlers.base import IPFSHandler, access

A, B = CID.of(b"a"), CID.of(b"b")


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "eA==",
}
"""A WebSocket's handshake."""
POLICY_ASKED_LATER = ["GET ws/bidirectional: 101", "GET ws/webrtc: 101"]
"""What opens whatever the policy says, since that is asked about each command (test_sockets.py)."""


class DenyAll(Authorizer):
    """Jupyter's authorizer, saying no to our resource, and to whoever asks for another one."""

    def is_authorized(self, handler, user, action, resource):
        handler.application.asked.append((handler.request.method, action, resource))
        return False


class Recording(AccessPolicy):
    """Says no, and keeps what it was asked."""

    asked: ClassVar[list] = []

    async def allows(self, user, action, cid):
        self.asked.append((user, action, cid))
        return False


class NamesOfA:
    """All names stand for A."""

    async def resolve(self, _name):
        return ResolvedName(f"/ipfs/{A}/x", 60)

    async def close(self):
        pass


def requests_of(extension):
    """(method, path) for each method of each route of the extension."""
    for pattern, handler, *_ in extension.handlers:
        path = re.sub(r"\(.*?\)", str(A), pattern).removesuffix("/?").lstrip("/")
        assert re.fullmatch(pattern, f"/{path}"), f"give this test an example of {pattern}"
        for method in web.RequestHandler.SUPPORTED_METHODS:
            if getattr(handler, method.lower()) is not web.RequestHandler._unimplemented_method:
                yield method, path


async def unprotected(server, **kwargs):
    """The requests that are not refused with a 403 in JSON, when sent like this."""
    found = []
    for method, path in requests_of(server.extension):
        body = b"{}" if method in {"POST", "PUT"} else None
        sent = kwargs | ({"headers": kwargs.get("headers", {}) | UPGRADE} if path.startswith("ws/") else {})
        async with server.anonymous(method, path, data=body, **sent) as answer:
            is_json = answer.headers.get("Content-Type") == "application/json"
            if answer.status != 403 or not is_json or "Location" in answer.headers:
                found.append(f"{method} {path}: {answer.status}")
            elif method != "HEAD":
                error = await answer.json()
                assert (error["type"], error["code"]) == ("error", "unauthorized")
                assert error["error"] == error["message"]
    return found


async def test_every_route_refuses_without_a_credential(server):
    """No route of the extension answers anything but a JSON 403, no redirect, when nothing proves who asks."""
    assert len(list(requests_of(server.extension))) >= 13
    assert await unprotected(server) == []


@pytest.mark.parametrize("server_config", [{"ServerApp": {"allow_unauthenticated_access": False}}])
async def test_every_route_refuses_in_jupyters_strict_mode(server):
    """The same where Jupyter itself checks before the routes do; and it does not warn of our routes."""
    assert await unprotected(server) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "token wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic dTpw"},
        {"Cookie": "username-127-0-0-1=forged"},
    ],
)
async def test_every_route_refuses_a_wrong_credential(server, headers):
    """A wrong token, an empty one, another scheme or a forged cookie are no better than none."""
    assert await unprotected(server, headers=headers) == []


class Plain(web.RequestHandler):
    """A route that somebody forgot to protect."""

    def get(self):
        self.finish({"open": True})


class Undecorated(JupyterHandler):
    """One on Jupyter's base, without its decorators."""

    def get(self):
        self.finish({"open": True})


class Redirecting(JupyterHandler):
    """One that sends strangers to the login page."""

    @web.authenticated
    def get(self):
        self.finish({"open": True})


@pytest.mark.parametrize("handler", [Plain, Undecorated, Redirecting])
async def test_the_walk_finds_an_unprotected_route(server, handler):
    """A new handler that is not on our base fails the walk."""
    server.extension.handlers.append(("/ipfs-new", handler, {}))
    server.app.web_app.add_handlers(".*$", [("/a%40b/ipfs-new", handler)])
    assert len(await unprotected(server)) == 1


async def test_a_method_that_says_no_action_is_refused_to_everybody(server):
    """On our base, a method without @access is never run, with a body or without, whoever asks."""
    ran = []

    class Silent(IPFSHandler):
        def get(self):
            ran.append("get")

        def post(self):
            ran.append("post")

        @access(Action.STATUS)
        def put(self):
            self.send_json({})

    server.app.web_app.add_handlers(".*$", [("/a%40b/ipfs-new", Silent, {"context": server.context})])
    for method, body in [("GET", None), ("POST", b"x" * 100), ("POST", None)]:
        async with server.request(method, "ipfs-new", data=body) as answer:
            assert answer.status == 405
            assert "PUT" in (await answer.json())["error"]
    assert (await server.json("PUT", "ipfs-new")) == {}
    assert ran == []


@pytest.mark.parametrize("server_config", [{"ServerApp": {"authorizer_class": DenyAll}}])
async def test_jupyters_authorizer_is_asked_on_every_route(server):
    """With an authorizer that says no, every route is a 403; it is asked to read or write `ipfs`."""
    server.app.web_app.asked = asked = []
    assert await unprotected(server, headers={"Authorization": f"token {server.token}"}) == []
    assert len(asked) == len(list(requests_of(server.extension)))
    writes = [method for method, action, _ in asked if action == "write"]
    assert writes.count("GET") == 1  # the upload's handshake
    for method, action, resource in asked:
        assert resource == "ipfs"
        assert action == "write" or method in {"GET", "HEAD"}


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"access_policy_class": Recording}}])
async def test_the_access_policy_is_asked_on_every_route(server):
    """Each route asks the policy about its own action, and about the CID where it names one."""
    Recording.asked.clear()
    (await server.node()).names = NamesOfA()
    headers = {"Authorization": f"token {server.token}"}
    assert await unprotected(server, headers=headers) == POLICY_ASKED_LATER
    asked = [(str(action), cid) for _, action, cid in Recording.asked]
    assert sorted(asked, key=str) == sorted(
        [
            *[("read", A)] * 5,  # GET and HEAD of content, stat, ls, sources
            *[("read", A)] * 3,  # GET and HEAD of what is below a name, and what it stands for
            *[("read", A)] * 2,  # the stream, over WebSocket and as events
            *[("add", None)] * 3,
            ("remove", A),
            ("pin", A),
            ("unpin", A),
            ("list", None),
            ("gc", None),
            ("grant", None),
            *[("subscribe", None)] * 3,  # notifications by socket and as events, and metrics
            ("emit", None),
            *[("read", A)] * 3,  # WHEP
            *[("status", None)] * 7,  # health, and what is not there
        ],
        key=str,
    )


class OnlyGrant(AccessPolicy):
    """May ask for tokens, and read A."""

    async def allows(self, user, action, cid):
        return action is Action.GRANT or (action is Action.READ and cid == A)


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"access_policy_class": OnlyGrant}}])
async def test_a_token_grants_no_more_than_its_user_may(server):
    """Asking for a capability asks the policy about what it would be for."""
    await server.json("POST", "ipfs-stream/tokens", json={"action": "read", "cid": str(A)})
    for action, cid in [("read", B), ("pin", A)]:
        error = await server.json("POST", "ipfs-stream/tokens", 403, json={"action": action, "cid": str(cid)})
        assert str(cid) in error["error"]
    assert (
        "subscribe"
        in (await server.json("POST", "ipfs-stream/tokens", 403, json={"action": "subscribe"}))["error"]
    )


class Ordinary(AccessPolicy):
    """Nobody is an admin, or may see what WebRTC does."""

    async def role(self, user):
        return "user"

    async def permissions(self, user):
        return {}


async def types_granted(server, *status, **body):
    """The types of a token to subscribe, or the text of the refusal."""
    answer = await server.json("POST", "ipfs-stream/tokens", *status, json={"action": "subscribe", **body})
    return answer["error"] if status else server.context.signer.read(answer["token"]).types


async def test_a_token_to_subscribe(server):
    """It names no CID, and some types or none: without, and with all_events, it is for all that its user may see."""
    assert await types_granted(server) is None
    assert await types_granted(server, notification_types=None) is None
    assert await types_granted(server, notification_types=["all_events", "pin_added"]) is None
    assert await types_granted(server, notification_types="all_events") is None
    asked = ["system_error", "webrtc_error", "system_error"]
    assert await types_granted(server, notification_types=asked) == {"system_error", "webrtc_error"}


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"access_policy_class": Ordinary}}])
async def test_a_token_to_subscribe_grants_no_more_than_its_user_may_see(server):
    """Types that the policy's role and permissions do not give are refused by name; all_events is what they give."""
    asked = ["system_error", "pin_added", "webrtc_error"]
    refusal = await types_granted(server, 403, notification_types=asked)
    assert "system_error, webrtc_error" in refusal
    assert "pin_added" not in refusal
    assert await types_granted(server, notification_types=["pin_added"]) == {"pin_added"}
    assert await types_granted(server, notification_types=["all_events"]) is None


class ReadNothing(AccessPolicy):
    """Refuses to read."""

    async def allows(self, user, action, cid):
        return action is not Action.READ


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"access_policy_class": ReadNothing}}])
async def test_what_may_not_be_read_may_not_be_linked_to(server):
    """A directory of content that its maker may not read would be a way around the policy."""
    body = {"entries": {"a": str(A)}}
    assert "read" in (await server.json("POST", "ipfs-stream/directories", 403, json=body))["error"]


# credentials


async def login_cookie(server):
    """Jupyter's cookies, as a browser has them after the token was used once."""
    async with server.request("GET", "ipfs-stream/health") as answer:
        return "; ".join(f"{name}={morsel.coded_value}" for name, morsel in answer.cookies.items())


async def test_header_query_and_cookie(server):
    """Jupyter's token in the header or the query, and its cookie, open the routes."""
    cid = await server.add(b"hello")
    for headers, query in [
        ({"Authorization": f"token {server.token}"}, ""),
        ({"Authorization": f"Bearer {server.token}"}, ""),
        ({}, f"?token={server.token}"),
        ({"Cookie": await login_cookie(server)}, ""),
    ]:
        async with server.anonymous("GET", f"ipfs/{cid}{query}", headers=headers) as answer:
            assert (answer.status, await answer.read()) == (200, b"hello")


async def test_a_cookie_alone_changes_nothing(server):
    """A cross-site form can send the cookie: without Jupyter's XSRF token it is refused, with it not."""
    cookie = await login_cookie(server)
    async with server.anonymous("POST", "ipfs", data=b"x", headers={"Cookie": cookie}) as answer:
        assert answer.status == 403
        assert "_xsrf" in (await answer.json())["error"]
    async with server.anonymous("GET", "login") as answer:
        xsrf = answer.cookies["_xsrf"].coded_value
    headers = {"Cookie": f"{cookie}; _xsrf={xsrf}", "X-XSRFToken": xsrf}
    elsewhere = headers | {"Origin": "https://elsewhere.example"}
    async with server.anonymous("POST", "ipfs", data=b"x", headers=elsewhere) as answer:
        assert answer.status == 403
        error = await answer.json()
        assert error["code"] == "unauthorized"
        assert error["error"].startswith("cross-origin request refused")
    async with server.anonymous("POST", "ipfs", data=b"x", headers=headers) as answer:
        assert answer.status == 201


async def test_foreign_host_is_refused(server):
    """A page of another name that resolves to this machine (DNS rebinding) is refused, whatever it brings."""
    cid = await server.add(b"hello")
    token = (await server.json("POST", "ipfs-stream/tokens", json={"action": "read", "cid": cid}))["token"]
    for query in ("", f"?token={token}"):
        headers = {"Host": "evil.example", "Authorization": f"token {server.token}"}
        async with server.anonymous("GET", f"ipfs/{cid}{query}", headers=headers) as answer:
            assert answer.status == 403
            assert (await answer.json())["code"] == "unauthorized"


# capability tokens


@pytest.fixture
async def capability(server):
    """Content, and a token to read it."""
    cid = await server.add(b"hello")
    granted = await server.json("POST", "ipfs-stream/tokens", json={"action": "read", "cid": cid, "ttl": 60})
    assert time.time() + 50 < granted["expires"] <= time.time() + 60
    return cid, granted["token"]


async def test_a_capability_reads_its_cid(server, capability):
    """It opens what it names, and stat and ls of it; a page of any origin may show it; no login comes with it."""
    cid, token = capability
    async with server.anonymous(
        "GET", f"ipfs/{cid}?token={token}", headers={"Origin": "https://elsewhere.example"}
    ) as answer:
        assert (answer.status, await answer.read()) == (200, b"hello")
        assert "Set-Cookie" not in answer.headers
        assert answer.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
        assert answer.headers["Access-Control-Allow-Origin"] == "https://elsewhere.example"
    async with server.anonymous("GET", f"ipfs-stream/stat/{cid}?token={token}") as answer:
        assert (await answer.json())["size"] == 5


async def test_a_capability_opens_nothing_else(server, capability):
    """Not another CID, action or route of ours, nor anything of Jupyter's; not as a header either."""
    cid, token = capability
    for method, path in [
        ("GET", f"ipfs/{B}"),
        ("DELETE", f"ipfs/{cid}"),
        ("PUT", f"ipfs-stream/pins/{cid}"),
        ("DELETE", f"ipfs-stream/pins/{cid}"),
        ("GET", "ipfs-stream/pins"),
        ("GET", "ipfs-stream/health"),
        ("POST", "ipfs-stream/gc"),
        ("POST", "ipfs-stream/tokens"),
        ("POST", "ipfs"),
        ("GET", "api/status"),
        ("GET", "api/contents"),
        ("GET", "api/kernels"),
    ]:
        async with server.anonymous(method, f"{path}?token={token}") as answer:
            assert answer.status == 403, (method, path)
    async with server.anonymous("GET", f"ipfs/{cid}", headers={"Authorization": f"token {token}"}) as answer:
        assert answer.status == 403
    assert await server.json("GET", f"ipfs-stream/stat/{cid}")  # it is still there


async def test_a_refused_capability_says_why(server, capability):
    """An expired or changed token, or one for something else, is told apart in the error's text."""
    cid, token = capability
    expired = TokenSigner(server.extension.token_secret)
    old = expired.issue("ann", Action.READ, CID.parse(cid), 1)[0]
    foreign = TokenSigner(bytes(32)).issue("ann", Action.READ, CID.parse(cid))[0]
    await asyncio.sleep(expired_at(old) - time.time() + 0.05)  # a clock cannot be awaited otherwise
    for text, words in [(old, "expired"), (foreign, "not a valid"), (token[:-5] + "AAAAA", "not a valid")]:
        async with server.anonymous("GET", f"ipfs/{cid}?token={text}") as answer:
            assert answer.status == 403
            assert words in (await answer.json())["error"]


def expired_at(token):
    """When a token ends."""
    return jwt.decode(token, options={"verify_signature": False})["exp"]


async def test_a_wrong_capability_does_not_shut_out_a_cookie(server, capability):
    """Who is logged in anyway stays so: an old token in a page's URL does no harm."""
    cid, token = capability
    headers = {"Cookie": await login_cookie(server)}
    async with server.anonymous("GET", f"ipfs/{cid}?token={token[:-4]}AAAA", headers=headers) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"public_cache": True}}])
async def test_shared_caches_keep_nothing_that_came_with_a_credential(server, capability):
    """With public_cache, an answer that sets a cookie, or that a token in the URL opened, stays private."""
    cid, token = capability
    async with server.anonymous("GET", f"ipfs/{cid}?token={token}") as answer:
        assert answer.headers["Cache-Control"].startswith("private")
    async with server.request("GET", f"ipfs/{cid}") as answer:
        assert "Set-Cookie" in answer.headers
        assert answer.headers["Cache-Control"].startswith("private")
    headers = {"Cookie": await login_cookie(server)}
    async with server.anonymous("GET", f"ipfs/{cid}", headers=headers) as answer:
        assert "Set-Cookie" not in answer.headers
        assert answer.headers["Cache-Control"].startswith("public")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "action"),
        ({"action": "read"}, "cid"),
        ({"action": "fly", "cid": str(A)}, "'fly'"),
        ({"action": "add", "cid": str(A)}, "names no cid"),
        ({"action": ["read"], "cid": str(A)}, "action"),
        ({"action": "read", "cid": 5}, "cid"),
        ({"action": "read", "cid": "nonsense"}, "nonsense"),
        ({"action": "read", "cid": str(A), "ttl": 1e9}, "ttl"),
        ({"action": "read", "cid": str(A), "ttl": "60"}, "ttl"),
        ({"action": "read", "cid": str(A), "ttl": True}, "ttl"),
        ({"action": "read", "cid": str(A), "scope": "all"}, "'scope'"),
        ({"action": "subscribe", "cid": str(A)}, "names no cid"),
        ({"action": "add", "notification_types": []}, "names no notification types"),
        ({"action": "subscribe", "notification_types": []}, "empty"),
        ({"action": "subscribe", "notification_types": 5}, "notification_types"),
        ({"action": "subscribe", "notification_types": ["pin_added", "flown", 7]}, "'flown', '7'"),
        ({"action": "subscribe", "notification_types": ["all_events", None]}, "'null'"),
        ({"action": "emit"}, "'emit'"),
        ([], "object"),
    ],
)
async def test_bad_token_requests(server, body, words):
    """Each wrong request for a token is a 400 that names what is wrong."""
    error = await server.json("POST", "ipfs-stream/tokens", 400, json=body)
    assert words in error["error"]


async def test_a_body_that_is_no_json_or_too_long(server):
    """Text that is not JSON is a 400; more than 64 KiB is a 413, announced or not."""
    for text in (b"{", b"\xff", b"[" * 50_000):
        assert "JSON" in (await server.json("POST", "ipfs-stream/tokens", 400, data=text))["error"]
    for body in (b" " * 70_000, io.BytesIO(b" " * 70_000)):
        error = await server.json("POST", "ipfs-stream/tokens", 413, data=body)
        assert error["code"] == "too_large"

    async def chunks():
        for _ in range(20):
            yield b" " * 10_000

    assert (await server.json("POST", "ipfs-stream/tokens", 413, data=chunks()))["code"] == "too_large"


# logs


async def test_tokens_are_in_no_log(server, capability, caplog, monkeypatch):
    """Neither Jupyter's token nor a capability is written to any log, at any level, however its name is spelt,
    in requests that work, fail or crash."""
    cid, token = capability

    async def crash(*_args, **_kwargs):
        raise RuntimeError("secret of the house")

    with caplog.at_level(logging.DEBUG):
        for secret in (token, server.token):
            for name in ("token", "%74oken", "tok%65n"):
                for path in (f"ipfs/{cid}", "ipfs/nonsense", "ipfs-stream/unknown", "ipfs-stream/stat/x"):
                    async with server.anonymous(
                        "GET", f"{path}?a=1&{name}={secret}", headers={"Referer": f"http://x/?token={secret}"}
                    ) as answer:
                        await answer.read()
        monkeypatch.setattr("ipfs_stream_nb_server.handlers.content.respond", crash)
        async with server.anonymous("GET", f"ipfs/{cid}?%74oken={token}") as answer:
            assert answer.status == 500
            assert "secret of the house" not in await answer.text()
            assert (await answer.json())["code"] == "internal"
    assert "secret of the house" in caplog.text
    assert "[secret]" in caplog.text
    assert token not in caplog.text
    assert server.token not in caplog.text


@pytest.mark.parametrize(
    ("server_config", "direct"),
    [
        ({}, True),
        ({"IPFSStreamExtension": {"access_policy_class": ReadNothing}}, False),
        ({"IPFSStreamExtension": {"max_add_size": 1000}}, False),
    ],
)
async def test_health_tells_whether_there_are_rules_beside_the_store_s(server, direct):
    """Where the operator has rules for requests, clients of this machine are not let past them to the files."""
    about = (await server.json("GET", "ipfs-stream/health"))["node"]
    assert about["direct"] is direct
    assert about["min_free"] >= 0
