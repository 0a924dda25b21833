"""Processes that publish events until they are killed: `python event_child.py <directory>`.

For every line on stdin a child is forked, which has the modules loaded already. It prints `open <pid> <epoch>`, then
`<id> <publisher> <number>` for each event that is acknowledged; and `dead` is printed once it was killed.
"""

from __future__ import annotations

import asyncio
import os
import sys

from ipfs_stream_nb.notifications.events import Event
from ipfs_stream_nb.notifications.log import SQLiteEngine

PUBLISHERS = 20
MAX_EVENTS = 3000
"""Few, so that some are killed while they trim."""


def say(*words: object) -> None:
    """Print a line in one write: none is lost in a buffer when this process is killed."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def publish_forever(directory: str) -> None:
    """Many publishers at once, each waiting for one event before the next."""
    engine = SQLiteEngine(directory, max_events=MAX_EVENTS)
    await engine.open()
    say("open", os.getpid(), (await engine.bounds()).epoch)

    async def publisher(name: int) -> None:
        number = 0
        while True:
            number += 1
            data = {
                "publisher": name,
                "number": number,
                "pid": os.getpid(),
                "filling": "x" * (number % 7 * 300),
            }
            say(await engine.publish(Event("custom_event", data)), name, number)

    await asyncio.gather(*map(publisher, range(PUBLISHERS)))


if __name__ == "__main__":
    for _line in sys.stdin:
        child = os.fork()
        if not child:
            asyncio.run(publish_forever(sys.argv[1]))
        os.waitpid(child, 0)
        say("dead")
