"""Many transactions at once, or nothing but one change of the map: the lock between the two."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator


class Gate:
    """A readers–writer lock; whoever wants to be alone goes before those that come after. Not re-entrant."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = 0
        """Threads that are alone or wait to be."""
        self._taken = False

    def enter(self) -> None:
        """Come in beside others."""
        with self._changed:
            while self._alone:
                self._changed.wait()
            self._inside += 1

    def try_enter(self) -> bool:
        """Come in unless somebody is alone or wants to be."""
        with self._changed:
            if not self._alone:
                self._inside += 1
            return not self._alone

    def leave(self) -> None:
        """End one `enter`."""
        with self._changed:
            self._inside -= 1
            if self._alone and not self._inside:
                self._changed.notify_all()

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """`enter` and `leave` around a block."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def close(self, wait: float | None = None) -> bool:
        """Let nobody in and wait until everybody has left; False, and open again, after `wait` seconds."""
        deadline = None if wait is None else time.monotonic() + wait
        with self._changed:
            self._alone += 1
            while self._inside or self._taken:
                left = None if deadline is None else deadline - time.monotonic()
                if (left is not None and left <= 0) or not self._changed.wait(left):
                    self._alone -= 1
                    self._changed.notify_all()
                    return False
            self._taken = True
            return True

    def open(self) -> None:
        """End a `close` that gave True."""
        with self._changed:
            self._alone -= 1
            self._taken = False
            self._changed.notify_all()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """`close` and `open` around a block."""
        self.close()
        try:
            yield
        finally:
            self.open()
