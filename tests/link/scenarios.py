"""Named scenarios: what benchmarks run. The viewer's way back is wide, and as far and as lossy as the way there."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from link.paths import BurstLoss, NetworkPath, Scenario, Steps

MEGABIT = 1_000_000.0
UP_RATE = 10 * MEGABIT
RTT = 0.05
"""Seconds, as of most scenarios."""
QUEUE = 0.3
"""Seconds that the queue holds at the current rate."""


def _scenario(
    name: str,
    rate: Steps | float,
    seconds: float,
    *,
    rtt: Steps | float = RTT,
    loss: float = 0.0,
    burst_loss: BurstLoss | None = None,
    jitter: float = 0.0,
    reorder: bool = False,
    flows: int = 1,
    tcp_flows: int = 0,
    seed: int = 1,
) -> Scenario:
    delay = rtt / 2 if isinstance(rtt, int | float) else tuple((time, value / 2) for time, value in rtt)
    down = NetworkPath(rate, delay, jitter, reorder, loss, burst_loss, QUEUE)
    # a radio that is silent for one is silent for both
    silence = rate if not isinstance(rate, int | float) and any(value == 0 for _, value in rate) else ()
    back = tuple((time, UP_RATE if value else 0.0) for time, value in silence) or UP_RATE
    return Scenario(name, down, replace(down, rate=back), seconds, seed, flows, tcp_flows)


PACKET_BITS = 8 * 1500
MAX_PACKETS = 1000
"""Packets/s, with the two below as in Winstein, Sivaraman, Balakrishnan, "Stochastic Forecasts Achieve High Throughput
and Low Delay over Cellular Networks", NSDI 2013, section 3, which the authors found to fit commercial LTE and 3G."""
WANDER = 200
"""Packets/s per root of a second: the rate's Brownian motion."""
ESCAPE = 1.0
"""1/s: how often an outage ends."""
TICK = 0.02
"""Seconds."""


def mobile_trace(seconds: float, seed: int, scale: float = 1.0) -> Steps:
    """The rate of a cellular link over time, by the model of Sprout (see `MAX_PACKETS`), in bit/s times `scale`.

    The mean rate wanders between 0 and 12 Mbit/s by Brownian motion, stays a while where it reaches 0, and in each
    20 ms a Poisson number of packets gets through.
    """
    chance = np.random.RandomState(seed)  # the one whose numbers stay the same in later versions
    steps = []
    packets = MAX_PACKETS / 2
    for tick in range(math.ceil(seconds / TICK)):
        if packets > 0:
            packets += WANDER * math.sqrt(TICK) * chance.normal()
            packets = min(max(packets, 0.0), 2 * MAX_PACKETS - packets)  # reflected above, held below
        elif chance.random_sample() < 1 - math.exp(-ESCAPE * TICK):
            packets = WANDER * math.sqrt(TICK) * abs(chance.normal())
        steps.append((round(tick * TICK, 6), chance.poisson(packets * TICK) * PACKET_BITS / TICK * scale))
    return tuple(steps)


SCENARIOS = {
    one.name: one
    for one in (
        _scenario("step_down", ((0, 3 * MEGABIT), (10, 0.6 * MEGABIT)), 30),
        _scenario("step_up", ((0, 0.6 * MEGABIT), (10, 2 * MEGABIT)), 30),
        _scenario("steps", ((0, 3 * MEGABIT), (20, 0.6 * MEGABIT), (40, 2 * MEGABIT)), 60),
        _scenario("steady", 2 * MEGABIT, 300),
        _scenario("random_loss", 2 * MEGABIT, 30, loss=0.05),
        # as much in all, in bursts of four
        _scenario("burst_loss", 2 * MEGABIT, 30, burst_loss=BurstLoss(0.05 / 0.95 / 4, 1 / 4)),
        _scenario("long_rtt", 2 * MEGABIT, 60, rtt=0.2),
        _scenario("jitter", 2 * MEGABIT, 30, jitter=0.03),
        _scenario("reordering", 2 * MEGABIT, 30, jitter=0.01, reorder=True),
        _scenario("beside_tcp", 3 * MEGABIT, 60, tcp_flows=1),
        _scenario("two_flows", 3 * MEGABIT, 60, flows=2),
        _scenario("outage", ((0, 2 * MEGABIT), (10, 0), (13, 2 * MEGABIT)), 30),
        _scenario(
            "path_change",
            ((0, 2 * MEGABIT), (15, MEGABIT), (30, 3 * MEGABIT)),
            45,
            rtt=((0, 0.05), (15, 0.15), (30, 0.03)),
        ),
        # at a quarter, to be about video's rates: from 0.2 to 2.8 Mbit/s, taken over a second, 1.6 in the mean
        _scenario("mobile", mobile_trace(60, seed=51, scale=0.25), 60),
    )
}
"""By name."""
