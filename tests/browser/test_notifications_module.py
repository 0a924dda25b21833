"""ipfs-notifications.js in a real browser, against a real server, through a relay that cuts connections."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import STATIC, Cut, Harness, Relay, serve
from lab import Lab
from playwright.sync_api import Page
from yarl import URL

import ipfs_stream_nb as ipfs
from feed_server import KeptServer
from ipfs_stream_nb.notifications.system_monitor import SystemMonitor
from ipfs_stream_nb.widgets.modules import join_modules

pytestmark = pytest.mark.browser

LIBRARY = """
window.until = async (condition) => {
  for (const end = performance.now() + 10000; !condition(); ) {
    if (performance.now() > end) throw new Error(`never: ${condition}`);
    await new Promise((done) => setTimeout(done, 5));
  }
};
window.failure = (promise) => promise.then(() => 'no error', (error) => [error.name, error.code, error.message]);
// A feed that notes all that it is told.
window.listen = (options = {}) => {
  const seen = { events: [], ids: [], states: [], gaps: [], errors: [] };
  const feed = new m.Notifications({ baseUrl: base, token, types: ['custom_event'], ...options,
    onNotification: (event) => { seen.events.push(event); seen.ids.push(event.id); options.onNotification?.(event); },
    onState: (state, error) => { seen.states.push(state); if (error) seen.errors.push([error.code, error.message]); },
    onGap: (gap) => seen.gaps.push(gap) });
  window.feeds = [...(window.feeds ?? []), feed];
  window.seens = [...(window.seens ?? []), seen];
  return Object.assign(window, { feed, seen });
};
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ipfs.Client]:
    """A client with a server of its own, which says nothing of how it fares: it would between the test's own events."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SystemMonitor, "start", lambda _: None)
        with ipfs.connect(repo=tmp_path_factory.mktemp("repo")) as client:
            yield client


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """Serves the page and the module."""
    harness, close = serve(tmp_path_factory.mktemp("files"))
    yield harness
    close()


@pytest.fixture
def relay(client: ipfs.Client) -> Iterator[Relay]:
    """What stands between the page and the server."""
    with Relay(client.server.url) as relay:
        yield relay


@pytest.fixture
def run(page: Page, harness: Harness, relay: Relay, client: ipfs.Client) -> Iterator[Any]:
    """Evaluate the body of an async function in a page that has the module as `m`, `base` and `token`."""
    page.goto(harness.url)
    page.evaluate(
        "async ([url, base, token]) => Object.assign(window, {base, token, m: await import(`${url}ipfs-notifications.js`),"
        " waits: (await import(`${url}ipfs-stream.js`)).limits})",
        [harness.url, relay.url, client.server.token],
    )
    page.evaluate(f"() => {{ {LIBRARY}; Object.assign(waits, {{firstWait: 20, longestWait: 100}}); }}")
    yield lambda body, *args: page.evaluate(f"async (args) => {{ {body} }}", list(args))
    page.evaluate("() => (window.feeds ?? []).forEach((feed) => feed.close())")


def test_events_arrive(run: Any, client: ipfs.Client) -> None:
    """Events of the types and filters come with their data; the states and the cursor say where it is."""
    run(
        "listen({ types: ['custom_event'], filters: { n: [1, 3] } }); await until(() => feed.state === 'live');"
    )
    run("await feed.ping()")  # answered behind the confirmation
    ids = [client.emit({"n": n}, source="a test") for n in range(4)]
    run(
        "const all = listen({ types: undefined, since: args[0] - 1 }).seen; await until(() => all.ids.includes(args[1]))",
        ids[0],
        ids[3],
    )
    run("Object.assign(window, { feed: feeds[0], seen: seens[0] })")
    got = run("await until(() => seen.ids.length === 2); return [seen, feed.cursor, feed.missed];")
    assert got[0]["ids"] == [ids[1], ids[3]]
    assert (got[0]["events"][0]["data"], got[0]["events"][0]["source"]) == ({"n": 1}, "a test")
    assert got[0]["states"] == ["live"]
    assert got[1].endswith(f"-{ids[3]}")
    assert (got[2], got[0]["gaps"]) == (0, [])


def test_commands(run: Any, client: ipfs.Client) -> None:
    """subscribe, unsubscribe, history and ping, before and while it is connected, give what the server answers."""
    got = run(
        """listen({ types: ['content_added'] });
        const early = feed.subscribe('custom_event', { filters: { x: 1 } });
        const [answer, history, ms] = await Promise.all([early, feed.history({ limit: 1 }), feed.ping()]);
        return [answer.notification_types, answer.filters, history.length <= 1, ms];"""
    )
    assert got[:3] == [["custom_event"], {"x": 1}, True]
    assert 0 < got[3] < 5000
    ids = [client.emit({"x": x}) for x in (1, 2, 1)]
    assert run("await until(() => seen.ids.length === 2); return seen.ids;") == [ids[0], ids[2]]
    run("await feed.unsubscribe(['custom_event']);")
    client.emit({"x": 1})
    last = client.emit({}, "system_info")
    got = run("return (await feed.history({ since: args[0] })).map((event) => event.id)", ids[2])
    assert got == [last - 1, last]
    assert run("return seen.ids.length") == 2


def test_a_cursor_of_another_page(run: Any, client: ipfs.Client) -> None:
    """`since` brings what came meanwhile, and the loop ends with its `break`."""
    run("listen({ types: 'custom_event' }); await feed.ping();")
    first = client.emit({})
    cursor = run("await until(() => seen.ids.length); feed.close(); return feed.cursor;")
    ids = [client.emit({}) for _ in range(3)]
    got = run(
        """const ids = [], feed = new m.Notifications({ baseUrl: base, token, types: ['custom_event'], since: args[0] });
        for await (const event of feed) { ids.push(event.id); if (ids.length === 3) break; }
        return [ids, feed.state, await failure(feed.ping())];""",
        cursor,
    )
    assert got[:2] == [ids, "closed"]
    assert got[2][1] == "closed"
    assert first not in ids


def test_cuts_lose_nothing(run: Any, relay: Relay, client: ipfs.Client) -> None:
    """Cut at many places while events are sent, with two subscriptions: each that matches comes once."""
    relay.only = b"GET /ws/notifications"
    relay.cuts.extend(Cut(down=2500 + 700 * n) for n in range(12))
    run(
        """listen({ types: ['custom_event'], filters: { keep: true } });
        await feed.subscribe(['pin_added']);"""
    )
    wanted = []
    for n in range(120):
        number = client.emit({"keep": n % 3 == 0, "x": "x" * 100}, "pin_added" if n % 2 else "custom_event")
        if n % 2 or n % 3 == 0:
            wanted.append(number)
    got = run("await until(() => seen.ids.length >= args[0]); await feed.ping(); return seen;", len(wanted))
    assert sorted(got["ids"]) == wanted
    assert got["gaps"] == []
    assert len([line for line in relay.requests if "ws/notifications" in line]) > 5
    assert got["states"][:3] == ["live", "reconnecting", "live"]


def test_events_that_come_while_it_is_away(run: Any, relay: Relay, client: ipfs.Client) -> None:
    """A server that is away is waited for; when the network is back, that is at once."""
    run("waits.firstWait = waits.longestWait = 60_000; listen(); await feed.ping();")
    relay.closed = True
    relay.cut()
    run("await until(() => feed.state === 'reconnecting');")
    ids = [client.emit({"n": n}) for n in range(3)]
    relay.closed = False
    run("await new Promise((done) => setTimeout(done, 300)); dispatchEvent(new Event('online'));")
    assert run("await until(() => seen.ids.length >= 3); return seen.ids;") == ids


def test_a_connection_that_died_in_the_page_s_sleep(run: Any, relay: Relay, client: ipfs.Client) -> None:
    """When the page is seen again a connection that does not answer is made anew; one that answers stays."""
    run("listen(); await feed.ping();")
    asked = len(relay.requests)
    run("document.dispatchEvent(new Event('visibilitychange')); await feed.ping();")
    assert len(relay.requests) == asked
    run(
        """m.limits.alive = 300; // not before: the one that is to stay may take longer
        window.send = WebSocket.prototype.send;
        WebSocket.prototype.send = () => {}; // as into a network that is gone
        document.dispatchEvent(new Event('visibilitychange'));
        await until(() => feed.state === 'reconnecting');
        WebSocket.prototype.send = send;"""
    )
    number = client.emit({})
    assert run("await until(() => seen.ids.length); return seen.ids;") == [number]


def test_a_slow_reader_holds_little(run: Any, relay: Relay, client: ipfs.Client) -> None:
    """Of a loop that is slow so many events wait; the connection rests until they are read, and nothing is lost."""
    run(
        """m.limits.unread = 20; Object.assign(window, { got: [], most: 0 });
        window.feed = new m.Notifications({ baseUrl: base, token, types: ['custom_event'] });
        await feed.ping();"""
    )
    ids = [client.emit({"n": n}) for n in range(100)]
    got = run(
        """const got = []; let most = 0;
        await until(() => feed.unread.length === 20);
        for await (const event of feed) {
          got.push(event.id);
          most = Math.max(most, feed.unread.length);
          if (got.length === 100) break;
          // it is slower than what comes, however slowly that does
          if (got.length % 10 === 0) await until(() => feed.unread.length === Math.min(20, 100 - got.length));
        }
        return [got, most];"""
    )
    assert got[0] == ids
    assert got[1] <= 20
    assert len(relay.requests) >= 3


def test_server_sent_events_where_no_websocket_comes_through(
    run: Any, relay: Relay, client: ipfs.Client
) -> None:
    """After two WebSockets that could not be had, the same events come over SSE, over cuts too; commands say why not."""
    run(
        """window.WebSocket = class extends EventTarget { // a proxy that lets none through
          constructor() { super(); setTimeout(() => this.onclose?.({ code: 1006, reason: '' })); }
          close() {} send() {} };
        listen({ types: ['custom_event'], filters: { keep: true } });
        await until(() => feed.state === 'live' && feed.wire.heard);"""
    )
    wanted = []
    for n in range(30):
        number = client.emit({"keep": n % 2 == 0})
        wanted += [number] if n % 2 == 0 else []
        if n % 10 == 5:
            relay.cut()
    got = run(
        """await until(() => seen.ids.length >= args[0]);
        return [seen.ids, seen.gaps, await failure(feed.ping()), await failure(feed.subscribe(['system_info']))];""",
        len(wanted),
    )
    assert got[0] == wanted
    assert got[1] == []
    assert [answer[1] for answer in got[2:]] == ["unsupported"] * 2
    assert len([line for line in relay.requests if "/sse/notifications" in line]) >= 2


def test_a_quiet_feed_has_a_cursor(run: Any, client: ipfs.Client) -> None:
    """From its subscription on, also as an iterator, so that nothing is lost over a reload."""
    number = client.emit({})
    got = run(
        """listen({ types: ['pin_added'] }); await feed.ping();
        const loop = new m.Notifications({ baseUrl: base, token, types: ['custom_event'] }); await loop.ping();
        const before = loop.cursor; feeds.push(loop); window.loop = loop;
        return [feed.cursor, before];"""
    )
    assert got[0] == got[1]
    assert got[0].endswith(f"-{number}")
    last = client.emit({})
    got = run(
        """await until(() => loop.unread.length); await loop.subscribe(['system_info']);
        const before = loop.cursor; await loop[Symbol.asyncIterator]().next(); return [before, loop.cursor];"""
    )
    assert got[0].endswith(f"-{number}")
    assert got[1].endswith(f"-{last}")


def test_commands_that_are_too_large(run: Any, client: ipfs.Client) -> None:
    """They are refused before they are sent; what the server could not read is refused too, and the next is answered."""
    got = run(
        """listen(); await feed.ping(); const text = 'x'.repeat(70_000), wrong = [];
        wrong.push(await failure(feed.subscribe(['custom_event'], { filters: { a: text } })));
        wrong.push(await failure(feed.history({ type: text })));
        m.limits.command = 1e6;
        const sent = [feed.subscribe(['custom_event'], { filters: { a: text } }), feed.subscribe(['system_info']), feed.ping()];
        wrong.push(await failure(sent[0]));
        return [wrong, (await sent[1]).notification_types, await sent[2]];"""
    )
    assert [error[1] for error in got[0]] == ["too_large"] * 3
    assert "at most 64000" in got[0][0][2]
    assert got[1] == ["system_info"]
    assert got[2] > 0


def test_answers_that_do_not_come(run: Any, client: ipfs.Client) -> None:
    """A command is given up after its time, one given before there was a connection too; a late answer is nobody else's."""
    got = run(
        """m.limits.answer = 200; const send = WebSocket.prototype.send, kept = [];
        WebSocket.prototype.send = function (text) { text.includes('history') ? kept.push([this, text]) : send.call(this, text); };
        const pages = (limit) => feed.history({ limit }).then((events) => events.length);
        listen(); const early = await failure(pages(1)); const late = await failure(pages(1));
        m.limits.answer = 10_000;
        const asked = pages(0);
        for (const [wire, text] of kept) send.call(wire, text);
        WebSocket.prototype.send = send;
        return [early[1], late[1], await asked, feed.commands.length];"""
    )
    assert got == ["timeout", "timeout", 0, 0]
    got = run(
        """let deaf = true; const send = WebSocket.prototype.send;
        WebSocket.prototype.send = function (text) { if (!deaf) send.call(this, text); };
        const passed = failure(feed.history()); deaf = false; const ms = await feed.ping();
        return [await passed, ms > 0];"""
    )
    assert got == [["IPFSStreamError", "internal", "the server passed over get_history"], True]


