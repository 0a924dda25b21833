"""Sound: at its sample, whatever the container and codec."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from ipfs_stream_nb import samples
from ipfs_stream_nb.errors import BadRequestError, TooLargeError, UnsupportedMediaError
from ipfs_stream_nb.media.audio import audio
from ipfs_stream_nb.media.reader import MediaLimits

RATE = samples.SAMPLE_RATE


def clicks(sound):
    """Times of the clicks in seconds of the content: where it first gets loud in each second."""
    loud = np.abs(sound.samples[:, 0]) > 0.4
    starts = np.flatnonzero(loud & ~np.concatenate([[False], loud[:-1]]))
    firsts = [
        place for index, place in enumerate(starts) if index == 0 or place - starts[index - 1] > RATE / 2
    ]
    return [sound.start + place / RATE for place in firsts]


def song(ending, codec, seconds=3, muxer=None, chunk=None):
    """A sound file of the samples' track."""
    output = io.BytesIO()
    with av.open(output, "w", format=ending, options=muxer or {}) as container:
        track = container.add_stream(codec, RATE, layout="stereo")
        step = chunk or RATE * seconds
        for first in range(0, RATE * seconds, step):
            container.mux(track.encode(samples._audio_frame(first, step)))
        container.mux(track.encode(None))
    return output.getvalue()


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_clicks_of_a_clip_are_on_the_second(clip, kind):
    """AAC in mp4 and Opus in webm: encoder delay is gone, sound and picture count from the same moment."""
    sound = audio(io.BytesIO(clip(kind=kind)))
    assert sound.samples.dtype == np.float32
    assert sound.samples.shape[1] == sound.channels == 2
    assert sound.rate == RATE
    assert sound.duration == pytest.approx(3.0, abs=0.03)
    assert clicks(sound) == pytest.approx([0, 1, 2], abs=0.001)
    assert np.abs(sound.samples).max() <= 1


@pytest.mark.parametrize("kind", ["mp4", "webm"])
@pytest.mark.parametrize("start", [0.37, 0.9, 1.0, 1.731])
def test_range_is_cut_to_the_sample(clip, kind, start):
    """A range is the same as the slice of the whole, its first sample being the one at start."""
    whole = audio(io.BytesIO(clip(kind=kind)))
    part = audio(io.BytesIO(clip(kind=kind)), start, start + 0.8)
    first = round(start * RATE)
    assert len(part) == round((start + 0.8) * RATE) - first
    assert part.start == start
    np.testing.assert_allclose(part.samples, whole.samples[first : first + len(part)], atol=2e-3)


