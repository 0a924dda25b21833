"""What each kind of work gives, but for transcode."""

import asyncio
import hashlib
import io
import json
import math
import zlib

import numpy as np
import pytest
from PIL import Image

from ipfs_stream_nb import samples
from ipfs_stream_nb.errors import (
    BadRequestError,
    IPFSStreamError,
    IsDirectoryError,
    NotFoundError,
    UnsupportedMediaError,
)
from ipfs_stream_nb.processing.processor import ContentProcessor


async def worked(node, cid, process_type, **options):
    processor = ContentProcessor(node, process_type, **options)
    updates = [update async for update in processor.process(cid)]
    assert updates[-1]["percent"] == 100.0
    return await processor.get_result()


async def read(node, cid):
    return b"".join([piece async for piece in node.cat(cid)])


async def test_probe(node, add, clip):
    """Media info comes as JSON, with the CID of what it is about."""
    data = clip()
    cid = await add(node, data)
    facts = await worked(node, cid, "probe")
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert (facts["cid"], facts["kind"], facts["format"]) == (str(cid), "video", "mp4")
    assert (facts["size"], facts["duration"]) == (len(data), pytest.approx(2.0, abs=0.05))
    video, sound = facts["streams"]
    assert (video["type"], video["codec"], video["width"], video["height"]) == ("video", "h264", 160, 120)
    assert (sound["type"], sound["codec"], sound["sample_rate"]) == ("audio", "aac", 48_000)


@pytest.mark.parametrize("size", [0, 5, 3 * 1024 * 1024 + 7])
async def test_checksums(node, add, size):
    """Each digest is that of the file's bytes, and progress counts every byte."""
    data = np.random.default_rng(1).bytes(size)
    cid = await add(node, data)
    processor = ContentProcessor(node, "checksums")
    updates = [update async for update in processor.process(cid)]
    expected = {name: hashlib.new(name, data).hexdigest() for name in ("sha256", "sha1", "md5", "blake2b")}
    expected |= {"cid": str(cid), "size": size, "crc32": f"{zlib.crc32(data):08x}"}
    assert await processor.get_result() == expected
    assert updates[-1] == {"percent": 100.0, "total_bytes": size} | (
        {"bytes_processed": size} if size else {}
    )


@pytest.mark.parametrize(("time", "number"), [(0, 0), (0.5, 12), (1.999, 49), (None, 5), (np.float32(1), 25)])
async def test_thumbnail_of_a_video_at_a_time(node, add, clip, time, number):
    """The picture is the one on screen at that time; without one, that of a tenth of the video's length."""
    cid = await add(node, clip(width=320, height=240))
    result = await worked(node, cid, "thumbnail", time=time, width=200)
    data = await read(node, result["cid"])
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, picture.size, len(data)) == ("JPEG", (200, 150), result["size"])
    assert (result["width"], result["height"]) == (200, 150)
    assert result["time"] == pytest.approx(number / 25)
    assert samples.read_frame_number(picture) == number


async def test_thumbnail_is_pinned_by_the_contents_name(node, add, clip):
    """It is pinned unless that is not wanted, and named after the file, or after the CID."""
    cid = await add(node, clip())
    root = (await node.add_directory({"my film.mp4": cid}, pin=False)).cid
    named = await worked(node, f"{root}/my film.mp4", "thumbnail")
    bare = await worked(node, cid, "thumbnail", format="png")
    await worked(node, cid, "thumbnail", width=50, pin=False)
    pins = {str(pin.cid): pin.name for pin in await node.pins()}
    assert pins == {named["cid"]: "my film-thumbnail.jpg", bare["cid"]: f"{cid}-thumbnail.png"}
    assert (await read(node, bare["cid"])).startswith(b"\x89PNG")


