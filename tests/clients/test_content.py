"""AsyncClient over the embedded node and over HTTP."""

import asyncio
import io
import json
import threading

import numpy as np
import pytest
from fsspec.callbacks import Callback
from PIL import Image

from ipfs_stream_nb import CID, samples
from ipfs_stream_nb.clients import reading
from ipfs_stream_nb.clients.content import AsyncClient
from ipfs_stream_nb.clients.http import ServerHTTP
from ipfs_stream_nb.clients.remote import RemoteNode
from ipfs_stream_nb.clients.server import ServerInfo
from ipfs_stream_nb.content.blocks.gc import GC_LOCK
from ipfs_stream_nb.content.blocks.leases import FileLock
from ipfs_stream_nb.content.cid import DAG_PB, RAW
from ipfs_stream_nb.content.importer import import_bytes
from ipfs_stream_nb.errors import (
    BadCIDError,
    BadRequestError,
    BusyError,
    IsDirectoryError,
    NotFoundError,
    TooLargeError,
    UnauthorizedError,
    UnsupportedMediaError,
)

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def clip() -> bytes:
    """A small clip with sound."""
    return samples.video(kind="mp4", width=160, height=96, duration=2.0, frame_rate=10)


@pytest.mark.parametrize(
    "name_it",
    [
        lambda added: added,
        lambda added: added.cid,
        str,
        lambda added: f"/ipfs/{added}",
        lambda added: f"ipfs://{added}",
    ],
    ids=["added", "cid", "text", "path", "url"],
)
async def test_every_method_takes_every_name(client, name_it):
    """A CID, its text, a path, a URL and the result of an add name the same content to all methods."""
    content = name_it(await client.add(b"hello", name="x.txt"))
    assert await client.cat(content) == b"hello"
    assert (await client.stat(content)).size == 5
    assert len(await client.export_car(content)) > 5
    assert (await client.pin(content, name="again")).name == "again"
    assert "/ipfs/bafk" in await client.url(content)
    file = await client.open(content)
    assert await asyncio.to_thread(file.read) == b"hello"
    await client.unpin(content)
    assert (await client.remove(content)).blocks == 1


async def test_adds_all_kinds_of_sources(client, tmp_path):
    """Paths, bytes, files, iterables, arrays and images go in, and name themselves."""
    (tmp_path / "f.bin").write_bytes(b"hello")
    expected = import_bytes(b"hello").root
    for source in (
        tmp_path / "f.bin",
        str(tmp_path / "f.bin"),
        b"hello",
        io.BytesIO(b"hello"),
        [b"he", b"llo"],
    ):
        assert (await client.add(source)).cid == expected
    array = np.arange(5)
    added = await client.add(array, name="a.npy")
    np.testing.assert_array_equal(np.load(io.BytesIO(await client.cat(added))), array)
    image = await client.add(Image.new("RGB", (4, 4)))
    assert (await client.stat(image)).mime_type == "image/png"
    assert (await client.add(tmp_path / "f.bin")).name == "f.bin"
    assert (await client.add(tmp_path / "f.bin", name="other")).name == "other"


async def test_a_directory_lists_itself(client, tmp_path):
    """ls gives entries that name themselves, and paths lead into it."""
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "sub" / "x.txt").write_text("x")
    root = await client.add(tmp_path / "d")
    entries = await client.ls(root, kinds=True)
    assert [(entry.name, entry.kind) for entry in entries] == [("sub", "directory")]
    below = await client.ls(entries["sub"])
    assert await client.cat(below["x.txt"]) == b"x"
    assert await client.cat(f"{root}/sub/x.txt") == b"x"
    pin = await client.pin(f"{root}/sub/x.txt")
    assert pin.cid == below["x.txt"].cid
    with pytest.raises(IsDirectoryError):
        await client.open(root)


