"""What was measured and done, as notebooks show it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, Final

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.display import facts_html, table_html

if TYPE_CHECKING:
    import pandas as pd

MAX_LOSS: Final = 0.5
"""A peer that loses more of its pings is never chosen."""


@dataclass(frozen=True, slots=True)
class PeerLatency:
    """What pings to one peer gave."""

    peer: str
    address: str
    """The multiaddr of its connection, without the peer's id."""
    times: tuple[float, ...]
    """Seconds to the peer and back, of each ping that returned."""
    sent: int
    """Pings."""
    note: str = ""
    """What came instead of the others."""

    @property
    def latency(self) -> float:
        """The median of `times`; infinite where nothing came back."""
        return statistics.median(self.times) if self.times else inf

    @property
    def loss(self) -> float:
        """The part of the pings that did not return, from 0 to 1."""
        return 1 - len(self.times) / self.sent

    @property
    def reachable(self) -> bool:
        """Whether it may be chosen: enough pings returned."""
        return self.loss <= MAX_LOSS


@dataclass(frozen=True, slots=True)
class Provided:
    """Whether a root was announced, and what the daemon said where it was not."""

    cid: CID
    announced: bool
    text: str

    def __str__(self) -> str:
        return f"{self.cid}: {self.text}"


@dataclass(frozen=True, slots=True)
class NetworkState:
    """The daemon at one moment."""

    connected: int
    """Peers."""
    peered: int
    """Peers that it keeps connected."""
    bitswap: Mapping[str, int] = field(default_factory=dict)
    """Kubo's counters since its start, such as BlocksReceived and DataSent."""


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """One setting of Kubo's config file; `old` and `new` are JSON values."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}\n  old: {json.dumps(self.old)}\n  new: {json.dumps(self.new)}"


@dataclass(frozen=True, slots=True)
class ConfigPlan:
    """Settings that would be changed, or were."""

    changes: tuple[ConfigChange, ...] = ()

    def __str__(self) -> str:
        if not self.changes:
            return "no setting of the Kubo daemon to change"
        title = "settings of the Kubo daemon; start it again for them to take effect"
        return "\n".join([title, *map(str, self.changes)])

    def _repr_html_(self) -> str:
        rows = [(one.key, json.dumps(one.old), json.dumps(one.new)) for one in self.changes]
        return table_html(("setting", "old", "new"), rows, str(self).split("\n", 1)[0])


@dataclass(frozen=True, slots=True)
class NetworkReport:
    """What `NetworkOptimizer.optimize` measured and did. Times are seconds."""

    peers: tuple[PeerLatency, ...]
    """All that were measured, best first."""
    chosen: tuple[str, ...]
    """The ids of the best of them, which are peered now."""
    added: tuple[str, ...]
    """Those of them that were not peered before."""
    dropped: tuple[str, ...]
    """Peers that an earlier run had added, and that are not among the best any more."""
    provided: tuple[Provided, ...]
    before: NetworkState
    after: NetworkState
    config: ConfigPlan | None = None
    """The settings that were changed; None where none was asked to be."""

    def _rows(self) -> list[tuple[str, str, str, str, str]]:
        rows = []
        for one in self.peers:
            time = f"{one.latency * 1000:.1f} ms" if one.times else "no answer"
            kept = ("added" if one.peer in self.added else "peered") if one.peer in self.chosen else one.note
            rows.append((one.peer, time, f"{one.loss:.0%}", kept, one.address))
        return rows

    def _changes(self) -> list[tuple[str, int, int]]:
        before, after = self.before, self.after
        return [
            ("connected peers", before.connected, after.connected),
            ("peers kept connected", before.peered, after.peered),
            *((name, before.bitswap.get(name, 0), now) for name, now in after.bitswap.items()),
        ]

    def _title(self) -> str:
        if not self.peers:
            return "no peers are connected, so there is nothing to choose from"
        return f"{len(self.peers)} peers measured, {len(self.chosen)} preferred, {len(self.added)} added"

    def __repr__(self) -> str:
        lines = [self._title(), *("  " + "  ".join(filter(None, row)) for row in self._rows())]
        lines += [f"{name}: {before} before, {after} after" for name, before, after in self._changes()]
        lines += [str(one) for one in self.provided]
        return "\n".join([*lines, *([str(self.config)] if self.config else [])])

    def _repr_html_(self) -> str:
        parts = [
            table_html(("peer", "median", "loss", "", "address"), self._rows(), self._title()),
            table_html(("", "before", "after"), self._changes(), "the daemon"),
        ]
        if self.provided:
            parts.append(facts_html("announced", [(str(one.cid), one.text) for one in self.provided]))
        return "".join([*parts, *([self.config._repr_html_()] if self.config else [])])

    def to_pandas(self) -> pd.DataFrame:
        """One row per peer, best first; `latency` in seconds."""
        import pandas as pd  # noqa: PLC0415  # an extra

        columns = ("peer", "latency", "loss", "chosen", "added", "address", "note")
        rows = [
            (
                one.peer,
                one.latency,
                one.loss,
                one.peer in self.chosen,
                one.peer in self.added,
                one.address,
                one.note,
            )
            for one in self.peers
        ]
        return pd.DataFrame(rows, columns=list(columns))
