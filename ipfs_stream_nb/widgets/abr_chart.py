"""The chart of adaptive quality: bit rates, delay, loss, picture and buffer of players, live in the notebook."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import math
import numbers
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import traitlets as t

from ipfs_stream_nb.clients.results import hinted
from ipfs_stream_nb.display import a_kind
from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.widgets.abr_picture import picture
from ipfs_stream_nb.widgets.abr_samples import (
    COLUMNS,
    Sample,
    Samples,
    checked_name,
    from_columns,
    read_sample,
    rows_of,
    to_columns,
)
from ipfs_stream_nb.widgets.modules import join_modules, themed
from ipfs_stream_nb.widgets.player import Player
from ipfs_stream_nb.widgets.strict import StrictWidget

if TYPE_CHECKING:
    from pandas import DataFrame

MIN_SECONDS: Final = 5.0
MAX_SECONDS: Final = 3600.0
"""Of the window that is shown."""
SEND_EVERY: Final = 0.1
"""Seconds between two messages with samples to the pages."""
TRANSPORT_NAMES: Final = {"http": "HTTP", "webrtc": "WebRTC", "auto": "WebRTC or HTTP"}
MAX_MESSAGE: Final = 2_000
"""Samples taken from one message of a page; it sends those of about a second."""

_STATIC: Final = Path(__file__).parent / "static"


def _uplot(name: str) -> str:
    """A file of uPlot, which the package uplot-python brings. Importing that would import IPython and more."""
    found = importlib.util.find_spec("uplot")
    if found is None or found.origin is None:
        raise ImportError("the chart needs uPlot: pip install uplot-python")
    return (Path(found.origin).parent / "static" / name).read_text("utf-8")


class AbrChart(StrictWidget):
    """How playback follows the network: bit rates and the estimate, delay, loss, level and resolution, buffer
    and freezes.

    The figures of players go from the page's player to the page's chart, ten times a second, also while the
    kernel is busy; Python has them about a second later. Other figures, such as those of a recorded run, come
    by `add_sample`.

    Can be set, and observable:
        seconds     the window that is shown (60), 5 to 3600
        paused      whether the picture is held; samples are taken all the same
        connection  the one that is shown, by its name
    And fixed: connections (their names).
    """

    _esm = _uplot("uPlot.iife.js") + "\n" + join_modules(_STATIC / "abr-chart.js")
    _css = _uplot("uPlot.min.css") + "\n" + themed(_STATIC / "abr-chart.css")

    seconds = t.Float(60.0, help="of the window that is shown").tag(sync=True)
    paused = t.Bool(False).tag(sync=True)
    connection = t.Unicode("").tag(sync=True)
    connections = t.List(t.Unicode(), read_only=True).tag(sync=True)

    _keys = t.Dict(help="where a page finds the samples of a connection's player").tag(sync=True)

    @hinted
    def __init__(
        self, *players: Player | Sequence[Player], seconds: float = 60.0, names: Sequence[str] | None = None
    ) -> None:
        """A chart of players, or of a list of them, and of what `add_sample` brings.

        `names`: of their connections, else those of the files. Raises BadRequestError for what is no player,
        for one that is closed or there twice, for names that do not fit, and TraitError for a window that is
        none.
        """
        self._samples = Samples()
        self._unsent: dict[str, list[Sample]] = {}
        self._sent_at = -math.inf
        self._sending: asyncio.TimerHandle | None = None
        listed = players[0] if len(players) == 1 and isinstance(players[0], list | tuple) else players
        keys = _named(listed, names)
        for name in keys:
            self._samples.open(name)
        self.set_trait("connections", self._samples.connections)
        super().__init__(seconds=seconds, _keys=keys)
        self.connection = next(iter(keys), "")
        self.on_msg(self._receive)

    # ---- samples

    def add_sample(self, sample: Mapping[str, Any], *, connection: str | None = None) -> None:
        """Show a sample, such as one of a recorded run or a `quality` message of the server.

        `sample` has `time` in seconds (now where it is missing) and any of: target_bitrate, sent_bitrate,
        received_bitrate, bandwidth_estimate, throughput (bit/s), rtt, jitter, queue_delay, buffer,
        freeze_seconds, position (s), packet_loss (0 to 1), width, height (pixels), frame_rate,
        frames_per_second, frames_dropped, freezes (counts since the start), level, state, reason (words).
        What is missing, None or NaN is a gap. `connection`: its name, else what the sample has as
        "connection", else "samples".

        Raises BadRequestError for other keys, values that cannot be, a sample without anything in it, and a
        time that is not later than the one before.
        """
        self.add_samples([sample], connection=connection)

    def add_samples(
        self,
        samples: Iterable[Mapping[str, Any]] | Mapping[str, Iterable[Any]] | DataFrame,
        *,
        connection: str | None = None,
    ) -> None:
        """Show many samples at once, or none of them where one is refused: a list, such as `to_records` gives,
        a DataFrame, or a dict of columns. See `add_sample`."""
        read: dict[str, list[Sample]] = {}
        for sample in rows_of(samples):
            checked = read_sample(sample, time.time())
            given = sample.get("connection", "samples") if connection is None else connection
            name = checked_name(given)
            read.setdefault(name, []).append(checked)
        if self._closed:
            raise BadRequestError("add_sample: this chart is closed")
        for name, found in read.items():
            if name in self._keys:
                raise BadRequestError(
                    f"{name!r} is the name of a player, whose samples come from the page; "
                    'give these another: connection="…"'
                )
            self._samples.check(name, found)
        for name in read:
            self._samples.open(name)
        for name, found in read.items():
            self._samples.add(name, found)
            self._unsent.setdefault(name, []).extend(found)
            if name not in self.connections:
                self.set_trait("connections", self._samples.connections)
                self.connection = self.connection or name
        self._send_soon()

    def _send_soon(self) -> None:
        """Send what is new to the pages, at most every SEND_EVERY where there is a loop that can send the
        rest later."""
        wait = self._sent_at + SEND_EVERY - time.monotonic()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # a thread of the user's
            wait = 0
        if wait <= 0:
            self._flush()
        elif self._sending is None:
            self._sending = loop.call_later(wait, self._flush)

    def _flush(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        self._sent_at = time.monotonic()
        unsent, self._unsent = self._unsent, {}
        if unsent and not self._closed:
            self.send({"samples": {name: to_columns(samples) for name, samples in unsent.items()}})

    def clear(self) -> None:
        """Forget all samples, here and in the pages."""
        self._samples.clear()
        self._unsent.clear()
        self.send({"clear": True})

    def to_records(self, connection: str | None = None) -> list[dict[str, Any]]:
        """Samples as dicts with `connection`, `time` (s; of players: since the epoch) and what is known,
        at most an hour of each connection. Raises BadRequestError for a connection that there is not."""
        if connection is not None and connection not in self.connections:
            raise BadRequestError(
                f"no connection {connection!r}; there are: {', '.join(self.connections) or 'none'}"
            )
        return [dict(record) for record in self._samples.records(connection)]

    def to_pandas(self, connection: str | None = None) -> DataFrame:
        """Samples as a DataFrame: connection, time (s), and a column for each figure that any of them has.

        Raises BadRequestError for a connection that there is not, and where pandas is not installed.
        """
        records = self.to_records(connection)
        try:
            import pandas as pd  # noqa: PLC0415  # an extra, and half a second
        except ImportError:
            raise BadRequestError(
                "to_pandas needs pandas: pip install pandas; to_records() does without"
            ) from None
        there = [name for name in COLUMNS if any(name in record for record in records)]
        return pd.DataFrame.from_records(records, columns=["connection", "time", *there])

    def close(self) -> None:
        """Take it out of every view; what came stays in `to_records`. Idempotent."""
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        super().close()

    # ---- what it looks like without a page

    def __repr__(self) -> str:
        names = ", ".join(self.connections) or "no connection yet"
        return f"AbrChart({names}{', closed' * self._closed})"

    def to_svg(self) -> str:
        """A still picture of what the window shows now, as an SVG text."""
        shown = self.connection if self.connection in self.connections else ""
        samples = self._samples.records(shown, seconds=self.seconds) if shown else []
        return picture(shown, samples, self.seconds)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The widget, and a still picture for where no widget runs: GitHub, nbval, a closed notebook."""
        bundle: tuple[dict[str, Any], dict[str, Any]] | None = super()._repr_mimebundle_(**kwargs)
        if bundle is not None:
            bundle[0]["image/svg+xml"] = self.to_svg()
        return bundle

    # ---- what comes from the browser

    def _receive(self, _widget: AbrChart, message: dict[str, Any], _buffers: list[memoryview]) -> None:
        match message:
            case {"event": "ready"}:
                self._flush()
                recent = {
                    name: to_columns(found)
                    for name in self.connections
                    if (found := self._samples.records(name, seconds=self.seconds))
                }
                self.send({"history": recent})
            case {"event": "samples", "samples": dict(samples)}:
                for name, columns in samples.items():
                    if name in self._keys and isinstance(columns, Mapping):
                        self._take(name, columns)

    def _take(self, name: str, columns: Mapping[str, Any]) -> None:
        """A player's samples. What a page says is taken as far as it can be; two pages may tell of one
        player."""
        for raw in from_columns(columns)[:MAX_MESSAGE]:
            with contextlib.suppress(BadRequestError):
                self._samples.add(name, [read_sample(raw, math.nan)])

    # ---- checks

    @t.validate("seconds")
    def _check_seconds(self, proposal: Any) -> float:
        seconds: float = proposal.value
        if (
            isinstance(seconds, bool)
            or not isinstance(seconds, numbers.Real)
            or not MIN_SECONDS <= seconds <= MAX_SECONDS
        ):
            raise t.TraitError(f"seconds={seconds!r}: expected {MIN_SECONDS:g} to {MAX_SECONDS:g}")
        return float(seconds)

    @t.validate("connection")
    def _check_connection(self, proposal: Any) -> str:
        name: str = proposal.value
        if name and name not in self.connections:
            raise t.TraitError(
                f"connection={name!r}: expected one of {', '.join(self.connections) or 'none yet'}"
            )
        return name


