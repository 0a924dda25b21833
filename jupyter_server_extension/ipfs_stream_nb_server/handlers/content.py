"""GET and HEAD of /ipfs/{cid}[/path] and /ipns/{name}[/path], the path gateway and the trustless gateway over HTTP;
DELETE of /ipfs/{cid}."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from http import HTTPStatus
from typing import Final

from ipfs_stream_nb.content.gateway import GatewayRequest, GatewayResponse, respond
from ipfs_stream_nb.content.ipns.resolver import ResolvedName
from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.security.access import Action
from ipfs_stream_nb_server.handlers.base import access
from ipfs_stream_nb_server.handlers.streaming import StreamingHandler
from ipfs_stream_nb_server.wire import wire

_FORMS: Final = {
    "application/vnd.ipld.car": "car",
    "application/vnd.ipld.raw": "raw",
    "application/vnd.ipfs.ipns-record": None,
}
"""What a content_retrieved event calls these types; None: they hold no content."""


class GatewayHandler(StreamingHandler):
    """The gateway's answers, sent by Tornado."""

    resolved: ResolvedName | None = None
    """What the name that the path begins with stands for."""

    @access(Action.READ)
    async def get(self, _path: str) -> None:
        """Send what the gateway answers."""
        async with self.serving(self.context.limits.answer_timeout):
            await self._answer()

    head = get

    async def _answer(self) -> None:
        response = await respond(
            await self.node(),
            self._gateway_request(),
            settings=self.context.gateway,
            resolved=self.resolved,
        )
        self.set_status(response.status)
        for name, value in response.headers:
            self.set_header(name, value)
        if self.capability is not None:
            self._fit_to_capability(response)
        if self.capability is not None or hasattr(self, "_new_cookie"):
            # no shared cache may keep what came with a login cookie, or outlive the token in the URL
            cache = self._headers.get("Cache-Control", "")
            self.set_header("Cache-Control", cache.replace("public", "private"))
        if response.body is None:
            if response.status == HTTPStatus.OK and "Content-Length" not in self._headers:
                # HEAD of a listing or CAR, whose length nobody knows: Tornado would say 0
                self.set_header("Transfer-Encoding", "chunked")
                await self.flush()
            self.finish()
        else:
            with self._told_of(response):
                await self.send_stream(response.body)

    def _told_of(self, response: GatewayResponse) -> AbstractContextManager[object]:
        """Around the transfer of an answer that holds content: not one of an error, a listing or a name's record."""
        headers = dict(response.headers)
        form = _FORMS.get(headers.get("Content-Type", "").partition(";")[0], "")
        is_content = form is not None and not headers.get("ETag", "").startswith('"DirIndex-')
        if response.status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT} or not is_content:
            return nullcontext()
        size = headers.get("Content-Length") if response.status == HTTPStatus.OK else None
        size = headers.get("Content-Range", f"/{size}").rpartition("/")[2]
        return self.context.content_events.retrievals.sending(
            self, self.path_below_cid(), "http", size=int(size) if size.isdigit() else None, form=form or ""
        )

    def path_below_cid(self) -> str:
        """The path that is asked for, with what a name stands for in its place."""
        if self.resolved is None:
            return self.path_args[0]
        return self.resolved.path.rstrip("/") + "/" + self.path_args[0].partition("/")[2]

    def _fit_to_capability(self, response: GatewayResponse) -> None:
        # the page that was given the token may be of another origin (a standalone server, VS Code)
        self.set_header("Cross-Origin-Resource-Policy", "cross-origin")
        if response.status == HTTPStatus.MOVED_PERMANENTLY:  # to the directory's slash: go on with the token
            location = self._headers["Location"]
            join = "&" if "?" in location else "?"
            self.set_header("Location", f"{location}{join}token={self.get_query_argument('token')}")

    def _gateway_request(self) -> GatewayRequest:
        names = self.request.query_arguments.keys() - {"token"}
        query = {name: self.get_query_argument(name, strip=False) for name in names}
        path = self.request.path[len(self.base_url) - 1 :]
        return GatewayRequest(self.request.method or "GET", path, query, self.request.headers)


class ContentHandler(GatewayHandler):
    """/ipfs/{cid}[/path]."""

    names_cid = True

    @access(Action.REMOVE)
    async def delete(self, path: str) -> None:
        """Unpin a root and take its blocks away."""
        if "/" in path.rstrip("/"):
            raise BadRequestError(f"only a whole root can be removed: DELETE /ipfs/{self.cid}")
        self.send_json(wire(await (await self.node()).remove(self.cid)))
