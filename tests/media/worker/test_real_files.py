"""Files that others' programs have written, through a worker. docs/formats.md says what came of which.

    IPFS_STREAM_REAL_FILES=folder pytest -s tests/media/worker/test_real_files.py

plays every file of a folder, and prints what became of it. Those in `files` show the samples' pattern, written by libtheora,
libvpx and libvorbis in GStreamer 1.22: PyAV has no encoder for the first and the last.
"""

import io
import os
from pathlib import Path

import av
import pytest

from ipfs_stream_nb.errors import IPFSStreamError, UnsupportedMediaError
from ipfs_stream_nb.media.frames import frames

FILES = Path(__file__).parent / "files"
FOLDER = os.environ.get("IPFS_STREAM_REAL_FILES")


@pytest.mark.parametrize(
    ("name", "codec", "passes"), [("theora_vorbis.ogv", "h264", False), ("vp8_vorbis.webm", "vp8", True)]
)
async def test_files_of_others(name, codec, passes, open_clip, take, peer):  # noqa: PLR0917  # what it is run with
    """Each picture at its time, from the beginning and from the middle, and the clicks on the second."""
    data = (FILES / name).read_bytes()
    source = await open_clip(data)
    assert (source.info.video.codec, source.info.video.passthrough) == (codec, passes)
    assert source.info.audio.source_codec == "vorbis"
    packets = await take(source, "video")
    assert [packet.time for packet in packets] == pytest.approx(frames(io.BytesIO(data)).times, abs=1e-3)
    assert [number for _, number, _ in peer.shown(packets, codec)] == list(range(75))
    late = [number for _, number, _ in peer.shown(await take(source, "video", 2.0), codec)]
    assert late == list(range(late[0], 75))
    assert late[0] <= 50 if passes else late[0] == 50
    assert peer.clicks(peer.heard(await take(source, "audio"))) == pytest.approx([0, 1, 2], abs=0.007)
    assert source.damaged == 0


async def test_video_with_surround_sound(open_clip, take, peer):
    """What films have: H.264 with B-frames and AAC 5.1 in MP4."""
    data = (FILES / "vp8_vorbis.webm").read_bytes()
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as container, av.open(file, "w", format="mp4") as output:
        picture, sound = output.add_stream("libx264", 25), output.add_stream("aac", 48_000, layout="5.1")
        picture.width, picture.height, picture.pix_fmt = 160, 120, "yuv420p"
        picture.codec_context.options = {"bf": "3"}
        resampler = av.AudioResampler("fltp", "5.1", 48_000)
        for frame in container.decode(video=0, audio=0):
            if isinstance(frame, av.VideoFrame):
                frame.pict_type = 0
                output.mux(picture.encode(frame))
            else:
                for one in resampler.resample(frame):
                    output.mux(sound.encode(one))
        output.mux(picture.encode(None))
        output.mux(sound.encode(None))
    source = await open_clip(file.getvalue())
    assert not source.info.video.passthrough
    shown = peer.shown(await take(source, "video"), "h264")
    assert [number for _, number, _ in shown] == list(range(75))
    assert peer.clicks(peer.heard(await take(source, "audio")))[1:] == pytest.approx([1, 2], abs=0.007)


@pytest.mark.parametrize(
    "head", [b"FWS\x09", b"\x2eRMF\x00\x00\x00\x12", b"DSD \x1c"], ids=["Flash program", "RealMedia", "DSD"]
)
async def test_formats_that_are_not_opened(head, open_clip):
    """Rare formats, whose demuxers stay shut, are refused in words."""
    with pytest.raises(UnsupportedMediaError, match=r"supported format|not opened here"):
        await open_clip(head + bytes(4000))


def files_of(folder):
    return sorted(one for one in Path(folder).rglob("*") if one.is_file())


@pytest.mark.skipif(FOLDER is None, reason="IPFS_STREAM_REAL_FILES names no folder of files to play")
@pytest.mark.timeout(3600)
async def test_folder(open_clip, take, capsys):
    """Each file plays to its end, or there is an error of ours that says why not."""
    for path in files_of(FOLDER):
        row = [str(path.relative_to(FOLDER))]
        try:
            source = await open_clip(path.read_bytes())
            for track in filter(None, (source.info.video, source.info.audio)):
                packets = await take(source, track.kind)
                times = [packet.time for packet in packets]
                assert times == sorted(times)
                how = "packets" if track.passthrough else "transcoded"
                row.append(f"{track.source_codec} {how}: {len(packets)} to {times[-1] if times else 0:.2f} s")
            row.append(f"{source.damaged} damaged")
            await source.close()
        except IPFSStreamError as error:
            row.append(f"{type(error).__name__}: {error}")
        with capsys.disabled():
            print(" | ".join(row), flush=True)
