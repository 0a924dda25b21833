"""Two hosts that no UDP packet finds a way between, and a real coturn at the router that both of them reach.

This machine is one of the hosts, the other is a network namespace, and so is the router. It passes TCP on, for signaling,
and drops UDP, as the firewalls of many offices do. Policy routing does that, so that no packet filter need be installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from two_hosts import Network

T = TypeVar("T")
START_SECONDS = 20
CLONE_NEWNET = 0x40000000
"""Of sched.h: os.setns came with Python 3.12."""


class TurnServer:
    """coturn for one user, on an address of a host that `prefix` names; what it logs is in `log`."""

    def __init__(self, folder: Path, address: str, prefix: tuple[str, ...] = ()) -> None:
        """Skips the test with the reason where there is no coturn."""
        program = shutil.which("turnserver")
        if program is None:
            pytest.skip("coturn is not installed: `make peers` gets it on Debian")
        self.log = folder / "coturn.log"
        self.user, self.password, self.port = "viewer", secrets.token_hex(8), 3478
        self.url = f"turn:{address}:{self.port}?transport=udp"
        command = [
            *prefix, program, "-n", "--verbose", "--log-file=stdout", "--simple-log", "--no-cli", "--no-tls",
            "--no-dtls", "--fingerprint", "--lt-cred-mech", "--realm=test", f"--user={self.user}:{self.password}",
            f"--listening-ip={address}", f"--relay-ip={address}", f"--listening-port={self.port}",
            f"--userdb={folder}/coturn.db", f"--pidfile={folder}/coturn.pid",
        ]  # fmt: skip
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out)
        deadline = time.monotonic() + START_SECONDS
        while "UDP listener opened" not in self.log.read_text():
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.close()
                raise RuntimeError("coturn did not start: " + self.log.read_text()[-2000:])
            time.sleep(0.01)

    @property
    def ice_servers(self) -> list[dict[str, Any]]:
        """It alone, as a browser's RTCConfiguration has it."""
        return [{"urls": [self.url], "username": self.user, "credential": self.password}]

    @property
    def allocations(self) -> int:
        """How many relayed addresses it has given out."""
        return self.log.read_text().count("ALLOCATE processed, success")

    @contextlib.contextmanager
    def silenced(self) -> Iterator[Callable[[], None]]:
        """It takes packets and answers none, until the function that this gives is called, or to the block's end."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield lambda: self._process.send_signal(signal.SIGCONT)
        finally:
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


class Firewalled:
    """`near` is this host's address, `far` that of the one behind the router; `turn` is the router's coturn."""

    def __init__(self, folder: Path) -> None:
        """Skips the test with the reason where it cannot be made."""
        with contextlib.ExitStack() as made:
            router = Network()
            made.callback(router.close)
            self.near, gate = router.near, router.far
            self.turn = TurnServer(folder, gate, tuple(router.prefix))
            made.callback(self.turn.close)
            self.name = f"behind-{secrets.token_hex(4)}"
            _ip("netns", "add", self.name)
            made.callback(_ip, "netns", "delete", self.name)
            # of the range that no other network of the tests takes its addresses from
            net = f"10.96.{secrets.randbelow(256)}"
            self.far, inner = f"{net}.2", f"{net}.1"
            inside, outside = ("-n", self.name), ("-n", router.name)
            _ip(*outside, "link", "add", "inner", "type", "veth", "peer", "name", "cable", "netns", self.name)
            _ip(*outside, "address", "add", f"{inner}/30", "dev", "inner")
            _ip(*outside, "link", "set", "inner", "up")
            _ip(*inside, "address", "add", f"{self.far}/30", "dev", "cable")
            _ip(*inside, "link", "set", "cable", "up")
            _ip(*inside, "link", "set", "lo", "up")
            _ip(*inside, "route", "add", "default", "via", inner)
            _ip("route", "add", f"{self.far}/32", "via", gate)
            for cable in ("cable", "inner"):  # what the router is to pass on; what is for itself, it takes
                _ip(*outside, "rule", "add", "iif", cable, "ipproto", "udp", "blackhole")
            forwarding = "echo 1 > /proc/sys/net/ipv4/ip_forward"
            try:
                _run(*router.prefix, "sh", "-c", forwarding)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"a network namespace cannot pass packets on: {error.stderr.strip()}")
            self.prefix = ["ip", "netns", "exec", self.name]
            self._closing = made.pop_all()

    def passes_udp(self) -> bool:
        """Whether a datagram from the far host arrives at this one."""
        with socket.socket(type=socket.SOCK_DGRAM) as here:
            here.bind((self.near, 0))
            here.settimeout(0.2)
            self.on_far(lambda: _say(here.getsockname()))
            try:
                return here.recv(9) == b"x"
            except TimeoutError:
                return False

    def on_far(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of a coroutine function, run on the far host: in a thread with an event loop of its own."""
        results: list[T] = []
        failures: list[BaseException] = []

        def run() -> None:
            try:
                with Path("/run/netns", self.name).open("rb") as namespace:
                    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))  # noqa: TRY301
                results.append(asyncio.run(work()))
            except BaseException as error:  # noqa: BLE001  # raised where it is waited for
                failures.append(error)

        thread = threading.Thread(target=run, name="far host")
        thread.start()
        thread.join()
        if failures:
            raise failures[0]
        return results[0]

    def close(self) -> None:
        """Take all of it away."""
        self._closing.close()


async def _say(address: tuple[str, int]) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as there:
        there.sendto(b"x", address)


def _ip(*args: str) -> None:
    _run("ip", *args)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)


@contextlib.contextmanager
def firewalled(folder: Path) -> Iterator[Firewalled]:
    """The hosts for the length of a `with` block."""
    hosts = Firewalled(folder)
    try:
        yield hosts
    finally:
        hosts.close()
