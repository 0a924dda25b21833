"""POST /ipfs: every way to add, every way to do it wrong, and bodies that end too soon."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import random
from pathlib import Path

import aiohttp
import pytest

from ipfs_stream_nb.content.car import encode_header, encode_section
from ipfs_stream_nb.content.cid import CID, DAG_PB
from ipfs_stream_nb.content.importer import get_profile, import_bytes
from ipfs_stream_nb_server.handlers import http
from raw_http import RawConnection

MIB = 1 << 20
DATA = random.Random(5).randbytes(3 * MIB + 321)
CAR = {"Content-Type": "application/vnd.ipld.car"}


async def pieces(data, size=200_000, pause=0.0):
    """A body of unknown length, in pieces."""
    for at in range(0, len(data), size):
        yield data[at : at + size]
        await asyncio.sleep(pause)


def form(*parts, boundary="b0undary"):
    """A multipart body of (name, content, type) and the headers that go with it."""
    body = b""
    for name, content, kind in parts:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        body += head.encode() + f"Content-Type: {kind}\r\n\r\n".encode() + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), {
        "Content-Type": f"multipart/form-data; boundary={boundary}"
    }


async def pins(server):
    """The pinned CIDs."""
    return [pin["cid"] for pin in (await server.json("GET", "ipfs-stream/pins"))["pins"]]


@pytest.mark.parametrize("profile", [None, "unixfs-v0-2015"])
async def test_a_body_is_a_file(server, profile):
    """The CID is the importer's, with a length or in chunks; 201, its place, and a pin with its name."""
    expected = import_bytes(DATA, get_profile(profile))
    params = {"name": "clip.mp4"} | ({"profile": profile} if profile else {})
    for body in (pieces(DATA), io.BytesIO(DATA)):
        async with server.request("POST", "ipfs", params=params, data=body) as answer:
            assert answer.status == 201
            assert answer.headers["Location"] == f"/a%40b/ipfs/{expected.root}"
            assert await answer.json() == {
                "cid": str(expected.root),
                "size": len(DATA),
                "dag_size": expected.dag_size,
                "name": "clip.mp4",
            }
    (pin,) = (await server.json("GET", "ipfs-stream/pins"))["pins"]
    assert (pin["cid"], pin["name"]) == (str(expected.root), "clip.mp4")


async def test_an_empty_body_is_the_empty_file(server):
    """No bytes at all, announced or not, are a file too."""
    assert await server.add(b"") == str(import_bytes(b"", get_profile(None)).root)


async def test_unpinned(server):
    """pin=0 adds and does not pin, so that gc takes it."""
    cid = await server.add(b"for now", pin="0")
    assert await pins(server) == []
    assert (await server.json("POST", "ipfs-stream/gc"))["blocks"] == 1
    assert (await server.json("GET", f"ipfs-stream/stat/{cid}", 404))["code"] == "not_found"


async def test_wrap(server):
    """wrap=1 puts a directory around the file, under `name`."""
    added = await server.json("POST", "ipfs", 201, params={"wrap": "1", "name": "a.txt"}, data=b"text")
    async with server.request("GET", f"ipfs/{added['cid']}/a.txt") as answer:
        assert await answer.read() == b"text"
    assert [entry["name"] for entry in added["entries"]] == ["a.txt"]


# forms


async def test_a_form_of_one_file(server):
    """A browser's form with one file is that file, by its name; with wrap=1, in a directory."""
    body, headers = form(("a b.txt", b"text", "text/plain"))
    added = await server.json("POST", "ipfs", 201, data=body, headers=headers)
    assert (added["cid"], added["name"]) == (str(import_bytes(b"text", get_profile(None)).root), "a b.txt")
    wrapped = await server.json("POST", "ipfs", 201, data=body, headers=headers, params={"wrap": "1"})
    async with server.request("GET", f"ipfs/{wrapped['cid']}/a%20b.txt") as answer:
        assert await answer.read() == b"text"