async def test_a_symlink_is_followed_by_open(client, tmp_path):
    """Reading goes through symlinks, in a circle of them it is refused."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.txt").write_text("content")
    (tmp_path / "d" / "link").symlink_to("x.txt")
    (tmp_path / "d" / "loop").symlink_to("loop")
    (tmp_path / "d" / "out").symlink_to("/etc/passwd")
    root = await client.add(tmp_path / "d")
    file = await client.open(f"{root}/link")
    assert await asyncio.to_thread(file.read) == b"content"
    assert await client.cat(f"{root}/link") == b"content"
    for name in ("loop", "out"):
        with pytest.raises(BadRequestError, match="symlink"):
            await client.open(f"{root}/{name}")


async def test_progress_reaches_the_size(client):
    """The callback hears the total and every byte, for adds, imports and exports."""
    data = bytes(3 * MIB)
    callback = Callback()
    added = await client.add(data, progress=callback)
    assert (callback.size, callback.value) == (len(data), len(data))
    exported = Callback()
    car = await client.export_car(added, progress=exported)
    assert exported.value == len(car)
    imported = Callback()
    await client.import_car(car, progress=imported)
    assert (imported.size, imported.value) == (len(car), len(car))
    with pytest.raises(BadRequestError, match="progress"):
        await client.add(b"x", progress="yes")


@pytest.mark.parametrize("place", [(0, 4.0), (1.5, None), ("x", 1), (0, "x"), (None, 1)])
async def test_cat_counts_in_whole_bytes(client, place):
    """A place that is no whole number is named; numpy's whole numbers are ones."""
    added = await client.add(b"hello")
    with pytest.raises(BadRequestError, match=r"(offset|length)=.*whole number of bytes"):
        await client.cat(added, *place)
    assert await client.cat(added, np.int64(1), np.int8(2)) == b"el"


async def test_a_car_that_cannot_be_is_told_as_such(client, tmp_path):
    """Import and export name the path and what is wrong with it, not a name of ours."""
    (tmp_path / "empty.car").touch()
    with pytest.raises(NotFoundError, match="CAR file"):
        await client.import_car(str(tmp_path / "nowhere.car"))
    for empty in (b"", tmp_path / "empty.car"):
        with pytest.raises(BadRequestError, match="it is empty"):
            await client.import_car(empty)
    added = await client.add(b"hello")
    with pytest.raises(BadRequestError, match=f"{tmp_path.name}' is a directory; name a file in it"):
        await client.export_car(added, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix] == ["empty.car"]


@pytest.mark.parametrize("codec", [RAW, DAG_PB])
@pytest.mark.parametrize(
    "method", ["stat", "cat", "open", "ls", "pin", "unpin", "remove", "export_car", "info"]
)
async def test_what_is_not_here_is_told_in_one_way(client, method, codec):
    """Whatever is asked for, and whichever node is asked: it is not here, and what would bring it here."""
    absent = CID.of(b"somewhere else", codec)
    with pytest.raises(NotFoundError) as caught:
        await getattr(client, method)(absent)
    assert str(caught.value).startswith(
        f"{absent} is not in this store, and there is nobody to fetch it from"
    )
    assert "client.import_car" in str(caught.value)


async def test_a_name_that_is_not_there_is_another_thing(client, tmp_path):
    """Of a directory that is here, it is the name that is missing; of a pin that is not there, the pin."""
    (tmp_path / "d").mkdir()
    root = await client.add(tmp_path / "d")
    with pytest.raises(NotFoundError, match="there is no 'x'"):
        await client.cat(f"{root}/x")
    await client.unpin(root)
    with pytest.raises(NotFoundError, match="is not pinned"):
        await client.unpin(root)


async def test_garbage_collection_waits_for_another(client, repo, monkeypatch):
    """While another process collects gc waits, and only after a bounded time it gives up."""
    await client.add(b"hello", pin=False)
    other = FileLock(repo / "locks" / GC_LOCK)
    with other:
        monkeypatch.setattr("ipfs_stream_nb.clients.content.GC_WAIT", 0.0)
        with pytest.raises(BusyError, match="being collected"):
            await client.gc()
        monkeypatch.setattr("ipfs_stream_nb.clients.content.GC_WAIT", 60.0)
        waiting = asyncio.create_task(client.gc())
        done, _ = await asyncio.wait([waiting], timeout=0.4)
        assert not done
    assert (await waiting).blocks == 1


async def test_a_pin_has_a_name_that_can_be_shown(client):
    """A pin is named by text."""
    added = await client.add(b"hello")
    for name in (3, "a\0"):
        with pytest.raises(BadRequestError, match="name="):
            await client.pin(added, name=name)


async def test_cat_has_a_limit(client, monkeypatch):
    """What would fill the memory is refused with a hint; a part of it is not."""
    monkeypatch.setattr(reading, "MAX_GATHERED", 1000)
    monkeypatch.setattr("ipfs_stream_nb.clients.content.MAX_GATHERED", 1000)
    added = await client.add(bytes(2000))
    with pytest.raises(TooLargeError, match=r"client\.open"):
        await client.cat(added)
    with pytest.raises(TooLargeError, match="path to write to"):
        await client.export_car(added)
    assert len(await client.cat(added, 1500)) == 500
    assert len(await client.cat(added, 0, 1000)) == 1000


