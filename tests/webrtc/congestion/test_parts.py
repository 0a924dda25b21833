"""The estimator's parts by themselves: trendline, queue delay, loss, throughput and probes."""

from __future__ import annotations

import math
import random

import pytest

from ipfs_stream_nb.webrtc.congestion.feedback import PacketResult
from ipfs_stream_nb.webrtc.congestion.loss import LossLimit
from ipfs_stream_nb.webrtc.congestion.probing import ANSWER, INTERVAL, Prober
from ipfs_stream_nb.webrtc.congestion.queueing import QueueDelay
from ipfs_stream_nb.webrtc.congestion.rate_control import RateControl, Seen
from ipfs_stream_nb.webrtc.congestion.throughput import Throughput
from ipfs_stream_nb.webrtc.congestion.trendline import Trendline


@pytest.mark.parametrize(
    ("growth", "signal"), [(0.0, "normal"), (0.2, "overuse"), (-0.2, "underuse")], ids=["level", "up", "down"]
)
def test_trendline(growth, signal):
    """A queue that grows or shrinks by 200 ms a second is told within half a second."""
    trendline, signals = Trendline(), set()
    for index in range(50):
        sent = index * 0.01
        trendline.add(sent, 100 + sent * (1 + growth))
        signals.add(trendline.signal)
    assert signal in signals
    assert signals <= {"normal", signal}


def test_trendline_noise():
    """Arrivals that jitter by 10 ms are no overuse most of the time."""
    chance, trendline, over = random.Random(5), Trendline(), 0
    for index in range(3000):
        trendline.add(index * 0.01, index * 0.01 + chance.random() * 0.01)
        over += trendline.signal == "overuse"
    assert over < 30


def test_queue_delay():
    """The queue is what a feedback's quickest packet waited more than the quickest of all."""
    queue = QueueDelay()
    for step, delays in enumerate([(-500.0, -499.95), (-499.8, -499.9), (-500.0, -499.9)]):
        for each in delays:
            queue.add(each)
        queue.update(step * 0.05, keep=False)
        assert queue.standing == pytest.approx([0, 0.1, 0][step])


def test_queue_delay_after_a_pause():
    """What was before a long pause, in which the clocks went apart, is no measure any more."""
    queue = QueueDelay()
    for now, delay in ((0.0, 5.0), (1.0, 5.0), (3000.0, 5.3)):
        queue.add(delay)
        queue.update(now, keep=False)
    assert queue.standing == 0


@pytest.mark.parametrize("moves", [0.0, 0.02], ids=["flat", "moving"])
def test_queue_delay_of_a_new_path(moves):
    """Delay that rises and then stays is the path's; one that goes on moving is a queue."""
    queue = QueueDelay()
    for step in range(120):
        queue.add(0.02 if step < 20 else 0.1 + moves * (step % 10) / 2)
        queue.update(step * 0.05, keep=True)
    assert (queue.standing < 0.01) is not bool(moves)


def test_throughput():
    """bit/s over half and a fifth of a second of arrivals; unknown for less."""
    throughput = Throughput()
    assert throughput.bitrate is None
    for index in range(200):
        throughput.add(index * 0.005 if index < 150 else 0.75 + (index - 150) * 0.01, 1000)
    assert throughput.bitrate == pytest.approx(0.8e6, rel=0.05)
    assert throughput.short_bitrate == pytest.approx(0.8e6, rel=0.05)


def lossy(
    limit: LossLimit, rate: float, loss: float, *, current: float, seconds=5.0, begin=0.0, queue=0.0
) -> None:
    """Packets at a rate; every so many are lost."""
    gap, due = 1000 * 8 / rate, 0.0
    for index in range(int(seconds / gap)):
        due += loss
        lost = due >= 1
        due -= lost
        if limit.add(begin + index * gap, 1000, lost=lost):
            limit.update(current, rate * (1 - loss), queue)


@pytest.mark.parametrize(("loss", "limits"), [(0.0, False), (0.05, False), (0.1, False), (0.3, True)])
def test_loss_at_one_rate(loss, limits):
    """Loss that a path may have by nature limits nothing; more does."""
    limit = LossLimit()
    lossy(limit, 2e6, loss, current=2e6)
    assert (limit.bitrate < 2e6) is limits


def test_loss_that_grows_with_the_rate():
    """A path that loses all above 1 Mbit/s is found out where two rates were tried."""
    limit = LossLimit()
    lossy(limit, 0.9e6, 0.0, seconds=2, current=1.1e6)
    lossy(limit, 1.1e6, 0.1, seconds=3, begin=2, current=1.1e6)
    assert limit.bitrate < 1.05e6


def test_loss_with_a_queue():
    """10 % of loss beside a standing queue are congestion."""
    limit = LossLimit()
    lossy(limit, 3e6, 0.1, current=3e6, queue=0.1)
    assert limit.bitrate < 3e6


