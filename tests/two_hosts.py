"""Two hosts on one machine: this one, and one in a network namespace at the other end of a virtual cable.

Kubo runs on both. The near one is where pytest is, with its RPC and its gateway on loopback. The far ones are known
by the addresses of relays alone, which deliver late, count, and can fall silent; so a peer's latency is what a test
says, though the kernel has no `tc netem`. These work on TCP connections; `link` has links for packets.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kubo import Kubo
from link.namespaces import LinkUnavailableError, Namespace, ip
from listening import stop_accepting

DELAYS = (0.0, 0.1, 0.2)
"""Of the far nodes: seconds that every byte takes, either way. A busy machine does not blur them."""
CHUNK = 64 * 1024
CHUNKS_UNDER_WAY = 256


class Network:
    """A namespace joined to this one by a veth pair: `near` and `far` are the addresses at its ends."""

    def __init__(self) -> None:
        """Skips the test with the reason where it cannot be made."""
        try:
            self._namespace = Namespace("far")
        except LinkUnavailableError as error:
            pytest.skip(str(error))
        self.name = self._namespace.name
        self.prefix = self._namespace.prefix
        """What stands before a command that runs on the far host."""
        self.near, self.far, prefix = _free_addresses()
        cable = f"v{secrets.token_hex(4)}"
        try:
            ip("link", "add", cable, "type", "veth", "peer", "name", "cable", "netns", self.name)
            ip("address", "add", f"{self.near}/{prefix}", "dev", cable)
            ip("link", "set", cable, "up")
            self._namespace.ip("address", "add", f"{self.far}/{prefix}", "dev", "cable")
            self._namespace.ip("link", "set", "cable", "up")
        except subprocess.CalledProcessError as error:
            self.close()
            pytest.skip(f"a virtual cable cannot be laid: {error.stderr.strip()}")

    def close(self) -> None:
        """Take both away; the cable goes with its end."""
        self._namespace.delete()


def _free_addresses() -> tuple[str, str, int]:
    """Two private addresses of a network that this machine is not in, and the length of its prefix."""
    used = [
        ipaddress.ip_interface(f"{one['local']}/{one['prefixlen']}").network
        for link in json.loads(ip("-json", "-4", "address"))
        for one in link["addr_info"]
    ]
    while True:
        net = ipaddress.ip_network(
            (int(ipaddress.ip_address("10.64.0.0")) + 4 * secrets.randbelow(2**19), 30)
        )
        if not any(net.overlaps(other) for other in used):
            near, far = net.hosts()
            return str(near), str(far), net.prefixlen


class Relay:
    """Passes TCP connections on to `target`, every byte `delay` seconds late; runs in a thread of its own."""

    def __init__(self, host: str, target: tuple[str, int], delay: float = 0.0) -> None:
        self.delay = delay
        self.to_target = self.from_target = 0
        """Bytes passed on, either way."""
        self._target = target
        self._socket = socket.create_server((host, 0))
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._flows.set()
        self._ends = asyncio.Event()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._run(),), daemon=True
        )
        self._thread.start()

    def silence(self) -> None:
        """Pass nothing on from now: connections stay, and nobody is told."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def resume(self) -> None:
        """Pass on again, beginning with what came meanwhile."""
        self._loop.call_soon_threadsafe(self._flows.set)

    def close(self) -> None:
        """Cut all connections and end the thread."""
        self._loop.call_soon_threadsafe(self._ends.set)
        self._thread.join()
        self._loop.close()

    async def _run(self) -> None:
        connections: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._connection(reader, writer))
            connections.add(task)
            task.add_done_callback(connections.discard)
            task.add_done_callback(lambda _: writer.transport.abort())

        server = await asyncio.start_server(accept, sock=self._socket, limit=CHUNK)
        await self._ends.wait()
        await stop_accepting(server)
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await asyncio.sleep(0)  # aborted transports are closed

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(*self._target, limit=CHUNK)
            ways = [(reader, far_writer, "to_target"), (far_reader, writer, "from_target")]
            tasks = [asyncio.ensure_future(self._way(*way)) for way in ways]
            try:
                # a side that ends or fails takes the other with it
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                far_writer.transport.abort()

    async def _way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: str) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_UNDER_WAY)

        async def deliver() -> None:
            while True:
                due, data = await under_way.get()
                await asyncio.sleep(due - time.monotonic())
                await self._flows.wait()
                if not data:
                    return
                writer.write(data)
                await writer.drain()
                setattr(self, count, getattr(self, count) + len(data))

        delivery = asyncio.ensure_future(deliver())
        try:
            data = b"begun"
            while data:
                data = await reader.read(CHUNK)
                await under_way.put((time.monotonic() + self.delay, data))
            await delivery
        finally:
            delivery.cancel()


