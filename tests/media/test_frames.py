"""Frames: the right ones, upright, in RGB, for few reads."""

import gc
import io
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from PIL import Image, ImageOps

from ipfs_stream_nb import samples
from ipfs_stream_nb.errors import BadRequestError, TooLargeError, UnsupportedMediaError
from ipfs_stream_nb.media.frames import Frame, Frames, frames, iter_frames
from ipfs_stream_nb.media.reader import CHUNK, MediaLimits


def numbers(pictures):
    return [samples.read_frame_number(picture) for picture in pictures.array]


@pytest.mark.parametrize("kind", ["mp4", "webm"])
@pytest.mark.parametrize("gop", [1, 12, 100])
def test_every_frame_comes_once_and_in_order(clip, kind, gop):
    """All frames of a clip, B-frames or not, each at its time."""
    found = frames(io.BytesIO(clip(kind=kind, gop=gop)))
    assert numbers(found) == list(range(75))
    assert found.array.shape == (75, 120, 160, 3)
    assert found.array.dtype == np.uint8
    assert found.times.dtype == np.float64
    np.testing.assert_allclose(found.times, np.arange(75) / 25, atol=0.0006)


@pytest.mark.parametrize("kind", ["mp4", "webm"])
@pytest.mark.parametrize(
    "coding", [{"gop": 12, "b_frames": 0}, {"gop": 12, "b_frames": 3}, {"gop": 75, "b_frames": 2}], ids=str
)
@pytest.mark.parametrize(
    ("start", "stop"), [(0, 0.2), (0.96, 1.2), (1.0, 1.04), (1.01, 1.1), (2.9, None), (2.5, 99)]
)
def test_range_begins_and_ends_at_the_exact_frame(clip, kind, coding, start, stop):
    """[start, stop) holds the frames whose times lie in it, wherever keyframes are."""
    found = frames(io.BytesIO(clip(kind=kind, **coding)), start, stop)
    inside = [n for n in range(75) if n / 25 >= start and (stop is None or n / 25 < stop)]
    assert numbers(found) == inside


@pytest.mark.parametrize(
    ("ending", "codec", "options"),
    [
        ("mp4", "libx264", {"options": {"x264-params": "open-gop=1:bframes=3:scenecut=0"}}),
        ("mp4", "libx264", {"muxer": {"movflags": "frag_keyframe+empty_moov"}}),
        ("mp4", "libx265", {"options": {"x265-params": "log-level=none:open-gop=1"}}),
        ("ts", "libx264", {}),
        ("ts", "mpeg2video", {"clock": 25, "times": range(75), "options": {"b": "3000000"}}),
        ("avi", "mpeg4", {"clock": 25, "times": range(75), "options": {"b": "3000000"}}),
        ("mkv", "libx264", {}),
        ("webm", "libvpx-vp9", {"options": {"deadline": "realtime", "cpu-used": "8"}}),
        ("webm", "libvpx", {"muxer": {"live": "1"}, "options": {"deadline": "realtime", "b": "1000000"}}),
    ],
    ids=["open gop", "fragmented", "hevc", "ts", "mpeg2 ts", "avi", "mkv", "vp9", "no index, no duration"],
)
def test_ranges_and_grids_are_exact_in_every_container(encode, ending, codec, options):
    """Seeking lands on the exact frame with open GOPs, in fragments, without an index, without a duration."""
    data = encode(ending, codec, **options)
    whole = frames(io.BytesIO(data))
    assert numbers(whole) == list(range(75))
    for start in (0.04, 0.48, 1.0, 1.96, 2.4):
        part = frames(io.BytesIO(data), start, start + 0.2)
        assert numbers(part) == list(range(round(start * 25), round(start * 25) + 5))
        np.testing.assert_allclose(part.times, part.times[0] + np.arange(5) / 25, atol=0.002)
    assert numbers(frames(io.BytesIO(data), every=0.5)) == [0, 12, 25, 37, 50, 62]
    assert numbers(frames(io.BytesIO(data), 0.5, 2.5, count=4)) == [12, 25, 37, 50]


