"""Programs that we did not write, at the streams of a Jupyter server: curl, Node and the `websockets` command line."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.importer import import_bytes
from ipfs_stream_nb_server.standalone import StandaloneServer
from npm_package import npm_package

SECONDS = 60
WS_VERSION = "8"

# written from the guide: it waits for nothing, reads what comes, and knows neither `ready` nor `type`
UPLOAD = """
const { WebSocket } = require(process.env.WS_MODULE);
const fs = require("fs");
const [url, file] = process.argv.slice(-2);
const socket = new WebSocket(url);
socket.on("open", () => {
  const data = fs.readFileSync(file);
  socket.send(JSON.stringify({ filename: "node.bin" }));
  for (let at = 0; at < data.length; at += 65536) socket.send(data.subarray(at, at + 65536));
  socket.send(new Uint8Array(0));
});
socket.on("message", (message, isBinary) => {
  const found = JSON.parse(message);
  if (found.error) { console.error(found.error); process.exit(1); }
  if (found.success) console.log(JSON.stringify(found));
});
socket.on("close", (code) => console.log(JSON.stringify({ code })));
"""

DOWNLOAD = """
const { WebSocket } = require(process.env.WS_MODULE);
const fs = require("fs");
const [url, file] = process.argv.slice(-2);
const socket = new WebSocket(url);
const out = fs.openSync(file, "w");
let first = true;
socket.on("message", (message, isBinary) => {
  if (first) { console.log(message.toString()); first = false; return; }
  if (isBinary) fs.writeSync(out, message);
});
socket.on("close", (code) => console.log(JSON.stringify({ code })));
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[StandaloneServer]:
    """A server on loopback, in a thread."""
    repo = tmp_path_factory.mktemp("sockets") / "repo"
    with StandaloneServer(lambda: EmbeddedNode.open(repo, min_free=0)) as server:
        yield server


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """3 MiB and a bit."""
    path = tmp_path_factory.mktemp("content") / "file.bin"
    path.write_bytes(random.Random(1).randbytes((3 << 20) + 77))
    return path


def program(name: str) -> str:
    """Where it is; skips with the reason where it is not."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture(scope="module")
def node_environment() -> dict[str, str]:
    """Node with the package `ws`, installed once; skips with the reason where either cannot be had."""
    program("node")
    return os.environ | {"WS_MODULE": str(npm_package("ws", WS_VERSION))}


def run(*command: object, **options) -> str:
    """What a program prints."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def curl(served, path: str, *options: object) -> str:
    """What curl gets."""
    return run(
        program("curl"),
        "-sS",
        "-N",
        "-H",
        f"Authorization: token {served.token}",
        *options,
        served.url + path,
    )


def added(served, file: Path) -> str:
    """Its CID, once curl has put it there."""
    answer = json.loads(curl(served, "ipfs", "-X", "POST", "--data-binary", f"@{file}"))
    assert answer["cid"] == str(import_bytes(file.read_bytes()).root)
    return answer["cid"]


def test_curl_reads_events(served, file):
    """`curl -N` on /sse/stream: the events with their names, and all of the content; and from the middle."""
    cid = added(served, file)
    data = file.read_bytes()
    for options, offset in (((), 0), (("-H", "Last-Event-ID: 49152"), 49_152)):
        text = curl(served, f"sse/stream/{cid}", *options)
        blocks = [
            dict(line.split(": ", 1) for line in block.split("\n")) for block in text.strip().split("\n\n")
        ]
        assert [block["event"] for block in blocks] == [
            "metadata",
            *["chunk"] * (len(blocks) - 2),
            "complete",
        ]
        got = b"".join(base64.b64decode(block["data"]) for block in blocks[1:-1])
        assert got == data[offset:]
    status = curl(served, f"sse/stream/{cid}", "-H", f"Last-Event-ID: {len(data)}", "-w", "%{http_code}")
    assert status == "204"


def test_curl_reads_http(served, file, tmp_path):
    """`curl -r` on /ipfs."""
    cid = added(served, file)
    out = tmp_path / "out"
    curl(served, f"ipfs/{cid}", "-r", "1000-", "-o", out)
    assert out.read_bytes() == file.read_bytes()[1000:]


def test_curl_is_refused(served):
    """A handshake without a credential is a 403 in JSON, and a plain GET with one a 400."""
    url = served.url + "ws/upload"
    upgrade = ["-H", "Connection: Upgrade", "-H", "Upgrade: websocket", "-H", "Sec-WebSocket-Version: 13"]
    told = run(program("curl"), "-sS", *upgrade, "-w", "%{http_code}", url)
    assert told.endswith("403")
    assert json.loads(told[:-3])["code"] == "unauthorized"
    assert json.loads(curl(served, "ws/upload"))["code"] == "bad_request"


def test_node_uploads_and_downloads(served, file, tmp_path, node_environment):
    """Node's `ws`, by the guide's sequence, in both directions."""
    url = served.url.replace("http", "ws", 1)
    script = tmp_path / "script.js"
    script.write_text(UPLOAD)
    lines = run(
        "node", script, f"{url}ws/upload?token={served.token}", file, env=node_environment
    ).splitlines()
    result, closed = map(json.loads, lines)
    assert result["cid"] == str(import_bytes(file.read_bytes()).root)
    assert closed == {"code": 1000}
    out = tmp_path / "out.bin"
    script.write_text(DOWNLOAD)
    path = f"ws/stream/{result['cid']}?token={served.token}"
    metadata, closed = map(
        json.loads, run("node", script, url + path, out, env=node_environment).splitlines()
    )
    assert metadata["size"] == file.stat().st_size
    assert closed == {"code": 1000}
    assert out.read_bytes() == file.read_bytes()


async def test_the_websockets_command_line(served):
    """Its interactive client talks to the two-way socket."""
    url = served.url.replace("http", "ws", 1) + f"ws/bidirectional?token={served.token}"
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore", "-m", "websockets", url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    seen = b""
    async with asyncio.timeout(SECONDS):
        for awaited, said in [
            (b'"welcome"', b'{"command":"fly","id":1}\n'),
            (b"is no command", b'{"command":"close"}\n'),
            (b'"goodbye"', b""),
        ]:
            while awaited not in seen:
                piece = await running.stdout.read(4096)
                assert piece, seen
                seen += piece
            running.stdin.write(said)
        running.stdin.close()
        seen += await running.stdout.read()
        await running.wait()
    assert b"1000 (OK)" in seen
