"""The queue of a link: what goes in comes out, late, lost or never sooner than the rate allows."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from link.model import LOSSES, Model, Outcome
from link.paths import BurstLoss, NetworkPath, Scenario
from link.records import Direction, Records
from link.rows import ROW, TCP, UDP, flow_id, flow_of, pack
from link.scenarios import SCENARIOS, mobile_trace

END = 1e6
"""When all outages of the strategies are long over."""


@st.composite
def steps(draw, values):
    """A schedule that ends with a value above 0."""
    times = sorted(draw(st.sets(st.floats(0.001, 5), max_size=4)))
    return tuple(zip([0.0, *times], [*(draw(values) for _ in times), draw(values) or 1e5], strict=True))


@st.composite
def paths(draw):
    chance = st.floats(0, 1)
    return NetworkPath(
        rate=draw(steps(st.sampled_from([0.0, 1e4, 1e5, 3e6]))),
        delay=draw(steps(st.floats(0, 0.3))),
        jitter=draw(st.sampled_from([0.0, 0.05])),
        reorder=draw(st.booleans()),
        loss=draw(st.sampled_from([0.0, 0.3])),
        burst_loss=draw(st.none() | st.builds(BurstLoss, chance, chance, chance, chance)),
        queue_seconds=draw(st.none() | st.floats(0, 1)),
        queue_bytes=draw(st.none() | st.integers(0, 20_000)),
    )


packets = st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 1500)), max_size=60)
"""Seconds after the one before, bytes."""


def run(path, packets, seed=1, begin=0.0):
    """The model after all packets were sent, and (time, number) of what came out at the times it asked for."""
    model = Model(path, seed)
    model.begin(begin)
    out = []

    def receive_until(now):
        while (time := model.next_time()) <= now:
            out.extend((time, number) for number in model.receive(time))

    now = 0.0
    for number, (gap, size) in enumerate(packets):
        now += gap
        receive_until(now)
        model.send(now, size, number)
    return model, out, receive_until


@given(paths(), packets)
def test_no_packet_is_made_or_forgotten(path, packets):
    """What was sent is delivered, lost, waiting or travelling: at the last packet, and all settled in the end."""
    model, out, receive_until = run(path, packets)
    rows = model.rows + model.unsettled()
    assert sorted(row.size for row in rows) == sorted(size for _, size in packets)
    assert sum(row.size for row in rows if row.outcome == Outcome.WAITING) == model.waiting_bytes
    assert sum(row.outcome == Outcome.DELIVERED for row in rows) == len(out)
    receive_until(END)
    assert not model.unsettled()
    assert len(model.rows) == len(packets)
    assert model.waiting_bytes == 0
    assert model.next_time() == math.inf
    assert len({number for _, number in out}) == len(out)


@given(paths(), packets)
def test_packets_keep_their_order(path, packets):
    """First in, first out, unless the path may reorder; and each comes out at the very time it is due."""
    model, out, receive_until = run(path, packets)
    receive_until(END)
    assert out == sorted(out, key=lambda one: one[0])
    if not path.reorder:
        assert [number for _, number in out] == sorted(number for _, number in out)
    served = [row.served_at for row in model.rows if row.outcome != Outcome.QUEUE_FULL]
    assert len(served) == len(set(served))
    for row in model.rows:
        if row.outcome == Outcome.DELIVERED:
            assert row.sent_at < row.served_at <= row.due_at == row.handed_at


@given(paths(), packets)
def test_the_rate_is_never_exceeded(path, packets):
    """Between the departures of any two packets the bottleneck had time for all that left it after the first."""
    model, _, receive_until = run(path, packets)
    receive_until(END)
    link = Direction(path, np.zeros(0))
    rows = sorted((row for row in model.rows if not math.isnan(row.served_at)), key=lambda row: row.served_at)
    for first in range(len(rows)):
        bits = 0
        for row in rows[first + 1 : first + 10]:
            bits += 8 * row.size
            assert bits <= link.capacity(rows[first].served_at, row.served_at) * (1 + 1e-6) + 1e-3


@given(paths(), packets, st.integers(0, 2**32))
def test_a_seed_makes_a_run(path, packets, seed):
    """The same seed and packets end the same, however often the model is asked meanwhile."""
    one, two = (run(path, packets, seed) for _ in range(2))
    assert str(one[0].rows) == str(two[0].rows)
    model = Model(path, seed)
    model.begin(0.0)
    now = 0.0
    for number, (gap, size) in enumerate(packets):
        model.send(now := now + gap, size, number)
    model.receive(END)
    one[2](END)
    settled = [sorted((row.sent_at, row.size, row.outcome) for row in one.rows) for one in (one[0], model)]
    assert settled[0] == settled[1]


@given(packets, st.integers(0, 5000))
def test_the_queue_stays_within_its_bounds(packets, room):
    """No more waits than there is room for, save for one packet."""
    path = NetworkPath(1e5, queue_seconds=None, queue_bytes=room)
    model = Model(path, 1)
    for _, size in packets:
        model.send(0.0, size, None)
        assert model.waiting_bytes <= max(room, packets[0][1])


def test_times_are_exact():
    """Three packets of 1000 bytes at 8 kbit/s and 0.5 s of delay; the rate doubles in the midst of the second."""
    path = NetworkPath(((0, 8000), (1.5, 16000)), 0.5, queue_seconds=None)
    model, out, receive_until = run(path, [(0.0, 1000)] * 3)
    receive_until(END)
    assert [time for time, _ in out] == [1.5, 2.25, 2.75]
    records = Records(Scenario("x", path, path, 3), pack(model.rows, up=False), 0.0)
    assert records.down.capacity(0, 2.5) == 8000 * 1.5 + 16000
    assert records.down.utilisation(0, 2.25) == pytest.approx(16000 / 24000)
    assert records.down.utilisation(0, 2.26) == pytest.approx(24000 / 24160)
    assert records.down.queue_delay(50) == 1.75
    assert records.down.bitrate(0, 2.5) == 16000 / 2.5
    series = records.down.series(0.5, 0, 3)
    assert list(series["queue_bytes"]) == [3000, 3000, 2000, 2000, 1000, 0]
    assert list(series["rate"]) == [8000, 8000, 8000, 16000, 16000, 16000]
    assert list(series["delivered"]) == [0, 0, 0, 16000, 16000, 16000]
    assert not records.up.rows.size


@pytest.mark.parametrize("reorder", [False, True])
def test_jitter_reorders_where_it_may(reorder):
    """Packets 1 ms apart, up to 50 ms late: in order, or out of it."""
    path = NetworkPath(1e9, jitter=0.05, reorder=reorder)
    _, out, receive_until = run(path, [(0.001, 100)] * 100)
    receive_until(END)
    numbers = [number for _, number in out]
    assert sorted(numbers) == list(range(100))
    assert (numbers == sorted(numbers)) is not reorder


def test_an_outage_keeps_what_waits():
    """While the rate is 0 nothing passes, the queue has the room it had before, and then all goes on."""
    path = NetworkPath(((0, 8000), (1, 0), (4, 8000)), queue_seconds=2)
    model, out, receive_until = run(path, [(0.0, 500), (1.5, 500), (0.5, 500), (0.5, 500), (0.5, 600)])
    receive_until(END)
    assert [time for time, _ in out] == [0.5, 4.5, 5.0, 5.5]
    assert Counter(row.outcome for row in model.rows)[Outcome.QUEUE_FULL] == 1


def test_a_scenario_waits_for_its_beginning():
    """Until `begin` the first rate holds; then the schedule counts from there."""
    path = NetworkPath(((0, 8000), (1, 80_000)), queue_seconds=None)
    model = Model(path, 1)
    model.send(10.0, 1000, None)
    assert model.next_time() == 11.0
    model.receive(11.0)
    model.begin(11.0)
    model.send(11.5, 1000, None)
    assert model.next_time() == 12.0
    model.receive(12.0)
    assert model.next_time() == pytest.approx(12.05)


@pytest.mark.parametrize(
    ("path", "expected", "burst"),
    [
        (NetworkPath(1e9, loss=0.05), 0.05, 1.05),
        (NetworkPath(1e9, burst_loss=BurstLoss(0.01, 0.25)), 0.01 / 0.26, 4.0),
        (SCENARIOS["burst_loss"].down, 0.05, 4.0),
    ],
    ids=["random", "burst", "scenario"],
)
def test_losses_are_as_many_and_as_long_as_said(path, expected, burst):
    """Over 20,000 packets; by the formula of the Gilbert model for bursts."""
    model, _, receive_until = run(replace(path, queue_seconds=None), [(0.01, 100)] * 20_000)
    receive_until(END)
    lost = [row.outcome in LOSSES for row in sorted(model.rows, key=lambda row: row.sent_at)]
    bursts = sum(b and not a for a, b in pairwise([False, *lost]))
    assert sum(lost) / len(lost) == pytest.approx(expected, rel=0.15)
    assert sum(lost) / bursts == pytest.approx(burst, rel=0.15)


@pytest.mark.parametrize(
    "bad",
    [
        {"rate": -1.0},
        {"rate": math.nan},
        {"rate": ((1, 5.0),)},
        {"rate": ((0, 5.0), (0, 6.0))},
        {"rate": ()},
        {"rate": 1.0, "delay": -0.1},
        {"rate": 1.0, "loss": 1.5},
        {"rate": 1.0, "jitter": -1.0},
        {"rate": 1.0, "queue_bytes": -1},
    ],
    ids=lambda bad: str(bad).replace(" ", ""),
)
def test_nonsense_is_refused(bad):
    """A path that cannot be is found where it is written down."""
    with pytest.raises(ValueError, match=r"0 or more|begin at 0|from 0 to 1"):
        NetworkPath(**bad)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_survive_json(name):
    """The other process gets what this one has."""
    assert Scenario.from_json(SCENARIOS[name].to_json()) == SCENARIOS[name]


def test_the_mobile_trace_is_as_its_model_says():
    """The same by its seed; within its bounds; wandering at the published pace, with outages of about a second."""
    trace = np.array(mobile_trace(1000, seed=3))
    assert np.array_equal(trace, mobile_trace(1000, seed=3))
    seconds = trace[:, 1].reshape(-1, 50).mean(axis=1)
    assert 3e6 < seconds.mean() < 9e6
    assert seconds.max() < 14e6
    # of means over a second each: 2/3 of the variance of the motion in a second; away from the bounds
    free = (seconds[:-1] > 3e6) & (seconds[:-1] < 9e6)
    assert np.diff(seconds)[free].std() / 12_000 == pytest.approx(200 * math.sqrt(2 / 3), rel=0.1)
    counts = trace[:, 1] * 0.02 / 12_000
    assert (
        0.9 < np.var(np.diff(counts)) / 2 / counts.mean() < 1.4
    )  # 1 for Poisson's numbers; the rest is the motion
    outages = [len(run) for run in "".join("0" if x < 1 else "1" for x in seconds).split("1") if run]
    assert 1 <= np.mean(outages) < 3


def test_flows_are_told_apart():
    """By the protocol and the viewer's port, whichever way a packet goes."""
    header = bytes([0x45]) + bytes(8) + bytes([UDP]) + bytes(10)
    down = header + (4000).to_bytes(2, "big") + (5000).to_bytes(2, "big")
    assert flow_of(down, up=False) == flow_id(UDP, 5000)
    assert flow_of(down, up=True) == flow_id(UDP, 4000) != flow_id(TCP, 4000)
    assert flow_of(b"\x60" + bytes(40), up=True) == flow_of(b"", up=True) == 0


def test_a_record_that_is_still_being_written_is_left_out():
    """What was read ends in the midst of a row."""
    path = NetworkPath(8000)
    model, _, receive_until = run(path, [(0.0, 1000)] * 2)
    receive_until(END)
    data = pack(model.rows, up=True)[:-1]
    assert len(data) == 2 * ROW.size - 1
    assert Records(Scenario("x", path, path, 1), data, 0.0).up.count() == 1
