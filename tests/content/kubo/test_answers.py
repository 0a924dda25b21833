"""Answers that are not Kubo's: of whatever shape, they end in one of our errors."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import inspect
import json
import os
import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fault_proxy import Fault, FaultProxy
from ipfs_stream_nb.content.cid import CID, RAW
from ipfs_stream_nb.content.kubo.answers import Answer, parse_pins
from ipfs_stream_nb.content.kubo.rpc import KuboRPC, go_seconds
from ipfs_stream_nb.errors import IPFSStreamError, RetrievalError
from ipfs_stream_nb.network.optimizer import NetworkOptimizer
from kubo_nodes import rpc_of

ROOT = CID.of(b"root", RAW)
BAD = [
    b"null",
    b"[]",
    b"{}",
    b'"x"',
    b"1",
    b"NaN",
    b"1e999",
    b"[[]]",
    b"",
    b"[" * 200_000,
    b'{"a":' * 200_000,
    b"\xff\xfe",
    b'{"a":' + b"9" * 5000 + b"}",
    b"\n\n \n",
    b'{"Type":"error"}',
    b'{"Type":"error","Message":1}',
    b'{"Type":"error","Message":"\\ud800' + b"x" * 5000 + b'"}',
    b'{"Version":null,"ID":1,"Path":5,"Key":"x","Value":NaN}',
    b'{"Version":"' + b"9" * 5000 + b'"}',
    b'{"Version":"1.x","Path":"\\ud800","Key":{"/":"x"}}',
    b'{"Keys":[]}',
    b'{"Keys":1}',
    b'{"Keys":{"x":{}}}',
    b'{"Keys":{"%s":null}}' % str(ROOT).encode(),
    b'{"Keys":{"%s":{"Name":1}}}' % str(ROOT).encode(),
    b'{"Keys":{"%s":{"Name":"' % str(ROOT).encode(),
    b'{"Size":"x","Hash":"%s"}' % str(ROOT).encode(),
    b'{"Size":NaN,"Hash":"x"}',
    b'{"Size":1e999}',
    b'{"Size":-1}',
    b'{"Size":' + b"9" * 4000 + b"}",
    b'{"Progress":"x"}',
    b'{"Progress":1e999,"Pins":[]}',
    b'{"Peers":1}',
    b'{"Peers":[1],"Responses":[1],"Type":4}',
    b'{"Type":4,"Responses":1}',
    b'{"Type":5,"Extra":"!"}',
    b'{"Type":5,"Extra":"\xc3\xa4"}',
    b'{"Type":5}',
    b'{"Type":3,"Extra":[]}',
    b'{"Success":true,"Time":"x"}',
    b'{"Success":true,"Time":' + b"9" * 4000 + b"}",
    b'{"Success":1}',
    b'{"DagStats":1,"TotalSize":1}',
    b'{"DagStats":[{"NumBlocks":null}],"TotalSize":1}',
    b'{"Root":1}',
    b'{"Root":{"PinErrorMsg":"x"}}',
    b'{"Error":[]}',
    b'{"RepoSize":"x","RepoPath":5}',
]


async def source():
    yield b"abc"


async def drain(items):
    async for _ in items:
        pass


CALLS = {
    "version": lambda rpc: rpc.version(),
    "check": lambda rpc: rpc.check(),
    "id": lambda rpc: rpc.id(),
    "block_get": lambda rpc: rpc.block_get(ROOT),
    "block_put": lambda rpc: rpc.block_put(b"a", codec="raw"),
    "block_size": lambda rpc: rpc.block_size(ROOT),
    "block_has": lambda rpc: rpc.block_has(ROOT),
    "add": lambda rpc: rpc.add(source(), options={}),
    "pin_add": lambda rpc: drain(rpc.pin_add(ROOT, "")),
    "pin_rm": lambda rpc: rpc.pin_rm(ROOT),
    "is_pinned": lambda rpc: rpc.is_pinned(ROOT),
    "pin_ls": lambda rpc: rpc.pin_ls(),
    "repo_stat": lambda rpc: rpc.repo_stat(),
    "repo_gc": lambda rpc: rpc.repo_gc(),
    "swarm_peers": lambda rpc: rpc.swarm_peers(),
    "ping": lambda rpc: rpc.ping("x"),
    "pings": lambda rpc: drain(rpc.pings("x", count=1)),
    "peering_add": lambda rpc: rpc.peering_add("x"),
    "peering_rm": lambda rpc: rpc.peering_rm("x"),
    "peering_ls": lambda rpc: rpc.peering_ls(),
    "config": lambda rpc: rpc.config("a"),
    "set_config": lambda rpc: rpc.set_config("a", 1),
    "provide": lambda rpc: rpc.provide(ROOT),
    "find_providers": lambda rpc: rpc.find_providers(ROOT),
    "bitswap_stat": lambda rpc: rpc.bitswap_stat(),
    "name_resolve": lambda rpc: rpc.name_resolve("x"),
    "routing_get": lambda rpc: rpc.routing_get("/ipns/x"),
    "dag_import": lambda rpc: rpc.dag_import(source(), pin=False),
    "dag_stat": lambda rpc: rpc.dag_stat(ROOT),
    "dag_export": lambda rpc: drain(rpc.dag_export(ROOT)),
}


def test_every_command_is_tried():
    """None is left out of the table."""
    public = {
        name
        for name, _ in inspect.getmembers(KuboRPC, inspect.isfunction)
        if not name.startswith("_") and name in vars(KuboRPC)
    }
    assert public == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
async def test_whatever_is_answered_the_error_is_ours(name):
    """No KeyError, TypeError, OverflowError or RecursionError; and a status other than 200 with it."""
    answer, texts = Fault(status=200), []
    async with FaultProxy("http://127.0.0.1:1", lambda _: answer) as proxy:
        rpc = rpc_of(proxy.url)
        for answer.status in (200, 500):
            for answer.body in BAD:
                try:
                    async with asyncio.timeout(10):
                        await CALLS[name](rpc)
                except IPFSStreamError as error:
                    texts.append(str(error))
        await rpc.close()
    assert max(len(text.encode()) for text in texts) < 2000


@pytest.mark.parametrize("value", [1, [1], [{}], [{"ID": 1}], {"ID": "x"}, "x"])
async def test_a_setting_of_another_shape_is_left_alone(rpc_to, value):
    """NetworkOptimizer changes no list of peers that it does not understand."""
    body = json.dumps({"Key": "Peering.Peers", "Value": value}).encode()

    async def answer(_, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    optimizer = NetworkOptimizer(SimpleNamespace(rpc=await rpc_to(answer)))
    with pytest.raises(RetrievalError, match=r"Peering\.Peers is no list"):
        await optimizer.plan_config()


KEYS = st.sampled_from(
    [
        "Version",
        "ID",
        "Key",
        "Size",
        "Hash",
        "Keys",
        "Name",
        "Pins",
        "Progress",
        "Peers",
        "Peer",
        "Addr",
        "Latency",
        "Success",
        "Time",
        "Text",
        "Error",
        "Type",
        "Extra",
        "Responses",
        "Root",
        "Cid",
        "/",
        "PinErrorMsg",
        "Stats",
        "DagStats",
        "NumBlocks",
        "TotalSize",
        "Value",
        "Path",
        "Message",
        "RepoSize",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(str(ROOT)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=5))
def test_objects_with_kubos_keys_and_other_values(value):
    """Made up at random: the keys that are read, with values of all kinds."""

    async def ask():
        async with FaultProxy(
            "http://127.0.0.1:1", lambda _: Fault(status=200, body=json.dumps(value).encode())
        ) as proxy:
            rpc = rpc_of(proxy.url)
            for call in CALLS.values():
                with contextlib.suppress(IPFSStreamError):
                    await call(rpc)
            await rpc.close()

    asyncio.run(ask())


async def test_the_text_says_what_was_answered(rpc_to):
    """Who, to which command, and what is wrong with it."""

    async def answer(_, writer):
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"Size":"x"}')

    rpc = await rpc_to(answer)
    text = r"Kubo at .* answered block/stat with something that is not Kubo's: \{'Size': 'x'\} has no whole number"
    with pytest.raises(RetrievalError, match=text):
        await rpc.block_size(ROOT)


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"SSH-2.0-OpenSSH\r\n\r\n", b""]
)
async def test_what_is_no_http_is_told(rpc_to, head):
    """Another protocol on the port."""

    async def answer(_, writer):
        writer.write(head)

    with pytest.raises(RetrievalError, match="Kubo at"):
        await (await rpc_to(answer)).version()


async def test_compressed_answers_are_refused(rpc_to):
    """16 MiB of zeros in a few bytes are not unpacked."""
    body = gzip.compress(bytes(16 << 20))

    async def answer(_, writer):
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )

    for name in ("version", "block_get", "pin_ls"):
        with pytest.raises(RetrievalError, match="compresses"):
            await CALLS[name](await rpc_to(answer))


@pytest.mark.parametrize("name", ["repo_stat", "swarm_peers", "pin_ls", "find_providers"])
async def test_a_large_answer_does_not_hold_the_loop(rpc_to, name):
    """Twenty million empty lists, which would be a gigabyte: they are not even parsed."""
    piece = b"[]," * 300_000

    async def answer(_, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n[")
        for _ in range(66):
            writer.write(piece)
            await writer.drain()

    longest, since = 0.0, time.thread_time()  # not counting what a busy machine does meanwhile

    async def beat():
        nonlocal longest, since
        while True:
            longest, since = max(longest, time.thread_time() - since), time.thread_time()
            await asyncio.sleep(0.005)

    beating = asyncio.create_task(beat())
    with pytest.raises(RetrievalError, match=r"of over|with over|not Kubo's"):
        await CALLS[name](await rpc_to(answer))
    await asyncio.sleep(0.1)
    beating.cancel()
    assert longest < 1


async def test_lines_leave_the_loop_to_others(rpc_to):
    """A hundred thousand of short lines that come at once."""
    line = b'{"Key":{"/":"%s"}}\n' % str(ROOT).encode()
    body = line * 100_000

    async def answer(_, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    rpc, turns = await rpc_to(answer), 0

    async def beat():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beating = asyncio.create_task(beat())
    assert await rpc.repo_gc() == 100_000
    beating.cancel()
    assert turns > len(body) // (64 * 1024)


def test_pins_are_read_one_after_the_other():
    """Names with everything in them; none; and what is cut off."""
    names = ["", 'a "b" {c} [d],', "\\", "ä\n", "x" * 255]
    roots = [CID.of(os.urandom(9), RAW) for _ in names]
    keys = {str(root): {"Type": "recursive", "Name": name} for root, name in zip(roots, names, strict=True)}
    for indent in (None, 2):
        body = json.dumps({"Keys": keys}, indent=indent).encode() + b"\n"
        assert parse_pins(body, "it answered") == dict(zip(roots, names, strict=True))
        for cut in range(1, len(body.rstrip())):
            with pytest.raises(RetrievalError, match="it answered with"):
                parse_pins(body[:cut], "it answered")
    for none in (b"", b"{}\n", b'{"Keys":{}}', b'{"Keys": null}\n'):
        assert parse_pins(none, "it answered") == {}


@pytest.mark.parametrize(
    "pattern", [b'{"Keys":{"' + b"x" * 2_000_000, b'{"Keys":{"x":{' + b'"a",' * 500_000, b"{ " * 1_000_000]
)
def test_bad_lists_of_pins_are_seen_soon(pattern):
    """No pattern takes more than a time in proportion to its length."""
    since = time.thread_time()
    with pytest.raises(RetrievalError):
        parse_pins(pattern, "it answered")
    assert time.thread_time() - since < 2


def test_a_duration_without_an_end_is_none():
    """A million digits, which take no time."""
    since = time.thread_time()
    assert go_seconds("9" * 1_000_000) is None
    assert time.thread_time() - since < 1


def test_what_is_null_has_its_default():
    """Go leaves out what is empty, or writes null."""
    answer = Answer({"a": None}, "it answered")
    assert (answer.text("a", "x"), answer.number("b", 3), answer.parts("a"), answer.has("a")) == (
        "x",
        3,
        [],
        False,
    )
    for call in (answer.text, answer.number, answer.part, answer.cid, answer.base64):
        with pytest.raises(RetrievalError, match="it answered with"):
            call("a")
    with pytest.raises(RetrievalError, match="no z"):
        answer.any("z")
