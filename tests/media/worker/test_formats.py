"""Real files of many kinds through a worker, decoded as a peer does."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from ipfs_stream_nb import samples
from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.media.encoded import Rendition
from ipfs_stream_nb.media.frames import frames
from ipfs_stream_nb.media.source import MediaSource, open_media
from ipfs_stream_nb.media.worker.sound import Sound
from ipfs_stream_nb.media.worker.through import nal_types

PHONE = [0, 33, 70, 99, 210, 243, 280, 900, 933, 960, 1400, 1433, 2466, 2500, 2900]
"""Times of frames in ms, as uneven as a phone's."""


def song(ending, codec, layout="stereo", rate=48_000, *, options=None):
    """The samples' sound as a file."""
    file = io.BytesIO()
    with av.open(file, "w", format=ending) as output:
        track = output.add_stream(codec, rate, layout=layout)
        track.codec_context.options = options or {}
        wave = samples.sound(0, 48_000 * 3)[:: 48_000 // rate]
        channels = track.codec_context.layout.nb_channels
        frame = av.AudioFrame.from_ndarray(np.tile(wave, (channels, 1)), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        output.mux(track.encode(frame))
        output.mux(track.encode(None))
    return file.getvalue()


VIDEOS = {
    # name: (options of `encode`, whether it goes out as it is, size)
    "h264 without B-frames": (("mp4", "libx264", {"options": {"bf": "0"}, "audio": "aac"}), True, (160, 120)),
    "h264 in Matroska": (("mkv", "libx264", {"options": {"bf": "0"}}), True, (160, 120)),
    "h264 in a transport stream": (("ts", "libx264", {"options": {"bf": "0"}, "audio": "aac"}), True, (160, 120)),
    "h264 with B-frames": (("mp4", "libx264", {"audio": "aac"}), False, (160, 120)),
    "h264 4:4:4": (("mp4", "libx264", {"pixels": "yuv444p", "options": {"bf": "0"}}), False, (160, 120)),
    "h264 10-bit": (("mp4", "libx264", {"pixels": "yuv420p10le", "options": {"bf": "0"}}), False, (160, 120)),
    "h265 10-bit": (("mkv", "libx265", {"pixels": "yuv420p10le", "options": {"x265-params": "log-level=none"}}),
                    False, (160, 120)),
    "VFR without B-frames": (("mp4", "libx264", {"times": PHONE, "options": {"bf": "0"}}), True, (160, 120)),
    "VFR with B-frames": (("mp4", "libx264", {"times": PHONE}), False, (160, 120)),
    "vp8": (("webm", "libvpx", {"audio": "libopus", "options": {"deadline": "realtime"}}), True, (160, 120)),
    "vp9 of odd size": (("webm", "libvpx-vp9", {"width": 161, "height": 121,
                         "options": {"deadline": "realtime", "cpu-used": "8"}}), False, (160, 120)),
    "mpeg-4 in AVI": (("avi", "mpeg4", {"clock": 25, "times": list(range(75)), "audio": "libmp3lame"}),
                      False, (160, 120)),
    "mpeg-2 in a program stream": (("mpg", "mpeg2video", {"clock": 25, "times": list(range(75)), "audio": "mp2",
                                    "options": {"bf": "2", "qscale": "2"}}), False, (160, 120)),
    "wmv": (("wmv", "wmv2", {"options": {"qscale": "2"}}), False, (160, 120)),
    "prores": (("mov", "prores_ks", {"pixels": "yuv422p10le", "audio": "pcm_s16le"}), False, (160, 120)),
    "av1": (("webm", "libsvtav1", {"pixels": "yuv420p10le", "audio": "libopus", "options": {"preset": "12"}}),
            False, (160, 120)),
    "mjpeg": (("mkv", "mjpeg", {"pixels": "yuvj420p"}), False, (160, 120)),
    "flash": (("flv", "flv1", {"times": list(range(0, 3000, 40)), "options": {"qscale": "2"}}), False, (160, 120)),
}  # fmt: skip


@pytest.mark.parametrize("name", VIDEOS)
async def test_every_kind_of_video_plays(name, encode, open_clip, take, peer):
    """Each frame arrives, in order and at its own time; no B-frames; key frames carry what decoding them needs."""
    (ending, codec, options), passes, size = VIDEOS[name]
    try:
        av.Codec(codec, "w")
    except ValueError:
        pytest.skip(f"this PyAV has no encoder {codec}")
    data = encode(ending, codec, **options)
    wanted = frames(io.BytesIO(data)).times
    source = await open_clip(data)
    track = source.info.video
    assert (track.passthrough, track.width, track.height) == (passes, *size)
    assert track.codec == ("vp8" if codec == "libvpx" else "h264")
    packets = await take(source, "video")
    assert [packet.time for packet in packets] == pytest.approx(wanted, abs=1e-4)
    assert packets[0].keyframe
    seen = peer.shown(packets, track.codec)
    assert [number for _, number, _ in seen] == list(range(len(wanted)))
    assert "B" not in {kind for _, _, kind in seen}
    if track.codec == "h264":
        for packet in packets:
            assert packet.data.startswith((b"\0\0\0\1", b"\0\0\1"))
            assert packet.keyframe == ({5, 7, 8} <= set(nal_types(packet.data)))
    gaps = np.diff([packet.time for packet in packets if packet.keyframe])
    assert passes or max(gaps, default=0) <= 2.0 + max(np.diff(wanted))
    source._shared._shelves.clear()  # nothing is kept
    late = peer.shown(await take(source, "video", 1.7), track.codec)
    on_screen = max(number for number, time in enumerate(wanted) if time <= 1.7)
    assert [number for _, number, _ in late] == list(range(late[0][1], len(wanted)))
    assert late[0][1] <= on_screen if passes else late[0][1] == on_screen
    if source.info.audio:
        found = peer.clicks(peer.heard(await take(source, "audio")))
        late = 0.03 if ending == "avi" else 0.007  # AVI does not tell the delay of MP3's coder
        assert found == pytest.approx([0, 1, 2], abs=late)
    assert source.damaged == 0


SONGS = {
    "aac 5.1": ("mp4", "aac", "5.1", 48_000),
    "mp3": ("mp3", "libmp3lame", "stereo", 48_000),
    "flac": ("flac", "flac", "mono", 48_000),
    "wav": ("wav", "pcm_s16le", "stereo", 8_000),
    "ogg vorbis": ("ogg", "vorbis", "stereo", 48_000),
    "opus 5.1": ("ogg", "libopus", "5.1", 48_000),
    "adts": ("adts", "aac", "stereo", 48_000),
}


@pytest.mark.parametrize("name", SONGS)
async def test_every_kind_of_sound_plays(name, open_clip, take, peer):
    """Mere sound of any kind comes as Opus of 20 ms in stereo, its clicks on the second."""
    ending, codec, layout, rate = SONGS[name]
    options = {"strict": "experimental"} if codec == "vorbis" else {}
    source = await open_clip(song(ending, codec, layout, rate, options=options))
    assert source.info.video is None
    assert not source.info.audio.passthrough
    packets = await take(source, "audio")
    assert [packet.time for packet in packets] == pytest.approx([n / 50 for n in range(len(packets))])
    assert {packet.duration for packet in packets} == {0.02}
    early = (
        0.025 if codec == "vorbis" else 0.006 if ending != "adts" else 0.05
    )  # ADTS does not tell the coder's delay
    found = [time for time in peer.clicks(peer.heard(packets)) if 0.5 < time < 2.5]
    assert found == pytest.approx([1, 2], abs=early)
    with pytest.raises(BadRequestError, match="no video"):
        await take(source, "video")


def test_one_time_stamp_for_several_frames_of_sound(monkeypatch):
    """Where only the first has one, as in a transport stream of some makers, each frame gets the time at its place."""
    packets = MediaSource.packets

    def without_times(source, stream):
        for number, packet in enumerate(packets(source, stream)):
            packet.pts = packet.pts if number < 2 else None  # the first one is the delay of the coder
            packet.dts = None
            yield packet

    monkeypatch.setattr(MediaSource, "packets", without_times)
    with open_media(io.BytesIO(song("mp4", "aac"))) as source:
        times = [time for time, _ in Sound(source, lambda: None).frames()]
    assert len(times) > 100
    assert set(np.diff(times)) == {1024}


async def test_empty_packets_are_no_damage(open_clip, take, peer):
    """Ogg has packets with nothing in them, which repeat a picture or fill up: they cost nothing, not one frame after them."""
    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as output:
        track = output.add_stream("vorbis", 48_000, layout="stereo", options={"strict": "experimental"})
        for packet in [*track.encode(samples._audio_frame(0, 48_000 * 3)), *track.encode(None)]:
            output.mux(packet)
            empty = av.Packet(b"")
            empty.stream, empty.pts, empty.dts, empty.time_base = (
                track,
                packet.pts,
                packet.dts,
                packet.time_base,
            )
            output.mux(empty)
    source = await open_clip(file.getvalue())
    sound = peer.heard(await take(source, "audio"))
    assert source.damaged == 0
    assert len(sound) > 2.9 * 48_000


async def test_opus_goes_out_as_it_is(open_clip, take, peer):
    """Opus in Ogg is not encoded anew: its packets are the file's."""
    data = song("ogg", "libopus")
    source = await open_clip(data)
    assert source.info.audio.passthrough
    packets = await take(source, "audio")
    with av.open(io.BytesIO(data)) as container:
        own = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
    assert [packet.data for packet in packets] == own[-len(packets) :]
    assert peer.clicks(peer.heard(packets))[1:] == pytest.approx([1, 2], abs=0.005)


@pytest.mark.parametrize("rotation", [90, 180, 270])
async def test_rotated_video_stands_upright(rotation, clip, open_clip, take, peer):
    """What a player would have to turn is turned, and read by its frame number."""
    source = await open_clip(clip(rotation=rotation, b_frames=0, width=120, height=160, duration=1.0))
    assert (source.info.video.width, source.info.video.height) == (120, 160)
    assert not source.info.video.passthrough
    seen = peer.shown(await take(source, "video"), "h264")
    assert [number for _, number, _ in seen] == list(range(25))


async def test_cover_is_no_video(open_clip):
    """The picture of a song is not played."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as output:
        track = output.add_stream("libmp3lame", 48_000, layout="stereo")
        cover = output.add_stream("mjpeg", 1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        output.mux(cover.encode(av.VideoFrame(64, 64, "yuvj420p")))
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 48_000), np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 48_000
        output.mux(track.encode(frame))
        output.mux(track.encode(None))
        output.mux(cover.encode(None))
    info = (await open_clip(file.getvalue())).info
    assert (info.video, info.audio.source_codec) == (None, "mp3")


async def test_rendition_is_smaller_and_never_larger(clip, open_clip, take, peer):
    """A height asked for is had by a transcode; one that the source does not reach leaves it as it is."""
    source = await open_clip(clip(b_frames=0, width=320, height=240))
    small = await take(source, "video", rendition=Rendition(height=121, bitrate=200_000))
    decoder = av.CodecContext.create("h264", "r")
    frame = (decoder.decode(av.Packet(small[0].data)) + decoder.decode(None))[0]
    assert (frame.width, frame.height) == (160, 120)
    assert [number for _, number, _ in peer.shown(small, "h264")] == list(range(75))
    own = await take(source, "video")
    large = await take(source, "video", rendition=Rendition(height=1080))
    assert all(one is other for one, other in zip(own, large, strict=True))
    for wrong in (Rendition(height=0), Rendition(bitrate=1)):
        with pytest.raises(BadRequestError, match="expected"):
            await take(source, "video", rendition=wrong)


async def test_rendition_of_vp8_is_vp8(encode, open_clip, take, peer):
    """A peer that was promised one codec gets it in every size, and can begin each 2 s."""
    source = await open_clip(encode("webm", "libvpx", audio="libopus", options={"deadline": "realtime"}))
    small = await take(source, "video", 0.5, rendition=Rendition(height=90))
    seen = peer.shown(small, source.info.video.codec)
    assert [number for _, number, _ in seen] == list(range(12, 75))
    assert [packet.time for packet in small if packet.keyframe] == pytest.approx([0.48, 2.0], abs=0.002)


async def test_fast_frames_are_thinned_out(encode, open_clip, take):
    """Of 120 frames a second half are sent, evenly, when they are encoded."""
    source = await open_clip(encode("mkv", "mpeg4", times=list(range(0, 1000, 8)), clock=1000))
    times = [packet.time for packet in await take(source, "video")]
    assert 55 <= len(times) <= 62
    assert min(np.diff(times)) >= 0.015


async def test_pq_is_brought_to_a_usual_screen(open_clip, take):
    """White of 203 cd/m² in HDR, which a usual screen would show as a dull grey, becomes bright, and black stays black."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("libx265", 25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p10le"
        stream.codec_context.options = {
            "x265-params": "log-level=none:colorprim=9:transfer=16:colormatrix=9:bframes=0:lossless=1"
        }
        stream.codec_context.time_base = Fraction(1, 25)
        for time, level in enumerate((64, 573)):  # black, and 58 % of PQ
            picture = np.full((96, 64), 512, np.uint16)
            picture[:64] = level
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p10le")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    source = await open_clip(file.getvalue())
    packets = await take(source, "video")
    decoder = av.CodecContext.create("h264", "r")
    pictures = [f for p in packets for f in decoder.decode(av.Packet(p.data))] + decoder.decode(None)
    dark, white = (int(np.median(frame.to_ndarray()[:64])) for frame in pictures)
    assert dark <= 20
    assert 150 <= white <= 235
