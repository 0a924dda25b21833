"""Every store's environment once in a process, and none of it in a forked child.

LMDB must not be used across a fork, nor closed in the child while a transaction is open (that would end the
parent's). So a fork waits for running transactions, milliseconds as a rule, and the child lets go of everything;
it may open the store anew.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

import lmdb

from ipfs_stream_nb.content.blocks import layout
from ipfs_stream_nb.content.blocks.environment import Environment

FORK_WAIT: Final = 5.0
"""Seconds that a fork waits for the transactions of this process. After that, the child can't open the store."""

_Key = tuple[int, int]


_CLOSES_IN_CHILD: Final = int(lmdb.__version__.split(".", maxsplit=1)[0]) >= 2
"""lmdb 1 keeps idle readers, which closing in the child would take from the parent; but it opens a file twice."""


class _Shared:
    """The environments of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open: dict[_Key, Environment] = {}
        self.resting: list[Environment] = []
        """Without transactions, while a fork is under way."""
        self.lost: list[Environment] = []
        """Inherited and not to be closed: kept, so that nothing of them is ever finalised."""


_shared = _Shared()


def acquire(path: str | os.PathLike[str], *, create: bool) -> Environment:
    """The environment of the store at `path`, to be given back by `release`. Raises StoreError, BusyError."""
    folder = Path(os.path.realpath(path))
    layout.prepare(folder, create=create)
    with _shared.lock:
        stat = folder.stat()
        key = stat.st_dev, stat.st_ino
        env = _shared.open.get(key)
        if env is None:
            env = _shared.open[key] = Environment(folder, create=create)
        env.users += 1
        return env


def release(env: Environment) -> None:
    """Give one use back; the last one closes it, once its running readers have ended."""
    with _shared.lock:
        env.users -= 1
        if not env.users and env in _shared.open.values():  # it is not, where it came through a fork
            _shared.open = {key: other for key, other in _shared.open.items() if other is not env}
            env.close()


def _before_fork() -> None:
    _shared.lock.acquire()
    for env in _shared.open.values():
        if env.writer.acquire(timeout=FORK_WAIT):
            if env.gate.close(FORK_WAIT):
                _shared.resting.append(env)
            else:
                env.writer.release()


def _after_fork() -> None:
    for env in _shared.resting:
        env.gate.open()
        env.writer.release()
    _shared.resting.clear()
    _shared.lock.release()


def _after_fork_in_child() -> None:
    global _shared  # its lock may be in any state here
    inherited, _shared = _shared, _Shared()
    for env in inherited.open.values():
        env.lease.forget()
        if env in inherited.resting and _CLOSES_IN_CHILD:
            env.disconnect()
        else:
            _shared.lost.append(env)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
