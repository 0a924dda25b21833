"""A Kubo daemon that publishes names: with the DHT on, and nobody in it, records stay on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest

from kubo import Kubo


@pytest.fixture(scope="session")
def publisher(tmp_path_factory) -> Iterator[Kubo]:
    """The daemon."""
    repo = tmp_path_factory.mktemp("publisher") / "repo"
    node = Kubo(repo)
    node.configure("Routing.Type", "dht")
    try:
        yield node.start()
    finally:
        node.stop()
        shutil.rmtree(repo, ignore_errors=True)


@pytest.fixture
def publish(publisher, request) -> Callable[..., str]:
    """`publish(path, "--ttl=7s", type="ed25519", key=None)`: publish under a new key; its name in base 36."""
    made = []

    def publish(path: str, *options: str, type: str = "ed25519", key: str | None = None) -> str:  # noqa: A002
        if key is None:
            key = publisher.run("key", "gen", f"--type={type}", f"{request.node.name}-{len(made)}")
            made.append(key)
        publisher.run("name", "publish", "--allow-offline", "--resolve=false", f"--key={key}", *options, path)
        return key

    return publish
