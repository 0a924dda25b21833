"""ipfs-stream.js in a real browser, against a real server, through a relay that cuts connections."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import STATIC, Cut, Harness, Relay, serve
from lab import Lab
from playwright.sync_api import Page

import ipfs_stream_nb as ipfs

pytestmark = pytest.mark.browser
MIB = 1 << 20
DATA = random.Random(4).randbytes(5 * MIB + 12_345)
ABSENT = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"

LIBRARY = """
window.collect = async (chunks, each = () => {}) => {
  const parts = [];
  for await (const chunk of chunks) { parts.push(chunk); await each(chunk, parts.length); }
  return new Blob(parts);
};
window.sha256 = async (blob) => {
  const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', await blob.arrayBuffer()));
  return [...hash].map((byte) => byte.toString(16).padStart(2, '0')).join('');
};
// The same bytes as `pattern` in Python, so that a large file need not travel to the page.
window.pattern = (size, seed) => {
  const bytes = new Uint8Array(size);
  for (let i = 0; i < size; i++) bytes[i] = Math.imul(i ^ (seed << 24), 2654435761) >>> 16;
  return new File([bytes], 'pattern.bin');
};
window.failure = (promise) => promise.then(() => 'no error', (error) => [error.name, error.code, error.message]);
"""


def pattern(size: int, seed: int) -> bytes:
    """What the page's `pattern` makes."""
    numbers = np.arange(size, dtype=np.uint32) ^ np.uint32(seed << 24)
    return (numbers * np.uint32(2654435761) >> 16).astype(np.uint8).tobytes()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ipfs.Client]:
    """A client with a server of its own."""
    with ipfs.connect(repo=tmp_path_factory.mktemp("repo")) as client:
        yield client


@pytest.fixture(scope="module")
def cid(client: ipfs.Client) -> str:
    """The CID of DATA."""
    return str(client.add(DATA, name="data.bin").cid)


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
def run(page: Page, harness: Harness, relay: Relay, client: ipfs.Client) -> Any:
    """Evaluate the body of an async function in a page that has the module as `m`, `base`, and `access`: the token."""
    page.goto(harness.url)
    page.evaluate(f"async () => {{ window.m = await import('{harness.url}ipfs-stream.js'); {LIBRARY} }}")
    page.evaluate(
        "([base, token]) => { Object.assign(window, {base, access: {token}}); }",
        [relay.url, client.server.token],
    )

    def evaluate(body: str, *args: object) -> Any:
        return page.evaluate(f"async (args) => {{ {body} }}", list(args))

    evaluate("Object.assign(m.limits, {firstWait: 20, longestWait: 100})")
    return evaluate


# ---- stream


@pytest.mark.parametrize("kind", ["stream", "sse"])
def test_a_file_arrives(run: Any, cid: str, kind: str) -> None:
    """The bytes come whole and in order, with metadata first and progress at the end."""
    got = run(
        """const [kind, path] = args, seen = {};
        const chunks = m[kind](base, path, {...access, onMetadata: (x) => (seen.meta = x), onProgress: (x) => (seen.last = x)});
        const blob = await collect(chunks);
        return {...seen, size: blob.size, hash: await sha256(blob)};""",
        kind,
        f"/ipfs/{cid}",
    )
    assert (got["size"], got["hash"]) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    assert got["meta"]["cid"] == cid
    assert got["last"] == {"bytes": len(DATA), "total": len(DATA)}


@pytest.mark.parametrize("kind", ["stream", "sse"])
def test_a_part_of_a_file(run: Any, cid: str, kind: str) -> None:
    """Offset and length are kept to; a length beyond the end ends at the end; an empty part is empty."""
    for offset, length in [(1000, 100_000), (len(DATA) - 10, 100), (len(DATA), 5), (7, 0)]:
        got = run(
            """const [kind, path, offset, length] = args;
            return sha256(await collect(m[kind](base, path, {...access, offset, length})));""",
            kind,
            cid,
            offset,
            length,
        )
        assert got == hashlib.sha256(DATA[offset : offset + length]).hexdigest(), (offset, length)


