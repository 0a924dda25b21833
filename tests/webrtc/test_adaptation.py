"""The controller of quality, by samples and a clock of the test's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.media.encoded import EncodedTrack, Rendition
from ipfs_stream_nb.webrtc.adaptation import AdaptiveBitrateController

HD = EncodedTrack("video", "h264", "h264", True, 1280, 720, 30.0, 3_000_000)


class Track:
    """Keeps what it was told."""

    def __init__(self, facts=HD):
        self.facts = facts
        self.told = []

    def set_encoding_parameters(self, height=None, bitrate=None, frame_rate=None):
        self.told.append((height, bitrate, frame_rate))


class Run:
    """A controller, and time that passes with each sample."""

    def __init__(self, facts=HD, **options):
        self.now = 100.0
        self.track = Track(facts)
        self.changes = []
        self.controller = AdaptiveBitrateController(
            self.track,
            on_change=lambda *change: self.changes.append(change),
            clock=lambda: self.now,
            **options,
        )

    def carry(self, bitrate, seconds, **stats):
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            self.controller.add_sample({"bandwidth_estimate": bitrate} | stats)


def test_the_guides_attributes():
    """Levels, start and window are the guide's; statistics without a number count as missing."""
    run = Run(None)
    controller = run.controller
    assert controller.quality_levels == [
        {"height": 1080, "bitrate": 4_500_000},
        {"height": 720, "bitrate": 2_500_000},
        {"height": 480, "bitrate": 1_000_000},
        {"height": 360, "bitrate": 500_000},
        {"height": 240, "bitrate": 250_000},
    ]
    assert controller.current_level_index == 2
    for _ in range(40):
        controller.add_sample(
            {"rtt": -1, "packet_loss": math.nan, "jitter": "much", "bandwidth_estimate": True}
        )
    assert len(controller.sample_window) == 30
    assert controller.sample_window[-1] == {
        "timestamp": 100.0, "rtt": None, "packet_loss": None, "jitter": None, "queue_delay": None, "send_bitrate": None,
        "frames_dropped": None, "lag": None,
        "bandwidth_estimate": None,
    }  # fmt: skip
    assert controller.values_ignored == 160
    assert controller.level == "medium"
    assert run.track.told == []
    with pytest.raises(BadRequestError, match="rtt, packet_loss"):
        controller.add_sample(None)


def test_the_source_goes_on_while_it_is_carried():
    """Nothing is told or changed as long as the content fits."""
    run = Run(at_source=True)
    run.carry(3_100_000, 30)
    assert run.controller.level == "source"
    assert run.track.told == run.changes == []


def test_far_too_little_leads_down_at_once():
    """A link that falls to a fifth gets the level that fits with room to spare, with the first sample."""
    run = Run(at_source=True)
    run.carry(450_000, 0.1, reason="delay")
    assert run.changes == [("low", "delay")]
    assert run.track.told == [(360, 450_000, None)]


@pytest.mark.parametrize(("queue_delay", "seconds"), [(0.3, 0.4), (0.0, 2.1)])
def test_a_dip_is_waited_for(queue_delay, seconds):
    """An estimate somewhat below the source's rate must last: briefly with a queue, longer without."""
    run = Run(at_source=True)
    run.carry(2_400_000, seconds - 0.2, queue_delay=queue_delay)
    run.carry(3_000_000, 0.1)
    run.carry(2_400_000, seconds - 0.2, queue_delay=queue_delay)
    assert run.changes == []
    run.carry(2_400_000, 0.4, queue_delay=queue_delay)
    assert run.changes == [("high", "bandwidth")]
    assert run.track.told[0] == (None, 2_400_000, None)


def test_content_of_which_frames_are_left_out():
    """It is left at once, as its next key frame may be far; but not where the network carries it easily, and something else was slow."""
    run = Run(at_source=True)
    run.carry(3_700_000, 1, frames_dropped=1)
    assert run.changes == []
    run.carry(2_900_000, 0.1, frames_dropped=1)
    assert run.changes == [("high", "bandwidth")]


def test_the_bit_rate_follows_at_once():
    """Within a level every sample sets the encoder's bit rate, never above the estimate nor the level."""
    run = Run(at_source=True)
    run.carry(1_050_000, 0.1)
    assert run.controller.level == "high"
    for carried in (850_000, 2_000_000, 1_200_000):
        run.carry(carried, 0.1)
        assert run.track.told[-1] == (None, carried, None)
    run.carry(3_400_000, 0.1)
    assert run.track.told[-1] == (None, 3_000_000, None)
    assert run.changes == [("high", "bandwidth")]


