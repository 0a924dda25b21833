"""Measuring, choosing and keeping peers, announcing, and the daemon's settings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from math import inf
from typing import TYPE_CHECKING, Any, Final, Protocol

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.resolver import parse_path
from ipfs_stream_nb.display import a_kind
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError, NotFoundError, RetrievalError
from ipfs_stream_nb.network.report import (
    ConfigChange,
    ConfigPlan,
    NetworkReport,
    NetworkState,
    PeerLatency,
    Provided,
)

if TYPE_CHECKING:
    from ipfs_stream_nb.content.kubo.rpc import KuboRPC

PINGS: Final = 3
"""To each peer; Kubo sends them a second apart."""
PING_SECONDS: Final = 6.0
"""After which pings that have not come back are lost."""
PINGS_AT_ONCE: Final = 16
MAX_MEASURED: Final = 64
"""Peers that are pinged, unless the caller says otherwise: of more, those that Kubo knows to be near."""
PROVIDE_SECONDS: Final = 120.0
"""For one announcement: on the public network it reaches some twenty nodes of the DHT."""
PROVIDES_AT_ONCE: Final = 4
PEERING_SETTING: Final = "Peering.Peers"


class HasRPC(Protocol):
    """A node that is a Kubo daemon's."""

    @property
    def rpc(self) -> KuboRPC:
        """The daemon's RPC."""