async def test_a_form_of_several_is_a_directory(server, tmp_path):
    """Relative names, empty directories and symlinks give the CID of `ipfs add -r` of the same tree."""
    tree = tmp_path / "tree"
    (tree / "sub" / "empty").mkdir(parents=True)
    (tree / "sub" / "large.bin").write_bytes(DATA)
    (tree / 'quo"te\r\n%41.txt').write_bytes(b"odd")
    (tree / "ünï.txt").write_bytes(b"")
    (tree / "link").symlink_to("sub/large.bin")
    body, headers = form(
        ("sub", b"", "application/x-directory"),
        ("sub/large.bin", DATA, "application/octet-stream"),
        ("sub/empty", b"", "application/x-directory"),
        ("quo%22te%0D%0A%41.txt", b"odd", "text/plain; charset=utf-8"),
        ("ünï.txt", b"", "text/plain"),
        ("link", b"sub/large.bin", "application/symlink"),
    )
    added = await server.json(
        "POST", "ipfs", 201, data=pieces(body, 1000), headers=headers, params={"name": "t"}
    )
    expected = await (await server.node()).add_path(str(tree), name="t")
    assert added["cid"] == str(expected.cid)
    assert (added["size"], added["dag_size"], added["name"]) == (len(DATA) + 3, expected.dag_size, "t")
    assert {entry["name"] for entry in added["entries"]} == {
        "sub/large.bin",
        'quo"te\r\n%41.txt',
        "ünï.txt",
    }
    assert await pins(server) == [added["cid"]]


async def test_an_empty_directory(server):
    """With wrap=1, a form without parts is the empty directory; without it, it is a mistake."""
    body, headers = form()
    added = await server.json("POST", "ipfs", 201, data=body, headers=headers, params={"wrap": "1"})
    assert added["cid"] == "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"
    assert "no file" in (await server.json("POST", "ipfs", 400, data=body, headers=headers))["error"]


async def test_a_browsers_form_data(server):
    """aiohttp's form, which is written by somebody else, is read as it is meant."""
    data = aiohttp.FormData(quote_fields=False)
    data.add_field("file", b"one", filename="one.txt")
    data.add_field("file", DATA[:100_000], filename="sub/two.bin", content_type="application/octet-stream")
    added = await server.json("POST", "ipfs", 201, data=data)
    assert [(entry["name"], entry["size"]) for entry in added["entries"]] == [
        ("one.txt", 3),
        ("sub/two.bin", 100_000),
    ]


@pytest.mark.parametrize(
    "name",
    ["../up.txt", "a/../../up", "/etc/passwd", "a//b", "./a", "a/.", "..", ".", "a\0b", "a/", "x" * 5000],
)
async def test_bad_names_in_forms(server, name):
    """A name that leads elsewhere, or nowhere, is a 400 that shows it; nothing is kept."""
    body, headers = form(("good.txt", b"good", "text/plain"), (name, b"bad", "text/plain"))
    error = await server.json("POST", "ipfs", 400, data=body, headers=headers)
    assert error["code"] == "bad_request"
    assert await pins(server) == []


@pytest.mark.parametrize(
    ("names", "words"),
    [(("a", "a"), "twice"), (("a", "a/b"), "file"), (("a/b", "a"), "twice")],
)
async def test_names_that_clash(server, names, words):
    """Two files of one name, or a file below a file, are a 400."""
    body, headers = form(*((name, b"x", "text/plain") for name in names))
    assert words in (await server.json("POST", "ipfs", 400, data=body, headers=headers))["error"]


GOOD, FORM = form(("a.txt", b"text", "text/plain"))


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (GOOD, {"Content-Type": "multipart/form-data"}, 400),
        (GOOD, {"Content-Type": "multipart/form-data; boundary="}, 400),
        (GOOD, {"Content-Type": f"multipart/form-data; boundary={'x' * 300}"}, 400),
        (GOOD, {"Content-Type": "multipart/form-data; boundary=other"}, 400),
        (GOOD[:-10], FORM, 400),
        (GOOD[:60], FORM, 400),
        (b"", FORM, 400),
        (b"no form at all", FORM, 400),
        (GOOD.replace(b'; filename="a.txt"', b""), FORM, 400),
        (GOOD.replace(b"a.txt", b""), FORM, 400),
        (GOOD.replace(b"a.txt", b"\xff\xfe"), FORM, 400),
        (GOOD.replace(b"form-data;", b"attachment;"), FORM, 400),
        (GOOD.replace(b"Content-Disposition", b"X-Other"), FORM, 400),
        (GOOD.replace(b"\r\n\r\n", b"\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", 1), FORM, 400),
        (GOOD.replace(b"\r\n\r\n", b"\r\nX: y" * 50 + b"\r\n\r\n", 1), FORM, 400),
        (form(("l", b"x" * 5000, "application/symlink"), ("b", b"", "text/plain"))[0], FORM, 413),
        (form(("l", b"\xff", "application/symlink"), ("b", b"", "text/plain"))[0], FORM, 400),
        (form(("d", b"x" * 5000, "application/x-directory"))[0], FORM, 413),
    ],
)
async def test_bad_forms(server, body, headers, status):
    """Each is an error that says what is wrong; nothing is pinned, and the upload's slot is free again."""
    error = await server.json("POST", "ipfs", status, data=body, headers=headers)
    assert error["code"] in {"bad_request", "too_large"}
    assert await pins(server) == []
    await let_go(server)


