"""One viewer's clock: which packet of a source goes out when, for all of its tracks together."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, Final, Literal

from ipfs_stream_nb.errors import BadRequestError, BusyError
from ipfs_stream_nb.media.encoded import Aim, EncodedPacket, EncodedSource, Rendition, TrackKind
from ipfs_stream_nb.webrtc.buffer import StreamEndedError
from ipfs_stream_nb.webrtc.clock import Clock, checked_position, checked_rate, now
from ipfs_stream_nb.webrtc.lane import Lane, TimedPacket
from ipfs_stream_nb.webrtc.switching import Renditions

State = Literal["playing", "paused", "ended", "failed"]

LATE: Final = 0.2
"""Seconds that a packet may be late. Beyond, the clock is set back for all tracks; or, where it is the network that is slow and
sound gets through, pictures are left out up to a key frame."""
SLACK: Final = 0.0005
"""Seconds that a timer may be early."""
REFRESH_EVERY: Final = 1.0
"""Seconds between two refreshes at the least, however often a receiver asks."""
SHORTEST_LOOP: Final = 0.05
"""Seconds that content must have to be played in a loop."""


class Playback:
    """Plays a source to one viewer: `next` for each of its kinds gives the packets, each at its time.

    All kinds share one clock, and their RTP timestamps say when a packet is due by it, so that a receiver keeps them in
    sync. After a seek the clock stands until the picture at the position is there. With `hold` the end is no end: `next`
    waits, as the viewer may seek back. All methods are for the event loop's thread.
    """

    def __init__(
        self,
        source: EncodedSource,
        kinds: Iterable[TrackKind],
        *,
        position: float = 0.0,
        loop: bool = False,
        hold: bool = False,
        rendition: Rendition | None = None,
        on_change: Callable[[], None] = lambda: None,
        on_refusal: Callable[[BusyError], None] = lambda _error: None,
    ) -> None:
        """`position`: seconds; `on_change` is called when state or position change other than by time, `on_refusal` when a
        rendition could not be had, and the one before goes on. Raises BadRequestError."""
        self.source = source
        self.loop = loop
        self.frames_dropped = 0
        """Pictures that were left out since they would have come too late."""
        self.seconds_behind = 0.0
        """By which the clock was set back in all, since the source was slow."""
        self.restarts = 0
        """Of the video: what was sent before one is of no use after it."""
        self.error: BaseException | None = None
        """What it failed with."""
        self._on_change = on_change
        self.renditions = Renditions(rendition, self._packets, on_refusal)
        """Those of the video."""
        self._hold = hold
        self._paused = self._ended = self._closed = self._fed = self._held = False
        self._pending = True
        """Whether the clock stands until there is something to show."""
        self._clock = Clock(checked_position(position, self.duration))
        self._epoch: float | None = None
        """The loop's time of RTP timestamp 0, for all kinds."""
        self._refreshed = -math.inf
        self._stood = -1.0  # where it was last sent again
        self._lanes: dict[TrackKind, Lane] = {}
        for kind in kinds:
            self.add(kind)

    # -- what is known

    @property
    def duration(self) -> float | None:
        """Seconds; None where it is not known."""
        return self.source.info.duration

    @property
    def position(self) -> float:
        """Seconds of the source that have been shown."""
        if not self._clock.runs:
            return self._clock.position
        position = self._clock.position
        dry = (lane.end for lane in self._lanes.values() if lane.waiting and not lane.over)
        return min(position, *dry, math.inf if self.duration is None else self.duration)

    @property
    def state(self) -> State:
        """What it does."""
        if self.error is not None:
            return "failed"
        if self._ended:
            return "ended"
        return "paused" if self._paused else "playing"

    @property
    def kinds(self) -> tuple[TrackKind, ...]:
        """The kinds that it plays."""
        return tuple(self._lanes)

    @property
    def buffer_health(self) -> float:
        """How much of what should be read ahead is there, 0 to 1; 1 at the end."""
        lanes = [lane for lane in self._lanes.values() if not (lane.over or lane.buffer.ended)]
        return min((min(lane.buffer.buffer_duration / lane.ahead, 1.0) for lane in lanes), default=1.0)

    def to_json(self) -> dict[str, Any]:
        """The fields of a `playback` message."""
        return {"position": round(self.position, 3), "state": self.state, "duration": self.duration}

    # -- what the viewer does

    def prepare(self) -> None:
        """Begin to read, so that the first packets are there when they are asked for."""
        if not (self._closed or self._fed):
            self._fed = True
            for lane in self._lanes.values():
                lane.feed()

    def seek(self, position: float) -> None:
        """Go on from `position` seconds; beyond the end, from the end. Raises BadRequestError."""
        self._check_alive()
        self._ended = False
        self._go_to(checked_position(position, self.duration))
        self._on_change()

    def pause(self) -> None:
        """Stand still. Idempotent."""
        self._check_alive()
        if not self._paused:
            self._clock.stop(self.position)
            self._paused = True
            self._on_change()

    def resume(self) -> None:
        """Go on; after the end, from the beginning. Idempotent."""
        self._check_alive()
        was_paused, self._paused = self._paused, False
        if self._ended:
            self.seek(0.0)
        elif was_paused:
            self._go_on()
            self._wake()
            self._on_change()

    def set_rate(self, rate: float) -> None:
        """Play at a multiple of the usual speed; sound is silent at any other than 1. Raises BadRequestError."""
        rate, running = checked_rate(rate), self._clock.runs
        self._clock.stop(self.position)
        self._clock.rate = rate
        if running:
            self._go_on()
        self._wake()

    def set_rendition(
        self, rendition: Rendition | None, aim: Aim | None = None, *, at_once: bool = False
    ) -> None:
        """Go on with another rendition of the video, from one of its key frames on; unless it is to be `at_once`, the one before
        plays until that is there. With `aim`, which may change, it is encoded just in time as that allows."""
        lane = self._lanes.get("video")
        if not self.renditions.want(rendition, aim) or lane is None or self.error or self._closed:
            return
        if self._clock.runs and not lane.over and not at_once:
            self.renditions.switch(self.position, lane.wake)
        else:
            self._restart_video()

    def refresh(self) -> None:
        """Send the video again from the last keyframe on: its receiver has lost some. While the picture stands still, once:
        browsers ask again and again where nothing comes."""
        place = self._clock.position
        if now() - self._refreshed >= REFRESH_EVERY and not self._pending and place != self._stood:
            self._stood = place
            self._restart_video()

    def add(self, kind: TrackKind) -> None:
        """Play another kind as well, from here on. Raises BadRequestError for one that the source does not have."""
        if getattr(self.source.info, kind) is None:
            raise BadRequestError(f"the content has no {kind}")
        if kind in self._lanes:
            raise BadRequestError(f"the {kind} is played already")
        lane = self._lanes[kind] = Lane(kind, self._packets)
        lane.restart(self.position, feed=self._fed)

    async def remove(self, kind: TrackKind) -> None:
        """Play a kind no longer."""
        lane = self._lanes.pop(kind, None)
        if lane is not None:
            await lane.close()
            self._wake()  # the others may have waited for it

    async def close(self) -> None:
        """End it; `next` raises StreamEndedError from now on. The source is not closed. Idempotent."""
        self._closed = True
        for lane in self._lanes.values():
            await lane.close()
        await self.renditions.close()

    # -- packets

    async def next(self, kind: TrackKind) -> TimedPacket:
        """The next packet of a kind, once it is due. For one caller per kind.

        Raises StreamEndedError at the end and after `close`, and what the source raises.
        """
        self.prepare()
        while True:
            lane = self._lane(kind)
            if lane.over:
                await lane.sleep(None)
            elif lane.packet is None:
                await self._fetch(lane)
            elif (wait := self._wait(lane)) is None or wait > SLACK:
                await lane.sleep(wait)
            elif lane.at_end:
                self._end_of(lane)
            elif not self._leaves_out(lane):
                return self._timed(lane)

    def _lane(self, kind: TrackKind) -> Lane:
        """The lane of a kind, of the rendition that is to play. Raises StreamEndedError, and what playback failed with."""
        lane = self._lanes.get(kind)
        if lane is not None and kind == "video" and self.renditions.switching and self.error is None:
            try:
                lane = self._lanes[kind] = self.renditions.take_over(lane, self.position) or lane
            except Exception as error:  # noqa: BLE001  # whatever the source raises
                self._fail(error)
        if self.error is not None:
            raise self.error
        if self._closed or lane is None or (self._ended and lane.over and not self._hold):
            raise StreamEndedError
        return lane

    def _leaves_out(self, lane: Lane) -> bool:
        """Whether the packet that is due is taken and not sent: sound needs no preroll, and has no other speed; and there are
        pictures that the network has no time for."""
        packet = lane.packet
        assert packet is not None  # noqa: S101  # it is due
        if lane.kind == "audio":
            leave = lane.preroll is not None or self._clock.rate != 1
        else:
            leave = lane.dropping and not (packet.keyframe and now() - self._clock.due(packet.time) <= LATE)
            lane.dropping = leave
            self.frames_dropped += leave
        if leave and lane.kind == "video" and self.renditions.aim is not None:
            self.frames_dropped += len(lane.buffer.buffer)
            self._restart_video()  # with a key frame for now
        elif leave:
            lane.take()
        return leave

    async def _fetch(self, lane: Lane) -> None:
        try:
            await lane.fetch()
        except Exception as error:
            if lane.kind == "video" and self.renditions.refuse(error):
                self._restart_video()
                return
            self._fail(error)
            raise
        if lane.kind == "video":
            self.renditions.arrived()
        if self._held:
            self._held = False
            self._wake()

    def _fail(self, error: Exception) -> None:
        if self.error is None:
            self.error = error
            self._clock.stop(self.position)
            self._wake()
            self._on_change()

    def _wait(self, lane: Lane) -> float | None:
        """Seconds until a lane's packet is due; None: until something changes."""
        packet = lane.packet
        assert packet is not None  # noqa: S101  # asked before
        if lane.preroll is not None:
            if packet.time + packet.duration <= lane.preroll + SLACK:
                return lane.free_at - now()
            if self._pending and lane is not self._leader:
                return None
            if self._arrive(lane, packet):
                return 0.0
        return self._wait_by_clock(lane, packet)

    def _arrive(self, lane: Lane, packet: EncodedPacket) -> bool:
        """The preroll is over: this is the packet that was sought. Whether it is a picture to be shown at once."""
        first, position, lane.preroll = self._pending, lane.preroll or 0.0, None
        if first:
            self._show_begins()
        return lane.kind == "video" and (packet.time <= position + SLACK or (first and self._paused))

    def _wait_by_clock(self, lane: Lane, packet: EncodedPacket) -> float | None:
        if not self._clock.runs:
            return None
        if any(other.is_dry(self._clock) for other in self._lanes.values() if other is not lane):
            self._held = True  # this one waits with it
            return None
        # times that go back count for nothing
        shown = packet.time if packet.time > lane.end - LATE else lane.end
        late = now() - self._clock.due(shown)
        if late > LATE and not lane.dropping:
            if lane.kind == "video" and lane.prompt and "audio" in self._lanes:
                lane.dropping = True  # the network is too slow for it
                return 0.0
            self._clock.set_back(late)
            self.seconds_behind += late
            return 0.0
        return -late

    def _timed(self, lane: Lane) -> TimedPacket:
        packet, at, preroll = lane.take(), now(), lane.preroll is not None
        due = at if preroll or not self._clock.runs else min(self._clock.due(packet.time), at)
        if preroll:
            due = lane.rush(packet, at)
        if self._epoch is None:
            self._epoch = due
        ticks = lane.stamp(due - self._epoch, packet.duration / self._clock.rate)
        return TimedPacket(packet, ticks, max(at - due, 0.0), preroll)

    def _end_of(self, lane: Lane) -> None:
        """A lane has sent all that it had, and that has been shown."""
        lane.take()
        lane.over, lane.preroll = True, None
        if self._pending and lane is self._leader:
            self._show_begins()
        if self._ended or not all(other.over for other in self._lanes.values()):
            self._wake()
            return
        end = max(other.end for other in self._lanes.values())
        if self.loop and end > SHORTEST_LOOP:
            self._go_to(0.0)
            return
        self._clock.stop(end)
        self._ended = True
        self._wake()
        self._on_change()

    # -- the clock

    @property
    def _leader(self) -> Lane:
        """Whom the clock waits for: the video that is not over, where there is some."""
        lanes = self._lanes
        return lanes["video"] if "video" in lanes else lanes["audio"]

    def _show_begins(self) -> None:
        self._pending = False
        self._go_on()
        self._wake()
        self._on_change()

    def _go_on(self) -> None:
        if not (self._pending or self._paused or self._ended):
            self._clock.start()

    def _go_to(self, position: float) -> None:
        self._clock.stop(position)
        self._pending = True
        self.renditions.give_up()
        for lane in self._lanes.values():
            self._restart(lane, position)

    def _restart_video(self) -> None:
        lane = self._lanes.get("video")
        if lane is not None and self.error is None and not self._closed:
            self._refreshed = now()
            self.restarts += 1
            self.renditions.give_up()
            self._restart(lane, self.position)

    def _restart(self, lane: Lane, position: float) -> None:
        if lane.kind == "video":
            lane.ahead = self.renditions.ahead
        lane.restart(position, feed=self._fed)

    def _wake(self) -> None:
        for lane in self._lanes.values():
            lane.wake()

    def _packets(self, kind: TrackKind, position: float) -> AsyncGenerator[EncodedPacket, None]:
        if kind == "audio":
            return self.source.packets(kind, position)
        return self.source.packets(kind, position, self.renditions.wanted, self.renditions.aim)

    def _check_alive(self) -> None:
        if self.error is not None:
            raise self.error
        if self._closed:
            raise BadRequestError("the playback is closed")
