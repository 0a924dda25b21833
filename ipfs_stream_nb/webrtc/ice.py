"""ICE: configured servers, and the candidates that a client names."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from aioice import ice
from aiortc import (
    RTCBundlePolicy,
    RTCCertificate,
    RTCIceCandidate,
    RTCIceServer,
    RTCIceTransportPolicy,
    RTCPeerConnection,
)
from aiortc.rtcicetransport import parse_stun_turn_uri
from aiortc.sdp import candidate_from_sdp, candidate_to_sdp

from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.webrtc.gathering import Gathering

MAX_CANDIDATE: Final = 1024
"""Characters of one candidate."""
CIPHERS: Final = (
    "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-CHACHA20-POLY1305", "ECDHE-RSA-AES128-SHA", "ECDHE-RSA-AES256-SHA",
)  # fmt: skip
"""For DTLS: aiortc's own, and the same for peers whose certificate is of RSA, as that of GStreamer's webrtcbin."""
_CERTIFICATE: Final = "_RTCDtlsTransport__local_certificate"
_PREFIX: Final = "candidate:"
_TYPES: Final = {"host", "srflx", "prflx", "relay"}

IceServers = list[dict[str, Any]]
"""As a browser's RTCConfiguration has them: {"urls", "username"?, "credential"?}."""


def ice_servers_json(servers: Iterable[Mapping[str, Any] | RTCIceServer] | None) -> IceServers:
    """Configured servers as a browser takes them. Raises BadRequestError for what is none."""
    found: IceServers = []
    for server in servers or ():
        fields = dict(server) if isinstance(server, Mapping) else vars(server)
        urls = fields.get("urls")
        several = [urls] if isinstance(urls, str) else urls
        if not isinstance(several, (list, tuple)) or not several:
            raise BadRequestError(f"an ICE server has urls, such as turn:turn.example.com:3478, not {urls!r}")
        for url in several:
            try:
                parse_stun_turn_uri(url)
            except (ValueError, AttributeError):
                raise BadRequestError(
                    f"{str(url)[:200]!r} is no URL of an ICE server; stun:host:port, turn:host:port?transport=udp are"
                ) from None
        entry: dict[str, Any] = {"urls": list(several)}
        for name in ("username", "credential"):
            if fields.get(name) is not None:
                entry[name] = str(fields[name])
        found.append(entry)
    return found


def ice_servers_of(servers: IceServers) -> list[RTCIceServer]:
    """The same for aiortc."""
    return [RTCIceServer(**server) for server in servers]


def has_turn(servers: IceServers) -> bool:
    """Whether there is a relay among them."""
    return any(url.startswith("turn") for server in servers for url in server["urls"])


def transport_policy(name: str) -> RTCIceTransportPolicy:
    """`all` or `relay`. Raises BadRequestError."""
    try:
        return RTCIceTransportPolicy(name)
    except ValueError:
        raise BadRequestError(f"ice_transport_policy is all or relay, not {name!r}") from None


def bundle_policy_of(name: str) -> RTCBundlePolicy:
    """`max-bundle`, `balanced` or `max-compat`. Raises BadRequestError."""
    try:
        return RTCBundlePolicy(name)
    except ValueError:
        raise BadRequestError(f"bundle_policy is max-bundle, balanced or max-compat, not {name!r}") from None


def parse_candidate(text: str) -> RTCIceCandidate:
    """A candidate as SDP spells it (RFC 8839, section 5.1), with or without `a=` and `candidate:`. Raises BadRequestError."""
    line = text.strip().removeprefix("a=").removeprefix(_PREFIX)
    wrong = BadRequestError(
        f"a candidate is 'candidate:<foundation> 1 udp <priority> <address> <port> typ host …', not {text[:80]!r}"
    )
    if len(text) > MAX_CANDIDATE or not line.isascii():
        raise wrong
    try:
        candidate = candidate_from_sdp(line)
    except (ValueError, AssertionError, IndexError):
        raise wrong from None
    if not 0 <= candidate.port < 65_536 or candidate.type not in _TYPES or line.split()[6] != "typ":
        raise wrong
    return candidate


def candidate_json(candidate: RTCIceCandidate) -> dict[str, Any]:
    """A candidate as messages carry it: {"candidate", "sdpMid", "sdpMLineIndex"}."""
    text = _PREFIX + candidate_to_sdp(candidate)
    return {"candidate": text, "sdpMid": candidate.sdpMid, "sdpMLineIndex": candidate.sdpMLineIndex}


def is_allowed(candidate: RTCIceCandidate, *, allow_loopback: bool) -> bool:
    """Whether packets may be sent to a candidate: never to where a client has no business to have them sent."""
    host = candidate.ip
    if candidate.protocol.lower() != "udp" or not candidate.port:  # aioice connects over UDP only
        return False
    if host.endswith(".local"):
        return host.removesuffix(".local").replace("-", "").isalnum()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    return all(
        not (one.is_multicast or one.is_unspecified or str(one) == "255.255.255.255")
        and (allow_loopback or not (one.is_link_local or (one.is_loopback and not only_loopback())))
        for one in (address, mapped)
        if one is not None
    )


def only_loopback() -> bool:
    """Whether this machine has no other address at this moment, so that whoever watches is on it."""
    return not ice.get_host_addresses(use_ipv4=True, use_ipv6=True)


def mend(pc: RTCPeerConnection) -> None:
    """Have a peer connection not wait long for STUN and TURN servers, understand peers with RSA certificates, and leave no
    socket and no task behind, whenever it is closed. To be called when its tracks are known, before each local description;
    idempotent.

    One with listeners to `icecandidate` waits for no server: each candidate that they give later is told as an RTCIceCandidate
    (RFC 8838), and None at the end. With the policy `relay`, where there are no others, it waits all the same.
    """
    transceivers = pc.getTransceivers()
    transports = {one.receiver.transport for one in transceivers}
    begun: list[tuple[Any, str]] = [(one.sender, "send") for one in transceivers] + [
        (one.receiver, "receive") for one in transceivers
    ]
    if pc.sctp is not None:
        transports.add(pc.sctp.transport)
        begun.append((pc.sctp, "start"))
    for transport in transports:
        begun += [(transport, "start"), (transport.transport, "start")]
        certificate = getattr(transport, _CERTIFICATE)
        certificate._create_ssl_context = functools.partial(_ssl_context, certificate)  # noqa: SLF001
        gatherer = transport.transport.iceGatherer
        if "gather" not in vars(gatherer):
            Gathering(pc, gatherer)
    for part, name in begun:
        if name not in vars(part):
            setattr(part, name, functools.partial(_begin, pc, getattr(part, name)))


def _ssl_context(certificate: RTCCertificate, **options: Any) -> Any:
    """As a client of DTLS, aiortc names the ciphers of ECDSA alone, so that a server with an RSA key has none in common."""
    context = type(certificate)._create_ssl_context(certificate, **options)  # noqa: SLF001
    context.set_cipher_list(":".join(CIPHERS).encode())
    return context


async def _begin(pc: RTCPeerConnection, begin: Callable[..., Awaitable[None]], *arguments: object) -> None:
    """aiortc goes on connecting what was closed meanwhile, and what begins then never ends: end its task instead."""
    if pc.signalingState == "closed":
        raise asyncio.CancelledError
    await begin(*arguments)
