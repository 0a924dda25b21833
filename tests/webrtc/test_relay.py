"""Media through a real coturn, to a host that no UDP packet from this one reaches; and STUN servers that do not answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

import ipfs_stream_nb as ipfs
from ipfs_stream_nb.errors import NotFoundError
from ipfs_stream_nb.samples import read_frame_number
from ipfs_stream_nb.transports.connection import ConnectionClosedError
from ipfs_stream_nb.webrtc.signaling import handle_webrtc_signaling
from ipfs_stream_nb.webrtc.slots import PeerLimits, PeerSlots
from turn_server import firewalled
from webrtc.packet_source import Sources, clip
from webrtc.viewer import wait_until

CLIP = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
FRAMES = 35
"""That are watched: more than a second, so that the click is heard with which each begins."""


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the folder's: here the peers are found on their hosts' own addresses. No picture is left out, for a machine that
    stands still looks like a slow network."""
    monkeypatch.setattr("ipfs_stream_nb.webrtc.playback.LATE", 60.0)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Two hosts and a coturn that both of them reach."""
    with firewalled(tmp_path_factory.mktemp("turn")) as hosts:
        assert not hosts.passes_udp()
        yield hosts


class Socket:
    """The server's end of a signaling connection; it keeps what was said on it, either way."""

    def __init__(self, websocket: ServerConnection) -> None:
        self.said: list[dict[str, Any]] = []
        self.heard: list[dict[str, Any]] = []
        self._websocket = websocket

    async def send_json(self, message: dict[str, Any]) -> None:
        self.said.append(message)
        with contextlib.suppress(ConnectionClosed):
            await self._websocket.send(json.dumps(message))

    async def receive(self) -> str | bytes:
        try:
            text = await self._websocket.recv()
        except ConnectionClosed:
            raise ConnectionClosedError from None
        self.heard.append(json.loads(text))
        return text

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self._websocket.close(code, reason)

    def failed(self, error: Exception) -> None:
        assert isinstance(error, NotFoundError)  # a candidate for an offer that another one has replaced


@asynccontextmanager
async def serving(host: str, **options: Any):
    """A signaling server for a clip on an address: its URL, and the sockets that were opened. At the end nothing is left."""
    sources, slots = Sources(**{CLIP: clip("webm", 10.0)}), PeerSlots()
    sockets: list[Socket] = []

    async def talk(websocket: ServerConnection) -> None:
        sockets.append(Socket(websocket))
        with contextlib.suppress(ConnectionClosedError):
            await handle_webrtc_signaling(sockets[-1], object(), sources=sources, slots=slots, **options)

    async with serve(talk, host, 0, compression=None) as server:
        yield f"http://{host}:{server.sockets[0].getsockname()[1]}/", sockets
    await wait_until(lambda: not slots.active and sources.all_closed())


@dataclass
class Watched:
    """What a viewer saw and heard."""

    numbers: list[int]
    clicks: int
    way: set[str]
    """The types of the candidates between which it came."""


async def watch(url: str, **options: Any) -> Watched:
    """Play the clip with the project's own client, for a second."""
    async with ipfs.WebRTCClient(url, **options) as client:
        pc_id = await client.request_stream(CLIP)
        clicks = asyncio.ensure_future(hear(client.audio(pc_id)))
        numbers: list[int] = []
        async with asyncio.timeout(20):
            async for frame in client.frames(pc_id):
                numbers.append(read_frame_number(frame.array))
                if len(numbers) == FRAMES:
                    break
            (stream,) = client._streams
            (pair,) = stream._pc.getTransceivers()[
                0
            ].receiver.transport.transport._connection._nominated.values()
        await client.close()
        return Watched(numbers, await clicks, {pair.local_candidate.type, pair.remote_candidate.type})


async def hear(sound: Any) -> int:
    """How many clicks there are."""
    loud = [abs(samples).max() > 8000 async for samples in sound]
    return sum(now and not before for before, now in pairwise([False, *loud]))


