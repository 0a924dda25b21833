"""MIME types by content first and by name second, and which of them a browser may be shown in place.

The bytes win over the name where they are certain: an `.mp4` that begins as HTML is text/html. The order is:
own rules for what this package deals in (fast, and nothing active slips through them), text, puremagic's
large table, the name, and application/octet-stream. Nothing here raises, whatever the bytes are.
"""

from __future__ import annotations

import codecs
import json
import mimetypes
import re
from functools import lru_cache
from typing import Final

SNIFF_BYTES: Final = 4096
"""How much of a file's start is looked at; more is ignored."""

OCTET_STREAM: Final = "application/octet-stream"

PASSIVE_TYPES: Final = frozenset(
    f"{major}/{minor}"
    for major, minors in {
        "audio": "aac aiff amr basic flac midi mp4 mpeg ogg wav webm",
        "image": "apng avif bmp gif heic jp2 jpeg jxl png tiff vnd.microsoft.icon webp",
        "video": "3gpp matroska mp2t mp4 mpeg ogg quicktime webm x-flv x-matroska x-msvideo",
        "text": "plain vtt",
        "application": "json",
    }.items()
    for minor in minors.split()
)
"""What may be shown in place on a notebook server's origin: nothing that could run or load anything."""

_BINARY: Final = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
"""Bytes that no text has (the WHATWG's "binary data bytes", https://mimesniff.spec.whatwg.org/)."""

_PREFIXES: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"\0\0\1\0", "image/vnd.microsoft.icon"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "image/jp2"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "image/jxl"),
    (b"fLaC", "audio/flac"),
    (b"ID3\2", "audio/mpeg"),
    (b"ID3\3", "audio/mpeg"),
    (b"ID3\4", "audio/mpeg"),
    (b"MThd\0\0\0\6", "audio/midi"),
    (b"#!AMR", "audio/amr"),
    (b".snd\0", "audio/basic"),
    (b"FLV\1", "video/x-flv"),
    (b"\0\0\1\xba", "video/mpeg"),
    (b"\0\0\1\xb3", "video/mpeg"),
    (b"%!PS", "application/postscript"),
    (b"{\\rtf", "application/rtf"),
    (b"\0asm", "application/wasm"),
    (b"\x7fELF", "application/x-elf"),
    (b"PAR1", "application/vnd.apache.parquet"),
    (b"ARROW1\0\0", "application/vnd.apache.arrow.file"),
    (b"SQLite format 3\0", "application/vnd.sqlite3"),
    (b"\x89HDF\r\n\x1a\n", "application/x-hdf5"),
    (b"\x93NUMPY", "application/x-npy"),
    (b"PK\3\4", "application/zip"),
    (b"PK\5\6", "application/zip"),
    (b"\x1f\x8b\x08", "application/gzip"),
    (b"\x28\xb5\x2f\xfd", "application/zstd"),
    (b"\xfd7zXZ\0", "application/x-xz"),
    (b"BZh91AY&SY", "application/x-bzip2"),
    (b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (b"Rar!\x1a\7", "application/vnd.rar"),
    (b"wOFF", "font/woff"),
    (b"wOF2", "font/woff2"),
)
_ZIP_BASED: Final = ("application/vnd.", "application/epub", "application/java-archive", "application/x-")

_EXTENSIONS: Final = {
    ".3gp": "video/3gpp",
    ".aac": "audio/aac",
    ".apng": "image/apng",
    ".arrow": "application/vnd.apache.arrow.file",
    ".avif": "image/avif",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".epub": "application/epub+zip",
    ".feather": "application/vnd.apache.arrow.file",
    ".flac": "audio/flac",
    ".flv": "video/x-flv",
    ".geojson": "application/geo+json",
    ".h5": "application/x-hdf5",
    ".heic": "image/heic",
    ".ico": "image/vnd.microsoft.icon",
    ".ipynb": "application/x-ipynb+json",
    ".js": "text/javascript",
    ".json": "application/json",
    ".jxl": "image/jxl",
    ".m2ts": "video/mp2t",
    ".m3u": "application/vnd.apple.mpegurl",
    ".m3u8": "application/vnd.apple.mpegurl",
    ".m4a": "audio/mp4",
    ".m4v": "video/mp4",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".mkv": "video/x-matroska",
    ".mp3": "audio/mpeg",
    ".npy": "application/x-npy",
    ".oga": "audio/ogg",
    ".ogg": "audio/ogg",
    ".ogv": "video/ogg",
    ".opus": "audio/ogg",
    ".parquet": "application/vnd.apache.parquet",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".srt": "text/plain",
    ".ts": "video/mp2t",
    ".vtt": "text/vtt",
    ".wav": "audio/wav",
    ".weba": "audio/webm",
    ".webm": "video/webm",
    ".webp": "image/webp",
    ".xhtml": "application/xhtml+xml",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".xml": "application/xml",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}