def test_first_frames_then_lines():
    """Somewhat too little halves the frames; after two seconds the level below has all of them again."""
    run = Run(at_source=True)
    run.carry(1_050_000, 0.1)
    run.carry(700_000, 1.0)
    assert run.track.told[-1] == (None, 700_000, 15.0)
    run.carry(900_000, 0.1)
    assert run.track.told[-1] == (None, 900_000, None)
    run.carry(700_000, 1.0, send_bitrate=650_000)
    assert run.track.told[-1] == (None, 650_000, 15.0)
    run.carry(700_000, 1.2)
    assert run.track.told[-1] == (480, 700_000, None)
    assert [level for level, _ in run.changes] == ["high", "medium"]


def test_up_slowly():
    """A better level takes two seconds of more than this one takes; the source three with room to spare."""
    run = Run(at_source=True)
    run.carry(150_000, 0.1)
    assert run.controller.level == "very_low"
    run.carry(700_000, 1.9)
    assert run.controller.level == "very_low"
    run.carry(700_000, 0.3)
    assert run.controller.level == "medium"
    run.carry(10_000_000, 1.9)
    assert run.controller.level == "medium"
    run.carry(10_000_000, 0.3)
    assert run.controller.level == "high"
    run.carry(10_000_000, 1.5)
    assert run.controller.level == "source"
    assert run.track.told[-1] == (None, None, None)


def test_a_source_that_was_too_much_is_tried_later():
    """Each return to the source that did not last is waited for twice as long."""
    run = Run(at_source=True)
    run.carry(900_000, 1)
    run.carry(4_000_000, 3.2)
    assert run.controller.level == "source"
    run.carry(900_000, 1)
    run.carry(4_000_000, 5.8)
    assert run.controller.level != "source"
    run.carry(4_000_000, 0.4)
    assert run.controller.level == "source"


def test_what_was_measured_counts():
    """Content that takes less than its file says is not left for a link that carries it."""
    run = Run(at_source=True)
    for _ in range(50):
        run.controller.measured(600_000)
    run.carry(700_000, 10)
    assert run.changes == []


def test_small_sources():
    """A source below the lowest level has that level alone, with its own lines."""
    run = Run(EncodedTrack("video", "h264", "mpeg4", False, 160, 120, 25.0, 0), at_source=True)
    assert run.controller.current_level_index == 4
    run.carry(40_000, 3)
    assert run.controller.level == "very_low"
    assert run.track.told[-1][:2] == (None, 40_000)
    run.carry(1, 1)
    assert run.track.told[-1][1] == 30_000


def test_held_levels():
    """A level that was set is held, within what is carried; one with the source's lines is the source; auto follows again."""
    run = Run(at_source=True)
    run.controller.set_quality("low")
    assert run.track.told == [(360, 500_000, None)]
    run.carry(5_000_000, 20)
    assert run.track.told[-1] == (360, 500_000, None)
    run.carry(150_000, 5)
    assert run.track.told[-1] == (360, 150_000, None)
    run.carry(90_000, 5)
    assert run.track.told[-1] == (360, 90_000, 15.0)
    assert run.changes == []
    run.controller.set_quality("very_high")
    assert run.track.told[-1] == (None, None, None)
    run.carry(2_000_000, 0.5)
    assert run.track.told[-1] == (None, 2_000_000, None)  # its lines, at what is carried
    run.carry(4_000_000, 3.2)
    assert run.track.told[-1] == (None, None, None)
    assert [level for level, _ in run.changes] == ["high", "source"]
    run.carry(90_000, 0.5)
    run.controller.set_quality("auto")
    run.carry(90_000, 0.1)
    assert run.controller.level == "very_low"
    with pytest.raises(BadRequestError, match="best"):
        run.controller.set_quality("best")


def test_a_held_level_that_was_too_much_is_tried_later():
    """With a level held as well, each return to the source that did not last is waited for twice as long."""
    run = Run(at_source=True)
    run.controller.set_quality("high")
    for _ in range(600):
        run.carry(1_500_000 if run.controller.at_source else 4_000_000, 0.1)
    assert 4 < len(run.changes) < 20


@pytest.mark.parametrize("rate", [0.1, 0.5, 1000.0, 0.0])
def test_frames_that_cannot_be_halved(rate):
    """Content of very few or very many frames a second keeps them all, with too little carried too."""
    run = Run(EncodedTrack("video", "h264", "h264", True, 1280, 720, rate, 3_000_000), at_source=True)
    for bitrate in (900_000, 240_000, 90_000, 4_000_000):
        run.carry(bitrate, 3)
    assert {told[2] for told in run.track.told} == {None}


def test_refusal():
    """Where the encoder has no room what plays goes on, and nothing is asked for some seconds."""
    run = Run(at_source=True)
    run.carry(550_000, 0.1)
    run.controller.refused(None)
    count = len(run.track.told)
    run.carry(550_000, 4.8)
    assert run.controller.level == "source"
    assert len(run.track.told) == count
    run.carry(550_000, 0.4)
    assert run.controller.level == "medium"
    run.controller.refused(Rendition(360, 500_000))
    run.carry(550_000, 1.0)
    assert run.controller.level == "low"
    assert run.track.told[-1] == (360, 500_000, None)