# CARs


async def test_a_car(server):
    """A CAR's blocks come in, verified, and its roots are pinned; roots that it lacks are named."""
    made = import_bytes(DATA, get_profile(None))
    absent = CID.of(b"absent")
    car = encode_header([made.root, absent]) + b"".join(encode_section(*block) for block in made.blocks)
    added = await server.json("POST", "ipfs", 201, data=pieces(car), headers=CAR)
    assert added["roots"] == [str(made.root), str(absent)]
    assert added["missing"] == [str(absent)]
    assert (added["cid"], added["blocks"]) == (str(made.root), len(made.blocks))
    assert await pins(server) == [str(made.root)]
    async with server.request("GET", f"ipfs/{made.root}") as answer:
        assert await answer.read() == DATA


HEADER = encode_header([CID.of(b"a")])
SECTION = encode_section(CID.of(b"a"), b"a")


@pytest.mark.parametrize(
    "car",
    [
        b"",
        b"no car",
        HEADER + encode_section(CID.of(b"a"), b"b"),
        (HEADER + SECTION)[:-1],
        HEADER[:-1],
        HEADER + b"\xff" * 20,
        encode_header([CID.of(b"\xff", DAG_PB)]) + encode_section(CID.of(b"\xff", DAG_PB), b"\xff"),
    ],
    ids=["empty", "nonsense", "wrong block", "cut block", "cut header", "endless varint", "no dag-pb"],
)
async def test_bad_cars(server, car, caplog):
    """What is no CAR, a wrong block or a cut CAR is the client's mistake: a 400, no pin, no error in the log."""
    error = await server.json("POST", "ipfs", 400, data=car, headers=CAR)
    assert error["code"] == "corrupt_content"
    assert await pins(server) == []
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    error = await server.json("POST", "ipfs", 400, data=car, headers=CAR, params={"wrap": "1"})
    assert "CAR" in error["error"]


# what is here already


async def test_a_directory_of_what_is_here(server):
    """POST /ipfs-stream/directories links CIDs under names."""
    cid = await server.add(b"text")
    body = {"entries": {"a/b.txt": cid, "c.txt": cid}}
    added = await server.json("POST", "ipfs-stream/directories", 201, json=body, params={"name": "d"})
    async with server.request("GET", f"ipfs/{added['cid']}/a/b.txt") as answer:
        assert await answer.read() == b"text"
    assert await pins(server) == [cid, added["cid"]]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"entries": []}, 400),
        ({"entries": {"a": 5}}, 400),
        ({"entries": {"a": "nonsense"}}, 400),
        ({"entries": {"../a": str(CID.of(b""))}}, 404),
        ({"entries": {"a": str(CID.of(b"absent"))}}, 404),
    ],
)
async def test_bad_directories(server, body, status):
    """What is no list of entries is a 400, an entry that is not here a 404."""
    await server.json("POST", "ipfs-stream/directories", status, json=body)


# refusals


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"profile": "nonsense"}, "unixfs-v1-2025"),
        ({"pin": "yes"}, "pin"),
        ({"wrap": "true"}, "wrap"),
        ({"wrap": "1"}, "name"),
        ({"names": "x"}, "'names'"),
        ({"name": "x" * 2000}, "1024"),
        ({"name": "\0"}, "control"),
        ({"name": "a\r\nb"}, "control"),
        ({"name": "\x9f"}, "control"),
        ({"wrap": "1", "name": "a/../b"}, "'..'"),
    ],
)
async def test_bad_parameters(server, params, words):
    """A wrong parameter is a 400 that names it and what it may be."""
    error = await server.json("POST", "ipfs", 400, params=params, data=pieces(DATA))
    assert words in error["error"]
    await let_go(server)


