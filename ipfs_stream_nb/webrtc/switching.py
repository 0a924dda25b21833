"""Another rendition of a video that plays: read beside it, and taken over at a key frame, so that there is no gap."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from ipfs_stream_nb.errors import BusyError
from ipfs_stream_nb.media.encoded import Aim, Rendition
from ipfs_stream_nb.webrtc.lane import AHEAD, LIVE_AHEAD, Lane, Open

AHEAD_OF_SWITCH: Final = 0.25
"""Seconds from the beginning of a switch to the place in the content where it is to happen, at first."""
TOO_LATE: Final = 0.3
"""Seconds that a new rendition may be behind what was shown; beyond, it is asked for once more, further ahead."""
MAX_TRIES: Final = 4


class Switch:
    """Reads `lane` until a key frame at or after a position is next in it. `on_ready` is called then, and when it has failed."""

    def __init__(self, lane: Lane, position: float, on_ready: Callable[[], None]) -> None:
        self.lane = lane
        self.ready = False
        """Whether the key frame, or the end of the content, is next."""
        self.error: Exception | None = None
        self.tries = 0
        self._on_ready = on_ready
        self._task: asyncio.Task[None] | None = None
        self.begin(position)

    @property
    def time(self) -> float:
        """Where it takes over, once it is ready."""
        packet = self.lane.packet
        return packet.time if packet is not None else 0.0

    def begin(self, position: float) -> None:
        """Look for a key frame from a position on."""
        self.ready = False
        self.tries += 1
        if self._task is not None:
            self._task.cancel()
        self.lane.restart(position, feed=True)
        self._task = asyncio.create_task(self._find(position), name="another rendition")

    async def _find(self, position: float) -> None:
        lane = self.lane
        try:
            await lane.fetch()
            # what is transcoded begins with the picture that is on at the position
            while lane.packet is not None and not lane.at_end and not _opens(lane, position):
                lane.take()
                await lane.fetch()
            self.ready = lane.packet is not None
        except Exception as error:  # noqa: BLE001  # the playback's to raise
            self.error = error
        self._on_ready()

    async def close(self) -> None:
        """Give it up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.lane.close()


def _opens(lane: Lane, position: float) -> bool:
    packet = lane.packet
    return packet is not None and packet.keyframe and packet.time + packet.duration > position


class Renditions:
    """Which rendition of its video a playback wants, which it goes back to where that cannot be had, and the change between."""

    def __init__(
        self, rendition: Rendition | None, packets: Open, on_refusal: Callable[[BusyError], None]
    ) -> None:
        """`packets` gives those of the rendition that is wanted at the time; `on_refusal` hears that it could not be had."""
        self.wanted = rendition
        """None: the source's own."""
        self.aim: Aim | None = None
        """What the network carries, where the video is encoded just in time for it."""
        self._packets = packets
        self._on_refusal = on_refusal
        self._before: list[tuple[Rendition | None, Aim | None]] = []
        """The one to go back to, until the first packet of the new one is there."""
        self._switch: Switch | None = None
        self._retired: set[asyncio.Task[None]] = set()
        """Lanes and switches that are being closed."""

    @property
    def ahead(self) -> float:
        """Seconds that are read ahead of the viewer."""
        return AHEAD if self.aim is None else LIVE_AHEAD

    @property
    def switching(self) -> bool:
        """Whether another one is read, to take over."""
        return self._switch is not None

    def want(self, rendition: Rendition | None, aim: Aim | None) -> bool:
        """Have another one from now on. Whether it is another one."""
        if rendition == self.wanted and (aim is None) == (self.aim is None):
            return False
        self._before = self._before or [(self.wanted, self.aim)]
        self.wanted, self.aim = rendition, aim
        return True

    def switch(self, position: float, on_ready: Callable[[], None]) -> None:
        """Read it beside the one that plays, which is at `position`."""
        self.give_up()
        lane = Lane("video", self._packets, self.ahead)
        self._switch = Switch(lane, position + AHEAD_OF_SWITCH, on_ready)

    def arrived(self) -> None:
        """There is a packet of what plays: if that is what is wanted, it can be had."""
        if self._switch is None:
            self._before.clear()

    def refuse(self, error: Exception) -> bool:
        """Go back to the one before, where there is no room for the new one. Whether that helps."""
        if not isinstance(error, BusyError) or not self._before:
            return False
        self.wanted, self.aim = self._before.pop()
        self._on_refusal(error)
        return True

    def take_over(self, old: Lane, position: float) -> Lane | None:
        """The lane to go on with in place of `old`, once that has come to its key frame. Raises what the new one failed with."""
        switch = self._switch
        if switch is None:
            return None
        if switch.error is not None:
            self.give_up()
            if self.refuse(switch.error):
                return None
            raise switch.error
        next_one = old.packet.time if old.packet is not None and not old.dropping else position
        if not switch.ready or not (old.at_end or next_one >= switch.time):
            return None
        behind = old.end - switch.time
        if behind > TOO_LATE and self.aim is not None and switch.tries < MAX_TRIES:
            switch.begin(position + AHEAD_OF_SWITCH + 1.5 * behind)
            return None
        self._switch = None
        self._before.clear()
        switch.lane.follow(old)
        self._retire(old.close())
        return switch.lane

    def give_up(self) -> None:
        """End the change that is under way."""
        if self._switch is not None:
            self._retire(self._switch.close())
            self._switch = None

    def _retire(self, closing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(closing, name="close a rendition")
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    async def close(self) -> None:
        """End the change, and wait until everything is closed."""
        self.give_up()
        if self._retired:
            await asyncio.wait(self._retired)
