"""The ids of transfers over a two-way socket, which clients choose; the older clients' one transfer has none."""

from __future__ import annotations

from typing import Any, Final

from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.transports.connection import integer

MAX_ID: Final = (1 << 32) - 1
LEGACY: Final = -1
"""The place of the one transfer without an id."""


def id_of(command: dict[str, Any]) -> int:
    """The transfer that a command is about; LEGACY where it names none. Raises BadRequestError."""
    found = integer(command, "id")
    if found is None:
        return LEGACY
    if found > MAX_ID:
        raise BadRequestError(f"id is at most {MAX_ID}, so that it fits 4 bytes; {found} does not")
    return found


def shown_id(identifier: int) -> str:
    """As errors name it."""
    return "without an id" if identifier == LEGACY else str(identifier)
