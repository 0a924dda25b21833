"""Traffic over a `Link`: a bulk transfer by TCP, and echoes."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self

from link.emulator import Host
from link.rows import TCP, flow_id

CHUNK = 64 * 1024
ECHO_REQUEST, ECHO_REPLY = 8, 0
ECHO_SECONDS = 5.0
"""How long an echo may take."""


class BulkFlow:
    """A TCP connection that sends as fast as it may, from one host to another, until it is closed."""

    def __init__(self, source: Host, sink: Host, congestion: str = "cubic") -> None:
        """`congestion` is the kernel's algorithm; the records know the flow as `flow` if `sink` is the viewer."""
        self.received = 0
        """Bytes that have come through."""
        with sink.entered():
            self._listener = socket.create_server((sink.address, 0))
        address = self._listener.getsockname()
        self.flow = flow_id(TCP, address[1])
        with source.entered():
            self._sender = socket.socket()
        self._sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        self._sender.settimeout(ECHO_SECONDS)
        self._sender.connect(address)
        self._sender.settimeout(None)
        self._receiver, _ = self._listener.accept()
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cut the connection."""
        for one in (self._sender, self._receiver):
            with contextlib.suppress(OSError):  # reset by the other
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in (self._sender, self._receiver, self._listener):
            one.close()

    def _send(self) -> None:
        data = bytes(CHUNK)
        with contextlib.suppress(OSError):  # closed
            while True:
                self._sender.sendall(data)

    def _receive(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while data := self._receiver.recv(CHUNK):
                self.received += len(data)


def echo_times(source: Host, target: Host, count: int, interval: float = 0.01) -> list[float]:
    """Seconds that each of `count` ICMP echoes took, which the other host's kernel answers; blocks meanwhile.

    Raises TimeoutError if one is lost.
    """
    with source.entered():
        ping = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with ping:
        ping.settimeout(ECHO_SECONDS)
        identifier = os.getpid() & 0xFFFF
        times = []
        for number in range(count):
            request = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, identifier, number)
            words = struct.unpack("!4H", request)
            total = sum(words)
            checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
            sent = time.monotonic()
            ping.sendto(request[:2] + checksum.to_bytes(2, "big") + request[4:], (target.address, 0))
            while True:
                packet = ping.recv(CHUNK)
                header = 4 * (packet[0] & 15)
                if packet[header] == ECHO_REPLY and packet[header + 4 : header + 8] == request[4:8]:
                    break
            times.append(time.monotonic() - sent)
            time.sleep(interval)
        return times
