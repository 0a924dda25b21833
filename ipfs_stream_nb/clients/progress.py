"""Progress that is counted where the work is done and shown where the user waits.

Work runs on an event loop, for the blocking client in another thread; bars are made and moved in the user's own
thread only, since a notebook puts a bar below the cell whose thread made it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from ipfs_stream_nb.errors import BadRequestError

SHOW_AFTER: Final = 0.5
"""Seconds after which a bar appears, where none was asked for."""


class Bar(Protocol):
    """What can show progress: a tqdm bar, or anything with its `update` and `total`."""

    total: float | None

    def update(self, n: int, /) -> Any:
        """Move on by n bytes."""


class ByteCallback(Protocol):
    """An fsspec Callback."""

    def set_size(self, size: int, /) -> Any:
        """Tell the total."""

    def relative_update(self, inc: int, /) -> Any:
        """Move on by inc bytes."""


ProgressLike = "bool | None | Bar | ByteCallback | Progress"
"""None: a tqdm bar for what takes over SHOW_AFTER; True: a bar at once; False: nothing; or a tqdm bar or an
fsspec Callback of the caller's."""


class Progress:
    """One operation's count of bytes, and where it is shown."""

    def __init__(self, target: Any = None, *, inline: bool = True) -> None:
        """`inline`: the counting thread is the user's, so that every count is shown at once."""
        self._target = target
        self._inline = inline
        self._show = _shower(target)
        self._label = ""
        self._total: int | None = None
        self._done = 0
        self._started = time.monotonic()

    @property
    def wanted(self) -> bool:
        """Whether anything is ever shown, so that a total is worth finding out."""
        return self._target is not False

    @classmethod
    @contextmanager
    def of(cls, target: Any) -> Generator[Progress, None, None]:
        """The progress for an operation: `target` itself where it is one, which its owner ends."""
        if isinstance(target, Progress):
            yield target
            return
        progress = cls(target)
        try:
            yield progress
        finally:
            progress.end()

    def begin(self, label: str, total: int | None) -> None:
        """Say what is counted, and of how many bytes where that is known."""
        self._label = label
        self._total = total

    def advance(self, count: int) -> None:
        """Count further bytes."""
        self.reach(self._done + count, self._total)

    def reach(self, done: int, total: int | None) -> None:
        """Count up to `done`, of a total that may only now be known."""
        self._done = done
        self._total = total
        if self._inline:
            self.show()

    def show(self) -> None:
        """Bring what is shown up to date; called from the user's thread."""
        self._show.update(self._label, self._done, self._total, time.monotonic() - self._started)

    def end(self) -> None:
        """Show the end, and close a bar of our own."""
        self.show()
        self._show.close()


class _Nothing:
    """Shows nothing."""

    def update(self, label: str, done: int, total: int | None, elapsed: float) -> None:
        pass

    def close(self) -> None:
        pass


class _OwnBar:
    """A tqdm bar, made once it is due."""

    def __init__(self, after: float) -> None:
        self._after = after
        self._bar: Any = None

    def update(self, label: str, done: int, total: int | None, elapsed: float) -> None:
        if self._bar is None:
            if not label or elapsed < self._after:
                return
            from tqdm.auto import tqdm  # noqa: PLC0415  # 100 ms that only a bar pays

            self._bar = tqdm(total=total, desc=label, unit="B", unit_scale=True, unit_divisor=1024)
            self._bar.start_t -= elapsed
        if total is not None and total != self._bar.total:
            self._bar.reset(total)
            self._bar.start_t -= elapsed
        if done > self._bar.n:
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class _GivenBar:
    """A bar or callback of the caller's, who closes it."""

    def __init__(self, size: Callable[[int], Any], step: Callable[[int], Any]) -> None:
        self._size = size
        self._step = step
        self._seen = 0
        self._total: int | None = None

    def update(self, label: str, done: int, total: int | None, elapsed: float) -> None:  # noqa: ARG002  # it has its own
        if total is not None and total != self._total:
            self._total = total
            self._size(total)
        if done > self._seen:
            step, self._seen = done - self._seen, done
            self._step(step)

    def close(self) -> None:
        pass


def _shower(target: Any) -> _Nothing | _OwnBar | _GivenBar:
    if target is False:
        return _Nothing()
    if target is None or target is True:
        return _OwnBar(0.0 if target else SHOW_AFTER)
    if hasattr(target, "relative_update") and hasattr(target, "set_size"):
        return _GivenBar(target.set_size, target.relative_update)
    if callable(getattr(target, "update", None)):
        return _GivenBar(lambda total: setattr(target, "total", total), target.update)
    raise BadRequestError(
        f"progress={target!r}: give True, False, a tqdm bar or an fsspec Callback (None shows a bar when it takes long)"
    )
