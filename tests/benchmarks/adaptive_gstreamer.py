"""GStreamer's webrtcbin playing what adaptive_server sends, in a process of its own, as adaptive_viewer does with a browser:
`python adaptive_gstreamer.py <url>`. What is measured is when pictures come out of its jitter buffer and decoder.
"""

# ruff: noqa: S310  # the URL is that of a server that was started for this

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

VIEWER = Path(__file__).parents[1] / "gst_viewer.py"


def main() -> None:
    """Play."""
    command = ["/usr/bin/python3", str(VIEWER), "offer", "H264", "live"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as viewer:
        assert viewer.stdin is not None
        assert viewer.stdout is not None
        frames: list[tuple[float, int, int]] = []
        playing = threading.Event()

        def read() -> None:
            assert viewer.stdout is not None
            for line in viewer.stdout:
                told = json.loads(line)
                if told["type"] == "offer":
                    request = urllib.request.Request(
                        f"{sys.argv[1]}whep", told["sdp"].encode(), method="POST"
                    )
                    with urllib.request.urlopen(request) as answer:
                        reply = {"type": "answer", "sdp": answer.read().decode()}
                    assert viewer.stdin is not None
                    viewer.stdin.write(json.dumps(reply).encode() + b"\n")
                    viewer.stdin.flush()
                elif told["type"] == "picture":
                    frames.append((time.time() * 1000, told["width"], told["height"]))
                    if len(frames) == 30:
                        playing.set()

        threading.Thread(target=read, daemon=True).start()
        playing.wait(30)
        print("playing", flush=True)
        sys.stdin.readline()
        print(json.dumps({"frames": frames, "samples": [[time.time() * 1000, 0, 0, 0, 0, 0, 0]]}), flush=True)
        viewer.kill()


main()
