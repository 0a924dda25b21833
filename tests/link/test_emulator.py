"""Emulated links that carry real traffic: between two hosts (root), and between UDP sockets."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from dataclasses import replace

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from link.emulator import Link, RelayLink
from link.flows import BulkFlow, echo_times
from link.model import Outcome
from link.namespaces import LinkUnavailableError, ip
from link.paths import NetworkPath, Scenario
from link.rows import UDP, flow_id

MEGABIT = 1_000_000
PATIENCE = 10
ROUNDS = 3
"""How often a link is filled at the most until all that it has is used once, which a machine that stands still does not allow."""


def scenario(rate, delay=0.0, **options):
    path = NetworkPath(rate, delay, **options)
    return Scenario("test", path, path, 10)


@contextlib.asynccontextmanager
async def two_hosts(scenario):
    """The link, or a skipped test with the reason."""
    link = Link(scenario)
    try:
        await link.__aenter__()
    except LinkUnavailableError as error:
        pytest.skip(str(error))
    async with contextlib.AsyncExitStack() as made:
        made.push_async_callback(link.close)
        yield link


async def settle(true):
    """Wait for what the link's process does by itself."""
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.01)


async def test_a_host_runs_programs_that_see_the_link_alone():
    """A command runs there, with the two addresses of that host and the way over the link."""
    async with two_hosts(scenario(MEGABIT)) as link:
        process = await link.viewer.start("ip", "-4", "-o", "address", stdout=asyncio.subprocess.PIPE)
        said, _ = await process.communicate()
    assert process.returncode == 0
    assert link.viewer.address in said.decode()
    assert len(said.splitlines()) == 2


async def test_an_echo_takes_the_delays_and_no_more():
    """20 ms one way and 20 ms the other; ours adds little, a busy machine some more."""
    async with two_hosts(scenario(20 * MEGABIT, 0.02)) as link:
        times = await asyncio.to_thread(echo_times, link.viewer, link.server, 15)
        await settle(lambda: link.records.up.count() >= 15 and link.records.down.count() >= 15)
    assert 0.04 <= min(times) < 0.05
    assert link.records.up.lateness(50) < 0.01


async def test_tcp_fills_the_link_and_follows_its_rate():
    """A bulk transfer at 20 and then 8 Mbit/s: the rate is used and not exceeded, the queue is bounded, losses are its."""
    steps = ((0, 20 * MEGABIT), (1, 8 * MEGABIT))
    path = NetworkPath(steps, 0.005, queue_seconds=0.1)  # what waits as the rate falls takes 0.25 s then
    for _ in range(ROUNDS):
        async with two_hosts(Scenario("test", path, NetworkPath(20 * MEGABIT, 0.005), 3)) as link:
            with await asyncio.to_thread(BulkFlow, link.server, link.viewer) as flow:
                link.begin()
                await settle(lambda link=link: link.elapsed > 2.2)
        down = link.records.down
        used = down.utilisation(0.4, 1), down.utilisation(1.4, 2)
        if min(used) > 0.9:
            break
    assert 0.9 < min(used) <= max(used) < 1.01
    assert down.bitrate(0.4, 1, flow.flow) == pytest.approx(20 * MEGABIT, rel=0.1)
    assert down.queue_delay(95, 1.4, 2) <= 0.11
    assert down.losses()["queue_full"] == down.count() - down.count(0, 4, 5)
    assert down.lateness(50) < 0.01
    assert flow.received > down.bitrate(0, 2) / 8


async def test_a_flow_that_ends_does_not_hold_its_link():
    """The link is taken away with the transfer under way, and nothing of it stays."""
    async with two_hosts(scenario(MEGABIT)) as link:
        name = link.viewer.namespace.name
        with await asyncio.to_thread(BulkFlow, link.server, link.viewer):
            pass
    assert name not in await asyncio.to_thread(ip, "netns", "list")
    assert link.records.down.count() >= 1


async def test_a_process_that_dies_is_told():
    """Whoever closes the link hears of it; records up to then stay."""
    link = RelayLink(scenario(MEGABIT))
    async with contextlib.AsyncExitStack() as made:
        await made.enter_async_context(link)
        link._process.send_signal(signal.SIGKILL)
        with pytest.raises(RuntimeError, match="has failed"):
            await link.close()


