"""A real nats-server with JetStream on loopback, with a port and a folder of its own.

Not called nats: the tests' folder is on the import path, ahead of nats-py.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubo import free_ports

START_SECONDS = 20
STOP_SECONDS = 20


class NatsServer:
    """A server that can be started, stopped and killed, and keeps its port and its streams. `config` stands in its file."""

    def __init__(self, folder: Path, *, config: str = "", jetstream: bool = True) -> None:
        found = shutil.which("nats-server")
        if found is None:
            pytest.skip("nats-server is not installed: `make peers` gets it on Debian")
        self._program = found
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (self.port,) = free_ports(1)
        store = f'jetstream {{ store_dir: "{folder}/store" }}\n' if jetstream else ""
        self._config = folder / "nats.conf"
        self._config.write_text(f"listen: 127.0.0.1:{self.port}\n{store}{config}\n")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> NatsServer:
        """Start it; returns when it takes connections."""
        log = self._folder / "log"
        with log.open("ab") as out:
            self._process = subprocess.Popen([self._program, "-c", self._config], stdout=out, stderr=out)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                if probe.recv(5) == b"INFO ":
                    return self
            time.sleep(0.01)
        self.kill()
        raise RuntimeError("nats-server did not start: " + log.read_text()[-2000:])

    def stop(self) -> None:
        """End it and wait for it. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: int) -> None:
        """Send it a signal: SIGSTOP has it take connections and not answer, until SIGCONT."""
        assert self._process is not None
        self._process.send_signal(number)


@contextlib.contextmanager
def running(folder: Path, *, config: str = "", jetstream: bool = True) -> Iterator[NatsServer]:
    """A server for the length of a `with` block; its folder is removed at the end."""
    server = NatsServer(folder, config=config, jetstream=jetstream)
    try:
        yield server.start()
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
