"""A KuboNode over the session's daemon, with a cache of its own, and services that are no daemons."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from kubo_nodes import node_of, rpc_of
from listening import stop_accepting


@pytest.fixture
async def node(kubo, tmp_path):
    async with node_of(kubo.api, tmp_path / "cache") as node:
        yield node


@pytest.fixture
async def rpc(kubo):
    rpc = rpc_of(kubo.api)
    yield rpc
    await rpc.close()


@pytest.fixture
async def stand_in():
    """`await stand_in(answer)`: the URL of a service that has `answer(reader, writer)` go on from a request's head."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(answer):
            connections = set()

            async def serve(reader, writer):
                connections.add(asyncio.current_task())
                # asyncio's server logs a cancelled connection as an error
                with contextlib.suppress(ConnectionError, EOFError, asyncio.CancelledError):
                    await reader.readuntil(b"\r\n\r\n")
                    await answer(reader, writer)
                    await writer.drain()
                writer.transport.abort()

            async def end():
                await stop_accepting(server)
                server.close()
                for connection in connections:
                    connection.cancel()
                await asyncio.gather(*connections)
                await server.wait_closed()

            server = await asyncio.start_server(serve, "127.0.0.1")
            stack.push_async_callback(end)
            return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

        yield start


@pytest.fixture
async def rpc_to(stand_in):
    """`await rpc_to(answer)`: the RPC to such a service."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(answer):
            rpc = rpc_of(await stand_in(answer))
            stack.push_async_callback(rpc.close)
            return rpc

        yield start