class NetworkOptimizer:
    """Finds the nearest peers of a Kubo daemon, keeps them connected, and announces what is being streamed.

    One event loop uses it. Errors of the daemon are raised as its RPC words them; whatever was done until then is
    remembered, so that `undo` still takes it back.
    """

    def __init__(
        self, ipfs_api: HasRPC, *, max_preferred_peers: int = 5, max_measured: int = MAX_MEASURED
    ) -> None:
        """`ipfs_api` is a KuboNode, or whatever else has a KuboRPC as its `rpc`.

        Raises BadRequestError for an embedded node, which has no peers, and for numbers under 1.
        """
        rpc = getattr(ipfs_api, "rpc", None)
        if rpc is None:
            raise BadRequestError(
                f"NetworkOptimizer works on the peers of a Kubo daemon, and {a_kind(ipfs_api)} has none; "
                "start one (`ipfs daemon`, see https://docs.ipfs.tech/install/), and give a node over it: "
                "`await open_node(NodeSettings('kubo'))` from ipfs_stream_nb.content.nodes makes one"
            )
        if max_preferred_peers < 1 or max_measured < 1:
            raise BadRequestError(
                "max_preferred_peers and max_measured are at least 1; "
                f"got {max_preferred_peers} and {max_measured}"
            )
        self.ipfs_api = ipfs_api
        self.max_preferred_peers = max_preferred_peers
        self.max_measured = max_measured
        self.peer_latencies: dict[str, float] = {}
        """Seconds by peer id, as last measured; infinite for those that did not answer."""
        self.preferred_peers: list[str] = []
        """The ids of the best, which are kept connected."""
        self._rpc: KuboRPC = rpc
        self._addresses: dict[str, str] = {}
        self._added: set[str] = set()
        self._configured: set[str] = set()
        self._config_before: Any = None
        self._lock = asyncio.Lock()

    async def optimize(
        self,
        *,
        content: CID | str | Iterable[CID | str] = (),
        apply_config: bool = False,
        show: Callable[[ConfigPlan], object] = print,
    ) -> NetworkReport:
        """Measure the connected peers, keep the best connected, and announce the roots of `content`.

        With `apply_config` the choice is also written to the daemon's settings, so that it outlives a restart;
        `show` is given the difference first.
        """
        roots = [_root(one) for one in ([content] if isinstance(content, str | CID) else content)]
        async with self._lock:
            before = await self._state()
            peers = await self._measure_peers()
            added, dropped = await self._optimize_connections(peers)
            provided = await self._provide_all(roots)
            config = None
            if apply_config:
                config = await self.plan_config()
                show(config)
                await self._apply(config)
            after = await self._state()
        return NetworkReport(
            peers, tuple(self.preferred_peers), added, dropped, provided, before, after, config
        )

    async def undo(self) -> tuple[str, ...]:
        """Let go of the peers that this optimizer had added to the daemon's peering; tells which.

        They stay connected as any other. Peers that had been peered before are left alone.
        """
        async with self._lock:
            removed = await self._drop(self._added)
            self.preferred_peers = []
        return removed

    async def provide(self, cid: CID | str) -> Provided:
        """Announce that the daemon has `cid`, the root alone: who wants its content asks for the rest directly.

        A daemon that refuses or cannot is told of in the result, not raised.
        """
        root = _root(cid)
        try:
            async with asyncio.timeout(PROVIDE_SECONDS):
                # such a daemon reports success
                if await self._setting("Routing.Type") == "none":
                    text = "not announced: the daemon's setting Routing.Type is none, so nobody can be told"
                    return Provided(root, announced=False, text=text)
                await self._rpc.provide(root)
        except IPFSStreamError as error:
            return Provided(root, announced=False, text=f"not announced: {error}")
        except TimeoutError:
            text = f"not announced: it took longer than {PROVIDE_SECONDS:g} s"
            return Provided(root, announced=False, text=text)
        return Provided(root, announced=True, text="announced")

    async def plan_config(self) -> ConfigPlan:
        """What `apply_config` would change: the preferred peers are added to the setting Peering.Peers.

        Nothing is changed by this. Peers that somebody else has set stay, and no other setting is touched.
        """
        old = await self._peering()
        new = self._of_others(old)
        known = {one["ID"] for one in new}
        new += [
            {"ID": peer, "Addrs": [self._addresses[peer]]}
            for peer in self.preferred_peers
            if peer not in known
        ]
        return ConfigPlan((ConfigChange(PEERING_SETTING, old, new),) if new != (old or []) else ())

    async def undo_config(self) -> ConfigPlan:
        """Put the settings back as they were before `apply_config`; what others have added since stays."""
        async with self._lock:
            if not self._configured:
                return ConfigPlan()
            old = await self._peering()
            new = self._of_others(old)
            if new == (self._config_before or []):
                new = self._config_before
            plan = ConfigPlan((ConfigChange(PEERING_SETTING, old, new),) if new != old else ())
            await self._write(plan)
            self._configured.clear()
        return plan

    # -- measuring

    async def _measure_peers(self) -> tuple[PeerLatency, ...]:
        """All peers, best first; pinged PINGS_AT_ONCE at a time."""
        connected = await self._connected()
        room = asyncio.Semaphore(PINGS_AT_ONCE)

        async def measure(peer: str, address: str) -> PeerLatency:
            async with room:
                return await self._measure_peer_latency(peer, address)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(measure(*one)) for one in list(connected.items())[: self.max_measured]]
        peers = sorted((task.result() for task in tasks), key=lambda one: (one.loss, one.latency))
        self.peer_latencies = {one.peer: one.latency for one in peers}
        return tuple(peers)

    async def _measure_peer_latency(self, peer: str, address: str) -> PeerLatency:
        """PINGS pings to one peer, in PING_SECONDS; a failure is a lost ping, and its reason the note."""
        times: list[float] = []
        note = ""
        pings = self._rpc.pings(peer, count=PINGS)
        try:
            async with asyncio.timeout(PING_SECONDS), aclosing(pings):
                async for seconds, text in pings:
                    if seconds is None:
                        note = text
                    else:
                        times.append(seconds)
                    if len(times) == PINGS:
                        # Kubo would wait another second before it ends
                        break
        except IPFSStreamError as error:
            note = str(error)
        except TimeoutError:
            note = f"no answer in {PING_SECONDS:g} s"
        return PeerLatency(peer, address, tuple(times), PINGS, note)

    async def _connected(self) -> dict[str, str]:
        """The address of each connected peer by its id; those that Kubo knows to be near come first."""
        peers = await self._rpc.swarm_peers()
        peers.sort(key=lambda one: inf if one["latency"] is None else one["latency"])
        return {one["peer"]: one["address"] for one in peers}

    async def _state(self) -> NetworkState:
        counters = await self._rpc.bitswap_stat()
        return NetworkState(
            len(await self._connected()),
            len(await self._rpc.peering_ls()),
            {name: value for name, value in counters.items() if isinstance(value, int)},
        )

    # -- choosing

    async def _optimize_connections(
        self, peers: Sequence[PeerLatency]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Peer with the best of those that answered and are still there; those added, and those let go."""
        self._addresses = await self._connected()
        good = [one.peer for one in peers if one.reachable and one.peer in self._addresses]
        best = good[: self.max_preferred_peers]
        peered = await self._rpc.peering_ls()
        added = [peer for peer in best if peer not in peered]
        for peer in added:
            # before the request: it may be carried out though its answer is lost
            self._added.add(peer)
            await self._rpc.peering_add(f"{self._addresses[peer]}/p2p/{peer}")
        dropped = await self._drop(self._added.difference(best))
        self.preferred_peers = best
        return tuple(added), dropped

    async def _drop(self, peers: Iterable[str]) -> tuple[str, ...]:
        dropped = tuple(sorted(peers))
        for peer in dropped:
            await self._rpc.peering_rm(peer)
            self._added.remove(peer)
        return dropped

    # -- announcing

    async def _provide_all(self, roots: Iterable[CID]) -> tuple[Provided, ...]:
        room = asyncio.Semaphore(PROVIDES_AT_ONCE)

        async def provide(root: CID) -> Provided:
            async with room:
                return await self.provide(root)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(provide(root)) for root in roots]
        return tuple(task.result() for task in tasks)

    # -- settings

    def _of_others(self, peering: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
        """The entries of Peering.Peers that are not this optimizer's."""
        return [one for one in peering or [] if one["ID"] not in self._configured]

    async def _setting(self, key: str) -> Any:
        """A setting's value; None also where the config file does not name it."""
        try:
            return await self._rpc.config(key)
        except NotFoundError:
            return None

    async def _peering(self) -> list[dict[str, Any]] | None:
        """The setting Peering.Peers. Raises RetrievalError where it is not as Kubo has it."""
        found = await self._setting(PEERING_SETTING)
        if found is not None and not (
            isinstance(found, list)
            and all(isinstance(one, dict) and isinstance(one.get("ID"), str) for one in found)
        ):
            raise RetrievalError(
                f"the daemon's setting {PEERING_SETTING} is no list of peers with an ID each"
            )
        return found

    async def _apply(self, plan: ConfigPlan) -> None:
        for change in plan.changes:
            if not self._configured:
                self._config_before = change.old
            ours = {one["ID"] for one in change.new} - {one["ID"] for one in self._of_others(change.old)}
            # before the request: it may be carried out though its answer is lost
            self._configured |= ours
            await self._write(plan)
            self._configured = ours

    async def _write(self, plan: ConfigPlan) -> None:
        for change in plan.changes:
            await self._rpc.set_config(change.key, change.new)


def _root(content: CID | str) -> CID:
    cid, names = parse_path(content)
    if names:
        raise BadRequestError(f"roots are announced, and {content!r} is a path below one; give {cid}")
    return cid