def burst(prober: Prober, path: float, *, share: float = 1.0, now: float = 0.0) -> float | None:
    """The result of a burst on a path of so many bit/s."""
    cluster = prober.wanted(now, 1e6, 20e6, 0.0)
    assert cluster is not None
    assert cluster.bitrate == 2e6
    gap, serving, free = 1240 * 8 / cluster.bitrate, 1240 * 8 / path, 0.0
    for index in range(round(cluster.seconds / gap) + 1):
        sent = now + index * gap
        free = max(free, sent + 50) + serving
        prober.add(PacketResult(sent, free if index % 10 < share * 10 else None, 1240, cluster.number))
    return prober.result(now + 0.1)


@pytest.mark.parametrize(
    ("path", "found", "again"), [(10e6, 2e6, 0.0), (1.2e6, 1.14e6, INTERVAL)], ids=["free", "full"]
)
def test_probe(path, found, again):
    """A burst finds what it asked for, and the next follows at once; or what the path carries."""
    prober = Prober()
    assert burst(prober, path) == pytest.approx(found, rel=0.05)
    if again:
        assert prober.wanted(0.2, 1e6, 20e6, 0.0) is None
    assert prober.wanted(0.2 + again, 1e6, 20e6, 0.0) is not None


def test_probe_lost():
    """A burst that is lost, or half of it, says nothing."""
    assert burst(Prober(), 10e6, share=0.5) is None
    prober = Prober()
    assert prober.wanted(0, 1e6, 20e6, 0.0) is not None
    assert prober.wanted(ANSWER / 2, 1e6, 20e6, 0.0) is None
    assert prober.wanted(ANSWER + 0.1, 1e6, 20e6, 0.0) is None
    assert prober.wanted(ANSWER + INTERVAL + 0.2, 1e6, 20e6, 0.0) is not None


def test_probe_at_the_ceiling():
    """No burst where there is nothing above."""
    assert Prober().wanted(0, 1e6, 1.05e6, 0.0) is None


@pytest.mark.parametrize(
    ("left", "after", "asked"),
    [
        (0.5e6, 0.6, 750_000),
        (0.5e6, 0.4, None),
        (0.8e6, 0.6, None),
        (0.3e6, 0.6, None),
        (0.5e6, 6.0, 1_000_000),
    ],
)
def test_probe_after_a_cut(left, after, asked):
    """Half a second after a deep cut 0.75 of the rate before it is looked for; later, or where less or more was lost, as ever."""
    prober = Prober()
    prober.fell(10, 0.9e6)
    prober.fell(10.1, 1e6)
    prober.fell(10.2, 0.6e6)
    cluster = prober.wanted(10.1 + after, left, 20e6, 0.0)
    assert (cluster and cluster.bitrate) == asked


def test_no_probe_after_an_outage():
    """Nor is that looked for while no burst may be sent at all."""
    prober = Prober()
    prober.fell(10, 1e6)
    prober.wait(10.1, 3.0)
    assert prober.wanted(11, 0.5e6, 20e6, 0.0) is None


def test_probe_of_which_nothing_is_heard():
    """Packets long after it do not count with it, and are not kept."""
    prober = Prober()
    cluster = prober.wanted(0, 1e6, 20e6, 0.0)
    prober.add(PacketResult(0.01, 0.05, 1240, cluster.number))
    for packet in range(1000):
        prober.add(PacketResult(0.02 + packet / 100, 0.06 + packet / 100, 1240, None))
    assert len(prober._between) <= 100


def test_probe_contradiction():
    """A burst that arrives much faster than it was sent was bundled, and says nothing."""
    prober = Prober()
    cluster = prober.wanted(0, 1e6, math.inf, 0.0)
    assert cluster is not None
    for index in range(20):
        prober.add(PacketResult(index * 0.005, 9 + index * 0.001, 1240, cluster.number))
    assert prober.result(0.2) is None


@pytest.mark.parametrize(("moves", "competes"), [(0.0, False), (0.02, True)], ids=["still", "moving"])
def test_a_queue_that_stays_is_others_where_it_moves(moves, competes):
    """A delay that stays to the millisecond while less is sent is a longer path, not a competitor."""
    control = RateControl(1_000_000, 50_000, 20_000_000)
    for tick in range(5):
        control.update(tick / 20, "normal", Seen(1e6, 1e6, 1e6, 0.0, 0.1, False))
    control.update(0.25, "overuse", Seen(1e6, 1e6, 1e6, 0.06, 0.16, False))
    for tick in range(6, 86):
        queue = 0.06 + moves * (tick % 20) / 20
        control.update(tick / 20, "normal", Seen(6e5, 6e5, 6e5, queue, 0.16, False))
        if control.competing:
            break
    assert control.competing == competes
