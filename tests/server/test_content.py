"""GET, HEAD and DELETE /ipfs over real HTTP: what the gateway answers, and how it is sent."""

from __future__ import annotations

import asyncio
import json
import random
from email import message_from_bytes
from email.policy import HTTP

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import range_oracle
from gateway_site import CLIP, HTML, SVG, Site
from raw_http import RawConnection
from store_trees import damage

MIB = 1 << 20
SITE = Site()


@pytest.fixture
async def site(server):
    """The gateway tests' site, in the server's store."""
    node = await server.node()
    for cid, data in SITE.blocks.items():
        if not cid.is_identity:
            node.store.put(cid, data, verify=False)
    return SITE.cids


async def test_round_trip(server, large):
    """What was posted comes back: whole by GET, its headers alone by HEAD."""
    data, cid = large
    for method, body in [("GET", data), ("HEAD", b"")]:
        async with server.request(method, f"ipfs/{cid}") as answer:
            assert answer.status == 200
            assert answer.headers["Content-Length"] == str(len(data))
            assert answer.headers["ETag"] == f'"{cid}"'
            assert answer.headers["Accept-Ranges"] == "bytes"
            assert "Content-Encoding" not in answer.headers
            assert await answer.read() == body


async def test_connections_are_kept(server, large):
    """One connection carries answers of every kind one after the other, also those sent from the store."""
    data, cid = large
    async with await RawConnection.open(server, limit=16 * MIB) as connection:
        for path, headers, status, body in [
            (f"ipfs/{cid}", {}, 200, data),
            (f"ipfs/{cid}", {"Range": "bytes=5-"}, 206, data[5:]),
            ("ipfs/nonsense", {}, 400, None),
            (f"ipfs/{cid}", {"If-None-Match": "*"}, 304, b""),
            (f"ipfs/{cid}", {"Range": "bytes=1000-1999"}, 206, data[1000:2000]),
            (f"ipfs/{cid}", {"Authorization": "token wrong"}, 403, None),
            (f"ipfs/{cid}", {"Range": f"bytes=0-{3 * MIB}"}, 206, data[: 3 * MIB + 1]),
        ]:
            await connection.send_head("GET", path, **headers)
            answer = await connection.head()
            length = 0 if status == 304 else int(answer.headers["Content-Length"])
            received = await connection.reader.readexactly(length)
            assert answer.status == status
            assert body is None or received == body


async def test_head_of_what_has_no_known_length(server, site):
    """HEAD of a CAR announces no length, nothing follows it, and the connection goes on."""
    cid = await server.add(b"some content")
    async with await RawConnection.open(server) as connection:
        await connection.send_head("HEAD", f"ipfs/{cid}?format=car")
        answer = await connection.head()
        assert answer.status == 200
        assert "Content-Length" not in answer.headers
        assert answer.headers["Transfer-Encoding"] == "chunked"
        await connection.send_head("GET", f"ipfs/{cid}")
        assert (await connection.answer()).body == b"some content"


