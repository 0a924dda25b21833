"""What became of the packets of a link, and statistics of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise

import numpy as np

from link.model import LOSSES, Outcome
from link.paths import NetworkPath, Scenario
from link.rows import ROW

DTYPE = np.dtype(
    [
        ("up", "u1"),
        ("outcome", "u1"),
        ("flow", "<u4"),
        ("size", "<u4"),
        ("sent_at", "<f8"),
        ("served_at", "<f8"),
        ("due_at", "<f8"),
        ("handed_at", "<f8"),
    ]
)
"""`ROW`, in numpy's words: `model.Row`, and whether the packet went up."""


class Records:
    """Both directions; all times are seconds since the scenario began."""

    def __init__(self, scenario: Scenario, data: bytes, begin: float) -> None:
        whole = len(data) - len(data) % ROW.size
        rows = np.frombuffer(data[:whole], DTYPE).copy()
        for name in ("sent_at", "served_at", "due_at", "handed_at"):
            rows[name] -= begin
        self.down = Direction(scenario.down, rows[rows["up"] == 0])
        self.up = Direction(scenario.up, rows[rows["up"] == 1])


class Direction:
    """The packets of one direction: `rows` is a structured array of `DTYPE`, settled first comes first.

    Every window is [start, end) in seconds; without an end it goes to the last thing that happened.
    """

    def __init__(self, path: NetworkPath, rows: np.ndarray) -> None:
        self.path = path
        self.rows = rows

    @cached_property
    def last(self) -> float:
        """When the last thing happened."""
        times = [self.rows[name] for name in ("sent_at", "served_at", "handed_at")]
        return float(np.nanmax(times)) if len(self.rows) else 0.0

    def count(self, *outcomes: Outcome, start: float = -math.inf, end: float | None = None) -> int:
        """Packets sent in the window that had one of these outcomes; of any outcome when none is said."""
        rows = self._window("sent_at", start, end)
        return int(np.isin(rows["outcome"], outcomes).sum()) if outcomes else len(rows)

    def capacity(self, start: float = 0.0, end: float | None = None) -> float:
        """Bits that the bottleneck could pass in the window."""
        end = self.last if end is None else end
        times, values = np.array(self.path.rate).T
        edges = np.unique(np.concatenate([[start, end], times[(times > start) & (times < end)]]))
        rates = values[np.maximum(np.searchsorted(times, edges[:-1], "right") - 1, 0)]
        return float(np.sum(rates * np.diff(edges)))

    def utilisation(self, start: float = 0.0, end: float | None = None) -> float:
        """Share of the capacity that was used; what is lost behind the bottleneck has used it too."""
        capacity = self.capacity(start, end)
        used = 8.0 * float(self._window("served_at", start, end)["size"].sum())
        return used / capacity if capacity else 0.0

    def bitrate(self, start: float = 0.0, end: float | None = None, flow: int | None = None) -> float:
        """bit/s delivered, of all or of one flow."""
        end = self.last if end is None else end
        rows = self._window("handed_at", start, end)
        if flow is not None:
            rows = rows[rows["flow"] == flow]
        return 8.0 * float(rows["size"].sum()) / (end - start) if end > start else 0.0

    def flows(self, start: float = 0.0, end: float | None = None) -> dict[int, float]:
        """bit/s delivered of each flow: see `rows.flow_of`."""
        found = np.unique(self._window("handed_at", start, end)["flow"])
        return {int(flow): self.bitrate(start, end, int(flow)) for flow in found}

    def queue_delay(self, percent: float, start: float = 0.0, end: float | None = None) -> float:
        """A percentile of the seconds from coming to the queue to leaving the bottleneck, NaN without packets."""
        rows = self._window("served_at", start, end)
        return _percentile(rows["served_at"] - rows["sent_at"], percent)

    def delay(self, percent: float, start: float = 0.0, end: float | None = None) -> float:
        """A percentile of the seconds from end to end of what was delivered, NaN without packets."""
        rows = self._window("handed_at", start, end)
        return _percentile(rows["handed_at"] - rows["sent_at"], percent)

    def loss_ratio(self, start: float = 0.0, end: float | None = None) -> float:
        """Lost packets to those sent in the window."""
        sent = self.count(start=start, end=end)
        return self.count(*LOSSES, start=start, end=end) / sent if sent else 0.0

    def losses(self, start: float = 0.0, end: float | None = None) -> dict[str, int]:
        """Packets lost, by cause: "queue_full", "random_loss", "burst_loss"."""
        return {loss.name.lower(): self.count(loss, start=start, end=end) for loss in LOSSES}

    def lateness(self, percent: float) -> float:
        """A percentile of the seconds that the emulator itself was late to hand packets over."""
        return _percentile(self.rows["handed_at"] - self.rows["due_at"], percent)

    def series(self, step: float, start: float = 0.0, end: float | None = None) -> Mapping[str, np.ndarray]:
        """What happened over time, one value for every `step` seconds.

        `time` (s, a step's beginning), `rate` (bit/s that the link had, in the mean), `sent` and `delivered` (bit/s),
        `lost` (packets), `queue_bytes` and `queue_seconds` (at the step's beginning; at its rate, NaN in an outage).
        """
        end = self.last if end is None else end
        edges = start + step * np.arange(max(math.ceil((end - start) / step), 0) + 1)
        rows = self.rows
        kept = rows[rows["outcome"] != Outcome.QUEUE_FULL]
        come, gone = (_running(kept[name], kept["size"], edges[:-1]) for name in ("sent_at", "served_at"))
        rate = np.array([self.capacity(a, b) for a, b in pairwise(edges)]) / step
        queue = come - gone
        return {
            "time": edges[:-1],
            "rate": rate,
            "sent": 8 * np.histogram(rows["sent_at"], edges, weights=rows["size"])[0] / step,
            "delivered": 8 * np.histogram(rows["handed_at"], edges, weights=rows["size"])[0] / step,
            "lost": np.histogram(rows["sent_at"][np.isin(rows["outcome"], LOSSES)], edges)[0],
            "queue_bytes": queue,
            "queue_seconds": np.divide(8 * queue, rate, out=np.full(len(rate), np.nan), where=rate > 0),
        }

    def _window(self, name: str, start: float, end: float | None) -> np.ndarray:
        times = self.rows[name]
        return self.rows[(times >= start) & (times < (math.inf if end is None else end))]


def _running(times: np.ndarray, sizes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Bytes of all that happened up to each time of `at`."""
    order = np.argsort(times)  # NaN, which has not happened, comes last
    sums = np.concatenate([[0.0], np.cumsum(sizes[order], dtype=float)])
    return sums[np.searchsorted(times[order], at, "right")]


def _percentile(values: np.ndarray, percent: float) -> float:
    values = values[~np.isnan(values)]
    return float(np.percentile(values, percent)) if len(values) else math.nan
