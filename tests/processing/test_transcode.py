"""Transcoding to WebM: what comes out plays, is in step, and holds what went in."""

import io

import av
import numpy as np
import pytest

from ipfs_stream_nb import samples
from ipfs_stream_nb.errors import (
    CorruptContentError,
    DiskFullError,
    TooLargeError,
    UnsupportedMediaError,
)
from ipfs_stream_nb.media.audio import audio
from ipfs_stream_nb.media.decode import VideoDecoder
from ipfs_stream_nb.media.frames import frames
from ipfs_stream_nb.media.info import probe
from ipfs_stream_nb.media.source import open_media
from ipfs_stream_nb.processing import job
from ipfs_stream_nb.processing.processor import ContentProcessor

CUES = b"\x1c\x53\xbb\x6b"


@pytest.fixture
def transcoded(node, add):
    """Transcode bytes in a store; gives the result and the WebM file."""

    async def transcoded(data, **options):
        processor = ContentProcessor(node, "transcode", **options)
        async for _ in processor.process(await add(node, data)):
            pass
        result = await processor.get_result()
        webm = b"".join([piece async for piece in node.cat(result["cid"])])
        assert result["size"] == len(webm)
        return result, webm

    return transcoded


def numbers(webm):
    shown = frames(io.BytesIO(webm))
    return [samples.read_frame_number(picture) for picture in shown.array], shown.times


def late(data, *, late_pictures=False):
    """The same video as MPEG-TS, whose clock begins at 1.4 s; the first pictures can be left out."""
    output = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(output, "w", format="mpegts") as target:
        tracks = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        start = tracks and not late_pictures
        for packet in source.demux():
            start = start or (packet.stream.type == "video" and packet.is_keyframe and packet.pts > 0)
            if packet.dts is not None and (start or packet.stream.type == "audio"):
                packet.stream = tracks[packet.stream.index]
                target.mux(packet)
    return output.getvalue()


async def test_a_video_with_b_frames_and_sound(transcoded, clip):
    """Every frame comes out at its own time, the sound in step with it, and the file has cues and a length."""
    result, webm = await transcoded(clip(b_frames=2))
    assert result["cid"].startswith("baf")
    assert (result["width"], result["height"], result["damaged_frames"]) == (160, 120, 0)
    assert (result["video_codec"], result["audio_codec"]) == ("vp8", "opus")
    found, times = numbers(webm)
    assert found == list(range(50))
    assert times == pytest.approx(np.arange(50) / 25, abs=0.001)
    info = probe(io.BytesIO(webm))
    assert (info.format, info.duration) == ("webm", pytest.approx(2.0, abs=0.05))
    assert result["duration"] == pytest.approx(info.duration, abs=0.02)
    heard = audio(io.BytesIO(webm), 0.9, 1.1)
    click = int(np.argmax(np.abs(heard.samples[:, 0])))
    assert click / heard.rate == pytest.approx(0.1, abs=0.01)
    assert CUES in webm


async def test_it_is_seekable(transcoded, clip):
    """A seek lands on a keyframe near the wanted time, and the frame there is the right one."""
    _, webm = await transcoded(clip(duration=5.0, width=64, height=64, audio=False))
    with open_media(io.BytesIO(webm)) as source:
        decoder = VideoDecoder(source)
        next(decoder.frames(4500))
        assert decoder.landed == 4000
    assert samples.read_frame_number(frames(io.BytesIO(webm), 4.52, count=1)[0].array) == 113


async def test_the_same_content_gives_the_same_cid(transcoded, clip):
    """The encoding does not depend on chance or on how busy the machine is."""
    first, _ = await transcoded(clip())
    again, _ = await transcoded(clip())
    assert first == again


@pytest.mark.parametrize("size", [(160, 120), (1280, 720)])
async def test_colours_stay(transcoded, pictures, size):
    """Green is still the same green, in small videos and in large ones, which mean other colours by the same numbers."""
    data = pictures("mkv", "libx264", [0, 40], width=size[0], height=size[1], colour=(40, 200, 40))
    _, webm = await transcoded(data, height=120)
    before, after = (frames(io.BytesIO(file))[0].array.mean(axis=(0, 1)) for file in (data, webm))
    assert after == pytest.approx(before, abs=3)


@pytest.mark.parametrize(
    ("options", "height", "shape"),
    [
        ({"width": 120, "height": 160, "rotation": 90}, None, (120, 160)),
        ({"width": 160, "height": 120, "rotation": 180}, 80, (107, 80)),
        ({"width": 161, "height": 121, "kind": "webm"}, None, (161, 121)),
        ({"width": 160, "height": 120}, 4320, (160, 120)),
        ({"width": 320, "height": 240}, 99, (132, 99)),
    ],
)
async def test_sizes(transcoded, clip, options, height, shape):
    """Turned pictures come upright, odd sizes stay, and nothing is enlarged."""
    result, webm = await transcoded(clip(duration=0.4, **options), height=height)
    assert (result["width"], result["height"]) == shape
    found, _ = numbers(webm)
    assert found == list(range(10))


async def test_the_bitrate_is_kept(transcoded, clip):
    """More bits a second make a larger file, about as large as they say."""
    data = clip(grain=20, duration=2.0, width=320, height=240, audio=False)
    small, _ = await transcoded(data, bitrate=200_000)
    large, _ = await transcoded(data, bitrate=800_000)
    assert small["size"] < 0.5 * large["size"]
    assert large["size"] == pytest.approx(200_000, rel=0.5)


