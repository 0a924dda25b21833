"""One sample of a connection, as the guide's AdaptiveBitrateController takes it."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, Final

from ipfs_stream_nb.errors import BadRequestError

KEYS: Final = (
    "rtt",
    "packet_loss",
    "jitter",
    "queue_delay",
    "bandwidth_estimate",
    "send_bitrate",
    "frames_dropped",
    "lag",
)
MOST: Final = 1e12
"""Of any statistic; more is none."""


def read_sample(stats: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The statistics that can be, None for others, and how many were there and could not be. Keys that are not known are other
    people's. Raises BadRequestError for what is no mapping."""
    if not isinstance(stats, Mapping):
        raise BadRequestError(f"a sample is a mapping with {', '.join(KEYS)}, not {type(stats).__name__}")
    sample = {key: _number(stats.get(key), key) for key in KEYS}
    return sample, sum(stats.get(key) is not None and sample[key] is None for key in KEYS)


def _number(value: object, key: str) -> float | None:
    # the usual types first: an abstract one takes long to be asked, and each viewer's connection is sampled ten times a second
    if not isinstance(value, (float, int, Real)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if 0 <= number <= (1.0 if key == "packet_loss" else MOST) else None
