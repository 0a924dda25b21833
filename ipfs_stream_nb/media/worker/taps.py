"""Which runs have a place in the worker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ipfs_stream_nb.media.worker.process import Tap, Worker

if TYPE_CHECKING:
    from ipfs_stream_nb.media.worker.shelf import Run


class Taps:
    """The places that a worker reads from at once: few, since each takes memory. Who has waited longest is closed."""

    def __init__(self, worker: Worker, most: int) -> None:
        self._worker, self._most = worker, most
        self._runs: dict[Run, None] = {}
        """Those that have one, least recently used first."""
        self._freed = asyncio.Event()
        self.waiting = 0
        """Runs that wait for a place."""

    async def of(self, run: Run) -> Tap:
        """The run's tap, a new one if it has none."""
        while run.tap is None and len(self._runs) >= self._most:
            idle = next((one for one in self._runs if one.task is None), None)
            if idle is not None:
                self.close(idle)
            else:
                self._freed.clear()
                self.waiting += 1
                try:
                    await self._freed.wait()
                finally:
                    self.waiting -= 1
        if run.tap is None:
            run.tap = self._worker.tap(run.order, run.put)
        self._runs.pop(run, None)
        self._runs[run] = None
        return run.tap

    def close(self, run: Run) -> None:
        """Close the run's tap; it gets another one when it goes on."""
        if run.tap is not None:
            run.tap.close()
            run.tap = None
        self._runs.pop(run, None)
        self.free()

    def free(self) -> None:
        """A run is idle now."""
        self._freed.set()
