"""What happens at the end of a process to those who run in a thread of it."""

from __future__ import annotations

import threading


def process_ends() -> bool:
    """Whether the main thread is over: then no thread can be started any more, so that work fails which needs one. A server in
    a daemon thread meets that."""
    return not threading.main_thread().is_alive()