async def test_thumbnail_of_a_turned_video_and_of_pictures(node, add, clip):
    """It is upright, keeps the aspect and is never larger than the content; an endless strip gets short."""
    turned = await add(node, clip(width=120, height=160, rotation=90))
    assert (await worked(node, turned, "thumbnail", width=60))["height"] == 80
    small = await add(node, samples.image(width=100, height=80))
    result = await worked(node, small, "thumbnail")
    assert (result["width"], result["height"], result["time"]) == (100, 80, 0.0)
    strip = io.BytesIO()
    Image.new("L", (100, 20_000)).save(strip, "PNG")
    result = await worked(node, await add(node, strip.getvalue()), "thumbnail")
    assert (result["width"], result["height"]) == (2, 400)


async def test_thumbnail_behind_the_end(node, add, clip):
    """A time that the video does not reach is refused, with its length."""
    cid = await add(node, clip())
    with pytest.raises(BadRequestError, match=r"time=2: the video ends at 2\.000 s"):
        await worked(node, cid, "thumbnail", time=2)
    assert await node.pins() == []


@pytest.mark.parametrize("process_type", ["probe", "thumbnail", "transcode"])
@pytest.mark.parametrize("data", [b"", b"#EXTM3U\nfile:///etc/passwd\n", b"no media at all" * 9])
async def test_what_is_no_media(node, add, process_type, data):
    """Text, playlists and empty files are unsupported media."""
    with pytest.raises(UnsupportedMediaError):
        await worked(node, await add(node, data), process_type)


async def test_content_that_is_not_there(node, add):
    """A CID that nobody has, a directory and a text that names nothing each get their own error."""
    lost = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
    directory = await node.add_directory({"a": await add(node, b"x")})
    for content, error in (
        (lost, NotFoundError),
        (directory, IsDirectoryError),
        ("nonsense", BadRequestError),
        (7, BadRequestError),
    ):
        with pytest.raises(error) as caught:
            await worked(node, content, "checksums")
        assert isinstance(caught.value, IPFSStreamError)


@pytest.mark.parametrize(
    ("process_type", "options", "said"),
    [
        ("transcribe", {}, "'transcribe': expected one of probe, checksums, thumbnail, transcode"),
        (None, {}, "'None': expected one of"),
        (["probe"], {}, "expected one of"),
        ("probe", {"deep": True}, "probe has no option 'deep'; it has none"),
        ("transcode", {"hight": 2}, "has no option 'hight'; it has height, bitrate, pin"),
        ("thumbnail", {"time": -1}, "time=-1: expected seconds, from 0"),
        ("thumbnail", {"time": math.nan}, "time=nan"),
        ("thumbnail", {"time": 10**400}, "time=1000"),
        ("thumbnail", {"time": "1"}, "time=1"),
        ("thumbnail", {"width": 0}, "width=0: expected a whole number from 16 to 4,096"),
        ("thumbnail", {"width": 99.5}, "width=99.5"),
        ("thumbnail", {"format": "bmp"}, "format='bmp': expected 'jpeg' or 'png'"),
        ("thumbnail", {"format": ["png"]}, "format="),
        ("thumbnail", {"pin": "no"}, "pin=no: expected True or False"),
        ("transcode", {"height": 10_000}, "height=10000"),
        ("transcode", {"height": True}, "height=True"),
        ("transcode", {"bitrate": 1}, "bitrate=1: expected a whole number from 10,000"),
        ("transcode", {"pin": None}, "pin=None"),
    ],
)
async def test_what_makes_no_sense(node, process_type, options, said):
    """Unknown types and options, and values out of range, are refused before any work, with what would be right."""
    with pytest.raises(BadRequestError) as caught:
        ContentProcessor(node, process_type, **options)
    assert said in str(caught.value)


async def test_what_is_no_node():
    """An address in the place of a node is refused."""
    with pytest.raises(BadRequestError, match="ipfs_api is a node"):
        ContentProcessor("http://localhost:5001", "probe")
    await asyncio.sleep(0)
