"""Sample media: what is drawn can be read, and what cannot be made is refused."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ipfs_stream_nb import samples
from ipfs_stream_nb.errors import BadRequestError, NotFoundError
from ipfs_stream_nb.media.pattern import MAX_NUMBER, FramePainter, read_frame_number, timecode


@settings(max_examples=60, deadline=None)
@given(
    number=st.integers(0, MAX_NUMBER),
    width=st.integers(64, 400),
    height=st.integers(64, 400),
    scale=st.floats(0.5, 2),
)
def test_number_is_read_from_any_size_and_scale(number, width, height, scale):
    """The blocks carry each number in pictures of any shape, and through scaling."""
    picture = FramePainter(width, height, Fraction(30)).paint(number)
    assert read_frame_number(picture) == number
    size = max(round(width * scale), 48), max(round(height * scale), 48)
    assert read_frame_number(np.asarray(Image.fromarray(picture).resize(size))) == number


@pytest.mark.parametrize("quality", [10, 50])
def test_number_survives_lossy_coding(quality):
    """A badly compressed JPEG of a small frame can still be read, in grey too."""
    buffer = io.BytesIO()
    Image.fromarray(FramePainter(96, 64, Fraction(30)).paint(54_321)).convert("RGB").save(
        buffer, "JPEG", quality=quality
    )
    picture = Image.open(buffer)
    assert read_frame_number(np.asarray(picture)) == 54_321
    assert read_frame_number(np.asarray(picture.convert("L"))) == 54_321


def test_other_pictures_have_no_number():
    """Noise, plain colours, turned and cut frames give None, not a wrong number."""
    noise = np.random.default_rng(1).integers(0, 256, (200, 90, 120, 3), dtype=np.uint8)
    assert {read_frame_number(picture) for picture in noise} == {None}
    assert read_frame_number(np.zeros((100, 100, 3), np.uint8)) is None
    assert read_frame_number(np.zeros(5)) is None
    frame = FramePainter(160, 120, Fraction(30)).paint(7)
    assert read_frame_number(frame[::-1]) is None
    assert read_frame_number(frame[:, ::-1]) is None
    assert read_frame_number(frame[:-20]) is None


@pytest.mark.parametrize(
    ("time", "text"), [(0, "00:00:00.000"), (Fraction(154, 30), "00:00:05.133"), (3661.5, "01:01:01.500")]
)
def test_time_code_is_cut_to_the_millisecond(time, text):
    """The time code never shows a time that has not come yet."""
    assert timecode(time) == text


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_video_is_what_was_asked_for(tmp_path, kind):
    """Kind, size, rate, length, keyframes and sound, written to a path that is returned."""
    path = samples.video(
        tmp_path / f"a.{kind}",
        kind=kind,
        width=128,
        height=96,
        duration=1.2,
        frame_rate=Fraction(30000, 1001),
        gop=9,
    )
    assert isinstance(path, Path)
    with av.open(str(path)) as container:
        video, sound = container.streams
        assert (video.width, video.height) == (128, 96)
        assert float(video.average_rate) == pytest.approx(29.97, abs=0.01)
        assert (sound.rate, sound.layout.name) == (48_000, "stereo")
        packets = [packet.is_keyframe for packet in container.demux(video) if packet.size]
        assert len(packets) == 36
        assert [n for n, key in enumerate(packets) if key] == [0, 9, 18, 27]
        container.seek(0)
        found = [read_frame_number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video)]
    assert found == list(range(36))


def test_options_of_mp4_hold():
    """faststart moves the index to the front, b_frames=0 leaves none, audio=False has no sound."""
    options = {"width": 64, "height": 64, "duration": 0.6, "audio": False}
    front, back = samples.video(**options), samples.video(**options, faststart=False, b_frames=0)
    assert front.find(b"moov") < front.find(b"mdat")
    assert back.find(b"moov") > back.find(b"mdat")
    with av.open(io.BytesIO(back)) as container:
        assert len(container.streams) == 1
        assert all(packet.pts == packet.dts for packet in container.demux(video=0) if packet.size)


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_colours_come_back(kind):
    """Packets alone, as WebRTC sends them, give the colours that were painted: VP8 is BT.601, H.264 tells its own."""
    data = samples.video(kind=kind, width=320, height=240, duration=0.1, bit_rate=4_000_000, audio=False)
    with av.open(io.BytesIO(data)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        decoder = av.CodecContext.create(container.streams.video[0].codec_context.name, "r")
        decoder.extradata = container.streams.video[0].codec_context.extradata
    frame = [*(one for packet in packets for one in decoder.decode(packet)), *decoder.decode(None)][0]
    matrix = "ITU709" if frame.colorspace == 1 else "ITU601"  # unspecified in VP8
    shown = frame.reformat(format="rgb24", src_colorspace=matrix).to_ndarray().astype(int)
    painted = FramePainter(320, 240, Fraction(30)).paint(0)[..., :3].astype(int)
    assert np.abs((shown - painted).mean(axis=(0, 1))).max() < 2.5


def test_grain_and_bit_rate_make_large_files():
    """A wanted bit rate is reached with grain, within a third."""
    data = samples.video(width=320, height=240, duration=3, grain=40, bit_rate=2_000_000, audio=False)
    assert len(data) * 8 / 3 == pytest.approx(2_000_000, rel=0.33)


def test_same_call_gives_the_same_bytes():
    """Samples are the same bytes each time, and so is their CID."""
    options = {"width": 64, "height": 64, "duration": 0.4}
    assert samples.video(**options) == samples.video(**options)
    assert samples.image(width=64, height=64) == samples.image(width=64, height=64)


def test_odd_sizes_are_made_where_the_codec_can():
    """VP8 takes odd sizes."""
    data = samples.video(kind="webm", width=65, height=67, duration=0.2)
    with av.open(io.BytesIO(data)) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height) == (65, 67)
        assert read_frame_number(frame.to_ndarray(format="rgb24")) == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kind": "avi"}, "expected one of mp4, webm"),
        ({"width": 65}, "even sizes only; use 66×360, or kind='webm'"),
        ({"width": 10}, "sides of 64 to 8192"),
        ({"height": 10_000}, "sides of 64 to 8192"),
        ({"duration": 0}, "duration=0"),
        ({"duration": float("nan")}, "duration=nan"),
        ({"duration": 1e9}, "at most 16777215 frames"),
        ({"frame_rate": 0}, "frame_rate=0"),
        ({"gop": 0}, "gop=0"),
        ({"rotation": 45}, "rotation=45"),
        ({"rotation": 90, "kind": "webm"}, "rotation=90"),
        ({"grain": 99}, "grain=99"),
        ({"b_frames": -1}, "b_frames=-1"),
        ({"bit_rate": 1}, "bit_rate=1"),
    ],
    ids=str,
)
def test_video_that_cannot_be_made_is_refused(options, text):
    """Each bad argument is named, with what would be right."""
    with pytest.raises(BadRequestError, match=text):
        samples.video(**options)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "bmp", "tiff"])
def test_image_is_a_frame_in_any_format(tmp_path, kind):
    """The format comes from the kind, or from the path's ending."""
    path = samples.image(tmp_path / f"a.{kind}", width=128, height=96, number=9)
    assert path.read_bytes() == samples.image(kind=kind, width=128, height=96, number=9)
    with Image.open(path) as picture:
        assert picture.format.lower() == kind
        assert read_frame_number(np.asarray(picture.convert("RGB"))) == 9
    with pytest.raises(BadRequestError, match=r"ends with \.png, \.jpeg"):
        samples.image(tmp_path / "a.svg")


