"""What the server's routes allow at once and at most. Each is a trait of the extension, with these defaults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from ipfs_stream_nb.content.uploads import UPLOAD_TTL
from ipfs_stream_nb.errors import BusyError
from ipfs_stream_nb.media.worker.limits import DEFAULT_WORKER_LIMITS
from ipfs_stream_nb.webrtc.slots import MAX_PEERS, MAX_PEERS_PER_USER

GIB: Final = 1 << 30
MAX_JSON_BODY: Final = 64 << 10
"""Bytes of a request body on the routes that take JSON or nothing."""
BODY_TIMEOUT: Final = 30.0
"""Seconds for such a body to arrive."""
MAX_DIRECTORY_BODY: Final = 4 << 20
"""Bytes of the JSON that names a directory's entries. Python reads JSON in one go, during which no other thread
runs: some 30 ms for this much."""
MAX_DIRECTORY_ENTRIES: Final = 50_000
"""Entries in it."""
MAX_DIRECTORY_VALUES: Final = 4 * MAX_DIRECTORY_ENTRIES
"""Commas and brackets in it: a million empty lists take Python a second."""
STEPS_PER_TURN: Final = 64
"""Small steps of one request (entries, parts of a form) after which the event loop gets its turn."""
MAX_PIN_NAME: Final = 1024
"""Characters of a pin's name."""
PROGRESS_INTERVAL: Final = 0.1
"""Seconds between two progress lines."""
PING_SECONDS: Final = 30.0
"""Seconds between two pings of a WebSocket, for the proxies on its way."""
LINGER_BYTES: Final = 32 << 20
"""Bytes that are read and thrown away from a client that goes on sending after its request was refused."""
LINGER_SECONDS: Final = 5.0
"""Seconds that this may take."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that an operator can set."""

    max_add_size: int = 64 * GIB
    """Bytes of one POST /ipfs, all parts and their headers together."""
    max_adds: int = 32
    """Uploads at once, of all kinds; each holds some ten MiB of memory."""
    max_adds_per_user: int = 16
    """The same for one user."""
    max_streams: int = 256
    """Answers that are being made or sent at once: content, listings, stats, and pins that are being made."""
    max_streams_per_user: int = 64
    """The same for one user: a browser opens six connections per tab."""
    stall_timeout: float = 120.0
    """Seconds in which a client must take or send the next piece (at most 1 MiB) before its connection is
    closed: 9 KiB/s at the least."""
    max_message_size: int = 16 << 20
    """Bytes of one message that comes over a WebSocket."""
    max_transfers: int = 32
    """Transfers at once over one two-way socket."""
    max_subscribers: int = 2048
    """Connections at once that listen to notifications or metrics, by socket or as server-sent events."""
    max_subscribers_per_user: int = 1024
    """The same for one user."""
    subscriber_timeout: float = 30.0
    """Seconds in which such a client must take what it was sent before its connection is closed."""
    max_peers: int = MAX_PEERS
    """WebRTC peer connections at once."""
    max_peers_per_user: int = MAX_PEERS_PER_USER
    """The same for one user."""
    max_media_workers: int = DEFAULT_WORKER_LIMITS.workers
    """Contents at once that are sent to peers; each has a process of its own."""
    upload_ttl: float = UPLOAD_TTL
    """Seconds after which an upload that is not whole, and that nobody came back to, is given up."""
    answer_timeout: float = 60.0
    """Seconds until an answer with content, a listing or a stat must begin."""


class Slots:
    """Counts what runs at once, in all and per user, and refuses what would be too much."""

    def __init__(self, what: str, total: int, per_user: int | None = None) -> None:
        self._what = what
        self._total = total
        self._per_user = total if per_user is None else per_user
        self._users: Counter[str] = Counter()
        self.active = 0
        """How many there are now."""

    @contextmanager
    def slot(self, user: str) -> Iterator[None]:
        """Hold one for the length of a `with` block. Raises BusyError when there is none left."""
        if self.active >= self._total:
            raise BusyError(f"{self._total} {self._what} are running, which is the limit; try again shortly")
        if self._users[user] >= self._per_user:
            raise BusyError(
                f"you have {self._per_user} {self._what} running, which is the limit for one user"
            )
        self.active += 1
        self._users[user] += 1
        try:
            yield
        finally:
            self.active -= 1
            self._users[user] -= 1
            if not self._users[user]:
                del self._users[user]
