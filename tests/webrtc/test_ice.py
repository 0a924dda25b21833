"""Configured servers, and candidates and descriptions from anybody."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from aioice import Candidate
from aiortc import (
    RTCConfiguration,
    RTCIceCandidate,
    RTCIceServer,
    RTCPeerConnection,
    RTCSessionDescription,
)
from hypothesis import given
from hypothesis import strategies as st

from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError, TooLargeError, UnsupportedMediaError
from ipfs_stream_nb.webrtc.gathering import GOODBYE_SECONDS
from ipfs_stream_nb.webrtc.ice import (
    bundle_policy_of,
    candidate_json,
    has_turn,
    ice_servers_json,
    ice_servers_of,
    is_allowed,
    mend,
    parse_candidate,
    transport_policy,
)
from ipfs_stream_nb.webrtc.sdp import check_codec, read_description
from ipfs_stream_nb.webrtc.whep import link_headers, parse_fragment
from turn_server import TurnServer

GUIDE = [
    {"urls": ["stun:stun.example.com:19302"]},
    {"urls": "turn:turn.example.com:3478", "username": "user", "credential": 'pass"word'},
]


REMOTE = "1 1 udp 2130706431 192.168.1.7 5000 typ host"


def line(address: str, port: int = 5000, transport: str = "udp", kind: str = "host") -> str:
    return f"candidate:1 1 {transport} 2130706431 {address} {port} typ {kind}"


def test_servers():
    """The guide's dictionaries become what aiortc takes, and what a browser takes."""
    servers = ice_servers_json(GUIDE)
    assert servers[1]["urls"] == ["turn:turn.example.com:3478"]
    assert ice_servers_of(servers) == [
        RTCIceServer(["stun:stun.example.com:19302"]),
        RTCIceServer(["turn:turn.example.com:3478"], "user", 'pass"word'),
    ]
    assert has_turn(servers)
    assert not has_turn(servers[:1])
    assert ice_servers_json(None) == []
    assert ice_servers_json([RTCIceServer("stun:a.example")]) == [{"urls": ["stun:a.example"]}]
    assert link_headers(servers) == [
        '<stun:stun.example.com:19302>; rel="ice-server"',
        (
            '<turn:turn.example.com:3478>; rel="ice-server"; username="user"; credential="pass\\"word"; '
            'credential-type="password"'
        ),
    ]


@pytest.mark.parametrize("server", [{}, {"urls": 1}, {"urls": []}, {"urls": "http://x"}, {"urls": [None]}])
def test_bad_servers(server):
    """What is no server is refused when it is configured."""
    with pytest.raises(BadRequestError):
        ice_servers_json([server])


def test_policies():
    """Policies are the standard's words."""
    assert transport_policy("relay").value == "relay"
    assert bundle_policy_of("max-bundle").value == "max-bundle"
    with pytest.raises(BadRequestError):
        transport_policy("none")
    with pytest.raises(BadRequestError):
        bundle_policy_of("min")


@pytest.mark.parametrize(
    ("address", "allowed", "with_loopback"),
    [
        ("192.168.1.7", True, True),
        ("93.184.216.34", True, True),
        ("2001:db8::7", True, True),
        ("f4a1b2c3-1111-2222-3333-444455556666.local", True, True),
        ("127.0.0.1", False, True),
        ("127.8.8.8", False, True),
        ("::1", False, True),
        ("::ffff:127.0.0.1", False, True),
        ("169.254.169.254", False, True),
        ("fe80::1", False, True),
        ("224.0.0.251", False, False),
        ("ff02::1", False, False),
        ("0.0.0.0", False, False),
        ("::", False, False),
        ("255.255.255.255", False, False),
        ("::ffff:224.0.0.1", False, False),
        ("example.com", False, False),
        ("localhost", False, False),
        ("../../etc.local", False, False),
    ],
)
def test_addresses(address, allowed, with_loopback):
    """Loopback and link-local addresses only where they are allowed, groups and names never."""
    candidate = parse_candidate(line(address))
    assert is_allowed(candidate, allow_loopback=False) is allowed
    assert is_allowed(candidate, allow_loopback=True) is with_loopback


def test_on_a_machine_without_a_network(monkeypatch):
    """Where there is no other address than loopback's, whoever names that is on this machine."""
    monkeypatch.setattr("aioice.ice.get_host_addresses", lambda **_kwargs: [])
    for address, allowed in (
        ("127.0.0.1", True),
        ("::1", True),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
    ):
        assert is_allowed(parse_candidate(line(address)), allow_loopback=False) is allowed


def test_other_transports():
    """Only UDP, and a port that is one."""
    assert not is_allowed(parse_candidate(line("192.168.1.7", transport="tcp")), allow_loopback=True)
    assert not is_allowed(parse_candidate(line("192.168.1.7", port=0)), allow_loopback=True)


