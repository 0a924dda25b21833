"""SDP that points to a relay instead of to its peer."""

from __future__ import annotations

import pytest

from link.candidates import HIGHEST, rewrite_candidate, rewrite_sdp

RELAY = ("127.0.0.1", 4000)
MINE = f"candidate:1 1 udp {HIGHEST} 127.0.0.1 4000 typ host"


@pytest.mark.parametrize(
    ("candidate", "rewritten"),
    [
        ("candidate:7 1 udp 99 192.168.1.5 5000 typ host generation 0", MINE),
        ("candidate:7 1 UDP 99 10.0.0.9 5001 typ host", MINE),
        ("candidate:7 1 udp 99 0f1e.local 5000 typ host", MINE),
        ("candidate:7 1 udp 99 fe80::1 5000 typ host", MINE),
        ("candidate:7 2 udp 99 192.168.1.5 5000 typ host", None),
        ("candidate:7 1 tcp 99 192.168.1.5 9 typ host tcptype active", None),
        ("candidate:7 1 udp 99 9.9.9.9 5000 typ srflx raddr 192.168.1.5 rport 5000", None),
        ("candidate:7 1 udp 99 9.9.9.9 5000 typ relay raddr 1.1.1.1 rport 5000", None),
        ("", None),
    ],
    ids=["host", "upper", "mdns", "ipv6", "rtcp", "tcp", "srflx", "turn", "end"],
)
def test_one_candidate(candidate, rewritten):
    """A UDP host candidate becomes the relay's; the others, the end of candidates too, have none."""
    assert rewrite_candidate(candidate, RELAY) == rewritten


def test_a_whole_description():
    """One candidate in each section that had some, and no other address left."""
    sdp = """v=0
o=- 1 1 IN IP4 127.0.0.1
m=audio 5000 UDP/TLS/RTP/SAVPF 96
c=IN IP4 192.168.1.5
a=rtcp:9 IN IP4 0.0.0.0
a=candidate:1 1 udp 9 192.168.1.5 5000 typ host
a=candidate:2 1 udp 8 172.17.0.1 5001 typ host
a=end-of-candidates
m=video 9 UDP/TLS/RTP/SAVPF 97
c=IN IP4 0.0.0.0
m=video 0 UDP/TLS/RTP/SAVPF 97
m=application 5002 UDP/DTLS/SCTP webrtc-datachannel
a=rtcp:5002 IN IP4 192.168.1.5
a=candidate:1 1 udp 9 192.168.1.5 5002 typ host
"""
    assert rewrite_sdp(sdp, RELAY).split("\r\n") == [
        "v=0",
        "o=- 1 1 IN IP4 127.0.0.1",
        "m=audio 4000 UDP/TLS/RTP/SAVPF 96",
        "c=IN IP4 127.0.0.1",
        "a=rtcp:9 IN IP4 0.0.0.0",
        f"a={MINE}",
        "a=end-of-candidates",
        "m=video 9 UDP/TLS/RTP/SAVPF 97",
        "c=IN IP4 0.0.0.0",
        "m=video 0 UDP/TLS/RTP/SAVPF 97",
        "m=application 4000 UDP/DTLS/SCTP webrtc-datachannel",
        "a=rtcp:4000 IN IP4 127.0.0.1",
        f"a={MINE}",
        "",
    ]
