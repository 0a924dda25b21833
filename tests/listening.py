"""The end of asyncio's servers, which the tests' proxies are."""

from __future__ import annotations

import asyncio


async def stop_accepting(server: asyncio.Server) -> None:
    """Take no more connections, and let the handlers of those that came begin; the server is still to be closed.

    `close` alone leaves a connection open that it meets half made (an assertion of CPython 3.11's `Server._attach`), as
    browsers have them that connect ahead.
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener.fileno())
    while any(_accepts(task) for task in asyncio.all_tasks()):  # noqa: ASYNC110 - asyncio tells nobody
        await asyncio.sleep(0)
    await asyncio.sleep(0)


def _accepts(task: asyncio.Task[object]) -> bool:
    return "_accept_connection2" in getattr(task.get_coro(), "__qualname__", "")
