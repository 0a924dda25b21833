"""ICE candidates (RFC 8839) that point to a relay instead of to the peer itself."""

from __future__ import annotations

import re

Address = tuple[str, int]
ATTRIBUTE = "a=candidate:"
HIGHEST = 2130706431
"""RFC 8445, 5.1.2.1: the priority of a host candidate on a host with one address."""


def rewrite_sdp(sdp: str, relay: Address) -> str:
    """An SDP in which every media section that had candidates has one, the relay's.

    The sections are taken for one transport (BUNDLE).
    """
    lines: list[str] = []
    section_has_one = False
    for line in sdp.splitlines():
        kept = line
        if line.startswith("m="):
            section_has_one = False
            kept = re.sub(r"^(m=\w+) (?!0 |9 )\d+ ", rf"\1 {relay[1]} ", line)
        elif line.startswith("c=IN IP4 ") and not line.endswith(" 0.0.0.0"):
            kept = f"c=IN IP4 {relay[0]}"
        elif line.startswith("a=rtcp:") and not line.startswith("a=rtcp:9 "):
            kept = f"a=rtcp:{relay[1]} IN IP4 {relay[0]}"
        elif line.startswith(ATTRIBUTE):
            candidate = rewrite_candidate(line.removeprefix("a="), relay)
            if candidate is None or section_has_one:
                continue
            section_has_one = True
            kept = f"a={candidate}"
        lines.append(kept)
    return "\r\n".join(lines) + "\r\n"


def rewrite_candidate(candidate: str, relay: Address) -> str | None:
    """The relay's candidate in place of one.

    None for a candidate that the relay does not stand for: of TCP, of RTCP alone, of a NAT or a TURN server.
    """
    fields = candidate.removeprefix("candidate:").split()
    if len(fields) < 8 or (fields[1], fields[2].lower(), fields[7]) != ("1", "udp", "host"):
        return None
    return f"candidate:1 1 udp {HIGHEST} {relay[0]} {relay[1]} typ host"
