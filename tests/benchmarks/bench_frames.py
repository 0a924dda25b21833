"""frames() from the middle of a 50 MB video by CID, against PyAV on the same video as a local file, in turns.

Both decode two seconds of 720p from 30 s on, with the same threads. The peer keeps `to_ndarray("rgb24")` of each frame in
a list; stacking them into the one array that frames() gives is measured beside it. Then: how much of the file is read
until the first frame is there, from the beginning and from the middle, with the index at the front and at the end.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from measure import Result, report

import ipfs_stream_nb as ipfs
from ipfs_stream_nb import samples
from ipfs_stream_nb.media.frames import frames, iter_frames
from long_video import looped

START, STOP = 30.5, 32.5  # a keyframe: what comes before one in its GOP must be read too
SECONDS, COPIES = 6, 10


def plain(path: Path) -> list[Any]:
    """The peer: PyAV with frame threads on a local file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        container.seek(int(START / stream.time_base), stream=stream)
        pictures = []
        for frame in container.decode(stream):
            if frame.time >= STOP:
                break
            if frame.time >= START:
                pictures.append(frame.to_ndarray(format="rgb24"))
        return pictures


def timed(run: Callable[[], Any]) -> float:
    """Pictures a second."""
    start = time.perf_counter()
    found = run()
    return len(found) / (time.perf_counter() - start)


def first_frame(client: ipfs.Client, path: Path) -> None:
    """Print what is read of the file for its first frame, and for the first one from the middle on."""
    content = client.add(path)
    for start in (0.0, START):
        with client.open(content.cid) as file:
            walk = iter_frames(file, start)
            next(walk)
            share = 100 * file.bytes_fetched / file.size
            walk.close()
        print(
            f"{path.name}, first frame at {start:g} s after {share:.2f} % of {path.stat().st_size / 1e6:.0f} MB"
        )


def main(rounds: int = 7) -> None:
    """Print the ratios and the shares that were read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = {"width": 1280, "height": 720, "duration": SECONDS, "grain": 20, "bit_rate": 6_900_000}
        small = samples.video(**options)
        paths = [
            looped(folder / "index-first.mp4", small, SECONDS, COPIES, movflags="+faststart"),
            looped(folder / "index-last.mp4", small, SECONDS, COPIES),
            looped(folder / "cues.webm", samples.video(**options, kind="webm")),
        ]
        with ipfs.connect(repo=folder / "repo") as client:
            path = paths[0]
            content = client.add(path)
            alike = Result("frames() by CID", "PyAV on the local file", "frames/s", goal=0.9)
            stacked = Result("frames() by CID", "PyAV and np.stack", "frames/s", goal=0.9)
            local = Result("frames() of a local file", "PyAV on the local file", "frames/s", goal=0.9)

            def by_cid() -> Any:
                with client.open(content.cid) as file:
                    return frames(file, START, STOP)

            def of_file() -> Any:
                with path.open("rb") as file:
                    return frames(file, START, STOP)

            np.testing.assert_array_equal(by_cid().array, np.stack(plain(path)))
            for _ in range(rounds):
                peer = timed(lambda: plain(path))
                ours = timed(by_cid)
                alike.add(ours, peer)
                local.add(timed(of_file), peer)
                stacked.add(ours, timed(lambda: np.stack(plain(path))))
            for result in (alike, stacked, local):
                report(result)
            for path in paths:
                first_frame(client, path)


if __name__ == "__main__":
    main()
