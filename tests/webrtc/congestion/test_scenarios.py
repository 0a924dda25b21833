"""The estimator on a bottleneck: what a call goes through, in simulated time."""

from __future__ import annotations

import math

import pytest

from webrtc.congestion.simulator import BucketLink, Clock, Cubic, Flow, Link, Sample

MBIT = 1e6


def run(link: Link, seconds: float, **flow) -> Flow:
    """One flow on a link."""
    clock = Clock()
    made = Flow(clock, link, **flow)
    clock.run(seconds)
    return made


def most_queued(samples: list[Sample], share: float = 0.95) -> float:
    """Seconds of queue that are not exceeded for that share of the time."""
    return sorted(each.queue for each in samples)[int(share * len(samples))]


@pytest.mark.parametrize("every", [0.05, 0.062, 0.1], ids=lambda each: f"{each * 1000:.0f}ms")
@pytest.mark.parametrize("queue", [0.3, 1.5], ids=["queue of 0.3 s", "queue of 1.5 s"])
def test_step_down(every, queue):
    """3 to 0.6 Mbit/s: within 1 s the target is below the link, and after 2 s the queue is short and the link
    used.
    """
    flow = run(Link([(0, 3 * MBIT), (12, 0.6 * MBIT)], queue=queue), 30, every=every)
    assert all(each.target <= 0.6 * MBIT for each in flow.between(13, 14))
    assert most_queued(flow.between(14.5 if queue > 1 else 14, 30)) <= 0.15
    assert flow.rate(15, 30) >= 0.85 * 0.6 * MBIT


def test_step_down_loss():
    """Few packets are lost to the step."""
    clock, link = Clock(), Link([(0, 3 * MBIT), (12, 0.6 * MBIT)])
    Flow(clock, link)
    clock.run(12)
    before = link.dropped
    clock.run(40)
    assert (link.dropped - before) / link.passed <= 0.01


@pytest.mark.parametrize("every", [0.062, 0.1], ids=lambda each: f"{each * 1000:.0f}ms")
def test_step_up(every):
    """0.6 to 2 Mbit/s: 80 % of the link are used within 10 s."""
    flow = run(Link([(0, 0.6 * MBIT), (10, 2 * MBIT)]), 26, every=every)
    assert flow.rate(5, 10) >= 0.8 * 0.6 * MBIT
    assert flow.rate(20, 26) >= 0.8 * 2 * MBIT


@pytest.mark.parametrize(
    ("mbit", "source"),
    [(0.2, {}), (2, {}), (2, {"keyframes": 2.0}), (2, {"lag": 0.4}), (15, {})],
    ids=["0.2 Mbit/s", "2 Mbit/s", "key frames", "slow encoder", "15 Mbit/s"],
)
def test_steady(mbit, source):
    """A link that stays as it is is used to 80 %, with a short queue, by all kinds of sources."""
    flow = run(Link([(0, mbit * MBIT)]), 15 if mbit > 2 else 30, **source)
    assert flow.rate(8, flow.samples[-1].time) >= 0.8 * mbit * MBIT
    assert most_queued(flow.between(8, 60)) <= 0.2


@pytest.mark.parametrize("jitter", [0.0, 0.02], ids=["even", "jitter"])
def test_random_loss(jitter):
    """5 % of random loss cost less than 15 % of what arrives without it."""
    clean = run(Link([(0, 2 * MBIT)], jitter=jitter), 30).rate(10, 30)
    lossy = run(Link([(0, 2 * MBIT)], jitter=jitter, loss=0.05), 30)
    assert lossy.rate(10, 30) >= 0.85 * clean
    assert lossy.estimator.packet_loss == pytest.approx(0.05, abs=0.045)


def test_long_path():
    """200 ms of round trip: the target is never more than a fifth above the link, and the link is used."""
    flow = run(Link([(0, 2 * MBIT)], delay=0.1), 40, back=0.1)
    assert max(each.target for each in flow.samples) <= 1.2 * 2 * MBIT
    assert flow.rate(10, 40) >= 0.8 * 2 * MBIT
    assert flow.estimator.rtt == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("begin", [0, 10], ids=["from the start", "later"])
def test_beside_tcp(begin):
    """Cubic and we each get a quarter of the link at least."""
    clock, link = Clock(), Link([(0, 2 * MBIT)])
    flow, tcp = Flow(clock, link), Cubic(clock, link, begin=begin)
    clock.run(60)
    assert flow.rate(begin + 5, 60) >= 0.25 * 2 * MBIT
    assert tcp.received_bytes * 8 / (60 - begin) >= 0.25 * 2 * MBIT


@pytest.mark.parametrize("queue", [0.3, 0.8], ids=["queue of 0.3 s", "queue of 0.8 s"])
def test_after_tcp(queue):
    """Once TCP is gone, the queue becomes short again and the link is ours."""
    clock, link = Clock(), Link([(0, 2 * MBIT)], queue=queue)
    flow, tcp = Flow(clock, link), Cubic(clock, link, begin=5)
    clock.at(25, tcp.stop)
    clock.run(60)
    assert flow.rate(45, 60) >= 0.8 * 2 * MBIT
    assert most_queued(flow.between(45, 60)) <= 0.15