@pytest.mark.parametrize("kind", ["stream", "sse"])
def test_goes_on_after_cuts(run: Any, relay: Relay, cid: str, kind: str) -> None:
    """Three cuts on the way: every byte comes once, and what had come is not asked for again."""
    relay.only = b"GET /" + {"stream": b"ws", "sse": b"sse"}[kind]
    relay.cuts.extend([Cut(down=700_000), Cut(down=1_500_000), Cut(down=10_000)])
    got = run(
        """const [kind, path] = args;
        const blob = await collect(m[kind](base, path, access));
        return [blob.size, await sha256(blob)];""",
        kind,
        cid,
    )
    assert got == [len(DATA), hashlib.sha256(DATA).hexdigest()]
    assert len([line for line in relay.requests if kind in line]) == 4
    overhead = 1.0 if kind == "stream" else 4 / 3
    assert relay.down < len(DATA) * overhead + 4 * 300_000


def test_sse_stops_at_its_end(run: Any, relay: Relay, page: Page, cid: str) -> None:
    """After `complete` no further request is made, though an EventSource would come again a second later."""
    run("await collect(m.sse(base, args[0], access))", cid)
    asked = len(relay.requests)
    page.wait_for_timeout(2500)
    assert len(relay.requests) == asked == 1


def test_sse_that_loses_its_last_word(run: Any, relay: Relay, page: Page, client: ipfs.Client) -> None:
    """Cut between the last chunk and `complete`: the browser comes again, gets 204, and that is the end."""
    small = str(client.add(b"x" * 3000, name="small").cid)
    head = 700  # of the answer and the metadata, at the most
    for length in range(4000 + head, 4000, -40):
        relay.cuts.clear()
        relay.requests.clear()
        relay.cuts.append(Cut(down=length))
        size = run("return (await collect(m.sse(base, args[0], access))).size", small)
        assert size == 3000
        if len(relay.requests) == 2:
            break
    assert len(relay.requests) == 2
    page.wait_for_timeout(1500)
    assert len(relay.requests) == 2


@pytest.mark.parametrize("kind", ["stream", "sse"])
def test_a_slow_reader_holds_little(run: Any, relay: Relay, cid: str, kind: str) -> None:
    """Who reads slowly gets all of it; what waits in memory is bounded, and the rest is asked for in parts."""
    got = run(
        """const [kind, path] = args;
        m.limits.unread = 1 << 20;
        // the rest at the first lasts until more came than may wait, and the connection is ended
        let going; const ended = new Promise((done) => (going = done));
        for (const { prototype } of [WebSocket, EventSource]) {
            const { close } = prototype;
            prototype.close = function (...why) { going(); return close.apply(this, why); };
        }
        const rest = (_, n) => n === 1 && Promise.race([ended, new Promise((done) => setTimeout(done, 20_000))]);
        const blob = await collect(m[kind](base, path, access), rest);
        return [blob.size, await sha256(blob)];""",
        kind,
        cid,
    )
    assert got == [len(DATA), hashlib.sha256(DATA).hexdigest()]
    parts = [int(length) for line in relay.requests for length in re.findall(r"length=(\d+)", line)]
    assert len(parts) >= 2
    assert max(parts) <= MIB


@pytest.mark.parametrize("kind", ["stream", "sse"])
@pytest.mark.parametrize(
    ("path", "code"),
    [(ABSENT, "not_found"), ("nonsense", "bad_cid")],
)
def test_errors_have_codes(run: Any, kind: str, path: str, code: str) -> None:
    """What the server refuses is an IPFSStreamError with its code."""
    got = run(
        "const [kind, path] = args; return failure(collect(m[kind](base, path, {...access, attempts: 2})));",
        kind,
        path,
    )
    assert got[0] == "IPFSStreamError"
    # Tornado drops the header that lets another origin read an error's body
    assert got[1] == code or (kind, got[1]) == ("sse", "refused")


@pytest.mark.parametrize("kind", ["stream", "sse"])
def test_a_server_that_is_gone(run: Any, relay: Relay, cid: str, kind: str) -> None:
    """Nobody answers: after some attempts that is an error, and says so."""
    relay.closed = True
    got = run(
        "const [kind, path] = args; return failure(collect(m[kind](base, path, {...access, attempts: 2})));",
        kind,
        cid,
    )
    assert got[:2] == ["IPFSStreamError", "disconnected"]


def test_leaving_early_ends_the_connection(run: Any, relay: Relay, page: Page, cid: str) -> None:
    """`break` and an abort signal close the socket; the signal's reason is what is thrown."""
    got = run(
        """const path = args[0], stop = new AbortController(), close = WebSocket.prototype.close;
        window.closes = 0;
        WebSocket.prototype.close = function (...why) { window.closes++; return close.apply(this, why); };
        for await (const chunk of m.stream(base, path, access)) break;
        window.afterBreak = closes;
        const ending = failure(collect(m.stream(base, path, {...access, signal: stop.signal}), () => stop.abort()));
        return ending;""",
        cid,
    )
    assert got[0] == "AbortError"
    asked = len(relay.requests)
    page.wait_for_timeout(300)
    assert len(relay.requests) == asked == 2
    assert page.evaluate("afterBreak") == 1


