"""play() from both clients, as far as it goes without a browser."""

import inspect
import threading

import pytest

import ipfs_stream_nb as ipfs
from ipfs_stream_nb import samples
from ipfs_stream_nb.clients.content import AsyncClient
from ipfs_stream_nb.clients.remote import RemoteNode
from ipfs_stream_nb.clients.server import ServerInfo
from ipfs_stream_nb.clients.sync import Client
from ipfs_stream_nb.errors import BadRequestError, IsDirectoryError
from ipfs_stream_nb.widgets.player import Player


@pytest.fixture(scope="module")
def clip() -> bytes:
    """A small clip."""
    return samples.video(width=160, height=96, duration=1.0, frame_rate=10)


def test_play_shows_what_was_added(repo, clip):
    """The result of an add is played as it is, and the widget knows what it is."""
    with ipfs.connect() as client:
        player = client.play(client.add(clip, name="clip.mp4"))
        assert (player.kind, player.mime_type, player.size) == ("video", "video/mp4", len(clip))
        assert str(client.server.token) not in str(player.get_state())


def test_play_offers_its_options(repo, clip):
    """Each option of the player is a parameter of play, so that a notebook completes it, and reaches the player."""
    options = {"autoplay": True, "muted": True, "loop": True, "controls": False, "width": 320}
    options |= {
        "volume": 0.5,
        "playback_rate": 2.0,
        "current_time": 0.25,
        "transport": "auto",
        "quality": "low",
    }
    taken = inspect.signature(Player).parameters
    for kind in (Client, AsyncClient):
        offered = inspect.signature(kind.play).parameters
        assert set(options) == set(offered) - {"self", "content"} == set(taken) - {"client", "path"}
        assert all(offered[name].default == taken[name].default for name in options)
    with ipfs.connect() as client:
        player = client.play(client.add(clip), **options)
        assert {name: getattr(player, name) for name in options} == options
        with pytest.raises(TypeError, match="did you mean 'autoplay'"):
            client.play(player.path, autplay=True)


async def test_play_of_the_async_client(repo, clip):
    """The async client plays too, over a blocking twin of itself that ends with it."""
    before = set(
        threading.enumerate()
    )  # a file system of another test may have one for as long as the process lives
    async with await ipfs.connect_async() as client:
        player = await client.play(await client.add(clip))
        assert player.kind == "video"
        assert (await client.play(player.path)).size == len(clip)
    assert not {one for one in set(threading.enumerate()) - before if one.name == "ipfs_stream_nb"}


async def test_play_needs_a_connection(server):
    """A client that was put together by hand has no blocking twin."""
    info = ServerInfo.at(server.url, server.token)
    async with AsyncClient(RemoteNode(info), info) as client:
        with pytest.raises(BadRequestError, match="connect_async"):
            await client.play(await client.add(b"x"))


def test_a_directory_cannot_be_played(repo, tmp_path):
    """The mistake is told in the cell, not in the widget."""
    (tmp_path / "d").mkdir()
    with ipfs.connect() as client, pytest.raises(IsDirectoryError):
        client.play(client.add(tmp_path / "d"))