def test_sound_clicks_on_the_second():
    """The track is loud at each whole second and quiet elsewhere, wherever it is cut."""
    track = samples.sound(0, 3 * 48_000)
    np.testing.assert_array_equal(samples.sound(50_000, 1000), track[50_000:51_000])
    assert np.flatnonzero(np.abs(track) > 0.7)[0] == 0
    assert abs(track[48_000]) > 0.7
    assert np.abs(track[47_000:48_000]).max() < 0.05


def test_table_is_parquet(tmp_path):
    """The table opens in pandas, with as many rows as asked for."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.read_parquet(samples.table(tmp_path / "a.parquet", rows=50))
    assert frame.shape == (50, 4)
    assert list(frame.columns) == ["time", "temperature", "humidity", "station"]
    assert samples.table(rows=50) == (tmp_path / "a.parquet").read_bytes()
    with pytest.raises(BadRequestError, match="rows=0"):
        samples.table(rows=0)


def test_table_without_pyarrow_says_what_to_install(monkeypatch):
    """Without the optional package the error names the extra."""
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(BadRequestError, match=r"ipfs_stream_nb\[lab\]"):
        samples.table()


@pytest.mark.parametrize(("name", "format_name"), [("a.webm", "webm"), ("a.MP4", "mp4"), ("a.m4v", "mp4")])
def test_the_kind_of_a_video_comes_from_its_path(tmp_path, name, format_name):
    """The file is what its name says."""
    with av.open(str(samples.video(tmp_path / name, width=64, height=64, duration=0.2))) as container:
        assert format_name in container.format.name


def test_a_path_that_says_nothing_is_refused(tmp_path):
    """An ending that is not known is answered with those that are; a kind helps."""
    for name in ("a.mov", "a"):
        with pytest.raises(BadRequestError, match=r"ends with \.mp4, \.webm"):
            samples.video(tmp_path / name)
    with pytest.raises(BadRequestError, match=r"ends with \.png, \.jpeg"):
        samples.image(tmp_path / "a.svg")
    assert samples.video(tmp_path / "a", kind="webm", width=64, height=64, duration=0.2) == tmp_path / "a"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("make", [samples.video, samples.image, samples.table])
def test_a_missing_folder_is_named(tmp_path, make):
    """It is told which folder is missing, and that a folder is not written to."""
    with pytest.raises(NotFoundError, match=r"there is no directory '.*nowhere' to write"):
        make(tmp_path / "nowhere" / ("a.mp4" if make is samples.video else "a.png"))
    (tmp_path / "d.mp4").mkdir()
    (tmp_path / "d.png").mkdir()
    with pytest.raises(BadRequestError, match="is a directory"):
        make(tmp_path / ("d.mp4" if make is samples.video else "d.png"))


def test_completion_offers_what_is_public():
    """dir() shows the samples, and nothing that the module is made with."""
    assert dir(samples) == sorted(samples.__all__)
