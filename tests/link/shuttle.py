"""The process between the ends of a link: `python -m link.shuttle`, started by `emulator`.

A process of its own, at a real-time priority where that is allowed, so that what the tests do does not blur its
times. The first line of its input is a JSON object: `scenario`, `kind` ("tun" or "udp"), `ports` (file descriptors,
in pairs: the viewer's end and the server's), `records` (a file descriptor). Then may come `{"begin": monotonic
seconds}` on a line. The input's end is its own.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

from link.model import Model
from link.paths import Scenario
from link.rows import UDP, flow_id, flow_of, pack

BATCH = 64
"""Packets read from one end before the others have their turn."""
MAX_PACKET = 65535
UDP_HEADERS = 28
"""Bytes of IPv4 and UDP."""
RECORDS_EVERY = 0.1
"""Seconds."""


class TunPort:
    """One end: IP packets as the kernel gives them."""

    def __init__(self, fd: int, *, up: bool, **_: Any) -> None:
        self.fd = fd
        self.up = up
        os.set_blocking(fd, False)

    def read(self) -> tuple[bytes, int, int] | None:
        """A packet, its size on the link, its flow; None for one that does not pass. Raises BlockingIOError."""
        data = os.read(self.fd, MAX_PACKET)
        return data, len(data), flow_of(data, up=self.up)

    def write(self, data: bytes) -> None:
        os.write(self.fd, data)


class UdpPort:
    """One end: a socket that talks to one address alone, the first that it hears."""

    def __init__(self, fd: int, *, up: bool, pair: int) -> None:
        self.fd = fd
        self.up = up
        self._peer: tuple[str, int] | None = None
        self._flow = flow_id(UDP, pair)
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)

    def read(self) -> tuple[bytes, int, int] | None:
        """As `TunPort.read`; what others than the peer send does not pass."""
        data, source = self._socket.recvfrom(MAX_PACKET)
        if self._peer is None:
            self._peer = source
        return (data, len(data) + UDP_HEADERS, self._flow) if source == self._peer else None

    def write(self, data: bytes) -> None:
        if self._peer:
            self._socket.sendto(data, self._peer)


class Shuttle:
    """Passes packets from each end to its other, through a model for each direction."""

    def __init__(self, config: dict[str, Any]) -> None:
        scenario = Scenario.from_json(json.dumps(config["scenario"]))
        # the seed names the run; each direction has chances of its own
        self._models = (Model(scenario.down, 2 * scenario.seed), Model(scenario.up, 2 * scenario.seed + 1))
        kind = TunPort if config["kind"] == "tun" else UdpPort
        self._ports = [
            kind(fd, up=index % 2 == 0, pair=index // 2) for index, fd in enumerate(config["ports"])
        ]
        self._by_fd = {port.fd: index for index, port in enumerate(self._ports)}
        self._records: int = config["records"]
        self._record_at = 0.0

    def run(self, commands: Iterator[dict[str, Any] | None]) -> None:
        """Until the commands end."""
        fds = [sys.stdin.fileno(), *self._by_fd]
        while True:
            now = time.monotonic()
            for model in self._models:
                for index, data in model.receive(now):
                    # what an end has no room for, or nobody to give to, is lost there
                    with contextlib.suppress(OSError):
                        self._ports[index].write(data)
            if now >= self._record_at:
                self._record()
                self._record_at = now + RECORDS_EVERY
            wake = min(self._record_at, *(model.next_time() for model in self._models))
            ready, _, _ = select.select(fds, (), (), max(wake - time.monotonic(), 0.0))
            for fd in ready:
                if fd in self._by_fd:
                    self._read(self._by_fd[fd])
                elif not self._obey(commands):
                    self._record(last=True)
                    return

    def _read(self, index: int) -> None:
        port = self._ports[index]
        model = self._models[port.up]
        for _ in range(BATCH):
            try:
                packet = port.read()
            except BlockingIOError:
                return
            if packet:
                data, size, flow = packet
                model.send(time.monotonic(), size, (index ^ 1, data), flow)

    def _obey(self, commands: Iterator[dict[str, Any] | None]) -> bool:
        for command in commands:
            if command is None:
                return True
            for model in self._models:
                model.begin(command["begin"])
        return False

    def _record(self, *, last: bool = False) -> None:
        for up, model in enumerate(self._models):
            rows, model.rows = model.rows, []
            if last:
                rows += model.unsettled()
            data = memoryview(pack(rows, up=bool(up)))
            while data:
                data = data[os.write(self._records, data) :]


def read_commands(fd: int) -> Iterator[dict[str, Any] | None]:
    """Objects, one a line; None where no more has come yet."""
    rest = b""
    while data := os.read(fd, MAX_PACKET):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield json.loads(line)
        yield None


def main() -> None:
    """Say "ready" when packets pass."""
    commands = read_commands(sys.stdin.fileno())
    config = next(command for command in commands if command)
    shuttle = Shuttle(config)
    with contextlib.suppress(OSError):  # without root
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    gc.freeze()
    gc.disable()  # nothing here is cyclic
    print("ready", flush=True)
    shuttle.run(commands)


if __name__ == "__main__":
    main()
