"""Facts about media files, and how they are shown."""

import io
import re

import pytest

from ipfs_stream_nb import samples
from ipfs_stream_nb.media.info import AudioStreamInfo, VideoStreamInfo, probe


def test_clip_is_described_in_full(clip):
    """Everything that a clip was made with is told again."""
    data = clip(bit_rate=400_000)
    info = probe(io.BytesIO(data))
    assert (info.kind, info.format, info.size) == ("video", "mp4", len(data))
    assert info.duration == pytest.approx(3.0, abs=0.02)
    assert info.bit_rate == pytest.approx(len(data) * 8 / 3, rel=0.02)
    video, sound = info.streams
    assert isinstance(video, VideoStreamInfo)
    assert isinstance(sound, AudioStreamInfo)
    assert (video.codec, video.width, video.height, video.pixel_format) == ("h264", 160, 120, "yuv420p")
    assert (video.frame_rate, video.frames, video.rotation, video.pixel_aspect) == (25.0, 75, 0, 1.0)
    assert (sound.codec, sound.sample_rate, sound.channels) == ("aac", 48_000, 2)
    assert (info.video, info.audio) == (video, sound)


def test_webm_is_told_from_matroska(clip, encode):
    """One demuxer serves both; the codecs tell them apart."""
    info = probe(io.BytesIO(clip(kind="webm")))
    assert (info.format, info.video.codec, info.audio.codec) == ("webm", "vp8", "opus")
    assert probe(io.BytesIO(encode("mkv", "libx264"))).format == "matroska"


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_size_is_that_of_the_upright_picture(clip, rotation):
    """Width and height are those that frames() gives; rotation tells how the stored picture is turned."""
    video = probe(io.BytesIO(clip(rotation=rotation, width=176, height=96))).video
    assert (video.width, video.height, video.rotation) == (176, 96, rotation)


def test_transport_stream_tells_its_sound(encode):
    """MPEG-TS has no header for the sound: the first frame tells."""
    info = probe(io.BytesIO(encode("ts", "libx264", audio="aac")))
    assert (info.audio.sample_rate, info.audio.channels) == (48_000, 2)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "bmp", "tiff"])
def test_picture_has_no_duration(kind):
    """A picture is an image of one frame, without duration, rate or bit rate."""
    info = probe(io.BytesIO(samples.image(kind=kind, width=96, height=64)))
    assert (info.kind, info.format, info.duration, info.bit_rate) == ("image", kind, None, None)
    assert (info.video.width, info.video.height, info.video.frames, info.video.frame_rate) == (
        96,
        64,
        1,
        None,
    )


def test_reprs_are_stable_and_fit_every_theme(clip):
    """The text has no address in it; the table has a caption, row headers, and no colours of its own."""
    info = probe(io.BytesIO(clip()))
    assert re.fullmatch(
        r"MediaInfo\(video mp4, 3\.000 s, [\d,]+ bytes, video: h264 160×120, 25 fps, audio: aac 48000 Hz, channels: 2\)",
        repr(info),
    )
    table = info._repr_html_()
    assert "<caption>Video</caption>" in table
    assert table.count('<th scope="row"') == 6
    assert "color" not in table
    assert "background" not in table


def test_text_from_the_file_is_escaped(tmp_path, clip):
    """A language tag with markup in it stays text."""
    import av  # noqa: PLC0415

    path = tmp_path / "tagged.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", 25)
        stream.width = stream.height = 64
        stream.metadata["language"] = "<b>x"
        output.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        output.mux(stream.encode(None))
    with path.open("rb") as file:
        table = probe(file)._repr_html_()
    assert "<b>" not in table
    assert "&lt;b" in table


def test_probe_reads_little(clip, counting):
    """The facts of a large clip take its index and its first frame."""
    data = clip(width=320, height=240, duration=20.0, grain=40, bit_rate=3_000_000, gop=5)
    file = counting(data)
    probe(file)
    assert file.total <= 2**20
