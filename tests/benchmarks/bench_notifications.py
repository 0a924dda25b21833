"""Notifications: what a delivery costs the server beside plain Tornado and Starlette, what an idle subscriber takes, and
how quick the log is.

Each server has the same subscribers, raw sockets that one process reads, and is sent the same events one after the other
by HTTP. Ours commits each to its log and filters by rights and subscriptions; the peers only write.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import resource
import selectors
import socket
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from bench_sockets import connect, frame
from http_servers import TOKEN, Served, free_port, jupyter
from measure import MIB, Result, anonymous_bytes, random_file, report

from ipfs_stream_nb.notifications.events import Event, NotificationType
from ipfs_stream_nb.notifications.log import SQLiteEngine

EVENT = {"n": 0, "text": "x" * 60}
"""Some 200 bytes as a notification."""

TORNADO = """
import asyncio, sys
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler
clients = set()
class Socket(WebSocketHandler):
    def open(self): clients.add(self)
    def on_close(self): clients.discard(self)
class Publish(RequestHandler):
    async def post(self):
        text = self.request.body.decode()
        for client in list(clients):
            await client.write_message(text)
        self.write("{}")
async def main():
    Application([("/socket", Socket), ("/publish", Publish)]).listen(int(sys.argv[1]), "127.0.0.1")
    await asyncio.Event().wait()
asyncio.run(main())
"""
STARLETTE = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
clients = set()
async def listen(socket):
    await socket.accept()
    clients.add(socket)
    try:
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass
    finally:
        clients.discard(socket)
async def publish(request):
    text = (await request.body()).decode()
    for client in list(clients):
        await client.send_text(text)
    return JSONResponse({})
app = Starlette(routes=[WebSocketRoute("/socket", listen), Route("/publish", publish, methods=["POST"])])
uvicorn.run(app, port=int(sys.argv[1]), ws=sys.argv[2], ws_per_message_deflate=False, log_level="warning", backlog=4096)
"""
IMPLEMENTATIONS = ("websockets", "websockets-sansio", "wsproto")


def plain_tornado() -> Served:
    """`write_message` to each."""
    port = free_port()
    return Served("Tornado's write_message", port, "/socket", [sys.executable, "-c", TORNADO, str(port)])


def starlette(implementation: str) -> Served:
    """`send_text` to each."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-c", STARLETTE, str(port), implementation]
    return Served(f"Starlette, {implementation}", port, "/socket", command)


def cpu_seconds(pid: int) -> float:
    """The processor time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Subscribers:
    """Sockets that a thread reads, and counts the events of."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self._sockets = sockets
        self._selector = selectors.DefaultSelector()
        for each in sockets:
            each.setblocking(False)
            self._selector.register(each, selectors.EVENT_READ)
        self.count = 0
        self._stop = False
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._stop:
            for key, _ in self._selector.select(0.1):
                data = key.fileobj.recv(MIB)
                assert data, "a server broke off"
                self.count += data.count(b'"text":')

    def wait_for(self, count: int) -> None:
        """Wait until so many have come in all."""
        deadline = time.monotonic() + 120
        while self.count < count:
            assert time.monotonic() < deadline, f"{self.count} of {count} events came"
            time.sleep(0.002)

    def close(self) -> None:
        """End."""
        self._stop = True
        self._thread.join()
        self._selector.close()
        for each in self._sockets:
            each.close()


def subscribe(served: Served, path: str, count: int, command: bytes | None) -> list[socket.socket]:
    """So many subscribers' sockets; what they are told at first is read already."""
    sockets = []
    for _ in range(count):
        connection = connect(served, path)
        if command is not None:
            connection.sendmsg(frame(command, 1))
            seen = b""
            while b"subscription_confirmed" not in seen:
                seen += connection.recv(65_536)
        sockets.append(connection)
    return sockets


def publish(served: Served, path: str, body: bytes, events: int) -> None:
    """Send events, one after the other."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port)
    for _ in range(events):
        connection.request("POST", path, body, {**served.headers, "Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text
    connection.close()


def deliver(served: Served, crowd: Subscribers, path: str, body: bytes, events: int) -> tuple[float, float]:
    """Microseconds of the server's processor for a delivery, and deliveries a second."""
    due = crowd.count + events * len(crowd._sockets)
    begun, cpu = time.perf_counter(), cpu_seconds(served.pid)
    publish(served, path, body, events)
    crowd.wait_for(due)
    seconds = time.perf_counter() - begun
    deliveries = events * len(crowd._sockets)
    return (cpu_seconds(served.pid) - cpu) / deliveries * 1e6, deliveries / seconds


