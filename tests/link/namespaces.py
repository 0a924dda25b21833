"""Network namespaces: hosts of their own on this machine."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWNET = 0x40000000


class LinkUnavailableError(Exception):
    """No such link can be made here; the text says why."""


def ip(*args: str) -> str:
    """Run iproute2's ip. Raises CalledProcessError."""
    return subprocess.run(["ip", *args], check=True, capture_output=True, text=True, timeout=30).stdout


class Namespace:
    """A host with a loopback address and nothing else yet; `delete` it in the end."""

    def __init__(self, stem: str) -> None:
        """Raises LinkUnavailableError."""
        if shutil.which("ip") is None:
            raise LinkUnavailableError("iproute2's ip is not installed, so there is no second host")
        self.name = f"{stem}-{secrets.token_hex(4)}"
        try:
            ip("netns", "add", self.name)
        except subprocess.CalledProcessError as error:
            raise LinkUnavailableError(
                f"a network namespace cannot be made: {error.stderr.strip()}"
            ) from error
        self.ip("link", "set", "lo", "up")

    @property
    def prefix(self) -> list[str]:
        """What stands before a command that runs on this host."""
        return ["ip", "netns", "exec", self.name]

    def ip(self, *args: str) -> str:
        """Run ip on this host."""
        return ip("-n", self.name, *args)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Let this thread's new sockets be on this host; not to be held across an `await`."""
        with Path("/proc/thread-self/ns/net").open() as home, Path("/run/netns", self.name).open() as there:
            _set_namespace(there.fileno())
            try:
                yield
            finally:
                _set_namespace(home.fileno())

    def delete(self) -> None:
        """Take it away, with the devices that are in it."""
        ip("netns", "delete", self.name)


def _set_namespace(fd: int) -> None:
    # Python has os.setns from 3.12 on
    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
