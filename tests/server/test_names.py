"""/ipns/ over HTTP: names of a real Kubo daemon, resolved by its gateway's signed records."""

from __future__ import annotations

import asyncio
import secrets
from typing import ClassVar

import pytest

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.ipns.name import Name
from ipfs_stream_nb.content.ipns.record import MEDIA_TYPE, verify
from ipfs_stream_nb.security.access import AccessPolicy, Action
from ipns_records import Owner


class Some(AccessPolicy):
    """Lets everybody read what is in `allowed`, and keeps what it was asked."""

    allowed: ClassVar[set[CID]] = set()
    asked: ClassVar[list[tuple[Action, CID | None]]] = []

    async def allows(self, user, action, cid):
        self.asked.append((action, cid))
        return action is not Action.READ or cid in self.allowed


@pytest.fixture
def server_config(publisher):
    return {
        "IPFSStreamExtension": {
            "node": "embedded",
            "gateways": [publisher.gateway],
            "routers": [],
            "access_policy_class": Some,
        }
    }


@pytest.fixture
def folder(publisher, tmp_path):
    """A directory on the daemon: its CID and the bytes of its file."""
    data = secrets.token_bytes(300_000)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "clip.bin").write_bytes(data)
    root = CID.parse(publisher.run("add", "-Q", "-r", "--cid-version=1", str(tmp_path / "folder")))
    Some.asked.clear()
    Some.allowed.clear()
    Some.allowed.add(root)
    return root, data


async def test_content_below_a_name(server, publish, folder):
    """Bytes, ranges, HEAD, redirect and listing, with the name in the path and its TTL as the age."""
    root, data = folder
    name = publish(f"/ipfs/{root}", "--ttl=50s")
    async with server.request("GET", f"ipns/{name}/clip.bin") as answer:
        assert (answer.status, await answer.read()) == (200, data)
        assert answer.headers["X-Ipfs-Path"] == f"/ipns/{name}/clip.bin"
        age = int(answer.headers["Cache-Control"].removeprefix("private, max-age="))
        assert 40 < age <= 50
    async with server.request("GET", f"ipns/{name}/clip.bin", headers={"Range": "bytes=5-9"}) as answer:
        assert (answer.status, await answer.read()) == (206, data[5:10])
    async with server.request("HEAD", f"ipns/{name}/clip.bin") as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(data)))
    async with server.request("GET", f"ipns/{name}") as answer:
        assert (answer.status, answer.headers["Location"]) == (301, f"./{name}/")
    listing = await server.json("GET", f"ipns/{name}/?format=json")
    assert (listing["path"], [entry["name"] for entry in listing["entries"]]) == (
        f"/ipns/{name}/",
        ["clip.bin"],
    )


async def test_the_record_and_what_it_says(server, publish, folder):
    """The signed record is passed on as it is, and clients are told the path that it names."""
    root, _ = folder
    name = publish(f"/ipfs/{root}", "--ttl=50s")
    async with server.request("GET", f"ipns/{name}", headers={"Accept": MEDIA_TYPE}) as answer:
        assert answer.headers["Content-Type"] == MEDIA_TYPE
        assert verify(Name.parse(name), await answer.read()).value == f"/ipfs/{root}"
    found = await server.json("GET", f"ipfs-stream/names/{name}")
    assert (found["name"], found["path"], found["stale"]) == (name, f"/ipfs/{root}", False)
    assert 40 < found["ttl"] <= 50


async def test_rights_go_by_what_a_name_stands_for(server, publish, folder):
    """The policy is asked about the root alone, and its no is a 403 with no content."""
    root, _ = folder
    name = publish(f"/ipfs/{root}/clip.bin")
    for path in (f"ipns/{name}", f"ipfs-stream/names/{name}"):
        async with server.request("GET", path):
            pass
        assert Some.asked == [(Action.READ, root)]
        Some.asked.clear()
    Some.allowed.clear()
    for path in (f"ipns/{name}", f"ipfs-stream/names/{name}"):
        error = await server.json("GET", path, 403)
        assert str(root) in error["error"]


async def test_only_who_is_known_has_names_resolved(server, publish, folder):
    """Neither nobody nor a capability token for the root itself makes the server ask for a name."""
    root, _ = folder
    name = publish(f"/ipfs/{root}")
    grant = await server.json("POST", "ipfs-stream/tokens", json={"action": "read", "cid": str(root)})
    async with server.anonymous("GET", f"ipfs/{root}/clip.bin?token={grant['token']}") as answer:
        assert answer.status == 200
    resolved = []
    names = (await server.node()).names
    names.resolve = resolved.append
    for query in ("", f"?token={grant['token']}"):
        async with server.anonymous("GET", f"ipns/{name}{query}") as answer:
            assert answer.status == 403
    assert resolved == []


@pytest.mark.parametrize("path", ["ipns/{}/clip.bin", "ipfs-stream/names/{}"])
async def test_a_name_is_resolved_in_a_slot_and_for_its_client(server, path):
    """It counts as an answer that is being made, and ends when the client leaves."""
    started, ended = asyncio.Event(), asyncio.Event()

    async def hang(_name):
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    (await server.node()).names.resolve = hang

    async def get():
        async with server.request("GET", path.format(Owner().name)):
            pass

    asking = asyncio.create_task(get())
    await started.wait()
    assert server.context.streams.active == 1
    asking.cancel()
    await asyncio.wait([asking])
    await asyncio.wait_for(ended.wait(), 5)
    await asyncio.sleep(0)
    assert server.context.streams.active == 0


@pytest.mark.parametrize("path", ["ipns/{}/clip.bin", "ipfs-stream/names/{}"])
@pytest.mark.parametrize(
    "server_config",
    [
        {
            "IPFSStreamExtension": {
                "node": "embedded",
                "gateways": ["http://127.0.0.1:9"],
                "max_streams": 2,
                "answer_timeout": 1.0,
            }
        }
    ],
)
async def test_a_flood_of_names_is_refused(server, path):
    """What is over the number of answers at once is told to come again; the others have the server's time."""

    async def hang(_name):
        await asyncio.Event().wait()

    (await server.node()).names.resolve = hang

    async def get():
        async with server.request("GET", path.format(Owner().name)) as answer:
            return answer.status, (await answer.json())["code"]

    answers = await asyncio.gather(*(get() for _ in range(10)))
    assert sorted(answers) == [(503, "busy")] * 8 + [(504, "timeout")] * 2


async def test_names_are_only_read(server, publish, folder):
    """Nothing can be taken away through a name."""
    root, _ = folder
    name = publish(f"/ipfs/{root}")
    for method in ("DELETE", "PUT", "POST"):
        async with server.request(method, f"ipns/{name}") as answer:
            assert answer.status == 405


async def test_names_that_lead_nowhere(server):
    """Each has its status and its reason."""
    for name, status in [("nonsense", 400), ("docs.ipfs.tech", 404), (str(Owner().name), 504)]:
        error = await server.json("GET", f"ipns/{name}", status)
        assert name in error["error"]
    error = await server.json("GET", "ipfs/ipns/docs.ipfs.tech", 400)
    assert error["code"] in {"bad_cid", "bad_request"}


@pytest.mark.parametrize(
    "server_config", [{"IPFSStreamExtension": {"node": "embedded", "gateways": [], "routers": []}}]
)
async def test_a_server_with_nobody_to_ask(server):
    """It says what it would need."""
    error = await server.json("GET", f"ipns/{Owner().name}", 400)
    assert "Kubo daemon" in error["error"]