async def let_go(server):
    """Wait until no upload is running; the server's slots have no event for it."""
    async with asyncio.timeout(20):
        while server.context.adds.active:  # noqa: ASYNC110  # see above
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"max_add_size": MIB}}])
async def test_too_large(server):
    """Over max_add_size: a 413 that a client sees although it is still sending, announced or found out."""
    for body in (pieces(DATA), None):
        headers = {} if body else {"Content-Length": str(len(DATA))}
        error = await server.json("POST", "ipfs", 413, data=body or pieces(DATA), headers=headers)
        assert (error["code"], str(MIB) in error["error"]) == ("too_large", True)
    assert await pins(server) == []
    await let_go(server)
    assert await server.add(DATA[: MIB - 1])


@pytest.mark.parametrize("server_config", [{"ServerApp": {"max_body_size": 1000}}])
async def test_jupyters_own_body_limit_does_not_count(server):
    """Jupyter's limit (512 MiB by default) is for bodies in memory; an upload has its own."""
    assert await server.add(DATA)


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"quota": MIB}}])
async def test_quota(server):
    """Over the store's quota: a 507, and what was there before is as it was."""
    before = await server.add(b"before")
    error = await server.json("POST", "ipfs", 507, data=pieces(DATA))
    assert error["code"] == "quota_exceeded"
    assert await pins(server) == [before]
    await let_go(server)


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"min_free": 1 << 60}}])
async def test_low_disk(server):
    """Where less than min_free would stay free: a 507 too."""
    assert (await server.json("POST", "ipfs", 507, data=pieces(DATA)))["code"] == "quota_exceeded"


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"max_adds": 1}}])
async def test_too_many_at_once(server):
    """Over max_adds: a 503 that says when to come again, and the running upload goes on."""
    gate = asyncio.Event()

    async def slow():
        yield DATA[:1000]
        await gate.wait()
        yield DATA[1000:2000]

    running = asyncio.create_task(server.json("POST", "ipfs", 201, data=slow()))
    async with asyncio.timeout(20):
        while not server.context.adds.active:  # noqa: ASYNC110  # no event tells of it
            await asyncio.sleep(0.01)
    async with server.request("POST", "ipfs", data=b"x") as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert (await answer.json())["code"] == "busy"
    assert (await server.json("GET", "ipfs-stream/health"))["active"]["uploads"] == 1
    gate.set()
    assert (await running)["size"] == 2000


async def test_rights_come_before_the_body(server):
    """Without rights, the 403 comes before a byte of the body was sent, and leave to send it is not given."""
    for expect in ({}, {"Expect": "100-continue"}):
        async with await RawConnection.open(server) as connection:
            await connection.send_head(
                "POST", "ipfs", Authorization="token wrong", Content_Length=str(1 << 40), **expect
            )
            answer = await connection.answer()
            assert answer.status == 403
            assert json.loads(answer.body)["code"] == "unauthorized"
            assert ("Connection" in answer.headers) == bool(expect)


async def test_leave_to_send(server):
    """With rights, a client that asks for leave (curl does) gets it, and is served."""
    async with await RawConnection.open(server) as connection:
        await connection.send_head("POST", "ipfs", Content_Length="4", Expect="100-continue")
        assert (await connection.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        await connection.send(b"text")
        assert (await connection.answer()).status == 201


@pytest.mark.parametrize(("limit", "value"), [("LINGER_BYTES", 100_000), ("LINGER_SECONDS", 0.2)])
async def test_a_refused_client_that_goes_on_is_closed(server, monkeypatch, limit, value):
    """What comes after a refusal is read for a while so that the answer arrives, and then no more."""
    monkeypatch.setattr(http, limit, value)
    async with await RawConnection.open(server) as connection:
        await connection.send_head("POST", "ipfs", Authorization="token wrong", Content_Length=str(1 << 40))
        assert (await connection.answer()).status == 403
        with pytest.raises(OSError):
            async with asyncio.timeout(20):
                while True:
                    await connection.send(b"x" * 10_000)
                    await asyncio.sleep(0.001)


# bodies that end too soon, or too late


@pytest.mark.parametrize(
    "headers", [{}, FORM, CAR, {"params": "wrap"}], ids=["file", "form", "car", "wrapped"]
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_cut_bodies(server, headers, chunked):
    """A client that is cut off in the middle leaves no pin, no slot, and blocks that gc takes."""
    body = {
        "multipart/form-data; boundary=b0undary": form(("a", DATA, "x/y"))[0],
        "application/vnd.ipld.car": encode_header([CID.of(DATA[:MIB])])
        + encode_section(CID.of(DATA[:MIB]), DATA[:MIB])
        + encode_section(CID.of(DATA[MIB : 2 * MIB]), DATA[MIB : 2 * MIB]),
    }.get(headers.get("Content-Type"), DATA)
    query = "?wrap=1&name=a" if "params" in headers else ""
    framing = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(body))}
    shown = {name: value for name, value in headers.items() if name != "params"}
    async with await RawConnection.open(server) as connection:
        await connection.send_head("POST", f"ipfs{query}", **shown, **framing)
        part = body[: len(body) - 100]
        await connection.send(f"{len(part) + 50:x}\r\n".encode() + part if chunked else part)
    await let_go(server)
    assert await pins(server) == []
    await server.json("POST", "ipfs-stream/gc")
    assert (await server.json("GET", "ipfs-stream/health"))["node"]["blocks"] == 0