@given(
    ranges=st.lists(
        st.tuples(st.integers(0, 30), st.one_of(st.none(), st.integers(0, 30)), st.booleans()),
        min_size=1,
        max_size=6,
    ),
    size=st.sampled_from([0, 1, 20, 25]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def ranges_agree(ask, ranges, size):
    """One generated Range header, asked and compared."""
    specs = [
        f"-{first}" if suffix else f"{first}-{'' if last is None else last}" for first, last, suffix in ranges
    ]
    ask(f"bytes={','.join(specs)}", size)


async def test_ranges_agree_with_the_oracle(server):
    """Generated Range headers over HTTP give exactly the bytes that an independent reading of RFC 9110 gives."""
    contents = {size: bytes(range(65, 65 + size)) for size in (0, 1, 20, 25)}
    cids = {size: await server.add(data) for size, data in contents.items()}
    loop = asyncio.get_running_loop()

    async def check(header, size):
        expected, parts = range_oracle.response(header, contents[size])
        async with server.request("GET", f"ipfs/{cids[size]}", headers={"Range": header}) as answer:
            assert answer.status == expected, header
            body = await answer.read()
            assert int(answer.headers["Content-Length"]) == len(body)
            if expected == 416:
                assert answer.headers["Content-Range"] == parts[0][0]
                assert json.loads(body)["code"] == "bad_request"
            elif len(parts) == 1:
                assert body == parts[0][1]
                assert answer.headers.get("Content-Range", "") == parts[0][0]
            else:
                head = f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode()
                found = message_from_bytes(head + body, policy=HTTP).get_payload()
                assert [(one["Content-Range"], one.get_content().encode()) for one in found] == [
                    (content_range, data) for content_range, data in parts
                ]

    def ask(header, size):
        asyncio.run_coroutine_threadsafe(check(header, size), loop).result(30)

    await asyncio.to_thread(ranges_agree, ask)
    for header in ("bytes=0-" + "9" * 5000, "bytes=" + "9" * 5000 + "-", "bytes=-" + "9" * 5000, "bytes=x"):
        await check(header, 20)


async def test_ranges_across_blocks(server, large):
    """Ranges that begin and end anywhere in several blocks are those bytes."""
    data, cid = large
    seed = random.Random(2)
    for _ in range(30):
        first = seed.randrange(len(data))
        last = min(len(data) - 1, first + seed.choice([0, 1, 1000, 130_000, MIB, 5 * MIB]))
        async with server.request("GET", f"ipfs/{cid}", headers={"Range": f"bytes={first}-{last}"}) as answer:
            assert answer.status == 206
            assert await answer.read() == data[first : last + 1]
    async with server.request(
        "GET", f"ipfs/{cid}", headers={"Range": "bytes=0-99,2000000-5000000"}
    ) as answer:
        head = f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode()
        parts = message_from_bytes(head + await answer.read(), policy=HTTP).get_payload()
        assert [part.get_payload(decode=True) for part in parts] == [data[:100], data[2000000:5000001]]


@pytest.mark.parametrize(("name", "body"), [("page", HTML), ("svg", SVG)])
async def test_active_content_is_harmless(server, site, name, body):
    """HTML and SVG come as attachments in a sandbox, not to be sniffed, not for other sites."""
    async with server.request("GET", f"ipfs/{site[name]}") as answer:
        assert await answer.read() == body
        assert answer.headers["Content-Disposition"].startswith("attachment")
        assert answer.headers.getall("Content-Security-Policy") == ["default-src 'none'; sandbox"]
        assert answer.headers.getall("X-Content-Type-Options") == ["nosniff"]
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["Cache-Control"].startswith("private")


@pytest.mark.parametrize(
    "server_config",
    [
        {
            "ServerApp": {
                "tornado_settings": {
                    "headers": {"Content-Security-Policy": "frame-ancestors *", "X-House": "ours"},
                    "compress_response": True,
                }
            }
        }
    ],
)
async def test_the_operators_headers_do_not_weaken_ours(server, site):
    """Headers for all of Jupyter are sent, but not in place of the sandbox; nor is content compressed."""
    text = await server.add(b"compressible " * 1000)
    for path in (f"ipfs/{text}", f"ipfs-stream/stat/{text}", "ipfs/nonsense"):
        async with server.request("GET", path, headers={"Accept-Encoding": "gzip"}) as answer:
            assert answer.headers.getall("Content-Security-Policy") == ["default-src 'none'; sandbox"]
            assert answer.headers["X-House"] == "ours"
            assert "Content-Encoding" not in answer.headers
    headers = {"Accept-Encoding": "gzip", "Range": "bytes=0-11"}
    async with server.request("GET", f"ipfs/{text}", headers=headers) as answer:
        assert (answer.status, await answer.read()) == (206, b"compressible")


async def test_directories(server, site):
    """A directory is redirected to its slash within the base URL, listed, and its index.html found."""
    async with server.request("GET", f"ipfs/{site['root']}?a=b") as answer:
        assert answer.status == 301
        assert answer.headers["Location"] == f"./{site['root']}/?a=b"  # relative to the base URL's ipfs/
    async with server.request("GET", f"ipfs/{site['root']}/") as answer:
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "clip.mp4" in await answer.text()
    async with server.request("GET", f"ipfs/{site['root']}/clip.mp4") as answer:
        assert (answer.headers["Content-Type"], await answer.read()) == ("video/mp4", CLIP)


async def test_a_capability_survives_a_redirect(server, site):
    """Who reads a directory with a token in the URL is sent on with it."""
    granted = await server.json(
        "POST", "ipfs-stream/tokens", json={"action": "read", "cid": str(site["root"])}
    )
    async with server.anonymous("GET", f"ipfs/{site['root']}?token={granted['token']}") as answer:
        assert answer.status == 301
        path = f"ipfs/{site['root']}/{answer.headers['Location'].rpartition('/')[2]}"
    async with server.anonymous("GET", path) as answer:
        assert answer.status == 200


async def test_formats(server, site):
    """Blocks and CARs by `format` and by Accept; a CAR without a length ends as chunks do."""
    root = site["clip"]
    for headers, query in [({}, "?format=raw"), ({"Accept": "application/vnd.ipld.raw"}, "")]:
        async with server.request("GET", f"ipfs/{root}{query}", headers=headers) as answer:
            assert await answer.read() == SITE.blocks[root]
    async with server.request("GET", f"ipfs/{root}?format=car") as answer:
        car = await answer.read()
    answer = await server.json(
        "POST", "ipfs", 201, data=car, headers={"Content-Type": "application/vnd.ipld.car"}
    )
    assert answer["roots"] == [str(root)]
    async with await RawConnection.open(server) as old:
        await old.send(
            f"GET /a%40b/ipfs/{root}?format=car&token={server.token} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode()
        )
        assert (await old.reader.read()).partition(b"\r\n\r\n")[2] == car


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("nonsense", 400, "bad_cid"),
        ("QmNonsense", 400, "bad_cid"),
        ("bafkrmih", 400, "bad_cid"),
        ("bafkrwigbygwe6cdsbpkkqjxrkpo7fqs4fs7dhd4", 400, "bad_cid"),  # truncated hash
        ("f01551114" + "00" * 20, 400, "bad_cid"),  # sha1
        ("{absent}", 404, "not_found"),
        ("{root}/missing", 404, "not_found"),
        ("{hello}/below", 404, "not_a_directory"),
        ("{root}/../../etc/passwd", 400, "bad_request"),
        ("{root}/%2e%2e/x", 400, "bad_request"),
        ("{root}/a%00b", 400, "bad_request"),
        ("{root}/a%2Fb", 400, "bad_request"),
        ("{root}/a%zzb", 400, "bad_request"),
        ("{root}/a%FFb", 400, "bad_request"),
        ("{root}/loop/x", 400, "bad_request"),
        ("{root}/out/x", 400, "bad_request"),
        ("{clip}?format=nonsense", 400, "bad_request"),
        ("{clip}?format=car&dag-scope=everything", 400, "bad_request"),
        ("{clip}?format=tar", 406, "bad_request"),
        ("{not-unixfs}", 415, "unsupported_media"),
        ("{root}/" + "x/" * 3000, 413, "too_large"),
    ],
)
async def test_bad_paths(server, site, path, status, code):
    """Each is an error of the protocol with its code; none is a 500, a redirect or a broken connection."""
    async with await RawConnection.open(server) as connection:
        await connection.send_head("GET", f"ipfs/{path.format(**site)}")
        answer = await connection.answer()
    assert answer.headers["Content-Type"] == "application/json"
    error = json.loads(answer.body)
    assert (answer.status, error["code"], error["type"]) == (status, code, "error"), error
    assert error["error"] == error["message"]
    assert answer.headers["Cache-Control"] == "no-store"


