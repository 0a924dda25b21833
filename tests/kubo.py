"""A real Kubo daemon on loopback, with a repo and ports of its own and nobody else in its swarm."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest

import go_program

SOURCES = Path(__file__).parent / "interop" / "kubo"
PORTS = 20_000, 32_000
START_SECONDS = 60
STOP_SECONDS = 20


def program() -> Path:
    """The `ipfs` program, built where Go is there; skips with the reason where it cannot be had."""
    return go_program.build(SOURCES)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, no two the same; none of those that a system gives to others who ask for any port, as they may
    before these are listened on."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(*PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found += [port] if port not in found else []
    return found


class Kubo:
    """A repo with a daemon that can be started, stopped and killed. `run` calls the command line on it.

    `prefix` stands before the command, such as `ip netns exec far`; `address` is where it listens.
    """

    def __init__(self, repo: Path, *, prefix: Sequence[str] = (), address: str = "127.0.0.1") -> None:
        self.repo = repo
        self.prefix = list(prefix)
        self.address = address
        self.api_port, self.gateway_port, self.swarm_port = free_ports(3)
        self._program = program()
        self._daemon: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self.run("init", "--empty-repo")
        self.configure("Bootstrap", [])
        self.configure("Routing.Type", "none")
        self.configure("AutoConf.Enabled", False)
        self.configure("Discovery.MDNS.Enabled", False)
        self.configure("Swarm.DisableNatPortMap", True)
        self.configure("Version.SwarmCheckEnabled", False)
        self.configure("DNS.Resolvers", {})
        self.configure("Routing.DelegatedRouters", [])
        self.configure("Ipns.DelegatedPublishers", [])
        self.configure("Addresses.API", f"/ip4/{address}/tcp/{self.api_port}")
        self.configure("Addresses.Gateway", f"/ip4/{address}/tcp/{self.gateway_port}")
        self.configure("Addresses.Swarm", [f"/ip4/{address}/tcp/{self.swarm_port}"])

    @property
    def api(self) -> str:
        """The URL of its RPC."""
        return f"http://{self.address}:{self.api_port}"

    @property
    def gateway(self) -> str:
        """The URL of its gateway."""
        return f"http://{self.address}:{self.gateway_port}"

    def run(self, *args: str, data: bytes | None = None, timeout: float = 120) -> str:
        """What the command line prints; raises CalledProcessError with its complaint in `stderr`."""
        return self.run_binary(*args, data=data, timeout=timeout).decode().strip()

    def run_binary(self, *args: str, data: bytes | None = None, timeout: float = 120) -> bytes:
        """The same in bytes."""
        done = subprocess.run(
            [*self.prefix, self._program, *args],
            input=data,
            env=self.environment(),
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, args, done.stdout, done.stderr)
        return done.stdout

    def environment(self) -> dict[str, str]:
        """The environment in which the command line finds this repo."""
        return os.environ | {"IPFS_PATH": str(self.repo), "IPFS_TELEMETRY": "off", "NO_COLOR": "1"}

    def configure(self, key: str, value: Any) -> None:
        """Set one value of its config file; it holds from the next start on."""
        self.run("config", "--json", key, json.dumps(value))

    def start(self) -> Kubo:
        """Start the daemon; returns when it is ready."""
        self._daemon = subprocess.Popen(
            [*self.prefix, self._program, "daemon", "--enable-gc=false"],
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines: Queue[str] = Queue()
        assert self._daemon.stdout is not None
        self._reader = threading.Thread(target=_copy, args=(self._daemon.stdout, lines), daemon=True)
        self._reader.start()
        seen = []
        with contextlib.suppress(Empty):
            while line := lines.get(timeout=START_SECONDS):
                seen.append(line)
                if "Daemon is ready" in line:
                    return self
        self.stop()
        raise RuntimeError("Kubo did not start: " + "".join(seen)[-2000:])

    def stop(self) -> None:
        """End the daemon and wait for it. Idempotent."""
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            daemon.terminate()
            try:
                daemon.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
            assert self._reader is not None
            self._reader.join()
            assert daemon.stdout is not None
            daemon.stdout.close()

    def signal(self, number: int) -> None:
        """Send a signal to the daemon: SIGSTOP has it take connections and not answer, until SIGCONT."""
        assert self._daemon is not None
        self._daemon.send_signal(number)

    def kill(self) -> None:
        """kill -9."""
        if self._daemon is not None:
            self._daemon.kill()
        self.stop()


def _copy(lines: Any, into: Queue[str]) -> None:
    for line in lines:
        into.put(line)
    into.put("")


@contextlib.contextmanager
def running(repo: Path) -> Iterator[Kubo]:
    """A daemon for the length of a `with` block; its repo is removed at the end."""
    node = Kubo(repo)
    try:
        yield node.start()
    finally:
        node.stop()
        shutil.rmtree(repo, ignore_errors=True)


@pytest.fixture(scope="session")
def kubo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubo]:
    """One daemon for all tests that only add to it and read from it."""
    with running(tmp_path_factory.mktemp("kubo") / "repo") as node:
        yield node
