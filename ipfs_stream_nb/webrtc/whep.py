"""WHEP (draft-ietf-wish-whep): any standard player gets content by one HTTP request, without a socket of ours.

POST an offer, get an answer and a session's address; PATCH candidates as they are found; DELETE the session.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.errors import BadRequestError, NotFoundError, TooLargeError, UnsupportedMediaError
from ipfs_stream_nb.notifications.emitting import Emit
from ipfs_stream_nb.webrtc.ice import IceServers, ice_servers_json
from ipfs_stream_nb.webrtc.manager import WebRTCStreamingManager
from ipfs_stream_nb.webrtc.peer_events import ignore
from ipfs_stream_nb.webrtc.sdp import MAX_SDP
from ipfs_stream_nb.webrtc.slots import PeerLimits, PeerSlots
from ipfs_stream_nb.webrtc.sources import Opener

SDP_TYPE: Final = "application/sdp"
FRAGMENT_TYPE: Final = "application/trickle-ice-sdpfrag"
MAX_FRAGMENT_LINES: Final = 256


class RestartError(UnsupportedMediaError):
    """An ICE restart was asked for, which is answered with a new session here: DELETE this one and POST anew."""

    status = 422


@dataclass(frozen=True, slots=True)
class WhepAnswer:
    """What a request is answered with."""

    status: int
    session: str = ""
    """The new session's id, for the path of `Location`."""
    headers: Mapping[str, str | list[str]] = field(default_factory=dict)
    body: str = ""


class WhepSessions:
    """All WHEP sessions of a server, by id; each is a peer, counted like all others. `close` at the end."""

    def __init__(
        self,
        ipfs_api: Node,
        *,
        sources: Opener,
        ice_servers: Any = None,
        ice_transport_policy: str = "all",
        limits: PeerLimits | None = None,
        slots: PeerSlots | None = None,
        emit: Emit = ignore,
    ) -> None:
        """As of WebRTCStreamingManager."""

        def make(owner: str | None, user: str | None) -> WebRTCStreamingManager:
            return WebRTCStreamingManager(
                ipfs_api, ice_servers, ice_transport_policy,
                sources=sources, limits=limits, slots=slots, emit=emit, owner=owner, user=user,
            )  # fmt: skip

        self._make = make
        self._link = link_headers(ice_servers_json(ice_servers))
        self._managers: dict[tuple[str | None, str | None], WebRTCStreamingManager] = {}
        """One for each owner and user."""

    async def post(
        self,
        cid: str,
        offer: str,
        *,
        owner: str | None = None,
        user: str | None = None,
        **options: Any,
    ) -> WhepAnswer:
        """Answer a player's offer: 201 with `session`. `options` as of `create_offer`: quality, start, loop, audio. Raises
        BadRequestError, BusyError, UnsupportedMediaError without a common codec, and what opening content raises."""
        key = owner, user
        manager = self._managers.get(key) or self._managers.setdefault(key, self._make(owner, user))
        try:
            session, answer = await manager.answer_offer(cid, offer, **options)
        finally:
            self._tidy()
        headers: dict[str, str | list[str]] = {
            "Content-Type": SDP_TYPE,
            "ETag": f'"{session}"',
            "Accept-Patch": FRAGMENT_TYPE,
        }
        if self._link:
            headers["Link"] = self._link
        return WhepAnswer(201, session, headers, answer)

    async def patch(self, session: str, fragment: str, *, cid: str, user: str | None = None) -> WhepAnswer:
        """Take a player's candidates (RFC 8840): 204. Raises NotFoundError, BadRequestError, RestartError."""
        manager = self._manager_of(session, cid, user)
        candidates, ufrag, ended = parse_fragment(fragment)
        remote = manager.peer_connections[session].remoteDescription
        if ufrag and remote is not None and f"a=ice-ufrag:{ufrag}\r\n" not in remote.sdp:
            raise RestartError("an ICE restart is not done here; DELETE this session and POST another offer")
        for candidate in candidates:
            await manager.handle_candidate(session, candidate, None, 0)
        if ended:
            await manager.handle_candidate(session, None)
        return WhepAnswer(204)

    async def delete(self, session: str, *, cid: str, user: str | None = None) -> WhepAnswer:
        """End a session: 200. Raises NotFoundError."""
        await self._manager_of(session, cid, user).close_peer_connection(session)
        self._tidy()
        return WhepAnswer(200)

    async def close(self) -> None:
        """End all sessions."""
        managers = list(self._managers.values())
        self._managers.clear()
        for manager in managers:
            await manager.close_all_connections()

    def _manager_of(self, session: str, cid: str, user: str | None) -> WebRTCStreamingManager:
        """Whose session this is; it must be one of that content, for which a request has its rights."""
        for (_, known), manager in self._managers.items():
            if known == user and session in manager.peer_connections:
                if manager.peer(session).wanted.cid == cid:
                    return manager
                break
        raise NotFoundError(f"there is no session {session[:80]!r}; it may have ended")

    def _tidy(self) -> None:
        """Forget the managers that have nothing left."""
        for key, manager in list(self._managers.items()):
            if not manager.peer_connections:
                del self._managers[key]


def link_headers(servers: IceServers) -> list[str]:
    """`Link` headers that name the ICE servers to a player."""
    links = []
    for server in servers:
        for url in server["urls"]:
            link = f'<{url}>; rel="ice-server"'
            if "username" in server:
                link += (
                    f'; username="{_quoted(server["username"])}"'
                    f'; credential="{_quoted(server.get("credential", ""))}"; credential-type="password"'
                )
            links.append(link)
    return links


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def parse_fragment(fragment: str) -> tuple[list[str], str, bool]:
    """An SDP fragment: its candidates, its ICE user fragment, and whether there are no more candidates. Raises
    BadRequestError, TooLargeError."""
    if len(fragment) > MAX_SDP:
        raise TooLargeError(f"the fragment has {len(fragment)} characters; at most {MAX_SDP} are taken")
    lines = fragment.splitlines()
    if len(lines) > MAX_FRAGMENT_LINES:
        raise TooLargeError(f"the fragment has {len(lines)} lines; at most {MAX_FRAGMENT_LINES} are taken")
    candidates, ufrag, ended = [], "", False
    for line in lines:
        name, _, value = line.strip().partition(":")
        if name == "a=candidate":
            candidates.append(f"candidate:{value}")
        elif name == "a=ice-ufrag":
            ufrag = value
        elif name == "a=end-of-candidates":
            ended = True
        elif line.strip() and line[1:2] != "=":
            raise BadRequestError(f"{line[:80]!r} is no line of an SDP fragment (a=candidate:…)")
    return candidates, ufrag, ended
