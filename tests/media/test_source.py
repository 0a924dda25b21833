"""The hardened door: what is opened, what is refused, and what it costs."""

import io
import json
import os
import socket
import struct
import subprocess
import sys
import zlib
from types import SimpleNamespace

import av
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipfs_stream_nb import samples
from ipfs_stream_nb.errors import (
    BadRequestError,
    CorruptContentError,
    IPFSStreamError,
    NotFoundError,
    RetrievalTimeoutError,
    UnsupportedMediaError,
)
from ipfs_stream_nb.media.audio import audio
from ipfs_stream_nb.media.frames import frames
from ipfs_stream_nb.media.info import probe
from ipfs_stream_nb.media.reader import CHUNK, MediaLimits, Reader, check_counts
from ipfs_stream_nb.media.sheet import contact_sheet
from ipfs_stream_nb.media.source import open_media

TOO_LARGE = 16_000


def huge_png():
    """A PNG of 16000² pixels in a few kilobytes."""
    packer = zlib.compressobj(9)
    row = bytes(1 + TOO_LARGE // 8)
    data = b"".join(packer.compress(row) for _ in range(TOO_LARGE)) + packer.flush()
    header = struct.pack(">IIBBBBB", TOO_LARGE, TOO_LARGE, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def lying_webm(small):
    """A WebM whose header says 64×64, and whose VP8 keyframes say 16000×16000 (RFC 6386, 9.1)."""
    start, size = b"\x9d\x01\x2a", struct.pack("<HH", 64, 64)
    assert start + size in small
    return small.replace(start + size, start + struct.pack("<HH", TOO_LARGE, TOO_LARGE))


def index_bomb(mp4, count):
    """An MP4 whose index says: `count` samples of one byte each."""
    data = bytearray(mp4)
    sizes, durations, chunks = data.find(b"stsz"), data.find(b"stts"), data.find(b"stsc")
    data[sizes + 8 : sizes + 16] = struct.pack(">II", 1, count)
    data[durations + 12 : durations + 16] = struct.pack(">I", count)
    data[chunks + 16 : chunks + 20] = struct.pack(">I", count)
    return bytes(data)


def fragment_bomb(fragmented, count):
    """A fragmented MP4 whose first fragment says: `count` samples, all alike."""
    data = bytearray(fragmented)
    run = data.find(b"trun")
    data[run + 4 : run + 12] = struct.pack(">II", 1, count)
    return bytes(data)


@pytest.fixture
def listener():
    """A local port that notes whether anybody connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server


def was_called(server):
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize("call", [probe, frames, audio, contact_sheet])
@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", UnsupportedMediaError),
        (b"x", UnsupportedMediaError),
        (b"Dear reader,\nthis is a letter, not a film.\n" * 400, UnsupportedMediaError),
        (b"<html><script>alert(1)</script></html>", UnsupportedMediaError),
        (b"\0" * 100_000, UnsupportedMediaError),
        (b"\x00\x00\x00\x18ftypisom\0\0\2\0isomiso2" + b"\0" * 500, CorruptContentError),
        (b"\x1aE\xdf\xa3" + b"\xff" * 500, CorruptContentError),
    ],
    ids=["empty", "one byte", "text", "html", "zeros", "mp4 head", "webm head"],
)
def test_what_is_no_media_is_refused_with_a_text_for_users(call, content, error):
    """Foreign content gives one of our errors, and its text names no traceback or library."""
    with pytest.raises(error) as caught:
        call(io.BytesIO(content))
    assert "content" in str(caught.value)
    assert "av." not in str(caught.value)
    assert "Errno" not in str(caught.value)


def test_concat_script_opens_no_local_file(tmp_path, clip):
    """An ffconcat text that names a local video is refused, where PyAV by itself would decode that video."""
    (tmp_path / "secret.mp4").write_bytes(clip(duration=0.5))
    script = f"ffconcat version 1.0\nfile '{tmp_path}/secret.mp4'\n".encode()
    with av.open(io.BytesIO(script), options={"safe": "0"}) as container:
        assert container.streams.video, "the control: without our options the file is opened"
    with pytest.raises(UnsupportedMediaError, match="playlist"):
        frames(io.BytesIO(script))


@pytest.mark.parametrize("target", ["file", "url"])
def test_hls_playlist_opens_neither_files_nor_urls(tmp_path, clip, listener, target):
    """An m3u8 that names a local file or a URL is refused, and nobody is called."""
    local = tmp_path / "secret.ts"
    local.write_bytes(clip(duration=0.5))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.ts"
    entry = url if target == "url" else f"file://{local}"
    playlist = io.BytesIO(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{entry}\n#EXT-X-ENDLIST\n".encode())
    playlist.name = "film.m3u8"
    with pytest.raises(UnsupportedMediaError, match="The content is"):
        probe(playlist)
    assert not was_called(listener)
    if target == "url":  # the control: PyAV by itself goes there
        playlist.seek(0)
        with pytest.raises(av.error.FFmpegError):
            av.open(playlist, timeout=0.5)
        assert was_called(listener)


def test_protocol_whitelist_is_consumed_by_the_demuxer(tmp_path, clip):
    """Were a playlist's demuxer let in, protocol_whitelist=none alone would still keep its files shut."""
    (tmp_path / "secret.mp4").write_bytes(clip(duration=0.5))
    script = f"ffconcat version 1.0\nfile '{tmp_path}/secret.mp4'\n".encode()
    with pytest.raises(av.error.FFmpegError):
        av.open(io.BytesIO(script), container_options={"safe": "0", "protocol_whitelist": "none"})


def test_name_of_the_file_is_not_passed_on(tmp_path, clip):
    """PyAV sees no name, so that no demuxer can look for neighbours of the file."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip(duration=0.5))
    with path.open("rb") as file, open_media(file) as source:
        assert source.container.name == "<none>"


def test_hostile_sizes_cost_no_memory(tmp_path, clip, encode):
    """16000² pixels in a PNG or behind a lying header, and bombs in an MP4's index, are refused within 64 MiB."""
    small = clip(kind="webm", width=64, height=64, duration=0.2, audio=False)
    fragmented = encode("mp4", "libx264", muxer={"movflags": "frag_keyframe+empty_moov"})
    bombs = {
        "png": huge_png(),
        "webm": lying_webm(small),
        "stsz": index_bomb(clip(duration=0.5, audio=False), 30_000_000),
        "trun": fragment_bomb(fragmented, 30_000_000),
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    script = (
        "import json, resource, sys\n"
        "from ipfs_stream_nb.errors import IPFSStreamError\n"
        "from ipfs_stream_nb.media.frames import frames\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "out = {}\n"
        "for name in sys.argv[1:]:\n"
        "    before = peak()\n"
        "    try:\n"
        "        with open(name, 'rb') as file: frames(file); text = 'decoded'\n"
        "    except IPFSStreamError as error: text = type(error).__name__ + ': ' + str(error)\n"
        "    out[name] = (text, peak() - before)\n"
        "print(json.dumps(out))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, *bombs], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    results = json.loads(ran.stdout)
    assert "limit of 67,108,864 pixels" in results["png"][0]
    assert results["webm"][0].startswith(("UnsupportedMediaError", "CorruptContentError"))
    assert "index (stsz)" in results["stsz"][0]
    assert "index (trun)" in results["trun"][0]
    assert all(grown < 64 for _, grown in results.values()), results


@pytest.mark.parametrize("ending", ["mp4", "ts"])
def test_limit_of_pixels_holds_before_anything_is_decoded(encode, ending):
    """The limit stops a video by its parsed header, in MPEG-TS too, which has none of its own."""
    data = encode(ending, "libx264")
    with pytest.raises(UnsupportedMediaError, match=r"160×120: more than the limit of 10,000 pixels"):
        probe(io.BytesIO(data), MediaLimits(max_video_pixels=10_000))


@pytest.mark.parametrize("faststart", [True, False])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_mp4_is_corrupt(clip, faststart, share):
    """An MP4 that is cut short is an error, whether its index is there or not."""
    data = clip(faststart=faststart)
    with pytest.raises(CorruptContentError, match="cut short"):
        frames(io.BytesIO(data[: int(len(data) * share)]))


def test_stream_without_a_decoder_leaves_the_others(clip):
    """A video codec that nobody knows is told from no video at all, and the sound still comes."""
    data = clip(kind="webm").replace(b"V_VP8", b"V_ABC")
    with pytest.raises(UnsupportedMediaError, match="no video or picture that can be decoded here"):
        frames(io.BytesIO(data))
    assert audio(io.BytesIO(data), 1, 2).duration == 1
    info = probe(io.BytesIO(data))
    assert (info.kind, info.video, info.audio.codec) == ("audio", None, "opus")


@pytest.mark.parametrize("cut", [1, 3000, 20_000])
def test_truncated_webm_is_corrupt(clip, cut):
    """A WebM that is shorter than its header says is an error."""
    with pytest.raises(CorruptContentError, match="cut short"):
        frames(io.BytesIO(clip(kind="webm")[:-cut]))


def test_mp4_cut_between_two_frames_is_corrupt(clip):
    """A cut that leaves whole frames only is noticed too: the index names more of them."""
    data = clip(faststart=True, audio=False)
    with open_media(io.BytesIO(data)) as source:
        places = [packet.pos for packet in source.packets(source.video) if packet.size]
    with pytest.raises(CorruptContentError, match="cut short"):
        frames(io.BytesIO(data[: sorted(places)[30]]))


def test_content_shorter_than_its_size_is_corrupt(clip):
    """A file whose size lies gives an error, not a shorter video."""

    class Lying(io.BytesIO):
        def seek(self, offset, whence=0):
            return super().seek(offset, whence) + (200_000 if whence == 2 else 0)

    with pytest.raises(CorruptContentError, match="ends at byte"):
        frames(Lying(clip()[:-2000]))


@pytest.mark.parametrize("failure", [NotFoundError("block gone"), KeyboardInterrupt(), OSError("disk")])
def test_errors_of_the_file_come_out_as_they_are(clip, failure):
    """What read() raises is neither swallowed nor dressed up, an interrupt included."""

    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() >= CHUNK:
                raise failure
            return super().read(min(size, CHUNK))

    with pytest.raises(type(failure)) as caught:
        frames(Failing(clip(kind="webm", width=320, height=240)))
    assert caught.value is failure


def test_read_that_gives_too_much_is_cut(clip):
    """A file object that returns more than was asked for cannot overrun the demuxer's buffer."""

    class Generous(io.BytesIO):
        def read(self, size=-1):
            return super().read(size) + b"\xff" * 100_000

    assert len(frames(Generous(clip()), stop=0.2)) == 5


def test_work_without_result_is_stopped(clip):
    """Past stall_seconds of work without a frame, decoding ends with an error."""
    with pytest.raises(RetrievalTimeoutError, match="gave nothing in 0 s"):
        frames(io.BytesIO(clip()), limits=MediaLimits(stall_seconds=0))


def test_slow_reads_are_no_stall(clip, monkeypatch):
    """Waiting for the network does not count as work."""
    now = [100.0]  # time in which nothing but reading takes any
    monkeypatch.setattr("ipfs_stream_nb.media.reader.time", SimpleNamespace(monotonic=lambda: now[0]))

    class Slow(io.BytesIO):
        def read(self, size=-1):
            now[0] += 0.4
            return super().read(size)

    assert len(frames(Slow(clip()), stop=0.2, limits=MediaLimits(stall_seconds=0.39))) == 5


def test_other_objects_than_files_are_a_bad_request():
    """A path or bytes in the file's place are named in the error."""
    with pytest.raises(BadRequestError, match="not bytes"):
        probe(b"bytes")


def test_reader_gives_what_the_file_holds():
    """Any walk through the reader sees the file's bytes, in aligned reads that grow while reading goes straight on."""
    data = os.urandom(CHUNK * 9 + 1234)
    seen = []

    class Watched(io.BytesIO):
        def read(self, size=-1):
            seen.append((self.tell(), size))
            return super().read(size)

    reader = Reader(Watched(data), MediaLimits())
    parts = []
    while piece := reader.read(5000):
        parts.append(piece)
    assert b"".join(parts) == data
    assert all(offset % CHUNK == 0 for offset, _ in seen)
    assert [size // CHUNK for _, size in seen[:7]] == [1, 1, 1, 1, 2, 3, 0]
    reader.seek(-10, 2)
    assert (reader.read(100), reader.tell()) == (data[-10:], len(data))
    assert reader.seek(-1) == -1


def test_counts_without_a_table_are_compared_with_the_size():
    """A shared sample size, or a fragment's run, must fit into the content; tables speak for themselves."""
    honest = struct.pack(">I4sIII", 20, b"stsz", 0, 4, 250)
    check_counts(honest, 1000)
    with pytest.raises(CorruptContentError, match="stsz"):
        check_counts(honest, 999)
    check_counts(struct.pack(">I4sIII", 20, b"stsz", 0, 0, 2**31), 100)
    check_counts(struct.pack(">I4sII", 5000, b"trun", 0x200, 10_000), 100)
    with pytest.raises(CorruptContentError, match="trun"):
        check_counts(b"\0" * 50 + struct.pack(">I4sII", 16, b"trun", 0x1, 10_000), 100)
    check_counts(b"\xff" * 4 + b"stsz" + b"\xff" * 12, 100)  # by chance, in media data


@pytest.fixture(scope="module")
def seeds():
    options = {"width": 64, "height": 64, "duration": 0.4}
    return [
        samples.video(**options),
        samples.video(**options, kind="webm"),
        samples.image(width=64, height=64, kind="png"),
    ]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_media_gives_frames_or_an_error_of_ours(seeds, data):
    """Whatever bytes of a clip are changed, nothing but our errors comes out."""
    content = bytearray(data.draw(st.sampled_from(seeds)))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    for call in (probe, frames, audio):
        try:
            call(io.BytesIO(content[:cut]), limits=MediaLimits(max_pixels=2**20, max_video_pixels=2**20))
        except IPFSStreamError as error:
            assert str(error)  # noqa: PT017 - one of many outcomes


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=4000))
def test_random_bytes_give_an_error_of_ours(content):
    """Bytes without any meaning are refused, or decode to something: they never break anything."""
    try:
        probe(io.BytesIO(content))
    except IPFSStreamError as error:
        assert str(error)  # noqa: PT017 - the usual outcome