class Unseekable(io.BytesIO):
    """As a pipe is."""

    def seekable(self):
        return False


async def test_cars_of_version_2(client, tmp_path):
    """A CARv2 is the CARv1 behind a header that tells its length, whether it goes to memory, a path or a file."""
    added = await client.add(bytes(3_000_000))
    one, two = await client.export_car(added), await client.export_car(added, version=2)
    assert two[51:] == one
    assert two[:51] == bytes.fromhex("0aa16776657273696f6e02") + bytes(16) + b"".join(
        value.to_bytes(8, "little") for value in (51, len(one), 0)
    )
    assert await client.export_car(added, tmp_path / "x.car", version=2) == len(two)
    with (tmp_path / "y.car").open("wb") as file:
        file.write(b"before")
        await client.export_car(added, file, version=2)
        file.write(b"after")
    assert (tmp_path / "x.car").read_bytes() == two
    assert (tmp_path / "y.car").read_bytes() == b"before" + two + b"after"
    await client.remove(added)
    assert (await client.import_car(tmp_path / "x.car")).roots == (added.cid,)
    with pytest.raises(BadRequestError, match="1 or 2"):
        await client.export_car(added, version=3)
    with pytest.raises(BadRequestError, match="seekable"):
        await client.export_car(added, Unseekable(), version=2)


async def test_cars_in_and_out_of_files(client, tmp_path):
    """export_car writes to paths and files, import_car reads both."""
    added = await client.add(b"hello")
    car = await client.export_car(added)
    assert await client.export_car(added, tmp_path / "x.car") == len(car)
    with (tmp_path / "y.car").open("wb") as file:
        await client.export_car(added, file)
    assert (tmp_path / "x.car").read_bytes() == (tmp_path / "y.car").read_bytes() == car
    await client.remove(added)
    for source in (tmp_path / "x.car", str(tmp_path / "x.car"), io.BytesIO(car), car):
        assert (await client.import_car(source)).roots == (added.cid,)
    assert await client.cat(added) == b"hello"


async def test_a_failed_export_leaves_the_old_file(client, tmp_path):
    """A path is replaced only by a whole CAR, and nothing is left lying about."""
    (tmp_path / "x.car").write_bytes(b"old")
    with pytest.raises(NotFoundError):
        await client.export_car(CID.of(b"absent"), tmp_path / "x.car")
    assert (tmp_path / "x.car").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir() if "car" in path.name] == ["x.car"]
    added = await client.add(b"x")
    for dest in (tmp_path / "no" / "x.car", 3, io.StringIO()):
        with pytest.raises(BadRequestError):
            await client.export_car(added, dest)


async def test_urls_play_without_another_credential(client):
    """The URL holds a token for its content alone; the server's own token stands in no URL."""
    added = await client.add(b"hello", name="x.txt")
    other = await client.add(b"other")
    url = await client.url(added)
    assert str(client.server.token) not in url
    http = ServerHTTP(ServerInfo.at(client.server.url))
    try:
        async with http._open_session().get(url) as response:
            assert (response.status, await response.read()) == (200, b"hello")
        async with http._open_session().get(url.replace(str(added), str(other))) as response:
            assert response.status == 403
    finally:
        await http.close()


