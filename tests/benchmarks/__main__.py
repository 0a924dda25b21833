"""Run all benchmarks but bench_adaptive, which takes hours, one after the other, each in a process of its own: `make bench`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = (
    "bench_add",
    "bench_http",
    "bench_frames",
    "bench_kubo",
    "bench_sockets",
    "bench_notifications",
    "bench_feed",
    "bench_chart",
    "bench_webrtc",
)


def main() -> int:
    """Return the number of benchmarks that failed to run; their figures are for reading, not for passing."""
    failed = 0
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    for name in BENCHMARKS:
        print(f"\n== {name}", flush=True)
        script = Path(__file__).with_name(f"{name}.py")
        done = subprocess.run([sys.executable, script], env=environment, check=False)
        failed += done.returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
