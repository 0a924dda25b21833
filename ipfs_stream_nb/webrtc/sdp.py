"""Session descriptions: read with care, since they come from anybody, and ours taken apart into candidates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from aiortc import RTCRtpSender, RTCSessionDescription
from aiortc.rtcpeerconnection import DISCARD_PORT
from aiortc.rtcrtpparameters import RTCRtpCodecCapability
from aiortc.sdp import MediaDescription, SessionDescription

from ipfs_stream_nb.errors import BadRequestError, TooLargeError, UnsupportedMediaError
from ipfs_stream_nb.media.encoded import Codec, TrackKind
from ipfs_stream_nb.webrtc.ice import is_allowed, parse_candidate

MAX_SDP: Final = 60_000
"""Characters of a description."""
MAX_MEDIA: Final = 16
"""Media sections of a description."""
NAMES: Final[Mapping[Codec, str]] = {"h264": "H264", "vp8": "VP8", "opus": "opus"}
"""RTP's names of the codecs of packets."""


def codec_preferences(codec: Codec) -> list[RTCRtpCodecCapability]:
    """What is offered for packets of a codec: that alone, with its retransmissions."""
    kind = "audio" if codec == "opus" else "video"
    mime = f"{kind}/{NAMES[codec]}".lower()
    wanted = {mime, "video/rtx"}
    return [one for one in RTCRtpSender.getCapabilities(kind).codecs if one.mimeType.lower() in wanted]


def read_description(
    sdp: object, kind: str, *, allow_loopback: bool, max_candidates: int
) -> tuple[RTCSessionDescription, SessionDescription]:
    """A client's offer or answer, without the candidates that nothing may be sent to; and the same taken apart. Raises
    BadRequestError, TooLargeError."""
    if not isinstance(sdp, str) or not sdp.strip():
        raise BadRequestError(f"the {kind} has no sdp, which is text that begins with 'v=0'")
    if len(sdp) > MAX_SDP:
        raise TooLargeError(f"the sdp has {len(sdp)} characters; at most {MAX_SDP} are taken")
    text = _screened(sdp, allow_loopback, MAX_MEDIA * max_candidates)
    try:
        parsed = SessionDescription.parse(text)
    except Exception as error:  # noqa: BLE001  # its parser fails in any way
        raise BadRequestError(f"the {kind}'s sdp cannot be read: {type(error).__name__}") from None
    if not parsed.media:
        raise BadRequestError(f"the {kind}'s sdp has no media section (m=)")
    if len(parsed.media) > MAX_MEDIA:
        raise TooLargeError(f"the sdp has {len(parsed.media)} media sections; at most {MAX_MEDIA} are taken")
    distinct = {(one.ip, one.port) for media in parsed.media for one in media.ice_candidates}
    if len(distinct) > max_candidates:
        raise TooLargeError(f"the sdp names {len(distinct)} addresses; at most {max_candidates} are taken")
    return RTCSessionDescription(text, kind), parsed


def _screened(sdp: str, allow_loopback: bool, most: int) -> str:
    """A description without the candidates that nothing may be sent to. Sections that are to share another one's transport or
    be refused have the port 0, as refused ones do (RFC 9143, section 6), and get another, since all share one here."""
    kept: list[str] = []
    candidates = section = 0
    for line in sdp.splitlines():
        if line.startswith("m="):
            section = len(kept)
        elif line.startswith("a=bundle-only") and kept:
            kept[section] = re.sub(r"^(m=\S+) 0 ", rf"\1 {DISCARD_PORT} ", kept[section])
        elif line.startswith("a=candidate:"):
            candidates += 1
            if candidates > most:
                raise TooLargeError(f"the sdp has more than {most} candidates")
            if not is_allowed(parse_candidate(line), allow_loopback=allow_loopback):
                continue
        kept.append(line)
    return "\r\n".join(kept) + "\r\n"


def check_codec(media: MediaDescription, codec: Codec) -> None:
    """Raise UnsupportedMediaError unless a media section takes packets of a codec."""
    names = {one.mimeType.partition("/")[2].lower() for one in media.rtp.codecs}
    refused = media.port == 0 or media.direction == "inactive"
    if refused or NAMES[codec].lower() not in names:
        raise UnsupportedMediaError(
            f"no common codec: the content's {media.kind} is sent as {NAMES[codec]}, "
            + ("which was refused" if refused else f"the other side takes {', '.join(sorted(names))}")
        )


def has_kind(parsed: SessionDescription, kind: TrackKind) -> bool:
    """Whether a description has a section of a kind that can receive."""
    return any(
        media.kind == kind and media.port and media.direction in {"recvonly", "sendrecv", None}
        for media in parsed.media
    )


def candidates_of(description: RTCSessionDescription) -> list[dict[str, Any]]:
    """The candidates in our own description as messages carry them: those of the first section, which all others share."""
    found: list[dict[str, Any]] = []
    mid: str | None = None
    index = -1
    for line in description.sdp.splitlines():
        if line.startswith("m="):
            index += 1
        elif line.startswith("a=mid:") and index == 0:
            mid = line.removeprefix("a=mid:")
        elif line.startswith("a=candidate:") and index == 0:
            found.append({"candidate": line.removeprefix("a="), "sdpMLineIndex": 0})
    return [one | {"sdpMid": mid} for one in found]