async def test_urls_of_awkward_names(client, tmp_path):
    """A name with spaces, percent signs and question marks makes a URL that leads to it."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "50% of #1?.txt").write_text("found")
    root = await client.add(tmp_path / "d")
    url = await client.url(f"{root}/50% of #1?.txt")
    http = ServerHTTP(ServerInfo.at(client.server.url))
    try:
        async with http._open_session().get(url) as response:
            assert await response.read() == b"found"
    finally:
        await http.close()


async def test_media(client, clip):
    """info, frames, audio and the contact sheet come from the clip, read by ranges."""
    added = await client.add(clip, name="clip.mp4")
    info = await client.info(added)
    assert info.duration == pytest.approx(2.0, abs=0.1)
    frames = await client.frames(added, 0.5, 1.0)
    assert frames.array.shape == (5, 96, 160, 3)
    assert [samples.read_frame_number(frame.array) for frame in frames] == [5, 6, 7, 8, 9]
    times = []
    async for frame in client.iter_frames(added, every=0.5):
        times.append(round(frame.time, 3))
        if len(times) == 3:
            break
    assert times == [0.0, 0.5, 1.0]
    audio = await client.audio(added, 0.5, 1.0)
    assert audio.samples.shape[0] == audio.rate // 2
    assert (await client.contact_sheet(added, count=4, columns=2, width=320)).width == 320
    with pytest.raises(UnsupportedMediaError):
        await client.info(await client.add(b"no media"))


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.cat("nonsense"),
        lambda client: client.pin("nonsense"),
        lambda client: client.unpin("nonsense"),
        lambda client: client.url("nonsense"),
        lambda client: client.remove("nonsense"),
        lambda client: client.open("nonsense"),
        lambda client: client.export_car("nonsense"),
        lambda client: client.frames("nonsense"),
    ],
)
async def test_a_bad_cid_is_named_by_every_method(client, call):
    """The same mistake is the same error everywhere."""
    with pytest.raises(BadCIDError, match="'nonsense' is not a CID"):
        await call(client)


@pytest.mark.parametrize("method", ["cat", "stat", "ls", "open", "pin", "url", "info"])
async def test_what_is_no_content_is_refused(client, method):
    """A number or None is told what is wanted."""
    with pytest.raises(BadRequestError, match="is not a CID or a path"):
        await getattr(client, method)(None)


async def test_after_close_everything_is_refused(client):
    """A closed client says so, also through a file that it opened."""
    added = await client.add(bytes(MIB))
    file = await client.open(added)
    await client.close()
    await client.close()
    calls = [
        client.cat(added),
        client.add(b"x"),
        client.pins(),
        client.url(added),
        client.health(),
        client.gc(),
    ]
    for call in calls:
        with pytest.raises(BadRequestError, match="closed"):
            await call
    with pytest.raises(BadRequestError, match="closed"):
        await asyncio.to_thread(file.read, 10)
    assert repr(client) == "<AsyncClient: closed>"


async def test_a_file_on_its_own_loop_is_refused(client):
    """Reading would wait for the loop that it blocks: an error says so and names the way."""
    file = await client.open(await client.add(b"hello"))
    with pytest.raises(BadRequestError, match="thread"):
        file.read()


async def test_a_cancelled_add_leaves_no_pin(client):
    """Cancelling an add in the middle gives it up."""
    more = asyncio.Event()

    async def slow():
        yield bytes(MIB)
        more.set()
        await asyncio.Event().wait()

    adding = asyncio.create_task(client.add(slow()))
    await more.wait()
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert await client.pins() == []
    assert await client.cat(await client.add(b"next")) == b"next"


async def test_cancelled_media_work_ends(client, clip):
    """A cancelled decode stops reading soon, and its thread ends."""
    added = await client.add(clip)
    before = set(threading.enumerate())
    decoding = asyncio.create_task(client.frames(added))
    await asyncio.sleep(0)
    decoding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await decoding
    assert len(set(threading.enumerate()) - before) <= 2


async def test_a_wrong_token_is_a_clear_error(server):
    """The error says that it is the token."""
    info = ServerInfo.at(server.url, "wrong")
    async with AsyncClient(RemoteNode(info), info) as client:
        for call in (client.health(), client.add(bytes(5 * MIB)), client.pins()):
            with pytest.raises(UnauthorizedError) as caught:
                await call
            assert "wrong" not in str(caught.value)


async def test_health_is_json(client):
    """What the server says of itself."""
    assert json.dumps((await client.health())["node"])


async def test_reprs_hold_no_secret(client):
    """No repr or HTML of a client shows the token."""
    shown = repr(client) + client._repr_html_() + repr(client.server)
    assert str(client.server.token) not in shown
    assert client.server.url in shown


async def test_remove_tells_what_a_folder_s_pin_keeps(client, tmp_path):
    """A file that a pinned folder holds stays, and the result says so."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.txt").write_text("hello")
    root = await client.add(tmp_path / "d")
    removed = await client.remove((await client.ls(root))["x.txt"])
    assert (removed.blocks, removed.still_here) == (0, True)
    assert "other pins" in repr(removed)
    assert await client.cat(f"{root}/x.txt") == b"hello"
    removed = await client.remove(root)
    assert (removed.blocks, removed.still_here) == (2, False)
    assert "kept" not in repr(removed)
