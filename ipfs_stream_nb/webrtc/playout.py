"""How long a receiver is asked to keep pictures before it shows them (the header extension playout-delay of WebRTC).

Where packets are lost, a picture is whole only when its packets have been asked for again, at times more than once. A receiver
that waits so long shows all pictures evenly; where nothing is lost it need not wait.
"""

from __future__ import annotations

import math
from typing import Final

ROUND_TRIPS: Final = 4.0
"""That a picture is kept: for a packet that is lost three times."""
MARGIN: Final = 0.06
"""Seconds beside it, by which a receiver asks and a pacer answers late."""
MOST: Final = 0.5
"""Seconds at the most: a picture that was sought comes so much later."""
STEP: Final = 0.05
"""Seconds: smaller changes are not worth one, as pictures move with each."""
CALM: Final = 15.0
"""Seconds without much loss after which nothing is kept any more."""
UNIT: Final = 0.01
"""Seconds of the extension's unit."""
LONGEST: Final = 10.0
"""Seconds that a receiver may keep pictures if it wishes; what its own limit is without the extension."""


class PlayoutDelay:
    """`seconds`, None as long as there was no reason to say anything."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._lossy_until = -math.inf

    def update(self, now: float, round_trip: float, *, lossy: bool) -> None:
        """`lossy`: packets are lost, and will be. `round_trip` is in seconds, with the queue."""
        if lossy:
            self._lossy_until = now + CALM
            wanted = min(math.ceil((MARGIN + ROUND_TRIPS * round_trip) / STEP) * STEP, MOST)
            self.seconds = max(wanted, self.seconds or 0.0)
        elif now > self._lossy_until and self.seconds is not None:
            self.seconds = 0.0


def value_of(seconds: float) -> bytes:
    """The extension's value: the least and the longest time, 12 bit each."""
    least, longest = round(min(seconds, LONGEST) / UNIT), round(LONGEST / UNIT)
    return (least << 12 | longest).to_bytes(3, "big")
