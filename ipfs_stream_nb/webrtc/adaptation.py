"""Which quality a viewer's network carries: levels, and the bit and frame rate within them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any, Final

from ipfs_stream_nb.media.encoded import EncodedTrack, Rendition
from ipfs_stream_nb.webrtc.connection_sample import read_sample
from ipfs_stream_nb.webrtc.quality import AUTO, LEVELS, SOURCE, checked_quality, score, top_bitrate

FIRST_LEVEL: Final = 2
WINDOW: Final = 30
"""Samples that are kept."""
PERIOD: Final = 5.0
"""Seconds between two changes where there is no estimate of the bandwidth, and how old samples may be then."""
GOOD, POOR = 80, 40
"""Scores above and below which a level is changed there."""
SHORT: Final = 0.9
"""Of the source's bit rate: what must be carried for it to go on as it is,"""
FAR_SHORT: Final = 0.6
"""and that below which it is left at once;"""
QUEUED: Final = 0.15
"""between the two after SHORT_SECONDS if packets stand so many seconds in queues,"""
SHORT_SECONDS: Final = 0.3
PATIENT_SECONDS: Final = 2.0
"""else after so long: an estimate falls below what is sent for a moment on wide networks, too."""
AMPLE: Final = 1.2
"""Of the source's bit rate: what must be carried for it to begin again,"""
AMPLE_SECONDS: Final = 3.0
"""for so long, which doubles each time that it was too early"""
MAX_AMPLE_SECONDS: Final = 60.0
"""up to this."""
UP_SECONDS: Final = 2.0
"""How long more must be carried than a level takes, for a better one,"""
ROOM: Final = 0.8
"""and any other level is chosen by so much of what is carried."""
DOWN_SECONDS: Final = 2.0
"""How long a level goes on with half the frames, for less than it needs."""
LEAST: Final = 0.8
"""Of the level below: the bit rate with which a level still looks better than that."""
FAR_LESS: Final = 0.75
"""Of that: what is so little that the level below is taken at once."""
HALVED: Final = (1.0, 240.0)
"""Frames a second of a source between which every second one may be left out."""
LEAST_BITRATE: Final = 30_000
LAGGING: Final = 0.2
"""Share of the time by which an encoder falls behind, from which on it is asked for less,"""
LAG_WINDOW: Final = 15
"""over so many samples;"""
RELIEF_SECONDS: Final = 30.0
"""then no level more for so long."""
REFUSED_SECONDS: Final = 5.0
"""How long no other level is asked for, after one could not be had."""


