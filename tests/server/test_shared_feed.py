"""Two Jupyter servers that share one feed through NATS JetStream, as on a JupyterHub site."""

from __future__ import annotations

import json

import pytest
from websockets.asyncio.client import connect

import nats_server
from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb_server.traits import nats_login


async def test_an_event_of_one_server_reaches_the_other(start_server, tmp_path):
    """What is committed at one server is sent by the other, with the same id, and is in its history."""
    with nats_server.running(tmp_path / "nats") as nats:
        settings = {"IPFSStreamExtension": {"nats_url": nats.url, "nats_stream": "SITE"}}
        (tmp_path / "one").mkdir()
        (tmp_path / "two").mkdir()
        async with (
            start_server(settings, tmp_path / "one") as one,
            start_server(settings, tmp_path / "two") as two,
            connect(
                f"ws://127.0.0.1:{two.port}/a%40b/ws/notifications",
                additional_headers={"Authorization": f"token {two.token}"},
                proxy=None,
            ) as link,
        ):
            welcome = json.loads(await link.recv())
            await link.send(
                '{"action": "subscribe", "notification_types": ["custom_event", "content_added"]}'
            )
            assert json.loads(await link.recv())["type"] == "subscription_confirmed"
            told = await one.json("POST", "ipfs-stream/events", json={"data": {"n": 1}})
            event = json.loads(await link.recv())
            assert (event["data"], event["id"]) == ({"n": 1}, told["id"])
            assert told["epoch"] == welcome["epoch"]
            cid = await one.add(b"content")
            assert json.loads(await link.recv())["data"]["cid"] == cid
            await link.send('{"action": "get_history", "notification_type": "custom_event"}')
            assert [found["id"] for found in json.loads(await link.recv())["events"]] == [told["id"]]


@pytest.mark.parametrize(
    ("text", "login"),
    [
        ("", {}),
        ("/etc/nats.creds", {"credentials": "/etc/nats.creds"}),
        ("token:a:b", {"token": "a:b"}),
        ("user:ada:se:cret", {"user": "ada", "password": "se:cret"}),
    ],
)
def test_how_nats_lets_us_in(text, login):
    """A credentials file, a token, or a name with a password."""
    assert nats_login(text) == login


def test_half_a_login():
    """A name without a password is refused, without a word of it."""
    with pytest.raises(BadRequestError) as error:
        nats_login("user:ada")
    assert "ada" not in str(error.value)
