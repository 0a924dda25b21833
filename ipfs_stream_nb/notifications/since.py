"""Cursors: behind which event of which log a client is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ipfs_stream_nb.errors import BadRequestError

MAX_ID: Final = 1 << 62
_TEXT: Final = re.compile(r"(?:([A-Za-z0-9._]{1,100})-)?([0-9]{1,19})")
_EPOCH: Final = re.compile(r"[A-Za-z0-9._]{1,100}")


@dataclass(frozen=True, slots=True)
class Cursor:
    """An id, and the epoch of its log where that is known."""

    id: int
    epoch: str | None = None


def parse_since(since: object, epoch: object = None) -> Cursor | None:
    """A client's `since`: an id, with its epoch beside it, or the text `epoch-id`; None for none.

    Raises BadRequestError.
    """
    if since is None:
        return None
    if epoch is not None and not (isinstance(epoch, str) and _EPOCH.fullmatch(epoch)):
        raise BadRequestError("epoch is the text that `welcome` gave")
    if isinstance(since, int) and not isinstance(since, bool) and 0 <= since < MAX_ID:
        return Cursor(since, epoch)
    found = _TEXT.fullmatch(since) if isinstance(since, str) else None
    if found is None or int(found[2]) >= MAX_ID:
        raise BadRequestError(
            f"since is the id of an event, a whole number of 0 or more, or the text epoch-id; not {_shown(since)}"
        )
    return Cursor(int(found[2]), found[1] or epoch)


def _shown(value: object) -> str:
    return repr(value[:80]) if isinstance(value, str) else f"a {type(value).__name__}"