def test_types_that_may_not_be_seen(run: Any, client: ipfs.Client) -> None:
    """Each that is named is an error; all_events stands for those that may be seen."""
    body = {"action": "subscribe", "notification_types": ["custom_event", "pin_added"]}
    session = client._session
    request = session.client._http.json
    token = session.loop.run(lambda: request("POST", "ipfs-stream/tokens", json_body=body))["token"]
    run("window.token = args[0]; listen({ types: ['custom_event', 'system_info', 'pin_removed'] })", token)
    got = run("await until(() => feed.state === 'refused'); return [feed.error.code, feed.error.message];")
    assert got == ["unauthorized", "you may not see system_info, pin_removed"]
    assert run(
        "listen({ types: 'all_events' }); await until(() => feed.state === 'live'); return seen.states"
    ) == ["live"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("", "needs baseUrl"),
        ("{ token }", "needs baseUrl"),
        ("{ base, token }", "has no option base; it has baseUrl, token, types"),
        ("{ baseUrl: base, onNotificaton() {} }", "has no option onNotificaton"),
    ],
)
def test_options_that_are_missing_or_unknown(run: Any, arguments: str, text: str) -> None:
    """They are an error at once."""
    name, code, message = run(f"return failure((async () => new m.Notifications({arguments}))())")
    assert (name, code) == ("IPFSStreamError", "bad_request")
    assert text in message


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ("{ token: 'wrong' }", ("unauthorized", "refused")),  # another origin may not read why
        ("{ types: ['nonsense'] }", ("bad_request",)),
        ("{ filters: { a: { gt: [] } } }", ("bad_request",)),
        ("{ since: 'x' }", ("bad_request",)),
        ("{ baseUrl: 'http://[' }", ("internal", None)),
    ],
)
def test_what_cannot_be_is_refused(run: Any, page: Page, options: str, code: tuple[str]) -> None:
    """Wrong credentials, types, filters and cursors end it: state, loop and commands give the same error."""
    got = run(
        f"""Object.assign(waits, {{firstWait: 1, longestWait: 2}});
        listen({options}); await until(() => feed.state === 'refused');
        const feed2 = new m.Notifications({{ baseUrl: base, token, ...{options} }});
        const loop = failure((async () => {{ for await (const event of feed2) return event; }})());
        return [seen.states, feed.error.code ?? null, (await loop)[1] ?? null, (await failure(feed.ping()))[1] ?? null];"""
    )
    assert got[0] == ["refused"]
    assert got[1] in code
    assert got[1:] == [got[1]] * 3