def test_an_encoder_that_falls_behind():
    """It gets a lower level, and none above it for half a minute; content that passes as it is has none to blame."""
    run = Run(at_source=True)
    run.carry(10_000_000, 5, lag=1.0)
    assert run.changes == []
    run = Run(EncodedTrack("video", "h264", "mpeg4", False, 1280, 720, 30.0, 3_000_000), at_source=True)
    run.carry(10_000_000, 5, lag=0.1)
    assert run.changes == []
    run.carry(10_000_000, 1, lag=0.5)
    assert run.changes == [("medium", "cpu")]
    run.carry(10_000_000, 1, lag=0.5)
    assert run.changes[1:] == [("low", "cpu")]
    run.carry(10_000_000, 29, lag=0.0)
    assert run.controller.level == "low"
    run.carry(10_000_000, 6, lag=0.0)
    assert run.controller.level in {"medium", "high", "source"}


def test_by_round_trip_and_loss():
    """Without an estimate: down with losses or long round trips, up only where both are known to be good; each five seconds."""
    run = Run()
    run.carry(None, 5.2, rtt=0.6, packet_loss=0.08)
    assert run.changes == [("low", "connection")]
    run.carry(None, 5.2, packet_loss=0.2)
    assert run.controller.level == "low"  # rtt unknown: 40 points
    run.carry(None, 11, packet_loss=0.0)
    assert run.controller.level == "low"
    run.carry(None, 5.2, packet_loss=0.0, rtt=0.02)
    assert run.controller.level == "medium"
    run.carry(None, 60)
    assert run.controller.level == "medium"
    run.carry(None, 60, packet_loss=0.0, rtt=0.02)
    assert run.controller.level == "high"  # the source has no more lines
    run.carry(200_000, 1)
    run.carry(None, 60, packet_loss=0.0, rtt=0.02)
    assert run.controller.level == "very_low"  # the estimate is missing: that leads nowhere


def test_numbers_of_any_kind():
    """NumPy's too, as whoever measures has them."""
    run = Run(at_source=True)
    run.controller.add_sample({"bandwidth_estimate": np.float32(450_000), "rtt": np.int64(1)})
    assert run.controller.level == "low"
    assert run.controller.values_ignored == 0


def test_an_estimate_that_goes_missing():
    """Good round trips before it, or beside it, lead nowhere: what was carried last is all that is known."""
    run = Run()
    run.carry(400_000, 10, rtt=0.05, packet_loss=0.0)
    run.carry(None, 2, rtt=0.05, packet_loss=0.0)
    for _ in range(100):
        run.now += 0.5
        run.controller.add_sample({})
    assert run.controller.level == "medium"
    assert run.controller.target_bitrate == 400_000


def test_units():
    """A round trip is seconds: 6 ms is good, 1.9 s is not."""
    run = Run()
    run.carry(None, 5.2, rtt=1.9, packet_loss=0.0)
    assert run.changes == []
    run = Run()
    run.carry(None, 5.2, rtt=0.006, packet_loss=0.0)
    assert run.changes == [("high", "connection")]


def test_another_track():
    """A track without set_encoding_parameters is followed all the same, and levels can be asked for."""
    now = [0.0]
    controller = AdaptiveBitrateController(object(), clock=lambda: now[0])
    for _ in range(60):
        now[0] += 0.1
        controller.add_sample({"bandwidth_estimate": 300_000})
    assert controller.level in {"very_low", "low"}


statistic = st.one_of(
    st.none(),
    st.floats(),
    st.integers(-5, 10**9),
    st.text(max_size=3),
    st.booleans(),
    st.just(-0.0),
    st.just(10**400),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(statistic, statistic, statistic, statistic, st.floats(-10, 100)), max_size=60),
    st.sampled_from([HD, None, EncodedTrack("video", "vp8", "vp8", True, 90, 50, 0.0, 0)]),
    st.booleans(),
)
def test_any_statistics(samples, facts, at_source):
    """Whatever is told and however the clock jumps: a level that there is, never above the estimate, the level and the source."""
    run = Run(facts, at_source=at_source)
    controller = run.controller
    for rtt, loss, jitter, estimate, seconds in samples:
        run.now += seconds
        before = controller.level
        controller.add_sample(
            {"rtt": rtt, "packet_loss": loss, "jitter": jitter, "bandwidth_estimate": estimate}
        )
        known = controller.sample_window[-1]["bandwidth_estimate"]
        target = controller.target_bitrate
        if known is not None and target is not None:
            assert 30_000 <= target <= max(known, 30_000) + 1
        if all(
            controller.sample_window[-1][key] is None for key in ("rtt", "packet_loss", "bandwidth_estimate")
        ):
            recent = [one for one in controller.sample_window if one["rtt"] is not None]
            assert controller.level == before or recent
        assert controller._top <= controller.current_level_index <= 4
        assert controller.frame_rate is None or controller.frame_rate > 0
    assert len(controller.sample_window) <= 30
