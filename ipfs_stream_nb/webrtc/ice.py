"""ICE: configured servers, and the candidates that a client names."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, cast

from aioice.ice import Connection
from aiortc import (
    RTCBundlePolicy,
    RTCIceCandidate,
    RTCIceServer,
    RTCIceTransportPolicy,
    RTCPeerConnection,
)
from aiortc.rtcicetransport import parse_stun_turn_uri
from aiortc.sdp import candidate_from_sdp

from ipfs_stream_nb.errors import BadRequestError

MAX_CANDIDATE: Final = 1024
"""Characters of one candidate."""
GATHER_SECONDS: Final = 0.6
RELAY_SECONDS: Final = 5.0
"""How long STUN and TURN servers have for their answer, before an offer goes out without it; and the relay, where there is
no other way."""
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
        and (allow_loopback or not (one.is_loopback or one.is_link_local))
        for one in (address, mapped)
        if one is not None
    )


def mend(pc: RTCPeerConnection, seconds: float = GATHER_SECONDS) -> None:
    """Have a peer connection ask STUN and TURN servers for no longer than `seconds`, and leave no socket and no task behind,
    whenever it is closed. To be called when its tracks are known, before each local description; idempotent."""
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
        ice = transport.transport.iceGatherer._connection  # noqa: SLF001  # aiortc hides it
        if "close" not in vars(ice):
            _Mended(ice, seconds)
    for part, name in begun:
        if name not in vars(part):
            setattr(part, name, functools.partial(_begin, pc, getattr(part, name)))


async def _begin(pc: RTCPeerConnection, begin: Callable[..., Awaitable[None]], *arguments: object) -> None:
    """aiortc goes on connecting what was closed meanwhile, and what begins then never ends: end its task instead."""
    if pc.signalingState == "closed":
        raise asyncio.CancelledError
    await begin(*arguments)


class _Mended:
    """Methods that take the place of a connection's own."""

    def __init__(self, ice: Connection, seconds: float) -> None:
        self._ice = ice
        self._gathering: asyncio.Task[None] | None = None
        # a dead STUN server would hold up a description for 5 s, as all candidates are gathered first
        ice.get_component_candidates = functools.partial(  # type: ignore[method-assign]
            type(ice).get_component_candidates,
            ice,
            timeout=cast("int", seconds),  # asyncio.wait takes fractions
        )
        ice.gather_candidates = self._gather  # type: ignore[method-assign]
        ice.query_consent = self._query_consent  # type: ignore[method-assign]
        ice.close = self._close  # type: ignore[method-assign]

    async def _gather(self) -> None:
        """The sockets of one that is cancelled would be lost, and those that come after it was closed be left open."""
        ice = self._ice
        if not ice._closing:  # noqa: SLF001
            if self._gathering is None:
                gather = type(ice).gather_candidates(ice)
                self._gathering = asyncio.create_task(gather, name="gather ICE candidates")
            await asyncio.shield(self._gathering)
        if ice._closing:  # noqa: SLF001
            raise ConnectionError("the connection was closed while its candidates were gathered")

    async def _query_consent(self) -> None:
        """One that is closed while it connects would ask for consent for ever after."""
        if not self._ice._closing:  # noqa: SLF001
            await type(self._ice).query_consent(self._ice)

    async def _close(self) -> None:
        self._ice._closing = True  # noqa: SLF001
        if self._gathering is not None:
            await asyncio.wait([self._gathering])
        await type(self._ice).close(self._ice)