def test_spellings():
    """As browsers write it, as SDP does, with what they add."""
    browser = "candidate:842163049 1 udp 1677729535 203.0.113.9 46154 typ srflx raddr 10.0.0.17 rport 46154 generation 0"
    for text in (browser, f"a={browser}", browser.removeprefix("candidate:")):
        candidate = parse_candidate(text)
        assert (candidate.ip, candidate.port, candidate.type) == ("203.0.113.9", 46154, "srflx")
        assert (candidate.relatedAddress, candidate.relatedPort) == ("10.0.0.17", 46154)


@given(st.one_of(st.text(max_size=100), st.text("candidte: 1udp.typhos", max_size=60)))
def test_any_candidate(text):
    """Whatever comes is a candidate or a clear error."""
    with suppress(BadRequestError):
        parse_candidate(text)


async def offer(kinds=("video", "audio")) -> str:
    pc = RTCPeerConnection()
    for kind in kinds:
        pc.addTransceiver(kind, "recvonly")
    description = await pc.createOffer()
    await pc.close()
    return description.sdp


async def test_screening():
    """Candidates that nothing may be sent to are taken out of a description; the others stay."""
    sdp = await offer()
    sdp += f"a={line('192.168.1.7')}\r\na={line('127.0.0.1')}\r\na={line('169.254.169.254')}\r\n"
    description, parsed = read_description(sdp, "offer", allow_loopback=False, max_candidates=8)
    assert [one.ip for one in parsed.media[1].ice_candidates] == ["192.168.1.7"]
    assert "127.0.0.1" not in description.sdp
    assert "169.254" not in description.sdp


async def test_too_much():
    """Descriptions that are too long, or name too many addresses or sections, are refused."""
    sdp = await offer()

    def read(text: str) -> None:
        read_description(text, "offer", allow_loopback=False, max_candidates=8)

    with pytest.raises(TooLargeError, match="addresses"):
        read(sdp + "".join(f"a={line(f'10.0.0.{n}')}\r\n" for n in range(9)))
    with pytest.raises(TooLargeError, match="more than"):
        read(sdp + f"a={line('10.0.0.1')}\r\n" * 200)
    with pytest.raises(TooLargeError, match="characters"):
        read(sdp + "a=x\r\n" * 20_000)
    with pytest.raises(TooLargeError, match="sections"):
        read(await offer(("audio",) * 17))


async def test_codecs():
    """A section that refuses our packets, or takes others only, has no common codec."""
    _, parsed = read_description(await offer(), "offer", allow_loopback=False, max_candidates=8)
    check_codec(parsed.media[0], "h264")
    check_codec(parsed.media[1], "opus")
    parsed.media[0].rtp.codecs = [c for c in parsed.media[0].rtp.codecs if c.name != "H264"]
    with pytest.raises(UnsupportedMediaError, match=r"no common codec.*H264.*vp8"):
        check_codec(parsed.media[0], "h264")
    parsed.media[1].port = 0
    with pytest.raises(UnsupportedMediaError, match="refused"):
        check_codec(parsed.media[1], "opus")


@pytest.mark.parametrize(
    "sdp", [None, 7, "", "   ", "hello", "v=0\r\n", "v=0\r\nm=video\r\n", "m=video x y z\r\n"]
)
def test_bad_descriptions(sdp):
    """What is no description is a clear error."""
    with pytest.raises(BadRequestError):
        read_description(sdp, "offer", allow_loopback=False, max_candidates=8)


