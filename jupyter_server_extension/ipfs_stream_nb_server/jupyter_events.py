"""Jupyter's own event system: the same notifications, for /api/events/subscribe and for other extensions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from jupyter_events import EventLogger

from ipfs_stream_nb.notifications.events import Record

SCHEMA: Final = Path(__file__).with_name("notification_schema.yaml")
SCHEMA_ID: Final = "urn:ipfs-stream-nb:notification:v1"
RESTRICTED: Final = ("system_", "webrtc_")
"""Types that a user needs a right for, which Jupyter's events know nothing of."""
SHARE: Final = 0.05
"""The share of the event loop's time that may go into Jupyter's events, which take some 0.2 ms each to be validated."""
BURST_SECONDS: Final = 0.05
"""Seconds of that time that may have been saved up."""

_log = logging.getLogger("ipfs_stream_nb.server")


class JupyterEventsBridge:
    """Emits notifications to Jupyter's event system under SCHEMA_ID. Costs next to nothing while nobody listens there."""

    def __init__(
        self,
        event_logger: EventLogger,
        *,
        restricted: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Register the schema. `restricted`: whether events of RESTRICTED types go there as well, which is right where
        all users have all rights."""
        self._events = event_logger
        self._restricted = restricted
        self._clock = clock
        self._allowance = BURST_SECONDS
        self._at = clock()
        self.forwarded = 0
        """Events that were emitted there."""
        self.dropped = 0
        """Events that were not, since they would have taken too much of the loop's time, or failed."""
        if SCHEMA_ID not in event_logger.schemas:
            event_logger.register_event_schema(SCHEMA)

    def forward(self, record: Record, epoch: str) -> None:
        """Emit an event that everybody may see and that the log keeps; others are passed over. Called on the loop; it
        neither waits nor raises."""
        if not record.id or record.owner is not None or not self._heard():
            return
        if not self._restricted and record.notification_type.startswith(RESTRICTED):
            return
        began = self._clock()
        self._allowance = min(BURST_SECONDS, self._allowance + SHARE * (began - self._at))
        self._at = began
        if self._allowance <= 0:
            self._drop("they would take too much of the server's time")
            return
        try:
            self._emit(record, epoch)
            self.forwarded += 1
        except Exception as error:  # noqa: BLE001  # other extensions' handlers and modifiers run in it
            self._drop(repr(error))
        self._allowance -= self._clock() - began

    def _heard(self) -> bool:
        """Whether anybody listens. The logger looks itself, but is to be given a parsed event for that."""
        events = self._events
        asked = [getattr(events, name, None) for name in ("_modified_listeners", "_unmodified_listeners")]
        return bool(events.handlers) or any(who is None or who.get(SCHEMA_ID) for who in asked)

    def _emit(self, record: Record, epoch: str) -> None:
        message = record.message()
        data: dict[str, Any] = {
            "notification_type": record.notification_type,
            "data": message["data"],
            "timestamp": record.timestamp,
            "id": record.id,
            "epoch": epoch,
        }
        if "source" in message:
            data["source"] = message["source"]
        when = datetime.fromtimestamp(record.timestamp, UTC)
        self._events.emit(schema_id=SCHEMA_ID, data=data, timestamp_override=when)

    def _drop(self, reason: str) -> None:
        self.dropped += 1
        level = logging.WARNING if self.dropped == 1 else logging.DEBUG
        _log.log(level, "An event did not go to Jupyter's event system: %s (%d so far)", reason, self.dropped)
