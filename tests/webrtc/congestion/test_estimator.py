"""BandwidthEstimator: bad statistics, silence, clocks that jump, and receivers without transport-wide
feedback.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.webrtc.congestion.estimator import BandwidthEstimator
from ipfs_stream_nb.webrtc.congestion.feedback import PacketResult
from webrtc.congestion.simulator import Clock, Flow, Link

FLOOR, CEILING = 50_000, 5_000_000
NUMBERS = (
    st.floats()
    | st.floats(-10, 2000)
    | st.integers(-(10**30), 10**30)
    | st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 1e308, -1e308, 1e12])
)
RESULTS = st.lists(
    st.builds(
        PacketResult,
        NUMBERS | st.floats(0, 30),
        st.none() | NUMBERS | st.floats(0, 30),
        st.integers(-10, 10**9) | st.integers(40, 1500),
        st.none() | st.integers(-1, 4),
    ),
    max_size=40,
)
CALLS = st.one_of(
    st.tuples(st.just("on_feedback"), RESULTS),
    st.tuples(st.just("on_report"), st.none() | NUMBERS, st.none() | NUMBERS),
    st.tuples(st.just("on_remb"), NUMBERS),
    st.tuples(st.just("on_sent"), NUMBERS),
    st.tuples(st.just("tick")),
    st.tuples(st.just("probe_wanted")),
)


def settled(seconds: float = 10, **flow) -> tuple[BandwidthEstimator, Clock, Flow]:
    """An estimator that knows a link of 2 Mbit/s."""
    clock = Clock()
    made = Flow(clock, Link([(0, 2e6)]), **flow)
    clock.run(seconds)
    return made.estimator, clock, made


def check(estimator: BandwidthEstimator) -> None:
    assert isinstance(estimator.target, int)
    assert FLOOR <= estimator.target <= CEILING
    assert 0 <= estimator.packet_loss <= 1
    for each in (estimator.rtt, estimator.jitter, estimator.queue_delay, estimator.acked_bitrate):
        assert 0 <= each < math.inf
    assert estimator.state in ("increase", "hold", "decrease")
    assert estimator.reason


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(CALLS, NUMBERS | st.floats(0, 30)), max_size=25))
def test_hostile(calls):
    """Whatever is said of packets, and whenever: nothing raises, and all stays finite and within the bounds."""
    estimator = BandwidthEstimator(1_000_000, FLOOR, CEILING)
    for (name, *values), now in calls:
        cluster = getattr(estimator, name)(*values, now)
        if cluster is not None:
            assert 0 < cluster.bitrate <= CEILING
            assert 0 < cluster.seconds <= 0.2
        check(estimator)


@settings(max_examples=10, deadline=None)
@given(st.lists(RESULTS, min_size=1, max_size=10), st.integers(0, 2**16))
def test_hostile_among_good(messages, seed):
    """A receiver that lies now and then does not break what is true: the link is known again some seconds
    later.
    """
    estimator, clock, flow = settled(3, seed=seed)
    for each in messages:
        estimator.on_feedback(each, clock.now)
        clock.run(clock.now + 0.1)
    clock.run(clock.now + 6)
    assert 0.5e6 <= flow.estimator.target <= 2.6e6


@pytest.mark.parametrize(
    "bounds",
    [(0, 0, 10), (10, 20, 30), (40, 20, 30), (10, 10, math.inf), (math.nan, 1, 2)],
    ids=str,
)
def test_bounds(bounds):
    """Bounds that are none are refused."""
    with pytest.raises(BadRequestError, match="floor"):
        BandwidthEstimator(*bounds)


def test_start():
    """Before any news the target is where it starts, and no burst is sent."""
    estimator = BandwidthEstimator(800_000)
    estimator.tick(1.0)
    assert (estimator.target, estimator.state, estimator.reason) == (800_000, "hold", "start")
    assert estimator.probe_wanted(1.0) is None
    assert (estimator.packet_loss, estimator.acked_bitrate, estimator.queue_delay) == (0, 0, 0)


def test_nothing_climbs_on_missing_data():
    """Empty feedback, reports that say nothing, and time alone never raise the target."""
    estimator, clock, _ = settled()
    before, now = estimator.target, clock.now
    for step in range(1, 200):
        estimator.on_feedback([], now + step * 0.05)
        estimator.on_report(None, None, now + step * 0.05)
        estimator.on_report(math.nan, -1.0, now + step * 0.05)
        estimator.on_feedback([PacketResult(now, None, 1200)], now + step * 0.05)
        estimator.tick(now + step * 0.05)
        assert estimator.target <= before
    assert estimator.target == FLOOR
    assert (estimator.state, estimator.reason) == ("decrease", "silence")


def test_nothing_sent_is_no_silence():
    """Where nothing is sent no feedback comes, and the target stays."""
    estimator, clock, _ = settled()
    before = estimator.target
    estimator.on_sent(clock.now, 0)
    estimator.tick(clock.now + 30)
    assert estimator.target == before


def test_own_stall():
    """A second in which our process did nothing is no silence of the path."""
    estimator, clock, _ = settled()
    before = estimator.target
    estimator.tick(clock.now + 0.9)
    assert estimator.target == before


@pytest.mark.parametrize("jump", [-5000.0, -2.0, 2.0, 5000.0])
def test_receiver_clock(jump):
    """A receiver whose clock is set, or that begins anew: the target is as before some seconds later."""
    estimator, clock, flow = settled()
    flow.clock_offset += jump
    acked: list[int] = []
    clock.every(0.05, lambda: acked.append(estimator.acked_bitrate), clock.now)
    clock.run(clock.now + 10)
    assert max(acked) <= 2.6e6
    assert 1.4e6 <= estimator.target <= 2.4e6
    assert max(each.target for each in flow.between(10, 20)) <= 2.6e6
    assert estimator.queue_delay < 0.1


def test_receiver_clock_drifts():
    """A receiver's clock that is slower by 200 ppm looks like no queue."""
    estimator, clock, flow = settled()

    def drift() -> None:
        flow.clock_offset += 0.0002 * 0.1

    clock.every(0.1, drift, clock.now)
    clock.run(40)
    assert flow.rate(20, 40) >= 0.8 * 2e6
    assert estimator.queue_delay < 0.05


