"""Samples of how playback goes over a network: which figures there are, in which units, and a bounded
store of them."""

from __future__ import annotations

import difflib
import math
import numbers
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ipfs_stream_nb.display import a_kind
from ipfs_stream_nb.errors import BadRequestError

Sample = dict[str, float | str]
"""`time` in seconds, and what is known of the other figures: those that are not are left out."""

MOST: Final = 1e15
"""Of any number."""
NUMBERS: Final = {
    "target_bitrate": "bit/s that the sender aims at",
    "sent_bitrate": "bit/s that it sends",
    "received_bitrate": "bit/s that come here",
    "bandwidth_estimate": "bit/s that the network is thought to carry",
    "throughput": "bit/s, over HTTP",
    "rtt": "s, round trip",
    "jitter": "s",
    "queue_delay": "s in queues on the way",
    "packet_loss": "part of the packets, 0 to 1",
    "width": "pixels",
    "height": "pixels",
    "frame_rate": "frames a second, as sent",
    "frames_per_second": "frames a second, as shown",
    "frames_dropped": "count since the start",
    "freezes": "count since the start",
    "freeze_seconds": "s that the picture stood still, since the start",
    "buffer": "s of media that wait to be played",
    "position": "s from the start of the media",
}
LEVELS: Final = ("very_low", "low", "medium", "high", "very_high", "source")
WORDS: Final = {
    "level": f"the quality: {', '.join(LEVELS)}",
    "state": "of the controller: increase, hold or decrease",
    "reason": "why it is in this state",
}
COLUMNS: Final = (*NUMBERS, *WORDS)

MAX_SAMPLES: Final = 36_000
"""Samples kept of a connection, an hour of them at ten a second; the oldest give way."""
MAX_CONNECTIONS: Final = 50
MAX_NAME: Final = 100
"""Characters of a connection's name."""
MAX_WORD: Final = 60
"""Characters of a word such as a reason."""
_NOT_FIGURES: Final = frozenset({"type", "pc_id", "connection"})
"""What a `quality` message and a record of a chart have beside their figures, so that one can be given as it
came."""


