"""Gathering ICE candidates: at once those of this machine, later those that STUN and TURN servers give (RFC 8838)."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from aioice import Candidate, ice
from aioice.turn import TurnTransport
from aiortc import RTCIceGatherer, RTCPeerConnection
from aiortc.rtcicetransport import candidate_from_aioice

GATHER_SECONDS: Final = 0.6
"""How long STUN and TURN servers have for their answer where a description waits for it."""
RELAY_SECONDS: Final = 5.0
"""The same where nothing waits for it, or there is no way but a relay."""
GOODBYE_SECONDS: Final = 1.0
"""How long a relay that is not needed any more has to answer that; it forgets by itself what is not renewed."""
LOOPBACK: Final = "127.0.0.1"
_SET_STATE: Final = "_RTCIceGatherer__setState"


class Gathering:
    """Methods that take the place of a gatherer's and its connection's own."""

    def __init__(self, pc: RTCPeerConnection, gatherer: RTCIceGatherer) -> None:
        connection = gatherer._connection  # noqa: SLF001  # aiortc hides it
        self._pc = pc
        self._gatherer = gatherer
        self._connection = connection
        self._relay_only = connection._transport_policy is ice.TransportPolicy.RELAY  # noqa: SLF001
        self._trickles = False
        self._opening: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        gatherer.gather = self._gather  # type: ignore[method-assign]
        connection.get_component_candidates = self._host_candidates  # type: ignore[assignment,method-assign]
        connection._remote_candidates_expected = self._candidates_expected  # type: ignore[method-assign]  # noqa: SLF001
        connection.query_consent = self._query_consent  # type: ignore[method-assign]
        connection.close = self._close  # type: ignore[method-assign]

    async def _gather(self) -> None:
        """As aiortc's. While servers are still asked, it is not completed, so that no description says that this is all."""
        connection = self._connection
        if self._gatherer.state != "new":
            return
        self._to("gathering")
        if not connection._closing:  # noqa: SLF001
            # The sockets of one that is cancelled would be lost
            self._opening = asyncio.create_task(connection.gather_candidates(), name="open sockets for ICE")
            await asyncio.shield(self._opening)
        if connection._closing:  # noqa: SLF001
            raise ConnectionError("the connection was closed while its candidates were gathered")
        if connection.stun_server is None and connection.turn_server is None:
            self._to("completed")
            return
        self._trickles = bool(self._pc.listeners("icecandidate")) and not self._relay_only
        self._asking = asyncio.create_task(self._ask_servers(), name="ask STUN and TURN servers")
        self._asking.add_done_callback(self._asked)
        if not self._trickles:
            await asyncio.wait([self._asking])
            if connection._closing:  # noqa: SLF001
                raise ConnectionError("the connection was closed while STUN and TURN servers were asked")

    def _to(self, state: str) -> None:
        getattr(self._gatherer, _SET_STATE)(state)

    def _asked(self, _asking: asyncio.Task[None]) -> None:
        self._to("completed")
        if self._connection._early_checks_done:  # noqa: SLF001  # what was held back for want of these
            self._connection._check_list_maybe_fail()  # noqa: SLF001

    async def _host_candidates(self, component: int, addresses: list[str]) -> list[Candidate]:
        """Those of this machine alone; who has no address but loopback, which is left out, would have none."""
        connection = self._connection
        if not addresses and not self._relay_only:
            addresses = [LOOPBACK]
        servers = connection.stun_server, connection.turn_server
        connection.stun_server = connection.turn_server = None
        try:
            return await type(connection).get_component_candidates(connection, component, addresses)
        finally:
            connection.stun_server, connection.turn_server = servers

    async def _ask_servers(self) -> None:
        connection = self._connection
        asks: list[Callable[[], Awaitable[tuple[Candidate, ice.StunProtocol | None]]]] = []
        if connection.stun_server is not None:
            asks += [
                functools.partial(ice.server_reflexive_candidate, protocol, connection.stun_server)
                for protocol in connection._protocols  # noqa: SLF001
                if ipaddress.ip_address(protocol.local_candidate.host).version == 4  # as aioice does
            ]
        if connection.turn_server is not None:
            asks.append(
                functools.partial(
                    ice.relayed_candidate,
                    component=1,  # WebRTC has no other: RTCP is among RTP
                    hide_related_address=self._relay_only,
                    protocol_factory=lambda: ice.StunProtocol(connection),
                    turn_server=connection.turn_server,
                    turn_username=connection.turn_username,
                    turn_password=connection.turn_password,
                    turn_ssl=connection.turn_ssl,
                    turn_transport=connection.turn_transport,
                )
            )
        tasks = [asyncio.create_task(self._find(ask), name="ask a STUN or TURN server") for ask in asks]
        try:
            if tasks:
                patient = self._trickles or self._relay_only
                await asyncio.wait(tasks, timeout=RELAY_SECONDS if patient else GATHER_SECONDS)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # one that does not answer is no failure
        if self._trickles:
            self._pc.emit("icecandidate", None)

    async def _find(self, ask: Callable[[], Awaitable[tuple[Candidate, ice.StunProtocol | None]]]) -> None:
        candidate, relay = await ask()
        connection = self._connection
        connection._local_candidates.append(candidate)  # noqa: SLF001
        if relay is not None:
            connection._protocols.append(relay)  # noqa: SLF001
            for remote in connection._remote_candidates:  # noqa: SLF001
                connection._pair_remote_candidate(remote)  # noqa: SLF001
            connection.sort_check_list()
        if self._trickles:
            found = candidate_from_aioice(candidate)
            found.sdpMid, found.sdpMLineIndex = self._section()
            self._pc.emit("icecandidate", found)

    def _section(self) -> tuple[str, int]:
        """The first section that its transport serves."""
        served: list[tuple[Any, Any]] = [
            (one.receiver.transport, one.mid) for one in self._pc.getTransceivers()
        ]
        if self._pc.sctp is not None:
            served.append((self._pc.sctp.transport, self._pc.sctp.mid))
        sections = enumerate(served)
        return next((mid, n) for n, (one, mid) in sections if one.transport.iceGatherer is self._gatherer)

    def _candidates_expected(self) -> bool:
        """Checks go on, and have not failed, while there may be more candidates of either side (RFC 8838, section 8.1)."""
        asking = self._asking is not None and not self._asking.done()
        return asking or type(self._connection)._remote_candidates_expected(self._connection)  # noqa: SLF001

    async def _query_consent(self) -> None:
        """One that is closed while it connects would ask for consent for ever after."""
        if not self._connection._closing:  # noqa: SLF001
            await type(self._connection).query_consent(self._connection)

    async def _close(self) -> None:
        """A relay that does not answer any more would be told for a minute that it is not needed."""
        connection = self._connection
        connection._closing = True  # noqa: SLF001
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        transports = [one.transport for one in connection._protocols]  # noqa: SLF001
        relays = [one for one in transports if isinstance(one, TurnTransport)]
        for relay in relays:
            relay.close()
        timer = asyncio.get_running_loop().call_later(GOODBYE_SECONDS, _leave, relays)
        try:
            await type(connection).close(connection)
        finally:
            timer.cancel()


def _leave(relays: Iterable[Any]) -> None:
    """End what still waits for relays that are closed."""
    for relay in relays:
        for task in (relay._TurnTransport__close_task, *relay._TurnTransport__send_tasks):  # noqa: SLF001
            task.cancel()
