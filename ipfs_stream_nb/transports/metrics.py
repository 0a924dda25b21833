"""`/ws/metrics`: the system's metrics, once a second."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError
from ipfs_stream_nb.notifications.system import MetricsCollector
from ipfs_stream_nb.transports.connection import (
    Connection,
    ConnectionClosedError,
    error_message,
    read_json,
    refuse,
    shown,
)


async def monitor_system_metrics(connection: Connection, collector: MetricsCollector) -> None:
    """`WS /ws/metrics`: {"type": "metrics", "timestamp", "metrics"} at once, then once a second (item 159).

    The metrics are MetricsCollector's, the same for all. A client that is slow gets the newest, and never those in
    between. It may send {"action": "ping"}; anything else is answered with an error, and changes nothing.
    """
    tasks = [
        asyncio.create_task(_send_samples(connection, collector), name="send metrics"),
        asyncio.create_task(_answer(connection), name="listen to a client of metrics"),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        await connection.close()
    except ConnectionClosedError:
        raise
    except Exception as error:  # noqa: BLE001  # told to the client, and noted by the connection
        await refuse(connection, error)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _send_samples(connection: Connection, collector: MetricsCollector) -> None:
    async with aclosing(collector.samples()) as samples:
        async for sample in samples:
            await connection.send_json(
                {"type": "metrics", "timestamp": sample.timestamp, "metrics": sample.metrics}
            )


async def _answer(connection: Connection) -> None:
    while True:
        message = await connection.receive()
        try:
            action = read_json(message, "{'action': 'ping'}").get("action")
            if action != "ping":
                raise BadRequestError(f"this socket knows the action ping alone, not {shown(action)}")
            answer = {"type": "pong", "timestamp": time.time()}
        except IPFSStreamError as error:
            answer = error_message(error)
        await connection.send_json(answer)