async def test_a_clock_that_begins_late(transcoded, clip):
    """Where the file's own clock does not begin at 0, the click is still heard after a second."""
    for options in ({}, {"late_pictures": True}):
        _, webm = await transcoded(late(clip(gop=20), **options))
        heard = audio(io.BytesIO(webm), 0.1)
        click = 0.1 + int(np.argmax(np.abs(heard.samples[:, 0]))) / heard.rate
        assert click == pytest.approx(0.2 if options else 1.0, abs=0.03)
        assert numbers(webm)[0][-1] == 49


async def test_video_alone(transcoded, clip):
    """A video without sound has no track of it."""
    result, webm = await transcoded(clip(audio=False))
    assert result["audio_codec"] is None
    assert probe(io.BytesIO(webm)).audio is None


@pytest.mark.parametrize(
    "kind",
    [
        ("wav", "pcm_s16le", "stereo", 44_100),
        ("m4a", "aac", "5.1", 48_000),
        ("mp3", "libmp3lame", "mono", 22_050),
        ("flac", "flac", "stereo", 96_000),
    ],
)
async def test_sound_alone(transcoded, tone, kind):
    """Sound of any rate becomes Opus, with the click where it was; more than two channels are mixed down."""
    ending, codec, layout, rate = kind
    result, webm = await transcoded(tone(ending, codec, layout=layout, rate=rate))
    assert (result["video_codec"], result["width"], result["audio_codec"]) == (None, None, "opus")
    assert result["duration"] == pytest.approx(1.5, abs=0.1)
    heard = audio(io.BytesIO(webm))
    assert heard.channels == (1 if layout == "mono" else 2)
    click = int(np.argmax(np.abs(heard.samples[:, 0]))) / heard.rate
    assert click == pytest.approx(1.0, abs=0.03)


async def test_variable_frame_rate(transcoded, pictures):
    """Each frame keeps its own time, whatever lies between them."""
    times = [0, 10, 50, 300, 333, 900, 1900]
    result, webm = await transcoded(pictures("mkv", "libx264", times))
    found, shown = numbers(webm)
    assert found == list(range(7))
    assert shown == pytest.approx(np.array(times) / 1000)
    assert result["damaged_frames"] == 0


async def test_recordings_strung_together(transcoded, pictures):
    """Where a broadcast's clock starts again, what follows is appended, and nothing is lost."""
    data = pictures("ts", "libx264", range(0, 1600, 40))
    result, webm = await transcoded(data + data)
    found, times = numbers(webm)
    assert found == [*range(40), *range(40)]
    assert times[-1] == pytest.approx(1.56 * 2, abs=0.01)
    assert result["damaged_frames"] == 0


async def test_an_animation(transcoded, pictures):
    """An animated GIF is a video; a single picture is not."""
    _, webm = await transcoded(pictures("gif", "gif", range(0, 1000, 100), pixels="rgb8"))
    assert numbers(webm)[0] == list(range(10))
    for kind in ("png", "jpeg", "gif"):
        with pytest.raises(UnsupportedMediaError, match="picture"):
            await transcoded(samples.image(kind=kind))


async def test_wide_pixels_become_square(transcoded, pictures):
    """A video of wide pixels gets the width at which it is shown."""
    result, _ = await transcoded(pictures("mp4", "libx264", range(0, 400, 40), aspect=2))
    assert (result["width"], result["height"]) == (320, 120)


async def test_damaged_frames_are_counted(transcoded, clip):
    """What cannot be decoded is left out and counted, and the rest is there, at its own time."""
    data = bytearray(clip(audio=False, duration=4.0, grain=10, b_frames=0))
    start = data.index(b"mdat") + 4
    middle = start + (len(data) - start) * 3 // 8
    data[middle : middle + 2500] = bytes(2500)
    result, webm = await transcoded(bytes(data))
    assert 0 < result["damaged_frames"] < 50
    found, times = numbers(webm)
    assert found[:25] == list(range(25))
    assert found[-25:] == list(range(75, 100))
    assert times[-1] == pytest.approx(99 / 25, abs=0.001)


async def test_content_that_is_cut_short(transcoded, clip):
    """A file that ends too early is an error, and not a video that is shorter."""
    data = clip()
    with pytest.raises(CorruptContentError):
        await transcoded(data[: len(data) // 2])


async def test_a_file_that_gets_too_large(transcoded, clip, monkeypatch, node):
    """The temporary file is bounded; nothing is added then."""
    data = clip()
    monkeypatch.setattr(job, "MAX_SCRATCH", 20_000)
    with pytest.raises(TooLargeError, match=r"20\.?0? k|19\.5 KiB"):
        await transcoded(data)
    assert await node.pins() == []


async def test_a_disk_that_gets_full(transcoded, clip, monkeypatch):
    """Where the disk of temporary files has too little room, the work ends with what would help."""
    monkeypatch.setattr(job, "MIN_FREE", 1 << 62)
    monkeypatch.setattr(job, "CHECK_FREE_EVERY", 10_000)
    with pytest.raises(DiskFullError, match="TMPDIR"):
        await transcoded(clip())
