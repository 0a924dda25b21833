"""`WebRTCClient`, and the clients' method for live media: against the real server, and against one that misbehaves."""

import asyncio
import gc
import itertools
import math
import threading
import time
from functools import partial

import numpy as np
import pytest
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtp import RtpPacket, is_rtcp

import ipfs_stream_nb as ipfs
from cutting_proxy import CuttingProxy
from far_client import connected
from ipfs_stream_nb import samples
from ipfs_stream_nb.clients import webrtc_frames, webrtc_link, webrtc_stream
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.errors import (
    BadCIDError,
    BadRequestError,
    IPFSStreamError,
    NotFoundError,
    RetrievalError,
    RetrievalTimeoutError,
    UnauthorizedError,
    UnreachableError,
    UnsupportedMediaError,
)
from ipfs_stream_nb_server.standalone import StandaloneServer
from scripted_signaling import ScriptedSignaling

RATE = 30
SECONDS = 2.0


class Site:
    """A server with some content."""

    def __init__(self, server, cids):
        self.url, self.token = server.url, server.token
        self.clip, self.silent, self.long, self.text = cids

    def client(self, *args, url=None, **options):
        """A client of it."""
        return ipfs.WebRTCClient(url or self.url, *args, token=self.token, **options)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The real server, with a clip, one without sound, a longer one than a busy machine stands still, and what is no media."""
    repo = tmp_path_factory.mktemp("site") / "repo"

    clip = partial(samples.video, width=160, height=96, duration=SECONDS, frame_rate=RATE, b_frames=0)
    with StandaloneServer(partial(EmbeddedNode.open, repo)) as server:
        with ipfs.connect(server.url, server.token) as client:
            long = clip(audio=False, duration=30.0)
            cids = [str(client.add(one).cid) for one in (clip(), clip(audio=False), long, b"no media")]
        yield Site(server, cids)


@pytest.fixture
async def script():
    """A server in the hands of the test."""
    async with ScriptedSignaling() as script:
        yield script


@pytest.fixture(autouse=True)
async def nothing_left():
    """Whatever happens, no task of this loop and no thread of aiortc's is left behind."""
    before = asyncio.all_tasks()
    yield
    async with asyncio.timeout(30):
        while left := {task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()}:
            await asyncio.wait(left, timeout=0.1)
        while any("decoder" in thread.name for thread in threading.enumerate()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    gc.collect()  # what was left unawaited is told here


@pytest.fixture
def patient(monkeypatch):
    """The last frames may come late after the word of the end, as on a busy machine, and all of a clip waits to be read."""
    monkeypatch.setattr(webrtc_stream, "LAST_FRAMES", 4.0)
    monkeypatch.setitem(webrtc_frames.WAITING, "video", 100)
    monkeypatch.setitem(webrtc_frames.WAITING, "audio", 200)


async def until(condition):
    """Return once it holds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.005)


def number(frame):
    """The one that is burnt in."""
    return samples.read_frame_number(np.asarray(frame))


def assert_run(numbers, first, dropped, stats):
    """These are the clip's frames from `first` to its last one, in order; none is missing that was not counted as dropped here,
    or as left out by the server, which was late on a busy machine: up to the end, it may be."""
    late = stats["frames_dropped"]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == SECONDS * RATE - 1 or late
    assert len(numbers) + dropped + late == SECONDS * RATE - first


# -- with the real server


async def test_every_frame_in_order_with_its_time(site, patient):
    """All pictures of the clip, up to the last one, as RGB arrays that know their second; then the loop ends."""
    async with site.client() as client:
        pc_id = await client.request_stream(site.clip)
        assert client.streams == {pc_id: "connected"}
        frames = client.frames(pc_id)
        got = [(number(frame), frame) async for frame in frames]
        assert_run([n for n, _ in got], 0, frames.dropped, await client.get_stats(pc_id))
    for n, frame in got:
        assert (frame.shape, frame.dtype, frame.pc_id) == ((96, 160, 3), np.uint8, pc_id)
        assert frame.flags.c_contiguous
        assert frame.time == pytest.approx(n / RATE, abs=0.005)
    assert client.state == "closed"


def test_the_guides_desktop_example(site):
    """A loop in a thread, as a desktop application has it: on_frame is called off that thread, one frame at a time."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    frames, threads, states, enough = [], set(), [], threading.Event()

    def handle_frame(frame):
        height, width, channel = frame.shape
        assert len(bytes(frame.data)) == height * width * channel
        frames.append(number(frame))
        threads.add(threading.current_thread())
        if len(frames) == 20:
            enough.set()

    def call(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(20)

    client = site.client(handle_frame, lambda pc_id, state: states.append((pc_id, state)))
    try:
        call(client.connect())
        pc_id = call(client.request_stream(site.long))
        assert enough.wait(20)
        call(client.close_all_connections())
        assert (client.streams, client.state) == ({}, "connected")
        again = call(client.request_stream(site.silent))
    finally:
        call(client.close())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    first = frames[:20]
    assert first == sorted(set(first))
    assert thread not in threads
    assert states == [
        (one, state) for one in (pc_id, again) for state in ("connecting", "connected", "closed")
    ]


async def test_steering(site):
    """Seek, pause, resume and quality do what they say, and `playback` tells where it is."""
    async with site.client() as client:
        pc_id = await client.request_stream(site.long)
        frames = client.frames(pc_id)
        await anext(frames)
        told = await client.seek(pc_id, 1.5)
        assert told.position == pytest.approx(1.5, abs=0.3)
        async with asyncio.timeout(10):
            while number(await anext(frames)) < 1.5 * RATE:
                pass
        await until(lambda: client.playback(pc_id).duration is not None)
        told = await client.pause(pc_id)
        assert told.state == client.playback(pc_id).state == "paused"
        while await frames.get(timeout=0.3) is not None:
            pass  # those that were on their way
        assert (await client.seek(pc_id, 1.0)).state == "paused"
        async with asyncio.timeout(10):
            while number(await anext(frames)) != 1.0 * RATE:
                pass  # the picture at that place is shown, though nothing plays
        assert (await client.resume(pc_id)).state == "playing"
        got = [number(await asyncio.wait_for(anext(frames), 10)) for _ in range(10)]
        assert got == sorted(set(got))
        assert got[0] >= 1.0 * RATE
        position = client.playback(pc_id).position  # a busy machine may have read that frame long ago
        assert position > got[-1] / RATE - 0.3
        async with asyncio.timeout(10):
            while number(await anext(frames)) < (position - 0.3) * RATE:
                pass
        assert await client.set_quality(pc_id, "very_low") == "very_low"
        stats = await client.get_stats(pc_id)
        assert (stats["quality"], stats["cid"], stats["state"]) == ("very_low", site.long, "connected")
        assert stats["received"]["video"]["frames"] >= 10
        every = await client.get_stats(include_global=True)
        assert set(every) == {pc_id, "global_metrics"}


async def test_times_are_right_again_after_a_seek(site, patient):
    """Each frame has its own time; those before the place, which only the decoder needs, are left out."""
    async with site.client() as client:
        pc_id = await client.request_stream(site.clip)
        frames = client.frames(pc_id)
        while (await client.get_stats(pc_id))["received"]["video"]["frames"] < 10:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # some wait to be read
        first = await anext(frames)
        assert first.time == pytest.approx(number(first) / RATE, abs=0.005)
        playback = await client.seek(pc_id, 1.3)
        assert (playback.position, playback.state) == (pytest.approx(1.3, abs=0.3), "playing")
        got = [(number(frame), frame.time) async for frame in frames]
    assert 0 <= got[0][0] - 1.3 * RATE < 10  # a busy machine misses some
    for n, at in got:
        assert at == pytest.approx(n / RATE, abs=0.005)


async def test_on_a_machine_without_a_network(site, monkeypatch):
    """Where there is no address but loopback's, media comes over that; at once it is known where playback is."""
    monkeypatch.setattr("aioice.ice.get_host_addresses", lambda **_kwargs: [])
    async with site.client() as client:
        pc_id = await client.request_stream(site.clip, start=0.5)
        playback = client.playback(pc_id)
        assert (playback.state, playback.duration) == ("playing", pytest.approx(SECONDS, abs=0.1))
        assert 0.5 <= playback.position < 1.5
        assert number(await anext(client.frames(pc_id))) >= 0.5 * RATE


async def test_sound(site, patient):
    """Sound comes as 16-bit stereo at 48 kHz with its time: the clicks are at the whole seconds."""
    taken = []
    async with site.client(on_audio=taken.append) as client:
        pc_id = await client.request_stream(site.clip, kind="audio")
        audio = client.audio(pc_id)
        pieces = [piece async for piece in audio]
        with pytest.raises(BadRequestError, match="no video; it has audio"):
            client.frames(pc_id)
    for piece in pieces:
        assert (piece.dtype, piece.shape[1], piece.rate) == (np.int16, 2, 48_000)
    samples_ = np.concatenate([piece.array for piece in pieces])
    assert len(samples_) > 1.7 * 48_000
    assert len(taken) >= len(pieces)
    loud = [
        piece.time + int(np.abs(piece.array[:, 0]).argmax()) / piece.rate
        for piece in pieces
        if np.abs(piece.array).max() > 10_000
    ]
    assert {round(at) for at in loud} >= {1}
    for at in loud:
        assert at == pytest.approx(round(at), abs=0.03)


async def test_who_is_slow_misses_some(site):
    """A slow reader and a slow function miss frames, which are counted; neither holds up the other, nor the connection."""
    seen = []

    def slow(frame):
        time.sleep(0.2)
        seen.append(number(frame))

    async with site.client(slow) as client:
        pc_id = await client.request_stream(site.silent)
        frames = client.frames(pc_id)
        got = [number(frame) async for frame in frames]
        received = (await client.get_stats(pc_id))["received"]["video"]
    assert len(got) > 2 * len(seen)
    assert seen == sorted(seen)
    assert received["frames"] == SECONDS * RATE
    assert received["dropped"] > 20
    assert seen[-1] > SECONDS * RATE - 20  # the latest win


async def test_functions_may_be_coroutine_functions_and_may_fail(site, caplog):
    """They are awaited on the loop; a row of failures is logged once, and the frames go on."""
    seen = []

    async def handle(frame):
        await asyncio.sleep(0)
        seen.append((number(frame), threading.current_thread()))
        raise ZeroDivisionError

    async with site.client(handle) as client:
        await client.request_stream(site.long)
        await until(lambda: len(seen) > 5)
    assert {thread for _, thread in seen} == {threading.current_thread()}
    assert caplog.text.count("on_frame failed") == 1


@pytest.mark.parametrize("name", ["on_frame", "on_connection_change"])
@pytest.mark.parametrize("kind", ["coroutine function", "function"])
async def test_a_function_may_close_the_client(site, name, kind):
    """From within, and wait for it."""
    closed, loop = asyncio.Event(), asyncio.get_running_loop()

    async def close():
        await client.close()
        closed.set()

    async def handle(*_args):
        await close()

    def handle_in_thread(*_args):
        asyncio.run_coroutine_threadsafe(close(), loop).result(10)

    client = site.client(**{name: handle if kind == "coroutine function" else handle_in_thread})
    await client.connect()
    try:
        await client.request_stream(site.silent)
    except BadRequestError as error:
        assert "closed" in str(error)  # noqa: PT017
    await asyncio.wait_for(closed.wait(), 10)
    assert client.state == "closed"


async def test_mistakes_are_told(site):
    """What cannot be is refused with a text that says what would be right; the client goes on."""
    client = site.client()
    assert client.state == "new"
    with pytest.raises(BadRequestError, match="not connected"):
        await client.request_stream(site.clip)
    async with client:
        for error, match, wish in (
            (BadCIDError, "not a CID", {"cid": "nonsense"}),
            (NotFoundError, "not", {"cid": "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"}),
            (UnsupportedMediaError, ".", {"cid": site.text}),
            (UnsupportedMediaError, "no audio", {"cid": site.silent, "kind": "audio"}),
            (BadRequestError, "video or audio", {"cid": site.clip, "kind": "smell"}),
            (BadRequestError, "frame_rate", {"cid": site.clip, "frame_rate": 0}),
            (BadRequestError, "quality", {"cid": site.clip, "quality": "best"}),
            (BadRequestError, "start", {"cid": site.clip, "start": -1}),
            (BadRequestError, "start", {"cid": site.clip, "start": math.nan}),
        ):
            with pytest.raises(error, match=match):
                await client.request_stream(**wish)
        pc_id = await client.request_stream(site.silent)
        for mistake in (
            lambda: client.seek("p9", 1.0),
            lambda: client.seek(pc_id, -1.0),
            lambda: client.set_quality(pc_id, "best"),
            lambda: client.close("p9"),
            lambda: client.get_stats("p9"),
            lambda: client.add_ice_candidate("p9", ""),
            lambda: client.add_ice_candidate(pc_id, "nonsense"),
            lambda: client.add_ice_candidate(pc_id, 3),
        ):
            with pytest.raises(BadRequestError):
                await mistake()
        for mistake in (client.frames, client.audio, client.playback):
            with pytest.raises(BadRequestError, match="no stream of this client"):
                mistake("p9")
        with pytest.raises(BadRequestError, match="no audio; it has video"):
            client.audio(pc_id)
        assert number(await anext(client.frames(pc_id))) is not None
        await client.close(pc_id)
        with pytest.raises(BadRequestError, match="it has ended"):
            await client.pause(pc_id)
    for late in (client.connect, lambda: client.request_stream(site.clip), client.get_stats):
        with pytest.raises(BadRequestError, match="closed"):
            await late()
    await client.close()


async def test_arguments_that_make_no_sense():
    """The constructor refuses them, with a hint for a misspelt one."""
    with pytest.raises(BadRequestError, match="on_frame is a function"):
        ipfs.WebRTCClient("http://localhost:1/", 3)
    with pytest.raises(BadRequestError, match="goes with a URL"):
        ipfs.WebRTCClient(token="x")
    with pytest.raises(BadRequestError, match="all or relay"):
        ipfs.WebRTCClient(ice_transport_policy="none")
    with pytest.raises(TypeError, match="did you mean 'on_frame'"):
        ipfs.WebRTCClient(on_fram=print)
    client = ipfs.WebRTCClient("http://localhost:1/", ice_servers=[{"urls": "http://x"}])
    with pytest.raises(BadRequestError, match="ICE server"):
        await client.connect()


async def test_no_server_and_no_right(site):
    """Connecting says which it is."""
    with pytest.raises(RetrievalError, match="no server answers"):
        await ipfs.WebRTCClient("http://127.0.0.1:9/").connect()
    with pytest.raises(UnauthorizedError):
        await ipfs.WebRTCClient(site.url, token="wrong").connect()


async def test_media_outlives_its_signaling_but_is_not_steered(site):
    """A lost connection leaves no stream behind for good; the next request connects anew."""
    async with CuttingProxy(site.url) as proxy:
        client = site.client(url=proxy.url)
        await client.connect()
        pc_id = await client.request_stream(site.clip, loop=True)
        frames = client.frames(pc_id)
        await anext(frames)
    await until(lambda: client.state == "disconnected")
    async with asyncio.timeout(20):
        async for _ in frames:  # until the server ends what that socket had
            pass
    with pytest.raises(BadRequestError, match="it has ended"):
        await client.seek(pc_id, 1.0)
    with pytest.raises(RetrievalError):  # the proxy is gone
        await client.request_stream(site.clip)
    await client.close()


async def test_a_lost_connection_is_made_again(site):
    """By the next request."""
    async with CuttingProxy(site.url) as proxy, site.client(url=proxy.url) as client:
        await client.request_stream(site.silent)
        for task in proxy._tasks:
            task.cancel()
        await until(lambda: not client.connected)
        with pytest.raises(IPFSStreamError):
            await client.get_stats()
        pc_id = await client.request_stream(site.silent)
        assert client.connected
        assert await client.frames(pc_id).get(timeout=10) is not None


async def test_the_clients_method(site, patient):
    """`client.webrtc` gives a stream to loop over; leaving it ends it at the server too."""
    async with connected(site.url, site.token) as client:
        with pytest.raises(BadCIDError):
            client.webrtc("nonsense")
        stream = client.webrtc(site.clip, start=1.0)
        with pytest.raises(BadRequestError, match="not open"):
            _ = stream.pc_id
        assert repr(stream) == "<WebRTCStream: not open>"
        async with stream:
            assert repr(stream) == "<WebRTCStream: connected>"
            first = number(await stream.get(timeout=10))
            assert first >= 1.0 * RATE
            rest = [number(frame) async for frame in stream]
            assert_run([first, *rest], RATE, stream.dropped, await stream.get_stats())
            assert stream.playback.state == "ended"
            await stream.resume()
            again = [number(frame) async for frame in stream]
            assert again[-1] == SECONDS * RATE - 1 or (await stream.get_stats())["frames_dropped"]
            assert (await stream.get_stats())["cid"] == site.clip
        assert repr(stream) == "<WebRTCStream: closed>"
        assert (await client.health())["active"]["peer_connections"] == 0
        dangling = client.webrtc(site.silent)
        await dangling.__aenter__()
    with pytest.raises(StopAsyncIteration):  # closed with the client
        while True:
            await anext(dangling)


def test_the_blocking_client(site, patient):
    """The same for a notebook."""
    with ipfs.connect(site.url, site.token) as client:
        with client.webrtc(site.clip, audio=False, start=1.0) as stream:
            assert stream.pc_id
            numbers = [number(frame) for frame in stream]
            assert_run(numbers, RATE, stream.dropped, stream.get_stats())
            assert stream.playback.duration == pytest.approx(SECONDS, abs=0.1)
            assert stream.seek(1.0).state == "playing"
            assert [number(frame) for frame in itertools.islice(stream, 2)]
            assert stream.pause().state == "paused"
            assert stream.resume().state == "playing"
            assert stream.set_quality("auto") == "auto"
            assert stream.get_stats()["cid"] == site.clip
            assert stream.get(timeout=10) is not None
        with pytest.raises(IPFSStreamError, match="is a file"):
            client.webrtc(f"{site.clip}/x").__enter__()


# -- with a server that misbehaves


async def test_exact_times_that_the_server_marks(script):
    """Where the server says which frame is what second, that holds; frames that are only there to decode are left out."""
    async with ipfs.WebRTCClient(script.url) as client:
        pc_id = await client.request_stream("bafkqaaa", start=5.0)
        frames = client.frames(pc_id)
        first = await asyncio.wait_for(anext(frames), 10)
        assert first.time == pytest.approx(5.0 + number(first) / RATE, abs=0.002)
        sender = script.senders[pc_id]
        await sender.mark(30, None)
        await sender.mark(45, 100.0)
        await sender.say(type="playback", position=7.0, state="paused", duration=200.0)
        await until(lambda: client.playback(pc_id).duration == 200.0)
        assert client.playback(pc_id).position == 7.0
        await sender.say(type="stats")
        sender.channel.send("no json")
        sender.channel.send("[]")
        got = {}
        async with asyncio.timeout(10):
            while not any(time >= 100.0 for time in got.values()):
                frame = await anext(frames)
                got[number(frame)] = frame.time
        assert not set(range(31, 45)) & set(got)
        assert got[max(got)] == pytest.approx(100.0 + max(got) / RATE - 1.5, abs=0.002)


async def test_times_are_right_though_the_first_packets_are_lost(script, monkeypatch):
    """They go by the timestamps on the wire, not by what came first."""
    send, lost = RTCDtlsTransport._send_rtp, set()

    async def lossy(transport, data):
        timestamp = None if is_rtcp(data) else RtpPacket.parse(data).timestamp
        if timestamp is not None and (timestamp in lost or len(lost) < 5):
            lost.add(timestamp)
        else:
            await send(transport, data)

    monkeypatch.setattr(RTCDtlsTransport, "_send_rtp", lossy)
    async with ipfs.WebRTCClient(script.url) as client:
        pc_id = await client.request_stream("bafkqaaa")
        await script.senders[pc_id].mark(0, 100.0)
        frames = client.frames(pc_id)
        async with asyncio.timeout(10):
            while (frame := await anext(frames)).time < 100.0:
                pass  # on a busy machine the mark comes later than those
    assert number(frame) >= 5
    assert frame.time == pytest.approx(100.0 + number(frame) / RATE, abs=0.002)


async def test_another_offer_takes_the_place_of_one_that_found_no_way(script):
    """A server with a relay comes again, under another pc_id; the request does not notice."""

    async def answer(server, message):
        if message["pc_id"] == "p1":
            failed = {"type": "error", "code": "retrieval_failed", "error": "no way", "pc_id": "p1"}
            return [failed, await server.offer(replaces="p1")]
        return await server._usual(message)

    async def offer(server, _message):
        return await server.offer(
            ice_servers=[{"urls": ["turn:127.0.0.1:9"], "username": "u", "credential": "p"}]
        )

    script.on = {"answer": answer, "offer_request": offer}
    states = []
    async with ipfs.WebRTCClient(script.url, None, lambda *change: states.append(change)) as client:
        assert await client.request_stream("bafkqaaa") == "p2"
        assert (await asyncio.wait_for(anext(client.frames("p2")), 10)).pc_id == "p2"
    told = [
        ("p1", "connecting"),
        ("p1", "closed"),
        ("p2", "connecting"),
        ("p2", "connected"),
        ("p2", "closed"),
    ]
    assert states == told


@pytest.mark.parametrize(
    ("after_answer", "error"),
    [
        ({"type": "error", "code": "retrieval_failed", "error": "no way", "pc_id": "p1"}, RetrievalError),
        (
            {"type": "error", "code": "unsupported_media", "error": "no", "request": "answer", "pc_id": "p1"},
            UnsupportedMediaError,
        ),
        ({"type": "closed", "pc_id": "p1"}, BadRequestError),
        ({"type": "offer", "pc_id": "p1", "sdp": "v=0", "replaces": "p1"}, RetrievalError),
        ("no json", RetrievalError),
    ],
)
async def test_what_keeps_media_from_flowing_is_raised(script, after_answer, error):
    """And the stream is gone."""

    async def answer(_server, _message):
        return after_answer

    script.on = {"answer": answer}
    async with ipfs.WebRTCClient(script.url) as client:
        with pytest.raises(error):
            await client.request_stream("bafkqaaa")
        assert client.streams == {}


async def test_a_server_that_says_nothing(script, monkeypatch):
    """Is waited for, but not for ever: for a welcome, an offer, media, and an answer to a command."""

    async def nothing(_server, _message):
        return None

    usual = webrtc_stream.CONNECT_SECONDS
    monkeypatch.setattr(webrtc_stream, "CONNECT_SECONDS", 0.3)
    async with ipfs.WebRTCClient(script.url) as client:
        script.on = {"answer": nothing}
        with pytest.raises(UnreachableError, match="no media came"):
            await client.request_stream("bafkqaaa")
        script.on = {}
        monkeypatch.setattr(webrtc_stream, "CONNECT_SECONDS", usual)  # this one's media comes
        pc_id = await client.request_stream("bafkqaaa")
        monkeypatch.setattr(webrtc_link, "ANSWER_SECONDS", 0.1)
        monkeypatch.setattr(webrtc_link, "OFFER_SECONDS", 0.2)
        with pytest.raises(RetrievalTimeoutError, match="'pause'"):
            await client.pause(pc_id)
        script.on = {"offer_request": nothing}
        with pytest.raises(RetrievalTimeoutError, match="offered no media"):
            await client.request_stream("bafkqaaa")
        with pytest.raises(RetrievalTimeoutError):  # the next one would be taken for this one's
            await client.request_stream("bafkqaaa")
    script.welcome = None
    monkeypatch.setattr("ipfs_stream_nb.clients.webrtc_link.CONNECT_TIMEOUT", 0.1)
    with pytest.raises(RetrievalTimeoutError, match="no welcome"):
        await ipfs.WebRTCClient(script.url).connect()


async def test_a_request_that_is_given_up_is_closed_at_the_server(script):
    """Also where its offer comes later; the next request gets its own."""
    gate = asyncio.Event()

    async def offer(server, _message):
        await gate.wait()
        return await server.offer()

    script.on = {"offer_request": offer}
    async with ipfs.WebRTCClient(script.url) as client:
        request = asyncio.create_task(client.request_stream("bafkqaaa"))
        await until(lambda: script.of("offer_request"))
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        gate.set()
        assert await client.request_stream("bafkqaaa") == "p2"
        closed = await script.until_heard("close")
        assert [one["pc_id"] for one in closed] == ["p1"]


async def test_what_nobody_takes_does_not_pile_up(script):
    """Tracks are read whether anybody takes their frames or not; who comes first gets the newest few."""
    async with ipfs.WebRTCClient(script.url) as client:
        pc_id = await client.request_stream("bafkqaaa")
        stream = client._stream(pc_id)
        await until(lambda: stream.received()["video"]["frames"] >= 30)
        (receiver,) = [one.receiver for one in stream._pc.getTransceivers()]
        assert receiver.track._queue.qsize() <= 1
        frames = client.frames(pc_id)
        assert number(await anext(frames)) >= 24
        assert stream.received()["video"]["dropped"] == 0


async def test_relay_only_without_a_relay(script):
    """Is told at once."""
    async with ipfs.WebRTCClient(script.url, ice_transport_policy="relay") as client:
        with pytest.raises(UnreachableError, match="no TURN server"):
            await client.request_stream("bafkqaaa")


async def test_many_requests_at_once(script):
    """Each gets a stream of its own."""
    async with ipfs.WebRTCClient(script.url) as client:
        got = await asyncio.gather(*(client.request_stream("bafkqaaa") for _ in range(3)))
        assert sorted(got) == ["p1", "p2", "p3"]
        frames = await asyncio.gather(*(client.frames(one).get(timeout=10) for one in got))
        assert [frame.pc_id for frame in frames] == got
        await client.close(got[0])
        assert sorted(client.streams) == sorted(got[1:])


async def test_what_the_end_was_is_told(script):
    """An error of a stream that played is raised by the loop over its frames, and its state is told."""
    states = []
    async with ipfs.WebRTCClient(script.url, None, lambda *change: states.append(change)) as client:
        pc_id = await client.request_stream("bafkqaaa")
        frames = client.frames(pc_id)
        await anext(frames)
        await script.say({"type": "error", "code": "corrupt_content", "error": "bad block", "pc_id": pc_id})
        await script.senders[pc_id].pc.close()
        with pytest.raises(IPFSStreamError, match="bad block"):
            async for _ in frames:
                pass
        await until(lambda: states[-1] == (pc_id, "failed"))
        assert client.streams == {}


async def test_messages_that_mean_nothing(script, caplog):
    """They are passed over."""
    async with ipfs.WebRTCClient(script.url) as client:
        pc_id = await client.request_stream("bafkqaaa")
        for message in (
            {},
            {"type": 3, "pc_id": []},
            {"type": "news", "pc_id": pc_id},
            {"type": "playback", "pc_id": pc_id, "position": "x", "state": "playing"},
            {"type": "candidate", "pc_id": pc_id, "candidate": "nonsense"},
            {"type": "candidate", "pc_id": pc_id, "candidate": 3},
            {"type": "candidate", "pc_id": "p9"},
            {"type": "candidate", "pc_id": pc_id, "candidate": None},
            {"type": "candidate", "pc_id": pc_id, "candidate": "candidate:1 1 udp 1 192.0.2.9 9 typ host"},
            {"type": "error", "code": "busy", "error": "nobody asked"},
            {"type": "error"},
            {"type": "offer", "pc_id": "p7", "sdp": ""},
        ):
            await script.say(message)
        assert [one["pc_id"] for one in await script.until_heard("close")] == ["p7"]
        assert (await client.get_stats(pc_id))["rtt"] == 0.01
        assert "nobody asked" in caplog.text
        await client.add_ice_candidate(pc_id, {"candidate": "", "sdpMid": "0"})
        assert await client.frames(pc_id).get(timeout=10) is not None