def fan_out(subscribers: int, events: int, rounds: int) -> None:
    """Ours beside both peers."""
    notification = json.dumps(
        {"type": "notification", "notification_type": "custom_event", "data": EVENT, "timestamp": time.time(),
         "source": "bench", "id": 1, "prev": 0}, separators=(",", ":")
    ).encode()  # fmt: skip
    command = json.dumps({"action": "subscribe", "notification_types": ["custom_event"]}).encode()
    body = json.dumps({"data": EVENT, "source": "bench"}).encode()
    costs: dict[str, list[float]] = {}
    rates: list[float] = []
    idle: dict[str, list[float]] = {}

    def once(served: Served, path: str, order: bytes | None, target: str, text: bytes) -> float:
        """One round with subscribers of its own: they answer no pings, and would be given up after a while."""
        before = anonymous_bytes(served.pid)
        crowd = Subscribers(subscribe(served, path, subscribers, order))
        idle.setdefault(served.name, []).append((anonymous_bytes(served.pid) - before) / subscribers / 1024)
        deliver(served, crowd, target, text, 3)
        cost, rate = deliver(served, crowd, target, text, events)
        costs.setdefault(served.name, []).append(cost)
        crowd.close()
        return rate

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ours = stack.enter_context(jupyter(random_file(Path(folder) / "file.bin", 1024)))
        ours.headers = {"Authorization": f"token {TOKEN}"}
        peers = [stack.enter_context(plain_tornado())]
        for implementation in IMPLEMENTATIONS:
            try:
                peers.append(stack.enter_context(starlette(implementation)))
            except RuntimeError:
                print(f"uvicorn has no {implementation} here")
        for _ in range(rounds):
            rates.append(once(ours, "/ws/notifications", command, "/ipfs-stream/events", body))
            for peer in peers:
                once(peer, "/socket", None, "/publish", notification)
    print(
        f"an idle subscriber takes {idle[ours.name][0]:.1f} KiB (goal: 32); plain Tornado's "
        f"{idle[peers[0].name][0]:.1f} KiB",
        flush=True,
    )
    middle = {name: statistics.median(found) for name, found in costs.items()}
    for name, cost in middle.items():
        print(f"{name}: {cost:.1f} µs of the server's processor for a delivery", flush=True)
    for peer in peers:
        ratios = [mine / theirs for mine, theirs in zip(costs[ours.name], costs[peer.name], strict=True)]
        print(
            f"ours / {peer.name}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
            f"goal {0.7 if peer is peers[0] else 1.0} at most"
        )
    print(
        f"{statistics.median(rates):,.0f} deliveries a second, one event after the other (goal: 15,000)",
        flush=True,
    )


def latencies(served: Served, sockets: list[socket.socket], events: int, size: int = 20_000) -> list[float]:
    """Seconds from sending an event of that size to having it, for each event and socket."""
    found: list[float] = []
    selector = selectors.DefaultSelector()
    for each in sockets:
        each.setblocking(False)
        selector.register(each, selectors.EVENT_READ)

    def send() -> None:
        for _ in range(events):
            body = json.dumps({"data": {"at": time.perf_counter(), "text": "x" * size}}).encode()
            publish(served, "/ipfs-stream/events", body, 1)
            time.sleep(0.05)  # so that none waits for the one before it

    sender = threading.Thread(target=send)
    sender.start()
    left = dict.fromkeys(sockets, b"")
    while len(found) < events * len(sockets):
        for key, _ in selector.select():
            data = left[key.fileobj] + key.fileobj.recv(MIB)
            now, end = time.perf_counter(), 0
            for match in re.finditer(rb'"at":([0-9.]+),', data):
                found.append(now - float(match[1]))
                end = match.end()
            left[key.fileobj] = data[end:][-64:]
    sender.join()
    selector.close()
    return found


def p99(seconds: list[float]) -> float:
    """The time that one in a hundred takes longer than."""
    return statistics.quantiles(seconds, n=100)[98]


def beside_a_stuck_one(subscribers: int, events: int) -> None:
    """How late others get their events while one subscriber never reads."""
    command = json.dumps({"action": "subscribe", "notification_types": ["custom_event"]}).encode()
    with tempfile.TemporaryDirectory() as folder:
        file = random_file(Path(folder) / "file.bin", 1024)
        with jupyter(file) as ours:
            ours.headers = {"Authorization": f"token {TOKEN}"}
            sockets = subscribe(ours, "/ws/notifications", subscribers, command)
            latencies(ours, sockets, 20)
            base = p99(latencies(ours, sockets, events))
            *others, stuck = sockets
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            latencies(ours, others, 100, 60_000)  # more than the sockets' buffers take
            late = p99(latencies(ours, others, events))
            for each in sockets:
                each.close()
    print(
        f"{subscribers} subscribers: p99 {base * 1000:.0f} ms; while one of them does not read {late * 1000:.0f} ms, "
        f"ratio {late / base:.2f} (goal: 2 at most)",
        flush=True,
    )


async def log_speed(events: int, rounds: int) -> None:
    """Durable publishing and replay, beside one event a commit."""
    publishing = Result("published durably in batches, 500 in flight", "the goal", "events/s", 1.0)
    replay = Result("replayed from the log", "the goal", "events/s", 1.0)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
            engine = SQLiteEngine(Path(folder), max_events=10 * events)
            await engine.open()
            made = [Event(NotificationType.CUSTOM_EVENT, EVENT, "bench") for _ in range(500)]
            start = time.perf_counter()
            for _ in range(events // 500):
                await asyncio.gather(*(engine.publish(event) for event in made))
            publishing.add(events / (time.perf_counter() - start), 20_000)
            seen = 0
            start = time.perf_counter()
            while page := await engine.read(seen, 1000):
                seen = page[-1].id
            replay.add(seen / (time.perf_counter() - start), 100_000)
            await engine.close()
    report(publishing)
    report(replay)


def main(subscribers: int = 1000, events: int = 100, rounds: int = 5) -> None:
    """Print all of it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    fan_out(subscribers, events, rounds)
    beside_a_stuck_one(200, events)
    asyncio.run(log_speed(50_000, rounds))


if __name__ == "__main__":
    main(*(int(value) for value in sys.argv[1:]))
