"""What the clients for live events and live media have in common: they find their server themselves, and let go of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Self

from ipfs_stream_nb.clients.http import ServerHTTP
from ipfs_stream_nb.clients.server import server_at
from ipfs_stream_nb.errors import BadRequestError


class LiveClient(ABC):
    """A client of one server; `async with` connects and closes it."""

    def __init__(self, api_url: str | None, token: str | None) -> None:
        """`api_url`: a server, as for `connect`; without it the one that `connect` finds. Raises BadRequestError."""
        if api_url is None and token is not None:
            raise BadRequestError(f"a token goes with a URL: {type(self).__name__}(api_url, token=…)")
        self._server = None if api_url is None else server_at(api_url, token)
        self._http: ServerHTTP | None = None
        self._on_close: Callable[[], Awaitable[object]] | None = None

    @abstractmethod
    async def connect(self) -> None:
        """Connect to the server. Where it is connected already, that is all."""

    @abstractmethod
    async def close(self) -> None:
        """End it. Idempotent."""

    async def _find(self) -> ServerHTTP:
        """The server, as `connect` finds it."""
        if self._http is not None:
            return self._http
        if self._server is not None:
            self._http = ServerHTTP(self._server)
            self._on_close = self._http.close
            return self._http
        from ipfs_stream_nb.clients.connect import connect_async  # noqa: PLC0415  # it imports this module's users

        client = await connect_async()
        self._http = client._http  # noqa: SLF001  # the same connection
        self._on_close = client.close
        return self._http

    async def _release(self) -> None:
        """Let go of what `_find` found, though not of a connection that was given."""
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            self._http = None
            await on_close()

    async def __aenter__(self) -> Self:
        try:
            await self.connect()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()
