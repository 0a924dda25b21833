"""The embedded server: this package's own HTTP surface on loopback, in a thread of this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ipfs_stream_nb.clients.content import AsyncClient
from ipfs_stream_nb.clients.server import ServerInfo
from ipfs_stream_nb.content.embedded import EmbeddedNode

if TYPE_CHECKING:
    from ipfs_stream_nb.clients.sync import Client
    from ipfs_stream_nb_server.standalone import StandaloneServer


class _Servers:
    """One embedded server for each store that this process has open, ended with the last client on it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[Path, StandaloneServer] = {}
        self._users: dict[Path, int] = {}

    def take(self, repo: Path) -> StandaloneServer:
        """The server over the store at `repo`, started for the first who asks."""
        from ipfs_stream_nb_server.standalone import StandaloneServer  # noqa: PLC0415  # 0.3 s, and only needed here

        with self._lock:
            if repo not in self._running:
                self._running[repo] = StandaloneServer(partial(EmbeddedNode.open, repo)).start()
                self._users[repo] = 0
            self._users[repo] += 1
            return self._running[repo]

    def give_back(self, repo: Path) -> None:
        """Say that one client needs it no longer."""
        with self._lock:
            self._users[repo] -= 1
            server = self._running.pop(repo) if self._users[repo] == 0 else None
        if server is not None:
            server.stop()


_servers = _Servers()


async def open_standalone(repo: Path, blocking: Callable[[], Client], tried: tuple[str, ...]) -> AsyncClient:
    """A client of the embedded server over the store at `repo`. Raises StoreError."""
    node = await EmbeddedNode.open(repo)
    try:
        running = await asyncio.to_thread(_servers.take, repo)
    except BaseException:
        await node.close()
        raise
    info = ServerInfo.at(running.url, running.token, found="embedded in this process", embedded=True)

    async def give_back() -> None:
        await asyncio.to_thread(_servers.give_back, repo)

    return AsyncClient(node, info, tried=tried, blocking=blocking, on_close=give_back)