@pytest.mark.parametrize("jump", [-1000.0, 10_000.0])
def test_own_clock(jump):
    """Our clock that is set: estimating goes on from there."""
    estimator, clock, flow = settled(8, keep_log=True)
    before = estimator.target
    for results in flow.log[-60:]:
        shifted = [
            PacketResult(each.sent_at + jump, each.received_at, each.size, each.probe) for each in results
        ]
        estimator.on_feedback(shifted, shifted[-1].sent_at + 0.06)
        check(estimator)
    assert 0.5 * before <= estimator.target <= 1.5 * before
    assert 1e6 <= estimator.acked_bitrate <= 3e6
    assert clock.now == 8


def test_duplicates():
    """Feedback that comes thrice counts once."""
    _, _, flow = settled(8, keep_log=True)
    once, thrice = BandwidthEstimator(), BandwidthEstimator()
    for results in flow.log:
        now = results[-1].sent_at + 0.06
        once.on_feedback(results, now)
        for _ in range(3):
            thrice.on_feedback(results, now)
    assert (thrice.acked_bitrate, thrice.packet_loss) == (once.acked_bitrate, once.packet_loss)
    assert thrice.target == once.target


def test_order_within_feedback():
    """Results need not be in order of sending."""
    _, _, flow = settled(8, keep_log=True)
    one, other = BandwidthEstimator(), BandwidthEstimator()
    for results in flow.log:
        now = max(each.sent_at for each in results) + 0.06
        one.on_feedback(results, now)
        other.on_feedback(results[::-1], now)
    assert one.target == other.target