def read_sample(sample: Mapping[str, Any], now: float) -> Sample:
    """A checked copy: `time` is `now` where it is missing, None and NaN are left out, the rest are floats and
    words.

    Raises BadRequestError for what is no mapping or empty, for keys that are no figures, and for values that
    cannot be.
    """
    if not isinstance(sample, Mapping):
        raise BadRequestError(f"a sample is a dict such as {{'rtt': 0.05}}, not {a_kind(sample)}")
    read: Sample = {"time": _time(sample.get("time", now))}
    for name, value in sample.items():
        if name == "time" or name in _NOT_FIGURES or value is None:
            continue
        if name in NUMBERS:
            number = _number(name, value)
            if number is not None:
                read[name] = number
        elif name in WORDS:
            if not (isinstance(value, float) and math.isnan(value)):  # a gap in a column of words
                read[name] = _word(name, value)
        else:
            close = difflib.get_close_matches(str(name), COLUMNS, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are time, {', '.join(COLUMNS)}"
            raise BadRequestError(f"a sample has no {str(name)[:MAX_WORD]!r}; {hint}")
    if len(read) == 1 and "time" not in sample:
        raise BadRequestError("an empty sample: expected figures, such as {'rtt': 0.05}, or a time for a gap")
    return read


def checked_name(connection: Any) -> str:
    """The name of a connection. Raises BadRequestError for what is none."""
    if not isinstance(connection, str) or not 0 < len(connection) <= MAX_NAME:
        raise BadRequestError(
            f"connection={_shown(connection)}: expected a name of 1 to {MAX_NAME} characters"
        )
    return connection


def rows_of(samples: Any) -> list[Any]:
    """The samples of a list, of a pandas DataFrame, or of a dict of columns; each is unchecked.

    Raises BadRequestError for anything else, and for columns of different lengths.
    """
    if isinstance(samples, str | bytes) or not isinstance(samples, Iterable):
        raise BadRequestError(f"add_samples takes a list of samples, not {a_kind(samples)}")
    if hasattr(samples, "to_dict") and hasattr(samples, "columns"):
        return list(samples.to_dict("records"))
    if not isinstance(samples, Mapping):
        return list(samples)
    if not all(isinstance(one, Iterable) and not isinstance(one, str | bytes) for one in samples.values()):
        raise BadRequestError(
            "add_samples takes a list of samples, or a dict of columns such as "
            "{'time': [0, 1], 'rtt': [0.1, 0.2]}, not a dict of single figures; add_sample takes that"
        )
    columns = {name: list(column) for name, column in samples.items()}
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{_shown(name)} {len(column)}" for name, column in columns.items())
        raise BadRequestError(f"columns of different lengths: {lengths[:200]}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _time(value: Any) -> float:
    if not _is_number(value) or not -MOST <= value <= MOST:
        raise BadRequestError(f"time={_shown(value)}: expected seconds, as a finite number")
    return float(value)


def _number(name: str, value: Any) -> float | None:
    if not _is_number(value):
        raise BadRequestError(
            f"{name}={_shown(value)}: expected a number ({NUMBERS[name]}), not {a_kind(value)}"
        )
    if value != value:  # noqa: PLR0124  # NaN
        return None
    highest = 1.0 if name == "packet_loss" else MOST
    if not 0 <= value <= highest:
        raise BadRequestError(
            f"{name}={_shown(value)}: expected {'0 to 1' if highest == 1 else 'a finite number from 0 on'} "
            f"({NUMBERS[name]})"
        )
    return float(value)


def _word(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadRequestError(f"{name}={_shown(value)}: expected a word ({WORDS[name]}), not {a_kind(value)}")
    if name == "level" and value not in LEVELS:
        raise BadRequestError(f"level={_shown(value)}: expected one of {', '.join(LEVELS)}")
    if len(value) > MAX_WORD:
        raise BadRequestError(f"{name}: expected at most {MAX_WORD} characters, not {len(value)}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return repr(value)[:MAX_WORD]


class Samples:
    """The last samples of several connections, in the order in which these came to be."""

    def __init__(self) -> None:
        self._kept: dict[str, deque[Sample]] = {}

    def __len__(self) -> int:
        return sum(len(kept) for kept in self._kept.values())

    @property
    def connections(self) -> list[str]:
        """Their names."""
        return list(self._kept)

    def open(self, connection: str) -> None:
        """Have a connection, with no samples yet where it is new.

        Raises BadRequestError for what is no name, and for more than MAX_CONNECTIONS.
        """
        checked_name(connection)
        if connection not in self._kept and len(self._kept) >= MAX_CONNECTIONS:
            raise BadRequestError(f"{connection!r} is one connection too many: a chart has {MAX_CONNECTIONS}")
        self._kept.setdefault(connection, deque(maxlen=MAX_SAMPLES))

    def add(self, connection: str, samples: Iterable[Sample]) -> None:
        """Add checked samples to an open connection, all of them or none.

        Raises BadRequestError where a time is not later than the one before.
        """
        new = list(samples)
        self.check(connection, new)
        self._kept[connection].extend(new)

    def check(self, connection: str, samples: Iterable[Sample]) -> None:
        """Raises BadRequestError where a time is not later than the one before."""
        last = self.last_time(connection)
        for sample in samples:
            time = float(sample["time"])
            if time <= last:
                raise BadRequestError(
                    f"time={time:g} of {connection!r} is not later than the sample before it ({last:g}); "
                    "give another run another name, or clear() the chart first"
                )
            last = time

    def last_time(self, connection: str) -> float:
        """Of the latest sample; -inf where there is none."""
        kept = self._kept.get(connection)
        return float(kept[-1]["time"]) if kept else -math.inf

    def clear(self) -> None:
        """Forget the samples of all connections; these stay."""
        for kept in self._kept.values():
            kept.clear()

    def records(self, connection: str | None = None, *, seconds: float = math.inf) -> list[Sample]:
        """Samples of one connection, or of each in turn, of the last `seconds` of each."""
        names = self._kept if connection is None else [connection]
        found = []
        for name in names:
            since = self.last_time(name) - seconds
            found += [{"connection": name, **one} for one in self._kept[name] if float(one["time"]) >= since]
        return found


def to_columns(samples: list[Sample]) -> dict[str, list[float | str | None]]:
    """Samples as a list for each figure that any of them has, None where one has not: what goes over the
    wire."""
    names = ["time", *(name for name in COLUMNS if any(name in sample for sample in samples))]
    return {name: [sample.get(name) for sample in samples] for name in names}


def from_columns(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The samples of `to_columns`, unchecked, as many as there are times."""
    lists = {str(name): values for name, values in columns.items() if isinstance(values, list)}
    count = len(lists.get("time", []))
    return [
        {name: values[at] for name, values in lists.items() if at < len(values) and values[at] is not None}
        for at in range(count)
    ]
