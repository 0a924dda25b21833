"""GET /sse/stream/{cid}[/path]: a file as server-sent events, for whoever has an EventSource and no WebSocket."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus
from typing import Final

from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.security.access import Action
from ipfs_stream_nb.transports.stream import Part, sse_events, with_keep_alive
from ipfs_stream_nb_server.handlers.base import access
from ipfs_stream_nb_server.handlers.parts import MAX_DIGITS, part_argument
from ipfs_stream_nb_server.handlers.streaming import StreamingHandler

EVENT_STREAM: Final = "text/event-stream"


class StreamEventsHandler(StreamingHandler):
    """Resumes at `Last-Event-ID`; a client that comes again at the end gets 204, which ends an EventSource."""

    names_cid = True
    reads_ahead = False

    @access(Action.READ)
    async def get(self, path: str) -> None:
        """Send the events."""
        async with self.serving(self.context.limits.answer_timeout):
            node = await self.node()
            part = await self._resumed(path)
            if part is None:
                self.set_status(HTTPStatus.NO_CONTENT)
                self.finish()
                return
            self.set_header("Content-Type", EVENT_STREAM)
            self.set_header("Cache-Control", "no-store")
            self.set_header("X-Accel-Buffering", "no")
            events = sse_events(node, path, part, self.note_failure, self.context.content_events.over("sse"))
            await self.send_stream(_encoded(with_keep_alive(events)))

    async def _resumed(self, path: str) -> Part | None:
        """The part that is wanted, from where the client has it; None where it has all."""
        part = part_argument(self)
        last = self.request.headers.get("Last-Event-ID", self.get_query_argument("last_event_id", ""))
        if not last:
            return part
        if not (last.isascii() and last.isdigit() and len(last) <= MAX_DIGITS) or int(last) < part.offset:
            raise BadRequestError(f"Last-Event-ID is the offset that an event named, not {last[:80]!r}")
        size = (await (await self.node()).stat(path)).size
        end = size if part.length is None else min(size, part.offset + part.length)
        if int(last) >= end:
            return None
        return Part(int(last), None if part.length is None else end - int(last))


async def _encoded(events: AsyncGenerator[str, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        async for event in events:
            yield event.encode()
