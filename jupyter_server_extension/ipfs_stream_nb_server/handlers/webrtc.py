"""WebRTC: signaling over WS /ws/webrtc, and POST, PATCH, DELETE /whep/{cid} for any standard player."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlencode

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.errors import BadRequestError, UnauthorizedError, UnsupportedMediaError
from ipfs_stream_nb.security.access import Action
from ipfs_stream_nb_server.handlers.base import IPFSHandler, access
from ipfs_stream_nb_server.handlers.sockets import SocketConnection, SocketHandler

SDP: Final = "application/sdp"
FRAGMENT: Final = "application/trickle-ice-sdpfrag"


class SignalingSocket(SocketHandler):
    """WS /ws/webrtc. The policy is asked about each content that is named. Whoever comes with a capability token names the
    content that it is for as `?cid=`, and gets no other."""

    asks_later = True
    cancel_on_close = True

    def _cid_or_none(self) -> CID | None:
        try:
            return CID.parse(self.get_query_argument("cid", ""))
        except BadRequestError:
            return None

    async def may(self, action: Action, cid: CID | None) -> None:
        """Raise UnauthorizedError unless the token, the authorizer and the policy let the user do that."""
        if self.capability is not None and not self.capability.covers(action, cid):
            raise UnauthorizedError("this capability token is for another content")
        await super().may(action, cid)

    async def talk(self, connection: SocketConnection) -> None:
        """Serve messages."""
        node = await self.node()
        await self.context.peers.signal(connection, node, self.may, owner=self.owner, user=self.user)


class WhepHandler(IPFSHandler):
    """A session is ended and changed at the `Location` that POST gives."""

    names_cid = True

    @access(Action.READ)
    async def post(self, path: str) -> None:
        """Answer an offer."""
        sessions = await self.context.peers.whep(await self.node())
        options: dict[str, Any] = {"audio": self.flag("audio", True), "loop": self.flag("loop", False)}
        if "quality" in self.request.query_arguments:
            options["quality"] = self.get_query_argument("quality")
        answer = await sessions.post(
            path, self._sdp(SDP), owner=self.owner, user=self.user, start=self._start(), **options
        )
        query = {"session": answer.session}
        if self.capability is not None:
            query["token"] = self.get_query_argument("token")
        self.set_header("Location", f"{self.request.path}?{urlencode(query)}")
        self._send(answer)

    @access(Action.READ)
    async def patch(self, path: str) -> None:
        """Take candidates."""
        sessions = await self.context.peers.whep(await self.node())
        self._send(await sessions.patch(self._session(), self._sdp(FRAGMENT), cid=path, user=self.user))

    @access(Action.READ)
    async def delete(self, path: str) -> None:
        """End the session."""
        sessions = await self.context.peers.whep(await self.node())
        self._send(await sessions.delete(self._session(), cid=path, user=self.user))

    def _session(self) -> str:
        return self.get_query_argument("session", "")

    def _start(self) -> float:
        text = self.get_query_argument("start", "0")
        try:
            return float(text)
        except ValueError:
            raise BadRequestError(f"start={text[:80]!r}: it is a number of seconds") from None

    def _sdp(self, kind: str) -> str:
        """The body, which is to be of this type. Raises UnsupportedMediaError, BadRequestError."""
        said = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if said != kind:
            raise UnsupportedMediaError(f"the body is to be {kind}, not {said[:80] or 'without a type'}")
        try:
            return bytes(self._body).decode()
        except UnicodeDecodeError:
            raise BadRequestError("the body is not UTF-8") from None

    def _send(self, answer: Any) -> None:
        self.set_status(answer.status)
        self.set_header("Cache-Control", "no-store")
        for name, value in answer.headers.items():
            self.clear_header(name)
            for each in value if isinstance(value, list) else [value]:
                self.add_header(name, each)
        self.finish(answer.body or None)