def relays_in(messages: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """The places that candidates of relays are for."""
    relays = [one for one in messages if " typ relay " in one.get("candidate", "")]
    return [(one["sdpMid"], one["sdpMLineIndex"]) for one in relays]


def assert_played(watched: Watched) -> None:
    """The clip's pictures in order from near its beginning, and its sound. Those of the time in which a machine stands still, the
    client passes over: that makes one leap or two."""
    numbers = watched.numbers
    assert len(numbers) == FRAMES
    assert numbers == sorted(set(numbers))
    assert numbers[0] < 120
    steps = sorted(after - before for before, after in pairwise(numbers))
    assert sum(steps[:-2]) < FRAMES + 10
    assert watched.clicks >= 1


@pytest.mark.parametrize("policy", ["all", "relay"])
async def test_relays(hosts, policy):
    """Where packets find no direct way, media comes through the relay by itself; also where nothing else is allowed."""
    servers, before = hosts.turn.ice_servers, hosts.turn.allocations
    async with serving(hosts.near, ice_servers=servers, ice_transport_policy=policy) as (url, sockets):
        watched = await asyncio.to_thread(hosts.on_far, lambda: watch(url, ice_transport_policy=policy))
    assert_played(watched)
    assert "relay" in watched.way
    assert watched.way == {"relay"} or policy == "all"
    assert hosts.turn.allocations == before + 2
    assert relays_in(sockets[0].said) == [("0", 0)]
    assert relays_in(sockets[0].heard) == ([("0", 0)] if policy == "all" else [])  # else in the answer
    assert [one["type"] for one in sockets[0].said].count("offer") == 1


async def test_relay_only_retry(hosts):
    """Of a relay that answers too late for the first offer, the server makes another, relay-only offer; then media comes."""
    servers, limits = hosts.turn.ice_servers, PeerLimits(connect_seconds=1.0)
    async with serving(hosts.near, ice_servers=servers, limits=limits) as (url, sockets):
        with hosts.turn.silenced() as wake:
            watching = asyncio.ensure_future(asyncio.to_thread(hosts.on_far, lambda: watch(url)))
            await wait_until(lambda: sockets and any(one["type"] == "offer" for one in sockets[0].said))
            object.__setattr__(limits, "connect_seconds", 30.0)  # the second offer is not to be late as well
            await wait_until(lambda: sockets and any(one["type"] == "error" for one in sockets[0].said))
            wake()
            watched = await watching
    assert_played(watched)
    first, second = (one for one in sockets[0].said if one["type"] == "offer")
    assert "typ host" in first["sdp"]
    assert "typ relay" not in first["sdp"]
    assert second["replaces"] == first["pc_id"]
    assert "typ relay" in second["sdp"]
    assert "typ host" not in second["sdp"]
    assert "relay" in watched.way


class Silent(asyncio.DatagramProtocol):
    """A STUN server that is asked and does not answer."""

    def __init__(self) -> None:
        self.asked = 0

    def datagram_received(self, _data: bytes, _address: tuple[str, int]) -> None:
        self.asked += 1


async def test_a_dead_stun_server_delays_nothing(monkeypatch):
    """A picture is there while both sides still wait for the STUN server's first answer, and ask it again later."""
    monkeypatch.setattr("aioice.ice.get_host_addresses", lambda **_kwargs: ["127.0.0.1"])
    loop = asyncio.get_running_loop()
    transport, silent = await loop.create_datagram_endpoint(Silent, local_addr=("127.0.0.1", 0))
    stun = [{"urls": f"stun:127.0.0.1:{transport.get_extra_info('sockname')[1]}"}]
    limits = PeerLimits(allow_loopback=True)
    try:
        async with (
            serving("127.0.0.1", ice_servers=stun, limits=limits) as (url, sockets),
            ipfs.WebRTCClient(url) as client,
        ):
            pc_id = await client.request_stream(CLIP)
            assert read_frame_number((await anext(aiter(client.frames(pc_id)))).array) is not None
            (stream,) = client._streams
            assert stream._pc.iceGatheringState == "gathering"
            asked = silent.asked
            assert asked >= 2
            await wait_until(lambda: silent.asked >= asked + 2)
            (offer,) = (one for one in sockets[0].said if one["type"] == "offer")
            assert "end-of-candidates" not in offer["sdp"]
    finally:
        transport.close()
