"""Who is told of what happens in a node: plain functions, called once it is done and durable.

The content knows nothing of what they make of it. Nothing is told per block or per piece: one call for each add, pin
and removal, and a few a second while a pin takes long.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Literal, Self

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.node import Added, PinProgress
from ipfs_stream_nb.errors import IPFSStreamError

_log = logging.getLogger("ipfs_stream_nb.observing")

SLOW_PIN: Final = 0.25
"""Seconds after which a pin that is not done is told to be under way."""
PROGRESS_EVERY: Final = 0.25
"""Seconds between two tellings of how far a pin is, at the least."""
INTERNAL: Final = "an internal error; the log has the details"
"""What is told of an error that is none of ours, whose text may say anything."""

What = Literal["added", "removed", "collected", "pinned", "unpinned", "pin_progress", "pin_status"]

acting_user: ContextVar[str | None] = ContextVar("acting_user", default=None)
"""Whose act it is that goes on in this context: set by servers, which know. None: nobody's in particular."""


@dataclass(frozen=True, slots=True)
class Happened:
    """One thing that has happened."""

    what: What
    """"added": content is here, by an add, an upload or as a root of a CAR; "removed": what only it needed is gone;
    "collected": garbage is gone, of no root in particular. "pinned": there is a pin that was not there; "unpinned": one
    that was there is gone. "pin_progress", "pin_status": how far `pin` is, and what has become of it."""
    cid: CID | None
    """The root; None for "collected"."""
    name: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON. added: size (bytes of content; of a CAR with one root those of its blocks, with several None), kind ("file",
    "directory" or "car"; None where it is not known), complete (False: blocks of a CAR's root are not here). removed,
    collected: blocks, bytes. pin_progress: blocks, bytes, total_blocks, total_bytes, percent (the last three may be None).
    pin_status: status ("pinning", "pinned", "failed" or "cancelled"), and error with "failed"."""
    user: str | None = None
    """Whose act it was."""


Observer = Callable[[Happened], None]
"""Called on the event loop. It is to be quick, and what it raises is logged and disturbs nobody."""


class Observers(list[Observer]):
    """Those of one node."""

    def tell(
        self, what: What, cid: CID | None, name: str = "", *, user: str | None = None, **facts: Any
    ) -> None:
        """Tell all of them, of `user`'s act or else of the acting user's. Never raises."""
        if not self:
            return
        happened = Happened(what, cid, name, facts, acting_user.get() if user is None else user)
        for observer in tuple(self):
            try:
                observer(happened)
            except Exception:  # noqa: BLE001  # the work goes on, whatever they are
                _log.exception("an observer failed at %r of %s", what, cid)

    def added(self, added: Added, kind: str | None, *, pinned: bool) -> None:
        """Tell of an add, and of its pin where that is new."""
        self.tell("added", added.cid, added.name, size=added.size, kind=kind, complete=True)
        if pinned:
            self.tell("pinned", added.cid, added.name)


class PinWatch:
    """Tells of one `pin`: that it is under way where it is slow, how far it is, and how it ended. A context manager.

    At the end there is always a status; one that was not pinned before is told as "pinned" first. Called with the
    progress, from the event loop.
    """

    def __init__(
        self,
        observers: Observers,
        cid: CID,
        name: str,
        progress: Callable[[PinProgress], None] | None,
        *,
        new: bool,
    ) -> None:
        """`progress` is handed on what this is called with; `new`: whether it was not pinned before."""
        self._observers = observers
        self._cid = cid
        self._name = name
        self._progress = progress
        self._new = new
        self._user = acting_user.get()  # progress comes from other contexts
        self._latest: PinProgress | None = None
        self._slow: asyncio.TimerHandle | None = None
        self._next: float | None = None
        """When progress may be told again; None as long as none is."""
        self._silent = False

    @property
    def is_asked(self) -> bool:
        """Whether whoever pins wants to know how far it is, so that finding out may cost something."""
        return self._progress is not None

    @property
    def is_wanted(self) -> bool:
        """Whether anybody does."""
        return self.is_asked or bool(self._observers)

    def leave(self) -> None:
        """Say nothing more: somebody else does the pin, and tells of it."""
        self._silent = True
        self._stop()

    def __enter__(self) -> Self:
        if self._observers:
            self._slow = asyncio.get_running_loop().call_later(SLOW_PIN, self._is_slow)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        if error is None:
            if self._new:
                self._tell("pinned")
            self._tell("pin_status", status="pinned")
        elif isinstance(error, Exception):
            self._tell("pin_status", status="failed", error=public_text(error))
        else:
            self._tell("pin_status", status="cancelled")

    def __call__(self, state: PinProgress) -> None:
        if self._progress is not None:
            self._progress(state)
        self._latest = state
        if self._next is not None and asyncio.get_running_loop().time() >= self._next:
            self._tell_progress(state)

    def _is_slow(self) -> None:
        self._tell("pin_status", status="pinning")
        self._next = 0.0
        if self._latest is not None:
            self._tell_progress(self._latest)

    def _tell_progress(self, state: PinProgress) -> None:
        self._next = asyncio.get_running_loop().time() + PROGRESS_EVERY
        self._tell(
            "pin_progress",
            blocks=state.blocks,
            bytes=state.bytes,
            total_blocks=state.total_blocks,
            total_bytes=state.total_bytes,
            percent=_percent(state),
        )

    def _tell(self, what: What, **facts: Any) -> None:
        if not self._silent:
            self._observers.tell(what, self._cid, self._name, user=self._user, **facts)

    def _stop(self) -> None:
        self._next = None
        if self._slow is not None:
            self._slow.cancel()


def public_text(error: BaseException) -> str:
    """What may be told of an error to users: the texts of our own are made for them."""
    return str(error) if isinstance(error, IPFSStreamError) and error.code != "internal" else INTERNAL


def _percent(state: PinProgress) -> float | None:
    for done, total in ((state.bytes, state.total_bytes), (state.blocks, state.total_blocks)):
        if total:
            return round(100.0 * min(done, total) / total, 2)
    return None