def test_times_of_variable_frame_rate_are_kept(encode):
    """Each frame has its own time, and stays on screen until the next one."""
    times = [0, 40, 80, 500, 540, 1000, 1700, 1740, 2000]
    data = encode("mp4", "libx264", times=tuple(times))
    found = frames(io.BytesIO(data))
    assert numbers(found) == list(range(9))
    np.testing.assert_allclose(found.times * 1000, times, atol=0.5)
    assert numbers(frames(io.BytesIO(data), 0.08, 1.7)) == [2, 3, 4, 5]
    grid = frames(io.BytesIO(data), 0.45, 1.8, every=0.25)  # 0.45, 0.7, 0.95, 1.2, 1.45, 1.7
    assert numbers(grid) == [2, 4, 4, 5, 5, 6]


@pytest.mark.parametrize("offset", [-400, 1000, 123_456])
def test_time_counts_from_the_first_frame(encode, offset):
    """A stream that starts before or after 0 on its own clock starts at 0 in the content."""
    data = encode("mkv" if offset > 0 else "mp4", "libx264", times=tuple(range(offset, offset + 1000, 40)))
    found = frames(io.BytesIO(data), 0.4, 0.6)
    assert found.times[0] == pytest.approx(0.4, abs=0.001)
    first = 0 if offset > 0 else samples.read_frame_number(frames(io.BytesIO(data), count=1).array[0])
    assert numbers(found) == [first + 10, first + 11, first + 12, first + 13, first + 14]


def test_sparse_frames_are_sought_not_decoded(clip, counting):
    """A few frames of a long clip with short GOPs read a small part of it; a long GOP falls back to decoding."""
    options = {"width": 320, "height": 240, "duration": 20.0, "grain": 40, "bit_rate": 3_000_000}
    file = counting(clip(**options, gop=5))
    assert numbers(frames(file, every=4)) == [0, 100, 200, 300, 400]
    assert file.total < 0.5 * file.size
    long_gop = counting(clip(gop=500, duration=20.0))
    assert numbers(frames(long_gop, every=3)) == [0, 75, 150, 225, 300, 375, 450]