"""Where the standard library's table is silent, differs by version, or gives an older name."""

_TEXTUAL: Final = re.compile(
    r"text/.*|.*\+(?:xml|json)|application/(?:javascript|json|postscript|rtf|toml|xml|yaml|vnd\.apple\.mpegurl"
    r"|x-csh|x-python|x-sh|x-tex)"
)
_HTML_TAG: Final = re.compile(
    r"a|abbr|address|applet|area|article|aside|audio|b|base|body|br|button|canvas|center|dialog|div|dl|em|embed"
    r"|fieldset|font|footer|form|frameset|h[1-6]|head|header|hr|html|i|iframe|img|input|link|main|map|marquee"
    r"|math|meta|nav|noscript|object|ol|p|pre|script|section|select|span|strong|style|table|template|textarea"
    r"|title|u|ul|video"
)
_PROLOG: Final = re.compile(r"<!--.*?(?:-->|$)|<\?.*?(?:\?>|$)|<!.*?(?:>|$)", re.DOTALL)
_TAG: Final = re.compile(r"<(?:[\w.-]+:)?([a-z][\w-]*)(?=[\s/>]|$)")
_MIME: Final = re.compile(r"[a-z]+/[a-z0-9][a-z0-9.+-]*")


def inline_allowed(mime_type: str) -> bool:
    """Whether a browser may be shown this type in place; all else is a download."""
    return mime_type.partition(";")[0].strip().lower() in PASSIVE_TYPES


def guess(head: bytes, name: str = "") -> str:  # noqa: PLR0911 - a ladder of sources
    """The MIME type of a file that begins with `head` (give it SNIFF_BYTES where there are as many).

    Text types carry their charset. What nothing is known of is application/octet-stream.
    """
    head = bytes(head[:SNIFF_BYTES])
    named = _by_name(name)
    if not head:
        return named or OCTET_STREAM
    sure = _by_magic(head, named)
    if sure is not None:
        return sure
    text = _decode(head)
    if text is not None:
        return _text_type(*text, named)
    if b"%PDF-" in head[:1024]:
        return "application/pdf"
    textual = _is_textual(named)
    if textual and _BINARY.search(head) is None:
        return named  # text in a charset that is not known
    known, strong = _by_puremagic(head)
    if known and (strong or not named or textual):
        return known
    return OCTET_STREAM if textual else named or OCTET_STREAM


def _by_name(name: str) -> str:
    """The type that a file name's extension stands for; empty where it stands for none."""
    dot = name.rfind(".")
    extension = name[dot:].lower() if dot > 0 else ""
    return _EXTENSIONS.get(extension) or _standard_types().get(extension, "")


@lru_cache(maxsize=1)
def _standard_types() -> dict[str, str]:
    return mimetypes.MimeTypes().types_map[True]


def _is_textual(mime_type: str) -> bool:
    return _TEXTUAL.fullmatch(mime_type) is not None


def _by_magic(head: bytes, named: str) -> str | None:
    """What the first bytes are for certain."""
    for prefix, mime_type in _PREFIXES:
        if head.startswith(prefix):
            if mime_type == "application/zip" and named.startswith(_ZIP_BASED):
                return named  # office documents, e-books and the like are ZIP archives
            return mime_type
    return _container(head) or _audio_frames(head, named)


def _container(head: bytes) -> str | None:  # noqa: PLR0911 - one test and one return per format
    if head[4:8] == b"ftyp":
        return _iso_media(head)
    if head[4:8] in {b"moov", b"mdat", b"wide"} and head[:1] < b"\x10":
        return "video/quicktime"  # before there was ftyp
    if head[:4] in {b"RIFF", b"FORM"}:
        return _RIFF.get(head[8:12])
    if head.startswith(b"\x1aE\xdf\xa3"):
        return _matroska(head)
    if head.startswith(b"OggS\0"):
        return "video/ogg" if b"theora" in head or b"fishead" in head else "audio/ogg"
    if head.startswith(b"BM") and head[6:10] == b"\0\0\0\0":
        return "image/bmp"
    if head[:1] == head[188:189] == head[376:377] == b"G" and _BINARY.search(head):
        return "video/mp2t"
    if head[257:262] == b"ustar":
        return "application/x-tar"
    if head.lstrip(b"\t\n\f\r ").startswith(b"%PDF-"):
        return "application/pdf"
    return None


_RIFF: Final = {
    b"WAVE": "audio/wav",
    b"AVI ": "video/x-msvideo",
    b"WEBP": "image/webp",
    b"AIFF": "audio/aiff",
    b"AIFC": "audio/aiff",
}
_BRANDS: Final = (
    (("avif", "avis"), "image/avif"),
    (("heic", "heix", "hevc", "heim", "heis", "mif1", "msf1"), "image/heic"),
    (("M4A ", "M4B ", "M4P "), "audio/mp4"),
    (("qt  ",), "video/quicktime"),
    (("3g",), "video/3gpp"),
)