def _named(players: Sequence[Any], names: Sequence[str] | None) -> dict[str, str]:
    """The keys of players' samples by the names of their connections, in order."""
    keys: list[str] = []
    for player in players:
        if not isinstance(player, Player):
            raise BadRequestError(f"a chart takes players, as from client.play(…), not {a_kind(player)}")
        if player._closed:  # noqa: SLF001  # ours
            raise BadRequestError(f"{player!r}: its figures cannot be shown, as it is closed")
        if player._samples_key in keys:  # noqa: SLF001  # ours
            raise BadRequestError(f"{player!r} is there twice")
        keys.append(player._samples_key)  # noqa: SLF001  # ours
    found = _names_of(players) if names is None else _checked_names(names, len(keys))
    return dict(zip(found, keys, strict=True))


def _checked_names(names: Sequence[str], count: int) -> list[str]:
    texts = [] if isinstance(names, str) else [checked_name(name) for name in names]
    if not len(texts) == len(set(texts)) == count:
        raise BadRequestError(
            f"names={repr(names)[:200]}: expected a list of {count} names, one for each player, all different"
        )
    return texts


def _names_of(players: Sequence[Player]) -> list[str]:
    """The files' names, with the transport where that tells players of one name apart, and else a number:
    `clip.mp4 · HTTP`, `clip.mp4 (2)`."""
    files = [player.path.rsplit("/", 1)[-1] for player in players]
    shorts = [name if len(name) <= 40 else f"{name[:12]}…{name[-12:]}" for name in files]
    ways = Counter(
        name for name, _ in {(name, one.transport) for name, one in zip(shorts, players, strict=True)}
    )
    names: list[str] = []
    for short, player in zip(shorts, players, strict=True):
        name = f"{short} · {TRANSPORT_NAMES[player.transport]}" if ways[short] > 1 else short
        numbered = (name, *(f"{name} ({number})" for number in range(2, len(names) + 3)))
        names.append(next(one for one in numbered if one not in names))
    return names