# ---- upload


@pytest.mark.parametrize("size", [0, 1, 3 * MIB + 5])
def test_an_upload_ends_in_its_cid(run: Any, client: ipfs.Client, size: int) -> None:
    """The CID is that of client.add; progress ends at the size; the file's name is its pin's."""
    got = run(
        """let last; const file = pattern(args[0], 7);
        const result = await m.upload(base, file, {...access, onProgress: (x) => (last = x)});
        return [result, last];""",
        size,
    )
    added = client.add(pattern(size, 7), pin=False)
    assert got == [{"cid": str(added.cid), "size": size}, {"bytes": size, "total": size, "durable": size}]
    assert any(pin.name == "pattern.bin" and pin.cid == added.cid for pin in client.pins())


def test_an_upload_goes_on_after_cuts(run: Any, relay: Relay, client: ipfs.Client) -> None:
    """Cut four times, the CID is right, and no byte that was durable is sent again."""
    relay.only = b"/ws/upload"
    relay.cuts.extend([Cut(up=2 * MIB), Cut(up=MIB), Cut(up=100), Cut(up=3 * MIB)])
    size = 12 * MIB
    got = run(
        """const readies = [];
        const result = await m.upload(base, pattern(args[0], 8), {...access, onReady: (x) => readies.push(x)});
        return [result.cid, readies];""",
        size,
    )
    assert got[0] == str(client.add(pattern(size, 8), pin=False).cid)
    offsets = [ready["offset"] for ready in got[1]]
    assert offsets == sorted(offsets)
    assert offsets[0] == 0
    assert offsets[-1] >= MIB
    assert len({ready["uploadId"] for ready in got[1]}) == 1
    assert len(relay.requests) == 5


def test_an_upload_keeps_little_in_the_socket(run: Any) -> None:
    """However slow the way is, what waits in the socket stays bounded."""
    most = run(
        """let most = 0; const send = WebSocket.prototype.send;
        WebSocket.prototype.send = function (data) { send.call(this, data); most = Math.max(most, this.bufferedAmount); };
        m.limits.unsent = 1 << 20;
        await m.upload(base, pattern(8 << 20, 9), access);
        WebSocket.prototype.send = send;
        return most;"""
    )
    assert 0 < most <= (1 << 20) + (256 << 10) + 1000


def test_pause_and_resume(run: Any, relay: Relay, client: ipfs.Client) -> None:
    """A paused upload sends nothing; resumed, it goes on from what is durable."""
    got = run(
        """const states = [], readies = []; let going;
        m.limits.unsent = 1 << 18;
        const started = new Promise((done) => (going = done));
        const up = m.upload(base, pattern(32 << 20, 10), {...access, onState: (x) => states.push(x),
            onReady: (x) => readies.push(x.offset), onProgress: ({bytes}) => bytes && going()});
        await started; up.pause();
        await new Promise((done) => setTimeout(done, 400));
        const before = states.length;
        await new Promise((done) => setTimeout(done, 200));
        const quiet = states.length === before && states.at(-1);
        up.resume();
        return [(await up).cid, quiet, readies, states];"""
    )
    assert got[0] == str(client.add(pattern(32 * MIB, 10), pin=False).cid)
    assert got[1] == "paused"
    assert got[2][0] == 0
    assert got[2][1] > 0
    assert got[3] == ["connecting", "sending", "paused", "connecting", "connecting", "sending", "finishing"]


@pytest.mark.parametrize("when", ["sending", "paused", "at once", "signal"])
def test_cancel_leaves_nothing(run: Any, page: Page, client: ipfs.Client, when: str) -> None:
    """A cancelled upload is an AbortError, and the server forgets it, also where it was paused."""
    got = run(
        """const when = args[0], stop = new AbortController(); let id = null, going;
        m.limits.unsent = 1 << 18;
        const started = new Promise((done) => (going = done));
        const part = pattern(8 << 20, 11), file = new File([part, part, part, part, part, part], 'more than sockets hold');
        const up = m.upload(base, file, {...access, signal: stop.signal,
            onReady: (x) => (id = x.uploadId), onProgress: ({bytes}) => bytes && going()});
        if (when !== 'at once') await started;
        if (when === 'paused') { up.pause(); await new Promise((done) => setTimeout(done, 300)); }
        if (when === 'signal') stop.abort(); else up.cancel();
        const ending = await failure(up);
        let other = null;
        const again = {...access, uploadId: id, onReady: (x) => (other = x.uploadId)};
        // the server forgets it a little later
        for (let n = 0; id && n < 40 && (!other || other === id); n++) {
            await new Promise((done) => setTimeout(done, 500));
            await failure(m.upload(base, new Blob(['x']), again));
        }
        return [ending[0], id, other];""",
        when,
    )
    assert got[0] == "AbortError"
    if when != "at once":
        assert got[2]
        assert got[1] != got[2]  # the old one was not there any more: another one was begun