def _iso_media(head: bytes) -> str:
    """The kind of an ISO base media file, by its major brand (ISO/IEC 14496-12, section 4.3)."""
    brand = head[8:12].decode("latin-1")
    for brands, mime_type in _BRANDS:
        if brand.startswith(brands):
            return mime_type
    return "video/mp4"


def _matroska(head: bytes) -> str:
    """WebM or Matroska, by the DocType that the EBML header names; codec ids begin with V_ or A_."""
    if b"webm" not in head[:64]:
        return "video/x-matroska"
    return "audio/webm" if b"A_" in head and b"V_" not in head else "video/webm"


_MP3_KBITS: Final = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_RATES: Final = (44100, 48000, 32000)


def _audio_frames(head: bytes, named: str) -> str | None:
    """Bare MP3 or AAC: two bytes of a frame's sync are too few, so a second frame must follow the first."""
    if len(head) < 6 or head[0] != 0xFF:
        return None
    if head[1] & 0xF6 == 0xF0:  # ADTS
        length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        following, mime_type = head[length : length + 2], "audio/aac"
        certain = following[:1] == b"\xff" and following[1:] == head[1:2]
    else:
        version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
        kbits, rate = head[2] >> 4, head[2] >> 2 & 3
        if head[1] < 0xE0 or version == 1 or layer != 1 or kbits in {0, 15} or rate == 3:
            return None
        newest = version == 3
        hertz = _MP3_RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
        length = (144 if newest else 72) * _MP3_KBITS[3 if newest else 2][kbits] * 1000 // hertz
        following, mime_type = head[length + (head[2] >> 1 & 1) :][:2], "audio/mpeg"
        certain = following == head[:2]
    return mime_type if certain or named == mime_type else None


def _decode(head: bytes) -> tuple[str, str] | None:
    """(text, charset) where the bytes are text in UTF-8, or in UTF-16 with a byte order mark."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        charset = "utf-16"
    elif _BINARY.search(head) is None:
        charset = "utf-8"
    else:
        return None
    try:  # not final: the head may end inside a character
        text = codecs.getincrementaldecoder(charset)().decode(head)
    except UnicodeDecodeError:
        return None
    if charset == "utf-16" and _BINARY.search(text.encode("utf-8", "replace")) is not None:
        return None
    return text.removeprefix("\ufeff"), charset


def _text_type(text: str, charset: str, named: str) -> str:
    """The type of a text: what it is for certain, then what a name of a textual kind says, then plain text."""
    kind = _markup(text) or _structured(text)
    family = {"application/xml": "xml", "application/json": "json"}.get(kind or "")
    if kind is None or (family is not None and named.endswith(family)):
        kind = named if _is_textual(named) else kind or "text/plain"
    return f"{kind}; charset={charset}" if kind.startswith("text/") and kind != "text/html" else kind


def _markup(text: str) -> str | None:
    """HTML, SVG, XHTML or XML, by the first element and what stands before it."""
    text = text.lstrip().lower()
    if not text.startswith("<"):
        return None
    first = _TAG.search(_PROLOG.sub("", text))
    root = first[1] if first else ""
    is_xml = text.startswith("<?xml")
    if root == "svg" or text.startswith("<!doctype svg"):
        return "image/svg+xml"
    if root == "html" and is_xml:
        return "application/xhtml+xml"
    if is_xml:
        return "application/xml"
    if _HTML_TAG.fullmatch(root) or "<script" in text or text.startswith(("<!doctype html", "<!--")):
        return "text/html"
    return "application/xml" if text.startswith("<!doctype") else None


def _structured(text: str) -> str | None:
    if text.startswith("#EXTM3U"):
        return "application/vnd.apple.mpegurl"
    if text.startswith("WEBVTT"):
        return "text/vtt"
    if text.lstrip()[:1] in {"{", "["}:
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return None
        return "application/json"
    return None


def _by_puremagic(head: bytes) -> tuple[str, bool]:
    """(type, whether nine bytes or more say so) from puremagic's table; ("", False) where it knows nothing.

    Only matches at the start count: the end of the head is not the end of the file.
    """
    import puremagic  # noqa: PLC0415 - 11 ms, and most content never needs it

    try:
        matches = puremagic.magic_string(head)
    except (puremagic.PureError, ValueError):
        return "", False
    for match in matches:
        if match.offset >= 0 and len(match.byte_match) >= 4 and _MIME.fullmatch(match.mime_type):
            return match.mime_type, len(match.byte_match) >= 9
    return "", False
