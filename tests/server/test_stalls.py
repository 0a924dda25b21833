"""Large uploads that are allowed leave the event loop its turns: Jupyter, and everybody else's request, runs on it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import time

import pytest

from ipfs_stream_nb.content.cid import CID, RAW
from ipfs_stream_nb_server.limits import MAX_DIRECTORY_BODY, MAX_DIRECTORY_ENTRIES, MAX_DIRECTORY_VALUES
from ipfs_stream_nb_server.multipart import MAX_PARTS

STALL = 1.0
"""Seconds of this process's own work: a guard against standing still, which took two, and no figure of speed: 10 to
60 ms are usual."""
EMPTY = "bafkqaaa"


@contextlib.asynccontextmanager
async def never_stalled():
    """Fails where the process worked for STALL, on whichever thread, without the loop coming round."""
    worst = 0.0
    gc.collect()
    gc.freeze()  # a collection of all that the tests have loaded takes 100 ms by itself

    async def watch():
        nonlocal worst
        while True:
            start = time.process_time()  # other processes on this machine are not meant
            await asyncio.sleep(0.001)
            worst = max(worst, time.process_time() - start)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        gc.unfreeze()
    print(f"{worst * 1000:.0f} ms at most")
    assert worst < STALL, f"the event loop stood still for {worst:.2f} s"


async def pieces(data):
    """A body as a network brings it."""
    for at in range(0, len(data), 1 << 16):
        yield data[at : at + (1 << 16)]


async def answer_to(server, path, data, status, **headers):
    """Send it, watch the loop meanwhile, and give the answer."""
    async with never_stalled(), server.request("POST", path, data=pieces(data), headers=headers) as answer:
        text = await answer.read()
        assert answer.status == status, text[:300]
    return json.loads(text)


def entries(names, cids):
    """The body of POST /ipfs-stream/directories."""
    return json.dumps({"entries": dict(zip(names, cids, strict=True))}, separators=(",", ":")).encode()


@pytest.mark.parametrize("kind", ["text/plain", "application/x-directory"])
async def test_a_form_of_many_parts(server, kind):
    """A form of as many tiny files as may be, or of many directories, deep ones."""
    count = MAX_PARTS if kind == "text/plain" else MAX_PARTS // 2
    parent = "a/" * 40 if kind != "text/plain" else ""
    body = b"".join(
        f'--x\r\nContent-Disposition: form-data; filename="{parent}{number}"\r\nContent-Type: {kind}\r\n\r\n\r\n'.encode()
        for number in range(count)
    )
    added = await answer_to(
        server, "ipfs?pin=0", body + b"--x--\r\n", 201, **{"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert len(added["entries"]) == (count if kind == "text/plain" else 0)


@pytest.mark.parametrize(
    ("parent", "distinct", "status"), [("", False, 201), ("a/" * 25, False, 201), ("", True, 404)]
)
async def test_a_directory_of_many_entries(server, parent, distinct, status):
    """As many entries as may be, in one directory or deep down, of content that is here and of what is not."""
    count = MAX_DIRECTORY_ENTRIES if not parent and not distinct else MAX_DIRECTORY_ENTRIES * 3 // 4
    cids = [str(CID.of(b"%d" % number, RAW)) if distinct else EMPTY for number in range(count)]
    body = entries([f"{parent}{number}" for number in range(count)], cids)
    assert len(body) < MAX_DIRECTORY_BODY
    await answer_to(server, "ipfs-stream/directories?pin=0", body, status)


@pytest.mark.parametrize("value", ["[],", "0,", '"",', "["])
async def test_a_body_that_is_all_nonsense(server, value):
    """As much JSON as may be that means nothing: a 413, and a 400 where it is no more than entries may be."""
    for count, status in [
        ((MAX_DIRECTORY_BODY - 100) // len(value), 413),
        (MAX_DIRECTORY_VALUES // 2 - 3, 400),
    ]:
        body = b'{"entries":[' + value.encode() * count + b"0]}"
        error = await answer_to(server, "ipfs-stream/directories", body, status)
        assert error["code"] in {"bad_request", "too_large"}


async def test_too_many_entries(server):
    """One entry more than may be is a 413 that says what to do instead."""
    count = MAX_DIRECTORY_ENTRIES + 1
    body = entries(map(str, range(count)), [EMPTY] * count)
    error = await answer_to(server, "ipfs-stream/directories", body, 413)
    assert (error["code"], "CAR" in error["error"]) == ("too_large", True)


async def test_too_many_directories(server):
    """Names that would make over a hundred thousand directories are a 413 too: a few MiB of them could take a
    GiB of memory."""
    count = 2_000
    body = entries([f"{number}/{'a/' * 60}x" for number in range(count)], [EMPTY] * count)
    error = await answer_to(server, "ipfs-stream/directories", body, 413)
    assert "directories" in error["error"]
