"""Playback: the clock of one viewer."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from ipfs_stream_nb.errors import BadRequestError, BusyError, CorruptContentError
from ipfs_stream_nb.media.encoded import Aim, EncodedPacket, Rendition
from ipfs_stream_nb.webrtc.buffer import StreamEndedError
from ipfs_stream_nb.webrtc.lane import CLOCK_RATES, Lane
from ipfs_stream_nb.webrtc.playback import Playback
from webrtc.packet_source import PacketSource, clip
from webrtc.viewer import wait_until

pytestmark = pytest.mark.usefixtures("own_time")


class Listener:
    """Takes all packets of a playback as they come: (loop's time, TimedPacket) by kind."""

    def __init__(self, playback: Playback) -> None:
        self.playback = playback
        self.got = {kind: [] for kind in playback.kinds}
        self.ends: dict[str, BaseException] = {}
        self._news = asyncio.Event()
        self._tasks = [asyncio.ensure_future(self._listen(kind)) for kind in playback.kinds]

    async def _listen(self, kind) -> None:
        try:
            while True:
                timed = await self.playback.next(kind)
                self.got[kind].append((asyncio.get_running_loop().time(), timed))
                self._news.set()
        except Exception as error:  # noqa: BLE001  # looked at by the tests
            self.ends[kind] = error
            self._news.set()

    async def until(self, true, seconds: float = 5.0) -> None:
        async with asyncio.timeout(seconds):
            while not true():
                self._news.clear()
                await self._news.wait()

    def times(self, kind: str, since: int = 0) -> list[float]:
        return [timed.packet.time for _, timed in self.got[kind][since:]]

    def ticks(self, kind: str, since: int = 0) -> list[int]:
        return [timed.ticks for _, timed in self.got[kind][since:]]

    async def close(self) -> None:
        await self.playback.close()
        await asyncio.gather(*self._tasks)


@asynccontextmanager
async def playing(source, *kinds, **options):
    before = asyncio.all_tasks()
    listener = Listener(Playback(source, kinds or ("video", "audio"), **options))
    try:
        yield listener
    finally:
        await listener.close()
    assert source.readers == 0
    assert asyncio.all_tasks() <= before


def rising(ticks: list[int]) -> bool:
    return all(a < b for a, b in pairwise(ticks))


async def test_pace_and_sync():
    """Packets come when they are due, the timestamps of both kinds say the same times, and sound has no gaps."""
    async with playing(PacketSource(clip())) as heard:
        await heard.until(lambda: len(heard.got["video"]) > 24)
        for kind in ("video", "audio"):
            base = heard.got["video"][0][0]
            for at, timed in heard.got[kind]:
                # not before it is due; on a busy machine any of them may be late, the first one too
                assert -0.3 < at - base - timed.packet.time < 1
                assert timed.ticks / CLOCK_RATES[kind] == pytest.approx(timed.packet.time, abs=0.011)
        steps = [b - a for a, b in pairwise(heard.ticks("audio")[1:])]
        assert set(steps) == {960}
        assert heard.playback.state == "playing"
        assert 24 / 30 - 0.05 < heard.playback.position < 24 / 30 + 1


@pytest.mark.parametrize("position", [2.5, 0.1])
async def test_seek(position):
    """After a seek the picture at the position is there within 200 ms, after those that the decoder needs; timestamps
    only rise, and the kinds stay in sync."""
    async with playing(PacketSource(clip())) as heard:
        await heard.until(lambda: len(heard.got["video"]) > 10)
        before = {kind: len(got) for kind, got in heard.got.items()}
        asked = asyncio.get_running_loop().time()
        heard.playback.seek(position)
        assert heard.playback.position == position
        await heard.until(
            lambda: any(time >= position + 0.2 for time in heard.times("video", before["video"]))
        )
        after = heard.got["video"][before["video"] :]
        assert after[0][1].packet.keyframe
        assert after[0][1].packet.time == int(position)
        preroll = [timed for _, timed in after if timed.preroll]
        shown = [(at, timed) for at, timed in after if not timed.preroll]
        assert all(timed.packet.time < position for timed in preroll)
        assert shown[0][1].packet.time == pytest.approx(position, abs=1 / 30)
        assert shown[0][0] - asked < 0.5  # 0.03 on an idle machine
        assert shown[0][1].ticks - preroll[0].ticks < 0.2 * 90_000
        sound = heard.got["audio"][before["audio"] :]
        assert sound[0][1].packet.time == pytest.approx(position, abs=0.021)
        lag = shown[3][1].ticks / 90_000 - shown[3][1].packet.time
        assert sound[3][1].ticks / 48_000 - sound[3][1].packet.time == pytest.approx(lag, abs=0.011)
        assert rising(heard.ticks("video"))
        assert rising(heard.ticks("audio"))


async def test_pause_and_resume():
    """Nothing comes while it stands; then it goes on with the next packet, and timestamps span the pause."""
    async with playing(PacketSource(clip())) as heard:
        await heard.until(lambda: len(heard.got["video"]) > 6)
        heard.playback.pause()
        heard.playback.pause()
        assert heard.playback.state == "paused"
        count, position = len(heard.got["video"]), heard.playback.position
        await asyncio.sleep(0.3)
        assert len(heard.got["video"]) == count
        assert heard.playback.position == position
        heard.playback.resume()
        heard.playback.resume()
        await heard.until(lambda: len(heard.got["video"]) > count + 3)
        times = heard.times("video", count - 1)
        assert times[1] - times[0] == pytest.approx(1 / 30, abs=0.002)
        ticks = heard.ticks("video", count - 1)
        assert (ticks[1] - ticks[0]) / 90_000 > 0.25


async def test_seek_while_paused():
    """The picture at the position is shown, and no more."""
    async with playing(PacketSource(clip())) as heard:
        await heard.until(lambda: len(heard.got["video"]) > 2)
        heard.playback.pause()
        count = {kind: len(got) for kind, got in heard.got.items()}
        heard.playback.seek(1.5)
        await heard.until(lambda: heard.times("video")[-1] >= 1.46)
        await asyncio.sleep(0.1)
        assert heard.times("video")[-1] == pytest.approx(1.5, abs=0.034)
        assert not heard.times("audio", count["audio"])
        assert heard.playback.to_json() == {"position": 1.5, "state": "paused", "duration": 3.014}


async def test_seek_into_a_gap_while_paused():
    """Where there is no picture at the position yet, the next one is shown."""
    source = PacketSource(clip())
    source.all_packets = {
        kind: [EncodedPacket(one.data, one.time + 1, one.duration, keyframe=one.keyframe) for one in every]
        for kind, every in source.all_packets.items()
    }
    async with playing(source) as heard:
        heard.playback.pause()
        heard.playback.seek(0.2)
        await heard.until(lambda: heard.got["video"])
        await asyncio.sleep(0.1)
        assert heard.times("video") == [1.0]
        assert heard.playback.position == 0.2


def test_stamps_of_sound():
    """Times that a container has rounded give stamps without gaps; a gap is one, and stamps never go back."""
    lane = Lane("audio", lambda _kind, _position: None)
    assert [lane.stamp(at, 0.02) for at in (0.0, 0.0204, 0.0396, 0.06)] == [0, 960, 1920, 2880]
    assert [lane.stamp(at, 0.02) for at in (0.5, 0.5204, 0.1)] == [24_000, 24_960, 24_961]


async def test_end_and_again():
    """At the end `next` waits if told to; a seek or `resume` play again."""
    changes: list[str] = []
    source = PacketSource(clip())
    async with playing(
        source, hold=True, position=2.8, on_change=lambda: changes.append(heard.playback.state)
    ) as heard:
        await heard.until(lambda: len(heard.got["audio"]) > 9)
        await wait_until(lambda: heard.playback.state == "ended")
        assert changes.count("ended") == 1
        assert heard.playback.position == pytest.approx(3.0, abs=0.05)
        assert heard.times("video")[-1] == pytest.approx(89 / 30, abs=0.002)
        heard.playback.resume()
        await heard.until(lambda: 0.1 < heard.times("video")[-1] < 0.5)
        assert heard.playback.state == "playing"
        assert rising(heard.ticks("video"))
        heard.playback.seek(1e9)
        await wait_until(lambda: heard.playback.state == "ended")


async def test_end_for_good():
    """Without that, the end is an end."""
    async with playing(PacketSource(clip()), position=2.9) as heard:
        await heard.until(lambda: len(heard.ends) == 2)
        assert all(isinstance(error, StreamEndedError) for error in heard.ends.values())


async def test_loop():
    """In a loop the beginning follows the end, and timestamps go on."""
    async with playing(PacketSource(clip()), position=2.8, loop=True) as heard:
        await heard.until(lambda: any(0.2 < time < 1 for time in heard.times("video")))
        times, ticks = heard.times("video"), heard.ticks("video")
        again = times.index(0.0)
        assert times[again - 1] == pytest.approx(89 / 30, abs=0.002)
        assert (ticks[again] - ticks[again - 1]) / 90_000 == pytest.approx(1 / 30, abs=0.1)
        assert rising(ticks)
        assert rising(heard.ticks("audio"))
        assert heard.playback.state == "playing"


async def test_refresh():
    """A receiver that lost pictures gets them again from the last keyframe on, at once; sound goes on undisturbed."""
    async with playing(PacketSource(clip())) as heard:
        await heard.until(lambda: len(heard.got["video"]) > 20)
        count, heard_before = len(heard.got["video"]), len(heard.got["audio"])
        heard.playback.refresh()
        heard.playback.refresh()  # receivers repeat themselves
        await heard.until(lambda: len(heard.got["video"]) > count + 30)
        times = heard.times("video", count)
        assert times[0] == 0.0
        assert times.count(0.0) == 1
        assert heard.got["video"][count + 20][0] - heard.got["video"][count][0] < 0.2
        assert rising(heard.ticks("video"))
        sound = heard.times("audio", heard_before - 1)
        assert all(b - a == pytest.approx(0.02, abs=0.002) for a, b in pairwise(sound))


async def test_refresh_at_the_end():
    """A picture that is lost at the end is sent again as well, and the end is told once."""
    changes: list[str] = []
    async with playing(
        PacketSource(clip()),
        hold=True,
        position=2.95,
        on_change=lambda: changes.append(heard.playback.state),
    ) as heard:
        await wait_until(lambda: heard.playback.state == "ended")
        count = len(heard.got["video"])
        heard.playback.refresh()
        await heard.until(lambda: len(heard.got["video"]) == count + 30)
        await asyncio.sleep(0.05)
        assert heard.playback.state == "ended"
        assert changes.count("ended") == 1


async def test_slow_source():
    """Where the source falls behind, both kinds wait for it, and go on in sync with nothing left out."""
    source = PacketSource(clip())
    async with playing(source) as heard:
        await heard.until(lambda: len(heard.got["video"]) > 6)
        source.hold.clear()
        await wait_until(lambda: all(lane.waiting for lane in heard.playback._lanes.values()))
        await asyncio.sleep(0.5)
        assert heard.playback.position <= heard.times("video")[-1] + 0.04
        source.hold.set()
        count = len(heard.got["video"])
        await heard.until(lambda: len(heard.got["video"]) > count + 15)
        times = heard.times("video")
        assert all(b - a == pytest.approx(1 / 30, abs=0.002) for a, b in pairwise(times))
        picture, sound = heard.got["video"][-1][1], heard.got["audio"][-1][1]
        assert picture.ticks / 90_000 - picture.packet.time > 0.3
        assert sound.ticks / 48_000 - sound.packet.time == pytest.approx(
            picture.ticks / 90_000 - picture.packet.time, abs=0.011
        )


async def test_sound_waits_for_pictures():
    """Sound does not run away from pictures that do not come."""
    source = PacketSource(clip())
    late = asyncio.Event()
    inner = source.packets

    async def packets(kind, position=0.0, rendition=None, aim=None):
        async for packet in inner(kind, position, rendition):
            if kind == "video" and packet.time > 0.3:
                await late.wait()
            yield packet

    source.packets = packets
    async with playing(source) as heard:
        await heard.until(lambda: heard.times("audio") and heard.times("audio")[-1] > 0.45)
        await asyncio.sleep(0.4)
        assert heard.times("audio")[-1] < 0.33 + 0.2 + 0.1
        late.set()
        await heard.until(lambda: heard.times("audio")[-1] > 0.9)


async def test_failure():
    """What the source raises comes after what it gave, from each `next`; it is told once, and nothing goes on."""
    source = PacketSource(clip())
    source.failure, source.fail_at = CorruptContentError("a block does not hash to its CID"), 0.2
    changes: list[str] = []
    async with playing(source, on_change=lambda: changes.append(heard.playback.state)) as heard:
        await heard.until(lambda: len(heard.ends) == 2)
        assert 0.1 <= heard.times("video")[-1] < 0.2
        assert all(error is source.failure for error in heard.ends.values())
        assert changes.count("failed") == 1
        with pytest.raises(CorruptContentError):
            heard.playback.seek(0)


async def test_rendition():
    """Another rendition takes over at one of its key frames; no picture is missing, and none comes twice."""
    source = PacketSource(clip(gop=20))
    small = Rendition(90, 100_000)
    async with playing(source) as heard:
        await heard.until(lambda: len(heard.got["video"]) > 12)
        heard.playback.set_rendition(small)
        heard.playback.set_rendition(small)
        await heard.until(lambda: len(heard.got["video"]) > 50)
        videos = [one for one in source.begun if one[0] == "video"]
        assert [one[2] for one in videos] == [None, small]
        assert videos[1][1] == pytest.approx(0.65, abs=0.2)
        assert [one[2] for one in source.begun if one[0] == "audio"] == [None]
        times = heard.times("video")
        assert [round(30 * time) for time in times] == list(range(len(times)))
        assert all(later > one for one, later in pairwise(heard.ticks("video")))
        assert source.readers == 2


async def test_rendition_that_is_late():
    """What comes later than it was to take over is caught up with; until then the one before plays."""
    source = PacketSource(clip(gop=10))
    inner, gate = source.packets, asyncio.Event()

    async def packets(kind, position=0.0, rendition=None, aim=None):
        if rendition is not None:
            await gate.wait()
        async for packet in inner(kind, position, rendition):
            yield packet

    source.packets = packets
    async with playing(source) as heard:
        await heard.until(lambda: len(heard.got["video"]) > 3)
        heard.playback.set_rendition(Rendition(90, 100_000))
        await heard.until(lambda: heard.times("video")[-1] > 1.2)
        gate.set()
        count = len(heard.got["video"])
        await heard.until(lambda: heard.times("video")[-1] > 1.8)
        late = [timed for _, timed in heard.got["video"][count:] if timed.preroll]
        assert late
        assert all(timed.packet.time < 1.3 for timed in late)
        assert all(timed.packet.time > 1.1 for _, timed in heard.got["video"][count:] if not timed.preroll)
        assert heard.playback.frames_dropped == 0


async def test_seek_gives_up_the_other_rendition_on_its_way():
    """A seek in the middle of a change begins at once with what is wanted."""
    source = PacketSource(clip(gop=90))
    async with playing(source) as heard:
        await heard.until(lambda: len(heard.got["video"]) > 3)
        heard.playback.set_rendition(Rendition(90, 100_000))
        heard.playback.seek(2.0)
        await heard.until(lambda: heard.times("video")[-1] > 2.1)
        assert Rendition(90, 100_000) in {source.begun[-1][2], source.begun[-2][2]}
        assert source.readers <= 2


@pytest.mark.parametrize("live", [False, True])
async def test_pictures_that_nobody_takes_are_left_out(live):
    """Where the network takes pictures too slowly and sound is on time, they go on with a key frame that is on time."""
    source = PacketSource(clip(gop=15))
    playback = Playback(source, ("video", "audio"))
    if live:
        playback.set_rendition(Rendition(90, 100_000), Aim(100_000))
    sound = asyncio.ensure_future(take_until(playback, "audio", 1.0))
    for _ in range(5):
        await playback.next("video")
    begun = len(source.begun)
    await sound  # no picture was taken meanwhile
    rest = asyncio.ensure_future(take_until(playback, "audio", 2.0))
    timed = await playback.next("video")
    while timed.preroll:
        timed = await playback.next("video")
    assert timed.packet.time > 0.95
    assert timed.latency < 0.9  # those that were left out are up to 0.8 s older
    assert live or timed.packet.keyframe
    assert playback.frames_dropped > 1
    assert (len(source.begun) > begun) == live
    await rest
    await playback.close()


async def take_until(playback, kind, time):
    """Take packets of a kind up to a time, each when it is due."""
    while (await playback.next(kind)).packet.time < time:
        pass


async def test_rate():
    """At double speed pictures come twice as fast, and there is no sound; back at 1 there is again."""
    async with playing(PacketSource(clip())) as heard:
        await heard.until(lambda: len(heard.got["video"]) > 3)
        heard.playback.set_rate(2.0)
        count, sound = len(heard.got["video"]), len(heard.got["audio"])
        await heard.until(lambda: len(heard.got["video"]) > count + 40)
        first, last = heard.got["video"][count], heard.got["video"][count + 40]
        assert 20 / 30 - 0.3 < last[0] - first[0] < 1.2  # at speed 1: 1.33
        assert len(heard.got["audio"]) <= sound + 1
        heard.playback.set_rate(1.0)
        await heard.until(lambda: len(heard.got["audio"]) > sound + 5)
        with pytest.raises(BadRequestError):
            heard.playback.set_rate(0)


async def test_times_that_go_back():
    """A file whose times jump back goes on playing at once."""
    source = PacketSource(clip())
    packets = source.all_packets["video"]
    broken = [
        EncodedPacket(one.data, one.time if n < 6 else one.time - 0.15, one.duration, keyframe=one.keyframe)
        for n, one in enumerate(packets)
    ]
    source.all_packets = {"video": broken, "audio": []}
    async with playing(source, "video") as heard:
        await heard.until(lambda: len(heard.got["video"]) > 20)
        assert heard.got["video"][20][0] - heard.got["video"][0][0] < 0.9
        assert rising(heard.ticks("video"))


async def test_kinds():
    """A kind can be taken away and come back, in sync; one that is not there is refused."""
    async with playing(PacketSource(clip()), "video") as heard:
        await heard.until(lambda: len(heard.got["video"]) > 5)
        heard.playback.add("audio")
        timed = await heard.playback.next("audio")
        assert -0.1 < heard.playback.position - timed.packet.time < 1
        lag = heard.got["video"][-1][1].ticks / 90_000 - heard.times("video")[-1]
        assert timed.ticks / 48_000 - timed.packet.time == pytest.approx(lag, abs=0.011)
        with pytest.raises(BadRequestError, match="already"):
            heard.playback.add("audio")
        await heard.playback.remove("audio")
        await heard.playback.remove("audio")
        with pytest.raises(StreamEndedError):
            await heard.playback.next("audio")
    with pytest.raises(BadRequestError, match="no audio"):
        Playback(PacketSource(clip(audio=False)), ("video", "audio"))


@pytest.mark.parametrize("position", [-1, float("nan"), float("inf"), "1", None, True])
async def test_bad_positions(position):
    """A position is a number of seconds from 0 on."""
    async with playing(PacketSource(clip())) as heard:
        with pytest.raises(BadRequestError, match="position"):
            heard.playback.seek(position)


async def test_many_seeks():
    """A hundred seeks in a row leave one reader per kind."""
    source = PacketSource(clip())
    async with playing(source) as heard:
        for n in range(100):
            heard.playback.seek(n % 3)
            await asyncio.sleep(0)
        count = len(heard.got["video"])
        await heard.until(lambda: len(heard.got["video"]) > count + 5)
        assert source.readers <= 2
        assert rising(heard.ticks("video"))


async def test_read_ahead_is_bounded():
    """A viewer that takes nothing has a second read ahead at the most."""
    source = PacketSource(clip())
    playback = Playback(source, ("video",))
    playback.prepare()
    await asyncio.sleep(0.05)
    assert len(playback._lanes["video"].buffer.buffer) <= 32
    assert playback.buffer_health == 1.0
    await playback.close()
    assert source.readers == 0


async def test_refused_rendition():
    """Where the source has no room for a rendition the one before goes on, and that is told."""
    source = PacketSource(clip())
    inner, refusals = source.packets, []

    async def packets(kind, position=0.0, rendition=None, aim=None):
        if rendition is not None:
            raise BusyError("4 renditions are being played, the limit")
        async for packet in inner(kind, position, rendition):
            yield packet

    source.packets = packets
    async with playing(source, on_refusal=refusals.append) as heard:
        await heard.until(lambda: len(heard.got["video"]) > 5)
        heard.playback.set_rendition(Rendition(90, 100_000))
        count = len(heard.got["video"])
        await heard.until(lambda: len(heard.got["video"]) > count + 10)
        assert heard.playback.renditions.wanted is None
        assert heard.playback.state == "playing"
        assert len(refusals) == 1
