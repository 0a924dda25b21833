"""What a link is like, as data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

Steps = tuple[tuple[float, float], ...]
"""A value that changes at times: (seconds since the scenario began, value from then on); the first is at 0."""


@dataclass(frozen=True)
class BurstLoss:
    """Loss by the Gilbert-Elliott model: two states, and before each packet a chance to pass to the other.

    Bursts are `1 / leave` packets long in the mean, and a share `enter / (enter + leave)` of packets meets the bad
    state.
    """

    enter: float
    """Chance of a packet to find that the good state has ended."""
    leave: float
    """Chance of a packet to find that the bad state has ended."""
    bad: float = 1.0
    """Chance to be lost in the bad state."""
    good: float = 0.0
    """Chance to be lost in the good state."""

    def __post_init__(self) -> None:
        _check_chances(self.enter, self.leave, self.bad, self.good)


@dataclass(frozen=True)
class NetworkPath:
    """One direction of a link: a droptail queue before a bottleneck, then a way that takes time and loses packets."""

    rate: Steps | float
    """bit/s of IP packets; 0 is an outage, in which packets wait."""
    delay: Steps | float = 0.0
    """Seconds from the bottleneck to the other end; what has left the bottleneck is not touched by a change."""
    jitter: float = 0.0
    """Up to so many seconds more for each packet, evenly distributed."""
    reorder: bool = False
    """Whether a packet may overtake another, by jitter or as the delay shrinks."""
    loss: float = 0.0
    """Chance of each packet to be lost behind the bottleneck, so that a lost one has taken its time there."""
    burst_loss: BurstLoss | None = None
    queue_seconds: float | None = 0.3
    """Room of the queue at the current rate; in an outage at the rate before it. One packet may always wait."""
    queue_bytes: int | None = None
    """Room of the queue; the tighter of the two bounds holds."""

    def __post_init__(self) -> None:
        for name in ("rate", "delay"):
            value = getattr(self, name)
            steps = ((0.0, float(value)),) if isinstance(value, int | float) else _tuples(value)
            _check_steps(name, steps)
            object.__setattr__(self, name, steps)
        _check_chances(self.loss)
        if not 0 <= self.jitter < math.inf:
            raise ValueError(f"jitter is in seconds, 0 or more, not {self.jitter}")
        for bound in (self.queue_seconds, self.queue_bytes):
            if bound is not None and not bound >= 0:
                raise ValueError(f"a queue's room is 0 or more, or None, not {bound}")


@dataclass(frozen=True)
class Scenario:
    """A link over time, and what shares it."""

    name: str
    down: NetworkPath
    """From the server to the viewer."""
    up: NetworkPath
    """From the viewer to the server."""
    duration: float
    """Seconds that a benchmark runs it."""
    seed: int = 1
    flows: int = 1
    """Of ours, at once."""
    tcp_flows: int = 0
    """Bulk transfers beside them, from the server to the viewer."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Scenario:
        """What `to_json` wrote."""
        fields = json.loads(text)
        return cls(**fields | {way: _path(fields[way]) for way in ("down", "up")})


def _path(fields: Mapping[str, Any]) -> NetworkPath:
    burst = fields["burst_loss"]
    return NetworkPath(**dict(fields, burst_loss=burst and BurstLoss(**burst)))


def _tuples(steps: Any) -> Steps:
    return tuple((float(time), float(value)) for time, value in steps)


def _check_steps(name: str, steps: Steps) -> None:
    times = [time for time, _ in steps]
    if not times or times[0] != 0 or not all(a < b for a, b in pairwise(times)):
        raise ValueError(f"the times of a {name} begin at 0 and ascend, unlike {times[:10]}")
    for _, value in steps:
        if not 0 <= value < math.inf:
            raise ValueError(f"a {name} is a finite number, 0 or more, not {value}")


def _check_chances(*chances: float) -> None:
    for chance in chances:
        if not 0 <= chance <= 1:
            raise ValueError(f"a chance is from 0 to 1, not {chance}")