def test_mistakes_in_a_page_s_functions_end_nothing(run: Any, page: Page, client: ipfs.Client) -> None:
    """What onNotification throws is in the console, and the next event comes."""
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    run("listen({ onNotification: () => { throw new Error('mine'); } }); await feed.ping();")
    ids = [client.emit({}) for _ in range(2)]
    assert run("await until(() => seen.ids.length === 2); return seen.ids;") == ids
    assert len([text for text in told if "mine" in text]) == 2


def test_a_log_that_began_anew(run: Any, client: ipfs.Client) -> None:
    """A cursor of another log is told as a gap of which nobody knows how much it is."""
    number = client.emit({})
    got = run(
        """listen({ types: ['custom_event'], since: 'other-5' });
        await until(() => seen.ids.includes(args[0]));
        return [seen.gaps.map(({ type, missed }) => [type, missed]), seen.ids, feed.missed];""",
        number,
    )
    assert got[0] == [["reset", None]]
    assert got[2] is None
    assert got[1] == sorted(set(got[1]))


def test_many_events_are_quick(run: Any, client: ipfs.Client) -> None:
    """2,000 events from the log come within seconds."""
    first = client.emit({"n": -1})
    session = client._session
    for _ in range(8):
        events = [{"data": {"n": n}} for n in range(250)]
        request = session.client._http.json
        session.loop.run(lambda: request("POST", "ipfs-stream/events", json_body={"events": events}))  # noqa: B023
    got = run(
        """const begun = performance.now();
        listen({ types: ['custom_event'], since: args[0] });
        await until(() => seen.ids.length >= 2000);
        return [seen.ids.length, new Set(seen.ids).size, performance.now() - begun];""",
        first,
    )
    assert got[:2] == [2000, 2000]
    assert got[2] < 5000


