"""How long a receiver is asked to keep pictures."""

from __future__ import annotations

import pytest

from ipfs_stream_nb.webrtc.playout import CALM, LONGEST, MOST, PlayoutDelay, value_of


def test_without_losses_nothing_is_said():
    """However far the receiver is."""
    delay = PlayoutDelay()
    for tick in range(1000):
        delay.update(tick / 20, 0.3, lossy=False)
    assert delay.seconds is None


def test_pictures_wait_while_packets_are_lost():
    """For some round trips, in steps, never less until the path has been calm for a while; then not at all."""
    delay = PlayoutDelay()
    for now, round_trip, lossy, seconds in [
        (0.0, 0.05, True, 0.3), (1.0, 0.02, True, 0.3), (2.0, 5.0, True, MOST), (2.0 + CALM, 0.05, False, MOST),
        (2.1 + CALM, 0.05, False, 0.0), (50.0, 0.05, True, 0.3),
    ]:  # fmt: skip
        delay.update(now, round_trip, lossy=lossy)
        assert delay.seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("seconds", "value"),
    [(0.0, "0003e8"), (0.3, "01e3e8"), (LONGEST, "3e83e8"), (99.0, "3e83e8")],
)
def test_the_extensions_value(seconds, value):
    """The least and the longest time in units of 10 ms, 12 bit each; no bounds of 0 and 0, which would mean at once."""
    assert value_of(seconds) == bytes.fromhex(value)