@pytest.mark.parametrize(
    ("ending", "codec"),
    [("wav", "pcm_s16le"), ("wav", "pcm_u8"), ("wav", "pcm_s24le"), ("wav", "pcm_f32le"), ("flac", "flac"),
     ("matroska", "flac"), ("ogg", "libopus"), ("mp3", "libmp3lame"), ("ipod", "aac"), ("mov", "pcm_s16be")],
)  # fmt: skip
def test_sound_files_come_at_full_scale_and_in_time(ending, codec):
    """Integers and floats, lossless and lossy: ±1 is full scale, clicks are on the second, ranges are exact."""
    data = song(ending, codec, chunk=4800)
    whole = audio(io.BytesIO(data))
    assert clicks(whole) == pytest.approx([0, 1, 2], abs=0.001)
    assert np.abs(whole.samples).max() == pytest.approx(0.8, abs=0.12)
    if codec.startswith("pcm") or codec == "flac":
        tolerance = 1 / 64 if codec == "pcm_u8" else 1e-3
        np.testing.assert_allclose(whole.samples[:, 1], samples.sound(0, 3 * RATE), atol=tolerance)
    part = audio(io.BytesIO(data), 1.25, 2.5)
    np.testing.assert_allclose(part.samples, whole.samples[RATE * 5 // 4 : RATE * 5 // 2], atol=2e-3)


def test_what_the_file_leaves_out_is_silence():
    """A hole in the sound keeps what comes after it at its time."""
    output = io.BytesIO()
    with av.open(output, "w", format="matroska") as container:
        track = container.add_stream("pcm_s16le", RATE, layout="mono")
        for second in (0, 2):
            frame = av.AudioFrame.from_ndarray(
                np.full((1, RATE), 8192, np.int16), format="s16", layout="mono"
            )
            frame.sample_rate, frame.pts = RATE, second * RATE
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    sound = audio(output)
    assert sound.samples.shape == (3 * RATE, 1)
    assert [sound.samples[int(time * RATE), 0] for time in (0.5, 1.5, 2.5)] == [0.25, 0, 0.25]
    hole = audio(output, 1.25, 1.5).samples
    assert hole.shape == (RATE // 4, 1)
    assert not hole.any()


def test_one_time_stamp_for_several_frames_is_enough(clip):
    """A transport stream with eight AAC frames to a time stamp loses no sound, also behind a seek."""
    output, group = io.BytesIO(), 8
    with (
        av.open(io.BytesIO(song("adts", "aac", chunk=4800))) as sound,
        av.open(io.BytesIO(clip())) as film,
        av.open(output, "w", format="mpegts") as container,
    ):
        tracks = [container.add_stream_from_template(one.streams[0]) for one in (film, sound)]
        frames = [bytes(packet) for packet in sound.demux() if packet.size]
        packets = [packet for packet in film.demux(video=0) if packet.size]
        for packet in packets:
            packet.stream = tracks[0]
        for first in range(0, len(frames), group):
            packet = av.Packet(b"".join(frames[first : first + group]))
            packet.stream, packet.time_base = tracks[1], Fraction(1, RATE)
            packet.pts = packet.dts = first * 1024
            packets.append(packet)
        for packet in sorted(packets, key=lambda one: one.dts * one.time_base):
            container.mux(packet)
    for whole in (audio(output), audio(output, 1.5, 2.5)):
        assert whole.samples.any(axis=1).mean() > 0.99
    assert audio(output).duration == pytest.approx(3.0, abs=0.05)
    assert clicks(audio(output)) == pytest.approx([0, 1, 2], abs=0.03)  # a coder's delay is in them


def test_range_behind_the_end_is_empty(clip):
    """Nothing there is no error; a range over the end gives what there is."""
    assert audio(io.BytesIO(clip()), 2.5, 50).duration == pytest.approx(0.5, abs=0.03)
    assert audio(io.BytesIO(clip()), 1, 1).samples.shape == (0, 2)


def test_limit_of_memory_names_what_would_fit(clip):
    """Too long a sound is refused, and the text says how many seconds fit."""
    limits = MediaLimits(max_result_bytes=RATE * 2 * 4)
    with pytest.raises(TooLargeError, match=r"holds 1 s at 48000 Hz and 2 channels: ask for a shorter range"):
        audio(io.BytesIO(clip()), limits=limits)
    assert len(audio(io.BytesIO(clip()), 1, 2, limits=limits)) == RATE


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (None, "x"), (2, 1)])
def test_arguments_that_make_no_sense_are_named(clip, start, stop):
    """A bad time is refused by its name."""
    with pytest.raises(BadRequestError, match=r"st(art|op)="):
        audio(io.BytesIO(clip()), start, stop)


def test_video_without_sound_says_so(clip):
    """A silent film is refused with the reason."""
    with pytest.raises(UnsupportedMediaError, match="has no audio"):
        audio(io.BytesIO(clip(audio=False)))


def test_repr_is_short_and_numpy_takes_it(clip):
    """The repr tells length, channels and rate; numpy sees the samples."""
    sound = audio(io.BytesIO(clip()), 1, 1.5)
    assert repr(sound) == "Audio(0.500 s from 1.000 s, channels=2, rate=48000 Hz)"
    assert np.asarray(sound) is sound.samples


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_a_start_behind_the_end_is_told_the_end(kind):
    """Whoever starts behind the end is told where that is; a range without length before it is just empty."""
    data = samples.video(kind=kind, width=128, height=96, duration=1.0, frame_rate=10)
    for stop in (None, 60):
        with pytest.raises(BadRequestError, match=r"start=50: the sound ends at 1\.\d+ s"):
            audio(io.BytesIO(data), 50, stop)
    assert len(audio(io.BytesIO(data), 0.5, 0.5)) == 0
