"""Films that are meant to do harm, or that no camera makes: played, or refused in words, at little cost."""

import io
import struct
from fractions import Fraction

import av
import psutil
import pytest

from ipfs_stream_nb.errors import CorruptContentError, UnsupportedMediaError
from ipfs_stream_nb.media.encoded import Rendition


def nested(count):
    """An MP4 of boxes within boxes."""
    data = b""
    for _ in range(count):
        data = struct.pack(">I", len(data) + 8) + b"moov" + data
    return b"\x00\x00\x00\x18ftypisom\0\0\2\0isomiso2" + data


def nested_tags(count):
    """A Matroska file of tags within tags (RFC 9559, 5.1.8.1.2: SimpleTag may hold itself)."""

    def element(name, body):
        return name + b"\x01" + len(body).to_bytes(7, "big") + body

    data = b""
    for _ in range(count):
        data = element(b"\x67\xc8", data)
    head = element(b"\x1aE\xdf\xa3", element(b"\x42\x82", b"webm"))
    return head + element(b"\x18S\x80g", element(b"\x12\x54\xc3\x67", element(b"\x73\x73", data)))


def encrypted(video):
    """The same file under Common Encryption (ISO 23001-7)."""
    file = io.BytesIO()
    key = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "01" * 16, "encryption_kid": "02" * 16}
    with av.open(io.BytesIO(video)) as plain, av.open(file, "w", format="mp4", options=key) as output:
        streams = {stream.index: output.add_stream_from_template(stream) for stream in plain.streams}
        for packet in plain.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    return file.getvalue()


def without_durations(video):
    """All samples of an MP4 at time 0."""
    data = bytearray(video)
    place = data.find(b"stts") + 16
    data[place : place + 4] = bytes(4)
    return bytes(data)


def grey(times, *, codec="mpeg4", gop=1, options=None, junk=0):
    """Pictures of 64 × 64 at times (s), and packets behind them that are none."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream(codec, 25)
        stream.width = stream.height = 64
        stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", gop
        stream.codec_context.time_base, stream.codec_context.options = Fraction(1, 1000), options or {}
        frame = av.VideoFrame(64, 64, "yuv420p")
        for plane in frame.planes:
            plane.update(b"\x80" * plane.buffer_size)
        for time in times:
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        for number in range(junk):
            packet = av.Packet(bytes(8))
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = packet.dts = round(times[-1] * 1000) + 1 + number
            output.mux(packet)
    return file.getvalue()


def vast(webm):
    """VP8 whose key frames, but for the first one, say that they are 16383 × 16383 (RFC 6386, section 9.1)."""
    start, size = b"\x9d\x01\x2a", struct.pack("<HH", 160, 120)
    first, rest = webm.split(start + size, 1)
    return first + start + size + rest.replace(start + size, start + struct.pack("<HH", 16383, 16383))


@pytest.fixture
async def confined(pool, peer):
    """What a content does to us: our memory stays small, and 10 s after it was left its worker is gone."""
    process = psutil.Process()
    before, memory = set(process.children()), process.memory_info().rss
    yield
    for shared in list(pool.opened):
        for user in list(shared.users):
            await user.close()
    await peer.wait_until(lambda: set(process.children()) == before, 20)
    assert process.memory_info().rss - memory < 128 * 2**20  # what the test itself decodes included


@pytest.mark.usefixtures("confined")
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda _: nested(20_000), "begins like MP4"),
        (lambda _: nested_tags(20_000), "begins like WebM or Matroska"),
        (lambda clip: encrypted(clip(b_frames=0)), "encrypted"),
        (lambda _: grey([0.0, 0.04], junk=20_000), "could not be decoded"),
    ],
    ids=["deep MP4", "deep Matroska", "encrypted", "junk"],
)
async def test_what_cannot_be_played_is_refused(make, text, clip, open_clip, take):
    """It is said why, before a viewer gets anything of it."""
    with pytest.raises((CorruptContentError, UnsupportedMediaError), match=text):
        await take(await open_clip(make(clip)), "video")


@pytest.mark.usefixtures("confined")
async def test_zero_duration(clip, open_clip, take):
    """Pictures that are all shown at once are one picture; with B-frames, as few as there are times."""
    source = await open_clip(without_durations(clip(b_frames=0, audio=False)))
    assert [packet.time for packet in await take(source, "video")] == [0.0]
    source = await open_clip(without_durations(clip()))
    times = [packet.time for packet in await take(source, "video")]
    assert len(times) < 10
    assert times == sorted(set(times))
    assert len(await take(source, "audio")) > 140


@pytest.mark.usefixtures("confined")
async def test_eight_hours(open_clip, take):
    """A long film is sought at once, and a gap of hours costs nothing."""
    source = await open_clip(grey(range(0, 8 * 3600, 20)))
    assert source.info.duration == pytest.approx(8 * 3600 - 20, abs=1)
    for position in (28_000.0, 10.0, 14_010.0):
        first, second = await take(source, "video", position, count=2)
        assert (first.time, second.time) == (position // 20 * 20, position // 20 * 20 + 20)
    source = await open_clip(grey([0.0, 0.04, 28_800.0, 28_800.04]))
    assert [packet.time for packet in await take(source, "video")] == [0.0, 0.04, 28_800.0, 28_800.04]


@pytest.mark.usefixtures("confined")
async def test_one_key_frame_in_a_long_film(open_clip, take):
    """Where thousands of frames would have to be decoded to begin, that is refused; from the beginning it plays."""
    times = [number / 25 for number in range(5200)]
    source = await open_clip(
        grey(times, codec="libx264", gop=100_000, options={"preset": "ultrafast", "bf": "1"})
    )
    assert len(await take(source, "video", count=30)) == 30
    with pytest.raises(CorruptContentError, match="too few key frames"):
        await take(source, "video", 207.0, count=1)


@pytest.mark.usefixtures("confined")
@pytest.mark.parametrize("b_frames", ["0", "2"])
async def test_size_that_changes(b_frames, encode, open_clip, take, peer):
    """Packets of a stream that grows in its middle go out as they are; encoded anew, all pictures have the first one's size."""
    options = {"bf": b_frames}
    small = encode("ts", "libx264", options=options)
    large = encode("ts", "libx264", options=options, width=320, height=240, times=list(range(3000, 6000, 40)))
    source = await open_clip(small + large)
    packets = await take(source, "video")
    decoder = av.CodecContext.create("h264", "r")
    pictures = [frame for packet in packets for frame in decoder.decode(av.Packet(packet.data))]
    widths = {frame.width for frame in pictures}
    assert widths == ({160, 320} if b_frames == "0" else {160})
    assert len(peer.shown(packets, "h264")) > 140


@pytest.mark.usefixtures("confined")
async def test_pictures_that_become_vast(clip, open_clip, take):
    """Frames over the limit of pixels are left out where they would have to be decoded."""
    source = await open_clip(vast(clip(kind="webm")))
    assert 24 <= len(await take(source, "video", rendition=Rendition(height=90))) <= 26
    assert source.damaged > 0
