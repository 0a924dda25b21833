"""One track's packets of a playback: read ahead a little, from one place at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from ipfs_stream_nb.media.encoded import EncodedPacket, TrackKind
from ipfs_stream_nb.webrtc.buffer import StreamBuffer, StreamEndedError
from ipfs_stream_nb.webrtc.clock import Clock, now

CLOCK_RATES: Final[dict[TrackKind, int]] = {"video": 90_000, "audio": 48_000}
"""Ticks a second of RTP timestamps (RFC 7741, 6184, 7587)."""
AHEAD: Final = 0.5
"""Seconds of media that are read ahead of a viewer; the source itself reads further."""
LIVE_AHEAD: Final = 0.07
"""The same of what is encoded just in time, as the network allows: a change is seen so much later."""
DRY: Final = 0.2
"""Seconds after which a track that waits for its source holds up the others too."""
RUSH_RATE: Final = 5_000_000
"""Bytes a second of a preroll: the pictures that a decoder needs before the one that is asked for."""

Open = Callable[[TrackKind, float], AsyncGenerator[EncodedPacket, None]]
"""A track's packets from a position on."""


@dataclass(frozen=True, slots=True)
class TimedPacket:
    """A packet whose time has come."""

    packet: EncodedPacket
    ticks: int
    """Its RTP timestamp in its kind's clock rate; they only rise, whatever is sought, paused or repeated."""
    latency: float
    """Seconds that it is late."""
    preroll: bool
    """Whether it is before the position that was asked for, and only there for the decoder."""


class Lane:
    """The packets of one kind on their way to one viewer."""

    def __init__(self, kind: TrackKind, open_packets: Open, ahead: float = AHEAD) -> None:
        """`ahead`: seconds that are read ahead."""
        self.kind = kind
        self.ahead = ahead
        self.clock_rate = CLOCK_RATES[kind]
        self.packet: EncodedPacket | None = None
        """The next one to be sent, or with `at_end` the place of the end."""
        self.at_end = False
        self.over = False
        """Whether the end was reached."""
        self.preroll: float | None = None
        """Packets before this position are needed to decode it, and not to be seen."""
        self.free_at = 0.0
        """When the next packet of a preroll may be sent."""
        self.rushed = 0.0
        """When its first one was."""
        self.end = 0.0
        """Where the latest packet ends, in seconds of the source."""
        self.waiting = False
        self.prompt = False
        """Whether the next packet lay ready when it was asked for: that it is late is not the source's doing."""
        self.dropping = False
        """Whether packets are left out up to the next key frame."""
        self.ticks = -1
        """The latest RTP timestamp; they only rise."""
        self.due_ticks = 0
        """The timestamp that a packet has which follows without a gap."""
        self.buffer = self._new_buffer()
        self._open = open_packets
        self._feeder: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._position = 0.0

    def restart(self, position: float, *, feed: bool) -> None:
        """Go on with the packets for `position`. What was read before is dropped; `feed` begins to read at once."""
        self.buffer.close()
        self.buffer = self._new_buffer()
        self.packet, self.at_end, self.over, self.dropping = None, False, False, False
        self.preroll = self.end = self._position = position
        self.free_at = self.rushed = 0.0
        if self._feeder is not None:
            self._feeder.cancel()
            self._feeder = None
        if feed:
            self.feed()
        self.wake()

    def _new_buffer(self) -> StreamBuffer:
        return StreamBuffer(self.ahead, 2 * self.ahead, 0.0)

    def follow(self, other: Lane) -> None:
        """Go on where another lane of the kind is: its timestamps go on, and nothing that it has sent is shown again."""
        self.ticks, self.due_ticks, self.end = other.ticks, other.due_ticks, other.end
        behind = self.packet is not None and self.packet.time < other.end
        self.preroll = other.end if behind else None

    def feed(self) -> None:
        """Begin to read, unless that is under way. Needs a running loop."""
        if self._feeder is None:
            self._feeder = asyncio.create_task(
                self._feed(self.buffer, self._position), name=f"{self.kind} packets"
            )
            self._tasks.add(self._feeder)
            self._feeder.add_done_callback(self._tasks.discard)

    async def _feed(self, buffer: StreamBuffer, position: float) -> None:
        try:
            async with aclosing(self._open(self.kind, position)) as packets:
                async for packet in packets:
                    await buffer.add_frame(packet)
            buffer.end()
        except StreamEndedError:
            pass
        except Exception as error:  # noqa: BLE001  # the reader raises it
            buffer.end(error)

    async def fetch(self) -> None:
        """Have the next packet in `packet`, or the end; nothing, where the lane was restarted meanwhile. Raises what the
        source raised."""
        buffer, self.waiting = self.buffer, True
        self.prompt = bool(buffer.buffer)
        try:
            packet: EncodedPacket = await buffer.get_frame()
        except StreamEndedError:
            if buffer is self.buffer:
                self.at_end = True
                self.packet = EncodedPacket(b"", self.end, 0.0, keyframe=False)
        except Exception:
            if buffer is self.buffer:
                raise
        else:
            if buffer is self.buffer:
                self.packet = packet
        finally:
            self.waiting = False

    def take(self) -> EncodedPacket:
        """The packet that is next, which is no longer so."""
        packet, self.packet = self.packet, None
        assert packet is not None  # noqa: S101  # it was fetched
        self.end = max(self.end, packet.time + packet.duration)
        return packet

    def rush(self, packet: EncodedPacket, at: float) -> float:
        """A packet of the preroll goes out; the time to stamp it with: the first one's, so that a browser shows few of them."""
        self.free_at = at + len(packet.data) / RUSH_RATE
        self.rushed = self.rushed or at
        return self.rushed

    def is_dry(self, clock: Clock) -> bool:
        """Whether it has waited so long for its source that the others wait with it."""
        return self.waiting and not self.over and now() - clock.due(self.end) > DRY

    def stamp(self, at: float, duration: float) -> int:
        """The RTP timestamp for what is shown `at` seconds after playback began, for `duration` seconds. Sound that goes on
        without a gap is stamped without one, whatever a container rounded its times to."""
        ticks = round(at * self.clock_rate)
        if self.kind == "audio" and abs(ticks - self.due_ticks) <= self.clock_rate // 200:
            ticks = self.due_ticks
        self.ticks = max(ticks, self.ticks + 1)
        self.due_ticks = self.ticks + round(duration * self.clock_rate)
        return self.ticks

    def wake(self) -> None:
        """Have whoever sleeps look again."""
        self._wake.set()

    async def sleep(self, seconds: float | None) -> None:
        """Until `wake`, or for so long."""
        self._wake.clear()
        loop = asyncio.get_running_loop()
        timer = None if seconds is None else loop.call_later(seconds, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()

    async def close(self) -> None:
        """End reading. Idempotent."""
        self.buffer.close()
        self.wake()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
