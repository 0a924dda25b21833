"""The end of a process, as its threads see it."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import threading, time
from concurrent.futures import ThreadPoolExecutor
from ipfs_stream_nb.process_end import process_ends

def watch():
    before = process_ends()
    while True:
        try:
            pool.submit(int)
        except RuntimeError:
            print(before, process_ends(), flush=True)
            return
        time.sleep(0.01)

pool = ThreadPoolExecutor()
pool.submit(time.sleep, 1)
threading.Thread(target=watch, daemon=True).start()
"""


def test_it_ends_once_no_thread_takes_work():
    """Also while the main thread still waits for a thread that works."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False True\n"