class AdaptiveBitrateController:
    """Follows samples of a connection with a track's encoder (guide, "Adaptive Bitrate Streaming").

    Within a level the bit rate follows `bandwidth_estimate` at once. When that is too little, pictures are left out first, then
    the level below is taken; at once where far too little is carried. Up it goes after two seconds. Without an estimate a level is taken
    by round trip and losses each 5 s. What is missing counts for nothing, and never leads up.
    """

    def __init__(
        self,
        track: Any,
        *,
        at_source: bool = False,
        on_change: Callable[[str, str], None] = lambda _level, _reason: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`track`: has `set_encoding_parameters(*, height, bitrate, frame_rate)`, each of which may be None (as in the source), and `facts`,
        the source's EncodedTrack, where it knows them: without, no source bounds the levels, and frames are not halved. `at_source`: the content goes out as it is at first. `on_change` is called with each new level's name, or
        "source", and the reason."""
        self.track = track
        self.quality_levels: list[dict[str, int]] = [
            {"height": one.height or 0, "bitrate": one.bitrate or 0} for one in reversed(LEVELS.values())
        ]
        """From the best to the least: height in lines, bitrate in bit/s."""
        self.sample_window: list[dict[str, Any]] = []
        self.last_adaptation = clock()
        self.at_source = at_source
        """Whether the content goes out as it is."""
        self.mode = AUTO
        """`auto`, or the level that is held."""
        self.target_bitrate: int | None = None
        """bit/s of the video that are asked of the encoder; None: the content as it is."""
        self.frame_rate: float | None = None
        """Frames a second that are asked for; None: all."""
        self.values_ignored = 0
        """Statistics that could not be: negative, NaN, no numbers."""
        self._on_change = on_change
        self._clock = clock
        self._estimated = False
        self._measured = 0.0
        self._since: dict[str, float] = {}
        """Since when what could lead to a change has been so."""
        self._patience = AMPLE_SECONDS
        self._anew = False
        self._lag = 0.0
        self._relieved_until = -math.inf
        self._blocked_until = -math.inf
        self._returned = -math.inf
        """When the source was last taken again."""
        self.current_level_index = self._top if at_source else max(FIRST_LEVEL, self._top)

    # -- what is known

    @property
    def level(self) -> str:
        """The level's name, or "source"."""
        return SOURCE if self.at_source else _NAMES[self.current_level_index]

    @property
    def height(self) -> int | None:
        """Lines that are asked for; None: the source's."""
        height = self.quality_levels[self.current_level_index]["height"]
        facts = self._facts
        return None if self.at_source or (facts is not None and 0 < facts.height <= height) else height

    @property
    def lines(self) -> int | None:
        """Lines that go out; None where the source's are not known."""
        facts = self._facts
        return self.height or (facts.height if facts is not None else None) or None

    @property
    def frames_per_second(self) -> float | None:
        """Frames a second that go out; None where the source's are not known."""
        facts = self._facts
        return self.frame_rate or (facts.frame_rate if facts is not None else None) or None

    @property
    def source_bitrate(self) -> float:
        """bit/s of the content as it goes out unchanged: measured, or what is known of it."""
        return self._measured or (0.0 if self._facts is None else top_bitrate(self._facts))

    @property
    def wanted_bitrate(self) -> float:
        """bit/s that would be of use at the most."""
        if self.mode != AUTO and not self.at_source:
            return self._most(self.current_level_index)
        return max(AMPLE * self.source_bitrate, self._most(self._top))

    # -- what is told

    def measured(self, bitrate: float) -> None:
        """What the content takes as it is, in bit/s over about a second."""
        self._measured = bitrate if not self._measured else self._measured + (bitrate - self._measured) / 10

    def set_quality(self, quality: str) -> None:
        """Hold a level, or `auto`. Raises BadRequestError."""
        self.mode = checked_quality(quality)
        self._since.clear()
        if self.mode != AUTO:
            index = _NAMES.index(self.mode)
            facts = self._facts
            fits = facts is not None and facts.height <= self.quality_levels[index]["height"]
            self._take(max(index, self._top), at_source=fits)

    def refused(self, rendition: Rendition | None) -> None:
        """The encoder has no room for what was asked of it, and goes on with this; None: the content as it is."""
        self.mode = AUTO
        self.at_source = rendition is None
        if rendition is not None:
            heights = [one["height"] for one in self.quality_levels]
            self.current_level_index = (
                self._top if rendition.height is None else heights.index(rendition.height)
            )
        self._blocked_until = self._clock() + REFUSED_SECONDS

    def forget(self) -> None:
        """The connection was away: the next sample alone says which level fits."""
        self._anew = True

    def add_sample(self, stats: Mapping[str, Any]) -> None:
        """One sample of the connection: `rtt`, `jitter` and `queue_delay` in seconds, `packet_loss` 0 to 1, `bandwidth_estimate` in bit/s for the
        video, `send_bitrate`, what of that may be sent while a queue is emptied, `frames_dropped`, how many were left out since the sample before, `reason`, what it was limited by, and `lag`, the share of the time by which the encoder fell behind. Each may be missing. Raises BadRequestError for what is no mapping."""
        now = self._clock()
        sample, wrong = read_sample(stats)
        self.values_ignored += wrong
        self.sample_window.append({"timestamp": now, **sample})
        del self.sample_window[:-WINDOW]
        if sample["lag"] is not None:
            self._relieve(sample["lag"], now)
        estimate = sample["bandwidth_estimate"]
        if estimate is not None:
            self._estimated = True
            self._follow(max(estimate, LEAST_BITRATE), now, str(stats.get("reason") or "bandwidth"))
        elif now - self.last_adaptation > PERIOD:
            self.last_adaptation = now
            self._adapt_quality(now)

    # -- with an estimate

    def _follow(self, carried: float, now: float, reason: str) -> None:
        if now < self._blocked_until:
            if not self.at_source:
                self._apply(carried)
        elif self.mode != AUTO:
            self._hold(carried, now, reason)
        elif self.at_source:
            self._check_source(carried, now, reason)
        elif self._anew:
            self._change(self._fitting(ROOM * carried), reason, carried)
        elif carried < self._least(self.current_level_index):
            self._fall_short(carried, now, reason)
        else:
            self._since.pop("short", None)
            self.frame_rate = None
            if not self._rise(carried, now, reason):
                self._apply(carried)

    def _hold(self, carried: float, now: float, reason: str) -> None:
        """The level is not to be changed; with all the source's lines it is the source itself while that is carried."""
        source = self.source_bitrate
        if self.at_source:
            if carried < SHORT * source and self._lasts("short", now, SHORT_SECONDS):
                self._leave_source(self._top, carried, now, reason)
            elif carried >= SHORT * source:
                self._since.pop("short", None)
            return
        if self.height is None and 0 < AMPLE * source <= carried:
            if self._lasts("source", now, self._patience):
                self._return_to_source(now, reason)
                return
        else:
            self._since.pop("source", None)
        short = carried < self._least(self.current_level_index) / 2
        self.frame_rate = self._half_rate() if short else None
        self._apply(carried)

    def _check_source(self, carried: float, now: float, reason: str) -> None:
        source = self.source_bitrate
        latest = self.sample_window[-1]
        queued = (latest["queue_delay"] or 0.0) > QUEUED
        left_out = bool(latest["frames_dropped"]) and carried < AMPLE * source
        if carried >= SHORT * source and not left_out:
            self._since.pop("short", None)
        elif (
            left_out  # up to its next key frame, which may be far; of an encoder a key frame can be had
            or carried < FAR_SHORT * source
            or self._lasts("short", now, SHORT_SECONDS if queued else PATIENT_SECONDS)
        ):
            self._leave_source(self._fitting(ROOM * carried), carried, now, reason)

    def _leave_source(self, index: int, carried: float, now: float, reason: str) -> None:
        """Take a level; where the source was taken again too early, it takes twice as long the next time."""
        too_early = now - self._returned < 2 * self._patience
        self._since.clear()
        self._patience = min(2 * self._patience, MAX_AMPLE_SECONDS) if too_early else AMPLE_SECONDS
        self._change(index, reason, carried)

    def _return_to_source(self, now: float, reason: str) -> None:
        self._returned = now
        self._since.clear()
        self._change(self._top, reason, at_source=True)

    def _fall_short(self, carried: float, now: float, reason: str) -> None:
        """First half the frames, then the level below; at once where that is not enough."""
        least = self._least(self.current_level_index)
        self._since.pop("up", None)
        self._since.pop("source", None)
        now_rate = self.sample_window[-1]["send_bitrate"]
        far = carried < FAR_LESS * least or (now_rate is not None and now_rate < FAR_LESS / 2 * least)
        if far or self._lasts("short", now, DOWN_SECONDS):
            self._change(self._fitting(ROOM * carried), reason, carried)
        else:
            self.frame_rate = self._half_rate()
            self._apply(carried)

    def _rise(self, carried: float, now: float, reason: str) -> bool:
        index = self.current_level_index
        if not 0 < AMPLE * self.source_bitrate <= carried:
            self._since.pop("source", None)
        elif now >= self._relieved_until and self._lasts("source", now, self._patience):
            self._return_to_source(now, reason)
            return True
        if index <= self._top or carried < self._most(index) or now < self._relieved_until:
            self._since.pop("up", None)
        elif self._lasts("up", now, UP_SECONDS):
            self._change(min(index - 1, self._fitting(ROOM * carried)), reason, carried)
            return True
        return False

    def _relieve(self, lag: float, now: float) -> None:
        """Ask less of an encoder that falls behind. The file's own packets cost nothing: they are late for other reasons."""
        passes = self.at_source and self._facts is not None and self._facts.passthrough
        self._lag += (min(lag, 1.0) - self._lag) / LAG_WINDOW
        if self.mode == AUTO and not passes and self._lag > LAGGING:
            self._lag = 0.0
            self._relieved_until = now + RELIEF_SECONDS
            if self.current_level_index < len(self.quality_levels) - 1:
                self._change(self.current_level_index + 1, "cpu")  # all the source's lines cost what it costs

    # -- without an estimate

    def _adapt_quality(self, now: float) -> None:
        """By round trip and losses. A better level takes both, and that there never was an estimate: it is only missing."""
        recent = [one for one in self.sample_window if now - one["timestamp"] <= PERIOD]
        trips = [one["rtt"] for one in recent if one["rtt"] is not None]
        losses = [one["packet_loss"] for one in recent if one["packet_loss"] is not None]
        if not trips and not losses:
            return
        points = score(*(fmean(one) if one else None for one in (trips, losses)))
        latest = self.sample_window[-1]
        known = latest["rtt"] is not None and latest["packet_loss"] is not None
        if points < POOR:
            self._decrease_quality()
        elif points > GOOD and known and not self._estimated:
            self._increase_quality()

    def _increase_quality(self) -> None:
        """One level up, if there is one that the source has."""
        if self.mode == AUTO and not self.at_source and self.current_level_index > self._top:
            self._change(self.current_level_index - 1, "connection")

    def _decrease_quality(self) -> None:
        """One level down, if there is one."""
        if self.mode == AUTO and self.current_level_index < len(self.quality_levels) - 1:
            self._change(self.current_level_index + (not self.at_source), "connection")

    # -- below

    def _take(self, index: int, carried: float | None = None, *, at_source: bool = False) -> None:
        self.current_level_index, self.at_source = index, at_source
        self.frame_rate, self._anew = None, False
        for what in ("short", "up"):
            self._since.pop(what, None)
        self._apply(self._most(index) if carried is None else carried)

    def _change(
        self, index: int, reason: str, carried: float | None = None, *, at_source: bool = False
    ) -> None:
        before = self.level
        self._take(index, carried, at_source=at_source)
        if self.level != before:
            self.last_adaptation = self._clock()
            self._on_change(self.level, reason)

    def _apply(self, carried: float) -> None:
        """Tell the encoder."""
        most = self._most(self.current_level_index)
        if self.sample_window and (now := self.sample_window[-1]["send_bitrate"]) is not None:
            carried = min(carried, now)
        self.target_bitrate = None if self.at_source else round(max(LEAST_BITRATE, min(carried, most)))
        apply = getattr(self.track, "set_encoding_parameters", None)
        if apply is not None:
            apply(height=self.height, bitrate=self.target_bitrate, frame_rate=self.frame_rate)

    def _lasts(self, what: str, now: float, seconds: float) -> bool:
        since = self._since[what] = min(self._since.get(what, now), now)  # clocks are set back
        return now - since >= seconds

    @property
    def _facts(self) -> EncodedTrack | None:
        return getattr(self.track, "facts", None)

    @property
    def _top(self) -> int:
        """The best level that the source has the lines for."""
        height = self._facts.height if self._facts is not None else 0
        enough = [n for n, one in enumerate(self.quality_levels) if one["height"] >= height > 0]
        return max(enough, default=0)

    def _most(self, index: int) -> float:
        """bit/s of a level at the most; with all lines of the source, as many as that has."""
        most = float(self.quality_levels[index]["bitrate"])
        return most if self._facts is None or index > self._top else max(most, top_bitrate(self._facts))

    def _least(self, index: int) -> float:
        """bit/s below which the level below looks better."""
        below = self.quality_levels[index + 1 :]
        return LEAST * below[0]["bitrate"] if below else 0.0

    def _fitting(self, carried: float) -> int:
        """The best level for a bit rate."""
        indices = range(self._top, len(self.quality_levels))
        return next((n for n in indices if carried >= self._least(n)), len(self.quality_levels) - 1)

    def _half_rate(self) -> float | None:
        rate = self._facts.frame_rate if self._facts is not None else 0.0
        return rate / 2 if HALVED[0] <= rate <= HALVED[1] else None


_NAMES: Final = tuple(reversed(LEVELS))
