"""An event loop in a thread of its own, and blocking calls into it that Ctrl-C ends cleanly."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future, wait
from typing import Any, Final, TypeVar

from ipfs_stream_nb.clients.progress import Progress
from ipfs_stream_nb.errors import BadRequestError

T = TypeVar("T")

SHOW_EVERY: Final = 0.1
"""Seconds between two looks at how far an operation is."""
CANCEL_WAIT: Final = 5.0
"""Seconds that an interrupted operation has to clean up."""


def run_in(
    loop: asyncio.AbstractEventLoop,
    call: Callable[[], Coroutine[Any, Any, T]],
    progress: Progress | None = None,
) -> T:
    """Have `call` run in a loop of another thread, wait for it and show its progress from here.

    Where the wait is interrupted (KeyboardInterrupt), the operation is cancelled first.
    """
    if loop.is_closed():
        raise BadRequestError("this client is closed; connect() gives another")
    if _running_loop() is loop:
        raise BadRequestError(
            "this blocks, so it may not be called on the client's own event loop; use a thread"
        )
    running: list[asyncio.Task[Any]] = []
    given_up, ended = threading.Event(), threading.Event()

    async def operation() -> T:
        try:
            running.extend(task for task in [asyncio.current_task()] if task)
            if given_up.is_set():
                raise asyncio.CancelledError
            return await call()
        finally:
            ended.set()

    try:
        future = asyncio.run_coroutine_threadsafe(operation(), loop)
        _watch(future, progress)
    except BaseException:
        # an interrupt can come anywhere, also while the operation is being handed over
        given_up.set()
        if running:
            loop.call_soon_threadsafe(running[0].cancel)
            ended.wait(CANCEL_WAIT)
        raise
    try:
        return future.result()
    except CancelledError:
        raise BadRequestError("this client was closed in the middle of the call") from None


def _watch(future: Future[Any], progress: Progress | None) -> None:
    while not wait([future], SHOW_EVERY).done:
        if progress is not None:
            progress.show()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class LoopThread:
    """An event loop in a daemon thread: a notebook's own loop is busy while a cell runs, this one is not."""

    def __init__(self, name: str) -> None:
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._main, args=(started,), name=name, daemon=True)
        self._process = os.getpid()
        self._thread.start()
        self._loop = started.result()

    def _main(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        async def serve() -> None:
            self._stop = asyncio.Event()
            started.set_result(asyncio.get_running_loop())
            await self._stop.wait()

        asyncio.run(serve())

    @property
    def alive(self) -> bool:
        """Whether it runs, in this process."""
        return self._process == os.getpid() and not self._loop.is_closed()

    def run(self, call: Callable[[], Coroutine[Any, Any, T]], progress: Progress | None = None) -> T:
        """Run `call` in the loop and wait for it."""
        if self._process != os.getpid():
            raise BadRequestError(
                "this client was opened before the process forked; connect() again in the child"
            )
        return run_in(self._loop, call, progress)

    def stop(self) -> None:
        """End the loop, what still runs in it cancelled. Idempotent."""
        if self.alive:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
