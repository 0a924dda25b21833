"""What several clients of one process share: made for the first, ended with the last or at the interpreter's exit."""

from __future__ import annotations

import atexit
import importlib
import os
import threading
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass(eq=False)
class _Entry(Generic[V]):
    value: V
    users: int = 0


class Lease(Generic[V]):
    """One user's hold on a shared value."""

    def __init__(self, value: V, release: Callable[[], None]) -> None:
        self.value = value
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Let go; the value is ended with the last lease. Idempotent."""
        release, self._release = self._release, None
        if release is not None:
            release()


class Shared(Generic[V]):
    """One value for each key, in this process: a forked child starts without any."""

    def __init__(self, end: Callable[[V], None]) -> None:
        """`end` is called once for each value, in the thread that lets go of it last."""
        self._end = end
        self._lock = threading.Lock()
        self._latest: dict[Hashable, _Entry[V]] = {}
        self._entries: set[_Entry[V]] = set()
        self._orphans: list[object] = []
        _at_exit(self.end_all)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def take(self, key: Hashable, make: Callable[[], V], usable: Callable[[V], bool] = bool) -> Lease[V]:
        """A lease on the value for `key`, which is made if there is none that is `usable`."""
        with self._lock:
            entry = self._latest.get(key)
            if entry is None or not usable(entry.value):
                entry = self._latest[key] = _Entry(make())
                self._entries.add(entry)
            entry.users += 1
            return Lease(entry.value, partial(self._give_back, key, entry))

    def _give_back(self, key: Hashable, entry: _Entry[V]) -> None:
        with self._lock:
            entry.users -= 1
            if entry.users or entry not in self._entries:  # ended at exit, or of before a fork
                return
            self._entries.remove(entry)
            if self._latest.get(key) is entry:
                del self._latest[key]
        self._end(entry.value)

    def end_all(self) -> None:
        """End every value, whoever holds it."""
        with self._lock, ExitStack() as ends:
            for entry in self._entries:
                ends.callback(self._end, entry.value)
            self._entries.clear()
            self._latest.clear()

    def _forget(self) -> None:
        # a fork copies the values and none of their threads: they are kept, so that nothing tries to end them
        self._orphans.append(self._entries)
        self._entries, self._latest = set(), {}
        self._lock = threading.Lock()


def _at_exit(call: Callable[[], None]) -> None:
    """Have `call` run at the interpreter's exit, while there are threads still.

    What `atexit` runs comes too late: executors are shut down by then, and closing a store needs one. They use
    this same function to be told, and of its callbacks the last one registered runs first.
    """
    importlib.import_module("concurrent.futures.thread")
    getattr(threading, "_register_atexit", atexit.register)(call)