def test_late_packets():
    """A packet that arrives after it counted as lost is none."""
    estimator = BandwidthEstimator()
    sent = [index * 0.005 for index in range(100)]
    first = [PacketResult(at, at + 5 if index % 2 else None, 1200) for index, at in enumerate(sent)]
    estimator.on_feedback(first, 0.55)
    assert estimator.packet_loss > 0.4
    estimator.on_feedback([PacketResult(at, at + 5, 1200) for at in sent], 0.6)
    assert estimator.packet_loss == 0


def test_too_fast_to_be_true():
    """Packets that arrive at one instant say nothing of a rate."""
    estimator = BandwidthEstimator()
    for step in range(100):
        now = 0.05 * (step + 1)
        estimator.on_feedback([PacketResult(now - 0.05 + each / 1000, 7.0, 1200) for each in range(20)], now)
    assert estimator.target <= 1_000_000


def test_remb_caps():
    """Where no transport-wide feedback comes, REMB is the most that is sent."""
    estimator = BandwidthEstimator()
    estimator.on_remb(300_000, 1.0)
    assert (estimator.target, estimator.reason) == (300_000, "remb")
    for step in range(20):
        estimator.on_report(0.0, 0.05, 2.0 + step)
    assert estimator.target == 300_000
    estimator.on_remb(900_000, 30.0)
    for step in range(20):
        estimator.on_report(0.0, 0.05, 31.0 + step)
    assert estimator.target == 900_000


def test_remb_beside_feedback():
    """With transport-wide feedback REMB and reports do not count."""
    estimator, clock, _ = settled()
    before = estimator.target
    estimator.on_remb(100_000, clock.now)
    estimator.on_report(0.9, 3.0, clock.now)
    assert estimator.target == before


@pytest.mark.parametrize(
    ("loss", "rtts", "least", "most"),
    [
        (0.0, [0.05] * 10, 1.7, 2.2),
        (0.05, [0.05] * 10, 1.7, 2.2),
        (0.05, [0.05] + [0.3] * 9, 1.0, 1.2),
        (0.2, [0.05] * 10, 0.2, 0.5),
        (0.05, [None] * 10, 1.0, 1.0),
    ],
    ids=["no loss", "loss without a queue", "loss with a queue", "much loss", "loss alone"],
)
def test_reports(loss, rtts, least, most):
    """Receiver reports alone: little loss raises the rate, much lowers it, and some depends on the round
    trip.
    """
    estimator = BandwidthEstimator()
    for step, rtt in enumerate(rtts):
        estimator.on_sent(float(step), 10_000_000)
        estimator.on_report(loss, rtt, float(step))
    assert least <= estimator.target / 1e6 <= most
    assert estimator.packet_loss == loss


def test_reports_of_a_small_source():
    """Reports do not raise the target above what the application would send."""
    estimator = BandwidthEstimator()
    for step in range(60):
        estimator.on_sent(float(step), 400_000)
        estimator.on_report(0.0, 0.05, float(step))
    assert estimator.target == 1_000_000


def test_reports_stop():
    """Reports that no longer come lower the target, and once they come again it is back."""
    estimator = BandwidthEstimator()
    estimator.on_sent(0.0, 2_000_000)
    estimator.on_report(0.0, 0.05, 0.5)
    for step in range(15):
        estimator.tick(1.0 + step)
    assert (estimator.target, estimator.reason) == (FLOOR, "silence")
    estimator.on_report(0.0, 0.05, 16.0)
    assert estimator.target >= 800_000


def test_feedback_ends_and_reports_come_instead():
    """A receiver that was negotiated anew without transport-wide feedback is followed by its reports, each few seconds."""
    estimator, clock, _ = settled()
    before, now = estimator.target, clock.now
    for step in range(1, 1200):
        now += 0.05
        estimator.on_sent(now, 10_000_000)
        estimator.tick(now)
        if step > 100 and step % 80 == 0:
            estimator.on_report(0.0, 0.05, now)
    assert estimator.target >= before / 2
    assert estimator.reason != "silence"
