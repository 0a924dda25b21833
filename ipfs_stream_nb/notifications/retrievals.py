"""`content_retrieved`: content on its way to clients, with the many requests of one reader told as one event."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from ipfs_stream_nb.content.node import Path
from ipfs_stream_nb.content.observing import acting_user
from ipfs_stream_nb.content.resolver import parse_path
from ipfs_stream_nb.errors import IPFSStreamError
from ipfs_stream_nb.notifications.emitting import Emit
from ipfs_stream_nb.notifications.events import SOURCE, NotificationType
from ipfs_stream_nb.transports.watching import Transfer

QUIET_SECONDS: Final = 2.0
"""Seconds without a transfer after which those before are told: a player asks for the next range in less."""
LONGEST_SECONDS: Final = 30.0
"""Seconds after which what was sent so far is told, though it goes on."""
MAX_MERGED: Final = 256
"""Paths of which transfers are gathered at once; what is over is told of each by itself."""

_Key = tuple[str | None, str, str, str]


@dataclass(slots=True)
class Sent:
    """A `Transfer` that is counted by whoever sends it."""

    bytes_sent: int = 0


@dataclass(slots=True, eq=False)
class _Gathered:
    """The transfers of one path to one user over one transport."""

    owner: str | None
    data: dict[str, Any]
    began: float
    last: float
    """When the last transfer ended."""
    running: dict[object, list[Any]] = field(default_factory=dict)
    """The transfers, each with how much of it is counted."""
    bytes: int = 0
    requests: int = 0
    complete: bool = True

    def count(self) -> None:
        """Add what was sent since the last time."""
        for pair in self.running.values():
            transfer, counted = pair
            self.bytes += transfer.bytes_sent - counted
            pair[1] = transfer.bytes_sent


class Retrievals:
    """Gathers transfers, each of which costs a few microseconds here, and has them told. For one event loop.

    The event's data: cid (the root), path, size (of the file, where it is known), transport ("http", "websocket", "sse",
    "bidirectional", or "direct" for a client that reads the store itself), format ("raw" or "car", where it is not the
    file), bytes (sent in all), requests (how many were gathered), complete (whether each was answered to its end).
    Single blocks (format "raw") of one user are gathered whatever their CID; cid and path are the first one's.
    """

    def __init__(self, emit: Emit, *, quiet: float = QUIET_SECONDS, longest: float = LONGEST_SECONDS) -> None:
        self._emit = emit
        self._quiet = quiet
        self._longest = longest
        self._gathered: dict[_Key, _Gathered] = {}
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def sending(
        self, transfer: Transfer, path: Path, transport: str, *, size: int | None = None, form: str = ""
    ) -> Iterator[None]:
        """Around a transfer to the acting user; left without an error it was whole. `form`: the event's format."""
        loop = asyncio.get_running_loop()
        owner, token = acting_user.get(), object()
        cid, text = _placed(path)
        key = (owner, "" if form == "raw" else text, transport, form)
        gathered = self._gathered.get(key)
        if gathered is None:
            data = {"cid": cid, "path": text, "size": size, "transport": transport, "format": form}
            data = {name: value for name, value in data.items() if value not in (None, "")}
            gathered = _Gathered(owner, data, loop.time(), loop.time())
            if len(self._gathered) < MAX_MERGED:
                self._gathered[key] = gathered
                self._timer = self._timer or loop.call_later(self._quiet, self._look)
        gathered.requests += 1
        gathered.running[token] = [transfer, transfer.bytes_sent]
        whole = False
        try:
            yield
            whole = True
        finally:
            gathered.count()
            del gathered.running[token]
            gathered.complete = gathered.complete and whole
            gathered.last = loop.time()
            if self._gathered.get(key) is not gathered:
                self._tell(gathered)

    def _look(self) -> None:
        """Called every now and then while anything is gathered: tell what is due."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for key, gathered in list(self._gathered.items()):
            if not gathered.running and now >= gathered.last + self._quiet:
                del self._gathered[key]
                self._tell(gathered)
            elif now >= gathered.began + self._longest:
                self._tell(gathered)
                gathered.began = now
                if not gathered.requests:
                    del self._gathered[key]
        self._timer = loop.call_later(self._quiet / 2, self._look) if self._gathered else None

    def _tell(self, gathered: _Gathered) -> None:
        """Tell what was sent since the last time, where that is anything."""
        gathered.count()
        complete = gathered.complete and not gathered.running
        if gathered.bytes or complete:
            facts = {"bytes": gathered.bytes, "requests": gathered.requests, "complete": complete}
            data = gathered.data | facts
            self._emit(NotificationType.CONTENT_RETRIEVED, data, source=SOURCE, owner=gathered.owner)
        gathered.bytes, gathered.requests, gathered.complete = 0, len(gathered.running), True

    def close(self) -> None:
        """Tell what was gathered. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for gathered in self._gathered.values():
            self._tell(gathered)
        self._gathered.clear()


def _placed(path: Path) -> tuple[str, str]:
    """The root and the path as text; no root where there is no CID to be found in the path."""
    try:
        cid, names = parse_path(path)
    except IPFSStreamError:
        return "", str(path)
    return str(cid), "/".join([str(cid), *names])
