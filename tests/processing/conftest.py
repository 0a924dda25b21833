"""A real store with small media in it."""

import asyncio
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ipfs_stream_nb import samples
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.media.pattern import FramePainter


class HeldNode(EmbeddedNode):
    """A node whose reads wait, as those of far content do; `held` is set once one waits."""

    async def read(self, path, offset, length):
        self.held.set()
        await asyncio.Event().wait()


@pytest.fixture
async def node(tmp_path):
    """An empty store."""
    async with await EmbeddedNode.open(tmp_path / "repo") as node:
        yield node


@pytest.fixture
async def held(tmp_path):
    """A node from which nothing is ever read."""
    async with await HeldNode.open(tmp_path / "held") as node:
        node.held = asyncio.Event()
        yield node


@pytest.fixture(scope="session")
def clip():
    """samples.video as bytes, made once for each set of options: 2 s at 25 frames a second, 160 by 120."""
    made = {}

    def make(**options):
        options = {"width": 160, "height": 120, "duration": 2.0, "frame_rate": 25, **options}
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = samples.video(**options)
        return made[key]

    return make


@pytest.fixture
def add():
    """Add bytes to a node, unpinned; gives the CID."""

    async def add(node, data, name=""):
        async def pieces():
            yield data

        return (await node.add(pieces(), pin=False, name=name)).cid

    return add


@pytest.fixture
def pictures(tmp_path):
    """Encode numbered pictures, each at its own time (ms)."""

    def make(ending, codec, times, *, width=160, height=120, pixels="yuv420p", aspect=None, colour=None):
        path, painter = tmp_path / f"pictures.{ending}", FramePainter(width, height, Fraction(25))
        with av.open(str(path), "w") as output:
            stream = output.add_stream(codec, 25)
            stream.width, stream.height, stream.pix_fmt = width, height, pixels
            stream.codec_context.time_base = Fraction(1, 1000)
            if aspect:
                stream.codec_context.sample_aspect_ratio = aspect
            for number, time in enumerate(times):
                picture = np.ascontiguousarray(painter.paint(number))
                if colour:
                    picture[..., :3] = colour
                frame = av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format=pixels)
                frame.pts, frame.time_base = time, Fraction(1, 1000)
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return path.read_bytes()

    return make


@pytest.fixture
def tone(tmp_path):
    """Encode sound alone: a second and a half of silence, with a short click after a second."""

    def make(ending, codec, *, layout="stereo", rate=44_100):
        path = tmp_path / f"tone.{ending}"
        with av.open(str(path), "w") as output:
            stream = output.add_stream(codec, rate, layout=layout)
            count = len(av.AudioLayout(layout).channels)
            heard = np.zeros((count, rate * 3 // 2), np.float32)
            heard[:, rate : rate + rate // 100] = np.sin(np.arange(rate // 100) * 2000 * np.pi / rate)
            frame = av.AudioFrame.from_ndarray(heard, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return path.read_bytes()

    return make


@pytest.fixture
def scratch_files():
    """How many of our temporary files are open in this process: they have no name, so that none is ever left."""

    def count():
        links = Path("/proc/self/fd")
        if not links.exists():
            pytest.skip("no /proc here: which files are open cannot be told")
        found = 0
        for link in links.iterdir():
            with suppress(OSError):  # the folder was open while it was listed
                target = str(link.readlink())
                found += "(deleted)" in target and not target.startswith("/memfd")
        return found

    return count
