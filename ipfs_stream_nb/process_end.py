"""What happens at the end of a process to those who run in a thread of it."""

from __future__ import annotations

import threading


def process_ends() -> bool:
    """Whether the main thread is over, or waits for the last threads: then no thread can be started any more, so that work fails
    which needs one. A server in a daemon thread meets that."""
    # executors refuse work from the flag on, while the main thread may still join their threads; nothing public tells
    return not threading.main_thread().is_alive() or getattr(threading, "_SHUTTING_DOWN", False)
