"""What a worker thread has of whoever asked for its work: whether it is still wanted, and where progress goes."""

from __future__ import annotations

import asyncio
import errno
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, TypeVar, cast

from ipfs_stream_nb.display import size_text
from ipfs_stream_nb.errors import DiskFullError, TooLargeError

T = TypeVar("T")

PROGRESS_EVERY: Final = 0.25
"""Seconds between two reports of progress."""
LOOK_EVERY: Final = 0.1
"""Seconds after which a worker that waits for the node looks whether it is still wanted."""
MAX_BEFORE_END: Final = 99.0
"""Per cent that are reported at most before the result is there."""
MAX_SCRATCH: Final = 8 << 30
"""Bytes of a temporary file."""
MIN_FREE: Final = 256 << 20
"""Bytes that a temporary file leaves free on its disk,"""
CHECK_FREE_EVERY: Final = 16 << 20
"""looked at each time that so many were written."""


class StoppedError(Exception):
    """The work is not wanted any more; nobody sees this one but the worker thread."""


@dataclass
class Outcome:
    """What a kind of work gives."""

    result: dict[str, Any]
    """JSON; `cid` is added to it, and `size` where there is an output."""
    output: BinaryIO | Scratch | None = None
    """What is to be added to the node, from its beginning on; its CID is then the result's, else the content's."""
    ending: str = ""
    """The output's name is the content's, with this behind it."""
    pin: bool = True


class Job:
    """One piece of work. `check`, `call`, `report` and `scratch` are the worker's, the rest is the event loop's."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        """`tell` gets reports of progress, on the running loop."""
        self.size = 0
        """Bytes of the content."""
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._stopped = threading.Event()
        self._due = 0.0
        self._percent: float | None = None
        self._facts: dict[str, Any] = {}
        self._scratch: list[Scratch] = []

    def stop(self) -> None:
        """End the work at its next look."""
        self._stopped.set()

    def check(self) -> None:
        """Raise StoppedError where the work is not wanted any more."""
        if self._stopped.is_set() or self._loop.is_closed():
            raise StoppedError

    def call(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Have a coroutine run on the loop, and wait for it."""
        self.check()
        future = asyncio.run_coroutine_threadsafe(make(), self._loop)
        try:
            while not wait([future], LOOK_EVERY).done:
                self.check()
        except StoppedError:
            future.cancel()
            raise
        return future.result()

    def report(self, done: float, total: float | None, **facts: Any) -> None:
        """Tell how far it is: `done` of `total` in any unit, and facts; what comes too soon is kept for the end."""
        self.check()
        self._facts = facts
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + PROGRESS_EVERY
        if total:
            self._percent = max(self._percent or 0.0, round(min(100 * done / total, MAX_BEFORE_END), 1))
        self._loop.call_soon_threadsafe(self._tell, self._progress(self._percent))

    def finished(self) -> None:
        """Tell that all is done."""
        self._tell(self._progress(100.0))

    def _progress(self, percent: float | None) -> dict[str, Any]:
        return {"percent": percent, **self._facts, "total_bytes": self.size}

    def scratch(self) -> Scratch:
        """A temporary file that goes with the job."""
        self._scratch.append(Scratch())
        return self._scratch[-1]

    def close(self) -> None:
        """Remove the temporary files; for a thread, once the worker has ended."""
        for file in self._scratch:
            file.close()


class Scratch:
    """A temporary file without a name, which is gone with the process at the latest: in $TMPDIR, bounded.

    FFmpeg calls `write` from C, where an exception has no way out: the first is kept, and `check` raises it.
    """

    def __init__(self) -> None:
        # it outlives this call: the job closes it
        self._file = cast("BinaryIO", tempfile.TemporaryFile(prefix="ipfs_stream_nb-"))  # noqa: SIM115
        self._written = self._checked = 0
        self._failure: Exception | None = None
        self.seek, self.tell, self.read = self._file.seek, self._file.tell, self._file.read

    def write(self, data: bytes) -> int:
        """Take bytes, or note why not."""
        if self._failure is None:
            try:
                self._write(data)
            except OSError as error:
                self._failure = _full() if error.errno in {errno.ENOSPC, errno.EDQUOT} else error
            except Exception as error:  # noqa: BLE001 - raised again by check
                self._failure = error
        return len(data)

    def _write(self, data: bytes) -> None:
        self._written += len(data)
        if self._written > MAX_SCRATCH:
            raise TooLargeError(f"the result would be over {size_text(MAX_SCRATCH)}; ask for a lower bitrate")
        if self._written - self._checked >= CHECK_FREE_EVERY:
            self._checked = self._written
            if shutil.disk_usage(tempfile.gettempdir()).free < MIN_FREE:
                raise _full()
        self._file.write(data)

    def check(self) -> None:
        """Raise DiskFullError or TooLargeError where not all was taken."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Remove it. Idempotent."""
        self._file.close()


def _full() -> DiskFullError:
    return DiskFullError(
        f"the disk of {tempfile.gettempdir()!r} is full; $TMPDIR may name a folder with more room"
    )