@pytest.mark.parametrize("options", [{"faststart": True}, {"faststart": False}, {"kind": "webm"}], ids=str)
@pytest.mark.parametrize("start", [None, 10.0])
def test_first_frame_takes_few_aligned_reads(clip, counting, options, start):
    """The first frame needs the head, the index and its GOP: within 2 % of 50 MB, and nothing from in between."""
    data = clip(width=320, height=240, duration=20.0, grain=40, bit_rate=3_000_000, gop=5, **options)
    file = counting(data)
    first = next(iter_frames(file, start))
    assert samples.read_frame_number(first.array) == round((start or 0) * 25)
    assert file.total <= 2**20
    assert len(file.reads) <= 16
    assert all(offset % CHUNK == 0 for offset, _ in file.reads)
    touched = {offset * 100 // len(data) for offset, length in file.reads if length}
    allowed = set(range(14)) | set(range(96, 100)) | (set(range(46, 64)) if start else set())
    assert touched <= allowed


def test_count_is_kept_and_frames_repeat_where_there_are_fewer(clip):
    """count= gives exactly that many frames, every= ends with the last frame."""
    data = clip(duration=0.2)
    assert numbers(frames(io.BytesIO(data), count=10)) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert numbers(frames(io.BytesIO(data), every=0.05, stop=5)) == [0, 1, 2, 3]
    assert numbers(frames(io.BytesIO(data), 0.1, count=1)) == [2]


def test_a_range_between_frames_is_empty(clip):
    """Nothing there is no error, and the array still has the frames' shape."""
    found = frames(io.BytesIO(clip(duration=0.2)), 0.17, 0.19, size=80)
    assert found.array.shape == (0, 60, 80, 3)
    assert len(found) == 0
    assert repr(found) == "Frames(n=0, 80×60)"
    assert found._repr_png_() is None
    assert list(iter_frames(io.BytesIO(clip(duration=0.2)), 0.17, 0.19)) == []


@pytest.mark.parametrize("wanted", [{}, {"stop": 60}, {"every": 1}, {"count": 2}])
def test_a_start_behind_the_end_is_told_the_end(clip, wanted):
    """Whoever starts behind the video's end is told where that is."""
    data = clip(duration=0.2)
    with pytest.raises(BadRequestError, match=r"start=50: the video ends at 0\.200 s"):
        frames(io.BytesIO(data), 50, **wanted)
    with pytest.raises(BadRequestError, match=r"start=50: the video ends at 0\.200 s"):
        list(iter_frames(io.BytesIO(data), 50, **wanted))


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_is_applied(clip, rotation):
    """A stored picture that is turned comes upright, at its displayed size."""
    found = frames(io.BytesIO(clip(rotation=rotation, width=176, height=96)), 1, 1.2)
    assert found.array.shape[1:3] == (96, 176)
    assert numbers(found) == [25, 26, 27, 28, 29]
    assert frames(io.BytesIO(clip(rotation=rotation, width=176, height=96)), count=1, size=88).array.shape[
        1:3
    ] == (48, 88)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_pictures_is_applied(orientation):
    """A JPEG's orientation gives what Pillow's own transposition gives, mirrored ones too."""
    picture = Image.open(io.BytesIO(samples.image(width=96, height=64, number=5)))
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(buffer, "JPEG", exif=exif, quality=95, subsampling=0)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(buffer)).convert("RGB"), dtype=int)
    found = frames(buffer).array[0]
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 3


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        (80, (60, 80)),
        ((80, 80), (60, 80)),
        ((300, 60), (60, 80)),
        (33, (25, 33)),
        ((641, 481), (481, 641)),
        (np.int64(40), (30, 40)),
    ],
)
def test_size_is_a_width_or_a_box_and_keeps_the_aspect(clip, size, shape):
    """Pictures are scaled to a width, or into a box; odd sizes are as good as even ones."""
    found = frames(io.BytesIO(clip()), 1, 1.1, size=size)
    assert found.array.shape[1:3] == shape
    if min(shape) >= 40:
        assert numbers(found) == [25, 26, 27]


