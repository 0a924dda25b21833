"""What a peer tells: events for everybody who listens, and messages for its own client."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from ipfs_stream_nb.errors import IPFSStreamError
from ipfs_stream_nb.notifications.emitting import Emit
from ipfs_stream_nb.notifications.events import SOURCE, NotificationType
from ipfs_stream_nb.transports.connection import error_message

MAX_TEXT: Final = 500
"""Characters of an error's text in an event."""
Tell = Callable[[dict[str, Any]], None]
"""Takes a message for the client of a peer, and neither waits nor raises."""


def ignore(*_args: Any, **_kwargs: Any) -> None:
    """Where nobody listens."""


class PeerEvents:
    """The `webrtc_…` events of one peer (docs/notifications.md), in order and each as often as it should come."""

    def __init__(
        self, pc_id: str, cid: str, kind: str, quality: str, *, emit: Emit, owner: str | None, tell: Tell
    ) -> None:
        """`tell` is for the peer's own client: its socket."""
        self.pc_id = pc_id
        self.cid = cid
        self.kind = kind
        self.quality = quality
        """What was asked for: a level, or auto."""
        self._told_quality = quality
        self.tell = tell
        self.mirror: Tell = ignore
        """Gets each event as a `notification` message: the data channel."""
        self.began = time.monotonic()
        self._emit = emit
        self._owner = owner
        self._created = False

    @property
    def seconds(self) -> float:
        """Since the peer was made."""
        return round(time.monotonic() - self.began, 3)

    def created(self) -> None:
        """Its offer, or its answer, is on its way."""
        self._created = True
        self._send(NotificationType.WEBRTC_CONNECTION_CREATED, kind=self.kind, quality=self.quality)

    def established(self) -> None:
        """Media can flow."""
        self._send(NotificationType.WEBRTC_CONNECTION_ESTABLISHED, kind=self.kind, duration=self.seconds)

    def closed(self, state: str, bytes_sent: int) -> None:
        """It is gone."""
        if self._created:
            self._created = False
            self._send(
                NotificationType.WEBRTC_CONNECTION_CLOSED,
                state=state,
                duration=self.seconds,
                bytes_sent=bytes_sent,
            )

    def stream_started(self, cid: str, kind: str, track_id: str, transport: str) -> None:
        """A track's first packet goes out."""
        self._send(
            NotificationType.WEBRTC_STREAM_STARTED,
            cid=cid,
            kind=kind,
            track_id=track_id,
            quality=self.quality,
            transport=transport,
        )

    def stream_ended(self, cid: str, kind: str, track_id: str, **facts: Any) -> None:
        """A track's last packet went out. `facts`: duration, bytes_sent, frames_sent, state."""
        self._send(NotificationType.WEBRTC_STREAM_ENDED, cid=cid, kind=kind, track_id=track_id, **facts)

    def quality_changed(self, quality: str, reason: str, **facts: Any) -> None:
        """Another quality from now on: what was asked for, or the level that the network carries. `facts`: height, bitrate."""
        previous, self._told_quality = self._told_quality, quality
        self._send(
            NotificationType.WEBRTC_QUALITY_CHANGED,
            quality=quality,
            previous=previous,
            reason=reason,
            **facts,
        )

    def error(self, what: str, error: BaseException, cid: str | None = None, **facts: Any) -> None:
        """Something failed: `what` says what, the error why. The client's own message for it is the caller's."""
        failed = error if isinstance(error, IPFSStreamError) else Exception()
        told = error_message(failed)
        self._send(
            NotificationType.WEBRTC_ERROR,
            cid=cid or self.cid,
            error=what,
            error_text=str(told["error"])[:MAX_TEXT],
            error_code=told["code"],
            **facts,
        )

    def _send(self, what: NotificationType, **data: Any) -> None:
        full = {"pc_id": self.pc_id, "cid": self.cid} | data
        self._emit(what, full, source=SOURCE, owner=self._owner)
        self.mirror(
            {
                "type": "notification",
                "notification_type": what.value,
                "data": full,
                "timestamp": time.time(),
            }
        )