async def test_a_hole_in_the_middle_breaks_the_connection(server, site):
    """A file with a missing block: a JSON error where it is the first that is asked for, a break after that."""
    async with server.request("GET", f"ipfs/{site['broken']}", headers={"Range": "bytes=5000-"}) as answer:
        assert answer.status == 504
        error = await answer.json()
        assert error["code"] == "retrieval_failed"
        assert str(SITE.missing) in error["error"]
    async with await RawConnection.open(server) as connection:
        await connection.send_head("GET", f"ipfs/{site['broken']}")
        answer = await connection.head()
        assert answer.status == 200
        received = await connection.reader.read()
        assert len(received) < int(answer.headers["Content-Length"]) == 10_000
        assert received == bytes((i * 7) % 253 for i in range(len(received)))


async def test_a_cut_car_does_not_end_cleanly(server, site):
    """Where there is no Content-Length, the last chunk is withheld from an answer that is not whole."""
    async with await RawConnection.open(server) as connection:
        await connection.send_head("GET", f"ipfs/{site['broken']}?format=car")
        answer = await connection.head()
        assert answer.headers["Transfer-Encoding"] == "chunked"
        assert not (await connection.reader.read()).endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("block", [0, 3])
async def test_damaged_bytes_are_not_served(server, large, block):
    """A stored block that was changed behind the store's back: an error or a break, and no wrong byte."""
    data, cid = large
    node = await server.node()
    await asyncio.to_thread(damage, node.store.path, data[block * MIB : (block + 1) * MIB])
    node.store._env.integrity.clear()
    async with await RawConnection.open(server, limit=16 * MIB) as connection:
        await connection.send_head("GET", f"ipfs/{cid}")
        if block == 0:
            answer = await connection.answer()
            assert answer.status == 502
            assert json.loads(answer.body)["code"] == "corrupt_content"
            return
        assert (await connection.head()).status == 200
        received = await connection.reader.read()
        assert len(received) < len(data)
        assert data.startswith(received)


async def test_delete(server, large):
    """DELETE takes a root's blocks away; a path below a root cannot be deleted; what is gone is gone."""
    _, cid = large
    error = await server.json("DELETE", f"ipfs/{cid}/name", 400)
    assert "whole root" in error["error"]
    freed = await server.json("DELETE", f"ipfs/{cid}")
    assert freed["blocks"] == 11
    assert (await server.json("GET", f"ipfs/{cid}", 404))["code"] == "not_found"
    assert (await server.json("GET", "ipfs-stream/pins"))["pins"] == []