async def test_a_machine_without_namespaces_says_why(monkeypatch):
    """The reason is in the error."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LinkUnavailableError, match="iproute2"):
        async with Link(scenario(MEGABIT)):
            pass


async def test_a_relay_passes_datagrams_late_and_in_pairs():
    """Each pair has its ends; what strangers send is not passed on; both share the link."""
    loop = asyncio.get_running_loop()
    async with RelayLink(replace(scenario(MEGABIT, 0.05), flows=2)) as link, asyncio.timeout(PATIENCE):
        for pair in link.pairs:
            with udp() as viewer, udp() as server, udp() as stranger:
                start = loop.time()
                server.sendto(b"down", pair.viewer.address)
                viewer.sendto(b"up", pair.server.address)
                assert await loop.sock_recvfrom(server, 99) == (b"up", pair.viewer.address)
                assert await loop.sock_recvfrom(viewer, 99) == (b"down", pair.server.address)
                assert loop.time() - start >= 0.05  # a machine that stands still adds to it
                stranger.sendto(b"stray", pair.server.address)
                viewer.sendto(b"again", pair.server.address)
                assert await loop.sock_recvfrom(server, 99) == (b"again", pair.viewer.address)
    assert [row["size"] for row in link.records.down.rows] == [32, 32]
    assert [row["size"] for row in link.records.up.rows] == [30, 33, 30, 33]
    assert list(link.records.up.flows()) == [flow_id(UDP, 0), flow_id(UDP, 1)]


async def test_what_is_under_way_at_the_end_is_in_the_records():
    """The first datagram has arrived, and the second, which takes a second, waits."""
    async with RelayLink(scenario(10_000, queue_seconds=None)) as link, asyncio.timeout(PATIENCE):
        pair = link.pairs[0]
        with udp() as viewer, udp() as server:
            server.sendto(b"", pair.viewer.address)
            viewer.sendto(b"first", pair.server.address)
            viewer.sendto(bytes(1250), pair.server.address)
            await asyncio.get_running_loop().sock_recvfrom(server, 9)
    assert [row["outcome"] for row in link.records.up.rows] == [Outcome.DELIVERED, Outcome.WAITING]


def udp():
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind(("127.0.0.1", 0))
    one.setblocking(False)
    return one


async def test_peers_that_know_the_relay_alone_connect_through_it(monkeypatch):
    """Two aiortc peers: every selected address is the relay's, and messages take its delay either way."""
    monkeypatch.setattr("aioice.ice.get_host_addresses", lambda **_: ["127.0.0.1"])
    async with RelayLink(scenario(2 * MEGABIT, 0.05)) as link, contextlib.AsyncExitStack() as made:
        pair = link.pairs[0]
        server, viewer = (RTCPeerConnection(RTCConfiguration(iceServers=[])) for _ in range(2))
        for one in (server, viewer):
            made.push_async_callback(one.close)
        channel = server.createDataChannel("echo")
        opened, answered = asyncio.Event(), asyncio.Event()
        channel.on("open", opened.set)
        channel.on("message", lambda _: answered.set())

        @viewer.on("datachannel")
        def _on_channel(other):
            other.on("message", other.send)

        await server.setLocalDescription(await server.createOffer())
        offer = pair.server.rewrite_sdp(server.localDescription.sdp)
        await viewer.setRemoteDescription(RTCSessionDescription(offer, "offer"))
        await viewer.setLocalDescription(await viewer.createAnswer())
        answer = pair.viewer.rewrite_sdp(viewer.localDescription.sdp)
        await server.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        async with asyncio.timeout(PATIENCE):
            await opened.wait()
            start = asyncio.get_running_loop().time()
            channel.send("there and back")
            await answered.wait()
        assert asyncio.get_running_loop().time() - start >= 0.1
        for one, other in ((viewer, pair.server), (server, pair.viewer)):
            nominated = one.sctp.transport.transport._connection._nominated[1]
            assert nominated.remote_addr == other.address
    assert link.records.down.count() > 5
    assert link.records.up.count() > 5


async def test_the_link_is_quiet_by_itself():
    """No packet of the hosts' own is on it, which a measurement would meet."""
    async with two_hosts(scenario(MEGABIT)) as link:
        ready = await link.server.start(sys.executable, "-c", "")
        await ready.wait()
    assert link.records.up.count() == link.records.down.count() == 0
