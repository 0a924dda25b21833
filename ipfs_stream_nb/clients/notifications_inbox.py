"""What has come and is not read yet: bounded, for one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

MAX_WAITING: Final = 1000
"""Events that wait for the reader; above that the socket is not read, so that the server waits."""
MAX_WAITING_BYTES: Final = 8 << 20
"""Bytes of them, as they came."""


class Inbox:
    """Messages with the cursors behind them, in order."""

    def __init__(self) -> None:
        self._items: deque[tuple[dict[str, Any], str | None, int]] = deque()
        self._size = 0
        self._changed: set[asyncio.Future[None]] = set()
        self.ended = False

    @property
    def full(self) -> bool:
        """Whether nothing more should be put in."""
        return len(self._items) >= MAX_WAITING or self._size >= MAX_WAITING_BYTES

    @property
    def filled(self) -> bool:
        """Whether something waits to be read."""
        return bool(self._items)

    def put(self, message: dict[str, Any], cursor: str | None, size: int) -> None:
        """Put one in, of `size` bytes."""
        self._items.append((message, cursor, size))
        self._size += size
        self.nudge()

    def amend(self, cursor: str) -> bool:
        """Have this be the cursor behind all that waits; False where nothing does."""
        if self._items:
            message, _, size = self._items.pop()
            self._items.append((message, cursor, size))
        return bool(self._items)

    async def get(self) -> tuple[dict[str, Any], str | None] | None:
        """The next one; None at the end. Nothing is lost where the wait is cancelled."""
        while not self._items:
            if self.ended:
                return None
            await self._change()
        message, cursor, size = self._items.popleft()
        self._size -= size
        self.nudge()
        return message, cursor

    async def room(self, urgent: Callable[[], bool]) -> None:
        """Wait until it is not full any more, or something is `urgent`."""
        while self.full and not urgent():
            await self._change()

    def end(self, *, at_once: bool) -> None:
        """Nothing more comes; `at_once`: not even what is here. Idempotent."""
        self.ended = True
        if at_once:
            self._items.clear()
        self.nudge()

    def nudge(self) -> None:
        """Have whoever waits look again."""
        for waiter in self._changed:
            if not waiter.done():
                waiter.set_result(None)
        self._changed.clear()

    async def _change(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed.add(waiter)
        try:
            await waiter
        finally:
            self._changed.discard(waiter)