@pytest.mark.parametrize("source", [{}, {"lag": 0.3, "keyframes": 4.0}], ids=["", "key frames"])
@pytest.mark.parametrize("later", [0.0137, 0.4, 15], ids=["together", "a little later", "one later"])
def test_two_of_ours(later, source):
    """Two flows share evenly (Jain's index), and fill the link."""
    clock, link = Clock(), Link([(0, 3 * MBIT)])
    flows = [Flow(clock, link, **source), Flow(clock, link, begin=later, seed=2, **source)]
    clock.run(60)
    one, other = (each.rate(25, 60) for each in flows)
    assert (one + other) ** 2 / (2 * (one**2 + other**2)) >= 0.9
    assert one + other >= 0.8 * 3 * MBIT


def test_five_of_ours():
    """Many flows with key frames share nearly evenly as well, with a short queue."""
    clock, link = Clock(), Link([(0, 3 * MBIT)])
    flows = [
        Flow(clock, link, begin=0.5 * number, seed=number, lag=0.3, keyframes=4.0) for number in range(5)
    ]
    clock.run(60)
    rates = [each.rate(25, 60) for each in flows]
    assert sum(rates) ** 2 / (5 * sum(rate**2 for rate in rates)) >= 0.75
    assert most_queued(flows[0].between(25, 60)) <= 0.2


@pytest.mark.parametrize("burst", [16_000, 40_000], ids=["16 kB", "40 kB"])
def test_token_bucket(burst):
    """A line that lets bursts pass which it does not carry: they are not believed again and again."""
    clock, link = Clock(), BucketLink([(0, 3 * MBIT), (12, 0.6 * MBIT)], burst=burst)
    flow = Flow(clock, link, most=4 * MBIT, lag=0.2)
    clock.run(45)
    samples = flow.between(13, 45)
    assert sum(each.queue > 0.15 for each in samples) <= 0.33 * len(samples)
    assert flow.rate(13, 45) >= 0.85 * 0.6 * MBIT


def test_outage():
    """3 s of nothing: the target falls meanwhile, and half a second after it is near what it was."""
    flow = run(Link([(0, 2 * MBIT)], outages=((12, 15),)), 20)
    before = flow.between(11, 12)[-1].target
    assert flow.between(14, 15)[-1].target <= before / 4
    assert all(0.7 * before <= each.target <= 1.2 * before for each in flow.between(15.5, 16.5))
    assert flow.rate(15.5, 16.5) >= 0.7 * before
    assert most_queued(flow.between(15, 20)) <= 0.15


@pytest.mark.parametrize("longer", [0.05, 0.1], ids=["by 50 ms", "by 100 ms"])
def test_longer_path(longer):
    """A path that becomes longer is no queue, and nobody else's either: the rate comes back within some seconds."""
    clock, link = Clock(), Link([(0, 2 * MBIT)])
    flow = Flow(clock, link)
    clock.at(12, lambda: link.change_delay(0.025 + longer))
    clock.run(30)
    assert flow.rate(18, 30) >= 0.8 * 2 * MBIT
    assert most_queued(flow.between(18, 30)) <= 0.15
    assert flow.estimator.queue_delay < 0.05


def test_longer_and_narrower_path():
    """Another path that is both: its queue is emptied, and not taken for a competitor's that is to be filled."""
    clock, link = Clock(), Link([(0, 2 * MBIT), (12, MBIT)])
    flow = Flow(clock, link)
    clock.at(12, lambda: link.change_delay(0.075))
    clock.run(30)
    assert most_queued(flow.between(14, 30)) <= 0.15
    assert flow.rate(18, 30) >= 0.8 * MBIT


def test_small_source():
    """A source below the target does not raise it: what was never sent is not known to pass."""
    flow = run(Link([(0, 5 * MBIT)]), 30, most=0.4 * MBIT)
    assert max(each.target for each in flow.samples) <= 1 * MBIT
    assert flow.estimator.reason == "application"


def test_small_queue_and_loss():
    """Loss that grows with the rate is congestion even where no queue shows it."""
    link = Link([(0, 3 * MBIT), (10, 0.6 * MBIT)], queue=0.1)
    flow = run(link, 30)
    assert all(each.target <= 1.1 * 0.6 * MBIT for each in flow.between(12, 30))


def test_reordering():
    """Packets out of order, 20 ms late, are no loss."""
    flow = run(Link([(0, 2 * MBIT)], reordering=0.02), 40)
    assert flow.rate(10, 40) >= 0.8 * 2 * MBIT
    assert flow.estimator.packet_loss <= 0.02


def test_mobile_path():
    """A rate that wanders between 0.5 and 3 Mbit/s is followed: used to 65 %, with 300 ms of queue rarely."""
    rates = [(float(at), (1.75 + 1.25 * math.sin(at / 3)) * MBIT) for at in range(60)]
    link = Link(rates, queue=1.0)
    flow = run(link, 60)
    offered = sum(rate for _, rate in rates[10:]) / 50
    assert flow.rate(10, 60) >= 0.65 * offered
    assert most_queued(flow.between(10, 60), 0.9) <= 0.3


def test_same_each_time():
    """A run is the same each time."""
    one, other = (run(Link([(0, 2 * MBIT)], loss=0.02, jitter=0.01), 5).samples for _ in range(2))
    assert one == other


def test_nobody_competes():
    """A flow that takes its own queue for another's finds out, as what arrives does not fall with what is sent."""
    clock, link = Clock(), Link([(0, 2 * MBIT)], queue=1.0)
    flow = Flow(clock, link)
    clock.run(10)
    while link.queued(clock.now) < 0.66:
        flow.estimator._control.competing = True
        clock.run(clock.now + 0.1)
    clock.run(clock.now + 15)
    assert most_queued(flow.between(clock.now - 5, clock.now)) <= 0.15
    assert flow.rate(clock.now - 5, clock.now) >= 0.8 * 2 * MBIT
