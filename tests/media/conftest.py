"""Media for the tests, made once a session, and a file that counts what is read of it."""

import io
import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ipfs_stream_nb import samples
from ipfs_stream_nb.media.pattern import FramePainter


class CountingFile(io.RawIOBase):
    """A read-only file over bytes that notes (offset, length) of every read."""

    def __init__(self, data):
        self._file = io.BytesIO(data)
        self.size = len(data)
        self.reads = []

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=0):
        return self._file.seek(offset, whence)

    def tell(self):
        return self._file.tell()

    def read(self, size=-1):
        offset = self._file.tell()
        data = self._file.read(size)
        self.reads.append((offset, len(data)))
        return data

    @property
    def total(self):
        return sum(length for _, length in self.reads)


@pytest.fixture
def counting():
    return CountingFile


@pytest.fixture(scope="session")
def clip():
    """samples.video as bytes, small by default, made once for each set of options."""
    made = {}

    def make(**options):
        options = {"width": 160, "height": 120, "duration": 3.0, "frame_rate": 25, **options}
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = samples.video(**options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def encode(tmp_path_factory):
    """Encode numbered pictures with any codec and container, each at its own time; made once for each set of options."""
    made = {}

    def make(ending, codec, **options):
        key = (ending, codec, repr(sorted(options.items())))
        if key not in made:
            path = tmp_path_factory.mktemp("encoded") / f"clip.{ending}"
            _encode(str(path), codec, **options)
            _as_before()
            made[key] = path.read_bytes()
        return made[key]

    return make


def _as_before():
    """SVT-AV1 gives the process that calls it real-time priority where it may: it would stand in the way of all else."""
    for thread in Path("/proc/self/task").glob("*"):
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))


def _encode(
    path, codec, *, times=None, clock=1000, width=160, height=120, pixels="yuv420p", gop=12, options=None,
    muxer=None, audio=None, container=None,
):  # fmt: skip
    times = list(range(0, 3000, 40)) if times is None else times
    painter = FramePainter(width, height, Fraction(25))
    with av.open(path, "w", format=container, options=muxer or {}) as output:
        stream = output.add_stream(codec, 25)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.time_base = Fraction(1, clock)
        stream.codec_context.gop_size = gop
        stream.codec_context.options = options or {}
        track = output.add_stream(audio, samples.SAMPLE_RATE, layout="stereo") if audio else None
        for number, time in enumerate(times):
            picture = np.ascontiguousarray(painter.paint(number))
            frame = av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format=pixels)
            frame.pts, frame.time_base = time, Fraction(1, clock)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if track:
            output.mux(track.encode(samples._audio_frame(0, samples.SAMPLE_RATE * 3)))
            output.mux(track.encode(None))
    assert os.path.getsize(path)  # noqa: PTH202