@pytest.mark.parametrize(
    ("aspect", "shape"), [(Fraction(2), (60, 160)), (Fraction(1, 2), (240, 160)), (Fraction(99), (120, 160))]
)
def test_pixels_that_are_not_square_are_respected_in_a_size(aspect, shape):
    """A size is that of the picture as it is shown; absurd pixels count as square. Without a size, nothing changes."""
    output = io.BytesIO()
    with av.open(output, "w", format="mov") as container:
        stream = container.add_stream("mpeg4", 25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        container.mux(stream.encode(av.VideoFrame(160, 120, "yuv420p")))
        container.mux(stream.encode(None))
    assert frames(output, size=160).array.shape[1:3] == shape
    assert frames(output).array.shape[1:3] == (120, 160)


@pytest.mark.parametrize(
    ("codec", "pixels"), [("ffv1", "yuv420p"), ("ffv1", "yuv444p"), ("libvpx", "yuv420p")]
)
def test_odd_sizes_come_whole(encode, codec, pixels):
    """A source of odd width and height keeps them."""
    found = frames(io.BytesIO(encode("mkv", codec, width=161, height=121, pixels=pixels)), 1, 1.2)
    assert found.array.shape[1:3] == (121, 161)
    assert numbers(found) == [25, 26, 27, 28, 29]


@pytest.mark.parametrize(
    "pixels", ["yuv420p", "yuvj420p", "yuv422p10le", "yuv420p10le", "gray", "gray16le", "bgr0", "yuva420p"]
)
def test_every_pixel_format_becomes_8_bit_rgb(encode, pixels):
    """10-bit, full-range, grey and alpha video gives the same picture as the pattern that went in."""
    found = frames(
        io.BytesIO(encode("mkv", "mjpeg" if pixels == "yuvj420p" else "ffv1", pixels=pixels, times=(0, 40)))
    )
    expected = samples.FramePainter(160, 120, Fraction(25)).paint(1)[..., :3].astype(int)
    if pixels.startswith("gray"):
        expected = np.repeat((expected @ [0.299, 0.587, 0.114])[..., None], 3, axis=2)
    assert found.array.dtype == np.uint8
    assert np.abs(found.array[1] - expected).mean() < 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_pictures_of_every_mode_become_rgb(mode):
    """Palettes, grey, alpha, 16 bits and CMYK: one frame at 0, three channels."""
    if mode == "I;16":
        picture = Image.fromarray((np.linspace(0, 65535, 96 * 64).reshape(64, 96)).astype(np.uint16))
    else:
        picture = Image.open(io.BytesIO(samples.image(width=96, height=64))).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    found = frames(buffer, count=1)
    assert found.array.shape == (1, 64, 96, 3)
    assert found.times.tolist() == [0.0]
    if mode != "I;16":
        assert np.abs(found.array[0] - np.asarray(picture.convert("RGB"), dtype=int)).mean() < 6


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "bmp", "tiff"])
def test_picture_is_a_video_of_one_frame(kind):
    """Each format of picture gives its one frame, with every kind of selection that meets time 0."""
    data = samples.image(kind=kind, width=160, height=120, number=77)
    for selection in ({}, {"stop": 0.5}, {"every": 2.0}, {"count": 1}, {"size": 160}):
        assert numbers(frames(io.BytesIO(data), **selection)) == [77]
    assert len(frames(io.BytesIO(data), 1.0)) == 0


def test_animated_gif_seeks_by_decoding(encode):
    """A frame of a GIF is drawn over those before it, so that a later start must still decode them."""
    data = encode("gif", "gif", pixels="rgb8", clock=100, times=tuple(range(0, 300, 10)))
    assert numbers(frames(io.BytesIO(data), 1.5, 2.0)) == [15, 16, 17, 18, 19]
    assert numbers(frames(io.BytesIO(data), every=1)) == [0, 10, 20]