class FarKubo(Kubo):
    """A Kubo on the far host, known to others by its relay's address.

    Its RPC is on that host's loopback, out of this one's reach; `run` works, since it starts the command line there.
    """

    def __init__(self, repo: Path, network: Network, delay: float) -> None:
        super().__init__(repo, prefix=network.prefix)
        self.delay = delay
        self.configure("Addresses.Swarm", [f"/ip4/{network.far}/tcp/{self.swarm_port}"])
        self.relay = Relay(network.near, (network.far, self.swarm_port), delay)
        self.swarm_address = f"/ip4/{network.near}/tcp/{self.relay.port}"
        self.configure("Addresses.Announce", [self.swarm_address])
        self.configure("Routing.Type", "dht")
        self.peer = self.run("config", "Identity.PeerID")
        self.full_address = f"{self.swarm_address}/p2p/{self.peer}"


class TwoHosts:
    """A near Kubo and three far ones, all announcing and looking up in the DHT that they make up between them."""

    def __init__(self, folder: Path) -> None:
        self.network = Network()
        with contextlib.ExitStack() as made:
            made.callback(self.network.close)
            self.near = Kubo(folder / "near")
            self.near.configure("Addresses.Swarm", [f"/ip4/{self.network.near}/tcp/{self.near.swarm_port}"])
            # private addresses make up Kubo's LAN table, in which every node also answers
            self.near.configure("Routing.Type", "dht")
            self.fars = []
            for number, delay in enumerate(DELAYS):
                self.fars.append(FarKubo(folder / f"far{number}", self.network, delay))
                made.callback(self.fars[-1].relay.close)
            self.far = self.fars[0]
            self._config = self.config_file.read_bytes()
            self._closing = made.pop_all()

    @property
    def config_file(self) -> Path:
        """The near node's settings."""
        return self.near.repo / "config"

    def start(self) -> None:
        """Begin anew: settings as at first, nobody peered, every far node running and connected to the near one."""
        self.near.stop()
        self.config_file.write_bytes(self._config)
        self.near.start()
        with ThreadPoolExecutor() as threads:
            list(threads.map(self._start_far, self.fars))

    def _start_far(self, far: FarKubo) -> None:
        far.stop()
        far.relay.resume()
        far.start()
        self.connect(far)

    def connect(self, far: FarKubo) -> None:
        """Have the near node dial a far one; they shake hands without delay."""
        far.relay.delay = 0.0
        self.near.run("swarm", "connect", far.full_address)
        far.relay.delay = far.delay

    def hurry(self) -> None:
        """Let the relays deliver at once, for tests whose matter is not latency."""
        for far in self.fars:
            far.relay.delay = 0.0

    def add_far(self, content: bytes | Path, *options: str, far: FarKubo | None = None) -> str:
        """The CID of content that a far node alone has: the bytes given, or a file of any size by its path.

        `options` are those of `ipfs add`.
        """
        where = far or self.far
        data, names = (content, []) if isinstance(content, bytes) else (None, [str(content)])
        cid = where.run("add", "-Q", "--cid-version=1", *options, *names, data=data)
        assert not self.near_has(cid)
        return cid

    def near_has(self, cid: str) -> bool:
        """Whether the near node holds a block itself."""
        try:
            self.near.run("block", "stat", "--offline", cid)
        except subprocess.CalledProcessError:
            return False
        return True

    def close(self) -> None:
        """End everything."""
        for node in (self.near, *self.fars):
            node.stop()
        self._closing.close()


@pytest.fixture(scope="session")
def lasting_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    """Made once, since making a repo takes longer than to start a daemon on it."""
    hosts = TwoHosts(tmp_path_factory.mktemp("hosts"))
    try:
        yield hosts
    finally:
        hosts.close()


@pytest.fixture
def two_hosts(lasting_hosts: TwoHosts) -> TwoHosts:
    """Two hosts as in `TwoHosts.start`, whatever the test before did to them."""
    lasting_hosts.start()
    return lasting_hosts
