"""Stat, ls, pins, gc, health, and paths that are not there."""

from __future__ import annotations

import json

import pytest

from gateway_site import CLIP, MANY, Site
from ipfs_stream_nb import __version__
from ipfs_stream_nb.content.cid import CID

SITE = Site()


@pytest.fixture
async def site(server):
    """The gateway tests' site, in the server's store."""
    node = await server.node()
    for cid, data in SITE.blocks.items():
        if not cid.is_identity:
            node.store.put(cid, data, verify=False)
    return SITE.cids


async def lines_of(answer):
    """The lines of an NDJSON answer."""
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    return [json.loads(line) async for line in answer.content]


async def test_stat(server, site):
    """What is at a path: a node.Stat with CIDs as text."""
    assert await server.json("GET", f"ipfs-stream/stat/{site['root']}/clip.mp4") == {
        "cid": str(site["clip"]),
        "kind": "file",
        "size": len(CLIP),
        "mime_type": "video/mp4",
        "name": "clip.mp4",
        "target": None,
        "roots": [str(site["root"]), str(site["clip"])],
        "mode": None,
        "mtime": None,
    }
    assert (await server.json("GET", f"ipfs-stream/stat/{site['root']}/link"))[
        "target"
    ] == "sub/deep/data.json"


async def test_odd_names_in_paths(server, site):
    """Names are percent-encoded in the path, and no query."""
    path = f"ipfs-stream/stat/{site['root']}/%C3%BCn%C3%AF%20c%C3%B4de%20%23%3F%25%26.txt"
    assert (await server.json("GET", path))["cid"] == str(site["hello"])


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("stat/nonsense", 400, "bad_cid"),
        ("stat/{absent}", 404, "not_found"),
        ("stat/{root}/missing", 404, "not_found"),
        ("stat/{root}/%2e%2e", 400, "bad_request"),
        ("stat/{root}/%FF", 400, "bad_request"),
        ("ls/nonsense", 400, "bad_cid"),
        ("ls/{absent}", 404, "not_found"),
        ("ls/{clip}", 404, "not_a_directory"),
        ("ls/{root}?kinds=maybe", 400, "bad_request"),
        ("nothing", 404, "not_found"),
        ("", 404, "not_found"),
    ],
)
async def test_bad_requests(server, site, path, status, code):
    """Each is the protocol's error, with its status: the answer has not begun when it shows."""
    assert (await server.json("GET", f"ipfs-stream/{path.format(**site)}", status))["code"] == code


async def test_ls(server, site):
    """A directory's entries as lines; with kinds=1 each is looked up."""
    async with server.request("GET", f"ipfs-stream/ls/{site['root']}/sub") as answer:
        assert await lines_of(answer) == [
            {"name": "deep", "cid": str(site["deep"]), "size": SITE.sizes[site["deep"]], "kind": None}
        ]
    async with server.request("GET", f"ipfs-stream/ls/{site['root']}/sub?kinds=1") as answer:
        assert (await lines_of(answer))[0]["kind"] == "directory"
    async with server.request("GET", f"ipfs-stream/ls/{site['many']}") as answer:
        assert sorted(line["name"] for line in await lines_of(answer)) == MANY


async def test_an_error_after_the_first_entry_is_the_last_line(server, site, monkeypatch):
    """A listing that breaks off says so in its last line."""
    node = await server.node()
    whole = node.ls

    async def broken(path, *, kinds=False):
        async for entry in whole(path, kinds=kinds):
            yield entry
            await node.stat(CID.of(b"absent"))

    monkeypatch.setattr(node, "ls", broken)
    async with server.request("GET", f"ipfs-stream/ls/{site['many']}") as answer:
        assert answer.status == 200
        first, last = await lines_of(answer)
    assert first["name"] in MANY
    assert (last["type"], last["code"]) == ("error", "not_found")


async def test_pins(server, large):
    """PUT pins and tells how far it is, the result last; GET lists; DELETE lets go, once."""
    data, cid = large
    assert (await server.json("DELETE", f"ipfs-stream/pins/{cid}")) == {"cid": cid, "unpinned": True}
    assert (await server.json("DELETE", f"ipfs-stream/pins/{cid}", 404))["code"] == "not_found"
    async with server.request("PUT", f"ipfs-stream/pins/{cid}?name=a%20clip") as answer:
        *progress, result = await lines_of(answer)
    assert (result["type"], result["cid"], result["name"]) == ("result", cid, "a clip")
    for line in progress:
        assert line["type"] == "progress"
        assert line["bytes"] <= len(data) + 1000
    (pin,) = (await server.json("GET", "ipfs-stream/pins"))["pins"]
    assert {"type": "result"} | pin == result


async def test_pins_that_cannot_be(server, site):
    """A missing block, a missing root and a bad CID are errors with their status."""
    for cid, status, code in [
        (site["broken"], 504, "retrieval_failed"),
        (site["absent"], 404, "not_found"),
        ("nonsense", 400, "bad_cid"),
    ]:
        error = await server.json("PUT", f"ipfs-stream/pins/{cid}", status)
        assert error["code"] == code


async def test_a_pins_name_is_kept_as_it_is(server):
    """Spaces around it stay; control characters are refused."""
    cid = await server.add(b"text", pin="0")
    error = await server.json("PUT", f"ipfs-stream/pins/{cid}?name=a%00b", 400)
    assert "control" in error["error"]
    async with server.request("PUT", f"ipfs-stream/pins/{cid}?name=%20a") as answer:
        assert (await lines_of(answer))[-1]["name"] == " a"


async def test_gc(server, large):
    """gc takes what is not pinned, and keeps what is."""
    data, cid = large
    await server.add(b"loose", pin="0")
    freed = await server.json("POST", "ipfs-stream/gc")
    assert (freed["blocks"], freed["kept_blocks"]) == (1, 11)
    async with server.request("GET", f"ipfs/{cid}") as answer:
        assert await answer.read() == data


async def test_health(server, large):
    """Status, version, the node and its store, the limits and what is active."""
    health = await server.json("GET", "ipfs-stream/health")
    node = await server.node()
    assert (health["status"], health["version"]) == ("ok", __version__)
    assert health["node"]["kind"] == "embedded"
    assert health["node"]["repo"] == str(node.store.path)
    assert health["node"]["store_id"] == node.store.store_id
    assert health["node"]["repo_size"] > len(large[0])
    assert health["limits"]["max_adds"] == 32
    assert health["active"] == {"streams": 0, "uploads": 0, "peer_connections": 0, "subscribers": 0}