async def test_more_than_announced(server):
    """Bytes after the announced end are not part of the file; they are no request either."""
    async with await RawConnection.open(server) as connection:
        await connection.send_head("POST", "ipfs", Content_Length="4")
        await connection.send(b"text and more\r\n\r\n")
        answer = await connection.answer()
        assert (answer.status, json.loads(answer.body)["size"]) == (201, 4)
        assert (await connection.reader.read()).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "5, 6", "9" * 30])
async def test_nonsense_lengths(server, length):
    """A Content-Length that is no number, or no number of this world, never gets as far as an add."""
    async with await RawConnection.open(server) as connection:
        await connection.send_head("POST", "ipfs", Content_Length=length)
        assert (await connection.head()).status in {400, 413}
    await let_go(server)
    assert await pins(server) == []


@pytest.mark.parametrize("server_config", [{"IPFSStreamExtension": {"stall_timeout": 1.0}}])
async def test_a_client_that_sends_nothing_more_is_closed(server):
    """After the stall limit the connection is closed, and the slot is free."""
    async with await RawConnection.open(server) as connection:
        await connection.send_head("POST", "ipfs", Content_Length="1000")
        await connection.send(b"x")
        assert await connection.reader.read() == b""
    await let_go(server)
    assert await pins(server) == []


# progress


async def lines_of(answer):
    """The lines of an NDJSON answer."""
    return [json.loads(line) async for line in answer.content]


async def test_progress_lines(server):
    """With Accept: application/x-ndjson, progress comes while the body goes, and the result is the last line."""
    expected = import_bytes(DATA, get_profile(None))
    headers = {"Accept": "application/x-ndjson"}
    async with server.request("POST", "ipfs", data=pieces(DATA, 400_000, 0.06), headers=headers) as answer:
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/x-ndjson")
        *progress, result = await lines_of(answer)
    done = [line["bytes_processed"] for line in progress]
    assert {line["type"] for line in progress} == {"progress"}
    assert len(done) >= 2
    assert done == sorted(done)
    assert done[-1] <= len(DATA)
    assert (result["type"], result["cid"], result["size"]) == ("result", str(expected.root), len(DATA))
    async with server.request("POST", "ipfs", data=b"quick", headers=headers) as answer:
        assert [line["type"] for line in await lines_of(answer)] == ["result"]


async def test_an_error_after_progress_is_the_last_line(server):
    """Where lines were sent already, an error is a line too, and the answer ends properly."""
    body, headers = form(("a", DATA, "x/y"), ("../b", b"", "x/y"))
    headers |= {"Accept": "application/x-ndjson"}
    async with server.request("POST", "ipfs", data=pieces(body, 400_000, 0.06), headers=headers) as answer:
        *progress, error = await lines_of(answer)
    assert progress
    assert (error["type"], error["code"]) == ("error", "bad_request")
    assert await pins(server) == []


async def test_memory(server):
    """192 MiB through POST take a few MiB of memory."""

    def anonymous():
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024

    block = random.Random(6).randbytes(MIB)
    peak = 0

    async def body():
        nonlocal peak
        for number in range(192):
            yield number.to_bytes(8, "big") + block[8:]
            peak = max(peak, anonymous())

    await server.add(block)  # what is needed once is not counted
    before = anonymous()
    added = await server.json("POST", "ipfs", 201, data=body())
    assert added["size"] == 192 * MIB
    assert peak - before < 64 * MIB, f"{(peak - before) / MIB:.0f} MiB"