@given(st.data())
def test_any_description(data):
    """A description with lines changed, left out or cut is read, or is a clear error."""
    lines = _LINES.splitlines()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        lines[at] = data.draw(
            st.sampled_from(
                ["", lines[at][: len(lines[at]) // 2], "a=", "m=", lines[at] + " 999999999999", "\0"]
            )
        )
    with suppress(IPFSStreamError):
        read_description("\r\n".join(lines), "answer", allow_loopback=False, max_candidates=8)


_LINES = """v=0
o=- 1 1 IN IP4 0.0.0.0
s=-
t=0 0
a=group:BUNDLE 0
a=msid-semantic:WMS *
m=video 9 UDP/TLS/RTP/SAVPF 97 98
c=IN IP4 0.0.0.0
a=recvonly
a=extmap:1 urn:ietf:params:rtp-hdrext:sdes:mid
a=mid:0
a=rtcp-mux
a=ssrc:77 cname:x
a=rtpmap:97 VP8/90000
a=rtcp-fb:97 nack pli
a=fmtp:98 apt=97
a=rtpmap:98 rtx/90000
a=candidate:1 1 udp 2130706431 10.0.0.1 5000 typ host
a=ice-ufrag:abcd
a=ice-pwd:abcdefghijklmnopqrstuvwx
a=fingerprint:sha-256 00:11
a=setup:active"""


def test_fragments():
    """A WHEP player's candidates, the fragment of its session, and the end."""
    text = (
        "a=ice-ufrag:EsAw\r\na=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1\r\nm=audio 9 RTP/AVP 0\r\na=mid:0\r\n"
        f"a={line('192.168.1.7')}\r\na=end-of-candidates\r\n"
    )
    assert parse_fragment(text) == ([line("192.168.1.7")], "EsAw", True)
    assert parse_fragment("") == ([], "", False)
    with pytest.raises(BadRequestError):
        parse_fragment("hello")
    with pytest.raises(TooLargeError):
        parse_fragment("a=x\n" * 300)


async def test_a_relay_that_is_gone_does_not_hold_up_the_end(tmp_path):
    """A connection whose relay answers no more is closed long before that has been asked for the last time, and nothing is left
    that waits."""
    turn = await asyncio.to_thread(TurnServer, tmp_path, "127.0.0.1")
    try:
        before = asyncio.all_tasks()
        pc = RTCPeerConnection(RTCConfiguration(ice_servers_of(turn.ice_servers)))
        pc.addTransceiver("video")
        mend(pc)
        await pc.setLocalDescription()
        assert " typ relay " in pc.localDescription.sdp
        with turn.silenced():
            async with asyncio.timeout(10 * GOODBYE_SECONDS):  # it would be asked for half a minute
                await pc.close()
            assert asyncio.all_tasks() == before
    finally:
        turn.close()


@pytest.fixture
async def silent_stun():
    """A STUN server that does not answer."""
    protocol = asyncio.DatagramProtocol
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        protocol, local_addr=("127.0.0.1", 0)
    )
    yield f"stun:127.0.0.1:{transport.get_extra_info('sockname')[1]}"
    transport.close()


async def test_a_late_relay_is_told(tmp_path, monkeypatch):
    """With a listener a description waits for no relay, and says that there is more to come; then that is told, and the end."""
    monkeypatch.setattr("ipfs_stream_nb.webrtc.gathering.RELAY_SECONDS", 60.0)
    turn = await asyncio.to_thread(TurnServer, tmp_path, "127.0.0.1")
    pc = RTCPeerConnection(RTCConfiguration(ice_servers_of(turn.ice_servers)))
    try:
        found: asyncio.Queue[RTCIceCandidate | None] = asyncio.Queue()
        pc.on("icecandidate", found.put_nowait)
        pc.addTransceiver("video")
        mend(pc)
        with turn.silenced():
            await pc.setLocalDescription()
            assert pc.iceGatheringState == "gathering"
            assert " typ host" in pc.localDescription.sdp
            assert "a=end-of-candidates" not in pc.localDescription.sdp
            connection = pc.getTransceivers()[0].receiver.transport.transport._connection
            await connection.add_remote_candidate(Candidate.from_sdp(REMOTE))
        told = candidate_json(await found.get())
        assert " typ relay " in told["candidate"]
        assert parse_candidate(told["candidate"]).type == "relay"
        assert (told["sdpMid"], told["sdpMLineIndex"]) == ("0", 0)
        assert {pair.local_candidate.type for pair in connection._check_list} == {"host", "relay"}
        assert await found.get() is None
        await asyncio.sleep(0)
        assert pc.iceGatheringState == "complete"
    finally:
        await pc.close()
        turn.close()


@pytest.mark.parametrize("has_address", [False, True])
async def test_none_has_failed_that_may_find_more(monkeypatch, silent_stun, has_address):
    """A connection to a peer without an address, or that answers at none, fails once its own servers have not answered either,
    not before."""
    monkeypatch.setattr("ipfs_stream_nb.webrtc.gathering.RELAY_SECONDS", 0.3)
    near = RTCPeerConnection(RTCConfiguration([RTCIceServer(silent_stun)]))
    far = RTCPeerConnection(RTCConfiguration([]))
    failed, states = asyncio.Event(), []
    near.on("icecandidate", lambda _candidate: None)

    @near.on("iceconnectionstatechange")
    def _changed() -> None:
        states.append((near.iceConnectionState, near.iceGatheringState))
        if near.iceConnectionState == "failed":
            failed.set()

    near.addTransceiver("video")
    mend(near)
    await near.setLocalDescription()
    await far.setRemoteDescription(near.localDescription)
    answer = await far.createAnswer()
    monkeypatch.setattr("aioice.stun.RETRY_RTO", 0.02)  # of checks: the server is asked already
    monkeypatch.setattr("aioice.stun.RETRY_MAX", 0)
    await near.setRemoteDescription(RTCSessionDescription(answer.sdp, "answer"))
    if has_address:
        silent = parse_candidate(line("127.0.0.1", int(silent_stun.rpartition(":")[2])))
        silent.sdpMid = "0"
        await near.addIceCandidate(silent)
    await near.addIceCandidate(None)
    async with asyncio.timeout(5):
        await failed.wait()
    assert states == [("checking", "gathering"), ("failed", "complete")]
    await near.close()
    await far.close()