def test_a_server_that_is_started_again(run: Any, relay: Relay, tmp_path: Path) -> None:
    """The log outlives its server: what comes before, between and behind comes once. The token is asked for each time."""
    relay.closed = True
    run(
        "window.fresh = 'none'; listen({ token: async () => { if (fresh) return fresh; throw new Error('busy'); } });"
    )
    ids = []
    for token in ("one", "two"):
        with KeptServer(tmp_path, token) as server, ipfs.connect(server.url, token) as client:
            ids.append(client.emit({}))
            relay._port = URL(server.url).port
            run("window.fresh = args[0]", token)
            relay.closed = False
            run("await until(() => feed.state === 'live' && seen.ids.length >= args[0]);", len(ids) - 1)
            ids.append(client.emit({}))
            run("await until(() => seen.ids.includes(args[0]))", ids[-1])
            relay.closed = True
            relay.cut()
            ids.append(client.emit({}))
            run("await until(() => feed.state === 'reconnecting'); fresh = null;")
    got = run("return seen")
    assert (got["ids"], got["gaps"]) == (ids[1:-1], [])
    assert got["states"] == ["live", "reconnecting", "live", "reconnecting"]


def test_by_cookie_in_a_page_of_jupyter(page: Page, lab: Lab) -> None:
    """In JupyterLab's own page, at a base URL like a hub's, no token is needed."""
    page.goto(f"{lab.url}lab?token={lab.token}")
    page.evaluate(
        """async (text) => {
          const { Notifications } = await import(URL.createObjectURL(new Blob([text], { type: 'text/javascript' })));
          const { baseUrl } = JSON.parse(document.getElementById('jupyter-config-data').textContent);
          window.ids = [];
          window.feed = new Notifications({ baseUrl, types: ['custom_event'], onNotification: ({ id }) => ids.push(id) });
          await feed.ping();
        }""",
        join_modules(STATIC / "ipfs-notifications.js"),
    )
    with ipfs.connect(lab.url, lab.token) as client:
        number = client.emit({})
    page.wait_for_function("ids.length")
    assert page.evaluate("ids") == [number]
    page.evaluate("feed.close()")
