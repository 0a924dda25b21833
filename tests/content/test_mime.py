"""MIME types: the bytes win where they are certain, nothing active gets through as passive, nothing raises."""

import gzip
import io
import json
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ipfs_stream_nb.content.mime import OCTET_STREAM, SNIFF_BYTES, guess, inline_allowed


def image(kind):
    """A small picture, written by Pillow."""
    out = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(out, kind)
    return out.getvalue()


def archive():
    """A ZIP archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as writer:
        writer.writestr("a", "b")
    return out.getvalue()


@pytest.mark.parametrize(
    ("kind", "mime_type"),
    [
        ("PNG", "image/png"),
        ("JPEG", "image/jpeg"),
        ("GIF", "image/gif"),
        ("WEBP", "image/webp"),
        ("BMP", "image/bmp"),
        ("TIFF", "image/tiff"),
        ("ICO", "image/vnd.microsoft.icon"),
        ("JPEG2000", "image/jp2"),
        ("AVIF", "image/avif"),
    ],
)
def test_pictures_written_by_pillow(kind, mime_type):
    """Every raster format is known by its bytes, under no name and under a lying one, and is passive."""
    data = image(kind)
    assert guess(data) == guess(data, "page.html") == mime_type
    assert inline_allowed(mime_type)


@pytest.mark.parametrize(
    ("container", "codec", "mime_type"),
    [
        ("mp4", "libx264", "video/mp4"),
        ("mov", "libx264", "video/quicktime"),
        ("webm", "libvpx", "video/webm"),
        ("matroska", "libx264", "video/x-matroska"),
        ("mpegts", "mpeg2video", "video/mp2t"),
        ("avi", "mpeg4", "video/x-msvideo"),
        ("ipod", "aac", "audio/mp4"),
        ("webm", "libopus", "audio/webm"),
        ("ogg", "libopus", "audio/ogg"),
        ("mp3", "libmp3lame", "audio/mpeg"),
        ("adts", "aac", "audio/aac"),
        ("wav", "pcm_s16le", "audio/wav"),
        ("flac", "flac", "audio/flac"),
        ("aiff", "pcm_s16be", "audio/aiff"),
    ],
)
def test_media_written_by_ffmpeg(container, codec, mime_type):
    """Real files of every usual media format are known by their bytes alone, and are passive."""
    av = pytest.importorskip("av")
    import numpy as np  # noqa: PLC0415

    out = io.BytesIO()
    options = {"write_xing": "0", "id3v2_version": "0"} if container == "mp3" else {}
    with av.open(out, "w", format=container, options=options) as target:
        if mime_type.startswith("video"):
            stream = target.add_stream(codec, rate=25)
            stream.width = stream.height = 64
            frames = [av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8)) for _ in range(10)]
        else:
            stream = target.add_stream(codec, rate=48000)
            frames = []
            for index in range(40):
                layout = "stereo"
                silence = np.zeros((2, stream.frame_size or 1024), np.float32)
                frame = av.AudioFrame.from_ndarray(silence, "fltp", layout)
                frame.sample_rate, frame.pts = 48000, index * silence.shape[1]
                frames.append(frame)
        for frame in frames:
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    assert guess(out.getvalue()) == guess(out.getvalue(), "x.txt") == mime_type
    assert inline_allowed(mime_type)


@pytest.mark.parametrize(
    ("data", "mime_type"),
    [
        (b"<!DOCTYPE html><p>x", "text/html"),
        (b"\n\t <HTML><body>", "text/html"),
        (b"\xef\xbb\xbf<script>alert(1)</script>", "text/html"),
        ("<script>".encode("utf-16"), "text/html"),
        (b"<!-- a --><img src=x onerror=alert(1)>", "text/html"),
        (b"<x-foo><script>alert(1)</script>", "text/html"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "image/svg+xml"),
        (b"<?xml version='1.0'?><!-- c --><svg>", "image/svg+xml"),
        (b"<?xml version='1.0'?><x:svg xmlns:x='http://www.w3.org/2000/svg'>", "image/svg+xml"),
        (b"<!DOCTYPE svg PUBLIC '-//W3C//DTD SVG 1.1//EN'><svg/>", "image/svg+xml"),
        (b"<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'>", "application/xhtml+xml"),
        (b"<?xml version='1.0'?><rss>", "application/xml"),
        (b"<?xml-stylesheet href='x.xsl'?><a/>", "application/xml"),
        (b"%PDF-1.7\n%\xff\xff", "application/pdf"),
        (b"  %PDF-1.7\n%\xff\xff", "application/pdf"),
        (b"\0\1\2\3junk%PDF-1.7\n", "application/pdf"),
        (b"\0asm\1\0\0\0", "application/wasm"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://x/", "application/vnd.apple.mpegurl"),
    ],
)
@pytest.mark.parametrize("name", ["", "clip.mp4", "photo.jpg", "notes.txt", "data.json"])
def test_active_content_is_recognised_under_any_name(data, mime_type, name):
    """HTML, SVG, XML, PDF, wasm and playlists stay what they are, whatever they are called: never in place."""
    assert guess(data, name) == mime_type
    assert not inline_allowed(mime_type)


@pytest.mark.parametrize(
    ("data", "name", "mime_type"),
    [
        (b"hello\n", "", "text/plain; charset=utf-8"),
        ("grüße\n".encode(), "a.txt", "text/plain; charset=utf-8"),
        ("grüße\n".encode()[:3], "", "text/plain; charset=utf-8"),
        ("grüße\n".encode("latin-1"), "a.txt", "text/plain"),
        ("grüße".encode("utf-16"), "", "text/plain; charset=utf-16"),
        (b"hello\n", "clip.mp4", "text/plain; charset=utf-8"),
        (b"ffconcat version 1.0\nfile '/etc/passwd'\n", "clip.mp4", "text/plain; charset=utf-8"),
        (b"alert(1)", "x.js", "text/javascript; charset=utf-8"),
        (b"alert(1)", "x.mjs", "text/javascript; charset=utf-8"),
        (b"body{}", "x.css", "text/css; charset=utf-8"),
        (b"just words", "x.html", "text/html"),
        (b"just words", "x.svg", "image/svg+xml"),
        (b"<config/>", "x.xml", "application/xml"),
        (b"<config/>", "", "text/plain; charset=utf-8"),
        (b"<?xml version='1.0'?><rss>", "feed.rss+xml", "application/xml"),
        (b"if a <3: pass", "", "text/plain; charset=utf-8"),
        (b"a,b\n1,2\n", "t.csv", "text/csv; charset=utf-8"),
        (b"# Title", "README.md", "text/markdown; charset=utf-8"),
        (b'{"a": 1}', "", "application/json"),
        (b'{"a": 1}', "x.ipynb", "application/x-ipynb+json"),
        (b'{"a": 1}', "x.mp4", "application/json"),
        (b'{"a": ', "x.json", "application/json"),
        (b"[" * SNIFF_BYTES, "", "text/plain; charset=utf-8"),
        (b"WEBVTT\n\n00:00.000 --> 00:01.000\nhi", "", "text/vtt; charset=utf-8"),
        (b"", "clip.mp4", "video/mp4"),
        (b"", "", OCTET_STREAM),
        (b"\1\2\3\4 unknown", "", OCTET_STREAM),
        (b"\1\2\3\4 unknown", "x.html", OCTET_STREAM),
        (b"\1\2\3\4 unknown", "x.txt", OCTET_STREAM),
        (b"\1\2\3\4 unknown", "clip.webm", "video/webm"),
        (b"PAR1" + b"\0" * 20, "x.parquet", "application/vnd.apache.parquet"),
        (gzip.compress(b"x", mtime=0), "x.txt", "application/gzip"),
        (archive(), "x.zip", "application/zip"),
        (archive(), "x.html", "application/zip"),
        (archive(), "x.docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        (b"\x7fELF" + b"\0" * 60, "", "application/x-elf"),
        (b"\xff\xfb\x00\x00\x00\x00\x00", "", OCTET_STREAM),
    ],
)
def test_text_and_names(data, name, mime_type):
    """Text is told from binary, a textual name refines text only, and an unknown binary keeps a binary name."""
    assert guess(data, name) == mime_type


def test_puremagic_knows_what_the_own_rules_do_not():
    """A format of its table (OpenEXR is one) is found, and one of its short matches does not beat the name."""
    assert guess(b"v/1\1" + b"\2\0\0\0" * 30) != OCTET_STREAM
    assert guess(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 60, "x.doc") == "application/msword"


@settings(max_examples=500)
@given(
    st.one_of(
        st.binary(max_size=600),
        st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.tuples(
            st.sampled_from(
                [b"\xff\xfb", b"\xff\xf1", b"\0\0\0\x18ftyp", b"RIFF", b"\x1aE\xdf\xa3", b"<?xml", b"[{"]
            ),
            st.binary(max_size=100),
        ).map(b"".join),
    ),
    st.text(max_size=20),
)
def test_no_bytes_and_no_name_raise(head, name):
    """Whatever the bytes and the name, the answer is a well-formed type (RFC 9110, section 8.3.1)."""
    mime_type = guess(head, name)
    major, _, minor = mime_type.partition(";")[0].partition("/")
    assert major.isascii()
    assert major.isalpha()
    assert minor
    assert mime_type.isprintable()


@settings(max_examples=300)
@given(st.binary(max_size=40), st.sampled_from([b"<html>", b"<script>", b"<svg>", b"<iframe src=//x>"]))
def test_what_begins_as_markup_is_never_shown_in_place(after, tag):
    """However it goes on, text that begins with an active element is not passive."""
    if b"\0" not in after:
        assert guess(tag + after, "x.png") == guess(tag + after) or not inline_allowed(guess(tag + after))
    head = tag + after.decode("latin-1").encode()
    mime_type = guess(head, "clip.mp4")
    binary = any(byte < 32 and byte not in b"\t\n\f\r\x1b" for byte in head)
    assert binary or not inline_allowed(mime_type)


@pytest.mark.parametrize(
    "mime_type",
    [
        "text/html",
        "image/svg+xml",
        "application/pdf",
        "text/javascript",
        OCTET_STREAM,
        "inode/symlink",
        "",
        "garbage",
    ],
)
def test_only_the_list_is_shown_in_place(mime_type):
    """Active, unknown and nonsense types are downloads; parameters and case do not matter for passive ones."""
    assert not inline_allowed(mime_type)
    assert inline_allowed("Text/Plain; charset=utf-8")
    assert inline_allowed("application/json")


def test_only_the_head_counts():
    """Bytes after SNIFF_BYTES change nothing, so that a caller may give the whole file."""
    data = json.dumps(["x" * 10] * 1000).encode()
    assert guess(data, "x.json") == guess(data[:SNIFF_BYTES], "x.json") == "application/json"
    assert guess(b"a" * SNIFF_BYTES + b"\0") == "text/plain; charset=utf-8"