def test_colours_of_high_definition_are_those_of_bt709(encode):
    """Video of 720 lines without a mark is BT.709, as browsers take it; less is BT.601, PyAV's default."""
    red = np.zeros((720, 1280, 3), dtype=np.uint8)
    red[..., 0] = 200
    output = io.BytesIO()
    with av.open(output, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", 25)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        frame = av.VideoFrame.from_ndarray(red).reformat(format="yuv420p", dst_colorspace="ITU709")
        frame.colorspace = 2
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert np.abs(frames(output).array[0].astype(int) - red).max() <= 4


def test_iteration_is_lazy_and_lets_go(clip, counting):
    """iter_frames decodes as it is asked, gives what frames() gives, and frees the decoder when left early."""
    data = clip(width=320, height=240, duration=20.0, grain=40, bit_rate=3_000_000, gop=5)
    file = counting(data)
    walk = iter_frames(file)
    assert [next(walk).time for _ in range(3)] == pytest.approx([0, 0.04, 0.08])
    assert file.total < file.size / 4
    walk.close()
    assert not [thing for thing in gc.get_objects() if isinstance(thing, av.container.InputContainer)]
    whole = frames(io.BytesIO(data), 1, 2, every=0.3)
    for one, other in zip(iter_frames(io.BytesIO(data), 1, 2, every=0.3), whole, strict=True):
        assert one.time == other.time
        np.testing.assert_array_equal(one.array, other.array)


def test_limit_of_memory_names_what_would_fit(clip):
    """Too large a result is refused, in words that say how many frames fit and what to do."""
    limits = MediaLimits(max_result_bytes=10 * 160 * 120 * 3)
    with pytest.raises(TooLargeError, match=r"160×120 .* holds 10\. .*size=.*iter_frames"):
        frames(io.BytesIO(clip()), limits=limits)
    assert len(frames(io.BytesIO(clip()), 0, 0.4, limits=limits)) == 10
    assert len(frames(io.BytesIO(clip()), size=40, limits=limits)) == 75
    assert sum(1 for _ in iter_frames(io.BytesIO(clip()), limits=limits)) == 75
    live = clip(kind="webm", duration=1.0)
    with pytest.raises(TooLargeError, match="1000000 or more"):
        frames(io.BytesIO(live), count=1_000_000)


def test_more_frames_than_the_container_tells_are_all_given(encode):
    """A wrong or missing rate and duration make the array grow, not shrink."""
    data = encode("webm", "libvpx", muxer={"live": "1"}, options={"deadline": "realtime", "b": "1000000"})
    assert numbers(frames(io.BytesIO(data))) == list(range(75))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"start": -1}, "start=-1: expected seconds, from 0"),
        ({"start": float("nan")}, "start=nan"),
        ({"start": "soon"}, "start='soon'"),
        ({"start": 3, "stop": 2}, "stop=2 comes before start=3"),
        ({"stop": float("inf")}, "stop=inf"),
        ({"every": 0}, "every=0: expected seconds above 0"),
        ({"every": 1, "count": 2}, "every or count, not both"),
        ({"count": 0}, "count=0: expected a whole number from 1"),
        ({"count": 2.5}, "count=2.5"),
        ({"size": 0}, "size=0: expected a width"),
        ({"size": (10, 0)}, r"size=\(10, 0\)"),
        ({"size": "fit"}, "size='fit'"),
        ({"size": (1, 2, 3)}, r"size=\(1, 2, 3\)"),
        ({"size": 100_000}, "would give 100000×75000"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "call", [frames, lambda *a, **k: next(iter_frames(*a, **k))], ids=["frames", "iter_frames"]
)
def test_arguments_that_make_no_sense_are_named(clip, call, arguments, text):
    """A bad argument is refused, with its name, its value, and what would be right."""
    with pytest.raises(BadRequestError, match=text):
        call(io.BytesIO(clip()), **arguments)


def test_sound_alone_has_no_frames(encode, tmp_path):
    """A song is refused with the reason, not with an empty array."""
    path = tmp_path / "song.wav"
    with av.open(str(path), "w") as output:
        track = output.add_stream("pcm_s16le", samples.SAMPLE_RATE, layout="stereo")
        output.mux(track.encode(samples._audio_frame(0, 48_000)))
    with path.open("rb") as file, pytest.raises(UnsupportedMediaError, match="no video or picture"):
        frames(file)


def test_result_is_an_array_to_numpy_and_a_picture_to_notebooks(clip):
    """numpy, indexing, slices and iteration work; the reprs are short and stable."""
    found = frames(io.BytesIO(clip()), 0, 0.4)
    assert np.asarray(found) is found.array
    assert np.array(found, dtype=np.float32, copy=True).shape == (10, 120, 160, 3)
    assert isinstance(found[3], Frame)
    assert isinstance(found[2:5], Frames)
    assert found[2:5].array.base is not None
    assert [frame.time for frame in found] == found.times.tolist()
    assert repr(found) == "Frames(n=10, 160×120, 0.000 to 0.360 s)"
    assert repr(found[-1]) == "Frame(time=0.360, 160×120)"
    assert np.asarray(found[1]).shape == (120, 160, 3)
    assert Image.open(io.BytesIO(found._repr_png_())).height == 96
    assert Image.open(io.BytesIO(found[0]._repr_png_())).size == (160, 120)


def test_frames_are_let_go_of(clip):
    """Decoded frames do not wait for the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(found, VideoFrame) for found in gc.get_objects())
        assert sum(1 for _ in iter_frames(io.BytesIO(clip()))) == 75
        after = sum(isinstance(found, VideoFrame) for found in gc.get_objects())
    finally:
        gc.enable()
    assert after - before < 5
