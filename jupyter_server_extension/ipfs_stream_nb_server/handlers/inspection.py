"""What there is at a path, and where it came from: GET /ipfs-stream/stat, /ipfs-stream/ls and /ipfs-stream/sources."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.errors import NotFoundError
from ipfs_stream_nb.security.access import Action
from ipfs_stream_nb_server.handlers.base import IPFSHandler, access
from ipfs_stream_nb_server.handlers.streaming import StreamingHandler
from ipfs_stream_nb_server.wire import wire


class StatHandler(StreamingHandler):
    """GET /ipfs-stream/stat/{cid}[/path]: node.Stat as JSON."""

    names_cid = True

    @access(Action.READ)
    async def get(self, path: str) -> None:
        """Answer with the stat of a path."""
        async with self.serving(self.context.limits.answer_timeout):
            self.send_json(wire(await (await self.node()).stat(path)))


class ListHandler(StreamingHandler):
    """GET /ipfs-stream/ls/{cid}[/path]?kinds=1: a directory's entries as lines of JSON."""

    names_cid = True

    @access(Action.READ)
    async def get(self, path: str) -> None:
        """Send the entries as they are found."""
        kinds = self.flag("kinds", False)
        async with self.serving(self.context.limits.answer_timeout):
            await self.send_lines(_entries(await self.node(), path, kinds=kinds))


class SourcesHandler(StreamingHandler):
    """GET /ipfs-stream/sources/{cid}: node.Origins as JSON."""

    names_cid = True

    @access(Action.READ)
    async def get(self, _cid: str) -> None:
        """Answer with where the blocks below a root came from."""
        async with self.serving(self.context.limits.answer_timeout):
            self.send_json(wire(await (await self.node()).sources(self.cid)))


class UnknownHandler(IPFSHandler):
    """Whatever else is asked for below /ipfs-stream/: a 404 as all our errors are, and not Jupyter's page."""

    @access(Action.STATUS)
    async def get(self, path: str) -> None:
        """Raise NotFoundError."""
        raise NotFoundError(f"there is no /ipfs-stream/{path[:100]} on this server")

    head = post = put = patch = delete = get


async def _entries(node: Node, path: str, *, kinds: bool) -> AsyncGenerator[object, None]:
    async with aclosing(node.ls(path, kinds=kinds)) as entries:
        async for entry in entries:
            yield wire(entry)
