"""Events of content: what nodes tell, what is sent to clients and what comes from them, given to an emitter.

A re-pin gives no `pin_added`, only the `pin_status_changed` that every call of `pin` ends with; an add that pins gives
`content_added`, and `pin_added` where the pin is new.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

from ipfs_stream_nb.content.observing import Happened, acting_user
from ipfs_stream_nb.notifications.emitting import Emit, emit_error
from ipfs_stream_nb.notifications.events import SOURCE, NotificationType
from ipfs_stream_nb.notifications.retrievals import Retrievals
from ipfs_stream_nb.transports.watching import Transfer

UPLOAD_EVERY: Final = 0.5
"""Seconds between two events of one upload's progress, at the least; one that is done by then has none."""
_TYPES: Final = {
    "added": NotificationType.CONTENT_ADDED,
    "removed": NotificationType.CONTENT_REMOVED,
    "pinned": NotificationType.PIN_ADDED,
    "unpinned": NotificationType.PIN_REMOVED,
    "pin_progress": NotificationType.PIN_PROGRESS,
    "pin_status": NotificationType.PIN_STATUS_CHANGED,
}


class ContentEvents:
    """What makes events of content, for one server or one client. `close` at the end."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self.retrievals = Retrievals(emit)
        """Content on its way to clients, told of as `content_retrieved`."""

    def observe(self, happened: Happened) -> None:
        """An observer (content/observing.py) of a node."""
        if happened.what == "collected":
            self._emit(
                NotificationType.SYSTEM_INFO,
                {"message": "garbage was collected", "operation": "gc", **happened.facts},
                source=SOURCE,
            )
            return
        data: dict[str, Any] = {"cid": str(happened.cid)}
        if happened.name or happened.what == "pinned":
            data["name"] = happened.name
        self._emit(
            _TYPES[happened.what],
            {**data, **happened.facts},
            source=SOURCE,
            owner=happened.user,
            keep=happened.what != "pin_progress",
        )

    def over(self, transport: str) -> ConnectionEvents:
        """For a conversation over "websocket", "bidirectional" or "sse"."""
        return ConnectionEvents(self, transport)

    def upload(self) -> UploadEvents:
        """For an upload of the acting user's that begins."""
        return UploadEvents(self._emit)

    def close(self) -> None:
        """Tell what is still to be told."""
        self.retrievals.close()


class ConnectionEvents:
    """A `transports.watching.Watcher` for one kind of connection."""

    def __init__(self, events: ContentEvents, transport: str) -> None:
        self._events = events
        self._transport = transport

    def download(self, transfer: Transfer, path: str, size: int) -> AbstractContextManager[object]:
        """Around a transfer to a client."""
        return self._events.retrievals.sending(transfer, path, self._transport, size=size)

    def upload(self) -> UploadEvents:
        """For an upload that begins."""
        return self._events.upload()


class UploadEvents:
    """Tells of one upload: `custom_event` with "event": "upload_progress", and `system_error` where it fails."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._owner = acting_user.get()
        self._next = time.monotonic() + UPLOAD_EVERY
        self._told: Any = None
        """The bytes that were told last; None before there was anything to tell."""

    def progress(self, progress: Mapping[str, Any]) -> None:
        """Tell how far it is, every UPLOAD_EVERY, and that it has all where more was told before."""
        now, done = time.monotonic(), progress["bytes_processed"]
        is_last = self._told not in (None, done) and progress["percent"] == 100.0
        if now < self._next and not is_last:
            return
        self._next, self._told = now + UPLOAD_EVERY, done
        data = {"event": "upload_progress"}
        data |= {name: progress[name] for name in ("upload_id", "bytes_processed", "total_bytes", "percent")}
        self._emit(NotificationType.CUSTOM_EVENT, data, source=SOURCE, owner=self._owner, keep=False)

    def failed(self, error: BaseException) -> None:
        """Tell that it failed."""
        emit_error(self._emit, "upload", error, owner=self._owner)
