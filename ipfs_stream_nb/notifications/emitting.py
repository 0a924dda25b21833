"""What emitters are given: a function that takes an event at once and never fails; and how an error is told by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ipfs_stream_nb.content.observing import public_text
from ipfs_stream_nb.errors import IPFSStreamError
from ipfs_stream_nb.notifications.events import SOURCE, NotificationType


class Emit(Protocol):
    """`NotificationManager.emit`. It neither waits nor raises: the work that emits goes on whatever becomes of the event."""

    def __call__(
        self,
        notification_type: NotificationType,
        data: Mapping[str, Any],
        *,
        source: str | None = None,
        owner: str | None = None,
        keep: bool = True,
    ) -> None:
        """`owner`: the user whose event it is, None for everybody's; `keep`: whether the log keeps it. Called on the event
        loop."""


def emit_error(
    emit: Emit, operation: str, error: BaseException, *, owner: str | None = None, **fields: Any
) -> None:
    """Say that an operation failed: {"message", "operation", "error", "code"} and `fields`. An internal error's own text
    stays with us, as everywhere on the wire."""
    data = {
        "message": f"{operation} failed",
        "operation": operation,
        "error": public_text(error),
        "code": error.code if isinstance(error, IPFSStreamError) else "internal",
    }
    emit(NotificationType.SYSTEM_ERROR, fields | data, source=SOURCE, owner=owner)
