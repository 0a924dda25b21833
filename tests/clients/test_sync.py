"""The blocking client, as notebooks and scripts use it."""

import asyncio
import inspect
import io
import os
import signal
import threading
import time

import numpy as np
import pytest
from tqdm import tqdm

import ipfs_stream_nb as ipfs
from ipfs_stream_nb import samples
from ipfs_stream_nb.clients.content import AsyncClient
from ipfs_stream_nb.clients.sync import Client
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError, NotFoundError

MIB = 1024 * 1024


@pytest.fixture
def client(repo):
    """What connect() gives where there is no Jupyter server."""
    with ipfs.connect() as client:
        yield client


def public(kind):
    return {name for name, member in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


def test_both_clients_have_the_same_methods():
    """Client is AsyncClient, blocking: the same names with the same parameters and the same text."""
    assert public(Client) == public(AsyncClient) - {"describe"}
    for name in public(Client):
        ours, theirs = getattr(Client, name), getattr(AsyncClient, name)
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters), name
        assert ours.__doc__, name


def test_a_day_in_a_notebook(client, tmp_path):
    """Add, look, read, keep, move and let go, by what each call returned."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.txt").write_text("hello")
    root = client.add(tmp_path / "d")
    assert client.ls(root)["x.txt"].size == 5
    assert client.cat(f"{root}/x.txt", 1, 3) == b"ell"
    assert client.stat(root).kind == "directory"
    with client.open(f"{root}/x.txt") as file:
        assert file.read() == b"hello"
    assert [pin.name for pin in client.pins()] == ["d"]
    car = client.export_car(root)
    client.unpin(root)
    assert client.gc().blocks == 2
    assert client.import_car(car).roots == (root.cid,)
    assert client.pin(root, name="again").name == "again"
    assert client.remove(root).blocks == 2
    assert client.repo_stat().blocks == 0
    assert client.health()["status"] == "ok"


def test_media(client):
    """A clip that was added gives its facts, frames, sound and contact sheet."""
    clip = client.add(samples.video(width=160, height=96, duration=2.0, frame_rate=10), name="clip.mp4")
    assert client.info(clip).duration == pytest.approx(2.0, abs=0.1)
    assert client.frames(clip, count=4).array.shape == (4, 96, 160, 3)
    numbers = [samples.read_frame_number(frame.array) for frame in client.iter_frames(clip, 0.0, 0.3)]
    assert numbers == [0, 1, 2]
    assert client.audio(clip, 0.0, 1.0).samples.dtype == np.float32
    assert client.contact_sheet(clip, count=2, columns=2, width=320).width == 320


def test_works_while_a_loop_runs(client):
    """In a notebook a loop is running: every call works all the same, from that loop's own thread."""

    async def cell():
        added = client.add(b"hello")
        return client.cat(added), client.open(added).read()

    assert asyncio.run(cell()) == (b"hello", b"hello")


def test_many_threads(client):
    """One client serves several threads at once."""
    results = []

    def work(number):
        data = bytes([number]) * MIB
        results.append(client.cat(client.add(data)) == data)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8


def test_ctrl_c_ends_an_add(client):
    """KeyboardInterrupt comes through at once; the client goes on, and nothing of the add is kept."""
    begun = threading.Event()

    def endless():
        while True:
            yield bytes(MIB)
            begun.set()

    def interrupt():
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        client.add(endless())
    assert time.monotonic() - started < 10
    assert client.pins() == []
    client.gc()
    assert client.cat(client.add(b"next")) == b"next"


def test_progress_moves_the_callers_bar(client):
    """A tqdm bar that is given shows the whole of it."""
    with tqdm(file=io.StringIO()) as bar:
        added = client.add(os.urandom(3 * MIB), progress=bar)
    assert (bar.total, bar.n) == (3 * MIB, 3 * MIB)
    with tqdm(file=io.StringIO()) as bar:
        client.pin(added, progress=bar)
    assert bar.n == bar.total == added.dag_size


def test_an_error_in_a_bar_ends_the_add(client):
    """What the caller's own bar raises ends the operation and comes through."""

    class Broken:
        total = None

        def update(self, n):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.add(bytes(3 * MIB), progress=Broken())
    assert client.cat(client.add(b"next")) == b"next"


def test_mistakes_are_one_clear_line(client):
    """What goes wrong foreseeably is an IPFSStreamError with a text of one line."""
    for mistake in (
        lambda: client.cat("nonsense"),
        lambda: client.add("not a file"),
        lambda: client.add(3),
        lambda: client.open(3),
        lambda: client.cat("bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"),
        lambda: client.cat(client.add(b"x"), -1),
        lambda: client.add(b"x", profile="nope"),
        lambda: client.import_car(b"not a car"),
    ):
        with pytest.raises(IPFSStreamError) as caught:
            mistake()
        assert "\n" not in str(caught.value)


def test_unknown_arguments_get_a_hint(client):
    """A misspelt argument names the right one, for methods and for connect itself."""
    with pytest.raises(TypeError, match="did you mean 'progress'"):
        client.add(b"x", progres=True)
    with pytest.raises(TypeError, match="did you mean 'token'"):
        ipfs.connect(tokn="x")


def test_connecting_twice_is_one_connection(repo):
    """The second client shares the first one's server; the last one to close ends it."""
    one, two = ipfs.connect(), ipfs.connect()
    assert one is not two
    assert one.server == two.server
    added = one.add(b"x")
    one.close()
    one.close()
    assert two.cat(added) == b"x"
    with pytest.raises(BadRequestError, match="closed"):
        one.cat(added)
    assert repr(one) == "<Client: closed>"
    two.close()
    with ipfs.connect() as three:
        assert three.server.url
        assert three.cat(added) == b"x"


def test_different_repos_are_different_connections(repo, tmp_path):
    """repo= names a store; each has its own server."""
    with ipfs.connect() as one, ipfs.connect(repo=tmp_path / "other") as two:
        added = one.add(b"x")
        assert one.server.url != two.server.url
        with pytest.raises(NotFoundError):
            two.cat(added)
        assert str(tmp_path / "other") in repr(two)


def test_a_closed_client_ends_its_threads(repo):
    """Nothing is left running once the last client is closed."""
    before = set(threading.enumerate())
    with ipfs.connect() as client:
        client.cat(client.add(bytes(MIB)))
    deadline = time.monotonic() + 10
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        next(iter(left)).join(1)
    assert not left


def test_reprs_are_stable(client):
    """The repr holds neither the port of the embedded server nor any secret."""
    port = client.server.url.rsplit(":", 1)[1].strip("/")
    assert repr(client).startswith("<Client: embedded in this process; store ")
    assert port not in repr(client)
    assert str(client.server.token) not in repr(client) + client._repr_html_()


def test_connect_needs_sense():
    """Arguments that do not fit together are refused."""
    with pytest.raises(BadRequestError, match="url"):
        ipfs.connect(token="x")
    with pytest.raises(BadRequestError, match="url or a repo"):
        ipfs.connect("http://localhost:1/", repo="x")
    with pytest.raises(BadRequestError, match="not a server's URL"):
        ipfs.connect("localhost:8888")
    with pytest.raises(BadRequestError, match="text"):
        ipfs.connect(8888)