def test_an_upload_of_another_page_goes_on(run: Any, relay: Relay, client: ipfs.Client, page: Page) -> None:
    """With its upload_id another page goes on with the same file, and what is durable is not sent again."""
    identifier = run(
        """m.limits.unsent = 1 << 18; window.stopped = null;
        let id, going; const started = new Promise((done) => (going = done));
        const up = m.upload(base, pattern(6 << 20, 12), {...access, onReady: (x) => (id = x.uploadId),
            onProgress: ({bytes}) => bytes > (3 << 20) && going()});
        up.catch(() => {}); // a slow server still has its connection when the other comes, and says so
        await started; up.pause(); await new Promise((done) => setTimeout(done, 300));
        return id;"""
    )
    before = relay.up
    got = run(
        """let offset; const result = await m.upload(base, pattern(6 << 20, 12), {...access, uploadId: args[0],
            onReady: (x) => (offset = x.offset)});
        return [result.cid, offset];""",
        identifier,
    )
    assert got[0] == str(client.add(pattern(6 * MIB, 12), pin=False).cid)
    assert got[1] > 3 * MIB
    assert relay.up - before < 5 * MIB  # of six; some of the first may have come through late


def test_an_upload_that_is_refused(run: Any, client: ipfs.Client) -> None:
    """A wrong token, a bad profile and an unreadable file are errors with codes."""
    got = run(
        """const file = pattern(100, 1), broken = pattern(100, 1);
        broken.slice = () => ({arrayBuffer: () => Promise.reject(new Error('it is gone'))});
        return [await failure(m.upload(base, file, {token: 'wrong', attempts: 1})), await failure(m.upload(base, file, {...access, profile: 'none'})),
            await failure(m.upload(base, broken, access))];"""
    )
    assert [error[1] for error in got] == ["refused", "bad_request", "unreadable"]


def test_a_token_is_asked_for_each_connection(run: Any, relay: Relay, client: ipfs.Client) -> None:
    """`token` may be a function: a short-lived token is renewed when the connection is made again."""
    relay.only = b"/ws/upload"
    relay.cuts.append(Cut(up=MIB))
    got = run(
        """let asked = 0; const token = async () => { asked++; return access.token; };
        await m.upload(base, pattern(3 << 20, 13), {token});
        return asked;"""
    )
    assert got == 2


# ---- both ways


def test_gets_adds_and_pins_at_once(run: Any, client: ipfs.Client, cid: str) -> None:
    """Over one socket: three gets, two adds and a pin, interleaved, each with its own result."""
    got = run(
        """const [path] = args, order = [], both = m.bidirectional(base, access);
        const get = (name) => collect(both.get(path), () => order.push(name)).then(sha256);
        const add = (name, size, seed) => both.add(pattern(size, seed), {onProgress: () => order.push(name)}).then((x) => x.cid);
        const done = await Promise.all([get('a'), add('x', 4 << 20, 14), get('b'), get('c'), add('y', 100, 15), both.pin(path)]);
        await both.close();
        return [done, order, await failure(both.pin(path))];""",
        cid,
    )
    results, order, late = got
    digest = hashlib.sha256(DATA).hexdigest()
    assert [results[0], results[2], results[3]] == [digest] * 3
    assert results[1] == str(client.add(pattern(4 * MIB, 14), pin=False).cid)
    assert results[4] == str(client.add(pattern(100, 15), pin=False).cid)
    assert results[5]["success"] is True
    assert len(set(order[:20])) > 1
    assert late[1] == "disconnected"


