"""Which second a received frame shows, and arrays that know it."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_stream_nb.clients.webrtc_frames import LiveArray
from ipfs_stream_nb.clients.webrtc_times import Playback, Timeline


def test_an_array_keeps_its_time():
    """Cutting keeps time and pc_id; `array` is plain."""
    frame = LiveArray.of(np.zeros((4, 6, 3), np.uint8), 1.5, "p1")
    assert (frame[:2].time, frame[:2].pc_id, frame[:2].shape) == (1.5, "p1", (2, 6, 3))
    assert type(frame.array) is np.ndarray
    assert math.isnan(np.zeros(3).view(LiveArray).time)
    assert isinstance(float(frame.mean()), float)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(position=json_values, state=json_values | st.just("playing"), duration=json_values)
def test_any_message_about_playback_is_read_or_passed_over(position, state, duration):
    """It never raises, and what is read makes sense."""
    told = Playback.read({"position": position, "state": state, "duration": duration})
    if told is not None:
        assert 0 <= told.position < math.inf
        assert told.state == "playing"
        assert told.duration is None or 0 <= told.duration < math.inf


CLOCK = 90_000
WRAP = 1 << 32


@given(
    origin=st.integers(0, WRAP - 1),
    start=st.floats(0, 1e4),
    marks=st.lists(st.tuples(st.integers(9_000, 450_000), st.floats(0, 1e4)), min_size=1, max_size=8),
    late=st.integers(0, 9_000),
)
def test_a_timeline_follows_its_marks(origin, start, marks, late):
    """Between two marks, each frame counts from the one before it, also when it comes late, and wherever timestamps wrap."""
    timeline = Timeline(start, CLOCK)
    assert timeline.take(origin, 0.0) == pytest.approx(start)
    assert timeline.take((origin + 4_500) % WRAP, 0.0) == pytest.approx(start + 0.05)
    ticks, known = origin, []
    for gap, at in marks:
        ticks += gap
        timeline.mark({"rtp_timestamp": ticks % WRAP, "time": at})
        known.append((ticks, at))
    assert timeline.marked == len(marks)
    for (begun, at), (end, _) in itertools.pairwise([*known, (ticks + CLOCK, None)]):
        frame = min(begun + late, end - 1)
        assert timeline.time_of(frame % WRAP) == pytest.approx(at + (frame - begun) / CLOCK)


@given(timestamp=json_values, at=json_values)
def test_any_mark_is_read_or_passed_over(timestamp, at):
    """It never raises, and the times stay sensible."""
    timeline = Timeline(5.0, CLOCK)
    timeline.take(0, 0.0)
    timeline.mark({"rtp_timestamp": timestamp, "time": at})
    time = timeline.take(3_000, 0.1)
    assert time is None or 0 <= time < math.inf


def test_a_timeline_without_marks_goes_by_the_position():
    """A pause and a seek are made good by the next position that is told; small differences are left alone."""

    def stamp(seconds):
        return (WRAP - CLOCK * 5 + round(seconds * CLOCK)) % WRAP

    timeline = Timeline(1.0, CLOCK)
    timeline.take(stamp(1.0), 11.0)
    timeline.hint(Playback(1.05, "playing", None), 11.0)
    assert timeline.time_of(stamp(1.0)) == pytest.approx(1.0)
    timeline.hint(Playback(1.0, "playing", None), 21.0)  # ten seconds paused
    assert timeline.take(stamp(11.1), 21.1) == pytest.approx(1.1)
    timeline.hint(Playback(60.0, "playing", None), 21.1)
    assert timeline.take(stamp(11.2), 21.2) == pytest.approx(60.1)
    timeline.hint(Playback(0.0, "paused", None), 21.2)
    assert timeline.take(stamp(11.3), 21.3) == pytest.approx(60.2)


def test_connecting_is_what_imports_aiortc():
    """Neither the package nor its clients need it, so that they stay quick."""
    code = (
        "import sys, ipfs_stream_nb; from ipfs_stream_nb.clients import content, sync, webrtc, webrtc_methods;"
        "ipfs_stream_nb.WebRTCClient('http://localhost:1/');"
        "print([name for name in ('aiortc', 'av', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
