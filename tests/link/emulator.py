"""Emulated links that programs use: between two hosts, and between pairs of UDP sockets."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from link.candidates import Address, rewrite_candidate, rewrite_sdp
from link.namespaces import LinkUnavailableError, Namespace, ip
from link.paths import Scenario
from link.records import Records

TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
VIEWER, SERVER = "10.0.0.1", "10.0.0.2"
PREFIX = 30
STOP_SECONDS = 10
RECORD_CHUNK = 1 << 20


class _Emulation:
    """What both forms share: the process that passes packets, and what it writes down. An async context manager."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self._opened = time.monotonic()
        self._begun: float | None = None
        self._data = b""
        self._records_fd = -1
        self._process: asyncio.subprocess.Process | None = None
        self._made = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        """Packets pass from now on; raises LinkUnavailableError where this cannot be."""
        opening = asyncio.ensure_future(asyncio.to_thread(self._open))
        try:
            await self._start(*await asyncio.shield(opening))
        except BaseException:
            await asyncio.wait([opening])
            await self._take_away()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def begin(self) -> None:
        """Let the scenario's time 0 be now. Until then its first values hold, so that peers can connect."""
        self._begun = time.monotonic()
        self._command(begin=self._begun)

    @property
    def elapsed(self) -> float:
        """Seconds since the scenario began; before `begin`, since the link was made."""
        return time.monotonic() - (self._opened if self._begun is None else self._begun)

    @property
    def records(self) -> Records:
        """What happened until 0.1 s ago, or in all once it is closed; what is still under way is not in it before."""
        if self._records_fd >= 0:
            while data := os.pread(self._records_fd, RECORD_CHUNK, len(self._data)):
                self._data += data
        return Records(self.scenario, self._data, self._opened if self._begun is None else self._begun)

    async def close(self) -> None:
        """End the process, and take all away. Raises RuntimeError if the process has failed."""
        if not self._process:
            return
        self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                code = await self._process.wait()
        finally:
            await self._take_away()
        if code:
            raise RuntimeError("the link's process has failed; what it said is above")

    async def _start(self, kind: str, ports: list[int]) -> None:
        self._records_fd = os.memfd_create("records")
        self._made.callback(os.close, self._records_fd)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "link.shuttle",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(*ports, self._records_fd),
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )  # fmt: skip
        self._command(
            scenario=json.loads(self.scenario.to_json()), kind=kind, ports=ports, records=self._records_fd
        )
        if await self._process.stdout.readline() != b"ready\n":
            raise RuntimeError("the link's process has failed; what it said is above")

    async def _take_away(self) -> None:
        process, self._process = self._process, None
        if process and process.returncode is None:
            process.kill()
            await process.wait()
        _ = self.records  # the last of them
        self._records_fd = -1
        await asyncio.to_thread(self._made.close)

    def _command(self, **command: Any) -> None:
        self._process.stdin.write(json.dumps(command).encode() + b"\n")

    def _open(self) -> tuple[str, list[int]]:
        """The kind of ports, and their descriptors, in pairs. What is made goes to `_made`. Runs in a thread."""
        raise NotImplementedError


class Host:
    """One end of a `Link`."""

    def __init__(self, namespace: Namespace, address: str) -> None:
        self.namespace = namespace
        self.address = address
        self.prefix = namespace.prefix
        """What stands before a command that runs here."""
        self.entered = namespace.entered

    async def start(self, *command: str, **options: Any) -> asyncio.subprocess.Process:
        """Run a program here; options as of `asyncio.create_subprocess_exec`."""
        return await asyncio.create_subprocess_exec(*self.prefix, *command, **options)


class Link(_Emulation):
    """Two hosts, `viewer` and `server`, with the scenario's link between them and nothing else around. Needs root.

    `async with Link(SCENARIOS["steps"]) as link:` start programs, `link.begin()`, and look at `link.records`.
    """

    viewer: Host
    server: Host

    def _open(self) -> tuple[str, list[int]]:
        self.viewer, viewer = self._host("viewer", VIEWER)
        self.server, server = self._host("server", SERVER)
        return "tun", [viewer, server]

    def _host(self, stem: str, address: str) -> tuple[Host, int]:
        namespace = Namespace(stem)
        self._made.callback(namespace.delete)
        device = f"tun{secrets.token_hex(4)}"
        try:
            fd = os.open("/dev/net/tun", os.O_RDWR)
            self._made.callback(os.close, fd)
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))
        except OSError as error:
            raise LinkUnavailableError(f"a TUN device cannot be made: {error}") from error
        ip("link", "set", device, "netns", namespace.name)
        # else the kernel looks for routers over IPv6, on the link that is measured
        namespace.ip("link", "set", device, "addrgenmode", "none")
        namespace.ip("address", "add", f"{address}/{PREFIX}", "dev", device)
        namespace.ip("link", "set", device, "up")
        # browsers find their own address by looking for the way out
        namespace.ip("route", "add", "default", "dev", device)
        return Host(namespace, address), fd


class RelayEnd:
    """One peer, and what the other may know of it: `address`, of the relay's."""

    def __init__(self, address: Address) -> None:
        self.address = address

    def rewrite_sdp(self, sdp: str) -> str:
        """What to tell the other peer instead of the SDP that this one wrote."""
        return rewrite_sdp(sdp, self.address)

    def rewrite_candidate(self, candidate: str) -> str | None:
        """What to tell the other peer instead of a trickled candidate of this one's; None: nothing."""
        return rewrite_candidate(candidate, self.address)


class RelayPair:
    """Two peers of one connection: each takes the other to be at a port of the relay's."""

    def __init__(self, viewer: RelayEnd, server: RelayEnd) -> None:
        self.viewer = viewer
        self.server = server


class RelayLink(_Emulation):
    """The scenario's link between UDP sockets on this host, for WebRTC peers; `pairs` are as many as its flows.

    Pass each SDP through `rewrite_sdp` of the end that wrote it, and each trickled candidate through
    `rewrite_candidate`. Both sides then know the relay's addresses alone. Where a peer really is, the relay learns from
    the first datagram that it sends, as ICE agents do to every candidate; what comes before is lost. Packets count with
    28 bytes of headers.
    """

    pairs: list[RelayPair]

    def __init__(self, scenario: Scenario, host: str = "127.0.0.1") -> None:
        """`host` is an address of this machine that both peers reach."""
        super().__init__(scenario)
        self._host = host

    def _open(self) -> tuple[str, list[int]]:
        self.pairs = []
        sockets: list[socket.socket] = []
        for number in range(0, 2 * self.scenario.flows, 2):
            for _ in range(2):
                one = self._made.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                one.bind((self._host, 0))
                sockets.append(one)
            viewer, server = sockets[number:]
            # the viewer sends to the port that stands for the server, and the other way round
            self.pairs.append(RelayPair(RelayEnd(server.getsockname()), RelayEnd(viewer.getsockname())))
        return "udp", [one.fileno() for one in sockets]