def test_a_get_that_is_not_read_holds_up_nobody(
    run: Any, relay: Relay, client: ipfs.Client, cid: str
) -> None:
    """One get stands still with its window full; another and an add go through, and then it goes on."""
    got = run(
        """const [path] = args, both = m.bidirectional(base, access), still = both.get(path);
        const first = (await still.next()).value;
        const [hash, added] = await Promise.all([collect(both.get(path)).then(sha256), both.add(pattern(2 << 20, 16))]);
        const rest = await collect(still);
        await both.close();
        return [hash, added.cid, await sha256(new Blob([first, rest]))];""",
        cid,
    )
    digest = hashlib.sha256(DATA).hexdigest()
    assert got == [digest, str(client.add(pattern(2 * MIB, 16), pin=False).cid), digest]


def test_both_ways_go_on_after_cuts(run: Any, relay: Relay, client: ipfs.Client, cid: str) -> None:
    """The socket is cut twice under a get and an add: both go on over the next one."""
    relay.only = b"/ws/bidirectional"
    relay.cuts.extend([Cut(up=100_000), Cut(down=400_000)])  # the first before the get can be over
    got = run(
        """const [path] = args, both = m.bidirectional(base, access);
        const done = await Promise.all([collect(both.get(path)).then(sha256), both.add(pattern(5 << 20, 17)).then((x) => x.cid)]);
        await both.close();
        return done;""",
        cid,
    )
    assert got == [
        hashlib.sha256(DATA).hexdigest(),
        str(client.add(pattern(5 * MIB, 17), pin=False).cid),
    ]
    assert len(relay.requests) == 3


def test_errors_and_cancelling_both_ways(run: Any, cid: str) -> None:
    """An error ends its own transfer; a get that is left and an add that is aborted disturb no other."""
    got = run(
        """const [path, absent] = args, both = m.bidirectional(base, access), stop = new AbortController();
        for await (const chunk of both.get(path)) break;
        const adding = failure(both.add(pattern(8 << 20, 18), {signal: stop.signal, onProgress: () => stop.abort()}));
        const errors = [await failure(collect(both.get(absent))), await failure(both.pin('nonsense')), await adding];
        const hash = await collect(both.get(path, {offset: 10, length: 1000})).then(sha256);
        await both.close();
        return [errors.map(([name, code]) => code || name), hash];""",
        cid,
        ABSENT,
    )
    assert got[0][:2] == ["not_found", "bad_cid"]
    assert got[0][2] in {20, "AbortError"}  # the code of a DOMException
    assert got[1] == hashlib.sha256(DATA[10:1010]).hexdigest()


@pytest.mark.slow
def test_a_page_of_the_server_needs_no_token(page: Page, lab: Lab) -> None:
    """In Jupyter's own page the cookie is enough, and a refusal tells why, at once."""
    lab.log_in(page)
    page.wait_for_function("window.jupyterapp")
    got = page.evaluate(
        """async ([text, base, library]) => {
            new Function(library)();
            const m = await import(URL.createObjectURL(new Blob([text], {type: 'text/javascript'})));
            const {cid} = await m.upload(base, new File(['hello'], 'hello.txt'));
            const both = m.bidirectional(base);
            const texts = [collect(m.stream(base, cid)), collect(m.sse(base, cid)), collect(both.get(cid))];
            const refused = await Promise.all([failure(collect(m.sse(base, 'nonsense'))),
                failure(m.upload(base + 'nowhere/', new Blob(['x']))), failure(collect(m.stream(base, cid, {offset: 99})))]);
            return [await Promise.all(texts.map(async (blob) => (await blob).text())), refused.map((error) => error[1])];
        }""",
        [(STATIC / "ipfs-stream.js").read_text(), lab.url, LIBRARY],
    )
    assert got == [["hello"] * 3, ["bad_cid", "not_found", "bad_request"]]


def test_the_documentation_is_true(
    run: Any, page: Page, harness: Harness, relay: Relay, client: ipfs.Client
) -> None:
    """The example page of docs/browser.md runs: what is chosen is uploaded, and streamed back."""
    text = (Path(__file__).parents[2] / "docs" / "browser.md").read_text()
    example = text.partition("```html\n")[2].partition("```")[0]
    example = example.replace("http://localhost:8888/", relay.url).replace(
        '"TOKEN"', json.dumps(client.server.token)
    )
    (harness.folder / "example.html").write_text(example)
    shutil.copy(STATIC / "ipfs-stream.js", harness.folder)
    page.goto(f"{harness.url}ipfs/example.html")
    page.locator("input[type=file]").set_input_files(
        {"name": "hello.txt", "mimeType": "text/plain", "buffer": b"hello from a page"}
    )
    page.wait_for_function("document.body.innerText.includes('hello from a page')")
    assert str(client.add(b"hello from a page", pin=False).cid) in page.inner_text("body")
